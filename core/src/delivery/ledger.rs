//! The ledger of batches that are not known to have arrived.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::batch::{Batch, Kind};
use crate::limits::{
    CONFIRM_GRACE_MS, LEDGER_WAIT_MS, MAX_PING_INTERVAL_MS, MAX_UNCONFIRMED_BATCHES, PING_INTERVAL_MS,
};
use crate::time::Millis;

/// The batches of a stream in sending order: first those that the stream has written whole, then those that it is
/// writing, then those that wait.
///
/// ```text
///   confirmed (gone) | written | handed over, not yet written whole | waiting | <- new batches
/// ```
#[derive(Debug)]
pub(super) struct Ledger<M> {
    entries: VecDeque<Entry<M>>,
    /// Number of entries at the front that the stream has written whole.
    written: usize,
    /// Number of entries at the front that the stream was handed.
    handed: usize,
    /// Bytes of memory that the messages of all entries take.
    memory: usize,
    budget: usize,
    full: Option<FullFor>,
    stream: StreamAccount,
    pings: Pings,
}

#[derive(Debug)]
struct Entry<M> {
    batch: Batch<M>,
    /// Offset in the stream at which its message ends. It is set when the batch is handed over.
    end: u64,
    /// When its last byte left. It is set when the batch is written.
    left_at: Millis,
}

impl<M> Entry<M> {
    fn waiting(batch: Batch<M>) -> Self {
        Self { batch, end: 0, left_at: Millis(0) }
    }
}

/// Counters of one stream, in bytes from its start.
#[derive(Debug, Clone, Copy, Default)]
struct StreamAccount {
    /// Bytes handed to it.
    handed: u64,
    /// Length of the largest message among these.
    largest: u64,
    /// Bytes that the server is known to have taken.
    taken: u64,
    /// Bytes of these that its credit proves. PINGs prove the others.
    credited: u64,
}

/// How long the ledger has been full.
#[derive(Debug, Clone, Copy)]
struct FullFor {
    since: Millis,
    /// True once [`Ledger::watch_room`] has answered [`Room::Overdue`].
    is_overdue: bool,
}

#[derive(Debug, Clone, Copy)]
struct Pings {
    interval_ms: u64,
    last: Option<Millis>,
    /// When the unanswered PING was sent.
    pending: Option<Millis>,
}

