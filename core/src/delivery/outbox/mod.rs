//! Every batch that the server is not known to have, in the order in which it leaves, wherever it is kept.
//!
//! [`Outbox`] is the state. `disk` decides what is written to the spool and read from it, `judge` finds the batch that a server does not
//! take, and `replay` keeps what was confirmed a moment ago.

mod disk;
mod judge;
mod replay;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use self::disk::{DiskState, Pending};
use self::replay::Recent;
use super::batch::{Batch, Identity, Kind, Stored};
use super::ledger::{Ledger, Room};
use super::spool::{Place, Plan};
use super::suspects::Suspects;
use crate::delivery::losses::{Cause, Losses};
use crate::limits::{REFUSAL_PATIENCE, SPOOL_AFTER_MS};
use crate::record::manifest::{Row, Source};
use crate::time::Millis;

/// How much is kept, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of messages in memory. The last batch may exceed them by its own size.
    pub memory: usize,
    /// Bytes of the spool's files; 0 for no spool.
    pub spool: u64,
}

/// What has become of records, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records that were handed to a stream; those sent again count again.
    pub sent: u64,
    /// Bytes of their messages, gRPC prefixes included.
    pub sent_bytes: u64,
    /// Records that the server is known to have taken.
    pub confirmed: u64,
    /// Records that a broken stream left unconfirmed, so that they are sent again.
    pub again: u64,
    /// Records that the server had taken and may have lost, so that they are sent again.
    pub replayed: u64,
    /// Records on a stream that nothing keeps any more; they are lost if it breaks before the server has taken them.
    pub let_go: u64,
    /// Records that were written to the spool.
    pub spooled: u64,
    /// Operations on the spool that failed.
    pub spool_errors: u64,
}

/// Batches in the order in which they are to arrive.
///
/// ```text
///             ledger                          spool                       ledger
///   on their way (in memory or on disk) | on disk, not sent yet | in memory, not sent yet | <- new
/// ```
///
/// Batches that are only in memory go to the disk oldest first, which keeps the order. Urgent batches and heartbeats overtake everything
/// that was not sent.
#[derive(Debug)]
pub struct Outbox<M> {
    ledger: Ledger<M>,
    spool: DiskState,
    /// The operation that the shell is carrying out.
    pending: Option<Pending>,
    /// When the oldest write that is not synced was made. A loss of power would cost it.
    unsynced: Option<Millis>,
    /// The place that the last failed read was for. A second failure there means that it stays unreadable.
    unread: Option<Place>,
    stream: Stream,
    /// The agent ends: batches in memory go to the disk at once, and older ones are dropped for them if need be.
    is_ending: bool,
    /// The records that wait in the intake allow the oldest to be dropped for them.
    may_drop: bool,
    last_id: u64,
    /// Bytes of content that the server is thought to take.
    content_limit: u32,
    /// Batches close to that limit that the server took since, and how many it has to take before a larger one is tried.
    fitting: u32,
    patience: u32,
    /// The batch that the server called too large last, and how often in a row.
    too_large: Option<(Identity, u32)>,
    /// The single record that the server does not take.
    refused: Option<Identity>,
    suspects: Suspects,
    /// Where batches that are in memory now, set aside, lie on the disk. Reading passes over them there.
    detached: Vec<Place>,
    /// What the server has taken lately.
    recent: Recent<M>,
    /// Where batches lie on the disk that the server had taken once and that are read again.
    doubles: Vec<Place>,
    /// The server ended the stream in order, so that nothing is replayed.
    is_completed: bool,
    /// [`Outbox::handle_broken`] has looked at the end of the stream already.
    is_judged: bool,
    losses: Losses,
    counters: Counters,
}

/// What [`Outbox::poll_send`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing<M> {
    /// Hand this message to the stream, and tell [`Outbox::handle_written`] when its last byte has left.
    Send(M),
    /// Cut a batch that the server does not take as it is, and answer with [`Outbox::handle_cut`] before anything else.
    Cut {
        /// The batch.
        whole: Batch<M>,
        /// Bytes of content that each part should have at most.
        limit: usize,
    },
}

