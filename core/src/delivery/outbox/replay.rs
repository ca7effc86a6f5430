//! Batches that were confirmed a moment ago. A server that crashes takes with it what it has read and not passed on yet.
//!
//! Credit says that a server's application has read a batch, not that anybody else has it. AgentCenter hands records to Kafka in
//! the background, so a kill loses what it read last. The outbox therefore keeps batches for another second after they were
//! confirmed, and replays them after a stream that did not end in order.
//!
//! A PING says less. A server answers it without its application, which may hang at that moment, over a queue that is full, and die
//! without having read what its window holds. A batch that only a PING has confirmed is therefore kept for minutes, until credit comes
//! for it: a server withholds the credit of at most half a window, so that this is little.
//!
//! Batches that are kept may be doubles, so they are the first to be let go when memory is short, which is no loss.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::Outbox;
use crate::delivery::batch::{Batch, Kind, Stored};
use crate::limits::{MAX_UNCONFIRMED_BATCHES, UNCREDITED_MS};
use crate::time::Millis;

/// The batches that were confirmed lately, oldest first.
#[derive(Debug)]
pub(super) struct Recent<M> {
    batches: VecDeque<Confirmed<M>>,
    /// Bytes of memory that their messages take.
    memory: usize,
    keep_ms: u64,
}

/// A batch that was confirmed.
#[derive(Debug)]
struct Confirmed<M> {
    batch: Batch<M>,
    /// Offset in the stream at which its message ends.
    end: u64,
    /// When it was confirmed. Credit confirms anew what a PING has confirmed before.
    at: Millis,
    by_credit: bool,
}

impl<M> Confirmed<M> {
    /// Returns true if it waits for its credit. What lies on the disk does not: the agent says how much the spool holds, and people
    /// wait for that to become nothing.
    fn is_uncredited(&self) -> bool {
        !self.by_credit && self.batch.stored.is_none()
    }

    /// Returns when it may be let go.
    fn until(&self, keep_ms: u64) -> Millis {
        self.at + if self.is_uncredited() { UNCREDITED_MS.max(keep_ms) } else { keep_ms }
    }
}

impl<M> Default for Recent<M> {
    fn default() -> Self {
        Self { batches: VecDeque::new(), memory: 0, keep_ms: 0 }
    }
}

impl<M> Recent<M> {
    /// Bytes of memory that their messages take.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// Returns true while the disk has to keep one of them.
    pub(super) fn is_on_disk(&self) -> bool {
        self.batches.iter().any(|confirmed| confirmed.batch.stored.is_some())
    }

    /// Those that only a PING has confirmed: the server's application may not have come to them.
    pub(super) fn uncredited(&self) -> impl Iterator<Item = &Batch<M>> {
        self.batches.iter().filter(|confirmed| !confirmed.by_credit).map(|confirmed| &confirmed.batch)
    }

    /// Forgets all of them, because the files that some lay in are gone.
    pub(super) fn clear(&mut self) {
        self.batches.clear();
        self.memory = 0;
    }

    /// The server has given credit back up to this offset in the stream.
    pub(super) fn handle_credit(&mut self, credited: u64, now: Millis) {
        // Credit proves batches in their order, so that all are proved when the newest is.
        if self.batches.back().is_none_or(|newest| newest.by_credit) {
            return;
        }
        let first = self.batches.partition_point(|confirmed| confirmed.by_credit);
        let proved = self.batches.range_mut(first..).take_while(|confirmed| confirmed.end <= credited);
        proved.for_each(|confirmed| (confirmed.by_credit, confirmed.at) = (true, now));
    }

    /// Keeps nothing for its credit alone.
    fn stop_waiting(&mut self, now: Millis) {
        let keep_ms = self.keep_ms;
        self.batches.retain(|confirmed| !confirmed.is_uncredited() || confirmed.at + keep_ms >= now);
        self.memory = self.batches.iter().map(|confirmed| confirmed.batch.memory()).sum();
    }

    fn push(&mut self, confirmed: Confirmed<M>) {
        self.memory += confirmed.batch.memory();
        self.batches.push_back(confirmed);
    }

