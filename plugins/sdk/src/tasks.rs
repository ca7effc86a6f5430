//! The receiving side: tasks from the agent, each after its length.
//!
//! It reads a frame's bytes exactly and never beyond its end. The pipe is therefore readable whenever a task waits, and
//! nothing hides in a buffer. Memory grows with the bytes that arrive, not with the announced length.

use crate::{MAX_TASK_BYTES, Task};
use prost::{DecodeError, Message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;
use std::{error, fmt, io, mem};

/// Receives the tasks that the server has for this plugin.
#[derive(Debug)]
pub struct Tasks {
    pipe: OwnedFd,
    frame: Frame,
}

impl Tasks {
    /// Receives from the given pipe instead of the agent's descriptor.
    #[must_use]
    pub fn from_pipe(pipe: OwnedFd) -> Self {
        Self { pipe, frame: Frame::default() }
    }

    /// Waits for the next task. `None` means that the agent has closed the pipe and the plugin should end.
    ///
    /// # Errors
    /// [`ReceiveError::TooLong`] and [`ReceiveError::Malformed`] concern one task, and the next call receives the one after
    /// it. After [`ReceiveError::CutShort`] there is only the end, after [`ReceiveError::Io`] nothing is certain.
    pub fn receive(&mut self) -> Result<Option<Task>, ReceiveError> {
        loop {
            if let Poll::Ready(task) = self.try_receive()? {
                return Ok(task);
            }
            self.is_readable(None)?;
        }
    }

    /// Like [`Tasks::receive`], but returns `Pending` instead of waiting. It is for loops that poll this object's descriptor
    /// among others. Call it when the descriptor is readable. It keeps the part of a task that has arrived until the rest does.
    ///
    /// # Errors
    /// As [`Tasks::receive`].
    pub fn try_receive(&mut self) -> Result<Poll<Option<Task>>, ReceiveError> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        while self.is_readable(Some(&AT_ONCE))? {
            match read(&self.pipe, self.frame.space()) {
                Ok(0) => return mem::take(&mut self.frame).end().map(|()| Poll::Ready(None)),
                Ok(count) => {
                    if let Some(task) = self.frame.filled(count)? {
                        return Ok(Poll::Ready(Some(task)));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(ReceiveError::Io(errno.into())),
            }
        }
        Ok(Poll::Pending)
    }

    fn is_readable(&self, timeout: Option<&Timespec>) -> Result<bool, ReceiveError> {
        match poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(ReceiveError::Io(errno.into())),
        }
    }
}

impl AsFd for Tasks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// A frame as it arrives. It does no IO.
#[derive(Debug)]
enum Frame {
    Prefix { bytes: [u8; 4], have: usize },
    Body { bytes: Vec<u8>, have: usize, len: usize },
    Skipped { left: usize, len: usize, scratch: Box<[u8]> },
}

/// A body's buffer grows in steps of this many bytes, and a skipped body is read in them.
const STEP_BYTES: usize = 4096;

impl Default for Frame {
    fn default() -> Self {
        Self::Prefix { bytes: [0; 4], have: 0 }
    }
}

impl Frame {
    /// The place for the next bytes. It is never empty, and never extends past the end of what the frame waits for.
    fn space(&mut self) -> &mut [u8] {
        match self {
            Self::Prefix { bytes, have } => &mut bytes[*have..],
            Self::Body { bytes, have, len } => {
                if bytes.len() == *have {
                    bytes.resize((*have + STEP_BYTES).min(*len), 0);
                }
                &mut bytes[*have..]
            }
            Self::Skipped { left, scratch, .. } => {
                let step = scratch.len().min(*left);
                &mut scratch[..step]
            }
        }
    }

    /// Notes that `count` bytes were written to [`Frame::space`]. Returns `None` if the frame needs more.
    fn filled(&mut self, count: usize) -> Result<Option<Task>, ReceiveError> {
        match self {
            Self::Prefix { bytes, have } => {
                *have += count;
                if *have < bytes.len() {
                    return Ok(None);
                }
                let len = u32::from_le_bytes(*bytes) as usize;
                if len == 0 {
                    // An empty message is a task with default values.
                    *self = Self::default();
                    return Ok(Some(Task::default()));
                }
                *self = if len <= MAX_TASK_BYTES {
                    Self::Body { bytes: Vec::new(), have: 0, len }
                } else {
                    Self::Skipped { left: len, len, scratch: vec![0; STEP_BYTES].into() }
                };
                Ok(None)
            }
            Self::Body { bytes, have, len } => {
                *have += count;
                if *have < *len {
                    return Ok(None);
                }
                let task = Task::decode(bytes.as_slice());
                *self = Self::default();
                task.map(Some).map_err(ReceiveError::Malformed)
            }
            Self::Skipped { left, len, .. } => {
                *left -= count;
                if *left > 0 {
                    return Ok(None);
                }
                let bytes = *len;
                *self = Self::default();
                Err(ReceiveError::TooLong { bytes, limit: MAX_TASK_BYTES })
            }
        }
    }

    /// The pipe ends here, which is right only between two frames.
    fn end(self) -> Result<(), ReceiveError> {
        match self {
            Self::Prefix { have: 0, .. } => Ok(()),
            Self::Prefix { have, bytes } => Err(ReceiveError::CutShort { received: have, expected: bytes.len() }),
            Self::Body { have, len, .. } => Err(ReceiveError::CutShort { received: have, expected: len }),
            Self::Skipped { left, len, .. } => Err(ReceiveError::CutShort { received: len - left, expected: len }),
        }
    }
}

/// Why there is no task.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The agent sent a task that is too long. It was skipped.
    TooLong {
        /// The task's length.
        bytes: usize,
        /// [`MAX_TASK_BYTES`].
        limit: usize,
    },
    /// The agent sent bytes that are no task. They were skipped.
    Malformed(DecodeError),
    /// The pipe ended in the middle of a length or of a task.
    CutShort {
        /// Bytes of it that arrived.
        received: usize,
        /// Its length.
        expected: usize,
    },
    /// The pipe cannot be read.
    Io(io::Error),
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes, limit } => write!(f, "the agent sent a task of {bytes} bytes, the limit is {limit}"),
            Self::Malformed(error) => write!(f, "the agent sent a malformed task: {error}"),
            Self::CutShort { received, expected } => {
                write!(f, "the task pipe ended after {received} of {expected} bytes")
            }
            Self::Io(error) => write!(f, "the task pipe cannot be read: {error}"),
        }
    }
}

