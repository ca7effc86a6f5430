//! The pipe for tasks, with a queue in front that is bounded in number and in bytes.
//!
//! A task in the pipe has not reached the plugin yet: a plugin that dies leaves it there. The outlet therefore remembers the
//! tokens of unread tasks. The pipe says how much of it is unread (FIONREAD). At the end, the outlet returns those tokens.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use elklet_core::limits::{TASK_QUEUE_BYTES, TASK_QUEUE_LEN};
use mio::unix::pipe::Sender;
use mio::{Interest, Registry, Token};
use rustix::fs::OFlags;
use rustix::io::ioctl_fionread;

use super::stats::Tasks;

#[derive(Debug)]
pub(super) struct Outlet {
    /// `None` once it is closed.
    pipe: Option<Sender>,
    /// The other end, opened when this one was closed. The plugin may go on reading what is in the pipe, and this end
    /// shows how far.
    closed: Option<File>,
    queue: VecDeque<Task>,
    queued_bytes: usize,
    /// Bytes of the first task that are already in the pipe.
    first_written: usize,
    written: Tasks,
    /// Length and token of each task in the pipe that the plugin had not read at the last look.
    unread: VecDeque<(usize, String)>,
}

#[derive(Debug)]
struct Task {
    frame: Vec<u8>,
    token: String,
}

impl Outlet {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self {
            pipe: Some(Sender::from(pipe)),
            closed: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            first_written: 0,
            written: Tasks::default(),
            unread: VecDeque::new(),
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.pipe {
            Some(pipe) => registry.register(pipe, token, Interest::WRITABLE),
            None => Ok(()),
        }
    }

    /// Queues a task, or returns its token and why it cannot.
    pub(super) fn push(&mut self, frame: Vec<u8>, token: String) -> Result<(), (String, &'static str)> {
        if self.pipe.is_none() {
            return Err((token, "the plugin is ending"));
        }
        if self.queue.len() == TASK_QUEUE_LEN || self.queued_bytes + frame.len() > TASK_QUEUE_BYTES {
            return Err((token, "the plugin does not take its tasks, and its queue is full"));
        }
        self.queued_bytes += frame.len();
        self.queue.push_back(Task { frame, token });
        Ok(())
    }

    /// Writes as many tasks as the pipe takes.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while let (Some(pipe), Some(first)) = (&mut self.pipe, self.queue.front_mut()) {
            match pipe.write(&first.frame[self.first_written..]) {
                Ok(n) => self.first_written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if self.first_written == first.frame.len() {
                self.queued_bytes -= first.frame.len();
                self.first_written = 0;
                self.written.count += 1;
                self.written.bytes += first.frame.len() as u64;
                self.unread.push_back((first.frame.len(), mem::take(&mut first.token)));
                self.queue.pop_front();
                self.forget_read();
            }
        }
        Ok(())
    }

    /// Tasks that went into the pipe whole.
    pub(super) fn written(&self) -> Tasks {
        self.written
    }

    /// Forgets the tasks of which the plugin has read the last byte.
    fn forget_read(&mut self) {
        let Some(mut left) = self.left_in_pipe() else { return };
        // The task that is being written comes after them.
        left = left.saturating_sub(self.first_written);
        let whole = self.unread.iter().rev().take_while(|(bytes, _)| {
            let is_there = left > 0;
            left = left.saturating_sub(*bytes);
            is_there
        });
        let whole = whole.count();
        self.unread.drain(..self.unread.len() - whole);
    }

    /// Bytes in the pipe, if that is known.
    fn left_in_pipe(&self) -> Option<usize> {
        let pipe = match (&self.pipe, &self.closed) {
            (Some(pipe), _) => pipe.as_fd(),
            (None, Some(closed)) => closed.as_fd(),
            (None, None) => return None,
        };
        usize::try_from(ioctl_fionread(pipe).ok()?).ok()
    }

    /// Nobody reads any more. Returns the tokens of tasks that are still in the pipe.
    pub(super) fn finish(&mut self) -> Vec<String> {
        self.forget_read();
        self.closed = None;
        mem::take(&mut self.unread).into_iter().map(|(_, token)| token).collect()
    }

    /// Closes the pipe. Returns the tokens of tasks that have not gone into it.
    pub(super) fn close(&mut self, registry: &Registry) -> Vec<String> {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = registry.deregister(&mut pipe);
            self.closed = reading_end(&pipe).ok();
        }
        self.queued_bytes = 0;
        self.queue.drain(..).map(|task| task.token).collect()
    }
}

/// Opens the end of a pipe that the plugin reads from, by the agent's writing end.
fn reading_end(pipe: &impl AsRawFd) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(format!("/proc/self/fd/{}", pipe.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn tasks_that_nobody_has_read_are_known_before_and_after_the_pipe_is_closed() {
        let (mut plugin, pipe) = io::pipe().expect("a pipe");
        let registry = mio::Poll::new().expect("a poll");
        rustix::io::ioctl_fionbio(&pipe, true).expect("a pipe");
        let mut outlet = Outlet::new(pipe.into());
        outlet.register(registry.registry(), Token(0)).expect("a pipe can be watched");
        for token in ["one", "two", "three"] {
            outlet.push(vec![0; 100], token.to_owned()).expect("there is room");
        }
        // It is more than a pipe holds.
        outlet.push(vec![0; 1 << 20], "half".to_owned()).expect("there is room");
        outlet.push(vec![0; 100], "queued".to_owned()).expect("there is room");
        outlet.write().expect("the pipe takes what it can");
        assert_eq!(outlet.unread.len(), 3);
        // One whole task, and the first byte of the next.
        plugin.read_exact(&mut [0; 101]).expect("they are there");
        outlet.forget_read();
        assert_eq!(outlet.unread.len(), 2, "a task is read when its last byte is");
        assert_eq!(outlet.close(registry.registry()), ["half", "queued"]);
        plugin.read_exact(&mut [0; 99]).expect("they are there");
        drop(plugin);
        assert_eq!(outlet.finish(), ["three"]);
        assert!(outlet.finish().is_empty(), "once");
    }
}
