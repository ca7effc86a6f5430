//! A plugin that tries what no plugin should, and reports how far it came.
//!
//! `DETAIL` says where things are: lines `key=`, `outside=` (a directory of the agent's user with a file `file`), `open=` (a directory
//! that everybody may write), `tmp=` (a file in `/tmp`), `log=`, `socket=`, `beside=` (the directory of another plugin), and `victim=` (a process of the agent's
//! user). It sends one record of type 7010 for each attempt, with `attempt`, `outcome` and `errno`, and one of type 7011 at the end. An
//! attempt that the host refuses has the outcome `no`. One that succeeds has `yes`, and so has one that only fails because it is made
//! with arguments that do no harm: no attempt changes a host on which it is not refused.
//!
//! With the `DETAIL` `die` it runs into one wall and ends, and with `flood` it runs into one without end. Once the call fails in another
//! way than by a refusal, because nobody answers it any more, it makes a file `alone` and ends. With `fill=WAY` it fills its directory,
//! makes a file `done`, and stays.
#![allow(unsafe_code, reason = "system calls that have no safe wrapper, with arguments that the kernel refuses")]
#![allow(clippy::unwrap_used, reason = "a test's plugin that cannot go on may as well panic: the test sees it die")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::ptr;

use libc::c_long;

/// What the host answers when it refuses. `EXDEV` is a link that would lead out of the own directory, `ENOSPC` the bound of a
/// temporary directory.
const REFUSALS: [i32; 6] = [libc::EPERM, libc::EACCES, libc::EROFS, libc::EXDEV, libc::EAGAIN, libc::ENOSPC];

/// A call with these numbers as its arguments.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: the arguments are numbers, null pointers, or pointers to what outlives the call.
        let done = unsafe { libc::syscall($number as c_long $(, $argument as c_long)*) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
    }};
}

struct Places {
    key: PathBuf,
    outside: PathBuf,
    open: PathBuf,
    tmp: PathBuf,
    log: PathBuf,
    socket: PathBuf,
    beside: PathBuf,
    victim: c_long,
    agent: u32,
}

