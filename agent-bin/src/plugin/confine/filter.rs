//! A filter of system calls (seccomp(2)) for plugins that are not trusted, and for the agent's own threads.
//!
//! It refuses what no plugin needs that looks at a host: to change the kernel, the mounts, the clock or other processes, and to
//! reach parts of the kernel that are attacked again and again. It is a list of what is refused, because plugins are written in
//! several languages whose runtimes call what they like. The kernel runs the program for each call, so it has no loops and no
//! table: it compares one number after the other.
//!
//! The program is made by hand. The crate `seccompiler` knows three of the eleven architectures that the agent is built for,
//! and is 19 KB of it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::sock_filter;

/// What the kernel reports as the architecture (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "x86")]
const ARCHITECTURE: u32 = 0x4000_0003;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(target_arch = "arm")]
const ARCHITECTURE: u32 = 0x4000_0028;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xc000_00f3;
#[cfg(target_arch = "loongarch64")]
const ARCHITECTURE: u32 = 0xc000_0102;
#[cfg(target_arch = "powerpc64")]
const ARCHITECTURE: u32 = 0xc000_0015;
#[cfg(target_arch = "s390x")]
const ARCHITECTURE: u32 = 0x8000_0016;
#[cfg(target_arch = "mips")]
const ARCHITECTURE: u32 = 0x4000_0008;
/// No architecture: the filter would refuse everything, and [`Filter::new`] makes none.
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "x86",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64",
    target_arch = "loongarch64",
    target_arch = "powerpc64",
    target_arch = "s390x",
    target_arch = "mips"
)))]
const ARCHITECTURE: u32 = 0;

/// Calls since Linux 5.1 have the same number everywhere, but for where an architecture begins to count.
pub(super) const NEW: libc::c_long = if cfg!(target_arch = "mips") { 4000 } else { 0 };

/// Takes its flags from memory, which a filter cannot read. Programs go on with `clone` where a kernel lacks it.
const CLONE3: libc::c_long = NEW + 435;

/// What is refused, whatever its arguments are, with the calls' names.
const REFUSED: &[(libc::c_long, &str)] = &[
    // The kernel's code, and another kernel.
    (libc::SYS_init_module, "init_module"),
    (libc::SYS_finit_module, "finit_module"),
    (libc::SYS_delete_module, "delete_module"),
    (libc::SYS_kexec_load, "kexec_load"),
    #[cfg(any(target_arch = "x86_64", target_arch = "powerpc64", target_arch = "s390x"))]
    (libc::SYS_kexec_file_load, "kexec_file_load"),
    #[cfg(target_arch = "aarch64")]
    (294, "kexec_file_load"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_reboot, "reboot"),
    // Other processes. Their descriptors and memory would be a way around everything else.
    (libc::SYS_ptrace, "ptrace"),
    (libc::SYS_process_vm_readv, "process_vm_readv"),
    (libc::SYS_process_vm_writev, "process_vm_writev"),
    (libc::SYS_kcmp, "kcmp"),
    (NEW + 438, "pidfd_getfd"),
    // Mounts and namespaces.
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_pivot_root, "pivot_root"),
    (libc::SYS_chroot, "chroot"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_unshare, "unshare"),
    (NEW + 428, "open_tree"),
    (NEW + 429, "move_mount"),
    (NEW + 430, "fsopen"),
    (NEW + 431, "fsconfig"),
    (NEW + 432, "fsmount"),
    (NEW + 433, "fspick"),
    (NEW + 442, "mount_setattr"),
    (NEW + 467, "open_tree_attr"),
    // It finds files without a path, and so without the directories that are closed.
    (libc::SYS_open_by_handle_at, "open_by_handle_at"),
    // What others see of the host.
    (libc::SYS_settimeofday, "settimeofday"),
    (libc::SYS_clock_settime, "clock_settime"),
    (libc::SYS_sethostname, "sethostname"),
    (libc::SYS_setdomainname, "setdomainname"),
    (libc::SYS_swapon, "swapon"),
    (libc::SYS_swapoff, "swapoff"),
    (libc::SYS_acct, "acct"),
    (libc::SYS_quotactl, "quotactl"),
    (NEW + 443, "quotactl_fd"),
    (libc::SYS_vhangup, "vhangup"),
    // Keys of others.
    (libc::SYS_add_key, "add_key"),
    (libc::SYS_request_key, "request_key"),
    (libc::SYS_keyctl, "keyctl"),
    // What is hard to get right in the kernel. io_uring would also open sockets past this filter.
    (libc::SYS_perf_event_open, "perf_event_open"),
    (libc::SYS_userfaultfd, "userfaultfd"),
    (NEW + 425, "io_uring_setup"),
    (NEW + 426, "io_uring_enter"),
    (NEW + 427, "io_uring_register"),
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    (libc::SYS_iopl, "iopl"),
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    (libc::SYS_ioperm, "ioperm"),
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    (libc::SYS_modify_ldt, "modify_ldt"),
];

