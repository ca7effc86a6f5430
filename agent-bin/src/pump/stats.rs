//! What the pump counts for each plugin, where the net thread can read it.

use std::sync::{Mutex, PoisonError};

use elklet_core::frame::Tally;
use elklet_core::intake::Lane;

/// A plugin's counts; they live as long as its process.
#[derive(Debug, Default)]
pub(crate) struct PluginStats {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    urgent: Tally,
    bulk: Tally,
    tasks: Tasks,
}

/// Tasks that went into a plugin's pipe whole.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tasks {
    pub(crate) count: u64,
    /// Bytes of their frames.
    pub(crate) bytes: u64,
}

impl PluginStats {
    pub(super) fn publish(&self, lane: Lane, tally: Tally) {
        self.change(|counts| match lane {
            Lane::Urgent => counts.urgent = tally,
            Lane::Bulk => counts.bulk = tally,
        });
    }

    pub(super) fn publish_tasks(&self, written: Tasks) {
        self.change(|counts| counts.tasks = written);
    }

    /// Both lanes together.
    pub(crate) fn tally(&self) -> Tally {
        let Counts { urgent: mut both, bulk, .. } = self.change(|counts| *counts);
        both += bulk;
        both
    }

    /// Tasks that the plugin was given.
    pub(crate) fn tasks(&self) -> Tasks {
        self.change(|counts| counts.tasks)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
