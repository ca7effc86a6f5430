//! A user of the host who has no business with the agent, and tries what he can.
//!
//! `local-user try KEY=PATH...` prints a line for each attempt: its name, `yes` or `no`, and the host's word for it. The keys are `file` (the
//! settings), `certs`, `workdir`, `log` (a directory), `socket`, `home` (a directory of this user), and the processes `agent` and `plugin`.
//! No attempt changes what it succeeds in opening. `local-user fill DIRECTORY` fills the file system of a directory, `local-user
//! hold DIRECTORY` locks whatever of a work directory it can, and both say `done` and then wait until they are killed.
#![allow(unsafe_code, reason = "system calls that have no safe wrapper, with arguments that the kernel refuses")]
#![allow(clippy::print_stdout, reason = "it is how the test hears of it")]
#![allow(clippy::unwrap_used, reason = "a test's program that cannot go on may as well panic: the test sees it die")]

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::ptr;
use std::thread;
use std::time::Duration;

use libc::c_long;

/// What the host answers when it refuses.
const REFUSALS: [i32; 2] = [libc::EPERM, libc::EACCES];

/// A call with these numbers as its arguments.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: the arguments are numbers, null pointers, or pointers to what outlives the call.
        let done = unsafe { libc::syscall($number as c_long $(, $argument as c_long)*) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
    }};
}

struct Places {
    file: PathBuf,
    certs: PathBuf,
    workdir: PathBuf,
    log: PathBuf,
    socket: PathBuf,
    home: PathBuf,
    /// The plugin's executable.
    program: PathBuf,
    agent: c_long,
    plugin: c_long,
}

type Attempt = (&'static str, fn(&Places) -> io::Result<()>);

/// Every attempt, in the order of the table in docs/security.md.
const ATTEMPTS: &[Attempt] = &[
    // What is there to be read.
    ("see-processes", |places| both(places, |pid| read(&of(pid, "cmdline")))),
    ("list-workdir", |places| list(&places.workdir)),
    ("read-settings", |places| read(&places.file)),
    ("read-key", |places| read(&places.certs.join("client.key"))),
    ("read-certificate", |places| read(&places.certs.join("client.crt"))),
    ("read-log", |places| read(&places.log.join("elklet.log"))),
    ("read-audit", |places| read(&places.log.join("audit.log"))),
    ("read-plugin-list", |places| read(&places.workdir.join("plugins.kept"))),
    ("read-spool", |places| list(&places.workdir.join("spool"))),
    ("list-plugins", |places| list(&places.workdir.join("plugin"))),
    ("read-plugin", |places| read(&places.program)),
    ("run-plugin", |places| executable(&places.program)),
    ("read-stderr", |places| read(&places.program.with_extension("stderr"))),
    ("ask-socket", |places| UnixStream::connect(&places.socket).map(drop)),
    // What is there to be changed.
    ("write-settings", |places| append(&places.file)),
    ("replace-settings", |places| replace(places, &places.file)),
    ("replace-key", |places| replace(places, &places.certs.join("client.key"))),
    ("replace-authority", |places| replace(places, &places.certs.join("ca.crt"))),
    ("write-log", |places| append(&places.log.join("elklet.log"))),
    ("delete-audit", |places| replace(places, &places.log.join("audit.log"))),
    ("replace-plugin-list", |places| replace(places, &places.workdir.join("plugins.kept"))),
    ("write-plugin", |places| append(&places.program)),
    ("replace-plugin", |places| replace(places, &places.program)),
    ("plant-beside-plugin", |places| plant(&places.program.with_file_name("planted"))),
    ("plant-plugin", |places| plant(&places.workdir.join("plugin/planted"))),
    ("plant-stage", |places| plant(&places.workdir.join("plugin/.probe.new.1"))),
    ("plant-in-workdir", |places| plant(&places.workdir.join("planted"))),
    ("plant-id", |places| plant(&places.workdir.join("specified_env.new"))),
    ("plant-in-tmp", |places| plant(&places.workdir.join("tmp/planted"))),
    ("plant-in-spool", |places| plant(&places.workdir.join("spool/planted.seg"))),
    ("plant-update", |places| plant(&places.workdir.join("update/trial.json"))),
    ("plant-in-log", |places| plant(&places.log.join("elklet.log.1"))),
    ("replace-socket", |places| replace(places, &places.socket)),
    ("plant-beside-socket", |places| plant(&places.socket.with_file_name("planted"))),
    ("link-key", |places| link(places, &places.certs.join("client.key"))),
    ("link-log", |places| link(places, &places.log.join("elklet.log"))),
    // The processes.
    ("signal", |places| both(places, |pid| call!(libc::SYS_kill, pid, 0).map(drop))),
    ("trace", |places| {
        both(places, |pid| {
            const SEIZE: i32 = 0x4206;
            call!(libc::SYS_ptrace, SEIZE, pid, 0, 0).map(drop)
        })
    }),
    ("read-memory", |places| both(places, |pid| File::open(of(pid, "mem")).map(drop))),
    ("read-memory-by-call", |places| both(places, read_by_call)),
    ("see-memory", |places| both(places, |pid| read(&of(pid, "maps")))),
    ("read-environment", |places| both(places, |pid| read(&of(pid, "environ")))),
    ("list-descriptors", |places| both(places, |pid| list(&of(pid, "fd")))),
    ("use-descriptor", |places| both(places, |pid| File::open(of(pid, "fd/4")).map(drop))),
    ("take-descriptor", |places| {
        both(places, |pid| {
            let process = call!(libc::SYS_pidfd_open, pid, 0)?;
            call!(libc::SYS_pidfd_getfd, process, 0, 0).map(drop)
        })
    }),
    ("see-executable", |places| both(places, |pid| fs::read_link(of(pid, "exe")).map(drop))),
    ("enter-root", |places| both(places, |pid| list(&of(pid, "root")))),
    ("enter-directory", |places| both(places, |pid| list(&of(pid, "cwd")))),
    ("slow-down", |places| both(places, |pid| call!(libc::SYS_setpriority, libc::PRIO_PROCESS, pid, 1).map(drop))),
    ("pin-to-processor", |places| {
        both(places, |pid| call!(libc::SYS_sched_setaffinity, pid, 8, [1_u64].as_ptr()).map(drop))
    }),
    ("limit", |places| {
        both(places, |pid| {
            call!(libc::SYS_prlimit64, pid, libc::RLIMIT_NOFILE, ptr::null::<u8>(), [0_u64; 2].as_mut_ptr()).map(drop)
        })
    }),
    ("have-it-killed", |places| both(places, |pid| append(&of(pid, "oom_score_adj")))),
];

fn main() {
    let mut words = env::args().skip(1);
    match (words.next().as_deref(), words.next()) {
        (Some("fill"), Some(directory)) => fill(Path::new(&directory)),
        (Some("hold"), Some(directory)) => hold(Path::new(&directory)),
        (Some("try"), Some(first)) => try_all(&Places::from_words([first].into_iter().chain(words))),
        _ => panic!("expected try, fill or hold"),
    }
}

fn try_all(places: &Places) {
    assert_ne!(rustix::process::getuid().as_raw(), 0, "root may do all of this");
    // What this user may do, he can: the outcomes are not those of a broken host.
    let planted = places.home.join("planted");
    plant(&planted).unwrap();
    replace(places, &planted).unwrap();
    read(&planted).and_then(|()| append(&planted)).unwrap();
    for (name, attempt) in ATTEMPTS {
        let result = attempt(places);
        let outcome = match &result {
            Ok(()) => "yes",
            Err(error) if error.raw_os_error().is_some_and(|errno| REFUSALS.contains(&errno)) => "no",
            Err(_) => "odd",
        };
        println!("{name} {outcome} {}", result.map_or_else(|error| error.to_string(), |()| String::new()));
    }
}

impl Places {
    fn from_words(words: impl Iterator<Item = String>) -> Self {
        let named: BTreeMap<_, _> =
            words.filter_map(|word| word.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()))).collect();
        let path = |name: &str| PathBuf::from(&named[name]);
        Self {
            file: path("file"),
            certs: path("certs"),
            workdir: path("workdir"),
            log: path("log"),
            socket: path("socket"),
            home: path("home"),
            program: path("workdir").join("plugin/probe/probe"),
            agent: named["agent"].parse().unwrap(),
            plugin: named["plugin"].parse().unwrap(),
        }
    }
}