impl<M> Ledger<M> {
    /// An empty ledger that keeps about `budget` bytes of messages in memory.
    #[must_use]
    pub(super) fn new(budget: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            written: 0,
            handed: 0,
            memory: 0,
            budget,
            full: None,
            stream: StreamAccount::default(),
            pings: Pings { interval_ms: PING_INTERVAL_MS, last: None, pending: None },
        }
    }

    /// Adds a batch after all others.
    pub(super) fn push(&mut self, batch: Batch<M>) {
        self.memory += batch.memory();
        self.entries.push_back(Entry::waiting(batch));
    }

    /// Adds a batch before all waiting ones.
    pub(super) fn push_next(&mut self, batch: Batch<M>) {
        self.insert(self.handed, batch);
    }

    /// Adds a batch after the urgent ones and before the waiting bulk.
    pub(super) fn push_urgent(&mut self, batch: Batch<M>) {
        let urgent = self.entries.iter().skip(self.handed).take_while(|entry| entry.batch.kind() != Kind::Bulk);
        self.insert(self.handed + urgent.count(), batch);
    }

    /// The batch to hand to the stream next, if one waits.
    #[must_use]
    pub(super) fn waiting(&self) -> Option<&Batch<M>> {
        self.entries.get(self.handed).map(|entry| &entry.batch)
    }

    /// All waiting batches, the next one first.
    pub(super) fn all_waiting(&self) -> impl Iterator<Item = &Batch<M>> {
        self.iter().skip(self.handed)
    }

    /// The next batch was handed to the stream. If it lies in the spool, it needs no memory any more.
    pub(super) fn handle_handed(&mut self) {
        if let Some(Entry { batch, end, .. }) = self.entries.get_mut(self.handed) {
            let bytes = batch.bytes() as u64;
            self.stream.handed += bytes;
            self.stream.largest = self.stream.largest.max(bytes);
            *end = self.stream.handed;
            self.handed += 1;
            if batch.stored.is_some() {
                self.memory -= batch.memory();
                batch.message = None;
            }
        }
    }

    /// The stream has written the oldest batch that it was handed. Returns that batch if it is a heartbeat, because
    /// nobody keeps those.
    pub(super) fn handle_written(&mut self, now: Millis) -> Option<Batch<M>> {
        if self.written == self.handed {
            return None;
        }
        if self.entries.get(self.written).is_some_and(|entry| entry.batch.kind() == Kind::Heartbeat) {
            self.handed -= 1;
            return self.remove(self.written);
        }
        if let Some(entry) = self.entries.get_mut(self.written) {
            entry.left_at = now;
            self.written += 1;
        }
        None
    }

    /// The batch of records that the stream wrote last, unless it is gone from here.
    pub(super) fn last_written(&self) -> Option<&Batch<M>> {
        Some(&self.entries.get(self.written.checked_sub(1)?)?.batch)
    }

    /// The server has returned this much credit since the stream began. Call [`Ledger::pop_confirmed`] afterwards.
    pub(super) fn handle_credit(&mut self, credit: u64) {
        // The server may have granted one message's length ahead, and is still reading the message in which the credit ends.
        let taken = credit.saturating_sub(self.stream.largest + 1);
        self.stream.credited = self.stream.credited.max(taken);
        self.stream.taken = self.stream.taken.max(taken);
    }

    /// Offset in the stream at which the message of the oldest batch ends, if the stream was handed it.
    #[must_use]
    pub(super) fn oldest_end(&self) -> u64 {
        self.entries.front().map_or(0, |oldest| oldest.end)
    }

    /// Bytes of the stream that the server's application is known to have read, because it has given their credit back.
    #[must_use]
    pub(super) fn credited(&self) -> u64 {
        self.stream.credited
    }

    /// A PING was sent for any reason.
    pub(super) fn handle_ping(&mut self, now: Millis) {
        self.pings.last = Some(now);
        self.pings.pending = Some(now);
    }

    /// The PING was answered, so the server has taken what had left some time before it. Call [`Ledger::pop_confirmed`]
    /// afterwards.
    pub(super) fn handle_pong(&mut self) {
        if let Some(sent) = self.pings.pending.take() {
            let written = self.entries.iter().take(self.written);
            let arrived = written.take_while(|entry| entry.left_at + CONFIRM_GRACE_MS <= sent).last();
            self.stream.taken = self.stream.taken.max(arrived.map_or(0, |entry| entry.end));
        }
    }

    /// The server finds PINGs too frequent. Doubles the interval.
    pub(super) fn handle_too_many_pings(&mut self) {
        self.pings.interval_ms = (self.pings.interval_ms * 2).min(MAX_PING_INTERVAL_MS);
    }

    /// The server has ended the stream in order after the agent had half-closed it, so it has taken everything.
    pub(super) fn handle_completed(&mut self) {
        self.stream.taken = self.stream.handed;
    }

    /// The stream is over. Batches that are only in memory wait for the next stream, in their old order. Returns all
    /// others, heartbeats included, oldest first.
    pub(super) fn handle_ended(&mut self) -> Vec<Batch<M>> {
        let (kept, given_back): (Vec<_>, Vec<_>) =
            self.entries.drain(..).partition(|entry| entry.batch.is_only_in_memory());
        self.entries = kept.into();
        self.memory = self.iter().map(Batch::memory).sum();
        self.written = 0;
        self.handed = 0;
        self.full = None;
        self.stream = StreamAccount::default();
        self.pings.pending = None;
        given_back.into_iter().map(|entry| entry.batch).collect()
    }

    /// Takes out the oldest batch if it is confirmed. Call this after each `handle_*` method until it returns `None`.
    pub(super) fn pop_confirmed(&mut self) -> Option<Batch<M>> {
        let oldest = self.entries.front()?;
        if self.written == 0 || oldest.end > self.stream.taken {
            return None;
        }
        self.written -= 1;
        self.handed -= 1;
        self.full = None;
        self.remove(0)
    }

    /// Returns true while another batch may be added.
    pub(super) fn is_free(&self) -> bool {
        self.has_memory() && self.entries.len() < MAX_UNCONFIRMED_BATCHES
    }

    fn has_memory(&self) -> bool {
        // Reserve room, because the next batch may be as large as the largest so far.
        let next = usize::try_from(self.stream.largest).unwrap_or(usize::MAX).min(self.budget / 8);
        self.memory + next < self.budget
    }

    /// Looks whether another batch may be added, and remembers since when none may.
    pub(super) fn watch_room(&mut self, now: Millis) -> Room {
        if self.is_free() {
            self.full = None;
            return Room::Free;
        }
        let full = self.full.get_or_insert(FullFor { since: now, is_overdue: false });
        full.is_overdue = now.since(full.since) >= LEDGER_WAIT_MS;
        if full.is_overdue { Room::Overdue } else { Room::None }
    }

    /// Frees the message of the oldest written batch that is in memory only, while memory is short. The batch is lost if the stream
    /// ends before the server has taken it. Returns the number of its records.
    ///
    /// When batches are too many instead, that would risk records and make no room: the batch stays in flight without its message.
    pub(super) fn let_go(&mut self) -> Option<u64> {
        if self.has_memory() {
            return None;
        }
        let written = self.entries.iter_mut().take(self.written);
        let Entry { batch, .. } = written.into_iter().find(|entry| entry.batch.is_only_in_memory())?;
        self.memory -= batch.memory();
        batch.message = None;
        Some(batch.records())
    }

    /// Takes out the oldest waiting batch that the server had taken once. Returns true when there was one.
    pub(super) fn drop_double(&mut self) -> bool {
        let is_double = |entry: &Entry<M>| entry.batch.is_double && entry.batch.is_only_in_memory();
        let waiting = self.entries.iter().skip(self.handed).position(is_double);
        waiting.and_then(|at| self.remove(self.handed + at)).is_some()
    }

    /// Takes out one of the batches that wait, by its place among them.
    pub(super) fn take_waiting(&mut self, at: usize) -> Option<Batch<M>> {
        self.remove(self.handed + at)
    }

    /// Takes out the batch to hand to the stream next.
    pub(super) fn pop_next(&mut self) -> Option<Batch<M>> {
        self.remove(self.handed)
    }

    /// Takes out the oldest waiting batch that is in memory only.
    pub(super) fn pop_waiting(&mut self) -> Option<Batch<M>> {
        let waiting = self.entries.iter().skip(self.handed).position(|entry| entry.batch.is_only_in_memory())?;
        self.remove(self.handed + waiting)
    }

    /// The batches that are in memory only, oldest first, each with true if the stream was handed it.
    pub(super) fn only_in_memory(&self) -> impl Iterator<Item = (&Batch<M>, bool)> {
        let entries = self.entries.iter().enumerate();
        entries.filter(|(_, entry)| entry.batch.is_only_in_memory()).map(|(at, entry)| (&entry.batch, at < self.handed))
    }

    /// Changes batches. `change` is told whether the stream was handed each. Afterwards the ledger drops waiting
    /// batches that have no message.
    pub(super) fn change(&mut self, mut change: impl FnMut(&mut Batch<M>, bool)) {
        let handed = self.handed;
        self.entries.iter_mut().enumerate().for_each(|(at, entry)| change(&mut entry.batch, at < handed));
        let mut at = 0;
        self.entries.retain(|entry| {
            at += 1;
            at <= self.handed || entry.batch.message.is_some()
        });
        self.memory = self.iter().map(Batch::memory).sum();
    }

    /// While the ledger is full, the credit at which [`Ledger::pop_confirmed`] would return the oldest batch.
    #[must_use]
    pub(super) fn wanted_credit(&self) -> Option<u64> {
        self.full?;
        self.entries.front().filter(|_| self.written > 0).map(|entry| entry.end + self.stream.largest + 1)
    }

    /// Returns true when it is time to send a PING: something was written a while ago, and credit has not confirmed it.
    #[must_use]
    pub(super) fn wants_ping(&self, now: Millis) -> bool {
        self.ping_due().is_some_and(|due| due <= now)
    }

    /// When to call [`Ledger::watch_room`] and [`Ledger::wants_ping`] again even if nothing happens.
    #[must_use]
    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        let full = self.full.filter(|full| !full.is_overdue).map(|full| full.since + LEDGER_WAIT_MS);
        self.ping_due().into_iter().chain(full).min()
    }

    /// All batches, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Batch<M>> {
        self.entries.iter().map(|entry| &entry.batch)
    }

    /// The batches that were handed to the stream, oldest first.
    pub(super) fn handed(&self) -> impl Iterator<Item = &Batch<M>> {
        self.iter().take(self.handed)
    }

    /// Returns true while the stream has not written everything that it was handed.
    #[must_use]
    pub(super) fn is_writing(&self) -> bool {
        self.written < self.handed
    }

    /// Returns true when the stream may be handed more from the disk.
    #[must_use]
    pub(super) fn may_send_more(&self) -> bool {
        self.handed < MAX_UNCONFIRMED_BATCHES
    }

    /// Budget for messages in memory, in bytes. It is not exact.
    #[must_use]
    pub(super) fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes of memory that messages take.
    #[must_use]
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    fn ping_due(&self) -> Option<Millis> {
        if self.written == 0 || self.pings.pending.is_some() {
            return None;
        }
        let oldest = self.entries.front()?.left_at + CONFIRM_GRACE_MS;
        Some(self.pings.last.map_or(oldest, |last| oldest.max(last + self.pings.interval_ms)))
    }

    fn insert(&mut self, at: usize, batch: Batch<M>) {
        self.memory += batch.memory();
        self.entries.insert(at, Entry::waiting(batch));
    }

    fn remove(&mut self, at: usize) -> Option<Batch<M>> {
        let entry = self.entries.remove(at)?;
        self.memory -= entry.batch.memory();
        Some(entry.batch)
    }
}

