//! What the two threads share: the filling buffers behind a lock, and the pump's wake-up of the net thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use elklet_core::limits::URGENT_ARENA_BYTES;
use elklet_core::record::intake::{Buffers, Intake, Wake};
use tokio::sync::Notify;

/// A pair of record buffers with arenas of their own.
pub(crate) type OwnedBuffers = Buffers<Box<[u8]>>;

/// Makes buffers whose pages cost no memory until records lie in them.
pub(crate) fn empty_buffers(arena_bytes: usize) -> Box<OwnedBuffers> {
    let arena = |bytes| vec![0; bytes].into_boxed_slice();
    Box::new(Buffers::new(arena(URGENT_ARENA_BYTES.min(arena_bytes)), arena(arena_bytes)))
}

/// The intake, shared by both threads.
///
/// A thread holds the lock to append what one read has brought, or to swap the buffers, and never across IO.
#[derive(Debug, Clone)]
pub(crate) struct SharedIntake {
    intake: Arc<Mutex<Intake<Box<[u8]>>>>,
    due: Arc<Notify>,
    held: Arc<AtomicBool>,
}

impl SharedIntake {
    pub(crate) fn new(arena_bytes: usize) -> Self {
        let intake = Intake::new(empty_buffers(arena_bytes));
        Self { intake: Arc::new(Mutex::new(intake)), due: Arc::new(Notify::new()), held: Arc::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Intake<Box<[u8]>>> {
        // A panic ends the process, so a lock can be poisoned only in tests.
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the net thread after an append, unless it knows.
    pub(crate) fn wake(&self, wake: Wake) {
        if wake != Wake::Unneeded {
            self.due.notify_one();
        }
    }

    /// Sets whether the intake refuses records for which older ones may not be dropped.
    pub(crate) fn hold(&self, hold: bool) {
        self.held.store(hold, Ordering::Relaxed);
    }

    /// Returns true while the intake takes only records for which older ones may be dropped.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Waits until the pump wakes the net thread.
    pub(crate) async fn woken(&self) {
        self.due.notified().await;
    }
}
