//! What leaves when: from the intake into batches, and from there to the stream and to the spool.
//!
//! Records wait a moment for others to travel with, because a batch of many compresses better and costs less. The [`Feed`] decides how
//! long that moment is: up to 100 ms while a stream has room, longer while there is none, and not at all once the buffer is half full.
//! When a stream stalls it spools instead, and when nothing has room it takes nothing, so that the intake fills and the plugins feel
//! backpressure.

use alloc::vec::Vec;

use super::losses::{Cause, Loss, Losses};
use super::spool::{Done, Op};
use super::{Batch, Bounds, Counters, Outbox, Outgoing, Unconfirmed};
use crate::limits::{
    FLUSH_INTERVAL_MS, LEDGER_WAIT_MS, OFFLINE_FLUSH_INTERVAL_MS, SPOOL_THREAD_RETRY_MS, STREAM_AHEAD,
};
use crate::record::intake::{Due, Level};
use crate::record::manifest::Row;
use crate::time::Millis;

/// A stream that takes nothing for this long does not hold up what could be kept elsewhere.
const STALL_MS: u64 = LEDGER_WAIT_MS;

/// What the shell is to do for the delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<M> {
    /// Take everything out of the intake, make batches of it, and give each to [`Feed::push`]. Urgent records come first: in a batch of
    /// their own if they go `apart`, because they overtake what has waited for long, or else at the head of the bulk.
    Take {
        /// Whether urgent records are a batch of their own.
        apart: bool,
    },
    /// Hand this message to the stream; answer with [`Feed::handle_written`] when its last byte has left.
    Send(M),
    /// Cut a batch into parts of about `limit` bytes of content, each record whole; answer with [`Feed::handle_cut`] before anything
    /// else.
    Cut {
        /// The batch.
        whole: Batch<M>,
        /// Bytes of content that each part should have at most.
        limit: usize,
    },
    /// Work on the spool's files; answer with [`Feed::handle_done`], or with [`Feed::handle_no_thread`]. One operation is under way at
    /// a time.
    Spool {
        /// What to do.
        op: Op<M>,
        /// The agent ends: there may be no later, so that it is to be done even where it holds everything else up.
        at_once: bool,
    },
    /// Put reports of these losses into the intake.
    Tell(Vec<Loss>),
    /// Take no records any more but those for which others may be dropped, or take all again.
    Hold(bool),
}

/// The delivery's timing around an [`Outbox`].
#[derive(Debug)]
pub struct Feed<M> {
    outbox: Outbox<M>,
    has_spool: bool,
    /// There is a stream, whose server may confirm what it was given.
    is_open: bool,
    /// There is a stream that takes messages.
    is_up: bool,
    /// Messages that the stream was handed and has not written.
    unwritten: usize,
    /// Since when the intake is known to hold records.
    waiting_since: Option<Millis>,
    /// Since when the stream has had no room.
    stalled_since: Option<Millis>,
    /// Something is due, and there is no room for it yet.
    is_blocked: bool,
    /// An operation on the spool for which there was no thread, and when it is tried again.
    put_off: Option<(Op<M>, Millis)>,
    is_holding: bool,
    is_ending: bool,
    told_at: Option<Millis>,
}

impl<M: Clone> Feed<M> {
    /// An empty one without a stream.
    #[must_use]
    pub fn new(bounds: Bounds, now: Millis) -> Self {
        Self {
            outbox: Outbox::new(bounds, now),
            has_spool: bounds.spool > 0,
            is_open: false,
            is_up: false,
            unwritten: 0,
            waiting_since: None,
            stalled_since: None,
            is_blocked: false,
            put_off: None,
            is_holding: false,
            is_ending: false,
            told_at: None,
        }
    }

    /// The spool may take another number of bytes from now on. Whether there is one stays as it is.
    pub fn set_spool_bytes(&mut self, bytes: u64) {
        self.outbox.set_spool_bytes(bytes);
    }

    /// Batches are kept for this long after they were confirmed.
    pub fn set_replay_ms(&mut self, keep_ms: u64) {
        self.outbox.set_replay_ms(keep_ms);
    }

    /// Adds a batch; see [`Outbox::push`].
    pub fn push(&mut self, batch: Batch<M>) {
        self.outbox.push(batch);
    }

    /// There is a stream.
    pub fn handle_opened(&mut self, now: Millis) {
        (self.is_open, self.is_up) = (true, true);
        self.unwritten = 0;
        self.outbox.handle_opened(now);
    }

    /// The stream has written the oldest message that it was handed, whole.
    pub fn handle_written(&mut self, now: Millis) {
        self.unwritten = self.unwritten.saturating_sub(1);
        self.outbox.handle_written(now);
    }