fn of(pid: c_long, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Tries it on the agent and on a plugin. One success is enough.
fn both(places: &Places, attempt: impl Fn(c_long) -> io::Result<()>) -> io::Result<()> {
    attempt(places.agent).or_else(|_| attempt(places.plugin))
}

fn read(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0; 16]).map(drop)
}

fn read_by_call(pid: c_long) -> io::Result<()> {
    let mut byte = [0_u8];
    // Nothing lies at this address. Whoever may read memory is told that.
    let (here, there) = ([byte.as_mut_ptr() as usize, 1], [0x1000_usize, 1]);
    match call!(libc::SYS_process_vm_readv, pid, here.as_ptr(), 1, there.as_ptr(), 1, 0) {
        Err(error) if error.raw_os_error() != Some(libc::EFAULT) => Err(error),
        _ => Ok(()),
    }
}

fn append(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path).map(drop)
}

fn list(path: &Path) -> io::Result<()> {
    fs::read_dir(path).map(drop)
}

fn executable(path: &Path) -> io::Result<()> {
    let found = fs::metadata(path)?;
    if found.mode() & 0o001 == 0 { Err(io::Error::from_raw_os_error(libc::EACCES)) } else { Ok(()) }
}

/// Puts a link in this place through which root might write, and makes the directory for it if there is none.
fn plant(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap();
    if fs::symlink_metadata(directory).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        fs::create_dir(directory)?;
    }
    symlink("/etc/passwd", path)
}

/// Renames a file of this user's to this place.
fn replace(places: &Places, path: &Path) -> io::Result<()> {
    let own = places.home.join("own");
    fs::write(&own, "of somebody else")?;
    // Another file system would have it refused for that alone.
    fs::rename(&own, path).or_else(|error| match error.raw_os_error() {
        Some(libc::EXDEV) => fs::remove_file(path),
        _ => Err(error),
    })
}

fn link(places: &Places, path: &Path) -> io::Result<()> {
    fs::hard_link(path, places.home.join("linked"))
}

fn fill(directory: &Path) {
    let mut file = File::create(directory.join("full")).unwrap();
    let filled = loop {
        if let Err(error) = file.write_all(&[b'x'; 4096]) {
            break error;
        }
    };
    assert_eq!(filled.raw_os_error(), Some(libc::ENOSPC));
    done();
}

/// Locks the directory and everything in it that can be opened, by all kinds of locks.
fn hold(directory: &Path) {
    let inside = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let paths: Vec<_> = inside.chain([directory.to_owned(), directory.join("lock")]).collect();
    let files: Vec<_> = paths.iter().filter_map(|path| File::open(path).ok()).collect();
    for file in &files {
        // Where it is locked already, this user has come too late.
        _ = rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    }
    done();
}

fn done() {
    println!("done");
    io::stdout().flush().unwrap();
    thread::sleep(Duration::from_secs(600));
}
