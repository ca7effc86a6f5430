//! The orderly end: plugins first, so that what they write last is sent as well; then the buffers; then the stream.

use elklet_core::delivery::Unconfirmed;
use elklet_core::time::Millis;

use super::Agent;
use crate::update::After;

/// At the end, plugins are waited for this long: their own ten seconds, and some for the pipes.
const END_OF_PLUGINS_MS: u64 = 12_000;

/// At the end, what is left in the buffers is sent for this long.
const END_OF_FLUSH_MS: u64 = 10_000;

/// At the end, what is left is written to the disk for this long.
const END_OF_SPOOL_MS: u64 = 10_000;

/// How far the orderly end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nobody has asked for it.
    No,
    /// The plugins end and their pipes are read.
    Plugins { deadline: Millis },
    /// What is left is sent.
    Flush { deadline: Millis },
    /// The stream is being closed.
    Stream,
    /// What the server has not taken is written to the disk.
    Spool { deadline: Millis },
    /// It is over.
    Done,
}

impl Ending {
    /// When the agent goes on to the next step whether or not this one is done.
    pub(super) fn deadline(self) -> Option<Millis> {
        match self {
            Self::Plugins { deadline } | Self::Flush { deadline } | Self::Spool { deadline } => Some(deadline),
            Self::No | Self::Stream | Self::Done => None,
        }
    }
}

impl Agent {
    pub(super) fn handle_signal(&mut self, name: &str) {
        let now = self.clock.now();
        // It was to become another version, and is not any more.
        let was_to_go_on = std::mem::replace(&mut self.after, After::Exit) != After::Exit;
        if self.ending == Ending::No || was_to_go_on {
            log::info!("{name}: the agent ends in order");
            self.begin_ending(now);
        } else {
            log::warn!("{name} again: the agent ends at once");
            self.plugins.kill_all();
            self.session.handle_shutdown(now);
            self.ending = Ending::Done;
        }
    }

    pub(super) fn begin_ending(&mut self, now: Millis) {
        if self.ending == Ending::No {
            self.dispatch.handle_shutdown(now);
            self.delivery.handle_ending();
            self.give_up_uploads();
            self.ending = Ending::Plugins { deadline: now + END_OF_PLUGINS_MS };
        }
    }

    /// Plugins first, so that what they write last is sent as well; then the buffers; then the stream.
    pub(super) fn advance_ending(&mut self, now: Millis) {
        if let Ending::Plugins { deadline } = self.ending
            && ((self.dispatch.is_quiet() && self.plugins.is_quiet()) || now >= deadline)
        {
            self.ending = Ending::Flush { deadline: now + END_OF_FLUSH_MS };
            // The counters as they are in the end.
            if self.session.streaming_to().is_some() {
                self.beat(now);
            }
        }
        if let Ending::Flush { deadline } = self.ending
            && (self.session.streaming_to().is_none() || self.delivery.is_written_out() || now >= deadline)
        {
            self.ending = Ending::Stream;
            self.session.handle_shutdown(now);
            while let Some(action) = self.session.poll_action() {
                self.carry_out_session(action);
            }
        }
        if let Ending::Spool { deadline } = self.ending {
            self.deliver(now);
            if self.delivery.is_safe(now) || now >= deadline {
                self.ending = Ending::Done;
                self.tell_what_is_left();
            }
        }
    }

    /// The stream is over, or there was none: what is left is made safe.
    pub(super) fn begin_saving(&mut self) {
        self.ending = Ending::Spool { deadline: self.clock.now() + END_OF_SPOOL_MS };
    }

    fn tell_what_is_left(&self) {
        let records = self.plugins.tally().records;
        let Unconfirmed { memory_records, disk_records, .. } = self.delivery.unconfirmed();
        match (memory_records, disk_records) {
            (0, 0) => log::info!("the agent ends; the server has taken all {records} records"),
            (0, kept) => log::info!("the agent ends; {kept} records wait on the disk for the next start"),
            (lost, kept) => log::warn!(
                "the agent ends; {lost} of {records} records are not known to have arrived, {kept} wait on the disk"
            ),
        }
    }
}
