//! The outbox's side of the spool: which operation on the files comes next, and what its outcome means.
//!
//! One operation is under way at a time. A failed one is never repeated at once: the spool rests, and batches stay in memory meanwhile.

use alloc::boxed::Box;
use alloc::vec::Vec;

use elklet_proto::data_type::needs_fields;

use super::{Outbox, Stream};
use crate::delivery::batch::{Batch, Kind, Stored};
use crate::delivery::ledger::{Ledger, Room};
use crate::delivery::losses::Cause;
use crate::delivery::spool::{Done, Failed, Op, Place, Plan, Replay, Write};
use crate::limits::{SPOOL_AFTER_MS, SPOOL_RETRY_MS, SPOOL_SYNC_MS, SPOOL_WRITE_BYTES};
use crate::record::manifest::{Row, Source};
use crate::time::Millis;

#[derive(Debug)]
pub(super) enum DiskState {
    Off,
    /// Nobody has looked at the files yet. The first look is at `at`.
    Unopened {
        limit: u64,
        at: Millis,
        was_tried: bool,
    },
    Ready {
        limit: u64,
        plan: Plan,
        full_until: Option<Millis>,
    },
    /// An operation has failed. The files are tried again at `until`, with what is known of them.
    Resting {
        limit: u64,
        plan: Plan,
        until: Millis,
    },
}

#[derive(Debug)]
pub(super) enum Pending {
    Open,
    Append {
        place: Place,
        /// The batches that are being written, each by its id and its number of records.
        written: Vec<(u64, u64)>,
    },
    Read(Place),
    Drop,
    Delete,
    Mark,
    Sync,
}

impl DiskState {
    /// Starts with files of so many bytes that nobody has looked at; 0 means no spool.
    pub(super) fn new(bytes: u64, now: Millis) -> Self {
        match bytes {
            0 => Self::Off,
            limit => Self::Unopened { limit, at: now, was_tried: false },
        }
    }
}

impl<M: Clone> Outbox<M> {
    /// The spool may take another number of bytes from now on.
    pub fn set_spool_bytes(&mut self, bytes: u64) {
        match &mut self.spool {
            DiskState::Unopened { limit, .. } if bytes > 0 => *limit = bytes,
            DiskState::Ready { limit, plan, .. } | DiskState::Resting { limit, plan, .. } if bytes > 0 => {
                *limit = bytes;
                plan.set_limit(bytes);
            }
            _ => {}
        }
    }

    /// Returns what the shell should do with the spool's files now. Ask again when it is done, and at [`Outbox::poll_timeout`].
    pub fn poll_op(&mut self, now: Millis) -> Option<Op<M>> {
        if self.pending.is_some() {
            return None;
        }
        let (pending, op) = self.next_op(now)?;
        self.pending = Some(pending);
        Some(op)
    }

    fn next_op(&mut self, now: Millis) -> Option<(Pending, Op<M>)> {
        self.expire(now);
        self.settle_rest();
        self.wake_disk(now);
        let (plan, full_until, limit) = match &mut self.spool {
            DiskState::Unopened { at, .. } if *at <= now => return Some((Pending::Open, Op::Open)),
            DiskState::Ready { plan, full_until, limit } => (plan, full_until, *limit),
            _ => return None,
        };
        if plan.segments() == 0 {
            self.unsynced = None;
        }
        if self.unsynced.is_some_and(|since| since + SPOOL_SYNC_MS <= now) {
            return Some((Pending::Sync, Op::Sync));
        }
        if let Some(number) = plan.finished() {
            return Some((Pending::Delete, Op::Delete(number)));
        }
        if plan.kept_bytes() > limit
            && let Some(place) = plan.oldest()
        {
            return Some((Pending::Drop, Op::Drop(place)));
        }
        let is_up = matches!(self.stream, Stream::Up);
        let read = plan.backlog().filter(|_| is_up && self.ledger.may_send_more());
        if let (Some(place), None) =
            (read, self.ledger.waiting().filter(|batch| batch.stored.is_some() || batch.kind() != Kind::Bulk))
        {
            return Some((Pending::Read(place), Op::Read(place)));
        }
        let room = self.ledger.watch_room(now);
        let has_memory = room == Room::Free;
        let is_wanted = match self.stream {
            Stream::Down { since } => self.is_ending || now.since(since) >= SPOOL_AFTER_MS || !has_memory,
            Stream::Up => room == Room::Overdue,
        };
        if is_wanted {
            let stays = |batch: &Batch<M>| is_up && self.suspects.is_suspect(batch.identity());
            let (bytes, written, batches) = Self::next_writes(&self.ledger, is_up, stays, plan);
            let is_full = full_until.is_some_and(|until| now < until);
            if !is_full {
                *full_until = None;
            }
            let may_drop = !is_up && (self.is_ending || (self.may_drop && !has_memory));
            if batches.is_empty() {
                // Everything is there already.
            } else if !is_full && plan.has_room_for(bytes) {
                let place = plan.write_place();
                return Some((Pending::Append { place, written }, Op::Append { place, batches }));
            } else if may_drop && let Some(place) = plan.oldest() {
                *full_until = None;
                return Some((Pending::Drop, Op::Drop(place)));
            }
        }
        plan.unmarked().map(|place| (Pending::Mark, Op::Mark(place)))
    }

