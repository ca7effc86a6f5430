//! The agent as others see it: queries that change nothing.

use alloc::vec::Vec;

use super::ending::Ending;
use super::{Agent, Counters};
use crate::delivery::losses::Losses;
use crate::delivery::{self, Unconfirmed};
use crate::dispatch::PluginState;
use crate::link::LinkCounters;
use crate::link::session::{Session, Target};
use crate::record::intake::Level;
use crate::time::Millis;

impl<M: Clone> Agent<M> {
    /// Returns true while there is a stream.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.session.streaming_to().is_some()
    }

    /// Where the stream goes, while there is one.
    #[must_use]
    pub fn streaming_to(&self) -> Option<Target> {
        self.session.streaming_to()
    }

    /// Returns true once somebody has asked the agent to end.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending != Ending::No
    }

    /// Returns true while the agent's warnings and errors go into the intake. They wait for a stream, so that a long time without a
    /// server fills no buffer; at the end they take their last chance.
    #[must_use]
    pub fn takes_reports(&self) -> bool {
        self.is_streaming() || matches!(self.ending, Ending::Flush { .. })
    }

    /// The session, to look at.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Every plugin that is configured or still has a process.
    pub fn plugins(&self) -> impl Iterator<Item = PluginState<'_>> {
        self.dispatch.plugins()
    }

    /// What is wrong, as the heartbeat's `state_detail` says it; see [`Dispatch::state_details`](crate::dispatch::Dispatch::state_details).
    #[must_use]
    pub fn state_details(&self, now: Millis) -> Vec<&str> {
        self.dispatch.state_details(now)
    }

    /// Credit at which the shell should look at once; see [`Feed::wanted_credit`](crate::delivery::feed::Feed::wanted_credit).
    #[must_use]
    pub fn wanted_credit(&self) -> Option<u64> {
        self.feed.wanted_credit()
    }

    /// What the server is not known to have taken, what the intake holds included.
    #[must_use]
    pub fn unconfirmed(&self, level: Level) -> Unconfirmed {
        self.feed.unconfirmed(level)
    }

    /// What the agent counts itself.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What has become of attempts and streams.
    #[must_use]
    pub fn link_counters(&self) -> LinkCounters {
        self.link_counters
    }

    /// What has become of records.
    #[must_use]
    pub fn delivery_counters(&self) -> delivery::Counters {
        self.feed.counters()
    }

    /// What was lost.
    #[must_use]
    pub fn losses(&self) -> &Losses {
        self.feed.losses()
    }
}