    fn pop(&mut self) -> Option<Batch<M>> {
        self.take(0)
    }

    fn take(&mut self, at: usize) -> Option<Batch<M>> {
        let Confirmed { batch, .. } = self.batches.remove(at)?;
        self.memory -= batch.memory();
        Some(batch)
    }

    /// Takes out the oldest batch that need not be kept any longer.
    fn pop_over(&mut self, now: Millis) -> Option<Batch<M>> {
        if self.batches.len() > MAX_UNCONFIRMED_BATCHES {
            return self.pop();
        }
        let is_over = |confirmed: &Confirmed<M>| confirmed.until(self.keep_ms) < now;
        let oldest = self.batches.front()?;
        if !oldest.is_uncredited() {
            // Those behind it were confirmed later.
            return if is_over(oldest) { self.pop() } else { None };
        }
        let over = self.batches.iter().position(is_over)?;
        self.take(over)
    }
}

impl<M: Clone> Outbox<M> {
    /// Sets how long batches are kept after they were confirmed; 0 means not at all.
    pub fn set_replay_ms(&mut self, keep_ms: u64) {
        self.recent.keep_ms = keep_ms;
    }

    /// The server has taken a batch, whose message ends at this offset in the stream.
    pub(super) fn keep_confirmed(&mut self, batch: Batch<M>, end: u64, now: Millis) {
        if self.recent.keep_ms > 0 && !batch.is_gone() && batch.kind() != Kind::Heartbeat {
            self.recent.push(Confirmed { batch, end, at: now, by_credit: end <= self.ledger.credited() });
        } else {
            self.forget_confirmed(&batch);
        }
    }

    /// Lets go of batches that were confirmed long ago, and of those that memory has no room for.
    pub(super) fn expire(&mut self, now: Millis) {
        if self.recent.batches.is_empty() {
            return;
        }
        while let Some(batch) = self.recent.pop_over(now) {
            self.forget_confirmed(&batch);
        }
        while self.recent.memory() + self.ledger.memory() > self.ledger.budget()
            && let Some(batch) = self.recent.pop()
        {
            self.forget_confirmed(&batch);
        }
    }

    /// Lets go of everything that was confirmed, because the server has ended in order.
    pub(super) fn expire_all(&mut self) {
        while let Some(batch) = self.recent.pop() {
            self.forget_confirmed(&batch);
        }
    }

    fn forget_confirmed(&mut self, batch: &Batch<M>) {
        if let (Some(stored), Some(plan)) = (batch.stored, self.plan_mut()) {
            plan.handle_confirmed(stored.end, batch.records());
        }
    }

    /// Puts the batches that were confirmed last at the front of the queue, after a stream that did not end in order. Returns where the
    /// first of them lies on the disk, if some do.
    pub(super) fn replay(&mut self, now: Millis) -> Option<Stored> {
        self.expire(now);
        if self.plan().is_some_and(|plan| plan.records() > 0) {
            // What lies on the disk is newer and goes first. What has waited in memory for minutes would come behind it.
            self.recent.stop_waiting(now);
        }
        let (mut on_disk, mut doubles) = (Vec::new(), Vec::new());
        while let Some(mut batch) = self.recent.pop() {
            self.counters.replayed += batch.records();
            match batch.stored {
                Some(stored) => {
                    on_disk.push(stored);
                    if !batch.is_part {
                        self.doubles.push(stored.at);
                    }
                }
                None => {
                    batch.is_double = true;
                    doubles.push(batch);
                }
            }
        }
        // Nothing is handed over yet, so "next" means before all others.
        doubles.into_iter().rev().for_each(|batch| self.ledger.push_next(batch));
        on_disk.into_iter().min_by_key(|stored| stored.at)
    }

    /// Returns when the disk need not keep the oldest of them any longer.
    pub(super) fn replay_timeout(&self) -> Option<Millis> {
        let on_disk = self.recent.batches.iter().filter(|confirmed| confirmed.batch.stored.is_some());
        on_disk.map(|confirmed| confirmed.until(self.recent.keep_ms) + 1).min()
    }
}