    /// Returns the batches that should be written next, with the bytes that they take on the disk, and each one's id and records.
    /// Leaves out those that `stays` returns true for. A suspect on the disk would be read at once, set aside and written again, without end.
    /// Leaves out, too, what was sent before others that lie on the disk: its confirmation would count for them, and their files would
    /// be deleted.
    fn next_writes(
        ledger: &Ledger<M>,
        is_up: bool,
        stays: impl Fn(&Batch<M>) -> bool,
        plan: &Plan,
    ) -> (usize, Vec<(u64, u64)>, Vec<Write<M>>) {
        let (mut bytes, mut written, mut batches) = (0, Vec::new(), Vec::new());
        let mut first_record = plan.next_record();
        let has_unsent = plan.backlog().is_some();
        for (batch, is_sent) in ledger.only_in_memory() {
            let overtakes = is_up && is_sent && (has_unsent || batch.kind() == Kind::Urgent);
            let Some(message) = batch.message().filter(|_| !overtakes && !stays(batch)) else { continue };
            if bytes > 0 && bytes + batch.stored_bytes() > SPOOL_WRITE_BYTES {
                break;
            }
            bytes += batch.stored_bytes();
            written.push((batch.id, batch.records()));
            let rows: Box<[Row]> = batch.rows().into();
            batches.push(Write { message: message.clone(), content_bytes: batch.content_bytes(), first_record, rows });
            first_record += batch.records();
        }
        (bytes, written, batches)
    }

    /// The operation of [`Outbox::poll_op`] is over.
    pub fn handle_done(&mut self, done: Done<M>, now: Millis) {
        let Some(pending) = self.pending.take() else { return };
        match (pending, done) {
            (Pending::Open, Done::Opened(found)) => {
                if let DiskState::Unopened { limit, .. } = self.spool {
                    self.spool = DiskState::Ready { limit, plan: Plan::new(limit, found), full_until: None };
                }
            }
            (Pending::Append { place, written }, Done::Appended(ends)) => {
                self.unsynced.get_or_insert(now);
                self.handle_appended(place, &written, &ends);
            }
            (Pending::Sync, Done::Synced) => self.unsynced = None,
            (Pending::Read(place), Done::Read(None)) => self.handle_unreadable(place),
            (Pending::Read(place), Done::Read(Some(replay))) => self.handle_read(place, replay),
            (Pending::Drop, Done::Dropped(rows)) => self.handle_dropped(&rows),
            (Pending::Delete, Done::Deleted) => self.handle_dropped(&[]),
            (Pending::Mark, Done::Marked) => {
                if let Some(plan) = self.plan_mut() {
                    plan.handle_marked();
                }
            }
            (pending, Done::Failed(failed)) => self.handle_failed(&pending, failed, now),
            (pending, _) => self.handle_failed(&pending, Failed::Broken, now),
        }
    }

    fn handle_appended(&mut self, place: Place, written: &[(u64, u64)], ends: &[u64]) {
        let Self { spool: DiskState::Ready { plan, .. }, ledger, counters, detached, .. } = self else { return };
        let mut at = place;
        for (&(id, records), &offset) in written.iter().zip(ends) {
            detached.retain(|place| *place != at);
            let (end, first_record) = (Place { offset, ..at }, plan.next_record());
            plan.handle_written(at, offset, records);
            counters.spooled += records;
            let (mut is_known, mut is_sent) = (false, false);
            ledger.change(|batch, is_handed| {
                if batch.id == id {
                    (is_known, is_sent) = (true, is_handed);
                    batch.message = None;
                    batch.stored = Some(Stored { at, end, first_record });
                }
            });
            // Do not send from the disk what was sent meanwhile, nor what the server has taken already.
            if (is_sent || !is_known) && plan.backlog() == Some(at) {
                plan.handle_sent(end, first_record, records);
            }
            // What went out of memory meanwhile, because the server has it, is not to be sent from here. What lies before it may
            // still have to be.
            if !is_known && plan.is_settled_up_to(at) {
                plan.handle_confirmed(end, records);
            } else if !is_known {
                plan.forget(records);
                detached.push(at);
            }
            at = end;
        }
    }

