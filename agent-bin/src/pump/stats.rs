//! The pump's counts for each plugin, which the net thread reads.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use elklet_core::record::frame::Tally;
use elklet_core::record::intake::Lane;

use crate::sys::atomic::AtomicU64;

/// A plugin's counts. They live as long as its process.
#[derive(Debug, Default)]
pub(crate) struct PluginStats {
    counts: Mutex<Counts>,
    stderr_left_out: AtomicU64,
    /// How often its sandbox has refused which call. The calls are those of the filter, and so a few dozen.
    refusals: Mutex<Vec<(&'static str, u64)>>,
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

    /// Counts bytes of its standard error that are not written anywhere.
    pub(crate) fn leave_out_stderr(&self, bytes: u64) {
        self.stderr_left_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The number of these bytes.
    pub(crate) fn stderr_left_out(&self) -> u64 {
        self.stderr_left_out.load(Ordering::Relaxed)
    }

    /// Counts a call that its sandbox has refused. Returns true if it is the first of its name, and how many names there are.
    pub(crate) fn refuse(&self, call: &'static str) -> (bool, usize) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let known = refusals.iter_mut().find(|(name, _)| *name == call);
        let is_first = known.is_none();
        match known {
            Some((_, count)) => *count += 1,
            None => refusals.push((call, 1)),
        }
        (is_first, refusals.len())
    }

    /// The calls that were refused, and how often.
    pub(crate) fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counts of both lanes together.
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