    /// The server has returned this much credit since the stream began.
    pub fn handle_credit(&mut self, credit: u64, now: Millis) {
        if self.is_open {
            self.outbox.handle_credit(credit, now);
        }
    }

    /// A PING was sent.
    pub fn handle_ping(&mut self, now: Millis) {
        self.outbox.handle_ping(now);
    }

    /// The PING was answered.
    pub fn handle_pong(&mut self, now: Millis) {
        self.outbox.handle_pong(now);
    }

    /// The server has ended the connection over its PINGs.
    pub fn handle_too_many_pings(&mut self) {
        self.outbox.handle_too_many_pings();
    }

    /// The server has ended the stream in order after the agent had.
    pub fn handle_completed(&mut self, now: Millis) {
        self.outbox.handle_completed(now);
    }

    /// The server has ended the stream, and perhaps itself, and gives no other reason than that a message was too large if it
    /// `says_too_large`. Returns the number of records that others overtake from now on; see [`Outbox::handle_broken`].
    pub fn handle_broken(&mut self, says_too_large: bool, now: Millis) -> u64 {
        self.outbox.handle_broken(says_too_large, now)
    }

    /// The agent has announced the stream's end: it takes nothing more, while the server may still confirm what it was given.
    pub fn handle_half_closed(&mut self) {
        self.is_up = false;
    }

    /// The stream, or the attempt at one, is over: what is not confirmed goes first on the next.
    pub fn handle_ended(&mut self, now: Millis) {
        (self.is_open, self.is_up) = (false, false);
        self.unwritten = 0;
        self.stalled_since = None;
        self.outbox.handle_ended(now);
    }

    /// The agent ends: what the server has not taken is to be safe on the disk.
    pub fn handle_ending(&mut self) {
        self.is_ending = true;
        self.outbox.handle_ending();
    }

    /// The shell has cut the batch of [`Action::Cut`] into these parts; see [`Outbox::handle_cut`].
    pub fn handle_cut(&mut self, parts: Vec<Batch<M>>, refused: &[Row]) {
        self.outbox.handle_cut(parts, refused);
    }

    /// The operation of [`Action::Spool`] is over.
    pub fn handle_done(&mut self, done: Done<M>, now: Millis) {
        self.outbox.handle_done(done, now);
    }

    /// There was no thread for the operation of [`Action::Spool`]: it keeps its place and is tried again.
    pub fn handle_no_thread(&mut self, op: Op<M>, now: Millis) {
        self.put_off = Some((op, now + SPOOL_THREAD_RETRY_MS));
    }

    /// Records of this kind were lost before they reached a batch.
    pub fn handle_lost(&mut self, cause: Cause, row: Row) {
        self.outbox.losses_mut().add(cause, row);
    }

    /// The next thing to do, given what the intake holds. With `flush`, nothing waits for company any more.
    ///
    /// Ask again until there is nothing, and after every call of a `handle_*` method.
    #[must_use]
    pub fn poll_action(&mut self, level: Level, flush: bool, now: Millis) -> Option<Action<M>> {
        if let Some(tell) = self.poll_tell(flush, now) {
            return Some(tell);
        }
        self.is_blocked = false;
        let send = if self.has_stream_room() {
            self.poll_stream(level, flush, now)
        } else {
            self.poll_offline(level, flush, now)
        };
        let action = send.or_else(|| self.poll_spool(now)).or_else(|| self.poll_hold(now));
        // What was lost just now is told as well: nobody asks again before something happens.
        action.or_else(|| self.poll_tell(flush, now))
    }

    fn poll_tell(&mut self, flush: bool, now: Millis) -> Option<Action<M>> {
        if !((self.is_up || flush) && self.is_time_to_tell(flush, now)) {
            return None;
        }
        self.told_at = Some(now);
        Some(Action::Tell(self.outbox.losses_mut().take(now)))
    }

    fn poll_stream(&mut self, level: Level, flush: bool, now: Millis) -> Option<Action<M>> {
        self.stalled_since = None;
        match self.outbox.poll_send(now) {
            Some(Outgoing::Send(message)) => {
                self.unwritten += 1;
                Some(Action::Send(message))
            }
            Some(Outgoing::Cut { whole, limit }) => Some(Action::Cut { whole, limit }),
            None if self.is_due(level, flush, now) => self.take(level, now),
            None => None,
        }
    }

    /// Without a spool, what a live stream cannot take yet stays with the plugins.
    fn poll_offline(&mut self, level: Level, flush: bool, now: Millis) -> Option<Action<M>> {
        if self.is_up {
            self.stalled_since.get_or_insert(now);
        }
        let is_wanted = !self.is_up || self.has_spool;
        if is_wanted && self.is_due_offline(level, flush, now) { self.take(level, now) } else { None }
    }

