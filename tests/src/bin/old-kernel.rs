//! Starts a program as on Linux 3.10: `old-kernel enosys|eperm PROGRAM ARGUMENT...`. Every system call that came later is answered
//! by ENOSYS, as that kernel does, or by EPERM, as container runtimes of its time did with calls that their filters did not know.
//! The filter stays with whatever the program starts. It needs no rights.
//!
//! One call is answered by ENOSYS either way: `clone3`. glibc can make no thread where it gets EPERM, and the runtimes were changed
//! for its sake. What the agent ships with is musl, which never makes this call, but its tests' plugins have glibc.
#![allow(
    unsafe_code,
    reason = "nothing else installs a filter of system calls, and whatever replaces this program keeps it"
)]

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::ptr;

use elklet_tests::old_kernel::{FIRST_LATER_CALL, THIS_ARCHITECTURE};
use libc::{sock_filter, sock_fprog};

fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().skip(1).collect();
    let (answer, program) = match words.split_first() {
        Some((answer, program)) if answer == "enosys" && !program.is_empty() => (libc::ENOSYS, program),
        Some((answer, program)) if answer == "eperm" && !program.is_empty() => (libc::EPERM, program),
        _ => {
            eprintln!("usage: old-kernel enosys|eperm PROGRAM ARGUMENT...");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = install(answer).and_then(|()| check(answer)) {
        eprintln!("old-kernel: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program[0]).args(&program[1..]).exec();
    eprintln!("old-kernel: {}: {error}", program[0].display());
    ExitCode::FAILURE
}

fn install(answer: i32) -> io::Result<()> {
    let (Some(first), Some(architecture)) = (FIRST_LATER_CALL, THIS_ARCHITECTURE) else {
        return Err(io::Error::other("nobody has told this program the system calls of this architecture"));
    };
    // BPF has classes and modes in the bits of one number.
    let code = |bits: u32| u16::try_from(bits).expect("BPF's codes have 16 bits");
    let statement = |bits, k| sock_filter { code: code(bits), jt: 0, jf: 0, k };
    let (load, equal) = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let (at_least, end) = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, libc::BPF_RET | libc::BPF_K);
    let refused = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let clone3 = u32::try_from(libc::SYS_clone3).expect("it has a small number");
    // struct seccomp_data begins with the number of the call, and the architecture.
    let mut filter = [
        statement(load, 4),
        sock_filter { jf: 4, ..statement(equal, architecture) },
        statement(load, 0),
        sock_filter { jt: 3, ..statement(equal, clone3) },
        sock_filter { jf: 1, ..statement(at_least, first) },
        statement(end, refused(answer)),
        statement(end, libc::SECCOMP_RET_ALLOW),
        statement(end, refused(libc::ENOSYS)),
    ];
    let program = sock_fprog { len: 8, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel reads the program, which points to the eight instructions above, and copies them.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes one of the later calls, so that no test passes under a filter that filters nothing.
fn check(answer: i32) -> io::Result<()> {
    // SAFETY: no byte is wanted, so that nothing is written to where there is nothing.
    let made = unsafe { libc::syscall(libc::SYS_getrandom, ptr::null_mut::<u8>(), 0, 0) };
    match io::Error::last_os_error().raw_os_error() {
        Some(error) if made == -1 && error == answer => Ok(()),
        _ => Err(io::Error::other("getrandom goes through all the same")),
    }
}
