//! Starts plugins by the reference's contract.
//!
//! The plugin reads tasks from descriptor 3 and writes records to 4. Descriptor 5 is its high-priority lane, which
//! `ELKEID_PLUGIN_HIGH_PRIORITY_PIPE` announces. It has a process group of its own and runs in its own directory. Its
//! standard input and output are /dev/null, and its standard error is a pipe (`stderr`). With `detail` it gets
//! that as `DETAIL` and nothing else of the agent's environment. Without, a trusted plugin inherits that environment, and a confined
//! one gets nothing of it. Unlike with the reference, `PATH` is always set.

use std::env;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use elklet_core::command::PluginConfig;
use elklet_core::time::Millis;
use tokio::process::Child;

use super::confine::{Applied, Confiner, Confining, Group};
use super::executable::Executable;
use super::kin::Mark;
use super::prepare::Prepared;
use crate::clock::Stopwatch;
use crate::pump::PipeEnds;
use crate::sys::starter;

/// Descriptors below this one have a meaning in a plugin: standard streams, tasks, records, high-priority records.
const FIRST_FREE_DESCRIPTOR: RawFd = 6;

const TASKS: RawFd = 3;
const RECORDS: RawFd = 4;
const URGENT: RawFd = 5;

/// Capacity of the pipe for records. A pipe usually holds 64 KiB; this one takes a burst without a switch to the agent
/// for each of them. It uses the memory only while it is full.
const RECORDS_PIPE_BYTES: usize = 256 << 10;

/// How often, and for how long each time, the net thread waits while somebody has an executable open for writing:
/// twenty milliseconds in all.
const BUSY_RETRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(2);

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A started plugin.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) child: Child,
    pub(crate) pid: u32,
    pub(crate) pipes: PipeEnds,
    /// The reading end of its standard error, and the path of the file for the text.
    pub(crate) stderr: (OwnedFd, PathBuf),
    /// Its limits, and how they are enforced.
    pub(crate) limits: Vec<Applied>,
    /// The groups to release when it has ended.
    pub(crate) groups: Vec<Group>,
    /// What hears of calls that its sandbox refuses.
    pub(crate) refusals: Option<OwnedFd>,
}

/// Occupies the descriptors that have a meaning in a plugin's process, so that the agent never uses them.
///
/// Between fork and exec the plugin's pipes go there, and would replace whatever else was there.
pub(crate) fn reserve_descriptors() -> io::Result<()> {
    static RESERVED: OnceLock<Vec<File>> = OnceLock::new();
    let mut kept = Vec::new();
    while RESERVED.get().is_none() {
        let file = File::open("/dev/null")?;
        if file.as_raw_fd() >= FIRST_FREE_DESCRIPTOR {
            let _ = RESERVED.set(kept);
            break;
        }
        kept.push(file);
    }
    Ok(())
}

/// Puts a prepared executable in its place and starts it.
///
/// # Errors
/// When a pipe, a file or a process cannot be had. What was in that place is then there again.
pub(crate) fn spawn(
    prepared: &mut Prepared,
    config: &PluginConfig,
    mark: &Mark,
    confiner: &mut Confiner,
    now: Millis,
) -> io::Result<Spawned> {
    let watch = Stopwatch::start();
    let mut confining = confiner.confine(&config.name)?;
    let installed = prepared.install();
    if installed.is_ok() {
        confining.enclose(&config.name, prepared.executable.path());
    }
    let confining = Arc::new(confining);
    let started = installed.and_then(|()| {
        start_patiently(&prepared.executable, config, mark, &confining).inspect_err(|_| {
            if let Err(error) = prepared.put_back() {
                log::error!("plugin {}: what was there before cannot be put back: {error}", config.name);
            }
        })
    });
    let confining = Arc::into_inner(confining).ok_or_else(|| io::Error::other("somebody holds its confinement"))?;
    match started {
        Ok(started) => {
            let (limits, groups, refusals) = confining.finish(&config.name);
            log::debug!("plugin {}: confined and started in {} us", config.name, watch.elapsed().as_micros());
            Ok(Spawned { limits, groups, refusals, ..started })
        }
        Err(error) => {
            confiner.release(confining.abandon(), now);
            Err(error)
        }
    }
}

/// Starts a plugin whose executable may be open for writing for a moment longer. A process that is forked while another thread
/// writes the file inherits that descriptor, and closes it only in the last step of exec, after its start has been reported.
fn start_patiently(
    executable: &Executable,
    config: &PluginConfig,
    mark: &Mark,
    confining: &Arc<Confining>,
) -> io::Result<Spawned> {
    for _ in 0..BUSY_RETRIES {
        match start(executable, config, mark, confining) {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(BUSY_PAUSE),
            other => return other,
        }
    }
    start(executable, config, mark, confining)
}