/// What is refused to the agent's own threads besides. Only its first thread starts processes, and it becomes nobody else.
const REFUSED_TO_AGENT: &[(libc::c_long, &str)] = &[
    (libc::SYS_execve, "execve"),
    (libc::SYS_execveat, "execveat"),
    (libc::SYS_setuid, "setuid"),
    (libc::SYS_setgid, "setgid"),
    (libc::SYS_setreuid, "setreuid"),
    (libc::SYS_setregid, "setregid"),
    (libc::SYS_setresuid, "setresuid"),
    (libc::SYS_setresgid, "setresgid"),
    (libc::SYS_setgroups, "setgroups"),
    (libc::SYS_capset, "capset"),
    (libc::SYS_personality, "personality"),
];

/// Flags of `clone` that make namespaces.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

/// Opcodes (linux/bpf_common.h).
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// What becomes of a call (linux/seccomp.h).
const ALLOW: u32 = 0x7fff_0000;
const fn refuse(errno: i32) -> u32 {
    0x0005_0000 | errno.cast_unsigned()
}

/// The call waits until the listener has said what becomes of it.
const ASK: u32 = 0x7fc0_0000;

/// Where `struct seccomp_data` has the call's number and the architecture.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Steps of the program that look at the architecture. A call of another one has a number that says nothing.
const ARCH_STEPS: usize = 3;

/// A filter, ready for the process that it is for.
#[derive(Debug)]
pub(super) struct Filter {
    /// It refuses by itself.
    program: Vec<sock_filter>,
    /// It refuses the same, and leaves it to the listener to say so.
    asking: Vec<sock_filter>,
}

/// Says which of the refused calls this is, and with which error it fails.
pub(super) fn refusal(call: i32, argument_0: u64) -> (&'static str, i32) {
    let call = libc::c_long::from(call);
    if call == libc::SYS_socket {
        // The kernel takes the lower half, whatever the rest is.
        let family = (argument_0 & u64::from(u32::MAX)).try_into();
        let name = match family.map(u32::cast_signed) {
            Ok(libc::AF_UNIX) => "socket(AF_UNIX)",
            Ok(libc::AF_INET) => "socket(AF_INET)",
            Ok(libc::AF_INET6) => "socket(AF_INET6)",
            Ok(libc::AF_NETLINK) => "socket(AF_NETLINK)",
            Ok(libc::AF_PACKET) => "socket(AF_PACKET)",
            _ => "socket(another family)",
        };
        return (name, libc::EACCES);
    }
    let known = REFUSED.iter().find(|(refused, _)| *refused == call);
    (known.map_or("clone(new namespaces)", |(_, name)| *name), libc::EPERM)
}

impl Filter {
    /// A filter that leaves `families` of sockets, or all of them. `None` where the architecture is not known.
    pub(super) fn new(families: Option<&[i32]>) -> Option<Self> {
        Self::refusing(&[], families)
    }

