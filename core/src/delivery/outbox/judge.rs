//! Batches that the server does not take: the outbox cuts them, sets them aside, and in the end gives one record up.

use alloc::vec::Vec;

use super::Outbox;
use crate::delivery::batch::{Batch, Kind, Stored};
use crate::delivery::losses::Cause;
use crate::delivery::suspects::Verdict;
use crate::limits::{MIN_REFUSED_BYTES, REFUSALS, SUSPECT_PARTS};
use crate::record::manifest::Row;
use crate::time::Millis;

impl<M: Clone> Outbox<M> {
    /// Gives the next record up if the server does not take it, and lets others go before a batch that may have ended streams.
    pub(super) fn prepare(&mut self, now: Millis) {
        if self.refused.is_none() && self.suspects.is_empty() {
            return;
        }
        self.suspects.handle_time(self.ledger.is_writing(), now);
        self.bring_forward(now);
        for _ in 0..self.ledger.all_waiting().count() {
            let Some(next) = self.next().filter(|next| next.kind() != Kind::Heartbeat) else { return };
            let who = next.identity();
            if self.refused == Some(who) {
                self.refused = None;
                self.give_up_next(Cause::Refused);
            } else if self.suspects.is_condemned(who) {
                self.give_up_next(Cause::Poison);
            } else if self.suspects.is_set_aside(who, now) && self.others_wait() {
                if let Some(mut batch) = self.ledger.pop_next() {
                    self.detach(&mut batch);
                    self.ledger.push(batch);
                }
            } else {
                return;
            }
        }
    }

    /// A suspect whose trial is due goes before urgent batches. They come too often in some places to leave the silence that a trial
    /// takes, and would hold up the suspect and all bulk behind it.
    fn bring_forward(&mut self, now: Millis) {
        let Some(at) = self.ledger.all_waiting().position(|batch| batch.kind() == Kind::Bulk) else { return };
        let Some(batch) = self.ledger.all_waiting().nth(at) else { return };
        let is_due = self.suspects.is_suspect(batch.identity()) && !self.suspects.is_set_aside(batch.identity(), now);
        let is_first = batch.stored.is_some() || !self.has_more_on_disk();
        if is_due
            && is_first
            && let Some(batch) = self.ledger.take_waiting(at)
        {
            self.ledger.push_next(batch);
        }
    }

    /// Returns true while a batch waits that is not suspected.
    fn others_wait(&self) -> bool {
        self.ledger.all_waiting().any(|batch| !self.suspects.is_suspect(batch.identity()))
    }

    fn give_up_next(&mut self, cause: Cause) {
        if let Some(batch) = self.ledger.pop_next() {
            if let (Some(_), Some(plan)) = (batch.stored, self.plan_mut()) {
                plan.forget(batch.records());
            }
            self.suspects.handle_dropped(batch.identity());
            self.lose(cause, batch.rows());
            self.settle_rest();
        }
    }

    /// Returns when a batch may leave, or `None` when something has to happen first. When an agent without a spool ends, everything may.
    pub(super) fn gate(&self, next: &Batch<M>) -> Option<Millis> {
        let is_free = next.kind() == Kind::Heartbeat || (self.is_ending && self.plan().is_none());
        if is_free { Some(Millis(0)) } else { self.suspects.gate(next.identity(), self.ledger.is_writing()) }
    }

    /// Returns how many bytes of content each part of the next batch should have at most, if it is to be cut before anything is handed
    /// to the stream.
    pub(super) fn cut_limit(&self, next: &Batch<M>) -> Option<usize> {
        let content = next.content_bytes();
        let limit = if next.kind() == Kind::Heartbeat {
            return None;
        } else if next.is_unchecked {
            u32::MAX
        } else if next.is_smallest {
            return None;
        } else if self.suspects.is_guilty(next.identity()) {
            (content / SUSPECT_PARTS).max(1)
        } else if content > self.content_limit {
            self.content_limit
        } else {
            return None;
        };
        Some(limit as usize)
    }

    /// Returns the most bytes of content that a batch should have. The server has ended streams over more.
    #[must_use]
    pub fn content_limit(&self) -> u32 {
        self.content_limit
    }