    fn take(&mut self, level: Level, now: Millis) -> Option<Action<M>> {
        if !self.outbox.has_room() {
            let _ = self.outbox.make_room(level.may_drop, now);
        }
        self.is_blocked = !self.outbox.has_room();
        if self.is_blocked {
            return None;
        }
        self.waiting_since = None;
        Some(Action::Take { apart: self.outbox.has_backlog() })
    }

    fn poll_spool(&mut self, now: Millis) -> Option<Action<M>> {
        let at_once = self.is_ending;
        let op = match self.put_off.take_if(|(_, due)| *due <= now || at_once) {
            Some((op, _)) => op,
            // The outbox has no other while one is put off: for it, that one is under way.
            None => self.outbox.poll_op(now)?,
        };
        Some(Action::Spool { op, at_once })
    }

    fn poll_hold(&mut self, now: Millis) -> Option<Action<M>> {
        let hold = !self.is_ending && self.outbox.is_full(now);
        let was_holding = core::mem::replace(&mut self.is_holding, hold);
        (was_holding != hold).then_some(Action::Hold(hold))
    }

    /// Losses of some seconds are told together; a flush tells them at once, but not those of its own reports, which would never end.
    fn is_time_to_tell(&self, flush: bool, now: Millis) -> bool {
        let is_due = |due| due <= now || (flush && self.told_at != Some(now));
        self.outbox.losses().poll_timeout().is_some_and(is_due)
    }

    /// Returns true when it is time to empty the intake onto a stream that has room. It notes since when records have waited.
    fn is_due(&mut self, level: Level, flush: bool, now: Millis) -> bool {
        if level.is_empty() {
            self.waiting_since = None;
            return false;
        }
        let since = *self.waiting_since.get_or_insert(now);
        flush || level.due == Due::Now || since + FLUSH_INTERVAL_MS <= now
    }

    /// Returns true when it is time to empty the intake although no stream has room. It notes since when records have waited.
    fn is_due_offline(&mut self, level: Level, flush: bool, now: Millis) -> bool {
        if level.is_empty() {
            self.waiting_since = None;
            return false;
        }
        let since = *self.waiting_since.get_or_insert(now);
        let is_stalled = self.stalled_since.is_none_or(|since| since + STALL_MS <= now);
        is_stalled && (flush || level.is_half_full || since + OFFLINE_FLUSH_INTERVAL_MS <= now)
    }

    /// When to look again although nothing has happened.
    #[must_use]
    pub fn poll_timeout(&self, level: Level, now: Millis) -> Option<Millis> {
        let flush = self.waiting_since.filter(|_| !self.is_blocked).and_then(|since| {
            if self.has_stream_room() {
                return Some(since + FLUSH_INTERVAL_MS);
            }
            if self.is_up && !self.has_spool {
                // The stream has room again before anything can be done.
                return None;
            }
            let ripe = if level.is_half_full { since } else { since + OFFLINE_FLUSH_INTERVAL_MS };
            Some(self.stalled_since.map_or(ripe, |stalled| ripe.max(stalled + STALL_MS)))
        });
        let told = self.outbox.losses().poll_timeout().filter(|_| self.is_up);
        let put_off = self.put_off.as_ref().map(|(_, due)| *due);
        [flush, told, put_off, self.outbox.poll_timeout(now)].into_iter().flatten().min()
    }

    /// Returns true while the stream takes another message.
    #[must_use]
    pub fn has_stream_room(&self) -> bool {
        self.is_up && self.unwritten < STREAM_AHEAD
    }

    /// Returns true once the stream has written everything that it can be given.
    #[must_use]
    pub fn is_written_out(&self, level: Level) -> bool {
        self.outbox.is_written_out() && level.is_empty()
    }

    /// Returns true when the agent's end would lose nothing, or nothing can be done about it.
    #[must_use]
    pub fn is_safe(&self, level: Level, now: Millis) -> bool {
        self.outbox.is_safe(now) && (self.is_blocked || level.is_empty())
    }

    /// Returns true when a PING would confirm something that credit does not.
    #[must_use]
    pub fn wants_ping(&self, now: Millis) -> bool {
        self.outbox.wants_ping(now)
    }

    /// Credit that would make room; the shell looks for the server's credit at least when it reaches this.
    #[must_use]
    pub fn wanted_credit(&self) -> Option<u64> {
        self.outbox.wanted_credit()
    }

    /// What the server is not known to have taken, what the intake holds included.
    #[must_use]
    pub fn unconfirmed(&self, level: Level) -> Unconfirmed {
        let mut unconfirmed = self.outbox.unconfirmed();
        unconfirmed.memory_records += level.records as u64;
        unconfirmed
    }

