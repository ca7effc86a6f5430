//! What is known of an output, for those who ask.

use super::delivery::Tally;
use super::settings::Output;
use crate::clock::now_ms;
use crate::serve::lock;
use crate::store::Missed;
use std::sync::Mutex;

/// How an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Everything was passed on.
    Idle,
    /// Records are on their way.
    Sending,
    /// The receiver takes nothing at present, or the store cannot be read.
    Failing,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Sending => "sending",
            Self::Failing => "failing",
        }
    }
}

/// What is known of an output.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    inner: Mutex<Snapshot>,
}

/// What is known of an output at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) state: State,
    /// Since when it is in that state, in milliseconds since 1970.
    pub(crate) since_ms: i64,
    /// All records before it have arrived, were given up, or are not wanted.
    pub(crate) position: u64,
    /// When the oldest record that was read and has not arrived was received, in milliseconds since 1970.
    pub(crate) oldest_received_ms: Option<i64>,
    /// Records that arrived since the center started, and their bytes.
    pub(crate) sent: u64,
    pub(crate) bytes: u64,
    /// Batches that were sent again.
    pub(crate) retries: u64,
    /// Records that were given up because the receiver will never take them.
    pub(crate) refused: u64,
    /// Records that the store dropped before they were passed on, and blocks of it that could not be read.
    pub(crate) missed: Missed,
    /// The last thing that went wrong, and when, in milliseconds since 1970.
    pub(crate) error: Option<(String, i64)>,
}

impl Snapshot {
    /// Nothing was passed on yet.
    pub(crate) fn new(since_ms: i64) -> Self {
        Self {
            state: State::Idle,
            since_ms,
            position: 0,
            oldest_received_ms: None,
            sent: 0,
            bytes: 0,
            retries: 0,
            refused: 0,
            missed: Missed::default(),
            error: None,
        }
    }
}

impl Status {
    pub(super) fn new(output: &Output) -> Self {
        let inner = Mutex::new(Snapshot::new(now_ms()));
        Self { name: output.name.clone(), kind: output.kind.name(), inner }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        lock(&self.inner).clone()
    }

    /// Sets how far the output is.
    pub(super) fn at(&self, position: u64, oldest_received_ms: Option<i64>) {
        let mut inner = lock(&self.inner);
        (inner.position, inner.oldest_received_ms) = (position, oldest_received_ms);
    }

    /// Sets the state, and logs when receiving fails or works again.
    pub(super) fn state(&self, state: State) {
        let (before, error) = {
            let mut inner = lock(&self.inner);
            if inner.state == state {
                return;
            }
            let before = std::mem::replace(&mut inner.state, state);
            inner.since_ms = now_ms();
            (before, inner.error.clone())
        };
        let name = &self.name;
        match (before, state) {
            (_, State::Failing) => {
                let error = error.map(|(error, _)| error).unwrap_or_default();
                log::warn!("forward {name}: nothing arrives, and is tried again: {error}");
            }
            (State::Failing, _) => log::warn!("forward {name}: records arrive again"),
            _ => {}
        }
    }

    pub(super) fn error(&self, error: String) {
        lock(&self.inner).error = Some((error, now_ms()));
    }

    pub(super) fn count(&self, tally: Tally) {
        let mut inner = lock(&self.inner);
        inner.sent += tally.sent;
        inner.bytes += tally.bytes;
        inner.retries += u64::from(tally.again);
        inner.refused += tally.refused;
    }

    /// Counts records that the store no longer has.
    pub(super) fn missed(&self, records: u64, blocks: u64) {
        let mut inner = lock(&self.inner);
        inner.missed.records += records;
        inner.missed.blocks += blocks;
    }
}
