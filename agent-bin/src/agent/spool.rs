//! The spool's files: one operation at a time, on a thread of its own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use elklet_core::delivery::spool::{Done, Op};
use elklet_core::record::manifest::Sources;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::spool::Store;
use crate::sys::blocking;

/// An operation on the spool has ended.
#[derive(Debug)]
pub(super) struct SpoolEvent {
    store: Store,
    done: Done<Bytes>,
}

/// The spool's files, unless a thread works on them.
#[derive(Debug)]
pub(super) struct SpoolFiles {
    store: Option<Store>,
    events: UnboundedSender<SpoolEvent>,
}

impl SpoolFiles {
    pub(super) fn new(directory: PathBuf, sources: Arc<Mutex<Sources>>) -> (Self, UnboundedReceiver<SpoolEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        (Self { store: Some(Store::new(directory, sources)), events }, receiver)
    }

    /// Begins an operation, whose end is a [`SpoolEvent`]. One that is to be done `at_once` is done here where there is no thread for
    /// it, although a slow disk then holds up everything else.
    ///
    /// # Errors
    /// Gives the operation back when there is no thread for it.
    pub(super) fn begin(&mut self, op: Op<Bytes>, at_once: bool) -> Result<(), Op<Bytes>> {
        let Some(store) = self.store.take() else { return Err(op) };
        let events = self.events.clone();
        let carry_out = move |(mut store, op): (Store, Op<Bytes>)| {
            let done = store.carry_out(op);
            // The loop is gone only when the process ends.
            let _ = events.send(SpoolEvent { store, done });
        };
        let Err(refused) = blocking::start((store, op), carry_out.clone()) else { return Ok(()) };
        let (store, op) = refused.input;
        if at_once {
            carry_out((store, op));
            return Ok(());
        }
        self.store = Some(store);
        Err(op)
    }

    /// An operation has ended; what came of it.
    pub(super) fn handle_event(&mut self, SpoolEvent { store, done }: SpoolEvent) -> Done<Bytes> {
        self.store = Some(store);
        done
    }
}