    /// The same, and refuses some more calls.
    fn refusing(more: &[(libc::c_long, &str)], families: Option<&[i32]>) -> Option<Self> {
        if ARCHITECTURE == 0 {
            return None;
        }
        let mut filter = Self { program: Vec::with_capacity(2 * REFUSED.len() + 40), asking: Vec::new() };
        // Calls of another architecture have other numbers.
        filter.step(LOAD, ARCH);
        filter.test(IF_EQUAL, ARCHITECTURE, 1, 0);
        filter.step(RETURN, refuse(libc::EPERM));
        filter.step(LOAD, NUMBER);
        // So do those of x32, which has the same architecture.
        if cfg!(target_arch = "x86_64") {
            filter.unless_then(IF_AT_LEAST, 0x4000_0000, refuse(libc::ENOSYS));
        }
        filter.unless_then(IF_EQUAL, number(CLONE3), refuse(libc::ENOSYS));
        for (refused, _) in REFUSED.iter().chain(more) {
            filter.unless_then(IF_EQUAL, number(*refused), refuse(libc::EPERM));
        }
        let flags = argument(if cfg!(target_arch = "s390x") { 1 } else { 0 });
        filter.test(IF_EQUAL, number(libc::SYS_clone), 0, 4);
        filter.step(LOAD, flags);
        filter.unless_then(IF_ANY_BIT, NAMESPACES, refuse(libc::EPERM));
        filter.step(RETURN, ALLOW);
        if let Some(families) = families {
            // It takes its arguments from memory, and C libraries do without it where it is refused.
            #[cfg(any(target_arch = "x86", target_arch = "powerpc64", target_arch = "s390x", target_arch = "mips"))]
            filter.unless_then(IF_EQUAL, number(libc::SYS_socketcall), refuse(libc::ENOSYS));
            filter.test(IF_EQUAL, number(libc::SYS_socket), 1, 0);
            filter.step(RETURN, ALLOW);
            filter.step(LOAD, argument(0));
            for family in families {
                filter.unless_then(IF_EQUAL, family.cast_unsigned(), ALLOW);
            }
            filter.step(RETURN, refuse(libc::EACCES));
        }
        filter.step(RETURN, ALLOW);
        filter.asking = filter.program.clone();
        for step in filter.asking.iter_mut().skip(ARCH_STEPS) {
            // `ENOSYS` is not a wall: programs go on with another call.
            if step.code == RETURN && [refuse(libc::EPERM), refuse(libc::EACCES)].contains(&step.k) {
                step.k = ASK;
            }
        }
        Some(filter)
    }

    /// Filters the calls of the calling process from now on. Allocates nothing.
    ///
    /// # Errors
    /// When the kernel cannot, or not for a process that may get new rights by exec.
    pub(super) fn install(&self) -> io::Result<()> {
        install(&self.program, 0).map(drop)
    }

    /// Does the same, but has each refused call wait for the listener, which this returns. Allocates nothing.
    ///
    /// # Errors
    /// As with [`Filter::install`], before Linux 5.0, and below a filter that has a listener already.
    pub(super) fn install_asking(&self) -> io::Result<OwnedFd> {
        const NEW_LISTENER: libc::c_ulong = 1 << 3;
        let listener = install(&self.asking, NEW_LISTENER)?;
        // SAFETY: the kernel has made this descriptor for this call.
        Ok(unsafe { OwnedFd::from_raw_fd(listener) })
    }

    fn step(&mut self, code: u16, k: u32) {
        self.program.push(sock_filter { code, jt: 0, jf: 0, k });
    }

    /// Skips `yes` steps if the test holds and `no` if it does not.
    fn test(&mut self, code: u16, k: u32, yes: u8, no: u8) {
        self.program.push(sock_filter { code, jt: yes, jf: no, k });
    }

    /// Returns `result` if the test holds, and goes on if it does not.
    fn unless_then(&mut self, code: u16, k: u32, result: u32) {
        self.test(code, k, 0, 1);
        self.step(RETURN, result);
    }
}

/// Filters the calls of the calling thread, and of those that it starts, from now on. None of them can start a program then.
///
/// # Errors
/// When the kernel cannot, or the filter is not known for this architecture.
pub(crate) fn restrict_thread() -> io::Result<()> {
    /// Leaves speculation as it is. Kernels before 5.16 would slow down whoever has a filter, which suits those that run others' code.
    const SPEC_ALLOW: libc::c_ulong = 1 << 2;
    let filter = Filter::refusing(REFUSED_TO_AGENT, None).ok_or(io::ErrorKind::Unsupported)?;
    // Without the right to administer, only a thread may have a filter that gets no new rights by exec, and this one never executes anything.
    // SAFETY: a system call on plain numbers.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // Linux before 4.17 does not know the flag.
    install(&filter.program, SPEC_ALLOW).or_else(|_| install(&filter.program, 0)).map(drop)
}

