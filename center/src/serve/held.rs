//! What a connection has received and not stored yet, and the PINGs that wait for it.
//!
//! An agent takes the answer to a PING as proof that everything sent before was taken. h2 answers PINGs as soon as it reads them, long
//! before what lies in its buffers is stored. [`Unstored`] therefore counts the bytes of each call, from the frames that
//! [`PingWatch`](super::ping::PingWatch) sees to the credit that the call gives back, and wakes the watch when nothing is left.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};

/// The most calls of a connection that are counted at a time, as many as HTTP/2 lets it have open.
const MAX_CALLS: usize = super::connection::MAX_STREAMS as usize;

/// The bytes of a connection's calls that are not stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unstored(Arc<Mutex<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    open: Vec<(u32, u64)>,
    waiting: Option<Waker>,
}

impl Unstored {
    /// A client has opened a call.
    pub(crate) fn opened(&self, stream: u32) {
        self.change(|calls| {
            if calls.open.len() < MAX_CALLS {
                calls.open.push((stream, 0));
            }
        });
    }

    /// A DATA frame of so many bytes arrived.
    pub(crate) fn received(&self, stream: u32, bytes: u64) {
        self.change(|calls| {
            if let Some((_, unstored)) = calls.open.iter_mut().find(|(id, _)| *id == stream) {
                *unstored += bytes;
            }
        });
    }

    /// So many bytes of a call are stored.
    pub(crate) fn stored(&self, stream: u32, bytes: u64) {
        self.change(|calls| {
            if let Some((_, unstored)) = calls.open.iter_mut().find(|(id, _)| *id == stream) {
                *unstored = unstored.saturating_sub(bytes);
            }
        });
    }

    /// The call has ended, and its end says what became of its bytes.
    pub(crate) fn closed(&self, stream: u32) {
        self.change(|calls| calls.open.retain(|(id, _)| *id != stream));
    }

    /// Returns true if nothing is unstored. Otherwise it wakes the task once that may be so.
    pub(crate) fn is_empty(&self, cx: &mut Context<'_>) -> bool {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = calls.open.iter().all(|(_, unstored)| *unstored == 0);
        calls.waiting = if empty { None } else { Some(cx.waker().clone()) };
        empty
    }

    fn change(&self, change: impl FnOnce(&mut Calls)) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut calls);
        if calls.open.iter().all(|(_, unstored)| *unstored == 0)
            && let Some(waiting) = calls.waiting.take()
        {
            waiting.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_calls_hold_a_ping_back() {
        let unstored = Unstored::default();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(unstored.is_empty(&mut cx));
        unstored.opened(1);
        unstored.received(1, 100);
        unstored.received(3, 100);
        assert!(!unstored.is_empty(&mut cx));
        unstored.stored(1, 60);
        assert!(!unstored.is_empty(&mut cx));
        unstored.stored(1, 40);
        assert!(unstored.is_empty(&mut cx));
        unstored.received(1, 1);
        unstored.closed(1);
        assert!(unstored.is_empty(&mut cx));
    }
}