    /// Replaces the batch of [`Outgoing::Cut`](super::Outgoing::Cut) by `parts`. `refused` counts records of it that plugins may not
    /// send. If both are empty, the batch could not be read and counts as lost.
    pub fn handle_cut(&mut self, parts: Vec<Batch<M>>, refused: &[Row]) {
        let Some(mut whole) = self.ledger.pop_next() else { return };
        if !parts.is_empty() && self.suspects.is_suspect(whole.identity()) {
            // The parts are suspects too, and others go before them.
            self.detach(&mut whole);
        }
        if parts.is_empty() {
            if let (Some(_), Some(plan)) = (whole.stored, self.plan_mut()) {
                plan.forget(whole.records());
            }
            self.suspects.handle_dropped(whole.identity());
        }
        match refused {
            [] if parts.is_empty() => self.lose(Cause::SpoolDamaged, whole.rows()),
            refused => self.lose(Cause::NoFields, refused),
        }
        self.suspects.handle_cut(whole.identity(), parts.iter().map(Batch::identity));
        for (from_the_end, mut part) in parts.into_iter().rev().enumerate() {
            self.last_id += 1;
            (part.id, part.is_part) = (self.last_id, whole.stored.is_some());
            // It is no more and no less than the whole was. As bulk, parts of an urgent batch would wait for the disk.
            (part.kind, part.is_double) = (whole.kind, whole.is_double);
            // The last part stands for the place on the disk, because all of them are sent again from there.
            part.stored = whole.stored.map(|stored| match from_the_end {
                0 => stored,
                _ => Stored { end: stored.at, ..stored },
            });
            self.ledger.push_next(part);
        }
        self.settle_rest();
    }

    /// The server has ended the stream or the connection, and gave no other reason than that a message was too large, if it
    /// `says_too_large`. Call this before [`Outbox::handle_ended`]. The module `suspects` says what follows.
    ///
    /// Returns the number of records that are suspected from now on, and that others therefore overtake.
    pub fn handle_broken(&mut self, says_too_large: bool, now: Millis) -> u64 {
        self.is_judged = true;
        if says_too_large {
            self.suspects.handle_unrelated();
            self.handle_too_large();
            return 0;
        }
        let suspected = self.suspected_in_flight();
        self.judge(now);
        self.suspected_in_flight().saturating_sub(suspected)
    }

    /// The batches of records that the stream was handed and that can be sent again, oldest first.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = &Batch<M>> {
        self.ledger.handed().filter(|batch| batch.kind() != Kind::Heartbeat && !batch.is_gone())
    }

    fn suspected_in_flight(&self) -> u64 {
        let suspected = self.ledger.handed().filter(|batch| self.suspects.is_suspect(batch.identity()));
        suspected.map(Batch::records).sum()
    }

    /// The server has ended the stream without a reason.
    fn judge(&mut self, now: Millis) {
        let is_writing = self.ledger.is_writing();
        // A server that takes nothing more is behind. It may have died of a batch long after it answered the PING that confirmed it.
        let behind = self.recent.uncredited().filter(|_| is_writing);
        let in_flight: Vec<_> =
            behind.chain(self.in_flight()).map(|batch| (batch.identity(), batch.is_smallest)).collect();
        let Verdict::Guilty(who) = self.suspects.handle_broken(&in_flight, is_writing, now) else {
            return;
        };
        let guilty = self.ledger.handed().find(|batch| batch.identity() == who);
        if let Some(content) = guilty.map(Batch::content_bytes).filter(|content| *content >= MIN_REFUSED_BYTES) {
            self.limit_content(content);
        }
    }

    fn handle_too_large(&mut self) {
        let Some(largest) = self.in_flight().max_by_key(|batch| batch.content_bytes()) else { return };
        let (identity, content_bytes, is_single) =
            (largest.identity(), largest.content_bytes(), largest.records() <= 1);
        let times = match self.too_large.take() {
            Some((suspect, times)) if suspect == identity => times + 1,
            _ => 1,
        };
        match times {
            REFUSALS.. if is_single => self.refused = Some(identity),
            REFUSALS.. => self.limit_content(content_bytes),
            _ => self.too_large = Some((identity, times)),
        }
    }

    /// The server has ended streams over a message with this much content. Smaller batches are sent from now on.
    fn limit_content(&mut self, refused: u32) {
        if self.content_limit < u32::MAX {
            self.patience = self.patience.saturating_mul(2);
        }
        (self.content_limit, self.fitting) = ((refused / 2).max(1), 0);
    }

    /// Tries larger batches after a while, because the server may be another one meanwhile, or may have had another reason.
    pub(super) fn handle_fitting(&mut self, content_bytes: u32) {
        if content_bytes > self.content_limit / 2 {
            self.fitting = self.fitting.saturating_add(1);
            if self.fitting >= self.patience {
                (self.content_limit, self.fitting) = (self.content_limit.saturating_mul(2), 0);
            }
        }
    }
}
