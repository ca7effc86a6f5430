//! Places for connections. When all are taken, of those that have asked nothing yet the oldest makes room, so that somebody who opens
//! many and says nothing keeps nobody out.

use crate::serve::lock;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All places of a port.
#[derive(Debug)]
pub(super) struct Slots {
    room: Arc<Semaphore>,
    /// The connections that have a place, the oldest first.
    open: Mutex<VecDeque<Arc<Slot>>>,
}

/// What is known of a connection.
#[derive(Debug, Default)]
struct Slot {
    has_asked: AtomicBool,
    makes_room: Notify,
}

impl Slots {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { room: Arc::new(Semaphore::new(most)), open: Mutex::default() })
    }

    /// Waits until a connection that was accepted has a place.
    pub(super) async fn enter(self: &Arc<Self>) -> Entered {
        if self.room.available_permits() == 0 {
            let open = lock(&self.open);
            if let Some(silent) = open.iter().find(|slot| !slot.has_asked.load(Relaxed)) {
                silent.makes_room.notify_one();
            }
        }
        let permit = Arc::clone(&self.room).acquire_owned().await.expect("nobody closes it");
        let slot = Arc::new(Slot::default());
        lock(&self.open).push_back(Arc::clone(&slot));
        Entered { slots: Arc::clone(self), slot, _permit: permit }
    }
}

/// A connection's place, for as long as this lives.
#[derive(Debug)]
pub(super) struct Entered {
    slots: Arc<Slots>,
    slot: Arc<Slot>,
    _permit: OwnedSemaphorePermit,
}

impl Entered {
    /// Notes that the connection has asked something.
    pub(super) fn has_asked(&self) {
        self.slot.has_asked.store(true, Relaxed);
    }

    /// Returns when the connection has to make room.
    pub(super) async fn makes_room(&self) {
        self.slot.makes_room.notified().await;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        lock(&self.slots.open).retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn the_oldest_that_has_asked_nothing_makes_room() {
        let slots = Slots::new(3);
        let asked = slots.enter().await;
        asked.has_asked();
        let (silent, silent_too) = (slots.enter().await, slots.enter().await);
        let evicted = tokio::spawn(async move { silent.makes_room().await });
        let third = timeout(Duration::from_secs(20), slots.enter()).await.expect("there is room");
        evicted.await.unwrap();
        silent_too.has_asked();
        third.has_asked();
        assert!(timeout(Duration::from_millis(50), slots.enter()).await.is_err(), "all of them have asked something");
        drop(asked);
        timeout(Duration::from_secs(20), slots.enter()).await.expect("there is room");
        assert_eq!(lock(&slots.open).len(), 2);
    }
}
