//! What one output decides: which records leave together, when, what happens after an answer, and how far the position is.
//!
//! It does no IO, and is told the time. The shell hands records to [`Delivery::handle_records`] while [`Delivery::has_room`], carries out
//! what [`Delivery::poll_action`] returns, and tells what came of it. After each of these, and once [`Delivery::poll_timeout`] has
//! passed, it polls again.
//!
//! ```text
//!             bytes, records, time             slot free            taken
//!  filling ------------------------> ready ----------------> sent ---------> done --> the position moves, in order
//!                                      ^                       |
//!                                      +--- again, or halves --+
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

/// Milliseconds since the shell started.
pub(super) type Millis = u64;

/// The first pause after a failure, and the longest one that is not the receiver's wish.
const FIRST_PAUSE_MS: Millis = 1_000;
const LONGEST_PAUSE_MS: Millis = 60_000;
/// A receiver that asks for a longer pause is asked again after this.
const LONGEST_WISH_MS: Millis = 300_000;
/// While records flow, the position is written so often. A crash repeats what was sent since.
const KEEP_INTERVAL_MS: Millis = 1_000;

/// A record on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item<T> {
    /// Its sequence number in the store.
    pub(super) seq: u64,
    /// When it was received, in milliseconds since 1970.
    pub(super) received_ms: i64,
    /// Bytes that it takes, on the wire or in memory.
    pub(super) bytes: usize,
    /// What is sent.
    pub(super) body: T,
}

/// Which batch an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct BatchId(u64);

/// How much goes together, and how much waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Records of a batch.
    pub(super) batch_records: usize,
    /// Bytes of a batch. A single record may be larger.
    pub(super) batch_bytes: usize,
    /// How long a batch waits to be filled.
    pub(super) linger_ms: Millis,
    /// Batches that were sent and have no answer.
    pub(super) in_flight: usize,
    /// Bytes of all batches, beyond which no more are read.
    pub(super) held_bytes: usize,
}

/// What the shell does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action<T> {
    /// Sends records, and tells by [`Delivery::handle_answer`] what came of it.
    Send(BatchId, Arc<[Item<T>]>),
    /// Writes the position, and tells by [`Delivery::handle_kept`] whether it is written.
    Keep(u64),
}

/// What came of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The receiver has it. These of its records, by place, it will never take.
    Taken { refused: Vec<usize> },
    /// These of its records, by place, have to be sent again; of the others, those that it will never take.
    Partly { again: Vec<usize>, refused: Vec<usize>, after_ms: Option<Millis> },
    /// All of it has to be sent again, at the earliest after this.
    Again { after_ms: Option<Millis> },
    /// The receiver will never take the batch as it is, because of at least one of its records.
    Refused,
}

/// What an answer meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Records that arrived.
    pub(super) sent: u64,
    /// Bytes that arrived.
    pub(super) bytes: u64,
    /// Records that were given up.
    pub(super) refused: u64,
    /// True if something is sent again.
    pub(super) again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Ready,
    Sent,
    Done,
}

#[derive(Debug)]
struct Batch<T> {
    id: BatchId,
    items: Arc<[Item<T>]>,
    bytes: usize,
    /// The position once this batch and all before it are done.
    end: u64,
    stage: Stage,
}

/// The decisions of one output.
#[derive(Debug)]
pub(super) struct Delivery<T> {
    limits: Limits,
    filling: Vec<Item<T>>,
    filling_bytes: usize,
    filling_since: Millis,
    /// In the order of their records.
    batches: VecDeque<Batch<T>>,
    next_id: u64,
    /// All records before it have arrived, or were given up, or are not wanted.
    position: u64,
    /// As `position` once all that is here is done.
    end: u64,
    kept: u64,
    keeping: bool,
    keep_at: Millis,
    failures: u32,
    pause_ms: Millis,
    resume_at: Millis,
    random: u64,
}

impl<T: Clone> Delivery<T> {
    /// Begins at a position that is kept already.
    pub(super) fn new(limits: Limits, position: u64, seed: u64) -> Self {
        Self {
            limits,
            filling: Vec::new(),
            filling_bytes: 0,
            filling_since: 0,
            batches: VecDeque::new(),
            next_id: 0,
            position,
            end: position,
            kept: position,
            keeping: false,
            keep_at: 0,
            failures: 0,
            pause_ms: 0,
            resume_at: 0,
            random: seed | 1,
        }
    }

