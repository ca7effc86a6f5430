//! One pipe to the agent, and the batch of frames that waits for it. [`crate::Client`] adds frames. The flushing thread
//! of the ordinary lane writes what has waited long enough.
//!
//! The writer holds the lock until the pipe has taken everything. A slow agent therefore blocks every sender of the
//! lane, and frames never mix. A failed write ends the lane: part of a frame may have left, so nothing may follow it.

use crate::encode::Frame;
use crate::{BATCH_BYTES, FLUSH_INTERVAL};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(crate) struct Lane {
    pipe: OwnedFd,
    state: Mutex<State>,
    /// Notified when an empty batch gets its first frame, and when the lane closes.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    batch: Vec<u8>,
    /// When the batch has to be written, or `None` while it is empty.
    due: Option<Instant>,
    closing: bool,
    broken: Option<Broken>,
}

/// Why a lane accepts nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) errno: Errno,
    /// Frames that were accepted and not wholly written.
    pub(crate) unwritten: u64,
}

/// When a frame has to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// With its batch.
    Batched,
    /// Before `send` returns.
    AtOnce,
}

impl Lane {
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self { pipe, state: Mutex::default(), changed: Condvar::new() }
    }

    pub(crate) fn send<'a, I>(&self, frame: Frame<I>, urgency: Urgency) -> Result<(), Broken>
    where
        I: Iterator<Item = (&'a str, &'a str)> + Clone,
    {
        let mut state = self.lock();
        if let Some(broken) = state.broken {
            return Err(broken);
        }
        if state.batch.len() + frame.len() > BATCH_BYTES {
            self.write_out(&mut state)?;
        }
        frame.append_to(&mut state.batch);
        if urgency == Urgency::AtOnce || state.batch.len() >= BATCH_BYTES {
            return self.write_out(&mut state);
        }
        if state.due.is_none() {
            state.due = Some(Instant::now() + FLUSH_INTERVAL);
            self.changed.notify_one();
        }
        Ok(())
    }

    pub(crate) fn flush(&self) -> Result<(), Broken> {
        let mut state = self.lock();
        match state.broken {
            Some(broken) => Err(broken),
            None => self.write_out(&mut state),
        }
    }

    /// Writes what is left, and lets [`Lane::flush_when_due`] return.
    pub(crate) fn close(&self) -> Result<(), Broken> {
        let result = self.flush();
        self.lock().closing = true;
        self.changed.notify_one();
        result
    }

    /// Runs the flushing thread, which sleeps without a timer while nothing is buffered.
    pub(crate) fn flush_when_due(&self) {
        let mut state = self.lock();
        while !state.closing {
            let wait = state.due.map(|due| due.saturating_duration_since(Instant::now()));
            state = match wait {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(wait) if wait.is_zero() => {
                    // The state keeps the failure for the next sender.
                    let _ = self.write_out(&mut state);
                    state
                }
                Some(wait) => self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn write_out(&self, state: &mut State) -> Result<(), Broken> {
        let mut written = 0;
        while let Some(rest) = state.batch.get(written..).filter(|rest| !rest.is_empty()) {
            match write(&self.pipe, rest) {
                Ok(0) => return Err(state.fail(Errno::IO, written)),
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                // An agent may have made both ends of its pipe non-blocking. A full pipe means to wait here.
                Err(Errno::AGAIN) => self.wait_until_writable().map_err(|errno| state.fail(errno, written))?,
                Err(errno) => return Err(state.fail(errno, written)),
            }
        }
        state.batch.clear();
        state.batch.shrink_to(BATCH_BYTES);
        state.due = None;
        Ok(())
    }

    fn wait_until_writable(&self) -> Result<(), Errno> {
        match poll(&mut [PollFd::new(&self.pipe, PollFlags::OUT)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics with a frame half appended, so a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Lane {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl State {
    fn fail(&mut self, errno: Errno, written: usize) -> Broken {
        let broken = Broken { errno, unwritten: frames_ending_after(written, &self.batch) };
        self.broken = Some(broken);
        self.batch = Vec::new();
        self.due = None;
        broken
    }
}

/// Number of the batch's frames that do not end within its first `written` bytes.
fn frames_ending_after(written: usize, batch: &[u8]) -> u64 {
    let mut rest = batch;
    let mut count = 0;
    while let Some((prefix, body)) = rest.split_first_chunk() {
        rest = body.get(u32::from_le_bytes(*prefix) as usize..).unwrap_or_default();
        count += u64::from(batch.len() - rest.len() > written);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_frames_that_did_not_leave() {
        let mut batch = Vec::new();
        for _ in 0..3 {
            Frame::new(1, 1, [("a", "b")].into_iter()).unwrap().append_to(&mut batch);
        }
        let frame = batch.len() / 3;
        let expected = [(0, 3), (frame - 1, 3), (frame, 2), (frame + 1, 2), (3 * frame - 1, 1), (3 * frame, 0)];
        for (written, unwritten) in expected {
            assert_eq!(frames_ending_after(written, &batch), unwritten, "{written} bytes of frames of {frame}");
        }
    }
}
