//! The pipe that tasks go into: a queue bounded in number and in bytes, and a pipe that takes what it can.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use elklet_core::limits::{TASK_QUEUE_BYTES, TASK_QUEUE_LEN};
use mio::unix::pipe::Sender;
use mio::{Interest, Registry, Token};

use super::stats::Tasks;

#[derive(Debug)]
pub(super) struct Outlet {
    /// `None` when it is closed.
    pipe: Option<Sender>,
    queue: VecDeque<Task>,
    queued_bytes: usize,
    /// Bytes of the first task that are in the pipe already.
    first_written: usize,
    written: Tasks,
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
            queue: VecDeque::new(),
            queued_bytes: 0,
            first_written: 0,
            written: Tasks::default(),
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.pipe {
            Some(pipe) => registry.register(pipe, token, Interest::WRITABLE),
            None => Ok(()),
        }
    }

    /// Queues a task, or gives its token back with the reason why not.
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
        while let (Some(pipe), Some(first)) = (&mut self.pipe, self.queue.front()) {
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
                self.queue.pop_front();
            }
        }
        Ok(())
    }

    /// Tasks that went into the pipe whole.
    pub(super) fn written(&self) -> Tasks {
        self.written
    }

    /// Closes the pipe; the tokens of tasks that the plugin did not get are given back.
    pub(super) fn close(&mut self, registry: &Registry) -> Vec<String> {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = registry.deregister(&mut pipe);
        }
        self.queued_bytes = 0;
        self.first_written = 0;
        self.queue.drain(..).map(|task| task.token).collect()
    }
}
