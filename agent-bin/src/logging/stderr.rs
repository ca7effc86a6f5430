//! Standard error, which never blocks the agent.
//!
//! Its reader may stop reading: journald that hangs, a terminal with ^S, a pipe to a stopped program. A line that
//! cannot be written at once is left out, and the next one that can be written says how many were.
//!
//! Setting O_NONBLOCK on descriptor 2 would set it for everybody who shares the open file description, such as the
//! shell that started the agent. The agent therefore reopens a pipe or terminal through /proc, which gives it a
//! description of its own. For a socket it uses MSG_DONTWAIT. Where neither is possible (the pipe is another user's),
//! it polls before each write, and writes no more bytes than a writable pipe takes without blocking.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::net::{SendFlags, send};

/// Bytes that a pipe takes at once or not at all (PIPE_BUF of Linux).
pub(super) const MAX_BYTES: usize = 4096;

/// How to write to standard error without blocking.
#[derive(Debug)]
enum Way {
    /// It is a socket.
    Socket,
    /// Through a description of the agent's own, which does not block.
    Own(File),
    /// Through the description that others share.
    Shared,
}

/// Standard error, and the lines that it did not take.
#[derive(Debug, Default)]
pub(super) struct Stderr {
    way: Option<Way>,
    /// Lines left out since the last one that was written.
    left_out: u64,
    /// True if only a part of the last line was written.
    is_torn: bool,
}

impl Stderr {
    /// Writes a line that ends with a line feed, or leaves it out. `notice` makes the line that reports how many were
    /// left out. Returns true when the line was written.
    pub(super) fn write(&mut self, line: &str, notice: impl FnOnce(u64) -> String) -> bool {
        let has_told = self.left_out == 0 || self.put(&notice(self.left_out));
        if has_told {
            self.left_out = 0;
        }
        let is_written = has_told && self.put(line);
        self.left_out += u64::from(!is_written);
        is_written
    }

    fn put(&mut self, line: &str) -> bool {
        let is_torn = self.is_torn;
        let way = self.way.get_or_insert_with(Way::find);
        let line = if is_torn { format!("\n{line}") } else { line.to_owned() };
        let bytes = line.as_bytes().get(..MAX_BYTES).unwrap_or(line.as_bytes());
        match way.write(bytes) {
            Ok(written) => {
                self.is_torn = written < line.len();
                !self.is_torn
            }
            Err(_) => false,
        }
    }
}

impl Way {
    fn find() -> Self {
        let stderr = io::stderr();
        match fstat(stderr.as_fd()).map(|found| FileType::from_raw_mode(found.st_mode)) {
            Ok(FileType::Socket) => Self::Socket,
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let own = openat(CWD, "/proc/self/fd/2", flags, Mode::empty());
                own.map_or(Self::Shared, |own| Self::Own(own.into()))
            }
            _ => Self::Shared,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        match self {
            Self::Socket => Ok(send(stderr.as_fd(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?),
            Self::Own(file) => file.write(bytes),
            Self::Shared => {
                let mut fds = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
                poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
                if !fds[0].revents().contains(PollFlags::OUT) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(rustix::io::write(stderr.as_fd(), bytes)?)
            }
        }
    }
}
