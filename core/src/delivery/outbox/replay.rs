//! Batches that were confirmed a moment ago. A server that crashes takes with it what it has read and not passed on yet.
//!
//! Credit and PINGs say that a server has read a batch, not that anybody else has it. AgentCenter hands records to Kafka in
//! the background, so a kill loses what it read last. The outbox therefore keeps batches for another second after they were
//! confirmed, and replays them after a stream that did not end in order. They may be doubles, so they are the first to be let go
//! when memory is short, which is no loss.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::Outbox;
use crate::delivery::batch::{Batch, Kind, Stored};
use crate::limits::MAX_UNCONFIRMED_BATCHES;
use crate::time::Millis;

/// The batches that were confirmed lately, oldest first.
#[derive(Debug)]
pub(super) struct Recent<M> {
    batches: VecDeque<(Batch<M>, Millis)>,
    /// Bytes of memory that their messages take.
    memory: usize,
    keep_ms: u64,
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
        self.batches.iter().any(|(batch, _)| batch.stored.is_some())
    }

    /// Forgets all of them, because the files that some lay in are gone.
    pub(super) fn clear(&mut self) {
        self.batches.clear();
        self.memory = 0;
    }

    fn push(&mut self, batch: Batch<M>, now: Millis) {
        self.memory += batch.memory();
        self.batches.push_back((batch, now));
    }

    fn pop(&mut self) -> Option<Batch<M>> {
        let (batch, _) = self.batches.pop_front()?;
        self.memory -= batch.memory();
        Some(batch)
    }

    fn is_over(&self, now: Millis) -> bool {
        let oldest = self.batches.front();
        oldest.is_some_and(|(_, confirmed)| *confirmed + self.keep_ms < now)
            || self.batches.len() > MAX_UNCONFIRMED_BATCHES
    }
}

impl<M: Clone> Outbox<M> {
    /// Sets how long batches are kept after they were confirmed; 0 means not at all.
    pub fn set_replay_ms(&mut self, keep_ms: u64) {
        self.recent.keep_ms = keep_ms;
    }

    /// The server has taken a batch.
    pub(super) fn keep_confirmed(&mut self, batch: Batch<M>, now: Millis) {
        if self.recent.keep_ms > 0 && !batch.is_gone() && batch.kind() != Kind::Heartbeat {
            self.recent.push(batch, now);
        } else {
            self.forget_confirmed(&batch);
        }
    }

    /// Lets go of batches that were confirmed long ago, and of those that memory has no room for.
    pub(super) fn expire(&mut self, now: Millis) {
        while self.recent.is_over(now) || self.recent.memory() + self.ledger.memory() > self.ledger.budget() {
            let Some(batch) = self.recent.pop() else { break };
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
        let oldest = self.recent.batches.front().filter(|_| self.recent.is_on_disk());
        oldest.map(|(_, confirmed)| *confirmed + self.recent.keep_ms + 1)
    }
}