/// What [`Outbox::make_room`] has let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shed {
    /// Batches that the server had taken once.
    pub doubles: u64,
    /// Records that are on a stream, and are lost if it breaks before the server has taken them.
    pub let_go: u64,
    /// Records that are lost.
    pub lost: u64,
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Up,
    Down { since: Millis },
}

impl<M: Clone> Outbox<M> {
    /// Makes an empty outbox without a stream. It looks at the spool first.
    #[must_use]
    pub fn new(bounds: Bounds, now: Millis) -> Self {
        Self {
            ledger: Ledger::new(bounds.memory),
            spool: DiskState::new(bounds.spool, now),
            pending: None,
            unsynced: None,
            unread: None,
            stream: Stream::Down { since: now },
            is_ending: false,
            may_drop: false,
            last_id: 0,
            content_limit: u32::MAX,
            fitting: 0,
            patience: REFUSAL_PATIENCE,
            too_large: None,
            refused: None,
            suspects: Suspects::default(),
            detached: Vec::new(),
            recent: Recent::default(),
            doubles: Vec::new(),
            is_completed: false,
            is_judged: false,
            losses: Losses::default(),
            counters: Counters::default(),
        }
    }

    /// Adds a batch. Bulk queues behind all others, an urgent batch before all bulk that was not sent, a heartbeat before everything.
    pub fn push(&mut self, mut batch: Batch<M>) {
        self.last_id += 1;
        batch.id = self.last_id;
        match batch.kind() {
            Kind::Bulk => self.ledger.push(batch),
            Kind::Urgent => self.ledger.push_urgent(batch),
            Kind::Heartbeat => self.ledger.push_next(batch),
        }
    }

