//! What the pump waits for: two polls, one inside the other, and what their tokens stand for.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use elklet_core::record::intake::Lane;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::handle::PlugId;

pub(super) const WAKER: Token = Token(usize::MAX);
pub(super) const BULK: Token = Token(usize::MAX - 1);

/// Most events of one poll.
pub(super) const EVENTS: usize = 64;

/// Tokens of a plugin: its two lanes, and its tasks.
const TOKENS: usize = 3;

pub(super) fn lane_token(plug: PlugId, lane: Lane) -> Token {
    Token(plug.0 * TOKENS + usize::from(lane == Lane::Urgent))
}

pub(super) fn tasks_token(plug: PlugId) -> Token {
    Token(plug.0 * TOKENS + 2)
}

/// The plugin and the lane of a token. `None` is the task pipe.
pub(super) fn of_token(token: Token) -> (PlugId, Option<Lane>) {
    let lane = match token.0 % TOKENS {
        0 => Some(Lane::Bulk),
        1 => Some(Lane::Urgent),
        _ => None,
    };
    (PlugId(token.0 / TOKENS), lane)
}

/// The polls of the pump.
pub(super) struct Polls {
    /// Orders, high-priority lanes, task pipes, and `bulk` unless the pump rests.
    pub(super) all: Poll,
    /// Bulk lanes.
    pub(super) bulk: Poll,
}

impl Polls {
    pub(super) fn start() -> io::Result<Self> {
        let polls = Self { all: Poll::new()?, bulk: Poll::new()? };
        polls.watch_bulk()?;
        Ok(polls)
    }

    pub(super) fn of(&self, lane: Lane) -> &Poll {
        match lane {
            Lane::Bulk => &self.bulk,
            Lane::Urgent => &self.all,
        }
    }

    /// Lets bulk records wake the pump, at once if there are any.
    pub(super) fn watch_bulk(&self) -> io::Result<()> {
        self.all.registry().register(&mut SourceFd(&self.bulk.as_raw_fd()), BULK, Interest::READABLE)
    }

    /// Stops bulk records from waking the pump.
    pub(super) fn ignore_bulk(&self) -> io::Result<()> {
        self.all.registry().deregister(&mut SourceFd(&self.bulk.as_raw_fd()))
    }
}

/// Waits for events. Returns false when that is impossible.
pub(super) fn wait(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> bool {
    match poll.poll(events, timeout) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => {
            log::error!("the pump cannot wait for its pipes: {error}");
            false
        }
        _ => true,
    }
}
