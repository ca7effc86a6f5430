//! The turns of uploads: one file at a time, while there is a stream.

use alloc::collections::VecDeque;
use alloc::string::String;

use crate::command::Upload;
use crate::limits::MAX_UPLOADS_WAITING;

/// The token of the upload that is under way, and the uploads that wait.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    running: Option<String>,
    waiting: VecDeque<Upload>,
}

impl Uploads {
    /// Queues an upload.
    ///
    /// # Errors
    /// Gives it back when too many wait.
    pub(super) fn push(&mut self, upload: Upload) -> Result<(), Upload> {
        if self.waiting.len() == MAX_UPLOADS_WAITING {
            return Err(upload);
        }
        self.waiting.push_back(upload);
        Ok(())
    }

    /// The next one, which begins now, unless another one is under way.
    pub(super) fn begin(&mut self) -> Option<Upload> {
        if self.running.is_some() {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.running = Some(next.token.clone());
        Some(next)
    }

    /// The one under way has ended; its token.
    pub(super) fn end(&mut self) -> Option<String> {
        self.running.take()
    }

    /// Returns true while one is under way.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Gives up; the tokens of all that will not be uploaded any more.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = String> {
        self.running.take().into_iter().chain(self.waiting.drain(..).map(|upload| upload.token))
    }
}