    /// Returns true while another batch may be added.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ledger.is_free()
    }

    /// Makes room for another batch, if something may be let go for it, and says what it let go. [`Outbox::has_room`] says afterwards
    /// whether there is room now; where there is none, waiting makes it, or writing to the disk.
    ///
    /// Batches that the server had taken once go first, because losing them is no loss. What the server has been sent goes next, when
    /// it has not confirmed it for a while and there is no disk to keep it on. Without a stream and without a disk, the oldest of all
    /// go, if `may_drop` allows that.
    pub fn make_room(&mut self, may_drop: bool, now: Millis) -> Shed {
        self.may_drop = may_drop;
        self.expire(now);
        let mut shed = Shed::default();
        loop {
            match (self.ledger.watch_room(now), self.stream) {
                (Room::Free, _) => break,
                _ if self.ledger.drop_double() => shed.doubles += 1,
                (Room::Overdue, Stream::Up) if !self.has_spool(now) => {
                    let Some(records) = self.ledger.let_go() else { break };
                    self.counters.let_go += records;
                    shed.let_go += records;
                }
                (_, Stream::Down { .. }) if !self.has_spool(now) && (may_drop || self.is_ending) => {
                    match self.ledger.pop_waiting() {
                        Some(batch) => {
                            shed.lost += batch.records();
                            self.lose(Cause::MemoryFull, batch.rows());
                        }
                        None => break,
                    }
                }
                _ => break,
            }
        }
        shed
    }

    /// Returns true when nothing can be added until something is dropped, or a stream is there.
    #[must_use]
    pub fn is_full(&self, now: Millis) -> bool {
        let is_down = matches!(self.stream, Stream::Down { .. });
        is_down && self.disk_is_full(now) && !self.has_room()
    }

    /// Returns true while an unsent batch is queued, in memory or on disk. New records then queue behind it, which keeps the order.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.ledger.waiting().is_some() || self.has_more_on_disk()
    }

    fn has_more_on_disk(&self) -> bool {
        !self.is_open() || self.plan().is_some_and(|plan| plan.backlog().is_some())
    }

    /// The next thing to do for the stream, which has room for a message. A message counts as handed over once it is returned here.
    ///
    /// Ask again after each of the two, and at [`Outbox::poll_timeout`].
    pub fn poll_send(&mut self, now: Millis) -> Option<Outgoing<M>> {
        self.prepare(now);
        let next = self.next()?;
        if let Some(limit) = self.cut_limit(next) {
            return Some(Outgoing::Cut { whole: next.clone(), limit });
        }
        self.gate(next).filter(|moment| *moment <= now)?;
        let message = next.message()?.clone();
        self.hand_over(now);
        Some(Outgoing::Send(message))
    }

    /// Returns the batch that the stream may have now.
    #[cfg(test)]
    pub(super) fn waiting(&self, now: Millis) -> Option<&Batch<M>> {
        self.next().filter(|next| self.gate(next).is_some_and(|moment| moment <= now))
    }

    /// Counts the next batch as handed to the stream.
    pub(super) fn hand_over(&mut self, now: Millis) {
        let Some(batch) = self.ledger.waiting() else { return };
        if batch.kind() != Kind::Heartbeat {
            self.suspects.handle_handed(batch.identity(), now);
        }
        self.counters.sent += batch.records();
        self.counters.sent_bytes += batch.bytes() as u64;
        self.ledger.handle_handed();
    }

    fn next(&self) -> Option<&Batch<M>> {
        let next = self.ledger.waiting()?;
        let overtakes = next.kind() != Kind::Bulk || next.stored.is_some();
        let is_moving = matches!(&self.pending, Some(Pending::Append { written, .. }) if written.iter().any(|(id, _)| *id == next.id));
        (!is_moving && (overtakes || !self.has_more_on_disk())).then_some(next)
    }

    /// There is a stream.
    pub fn handle_opened(&mut self, now: Millis) {
        self.stream = Stream::Up;
        self.suspects.handle_opened(now);
    }

    /// The stream has written the oldest batch that it was handed, whole.
    pub fn handle_written(&mut self, now: Millis) {
        if self.ledger.handle_written(now).is_none()
            && let Some(batch) = self.ledger.last_written()
        {
            self.suspects.handle_written(batch.identity(), now);
        }
    }

    /// The server has returned this much credit since the stream began.
    pub fn handle_credit(&mut self, credit: u64, now: Millis) {
        self.ledger.handle_credit(credit);
        self.settle(now);
    }

    /// A PING was sent. Whatever it was sent for, its answer confirms.
    pub fn handle_ping(&mut self, now: Millis) {
        self.ledger.handle_ping(now);
    }

    /// The PING was answered.
    pub fn handle_pong(&mut self, now: Millis) {
        self.ledger.handle_pong();
        self.settle(now);
    }

    /// The server finds PINGs too frequent.
    pub fn handle_too_many_pings(&mut self) {
        self.ledger.handle_too_many_pings();
    }

    /// The server has ended the stream in order after the agent had announced the end. It has taken everything.
    pub fn handle_completed(&mut self, now: Millis) {
        self.ledger.handle_completed();
        self.settle(now);
        self.expire_all();
        self.settle_rest();
        self.is_completed = true;
    }

    /// The stream, or the attempt at one, is over. Batches that are not confirmed go back to the front of the queue.
    pub fn handle_ended(&mut self, now: Millis) {
        if matches!(self.stream, Stream::Up) {
            self.stream = Stream::Down { since: now };
            if !core::mem::take(&mut self.is_judged) {
                self.suspects.handle_unrelated();
            }
        }
        self.counters.again += self.in_flight().map(Batch::records).sum::<u64>();
        let given_back = self.ledger.handle_ended();
        let replayed = if core::mem::take(&mut self.is_completed) { None } else { self.replay(now) };
        for batch in given_back.iter().filter(|batch| batch.is_gone() && !batch.is_double) {
            self.lose(Cause::Unconfirmed, batch.rows());
        }
        let on_disk = replayed.into_iter().chain(given_back.iter().filter_map(|batch| batch.stored));
        let first_on_disk = on_disk.min_by_key(|stored| stored.at);
        if let (Some(Stored { at, first_record, .. }), Some(plan)) = (first_on_disk, self.plan_mut()) {
            plan.rewind(at, first_record);
        }
        let oldest = self.plan().and_then(Plan::oldest).map_or(0, |place| place.segment);
        self.detached.retain(|place| place.segment >= oldest);
        self.doubles.retain(|place| place.segment >= oldest);
    }

    /// The agent ends. Everything that remains goes to the disk as soon as there is no stream.
    pub fn handle_ending(&mut self) {
        if !core::mem::replace(&mut self.is_ending, true) {
            self.retry_disk();
        }
    }

    /// Returns when to poll again although nothing has happened.
    #[must_use]
    pub fn poll_timeout(&self, now: Millis) -> Option<Millis> {
        let unspooled = match self.stream {
            Stream::Down { since } if self.ledger.only_in_memory().next().is_some() => Some(since + SPOOL_AFTER_MS),
            _ => None,
        };
        let gate = match self.stream {
            Stream::Up => self.next().and_then(|next| self.gate(next)),
            Stream::Down { .. } => None,
        };
        [self.disk_timeout(), self.replay_timeout(), unspooled, gate, self.ledger.poll_timeout()]
            .into_iter()
            .flatten()
            .filter(|moment| *moment > now)
            .min()
    }

    /// Returns true when the answer to a PING would confirm something that credit does not.
    #[must_use]
    pub fn wants_ping(&self, now: Millis) -> bool {
        self.ledger.wants_ping(now)
    }

    /// Returns the credit that would confirm enough to make room, while there is none.
    #[must_use]
    pub fn wanted_credit(&self) -> Option<u64> {
        self.ledger.wanted_credit()
    }

    /// Returns true once the stream has written everything, what lay on the disk included.
    #[must_use]
    pub fn is_written_out(&self) -> bool {
        let is_left = |batch: &Batch<M>| !self.is_ending || !self.suspects.is_suspect(batch.identity());
        let waits = self.ledger.all_waiting().any(is_left);
        !self.ledger.is_writing() && !waits && !self.has_more_on_disk()
    }

    /// Returns true when the agent's end would lose nothing, or when nothing can be done about it.
    #[must_use]
    pub fn is_safe(&self, now: Millis) -> bool {
        self.pending.is_none() && (!self.has_spool(now) || self.ledger.only_in_memory().next().is_none())
    }

    /// Returns what the server is not known to have taken, in memory and on disk.
    #[must_use]
    pub fn unconfirmed(&self) -> Unconfirmed {
        let kept = self.ledger.iter().filter(|batch| batch.kind() != Kind::Heartbeat && batch.stored.is_none());
        let plan = self.plan();
        Unconfirmed {
            memory_records: kept.map(Batch::records).sum(),
            batches: self.ledger.iter().count(),
            memory_bytes: self.ledger.memory(),
            disk_records: plan.map_or(0, Plan::records),
            disk_bytes: plan.map_or(0, Plan::bytes),
            disk_files: plan.map_or(0, Plan::segments),
        }
    }

    /// Returns what has become of records.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns what was lost.
    #[must_use]
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Returns what was lost, to be added to, and told.
    pub fn losses_mut(&mut self) -> &mut Losses {
        &mut self.losses
    }

    fn settle(&mut self, now: Millis) {
        while let (end, Some(batch)) = (self.ledger.oldest_end(), self.ledger.pop_confirmed()) {
            if !batch.is_double {
                self.counters.confirmed += batch.records();
            }
            self.suspects.handle_confirmed(batch.identity(), end <= self.ledger.credited());
            self.handle_fitting(batch.content_bytes());
            self.keep_confirmed(batch, end, now);
        }
        self.recent.handle_credit(self.ledger.credited(), now);
        self.expire(now);
        self.settle_rest();
    }

    /// Stops waiting for records that lie behind the last readable batch of a segment: nothing can confirm them any more.
    fn settle_rest(&mut self) {
        let is_known = self.plan().is_none_or(Plan::is_settled);
        if !is_known
            && !self.recent.is_on_disk()
            && self.ledger.iter().all(|batch| batch.stored.is_none())
            && let Some(plan) = self.plan_mut()
        {
            plan.handle_all_confirmed();
        }
    }

    fn lose(&mut self, cause: Cause, rows: &[Row]) {
        rows.iter().for_each(|row| self.losses.add(cause, *row));
    }

    fn lose_unknown(&mut self, cause: Cause, records: u64) {
        self.losses.add(cause, Row { source: Source::OTHER, data_type: 0, records, first: 0, last: 0 });
    }
}

/// What the server is not known to have taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Records that only memory keeps, or nothing does any more.
    pub memory_records: u64,
    /// Batches that are on their way or in memory.
    pub batches: usize,
    /// Bytes of messages in memory.
    pub memory_bytes: usize,
    /// Records that the spool keeps.
    pub disk_records: u64,
    /// Bytes of the spool's files.
    pub disk_bytes: u64,
    /// The spool's files.
    pub disk_files: usize,
}
