//! The sending side, which a plugin's code holds, clones and passes around.

use crate::encode::{Frame, TooLong};
use crate::lane::{Broken, Lane, Urgency};
use crate::{MAX_RECORD_BYTES, Record, TASK_RESULT, Task};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::{error, fmt, io};

/// Sends records to the agent. Clones share one connection and may send from any thread. Dropping the last one writes
/// what is buffered.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
    urgency: Urgency,
}

impl Client {
    /// Sends through the given pipes instead of the agent's descriptors, for tests and for processes that are plugins
    /// in their second life. Without `high_priority`, records of high priority go through `records`.
    ///
    /// # Errors
    /// When the flushing thread cannot be started.
    pub fn from_pipes(records: OwnedFd, high_priority: Option<OwnedFd>) -> io::Result<Self> {
        let ordinary = Arc::new(Lane::new(records));
        let lane = Arc::clone(&ordinary);
        let flusher = thread::Builder::new()
            .name("flush".into())
            .stack_size(FLUSHER_STACK_BYTES)
            .spawn(move || lane.flush_when_due())?;
        let urgent = high_priority.map(Lane::new);
        let connection = Connection { ordinary, urgent, flusher: Some(flusher) };
        Ok(Self { connection: Arc::new(connection), urgency: Urgency::Batched })
    }

    /// Sends a record with the current time. Allocates nothing for it. If a name is twice in `fields`, the last one counts.
    ///
    /// Blocks while the buffer and the pipe are full.
    ///
    /// # Errors
    /// [`SendError::TooLong`] concerns this record only. After any other error, every further call fails.
    pub fn send(&self, data_type: i32, fields: &[(&str, &str)]) -> Result<(), SendError> {
        self.send_at(data_type, unix_seconds(), fields)
    }

    /// Sends a record with the time `timestamp`, seconds since 1970, UTC. Otherwise like [`Client::send`].
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn send_at(&self, data_type: i32, timestamp: i64, fields: &[(&str, &str)]) -> Result<(), SendError> {
        self.send_fields(data_type, timestamp, fields.iter().copied())
    }

    /// Sends an existing record. One without a payload gets an empty one.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn send_record(&self, record: &Record) -> Result<(), SendError> {
        let payload = record.data.iter().flat_map(|payload| &payload.fields);
        let fields = payload.map(|(name, value)| (name.as_str(), value.as_str()));
        self.send_fields(record.data_type, record.timestamp, fields)
    }

    /// Tells the server how a task ended. Sends a record [`TASK_RESULT`] with the task's token, status `succeed` or
    /// `failed`, and the message of either side.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn answer(&self, task: &Task, outcome: Result<&str, &str>) -> Result<(), SendError> {
        let (status, message) = match outcome {
            Ok(message) => ("succeed", message),
            Err(message) => ("failed", message),
        };
        self.send(TASK_RESULT, &[("token", &task.token), ("status", status), ("msg", message)])
    }

    /// Returns a client on the same connection that writes its records before its calls return. They go through the agent's
    /// high-priority pipe if there is one, and otherwise through the ordinary pipe, after what was buffered before them.
    #[must_use]
    pub fn high_priority(&self) -> Self {
        Self { connection: Arc::clone(&self.connection), urgency: Urgency::AtOnce }
    }

    /// Writes what is buffered. Blocks until the pipe has taken it.
    ///
    /// # Errors
    /// [`SendError::AgentGone`] or [`SendError::Pipe`], now or earlier.
    pub fn flush(&self) -> Result<(), SendError> {
        // The other lane never buffers.
        Ok(self.connection.ordinary.flush()?)
    }

    fn send_fields<'a, I>(&self, data_type: i32, timestamp: i64, fields: I) -> Result<(), SendError>
    where
        I: Iterator<Item = (&'a str, &'a str)> + Clone,
    {
        let frame = Frame::new(data_type, timestamp, fields)?;
        let lane = match (&self.connection.urgent, self.urgency) {
            (Some(urgent), Urgency::AtOnce) => urgent,
            _ => &*self.connection.ordinary,
        };
        Ok(lane.send(frame, self.urgency)?)
    }
}

/// The record pipe, for `poll`. An error condition on it means that the agent has gone. Only the client may write to it.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.ordinary.as_fd()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("urgency", &self.urgency).finish_non_exhaustive()
    }
}

/// The state that all clones share.
struct Connection {
    ordinary: Arc<Lane>,
    urgent: Option<Lane>,
    /// `None` only while it is dropped.
    flusher: Option<JoinHandle<()>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A caller that wants to know of a failure has called `flush` before.
        let _ = self.ordinary.close();
        if let Some(flusher) = self.flusher.take() {
            let _ = flusher.join();
        }
    }
}

/// Stack of the flushing thread. It only calls `write`, so the default of 2 MiB would be reserved in vain.
const FLUSHER_STACK_BYTES: usize = 64 * 1024;

fn unix_seconds() -> i64 {
    // A clock before 1970 means a host without time, which 0 says. Rust's own clock ends in 2038 on processors of 32 bits.
    clock_gettime(ClockId::Realtime).tv_sec.max(0)
}

/// Why a record was not sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendError {
    /// The record is longer than the SDK sends. It was not sent, but others can be.
    TooLong {
        /// The encoded record's length.
        bytes: usize,
        /// [`MAX_RECORD_BYTES`].
        limit: usize,
    },
    /// Nobody reads the pipe any more: the agent has ended or has given this plugin up.
    AgentGone {
        /// Records that had been sent and were still in the buffer.
        unwritten: u64,
    },
    /// The pipe failed for another reason. Nothing can be sent any more.
    Pipe {
        /// The system's error.
        source: io::Error,
        /// Records that had been sent and were still in the buffer.
        unwritten: u64,
    },
}

impl From<TooLong> for SendError {
    fn from(TooLong { bytes }: TooLong) -> Self {
        Self::TooLong { bytes, limit: MAX_RECORD_BYTES }
    }
}

impl From<Broken> for SendError {
    fn from(Broken { errno, unwritten }: Broken) -> Self {
        match errno {
            Errno::PIPE => Self::AgentGone { unwritten },
            errno => Self::Pipe { source: errno.into(), unwritten },
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes, limit } => write!(f, "a record of {bytes} bytes, the limit is {limit}"),
            Self::AgentGone { unwritten } => write!(f, "the agent has gone, {unwritten} records were not written"),
            Self::Pipe { source, unwritten } => {
                write!(f, "the record pipe failed, {unwritten} records were not written: {source}")
            }
        }
    }
}

impl error::Error for SendError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Pipe { source, .. } => Some(source),
            _ => None,
        }
    }
}
