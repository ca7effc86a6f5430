//! Takes over what the agent has prepared for the process: its pipes, its environment, its signals. A plugin calls this
//! once, at the start of its `main`.

use crate::{Client, Tasks};
use rustix::io::{FdFlags, fcntl_setfd};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, error, fmt, io};

/// Takes over the pipes with which the agent has started this process.
///
/// The descriptors are 3 (tasks), 4 (records) and, when the environment has a non-empty `ELKEID_PLUGIN_HIGH_PRIORITY_PIPE`,
/// 5 (records of high priority). Call it before anything else opens a file: a process that was *not* started by an agent
/// would find its own files under these numbers. Child processes do not inherit the pipes.
///
/// # Errors
/// When a pipe is missing or goes the wrong way, when it was called before, or when the flushing thread cannot be started.
pub fn connect() -> Result<(Client, Tasks), ConnectError> {
    static CONNECTED: AtomicBool = AtomicBool::new(false);

    let urgent_lane = env::var_os(HIGH_PRIORITY_VARIABLE).is_some_and(|value| !value.is_empty());
    check(TASKS_FD, Way::In)?;
    check(RECORDS_FD, Way::Out)?;
    if urgent_lane {
        check(HIGH_PRIORITY_FD, Way::Out)?;
    }
    if CONNECTED.swap(true, Ordering::Relaxed) {
        return Err(ConnectError::AlreadyConnected);
    }
    let tasks = take(TASKS_FD)?;
    let records = take(RECORDS_FD)?;
    let urgent = if urgent_lane { Some(take(HIGH_PRIORITY_FD)?) } else { None };
    let client = Client::from_pipes(records, urgent).map_err(ConnectError::Io)?;
    Ok((client, Tasks::from_pipe(tasks)))
}

/// The detail in the plugin's configuration, from the environment's `DETAIL`, or `None` if it is missing or empty.
/// Bytes that are not UTF-8 become replacement characters.
#[must_use]
pub fn detail() -> Option<String> {
    let detail = env::var_os("DETAIL")?.to_string_lossy().into_owned();
    (!detail.is_empty()).then_some(detail)
}

/// Ignores SIGTERM from now on, here and in programs that this process executes.
///
/// An agent never sends SIGTERM; it closes the task pipe. But a service manager that stops the agent sends it to every
/// process of the group, and a plugin that died of it would lose what it has buffered. A plugin that reads its tasks to
/// their end can safely ignore the signal, because it ends with its agent.
pub fn ignore_sigterm() {
    // SAFETY: SIG_IGN installs no handler, so there is no code that could run at a wrong moment.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}

const TASKS_FD: RawFd = 3;
const RECORDS_FD: RawFd = 4;
const HIGH_PRIORITY_FD: RawFd = 5;
const HIGH_PRIORITY_VARIABLE: &str = "ELKEID_PLUGIN_HIGH_PRIORITY_PIPE";

/// The direction of a pipe, seen from the plugin.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

fn check(fd: RawFd, way: Way) -> Result<(), ConnectError> {
    // SAFETY: F_GETFL takes no argument, reads no memory of ours, and fails on a number that is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags == -1 {
        return Err(ConnectError::NotOpen { fd });
    }
    match (way, flags & libc::O_ACCMODE) {
        (Way::In, libc::O_WRONLY) => Err(ConnectError::NotReadable { fd }),
        (Way::Out, libc::O_RDONLY) => Err(ConnectError::NotWritable { fd }),
        _ => Ok(()),
    }
}

fn take(fd: RawFd) -> Result<OwnedFd, ConnectError> {
    // SAFETY: `check` found it open. The protocol gives this number to the plugin for its own, `connect` asks to be called
    // before anything else opens files, and `CONNECTED` lets nobody take it twice.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC).map_err(|errno| ConnectError::Io(errno.into()))?;
    Ok(owned)
}

/// Why there is no connection to an agent.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The descriptor is not open. Most likely somebody has started the program by hand.
    NotOpen {
        /// 3 for tasks, 4 for records, 5 for records of high priority.
        fd: i32,
    },
    /// The descriptor for tasks is open for writing only.
    NotReadable {
        /// The descriptor.
        fd: i32,
    },
    /// The descriptor for records is open for reading only.
    NotWritable {
        /// The descriptor.
        fd: i32,
    },
    /// [`connect`] has already succeeded in this process.
    AlreadyConnected,
    /// The system refused a thread or a descriptor flag.
    Io(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let started = "this program is a plugin and is started by an agent";
        match self {
            Self::NotOpen { fd } => write!(f, "file descriptor {fd} is not open: {started}"),
            Self::NotReadable { fd } => write!(f, "file descriptor {fd} cannot be read: {started}"),
            Self::NotWritable { fd } => write!(f, "file descriptor {fd} cannot be written: {started}"),
            Self::AlreadyConnected => f.write_str("the agent's pipes are already taken over"),
            Self::Io(error) => write!(f, "the connection to the agent cannot be set up: {error}"),
        }
    }
}

impl error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}