    fn handle_read(&mut self, place: Place, replay: Replay<M>) {
        self.unread = None;
        let has_memory = self.ledger.is_free();
        let Replay { message, bytes, fingerprint, content_bytes, begin, end, first_record, rows } = replay;
        let is_up = matches!(self.stream, Stream::Up);
        let Some(plan) = self.plan_mut().filter(|plan| is_up && plan.backlog() == Some(place)) else { return };
        let [at, end] = [begin, end].map(|offset| Place { offset, ..place });
        let may_be_refused = |row: &Row| row.source != Source::AGENT && needs_fields(row.data_type);
        let mut batch = Batch::new(Kind::Bulk, message, bytes, content_bytes, rows).with_fingerprint(fingerprint);
        batch.is_unchecked = batch.rows().iter().any(may_be_refused);
        let missing = plan.handle_sent(end, first_record, batch.records());
        if let Some(known) = self.doubles.iter().position(|double| *double == at) {
            self.doubles.swap_remove(known);
            batch.is_double = true;
        }
        self.last_id += 1;
        batch.id = self.last_id;
        if self.detached.contains(&at) {
            self.settle_rest();
        } else if has_memory && self.suspects.is_suspect(batch.identity()) {
            // Others on the disk go before it, so it must not keep their files.
            batch.stored = Some(Stored { at, end, first_record });
            self.detach(&mut batch);
            self.ledger.push(batch);
            self.settle_rest();
        } else {
            batch.stored = Some(Stored { at, end, first_record });
            self.ledger.push_urgent(batch);
        }
        self.lose_unknown(Cause::SpoolDamaged, missing);
    }

    /// Takes a batch's place on the disk from it. Others go before the batch, and once they are confirmed nothing keeps that place.
    pub(super) fn detach(&mut self, batch: &mut Batch<M>) {
        let Some(stored) = batch.stored.take_if(|_| batch.message.is_some()) else { return };
        // The other parts of a cut batch are still read there.
        if !batch.is_part {
            self.detached.push(stored.at);
        }
        if let Some(plan) = self.plan_mut() {
            plan.forget(batch.records());
        }
    }

    fn handle_unreadable(&mut self, place: Place) {
        let missing = self.plan_mut().map_or(0, |plan| plan.handle_unreadable(place));
        self.lose_unknown(Cause::SpoolDamaged, missing);
        self.settle_rest();
    }

    fn handle_dropped(&mut self, rows: &[Row]) {
        let Self { spool: DiskState::Ready { plan, .. }, ledger, .. } = self else { return };
        let Some(oldest) = plan.oldest() else { return };
        let unsent = plan.handle_dropped();
        ledger.change(|batch, _| {
            if batch.stored.is_some_and(|stored| stored.at.segment == oldest.segment) {
                batch.stored = None;
                plan.forget(batch.records());
            }
        });
        let known: u64 = rows.iter().map(|row| row.records).sum();
        self.lose(Cause::SpoolFull, rows);
        self.lose_unknown(Cause::SpoolDamaged, unsent.saturating_sub(known));
    }

    fn handle_failed(&mut self, pending: &Pending, failed: Failed, now: Millis) {
        self.counters.spool_errors += 1;
        if failed != Failed::Vanished && self.goes_on_without(pending) {
            return;
        }
        let later = now + SPOOL_RETRY_MS;
        let spool = core::mem::replace(&mut self.spool, DiskState::Off);
        self.spool = match (spool, pending, failed) {
            (DiskState::Unopened { limit, .. }, _, _) => DiskState::Unopened { limit, at: later, was_tried: true },
            (DiskState::Ready { limit, plan, .. }, Pending::Append { .. }, Failed::Full) => {
                DiskState::Ready { limit, plan, full_until: Some(later) }
            }
            (DiskState::Ready { limit, plan, .. }, _, Failed::Full | Failed::Broken) => {
                DiskState::Resting { limit, plan, until: later }
            }
            (DiskState::Ready { limit, plan, .. }, _, Failed::Vanished) => {
                let mut on_their_way = 0;
                self.ledger.change(|batch, _| {
                    if batch.stored.take().is_some() {
                        on_their_way += batch.records();
                    }
                });
                self.lose_unknown(Cause::SpoolDamaged, plan.records().saturating_sub(on_their_way));
                self.unread = None;
                self.detached.clear();
                self.recent.clear();
                self.doubles.clear();
                self.unsynced = None;
                DiskState::Unopened { limit, at: now, was_tried: true }
            }
            (other, _, _) => other,
        };
    }

