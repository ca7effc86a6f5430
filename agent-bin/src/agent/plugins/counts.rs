//! What plugins have sent, and what of it was lost.

use std::mem;
use std::sync::Arc;

use elklet_core::command::PluginName;
use elklet_core::delivery::losses::Cause;
use elklet_core::record::frame::Tally;
use elklet_core::time::Millis;

use super::Plugins;
use crate::clock;
use crate::pump::{PlugId, PluginStats};

/// A plugin's pipes that the pump has not closed yet.
#[derive(Debug)]
pub(super) struct Open {
    name: PluginName,
    pub(super) stats: Arc<PluginStats>,
    /// Its counts when they were looked at for lost frames, and when that was.
    told: Tally,
    told_at: i64,
}

impl Open {
    pub(super) fn new(name: PluginName, stats: Arc<PluginStats>) -> Self {
        Self { name, stats, told: Tally::default(), told_at: clock::unix_seconds() }
    }
}

impl Plugins {
    /// The pump has read a plugin's pipes to their ends.
    pub(in crate::agent) fn handle_closed(&mut self, plug: PlugId) {
        if let Some(open) = self.open.remove(&plug) {
            self.past += open.stats.tally();
            self.past_stderr += open.stats.stderr_left_out();
        }
    }

    /// Frames that were no records, of whom, why, and since when; each is told once.
    pub(in crate::agent) fn take_lost_frames(&mut self) -> Vec<(PluginName, Cause, u64, i64)> {
        let mut lost = Vec::new();
        for Open { name, stats, told, told_at } in self.open.values_mut() {
            let (before, since) = (mem::replace(told, stats.tally()), mem::replace(told_at, clock::unix_seconds()));
            let more = [
                (Cause::FrameTooLong, told.too_long - before.too_long),
                (Cause::FrameInvalid, told.invalid - before.invalid),
                (Cause::ReservedType, told.reserved_type - before.reserved_type),
                (Cause::NoFields, told.no_fields - before.no_fields),
                (Cause::FrameTruncated, told.truncated - before.truncated),
            ];
            lost.extend(
                more.into_iter()
                    .filter(|(_, frames)| *frames > 0)
                    .map(|(cause, frames)| (name.clone(), cause, frames, since)),
            );
        }
        lost
    }

    /// What all plugins have sent since the agent started.
    pub(in crate::agent) fn tally(&self) -> Tally {
        let mut tally = self.past;
        self.open.values().for_each(|open| tally += open.stats.tally());
        tally
    }

    /// Bytes of standard error that were not written, of all plugins since the agent started.
    pub(in crate::agent) fn stderr_left_out(&self) -> u64 {
        self.past_stderr + self.open.values().map(|open| open.stats.stderr_left_out()).sum::<u64>()
    }

    /// Processes that have ended without being asked to, since the agent started.
    pub(in crate::agent) fn deaths(&self) -> u64 {
        self.deaths
    }

    pub(in crate::agent) fn sample_rates(&mut self, now: Millis) {
        for running in self.running.values_mut() {
            running.meter.sample(now, running.sent());
        }
    }
}