type Attempt = (&'static str, fn(&Places) -> io::Result<()>);

/// Every attempt, in the order of the table in docs/security.md.
const ATTEMPTS: [Attempt; 65] = [
    // Its own.
    ("write-own", |_| fs::write("made", "x")),
    ("read-passwd", |_| File::open("/etc/passwd").map(drop)),
    ("run-a-program", |_| Command::new("/bin/true").status().map(drop)),
    ("stderr", |_| io::stderr().write_all(b"tried\n")),
    // Files of others.
    ("write-outside", |places| fs::write(places.outside.join("made"), "x")),
    ("append-outside", |places| OpenOptions::new().append(true).open(places.outside.join("file")).map(drop)),
    ("chmod-outside", |places| fs::set_permissions(places.outside.join("file"), fs::Permissions::from_mode(0o600))),
    ("delete-outside", |places| fs::remove_file(places.outside.join("made")).or_else(but_not(libc::ENOENT))),
    ("write-where-all-may", |places| fs::write(places.open.join(process::id().to_string()), "x")),
    ("write-tmp", |_| in_tmp(b"x")),
    ("fill-tmp", |_| in_tmp(&vec![b'x'; 17 << 20])),
    ("run-from-tmp", |_| {
        let program = format!("/tmp/{}-run", process::id());
        let ran = fs::copy("/bin/true", &program).and_then(|_| Command::new(&program).status());
        let _ = fs::remove_file(&program);
        ran.map(drop)
    }),
    ("read-tmp", |places| read(&places.tmp).map_err(hidden)),
    ("read-tmp-through-root", |places| {
        read(Path::new(&format!("/proc/{}/root{}", places.victim, places.tmp.display()))).map_err(hidden)
    }),
    ("write-etc", |_| OpenOptions::new().append(true).open("/etc/passwd").map(drop)),
    ("write-beside", |places| fs::write(places.beside.join("made"), "x")),
    ("make-beside", |places| fs::create_dir(places.beside.with_file_name(process::id().to_string()))),
    ("write-sysctl", |_| OpenOptions::new().write(true).open("/proc/sys/kernel/core_pattern").map(drop)),
    ("spare-other", |places| {
        OpenOptions::new().write(true).open(format!("/proc/{}/oom_score_adj", places.victim)).map(drop).map_err(hidden)
    }),
    ("make-device", |_| {
        let made = call!(libc::SYS_mknodat, libc::AT_FDCWD, c"device".as_ptr(), libc::S_IFCHR | 0o600, 0x0101);
        let _ = fs::remove_file("device");
        made.map(drop)
    }),
    ("give-away", |_| fs::write("given", "x").and_then(|()| std::os::unix::fs::chown("given", Some(1), None))),
    ("read-outside", |places| read(&places.outside.join("file"))),
    ("read-key", |places| read(&places.key)),
    ("read-log", |places| read(&places.log)),
    ("write-log", |places| OpenOptions::new().append(true).open(&places.log).map(drop)),
    ("list-root", |_| fs::read_dir("/root").map(drop)),
    ("link-key", |places| {
        let linked = fs::hard_link(&places.key, "key");
        let _ = fs::remove_file("key");
        linked
    }),
    ("open-by-handle", |_| call!(libc::SYS_open_by_handle_at, libc::AT_FDCWD, ptr::null::<u8>(), 0).map(drop)),
    // Other processes.
    ("see-process", |places| fs::metadata(format!("/proc/{}", places.victim)).map(drop).map_err(hidden)),
    ("ptrace", |places| {
        const SEIZE: i32 = 0x4206;
        const DETACH: i32 = 17;
        call!(libc::SYS_ptrace, SEIZE, places.victim, 0, 0)?;
        call!(libc::SYS_ptrace, DETACH, places.victim, 0, 0).map(drop).or_else(but_not(libc::ESRCH))
    }),
    ("read-memory", |places| File::open(format!("/proc/{}/mem", places.victim)).map(drop).map_err(hidden)),
    ("write-memory", |places| {
        OpenOptions::new().write(true).open(format!("/proc/{}/mem", places.victim)).map(drop).map_err(hidden)
    }),
    ("read-memory-by-call", |places| call!(libc::SYS_process_vm_readv, places.victim, 0, 0, 0, 0, 0).map(drop)),
    ("write-memory-by-call", |places| call!(libc::SYS_process_vm_writev, places.victim, 0, 0, 0, 0, 0).map(drop)),
    ("take-descriptor", |places| {
        let process = call!(libc::SYS_pidfd_open, places.victim, 0)?;
        let taken = call!(libc::SYS_pidfd_getfd, process, 0, 0);
        call!(libc::SYS_close, process)?;
        call!(libc::SYS_close, taken?).map(drop)
    }),
    ("compare-descriptors", |places| call!(libc::SYS_kcmp, places.agent, places.victim, 0, 0, 0).map(drop)),
    ("read-environment", |places| read(Path::new(&format!("/proc/{}/environ", places.victim))).map_err(hidden)),
    ("read-executable", |places| fs::read_link(format!("/proc/{}/exe", places.victim)).map(drop).map_err(hidden)),
    ("list-descriptors", |places| fs::read_dir(format!("/proc/{}/fd", places.victim)).map(drop).map_err(hidden)),
    ("write-through-root", |places| {
        let outside = places.outside.join("file");
        let through = format!("/proc/{}/root{}", places.victim, outside.display());
        OpenOptions::new().append(true).open(through).map(drop).map_err(hidden)
    }),
    ("kill-agent", |places| call!(libc::SYS_kill, places.agent, 0).map(drop)),
    ("kill-other", |places| call!(libc::SYS_kill, places.victim, 0).map(drop)),
    ("slow-other", |places| call!(libc::SYS_setpriority, libc::PRIO_PROCESS, places.victim, 1).map(drop)),
    ("limit-other", |places| {
        call!(libc::SYS_prlimit64, places.victim, libc::RLIMIT_NOFILE, 0, ptr::null::<u8>()).map(drop)
    }),
    // The kernel.
    ("load-module", |_| call!(libc::SYS_finit_module, -1, c"".as_ptr(), 0).map(drop)),
    ("delete-module", |_| call!(libc::SYS_delete_module, c"no such module".as_ptr(), libc::O_NONBLOCK).map(drop)),
    ("kexec", |_| call!(libc::SYS_kexec_load, 0, 1 << 20, 0, 0).map(drop)),
    ("reboot", |_| call!(libc::SYS_reboot, 0, 0, 0, 0).map(drop)),
    ("bpf", |_| call!(libc::SYS_bpf, 9999, 0, 0).map(drop)),
    ("perf", |_| call!(libc::SYS_perf_event_open, 0, 0, -1, -1, 0).map(drop)),
    ("userfaultfd", |_| call!(libc::SYS_userfaultfd, 0x40).map(drop)),
    ("io_uring", |_| call!(libc::SYS_io_uring_setup, 0, 0).map(drop)),
    ("keys", |_| call!(libc::SYS_keyctl, 9999, 0, 0, 0, 0).map(drop)),
    ("mount", |_| call!(libc::SYS_mount, 0, c"/no such directory".as_ptr(), 0, 0, 0).map(drop)),
    ("unshare", |_| call!(libc::SYS_unshare, libc::CLONE_FS).map(drop)),
    ("clone-namespace", |_| {
        let child = call!(libc::SYS_clone, libc::CLONE_NEWNS | libc::SIGCHLD, 0, 0, 0, 0)?;
        if child == 0 {
            // SAFETY: the child ends here, before it touches what it shares.
            unsafe { libc::_exit(0) };
        }
        call!(libc::SYS_wait4, child, 0, 0, 0).map(drop)
    }),
    ("fork-without-end", |_| fork(400)),
    ("set-clock", |_| call!(libc::SYS_clock_settime, libc::CLOCK_REALTIME, 0).map(drop)),
    ("set-hostname", |_| call!(libc::SYS_sethostname, 0, -1).map(drop)),
    // The network and the agent's socket.
    ("tcp", |_| socket(libc::AF_INET, libc::SOCK_STREAM)),
    ("raw", |_| socket(libc::AF_INET, libc::SOCK_RAW)),
    ("packets", |_| socket(libc::AF_PACKET, libc::SOCK_RAW)),
    ("netlink", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    ("status-socket", |places| UnixStream::connect(&places.socket).map(drop)),
    // Rights.
    ("become-root", |_| call!(libc::SYS_setresuid, 0, 0, 0).map(drop)),
];

type Way = (&'static str, fn() -> io::Result<Option<File>>);

/// Ways to hold more than 32 MiB, or to look as if, in the order of the table in docs/security.md. Some keep a file open.
const WAYS: [Way; 9] = [
    ("large", || fs::write("data", large()).map(|()| None)),
    ("many", || (0..2_500).try_for_each(|number| fs::write(number.to_string(), [b'x'; 16 << 10])).map(|()| None)),
    ("hidden", || {
        fs::create_dir("...")?;
        fs::write(".../ \n\x1b[2J", large())?;
        fs::set_permissions("...", fs::Permissions::from_mode(0o000))?;
        Ok(None)
    }),
    ("empty", || (0..20_001).try_for_each(|number| File::create(number.to_string()).map(drop)).map(|()| None)),
    ("deep", || fs::create_dir_all("d/".repeat(17)).map(|()| None)),
    ("sparse", || File::create("data").and_then(|file| file.set_len(1 << 40)).map(|()| None)),
    ("names", || {
        fs::write("data", vec![b'x'; 1 << 20])?;
        (0..100).try_for_each(|number| fs::hard_link("data", format!("data{number}"))).map(|()| None)
    }),
    ("links", || {
        symlink("/", "root")?;
        symlink(".", "loop").map(|()| None)
    }),
    ("deleted", || {
        let mut file = File::create("data")?;
        fs::remove_file("data")?;
        file.write_all(&large())?;
        Ok(Some(file))
    }),
];

fn large() -> Vec<u8> {
    vec![b'x'; 40 << 20]
}

fn main() {
    let (client, mut tasks) = elklet_plugin::connect().unwrap();
    let detail = elklet_plugin::detail().unwrap();
    match &*detail {
        "die" => {
            let refused = socket(libc::AF_INET, libc::SOCK_STREAM).unwrap_err();
            process::exit(i32::from(refused.raw_os_error() == Some(libc::EACCES)));
        }
        "flood" => {
            while call!(libc::SYS_unshare, libc::CLONE_FS).unwrap_err().raw_os_error() == Some(libc::EPERM) {}
            fs::write("alone", "").unwrap();
            return;
        }
        _ => {}
    }
    if let Some(way) = detail.strip_prefix("fill=") {
        let (_, fill) = WAYS.iter().find(|(name, _)| *name == way).unwrap();
        let _held = fill().unwrap();
        fs::write("done", "").unwrap();
        while tasks.receive().unwrap().is_some() {}
        return;
    }
    let place = |name: &str| detail.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap();
    let path = |name: &str| PathBuf::from(place(name));
    let places = Places {
        key: path("key"),
        outside: path("outside"),
        open: path("open"),
        tmp: path("tmp"),
        log: path("log"),
        socket: path("socket"),
        beside: path("beside"),
        victim: place("victim").parse().unwrap(),
        agent: std::os::unix::process::parent_id(),
    };
    for (attempt, try_it) in ATTEMPTS {
        let error = try_it(&places).err();
        let errno = error.as_ref().and_then(io::Error::raw_os_error);
        let outcome = if errno.is_some_and(|errno| REFUSALS.contains(&errno)) { "no" } else { "yes" };
        let shown = error.map(|error| error.to_string()).unwrap_or_default();
        client
            .send(7010, &[("profile", place("profile")), ("attempt", attempt), ("outcome", outcome), ("errno", &shown)])
            .unwrap();
    }
    let escaped = escape();
    client.send(7011, &[("strays", &strays()), ("escaped", &escaped.to_string())]).unwrap();
    client.flush().unwrap();
    while let Some(task) = tasks.receive().unwrap() {
        client.answer(&task, Err("it is hostile")).unwrap();
    }
}

fn but_not(errno: i32) -> impl Fn(io::Error) -> io::Result<()> {
    move |error| if error.raw_os_error() == Some(errno) { Ok(()) } else { Err(error) }
}

/// Who does not see something is refused it.
fn hidden(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::NotFound { io::Error::from_raw_os_error(libc::EACCES) } else { error }
}

/// Has so many processes at the same time.
fn fork(count: usize) -> io::Result<()> {
    let mut children = Vec::with_capacity(count);
    let mut forked = Ok(());
    while children.len() < count && forked.is_ok() {
        match call!(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) {
            Ok(0) => loop {
                // SAFETY: the child only waits for a signal.
                unsafe { libc::pause() };
            },
            Ok(child) => children.push(child),
            Err(error) => forked = Err(error),
        }
    }
    for child in children {
        call!(libc::SYS_kill, child, libc::SIGKILL)?;
        call!(libc::SYS_wait4, child, 0, 0, 0)?;
    }
    forked
}

fn in_tmp(text: &[u8]) -> io::Result<()> {
    let path = format!("/tmp/{}", process::id());
    let written = fs::write(&path, text);
    let _ = fs::remove_file(path);
    written
}

fn read(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0; 16]).map(drop)
}

fn socket(family: i32, kind: i32) -> io::Result<()> {
    // SAFETY: a call on plain numbers.
    let made = unsafe { libc::socket(family, kind, 0) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has made this descriptor for this call.
    drop(unsafe { OwnedFd::from_raw_fd(made) });
    Ok(())
}

/// Descriptors that the plugin was not to inherit.
fn strays() -> String {
    let listing = File::open("/proc/self/fd").unwrap();
    let own = listing.as_raw_fd();
    let listed = fs::read_dir("/proc/self/fd").unwrap();
    let mut strays = Vec::new();
    for entry in listed {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        // Those of the listing itself lead to this directory.
        if number > 5 && number != own && !target.as_os_str().as_bytes().ends_with(b"/fd") {
            strays.push(target.display().to_string());
        }
    }
    strays.join(" ")
}

/// Leaves a process behind that has its own session, nothing in its environment, and nobody above it.
fn escape() -> u32 {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec sleep 600 <&- >&- 2>&- 3>&- 4>&- 5>&-"]).env_clear();
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }) };
    command.spawn().unwrap().id()
}