    /// All records before this one have arrived, were given up, or are not wanted.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// True if a position is not written yet.
    pub(super) fn is_unkept(&self) -> bool {
        self.position > self.kept
    }

    /// True if nothing waits to be sent or answered.
    pub(super) fn is_empty(&self) -> bool {
        self.filling.is_empty() && self.batches.is_empty()
    }

    /// True after a failure, until a batch is taken.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// When the oldest record that is here was received, in milliseconds since 1970.
    pub(super) fn oldest_received_ms(&self) -> Option<i64> {
        let waiting = self.batches.iter().filter(|batch| batch.stage != Stage::Done);
        waiting.flat_map(|batch| batch.items.iter()).chain(&self.filling).map(|item| item.received_ms).next()
    }

    /// True if more records may be handed in.
    pub(super) fn has_room(&self) -> bool {
        let held: usize = self.batches.iter().map(|batch| batch.bytes).sum();
        held + self.filling_bytes < self.limits.held_bytes
    }

    /// Takes records in the order of the store. `end` is where reading goes on: whatever lies before it and is not here is not wanted.
    pub(super) fn handle_records(&mut self, items: Vec<Item<T>>, end: u64, now: Millis) {
        for item in items {
            if !self.filling.is_empty() && self.filling_bytes + item.bytes > self.limits.batch_bytes {
                self.fill_ends(item.seq);
            }
            if self.filling.is_empty() {
                self.filling_since = now;
            }
            self.filling_bytes += item.bytes;
            let behind = item.seq + 1;
            self.filling.push(item);
            if self.filling.len() >= self.limits.batch_records || self.filling_bytes >= self.limits.batch_bytes {
                self.fill_ends(behind);
            }
        }
        self.end = self.end.max(end);
        if self.filling.is_empty()
            && let Some(last) = self.batches.back_mut()
        {
            last.end = self.end;
        }
        self.advance();
    }

    /// Takes the answer to a batch. One that is not waited for is ignored.
    pub(super) fn handle_answer(&mut self, id: BatchId, answer: Answer, now: Millis) -> Tally {
        let Some(at) = self.batches.iter().position(|batch| batch.id == id && batch.stage == Stage::Sent) else {
            return Tally::default();
        };
        let batch = &mut self.batches[at];
        let (all, all_bytes) = (batch.items.len() as u64, batch.bytes as u64);
        let tally = match answer {
            Answer::Taken { refused } => {
                let (count, lost) = (refused.len() as u64, size(&batch.items, &refused));
                batch.stage = Stage::Done;
                self.failures = 0;
                Tally {
                    sent: all - count.min(all),
                    bytes: all_bytes.saturating_sub(lost as u64),
                    refused: count,
                    again: false,
                }
            }
            Answer::Partly { again, refused, after_ms } => {
                let kept = size(&batch.items, &again);
                let gone = kept + size(&batch.items, &refused);
                let (count, repeated) = (refused.len() as u64, again.len() as u64);
                let rest: Arc<[_]> = again.iter().filter_map(|&place| batch.items.get(place).cloned()).collect();
                (batch.items, batch.bytes, batch.stage) = (rest, kept, Stage::Ready);
                self.pause(after_ms, now);
                let sent = all.saturating_sub(count + repeated);
                Tally { sent, bytes: all_bytes.saturating_sub(gone as u64), refused: count, again: true }
            }
            Answer::Again { after_ms } => {
                batch.stage = Stage::Ready;
                self.pause(after_ms, now);
                Tally { again: true, ..Tally::default() }
            }
            Answer::Refused if batch.items.len() > 1 => {
                self.halve(at);
                Tally { again: true, ..Tally::default() }
            }
            Answer::Refused => {
                batch.stage = Stage::Done;
                // It answers, so that what comes next need not wait.
                self.failures = 0;
                Tally { refused: all, ..Tally::default() }
            }
        };
        self.advance();
        tally
    }