/// Says whether a [`Ledger`] takes another batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It does.
    Free,
    /// It is full and waits for confirmations.
    None,
    /// It has been full for too long.
    Overdue,
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::delivery::batch::Stored;
    use crate::delivery::spool::Place;
    use crate::delivery::tests::batch;

    /// Hands a batch to the stream, which writes it at `now`.
    fn sent(ledger: &mut Ledger<u32>, batch: Batch<u32>, now: Millis) {
        ledger.push(batch);
        ledger.handle_handed();
        assert_eq!(ledger.handle_written(now), None);
    }

    fn bulk(id: u32, bytes: usize) -> Batch<u32> {
        batch(Kind::Bulk, id, bytes)
    }

    #[test]
    fn credit_confirms_a_batch_when_it_reaches_beyond_it_less_the_largest() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, bulk(1, 100), Millis(0));
        sent(&mut ledger, bulk(2, 300), Millis(0));
        sent(&mut ledger, bulk(3, 50), Millis(0));
        ledger.handle_credit(400);
        assert_eq!(ledger.pop_confirmed(), None);
        ledger.handle_credit(401);
        assert_eq!((ledger.pop_confirmed(), ledger.pop_confirmed()), (Some(bulk(1, 100)), None));
    }

    #[test]
    fn a_ping_confirms_what_left_two_seconds_before_it() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, bulk(1, 100), Millis(1_000));
        sent(&mut ledger, bulk(2, 100), Millis(2_500));
        assert_eq!(ledger.poll_timeout(), Some(Millis(3_000)));
        assert!(ledger.wants_ping(Millis(3_000)));
        ledger.handle_ping(Millis(3_000));
        assert!(!ledger.wants_ping(Millis(60_000)), "one at a time");
        ledger.handle_pong();
        assert_eq!((ledger.pop_confirmed(), ledger.pop_confirmed()), (Some(bulk(1, 100)), None));
        assert_eq!(ledger.poll_timeout(), Some(Millis(3_000 + PING_INTERVAL_MS)), "never closer than that");
        ledger.handle_too_many_pings();
        assert_eq!(ledger.poll_timeout(), Some(Millis(3_000 + 2 * PING_INTERVAL_MS)));
    }

    #[test]
    fn a_full_ledger_waits_and_then_may_let_the_oldest_go() {
        let mut ledger = Ledger::new(150);
        sent(&mut ledger, bulk(1, 100), Millis(0));
        assert_eq!(ledger.watch_room(Millis(0)), Room::Free);
        sent(&mut ledger, bulk(2, 100), Millis(0));
        assert_eq!(ledger.watch_room(Millis(10)), Room::None);
        assert_eq!(ledger.wanted_credit(), Some(201));
        assert_eq!(ledger.poll_timeout(), Some(Millis(10 + LEDGER_WAIT_MS)));
        assert_eq!(ledger.watch_room(Millis(10 + LEDGER_WAIT_MS)), Room::Overdue);
        assert_eq!(ledger.let_go(), Some(1));
        assert_eq!(ledger.watch_room(Millis(10 + LEDGER_WAIT_MS)), Room::Free);
        ledger.handle_credit(201);
        assert_eq!(ledger.pop_confirmed().map(|batch| (batch.bytes(), batch.is_gone())), Some((100, true)));
    }

    #[test]
    fn heartbeats_are_neither_kept_nor_pinged_for() {
        let mut ledger = Ledger::new(150);
        let heartbeat = batch(Kind::Heartbeat, 1, 100);
        ledger.push(bulk(2, 100));
        ledger.push_next(heartbeat.clone());
        assert_eq!(ledger.waiting(), Some(&heartbeat));
        ledger.handle_handed();
        assert_eq!(ledger.handle_written(Millis(0)), Some(heartbeat));
        assert_eq!((ledger.waiting(), ledger.poll_timeout()), (Some(&bulk(2, 100)), None));
    }

    fn stored(mut batch: Batch<u32>) -> Batch<u32> {
        let at = Place { segment: 1, offset: 24 };
        batch.stored = Some(Stored { at, end: Place { offset: 100, ..at }, first_record: 0 });
        batch
    }

    fn double(id: u32) -> Batch<u32> {
        let mut batch = bulk(id, 100);
        batch.is_double = true;
        batch
    }

    fn messages(ledger: &Ledger<u32>) -> Vec<u32> {
        ledger.iter().filter_map(|batch| batch.message().copied()).collect()
    }

    #[test]
    fn urgent_batches_pass_the_waiting_bulk_and_keep_their_order() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, bulk(1, 10), Millis(0));
        ledger.push(bulk(2, 10));
        ledger.push_urgent(batch(Kind::Urgent, 3, 10));
        ledger.push_urgent(batch(Kind::Urgent, 4, 10));
        ledger.push_next(batch(Kind::Heartbeat, 5, 10));
        assert_eq!(messages(&ledger), [1, 5, 3, 4, 2]);
        let waiting: Vec<_> = ledger.all_waiting().filter_map(|batch| batch.message().copied()).collect();
        assert_eq!(waiting, [5, 3, 4, 2]);
        let handed: Vec<_> = ledger.handed().filter_map(|batch| batch.message().copied()).collect();
        assert_eq!(handed, [1]);
    }

    #[test]
    fn the_budget_leaves_room_for_one_more_like_the_largest() {
        let with = |waiting: usize, largest: usize| {
            let mut ledger = Ledger::new(800);
            sent(&mut ledger, stored(bulk(1, largest)), Millis(0));
            ledger.push(bulk(2, waiting));
            assert_eq!(ledger.memory(), waiting, "what lies in the spool takes none once it is handed over");
            ledger.is_free()
        };
        assert!(with(749, 50) && !with(750, 50));
        assert!(with(699, 100) && !with(700, 100));
        assert!(with(699, 500) && !with(700, 500), "an eighth of the budget is enough");
        assert_eq!(Ledger::<u32>::new(800).budget(), 800);
    }

    #[test]
    fn batches_are_bounded_in_number_too() {
        let mut ledger = Ledger::new(usize::MAX);
        for id in 0..MAX_UNCONFIRMED_BATCHES {
            assert!(ledger.is_free() && ledger.may_send_more(), "{id}");
            sent(&mut ledger, bulk(u32::try_from(id).expect("few"), 1), Millis(0));
        }
        assert!(!ledger.is_free() && !ledger.may_send_more());
    }

    #[test]
    fn what_is_not_written_whole_is_not_confirmed() {
        let mut ledger = Ledger::new(10_000);
        ledger.push(bulk(1, 100));
        assert_eq!(ledger.handle_written(Millis(0)), None, "the stream has nothing to write");
        assert!(!ledger.is_writing());
        ledger.handle_handed();
        assert!(ledger.is_writing());
        ledger.handle_credit(1_000);
        assert_eq!(ledger.pop_confirmed(), None);
        assert_eq!(ledger.handle_written(Millis(0)), None);
        assert!(!ledger.is_writing());
        assert_eq!((ledger.pop_confirmed(), ledger.memory()), (Some(bulk(1, 100)), 0));
        ledger.handle_handed();
        assert!(!ledger.is_writing(), "none waits");
    }

    #[test]
    fn a_ping_proves_what_left_exactly_the_grace_before_it() {
        for (sent_at, is_confirmed) in [(CONFIRM_GRACE_MS + 99, false), (CONFIRM_GRACE_MS + 100, true)] {
            let mut ledger = Ledger::new(10_000);
            sent(&mut ledger, bulk(1, 100), Millis(100));
            ledger.handle_ping(Millis(sent_at));
            assert_eq!(ledger.poll_timeout(), None, "the answer is awaited");
            ledger.handle_pong();
            assert_eq!(ledger.pop_confirmed().is_some(), is_confirmed);
            ledger.handle_pong();
            assert_eq!(ledger.pop_confirmed(), None, "another answer proves nothing");
        }
    }

    #[test]
    fn what_a_ping_has_proved_is_not_taken_back_by_credit() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, bulk(1, 100), Millis(0));
        sent(&mut ledger, bulk(2, 100), Millis(0));
        ledger.handle_ping(Millis(CONFIRM_GRACE_MS));
        ledger.handle_pong();
        ledger.handle_credit(1);
        assert_eq!([ledger.pop_confirmed(), ledger.pop_confirmed()].map(|batch| batch.is_some()), [true, true]);
        assert_eq!(ledger.poll_timeout(), None);
    }

    #[test]
    fn pings_become_rarer_up_to_a_bound() {
        let mut ledger = Ledger::new(10_000);
        (0..100).for_each(|_| ledger.handle_too_many_pings());
        ledger.handle_ping(Millis(0));
        ledger.handle_pong();
        sent(&mut ledger, bulk(1, 100), Millis(0));
        assert_eq!(ledger.poll_timeout(), Some(Millis(MAX_PING_INTERVAL_MS)));
        assert!(
            !ledger.wants_ping(Millis(MAX_PING_INTERVAL_MS - 1)) && ledger.wants_ping(Millis(MAX_PING_INTERVAL_MS))
        );
    }

    #[test]
    fn a_stream_that_ends_in_order_has_taken_everything() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, bulk(1, 100), Millis(0));
        sent(&mut ledger, bulk(2, 100), Millis(0));
        ledger.handle_completed();
        assert_eq!((ledger.pop_confirmed(), ledger.pop_confirmed()), (Some(bulk(1, 100)), Some(bulk(2, 100))));
    }

    #[test]
    fn after_a_stream_what_is_only_in_memory_waits_again_and_the_rest_is_given_back() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, bulk(1, 100), Millis(0));
        sent(&mut ledger, stored(bulk(2, 200)), Millis(0));
        ledger.push(batch(Kind::Heartbeat, 3, 400));
        ledger.handle_handed();
        ledger.push(bulk(4, 800));
        ledger.handle_ping(Millis(50));
        let given_back = ledger.handle_ended();
        assert_eq!(given_back.iter().map(Batch::bytes).collect::<Vec<_>>(), [200, 400]);
        assert_eq!((messages(&ledger), ledger.memory(), ledger.handed().count()), (vec![1, 4], 900, 0));

        // The next stream begins its account anew, and no PING is out on it.
        ledger.handle_handed();
        assert_eq!(ledger.handle_written(Millis(10_000)), None);
        ledger.handle_credit(200);
        assert_eq!(ledger.pop_confirmed(), None, "a message's length may be granted ahead");
        ledger.handle_credit(201);
        assert_eq!(ledger.pop_confirmed(), Some(bulk(1, 100)));
        sent(&mut ledger, bulk(5, 1), Millis(10_000));
        assert_eq!(ledger.poll_timeout(), Some(Millis(10_000 + CONFIRM_GRACE_MS)));
    }

    #[test]
    fn what_a_full_ledger_wants_is_known_while_it_is_full() {
        let mut ledger = Ledger::new(150);
        sent(&mut ledger, bulk(1, 200), Millis(0));
        assert_eq!(ledger.wanted_credit(), None, "nobody has asked for room");
        assert_eq!(ledger.watch_room(Millis(10)), Room::None);
        assert_eq!(ledger.wanted_credit(), Some(401));
        assert_eq!(ledger.watch_room(Millis(9 + LEDGER_WAIT_MS)), Room::None);
        assert_eq!(ledger.watch_room(Millis(10 + LEDGER_WAIT_MS)), Room::Overdue);
        assert_eq!(ledger.poll_timeout(), Some(Millis(CONFIRM_GRACE_MS)), "nothing more is to be waited for");
        ledger.handle_credit(401);
        assert!(ledger.pop_confirmed().is_some());
        assert_eq!(ledger.wanted_credit(), None);

        let mut waiting = Ledger::new(150);
        waiting.push(bulk(1, 200));
        assert_eq!((waiting.watch_room(Millis(0)), waiting.wanted_credit()), (Room::None, None), "no credit helps");
    }

    #[test]
    fn only_a_written_batch_without_another_copy_is_let_go() {
        let mut ledger = Ledger::new(200);
        sent(&mut ledger, stored(bulk(1, 100)), Millis(0));
        sent(&mut ledger, bulk(2, 200), Millis(0));
        ledger.push(bulk(3, 400));
        ledger.handle_handed();
        assert_eq!((ledger.let_go(), messages(&ledger), ledger.memory()), (Some(1), vec![3], 400));
        assert_eq!(ledger.let_go(), None, "the other is not written whole");
    }

    #[test]
    fn waiting_batches_are_taken_out_from_the_front() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, bulk(1, 100), Millis(0));
        ledger.push(stored(bulk(2, 200)));
        ledger.push(bulk(3, 400));
        ledger.push(bulk(4, 800));
        assert_eq!(ledger.pop_waiting(), Some(bulk(3, 400)), "the first that is in memory only");
        assert_eq!((ledger.pop_next(), ledger.memory()), (Some(stored(bulk(2, 200))), 900));
        assert_eq!((ledger.pop_next(), ledger.pop_next(), ledger.pop_waiting()), (Some(bulk(4, 800)), None, None));
        assert_eq!(messages(&ledger), [1]);
    }

    #[test]
    fn doubles_give_way_oldest_first_unless_they_are_on_their_way() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, double(1), Millis(0));
        [bulk(2, 100), stored(double(3)), double(4), double(5)].into_iter().for_each(|batch| ledger.push(batch));
        assert!(ledger.drop_double());
        assert_eq!((messages(&ledger), ledger.memory()), (vec![1, 2, 3, 5], 400));
        assert!(ledger.drop_double() && !ledger.drop_double());
        assert_eq!(messages(&ledger), [1, 2, 3]);
    }

    #[test]
    fn batches_that_are_changed_are_counted_again_and_empty_ones_wait_no_longer() {
        let mut ledger = Ledger::new(10_000);
        sent(&mut ledger, bulk(1, 100), Millis(0));
        ledger.push(stored(bulk(2, 200)));
        ledger.push(bulk(3, 400));
        let only: Vec<_> = ledger.only_in_memory().map(|(batch, is_handed)| (batch.bytes(), is_handed)).collect();
        assert_eq!(only, [(100, true), (400, false)]);
        let mut seen = Vec::new();
        ledger.change(|batch, is_handed| {
            seen.push((batch.bytes(), is_handed));
            if batch.bytes() < 400 {
                batch.message = None;
            }
        });
        assert_eq!(seen, [(100, true), (200, false), (400, false)]);
        assert_eq!((ledger.iter().map(Batch::bytes).collect::<Vec<_>>(), ledger.memory()), (vec![100, 400], 400));
    }
}