/// Returns what the kernel does: a descriptor, or 0.
fn install(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<i32> {
    let program =
        libc::sock_fprog { len: u16::try_from(program.len()).unwrap_or(u16::MAX), filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads the program, and as many steps as there are.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    i32::try_from(done).ok().filter(|done| *done >= 0).ok_or_else(io::Error::last_os_error)
}

/// The number of a call, as the filter sees it.
fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// Where the lower half of an argument is.
fn argument(index: u32) -> u32 {
    16 + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with a call.
    fn judge(program: &[sock_filter], architecture: u32, call: libc::c_long, argument_0: u64) -> u32 {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number(call).to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        data[16..24].copy_from_slice(&argument_0.to_ne_bytes());
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let holds = match code {
                RETURN => return k,
                LOAD => {
                    let place = k as usize;
                    loaded = u32::from_ne_bytes(data[place..place + 4].try_into().expect("four bytes"));
                    at += 1;
                    continue;
                }
                IF_EQUAL => loaded == k,
                IF_AT_LEAST => loaded >= k,
                IF_ANY_BIT => loaded & k != 0,
                _ => panic!("{code}"),
            };
            at += 1 + usize::from(if holds { jt } else { jf });
        }
    }

    #[test]
    fn what_no_plugin_needs_is_refused_and_the_rest_is_not() {
        let filter = Filter::new(Some(&[libc::AF_UNIX])).expect("a known architecture");
        let free = Filter::new(None).expect("a known architecture");
        assert_eq!(judge(&free.program, ARCHITECTURE, libc::SYS_socket, 2), ALLOW);
        let judge = |call, argument: i32| {
            let argument = u64::from(argument.cast_unsigned());
            let (told, asked) = (
                judge(&filter.program, ARCHITECTURE, call, argument),
                judge(&filter.asking, ARCHITECTURE, call, argument),
            );
            // The listener refuses the same with the same error.
            match asked {
                ASK => assert_eq!(told, refuse(refusal(i32::try_from(call).expect("small"), argument).1), "{call}"),
                asked => assert_eq!(told, asked, "{call}"),
            }
            told
        };
        for (refused, name) in REFUSED {
            assert_eq!(judge(*refused, 0), refuse(libc::EPERM), "{name}");
        }
        assert_eq!(judge(CLONE3, 0), refuse(libc::ENOSYS));
        assert_eq!(refusal(i32::try_from(REFUSED[0].0).expect("small"), 0), ("init_module", libc::EPERM));
        assert_eq!(refusal(i32::try_from(libc::SYS_socket).expect("small"), 1 << 32 | 2).0, "socket(AF_INET)");
        for allowed in [libc::SYS_read, libc::SYS_execve, libc::SYS_execveat, libc::SYS_dup3, libc::SYS_connect] {
            assert_eq!(judge(allowed, 0), ALLOW, "{allowed}");
        }
        assert_eq!((judge(libc::SYS_clone, libc::CLONE_VM), judge(libc::SYS_socket, libc::AF_UNIX)), (ALLOW, ALLOW));
        assert_eq!(judge(libc::SYS_clone, libc::CLONE_VM | libc::CLONE_NEWUSER), refuse(libc::EPERM));
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_PACKET, libc::AF_VSOCK] {
            assert_eq!(judge(libc::SYS_socket, family), refuse(libc::EACCES));
        }
    }

    #[test]
    fn the_agents_threads_start_nothing_and_become_nobody() {
        let filter = Filter::refusing(REFUSED_TO_AGENT, None).expect("a known architecture");
        let judge = |call| judge(&filter.program, ARCHITECTURE, call, 0);
        for (refused, name) in REFUSED.iter().chain(REFUSED_TO_AGENT) {
            assert_eq!(judge(*refused), refuse(libc::EPERM), "{name}");
        }
        for allowed in [libc::SYS_read, libc::SYS_clone, libc::SYS_socket, libc::SYS_fchown, libc::SYS_kill] {
            assert_eq!(judge(allowed), ALLOW, "{allowed}");
        }
        std::thread::spawn(|| {
            restrict_thread().expect("this kernel has filters");
            let error = std::process::Command::new("true").spawn().expect_err("no program is started");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            std::thread::spawn(|| drop(std::fs::read("/proc/self/stat").expect("readable")))
                .join()
                .expect("it goes on");
        });
        assert!(std::process::Command::new("true").status().expect("this thread may").success());
    }

    #[test]
    fn calls_of_another_architecture_are_refused() {
        let filter = Filter::new(None).expect("a known architecture");
        for program in [&filter.program, &filter.asking] {
            assert_eq!(judge(program, ARCHITECTURE ^ 1, libc::SYS_read, 0), refuse(libc::EPERM));
        }
        #[cfg(target_arch = "x86_64")]
        assert_eq!(judge(&filter.asking, ARCHITECTURE, 0x4000_0000 + libc::SYS_read, 0), refuse(libc::ENOSYS));
    }
}