    /// Takes what came of [`Action::Keep`].
    pub(super) fn handle_kept(&mut self, position: u64, kept: bool, now: Millis) {
        self.keeping = false;
        self.keep_at = now + KEEP_INTERVAL_MS;
        if kept {
            self.kept = self.kept.max(position);
        }
    }

    /// What to do now, until there is nothing.
    pub(super) fn poll_action(&mut self, now: Millis) -> Option<Action<T>> {
        if !self.filling.is_empty() && now >= self.filling_since + self.limits.linger_ms {
            self.fill_ends(self.end);
        }
        if !self.keeping && self.is_unkept() && now >= self.keep_at {
            self.keeping = true;
            return Some(Action::Keep(self.position));
        }
        if now < self.resume_at || !self.has_slot() {
            return None;
        }
        let next = self.batches.iter_mut().find(|batch| batch.stage == Stage::Ready)?;
        next.stage = Stage::Sent;
        Some(Action::Send(next.id, Arc::clone(&next.items)))
    }

    /// When to poll again although nothing has happened, if ever.
    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        let linger = (!self.filling.is_empty()).then_some(self.filling_since + self.limits.linger_ms);
        let keep = (!self.keeping && self.is_unkept()).then_some(self.keep_at);
        let ready = self.has_slot() && self.batches.iter().any(|batch| batch.stage == Stage::Ready);
        [linger, keep, ready.then_some(self.resume_at)].into_iter().flatten().min()
    }

    /// After a failure, one batch goes alone to see whether the receiver is back.
    fn has_slot(&self) -> bool {
        let sent = self.batches.iter().filter(|batch| batch.stage == Stage::Sent).count();
        sent < if self.is_failing() { 1 } else { self.limits.in_flight }
    }

    fn fill_ends(&mut self, end: u64) {
        let items: Arc<[_]> = std::mem::take(&mut self.filling).into();
        let bytes = std::mem::take(&mut self.filling_bytes);
        let id = self.id();
        self.batches.push_back(Batch { id, items, bytes, end, stage: Stage::Ready });
    }

    fn id(&mut self) -> BatchId {
        self.next_id += 1;
        BatchId(self.next_id)
    }

    /// Sends both halves of a batch by themselves, so that a few rounds find the record that it is refused for.
    fn halve(&mut self, at: usize) {
        let Some(batch) = self.batches.remove(at) else { return };
        let (first, second) = batch.items.split_at(batch.items.len() / 2);
        let between = second.first().map_or(batch.end, |item| item.seq);
        for (half, end, at) in [(first, between, at), (second, batch.end, at + 1)] {
            let bytes = half.iter().map(|item| item.bytes).sum();
            let id = self.id();
            self.batches.insert(at, Batch { id, items: half.into(), bytes, end, stage: Stage::Ready });
        }
    }

    fn advance(&mut self) {
        while let Some(batch) = self.batches.front().filter(|batch| batch.stage == Stage::Done) {
            self.position = self.position.max(batch.end);
            self.batches.pop_front();
        }
        if self.is_empty() {
            self.position = self.position.max(self.end);
        }
    }

    /// Decorrelated jitter: each pause is between the first one and three times the one before it.
    fn pause(&mut self, wish_ms: Option<Millis>, now: Millis) {
        // Answers to batches that were sent together are one failure.
        if now < self.resume_at {
            return;
        }
        let most = if self.failures == 0 { FIRST_PAUSE_MS } else { self.pause_ms.saturating_mul(3) };
        let most = most.clamp(FIRST_PAUSE_MS, LONGEST_PAUSE_MS);
        self.pause_ms = FIRST_PAUSE_MS + self.random() % (most - FIRST_PAUSE_MS + 1);
        self.failures = self.failures.saturating_add(1);
        let wish_ms = wish_ms.unwrap_or(0).min(LONGEST_WISH_MS);
        self.resume_at = now + self.pause_ms.max(wish_ms);
    }

    /// Marsaglia's xorshift.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Bytes of some of these records, by place.
fn size<T>(items: &[Item<T>], places: &[usize]) -> usize {
    places.iter().filter_map(|&place| items.get(place)).map(|item| item.bytes).sum()
}

#[cfg(test)]
mod tests;