impl error::Error for ReceiveError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Malformed(error) => Some(error),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn framed(task: &Task) -> Vec<u8> {
        let body = task.encode_to_vec();
        let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(body);
        bytes
    }

    /// Feeds the bytes in pieces of the given sizes, over and over.
    fn decode(mut bytes: &[u8], pieces: &[usize]) -> (Vec<Result<Task, ReceiveError>>, Result<(), ReceiveError>) {
        let mut frame = Frame::default();
        let mut outcomes = Vec::new();
        let mut pieces = pieces.iter().cycle();
        while !bytes.is_empty() {
            let space = frame.space();
            assert!(!space.is_empty());
            let count = bytes.len().min(space.len()).min(*pieces.next().unwrap());
            space[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            outcomes.extend(frame.filled(count).transpose());
        }
        (outcomes, frame.end())
    }

    proptest! {
        #[test]
        fn tasks_arrive_however_they_are_cut(
            datas in vec((any::<i32>(), ".{0,3000}"), 0..8),
            pieces in vec(1usize..5000, 1..6),
        ) {
            let tasks: Vec<Task> = datas.into_iter().map(|(data_type, data)| Task { data_type, data, ..Task::default() }).collect();
            let bytes: Vec<u8> = tasks.iter().flat_map(framed).collect();
            let (outcomes, end) = decode(&bytes, &pieces);
            prop_assert!(end.is_ok());
            let received: Vec<Task> = outcomes.into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(received, tasks);
        }

        #[test]
        fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..2000), pieces in vec(1usize..50, 1..6)) {
            let _ = decode(&bytes, &pieces);
        }
    }

    #[test]
    fn what_is_too_long_or_malformed_is_skipped() {
        let task = Task { token: "t".into(), ..Task::default() };
        let len = MAX_TASK_BYTES + 1;
        let mut bytes = u32::try_from(len).unwrap().to_le_bytes().to_vec();
        bytes.resize(bytes.len() + len, 0xff);
        bytes.extend([2, 0, 0, 0, 0xff, 0xff]);
        bytes.extend(framed(&task));
        let (outcomes, end) = decode(&bytes, &[usize::MAX]);
        assert!(end.is_ok());
        assert!(matches!(
            outcomes.as_slice(),
            [Err(ReceiveError::TooLong { bytes, .. }), Err(ReceiveError::Malformed(_)), Ok(last)]
                if *bytes == len && *last == task
        ));
    }

    #[test]
    fn the_longest_task_is_taken() {
        let mut task = Task { data: "x".repeat(MAX_TASK_BYTES - 4), ..Task::default() };
        assert_eq!(task.encoded_len(), MAX_TASK_BYTES);
        assert!(matches!(decode(&framed(&task), &[70_000]).0.as_slice(), [Ok(received)] if *received == task));
        task.data.push('x');
        assert!(matches!(decode(&framed(&task), &[70_000]).0.as_slice(), [Err(ReceiveError::TooLong { .. })]));
    }

    #[test]
    fn an_end_in_the_middle_is_an_error() {
        assert!(matches!(decode(&[1, 0], &[9]).1, Err(ReceiveError::CutShort { received: 2, expected: 4 })));
        assert!(matches!(decode(&[9, 0, 0, 0, 1], &[9]).1, Err(ReceiveError::CutShort { received: 1, expected: 9 })));
    }
}