    /// Returns true when the spool gives up on the failed operation and goes on without it. One file must not hold up what lies behind it.
    fn goes_on_without(&mut self, pending: &Pending) -> bool {
        let DiskState::Ready { limit, plan, .. } = &mut self.spool else { return false };
        match pending {
            // Without the mark, a crash sends some batches twice.
            Pending::Mark => plan.handle_marked(),
            // Only a loss of power costs what the disk has not taken by now.
            Pending::Sync => self.unsynced = None,
            // The file keeps its room, and a restart sends it twice.
            Pending::Delete => {
                plan.handle_left();
                self.handle_dropped(&[]);
            }
            Pending::Drop if plan.kept_bytes() > *limit => {
                plan.handle_left();
                self.handle_dropped(&[]);
            }
            Pending::Read(place) if self.unread.replace(*place) == Some(*place) => self.handle_unreadable(*place),
            Pending::Open | Pending::Append { .. } | Pending::Read(_) | Pending::Drop => return false,
        }
        true
    }

    /// Tries a disk that has failed at once: this agent has no later, and the disk may be good again.
    pub(super) fn retry_disk(&mut self) {
        match &mut self.spool {
            DiskState::Unopened { at, was_tried, .. } => (*at, *was_tried) = (Millis(0), false),
            DiskState::Ready { full_until, .. } => *full_until = None,
            DiskState::Off | DiskState::Resting { .. } => self.wake_disk(Millis(u64::MAX)),
        }
    }

    /// Ends the disk's rest, if it is over.
    fn wake_disk(&mut self, now: Millis) {
        let spool = core::mem::replace(&mut self.spool, DiskState::Off);
        self.spool = match spool {
            DiskState::Resting { limit, plan, until } if until <= now => {
                DiskState::Ready { limit, plan, full_until: None }
            }
            other => other,
        };
    }

    pub(super) fn plan(&self) -> Option<&Plan> {
        match &self.spool {
            DiskState::Ready { plan, .. } | DiskState::Resting { plan, .. } => Some(plan),
            DiskState::Off | DiskState::Unopened { .. } => None,
        }
    }

    pub(super) fn plan_mut(&mut self) -> Option<&mut Plan> {
        match &mut self.spool {
            DiskState::Ready { plan, .. } | DiskState::Resting { plan, .. } => Some(plan),
            DiskState::Off | DiskState::Unopened { .. } => None,
        }
    }

    /// Returns true once it is known what the disk holds, or hopeless to wait for that.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.spool, DiskState::Unopened { was_tried: false, .. })
    }

    /// Returns true while there is a spool that takes or holds anything.
    pub(super) fn has_spool(&self, now: Millis) -> bool {
        match &self.spool {
            DiskState::Off | DiskState::Resting { .. } => false,
            DiskState::Unopened { was_tried, .. } => !was_tried,
            DiskState::Ready { plan, full_until, .. } => {
                plan.segments() > 0 || (!plan.is_used_up() && full_until.is_none_or(|until| until <= now))
            }
        }
    }

    /// Returns true when nothing can be written until something is dropped.
    pub(super) fn disk_is_full(&self, now: Millis) -> bool {
        match &self.spool {
            DiskState::Off | DiskState::Resting { .. } => true,
            DiskState::Unopened { .. } => false,
            DiskState::Ready { plan, full_until, .. } => {
                !plan.has_room_for(SPOOL_WRITE_BYTES) || full_until.is_some_and(|until| now < until)
            }
        }
    }

    /// Returns when the files may need something although nothing has happened.
    pub(super) fn disk_timeout(&self) -> Option<Millis> {
        match (&self.spool, &self.pending) {
            (DiskState::Unopened { at, .. }, None) => Some(*at),
            (DiskState::Resting { until, .. }, None) => Some(*until),
            (DiskState::Ready { full_until, .. }, None) => {
                let sync = self.unsynced.map(|since| since + SPOOL_SYNC_MS);
                full_until.iter().copied().chain(sync).min()
            }
            (_, Some(_)) | (DiskState::Off, _) => None,
        }
    }
}
