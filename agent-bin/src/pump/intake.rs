//! What the two threads share: the filling buffers behind a lock, and the pump's wake-up of the net thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use elklet_core::limits::URGENT_ARENA_BYTES;
use elklet_core::record::intake::{Buffers, Intake, Wake};
use tokio::sync::Notify;

/// A pair of record buffers with arenas of their own.
pub(crate) type OwnedBuffers = Buffers<Box<[u8]>>;

/// Buffers whose pages cost no memory until records lie in them.
pub(crate) fn empty_buffers(arena_bytes: usize) -> Box<OwnedBuffers> {
    let arena = |bytes| vec![0; bytes].into_boxed_slice();
    Box::new(Buffers::new(arena(URGENT_ARENA_BYTES.min(arena_bytes)), arena(arena_bytes)))
}

/// The intake as both threads hold it.
///
/// The lock is held to append what one read has brought, or to swap the buffers; never across IO.
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
        // A panic ends the process, so a poisoned lock can be seen in tests only.
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the net thread what was appended, unless it knows.
    pub(crate) fn wake(&self, wake: Wake) {
        if wake != Wake::Unneeded {
            self.due.notify_one();
        }
    }

    /// From now on, records for which nothing may be dropped are not taken, or are again.
    pub(crate) fn hold(&self, hold: bool) {
        self.held.store(hold, Ordering::Relaxed);
    }

    /// Whether only records are taken for which others may be dropped.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns when the pump has woken the net thread since the last time.
    pub(crate) async fn woken(&self) {
        self.due.notified().await;
    }
}