    /// What has become of records, since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.outbox.counters()
    }

    /// What was lost, since the start.
    #[must_use]
    pub fn losses(&self) -> &Losses {
        self.outbox.losses()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::delivery::Kind;
    use crate::delivery::world::rows;

    const FEW: Level = Level { due: Due::Later, records: 1, is_half_full: false, may_drop: true };
    const MANY: Level = Level { is_half_full: true, ..FEW };

    fn takes(feed: &mut Feed<u32>, level: Level, now: u64) -> bool {
        matches!(feed.poll_action(level, false, Millis(now)), Some(Action::Take { .. }))
    }

    fn feed(spool: u64) -> Feed<u32> {
        let mut feed = Feed::new(Bounds { memory: 1 << 20, spool }, Millis(0));
        if spool > 0 {
            assert_eq!(feed.poll_action(FEW, false, Millis(0)), Some(Action::Spool { op: Op::Open, at_once: false }));
            feed.handle_done(Done::Opened(vec![]), Millis(0));
        }
        feed
    }

    /// A feed whose stream has as many messages as it takes since 0, and writes none of them.
    fn stalled(spool: u64) -> Feed<u32> {
        let mut feed = feed(spool);
        feed.handle_opened(Millis(0));
        for message in 0..3 {
            feed.push(Batch::new(Kind::Bulk, message, 100, 100, rows(1)));
        }
        let level = Level { records: 0, due: Due::Nothing, ..FEW };
        assert_eq!(feed.poll_action(level, false, Millis(0)), Some(Action::Send(0)));
        assert_eq!(feed.poll_action(level, false, Millis(0)), Some(Action::Send(1)));
        feed
    }

    #[test]
    fn without_a_stream_records_wait_for_company_until_the_intake_is_half_full() {
        let mut feed = feed(0);
        assert!(!takes(&mut feed, FEW, 10));
        assert_eq!(feed.poll_timeout(FEW, Millis(10)), Some(Millis(10 + OFFLINE_FLUSH_INTERVAL_MS)));
        assert!(!takes(&mut feed, FEW, 9 + OFFLINE_FLUSH_INTERVAL_MS));
        assert!(takes(&mut feed, FEW, 10 + OFFLINE_FLUSH_INTERVAL_MS));
        assert!(takes(&mut feed, MANY, 500));
    }

    #[test]
    fn what_a_stalled_stream_does_not_take_goes_to_the_spool_after_a_while() {
        let mut feed = stalled(64 << 20);
        assert!(!takes(&mut feed, MANY, 1) && !takes(&mut feed, MANY, STALL_MS));
        assert_eq!(feed.poll_timeout(MANY, Millis(1)), Some(Millis(1 + STALL_MS)));
        assert!(takes(&mut feed, MANY, 1 + STALL_MS));
        feed.handle_written(Millis(1 + STALL_MS));
        assert_eq!(feed.poll_action(MANY, false, Millis(1 + STALL_MS)), Some(Action::Send(2)));
    }

    #[test]
    fn without_a_spool_what_a_stalled_stream_does_not_take_stays_with_the_plugins() {
        let mut feed = stalled(0);
        assert!(!takes(&mut feed, MANY, 1) && !takes(&mut feed, MANY, 60_000));
        assert_eq!(feed.poll_timeout(MANY, Millis(60_000)), None, "nothing but the stream can change that");
    }

    #[test]
    fn on_a_stream_records_wait_for_company_for_a_moment_unless_they_are_urgent() {
        let mut feed = feed(0);
        feed.handle_opened(Millis(0));
        assert!(!takes(&mut feed, FEW, 10) && !takes(&mut feed, MANY, 9 + FLUSH_INTERVAL_MS));
        assert_eq!(feed.poll_timeout(FEW, Millis(10)), Some(Millis(10 + FLUSH_INTERVAL_MS)));
        assert!(takes(&mut feed, FEW, 10 + FLUSH_INTERVAL_MS));
        assert!(!takes(&mut feed, FEW, 500) && takes(&mut feed, Level { due: Due::Now, ..FEW }, 501));
    }

    #[test]
    fn what_was_confirmed_is_kept_for_as_long_as_it_is_told_to_be() {
        for (keep_ms, replayed) in [(0, 0), (1_000, 1)] {
            let mut feed = feed(0);
            feed.set_replay_ms(keep_ms);
            feed.handle_opened(Millis(0));
            feed.push(Batch::new(Kind::Bulk, 0, 100, 100, rows(1)));
            assert_eq!(feed.poll_action(FEW, false, Millis(0)), Some(Action::Send(0)));
            feed.handle_written(Millis(0));
            feed.handle_credit(201, Millis(0));
            feed.handle_ended(Millis(0));
            assert_eq!((feed.counters().confirmed, feed.counters().replayed), (1, replayed));
        }
    }
}