fn start(
    executable: &Executable,
    config: &PluginConfig,
    mark: &Mark,
    confining: &Arc<Confining>,
) -> io::Result<Spawned> {
    let (tasks_read, tasks_write) = io::pipe()?;
    let (records_read, records_write) = io::pipe()?;
    let (urgent_read, urgent_write) = io::pipe()?;
    // The usual size will do if the host refuses a larger one.
    let _ = rustix::pipe::fcntl_setpipe_size(&records_read, RECORDS_PIPE_BYTES);
    let pipes = PipeEnds { records: records_read.into(), urgent: urgent_read.into(), tasks: tasks_write.into() };
    let (stderr_read, stderr_write) = io::pipe()?;
    let stderr_read = OwnedFd::from(stderr_read);
    for end in [&pipes.records, &pipes.urgent, &pipes.tasks, &stderr_read] {
        rustix::io::ioctl_fionbio(end, true)?;
    }
    let theirs = [(raised(tasks_read)?, TASKS), (raised(records_write)?, RECORDS), (raised(urgent_write)?, URGENT)];

    let mut stderr = executable.path().as_os_str().to_owned();
    stderr.push(".stderr");

    let path = executable.path();
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr_write).process_group(0);
    command.current_dir(path.parent().unwrap_or(path));
    let exec = Exec::new(executable, config, mark, !confining.is_sandbox())?;
    let confining = Arc::clone(confining);
    let install = move || -> io::Result<()> {
        // SAFETY: `signal` is async-signal-safe and takes plain numbers. The agent ignores this one for itself.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
        // SAFETY: a system call on plain numbers. The agent does without huge pages for itself.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) };
        confining.confine_self()?;
        for (end, number) in &theirs {
            // SAFETY: dup2 takes plain numbers and is async-signal-safe. Nothing of the agent's lies at `number`, as
            // `reserve_descriptors` has seen to.
            if unsafe { libc::dup2(end.as_raw_fd(), *number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Err(exec.run())
    };
    // SAFETY: the closure runs between fork and exec and only makes system calls on descriptors and memory that were
    // prepared before; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(install) };
    let child = starter::spawn(command.into())?;
    let pid = child.id().ok_or_else(|| io::Error::other("it ended before it had begun"))?;
    let stderr = (stderr_read, stderr.into());
    Ok(Spawned { child, pid, pipes, stderr, limits: Vec::new(), groups: Vec::new(), refusals: None })
}

/// Duplicates a descriptor to above those that have a meaning in a plugin.
pub(super) fn raised(end: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(end, FIRST_FREE_DESCRIPTOR)?)
}

/// An exec by descriptor, prepared before the fork.
struct Exec {
    file: RawFd,
    /// The descriptor's path, for kernels that cannot execute a descriptor.
    name: CString,
    is_script: bool,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// The strings that the pointers point into.
    _strings: Vec<CString>,
}

// SAFETY: the pointers point into `_strings`, which the value owns and never changes.
unsafe impl Send for Exec {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Exec {}

impl Exec {
    fn new(executable: &Executable, config: &PluginConfig, mark: &Mark, is_trusted: bool) -> io::Result<Self> {
        let mut strings = vec![CString::new(executable.path().as_os_str().as_bytes())?];
        strings.extend(environment(&config.detail, mark, is_trusted)?);
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        let (argv, envp) = strings.split_at(1);
        Ok(Self {
            file: executable.file().as_raw_fd(),
            name: CString::new(format!("/proc/self/fd/{}", executable.file().as_raw_fd()))?,
            is_script: executable.is_script(),
            argv: pointers(argv),
            envp: pointers(envp),
            _strings: strings,
        })
    }

    /// Becomes the plugin. Returns only on failure.
    fn run(&self) -> io::Error {
        // SAFETY: `argv` and `envp` are arrays of C strings that end with a null pointer; all calls are async-signal-safe.
        unsafe {
            if self.is_script {
                // The kernel passes an interpreter the descriptor's path, so the descriptor has to stay open.
                libc::fcntl(self.file, libc::F_SETFD, 0);
            }
            libc::syscall(
                libc::SYS_execveat,
                self.file,
                c"".as_ptr(),
                self.argv.as_ptr(),
                self.envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
            let error = io::Error::last_os_error();
            // Linux before 3.19 has no such call, and filters of old container runtimes refuse unknown calls. The descriptor's
            // path leads to the file that was verified, whatever has its name by now.
            if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
                return error;
            }
            libc::execve(self.name.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
        }
        io::Error::last_os_error()
    }
}

fn environment(detail: &str, mark: &Mark, is_trusted: bool) -> io::Result<Vec<CString>> {
    let mut variables: Vec<(Vec<u8>, Vec<u8>)> = match detail {
        // It may have passwords of proxies in it.
        "" if !is_trusted => Vec::new(),
        "" => env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect(),
        _ => vec![(b"DETAIL".to_vec(), detail.as_bytes().to_vec())],
    };
    if !variables.iter().any(|(name, _)| name == b"PATH") {
        let path = env::var_os("PATH");
        let path = path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH));
        variables.push((b"PATH".to_vec(), path.as_bytes().to_vec()));
    }
    variables.retain(|(name, _)| *name != mark.entry().0);
    variables.push(mark.entry());
    variables.push((b"ELKEID_PLUGIN_HIGH_PRIORITY_PIPE".to_vec(), b"5".to_vec()));
    variables.into_iter().map(|(name, value)| Ok(CString::new([&name[..], b"=", &value[..]].concat())?)).collect()
}

/// Completes the sentence "plugin x ...".
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => format!("ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::path::Path;

    use elklet_core::command::{Packing, Sha256};

    use super::super::kin::Kin;
    use super::super::prepare::tests::prepared;
    use super::*;
    use crate::config::Settings;

    fn confiner() -> Confiner {
        Confiner::new(&Settings::default())
    }

    fn mark(workdir: &Path, config: &PluginConfig) -> Mark {
        Kin::new(workdir).mark(&config.name)
    }

    fn plugin(workdir: &Path, script: &str, detail: &str) -> PluginConfig {
        let dir = workdir.join("plugin/probe");
        fs::create_dir_all(&dir).expect("writable");
        fs::write(dir.join("probe"), script).expect("writable");
        let mut config = PluginConfig {
            name: "probe".parse().expect("a name"),
            version: "1".into(),
            packing: Packing::Plain,
            download_sha256: Sha256([0; 32]),
            executable_sha256: Sha256([0; 32]),
            signature: None,
            urls: Vec::new(),
            detail: detail.into(),
        };
        // The refusal names the hash that the file has.
        let refusal = prepared(workdir, &config).expect_err("no file has this hash").to_string();
        let hash = refusal.split("SHA-256 is ").nth(1).and_then(|rest| rest.split(',').next()).expect("the hash");
        config.executable_sha256 = hash.parse().expect("64 digits");
        config
    }

    #[tokio::test]
    async fn a_plugin_finds_its_descriptors_directory_group_and_environment() {
        reserve_descriptors().expect("descriptors");
        let workdir = tempfile::tempdir().expect("a directory");
        let script = "#!/bin/sh\nread task <&3\necho \"$task|$DETAIL|$(pwd)|$PATH|$HOME|$ELKEID_PLUGIN_HIGH_PRIORITY_PIPE\" >&4\n\
                      echo urgent >&5\necho complaint >&2\nps -o pgid= -p $$ >/dev/null 2>&1\necho $(cut -d' ' -f5 /proc/$$/stat) $$ >&4\n";
        let config = plugin(workdir.path(), script, "some detail");
        let mut executable = prepared(workdir.path(), &config).expect("verified");
        let Spawned { mut child, pid, pipes, stderr, .. } =
            spawn(&mut executable, &config, &mark(workdir.path(), &config), &mut confiner(), Millis(0))
                .expect("started");
        for end in [&pipes.tasks, &pipes.records, &pipes.urgent] {
            rustix::io::ioctl_fionbio(end, false).expect("a pipe");
        }
        File::from(pipes.tasks).write_all(b"a task\n").expect("the plugin reads");
        let (mut records, mut urgent) = (String::new(), String::new());
        File::from(pipes.records).read_to_string(&mut records).expect("text");
        File::from(pipes.urgent).read_to_string(&mut urgent).expect("text");
        assert_eq!(describe(child.wait().await.expect("it ends")), "exited with code 0");

        let dir = workdir.path().join("plugin/probe");
        let path = env::var("PATH").unwrap_or(DEFAULT_PATH.into());
        let expected =
            format!("a task|some detail|{}|{path}||5\n{pid} {pid}\n", dir.canonicalize().expect("it exists").display());
        assert_eq!((records, urgent), (expected, "urgent\n".to_owned()));
        let mut complaint = String::new();
        rustix::io::ioctl_fionbio(&stderr.0, false).expect("a pipe");
        File::from(stderr.0).read_to_string(&mut complaint).expect("text");
        assert_eq!((complaint.as_str(), stderr.1), ("complaint\n", dir.join("probe.stderr")));
    }

    #[tokio::test]
    async fn what_was_verified_is_executed_although_the_file_was_replaced() {
        reserve_descriptors().expect("descriptors");
        let workdir = tempfile::tempdir().expect("a directory");
        let config = plugin(workdir.path(), "#!/bin/sh\nexit 7\n", "");
        let mut executable = prepared(workdir.path(), &config).expect("verified");
        let path = workdir.path().join("plugin/probe/probe");
        fs::write(path.with_extension("new"), "#!/bin/sh\nexit 99\n").expect("writable");
        fs::rename(path.with_extension("new"), &path).expect("writable");
        let mut spawned = spawn(&mut executable, &config, &mark(workdir.path(), &config), &mut confiner(), Millis(0))
            .expect("started");
        assert_eq!(describe(spawned.child.wait().await.expect("it ends")), "exited with code 7");
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_an_error() {
        reserve_descriptors().expect("descriptors");
        let workdir = tempfile::tempdir().expect("a directory");
        let config = plugin(workdir.path(), "neither script nor program", "");
        let mut executable = prepared(workdir.path(), &config).expect("verified");
        let error = spawn(&mut executable, &config, &mark(workdir.path(), &config), &mut confiner(), Millis(0))
            .expect_err("no format that the kernel knows");
        assert_eq!(error.raw_os_error(), Some(libc::ENOEXEC));
    }
}
