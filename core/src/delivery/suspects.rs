//! Finds the batch that kills a server, and gives up no record for any other reason.
//!
//! Delivery at least once sends a batch again after every broken stream. A batch that crashes the server would
//! therefore end every stream for ever. But most streams break for reasons that have nothing to do with a batch:
//! servers restart, networks fail, somebody kills a process again and again. [`Suspects`] tells the two apart in steps.
//! Each step costs time and order, but no record:
//!
//! 1. Two streams in a row end while the same batches are in flight. The next stream is *careful*: it takes those at a distance
//!    from each other. It does not matter which batch is the oldest, because servers take some before they come to the one they
//!    die of, and urgent ones overtake it. What only a PING has confirmed counts as in flight when the server takes nothing more,
//!    because it is behind then.
//! 2. The batches that a careful stream has written just before its end become *suspects*; without any, all that it was handed and the
//!    server is not known to have taken, because a slow server comes to a batch late. Others overtake them.
//! 3. A suspect gets a *trial* on a stream that has held for some seconds: it is sent alone, with silence before and after it.
//!    If the stream outlives it, it is acquitted. If the stream ends, the suspect is cut, and each part becomes a suspect.
//! 4. A single record is condemned after [`POISON_STRIKES`] trials in a row that end the stream. Each trial begins
//!    later in its stream's life than the last stream lived, and the server has to take other records in between. A
//!    stream that ends at any other moment clears all strikes. Neither chance nor a server that ends its streams by the
//!    clock therefore condemns a record.
//!
//! This module judges. The [`Outbox`](super::Outbox) moves, cuts and drops.

use alloc::vec::Vec;

use super::batch::Identity;
use crate::limits::{CAREFUL_GAP_MS, MAX_SUSPECTS, POISON_STRIKES, PROBE_AFTER_MS, REFUSALS, TRIAL_MS};
use crate::time::Millis;

/// What streams that ended without a reason have shown about batches.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    opened: Millis,
    /// When the stream last wrote records whole, or opened.
    quiet_since: Millis,
    /// The streams in a row that ended while the same batches were in flight, and those batches.
    streak: u32,
    watched: Vec<Watched>,
    /// When the last of them was handed over carefully or was written, or the stream was opened.
    careful_at: Millis,
    /// The suspect that was handed over alone.
    trial: Option<Identity>,
    suspects: Vec<Suspect>,
    /// True when the server has taken other records since the last strike.
    is_witnessed: bool,
    condemned: Option<Identity>,
}

#[derive(Debug, Clone, Copy)]
struct Watched {
    who: Identity,
    /// When the stream was handed it carefully, or had written it.
    handed: Option<Millis>,
}

#[derive(Debug, Clone, Copy)]
struct Suspect {
    who: Identity,
    strikes: u32,
    /// How long the last stream lived that ended over this suspect.
    lifetime_ms: u64,
}

/// What the end of a stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing about any one batch.
    Nothing,
    /// This batch of several records was alone on the stream when it ended.
    Guilty(Identity),
}

impl Suspects {
    /// A stream was opened.
    pub(super) fn handle_opened(&mut self, now: Millis) {
        (self.opened, self.quiet_since, self.careful_at) = (now, now, now);
        self.trial = None;
        self.forget_handed();
    }

    /// The stream was handed a batch of records.
    pub(super) fn handle_handed(&mut self, who: Identity, now: Millis) {
        if self.is_suspect(who) {
            self.trial = Some(who);
        } else if self.is_careful()
            && let Some(watched) = self.watched.iter_mut().find(|watched| watched.who == who)
        {
            watched.handed = Some(now);
            self.careful_at = now;
        }
    }

    /// The stream has written a batch of records whole. No server dies of a batch before that, and a large one takes its time.
    pub(super) fn handle_written(&mut self, who: Identity, now: Millis) {
        self.quiet_since = now;
        let is_it = |watched: &&mut Watched| watched.who == who && watched.handed.is_some();
        if let Some(watched) = self.watched.iter_mut().find(is_it) {
            watched.handed = Some(now);
            self.careful_at = now;
        }
    }

    /// The server has taken a batch. Only credit shows that its application has: a PING is answered without it.
    pub(super) fn handle_confirmed(&mut self, who: Identity, by_credit: bool) {
        if let Some(at) = self.watched.iter().position(|watched| by_credit && watched.who == who) {
            self.watched.swap_remove(at);
        }
        if self.suspects.is_empty() {
            return;
        }
        self.is_witnessed |= !self.is_suspect(who);
        self.acquit(who);
    }

    /// Time has passed. `is_writing` is true while the stream has not written everything that it was handed.
    pub(super) fn handle_time(&mut self, is_writing: bool, now: Millis) {
        if let Some(who) = self.trial.filter(|_| !is_writing && self.quiet_since + TRIAL_MS <= now) {
            self.is_witnessed = true;
            self.acquit(who);
        }
    }

    /// When the next batch may be handed over, or `None` if that depends on more than time.
    pub(super) fn gate(&self, next: Identity, is_writing: bool) -> Option<Millis> {
        if self.trial.is_some() || self.is_suspect(next) {
            return (!is_writing).then(|| self.ripe_at(next).max(self.quiet_since + TRIAL_MS));
        }
        // Only those that were in flight keep a distance from each other, so that what comes meanwhile does not hold them up.
        if self.is_careful() && self.watched.iter().any(|watched| watched.who == next && watched.handed.is_none()) {
            return (!is_writing).then(|| self.careful_at + CAREFUL_GAP_MS);
        }
        Some(Millis(0))
    }

    /// Returns true while others should overtake a batch.
    pub(super) fn is_set_aside(&self, who: Identity, now: Millis) -> bool {
        self.is_suspect(who) && now < self.ripe_at(who)
    }

    /// Returns true when no batch is suspected.
    pub(super) fn is_empty(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Returns true when a batch is suspected.
    pub(super) fn is_suspect(&self, who: Identity) -> bool {
        self.suspects.iter().any(|suspect| suspect.who == who)
    }

    /// Returns true when a batch has ended a stream while it was alone on it.
    pub(super) fn is_guilty(&self, who: Identity) -> bool {
        self.suspects.iter().any(|suspect| suspect.who == who && suspect.strikes > 0)
    }

    /// Returns true when a batch is the single record that kills the server.
    pub(super) fn is_condemned(&self, who: Identity) -> bool {
        self.condemned == Some(who)
    }

    /// A batch was cut into parts.
    pub(super) fn handle_cut(&mut self, whole: Identity, parts: impl Iterator<Item = Identity>) {
        if self.is_suspect(whole) {
            self.acquit(whole);
            self.suspect(parts, 0);
        }
    }

    /// A batch was dropped.
    pub(super) fn handle_dropped(&mut self, who: Identity) {
        self.condemned.take_if(|condemned| *condemned == who);
        self.acquit(who);
    }

    /// The stream has ended without a reason. `in_flight` are the batches of records that it was handed, oldest first,
    /// each with true if it is a single record.
    pub(super) fn handle_broken(&mut self, in_flight: &[(Identity, bool)], is_writing: bool, now: Millis) -> Verdict {
        let find = |who: Identity| in_flight.iter().find(|(other, _)| *other == who).copied();
        if let Some(who) = self.trial.take() {
            let is_prompt = is_writing || now.since(self.quiet_since) <= TRIAL_MS;
            if let Some((_, is_single)) = find(who).filter(|_| is_prompt) {
                return self.strike(who, is_single, now);
            }
        }
        let blame = |within: u64| -> Vec<_> {
            let handed = self.watched.iter().filter(|watched| watched.handed.is_some_and(|at| now.since(at) <= within));
            handed.filter_map(|watched| find(watched.who)).collect()
        };
        let mut blamed = blame(TRIAL_MS);
        if blamed.is_empty() {
            // A slow server comes to a batch long after it was handed over.
            blamed = blame(u64::MAX);
        }
        if !blamed.is_empty() {
            self.watched.clear();
            // Cutting the only blamed batch costs no record and spares it a trial.
            let guilty = match blamed[..] {
                [(who, false)] => Some(who),
                _ => None,
            };
            self.suspect(blamed.into_iter().map(|(who, _)| who), u32::from(guilty.is_some()));
            return guilty.map_or(Verdict::Nothing, Verdict::Guilty);
        }
        self.handle_unrelated();
        self.watched.retain(|watched| find(watched.who).is_some());
        if self.watched.is_empty() {
            self.streak = 0;
            self.watched.extend(in_flight.iter().map(|(who, _)| Watched { who: *who, handed: None }));
        }
        self.streak += 1;
        Verdict::Nothing
    }

    /// A stream has ended for a reason that has nothing to do with batches.
    pub(super) fn handle_unrelated(&mut self) {
        self.trial = None;
        self.forget_handed();
        self.suspects.iter_mut().for_each(|suspect| suspect.strikes = 0);
        self.condemned = None;
    }

    /// Returns true when enough streams have ended over the same batches to keep these apart.
    fn is_careful(&self) -> bool {
        self.streak >= REFUSALS
    }

    fn forget_handed(&mut self) {
        self.watched.iter_mut().for_each(|watched| watched.handed = None);
    }

    fn strike(&mut self, who: Identity, is_single: bool, now: Millis) -> Verdict {
        let is_witnessed = core::mem::take(&mut self.is_witnessed);
        let lifetime_ms = now.since(self.opened);
        let Some(suspect) = self.suspects.iter_mut().find(|suspect| suspect.who == who) else {
            return Verdict::Nothing;
        };
        suspect.lifetime_ms = lifetime_ms;
        if !is_single {
            suspect.strikes += 1;
            return Verdict::Guilty(who);
        }
        suspect.strikes += u32::from(is_witnessed);
        if suspect.strikes >= POISON_STRIKES {
            self.condemned = Some(who);
        }
        Verdict::Nothing
    }

    /// Suspects batches. When there is no room for them, the oldest suspects that have not ended a trial are ordinary batches again. While a
    /// batch that is none yet ends every stream, no stream gets old enough for a trial, so that nothing else would ever make room for it.
    fn suspect(&mut self, all: impl Iterator<Item = Identity>, strikes: u32) {
        let mut earlier = self.suspects.len();
        for who in all {
            if self.is_suspect(who) {
                continue;
            }
            if self.suspects.len() >= MAX_SUSPECTS {
                let may_go = |suspect: &Suspect| suspect.strikes == 0 && self.trial != Some(suspect.who);
                let Some(oldest) = self.suspects.iter().take(earlier).position(may_go) else { return };
                self.suspects.remove(oldest);
                earlier -= 1;
            }
            self.suspects.push(Suspect { who, strikes, lifetime_ms: 0 });
        }
    }

    fn acquit(&mut self, who: Identity) {
        self.trial.take_if(|trial| *trial == who);
        self.suspects.retain(|suspect| suspect.who != who);
        if self.suspects.is_empty() {
            self.is_witnessed = false;
        }
    }

    /// When a suspect's trial may begin on this stream.
    fn ripe_at(&self, who: Identity) -> Millis {
        let suspect = self.suspects.iter().find(|suspect| suspect.who == who);
        suspect.map_or(Millis(0), |suspect| self.opened + PROBE_AFTER_MS.max(suspect.lifetime_ms + TRIAL_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::batch::{Batch, Kind};

    /// Batches are told apart by their number here.
    fn who(number: usize) -> Identity {
        Batch::new(Kind::Bulk, (), number, 0, [].into()).identity()
    }

    /// A stream ends without a reason at `now` while these batches of several records are in flight.
    fn broken(suspects: &mut Suspects, in_flight: &[usize], now: u64) -> Verdict {
        let in_flight: Vec<_> = in_flight.iter().map(|number| (who(*number), false)).collect();
        suspects.handle_broken(&in_flight, false, Millis(now))
    }

    /// The next stream is careful with batches 1 and 2; it is opened at 100.
    fn careful() -> Suspects {
        let mut suspects = Suspects::default();
        for opened in [0, 50] {
            suspects.handle_opened(Millis(opened));
            assert_eq!(broken(&mut suspects, &[1, 2], opened + 10), Verdict::Nothing);
        }
        suspects.handle_opened(Millis(100));
        suspects
    }

    /// Batches 1 and 2 are suspects, and no stream is open.
    fn two_suspects() -> Suspects {
        let mut suspects = careful();
        suspects.handle_handed(who(1), Millis(300));
        suspects.handle_handed(who(2), Millis(500));
        assert_eq!(broken(&mut suspects, &[1, 2], 600), Verdict::Nothing);
        suspects
    }

    /// Batch 1 is the only suspect. It is a single record.
    fn one_record() -> Suspects {
        let mut suspects = careful();
        suspects.handle_handed(who(1), Millis(300));
        assert_eq!(suspects.handle_broken(&[(who(1), true)], false, Millis(400)), Verdict::Nothing);
        suspects
    }

    /// A stream opens, takes batch 9 if it is to be a witness, and dies of batch 1 alone. Returns when it does.
    fn dies_of_a_record(suspects: &mut Suspects, opened: u64, has_witness: bool) -> u64 {
        suspects.handle_opened(Millis(opened));
        if has_witness {
            suspects.handle_confirmed(who(9), true);
        }
        let Some(Millis(handed)) = suspects.gate(who(1), false) else { panic!("only time is wanted") };
        suspects.handle_handed(who(1), Millis(handed));
        suspects.handle_written(who(1), Millis(handed));
        assert_eq!(suspects.handle_broken(&[(who(1), true)], false, Millis(handed + 5)), Verdict::Nothing);
        handed + 5
    }

    #[test]
    fn one_broken_stream_is_no_reason_for_care() {
        let mut suspects = Suspects::default();
        suspects.handle_opened(Millis(0));
        assert_eq!(broken(&mut suspects, &[1, 2], 10), Verdict::Nothing);
        assert_eq!((suspects.gate(who(1), false), suspects.gate(who(1), true)), (Some(Millis(0)), Some(Millis(0))));
    }

    #[test]
    fn streams_that_end_over_different_batches_are_no_reason_for_care() {
        let mut suspects = Suspects::default();
        for (oldest, now) in [(1, 10), (2, 20), (1, 30)] {
            suspects.handle_opened(Millis(now));
            broken(&mut suspects, &[oldest], now);
        }
        assert_eq!(suspects.gate(who(1), false), Some(Millis(0)));
        broken(&mut suspects, &[], 40);
        broken(&mut suspects, &[1], 50);
        assert_eq!(suspects.gate(who(1), false), Some(Millis(0)), "a stream with nothing in flight came between");
    }

    #[test]
    fn two_streams_that_end_over_the_same_batch_make_the_next_one_careful() {
        let mut suspects = careful();
        assert_eq!(suspects.gate(who(1), false), Some(Millis(100 + CAREFUL_GAP_MS)));
        assert_eq!(suspects.gate(who(1), true), None, "one at a time");
        suspects.handle_handed(who(1), Millis(300));
        suspects.handle_written(who(1), Millis(310));
        assert_eq!(suspects.gate(who(2), false), Some(Millis(310 + CAREFUL_GAP_MS)));
        assert_eq!(suspects.gate(who(9), true), Some(Millis(0)), "what comes meanwhile does not wait");
        suspects.handle_handed(who(2), Millis(510));
        assert_eq!(suspects.gate(who(3), true), Some(Millis(0)), "those in flight have been handed over again");
        assert!(suspects.is_empty() && !suspects.is_suspect(who(1)));
    }

    #[test]
    fn what_a_careful_stream_was_handed_just_before_its_end_is_suspect() {
        let suspects = two_suspects();
        assert!(suspects.is_suspect(who(1)) && suspects.is_suspect(who(2)) && !suspects.is_suspect(who(3)));
        assert!(!suspects.is_empty() && !suspects.is_guilty(who(1)) && !suspects.is_guilty(who(2)));
    }

    #[test]
    fn a_batch_that_was_handed_over_earlier_is_not_as_long_as_a_later_one_can_be_it() {
        for (later, verdict, is_blamed) in
            [(300 + TRIAL_MS, Verdict::Nothing, [true, true]), (301 + TRIAL_MS, Verdict::Guilty(who(2)), [false, true])]
        {
            let mut suspects = careful();
            suspects.handle_handed(who(1), Millis(300));
            suspects.handle_handed(who(2), Millis(later));
            assert_eq!(broken(&mut suspects, &[1, 2], later), verdict);
            assert_eq!([1, 2].map(|number| suspects.is_suspect(who(number))), is_blamed);
        }
    }

    #[test]
    fn a_batch_that_took_long_to_write_may_be_it_as_well_as_one_that_was_handed_over_behind_it() {
        let mut suspects = careful();
        suspects.handle_handed(who(1), Millis(300));
        suspects.handle_written(who(1), Millis(300 + TRIAL_MS));
        let later = 300 + TRIAL_MS + CAREFUL_GAP_MS;
        assert_eq!(suspects.gate(who(2), false), Some(Millis(later)), "it is sent whole before the next is");
        suspects.handle_handed(who(2), Millis(later));
        assert_eq!(broken(&mut suspects, &[1, 2], later + 1), Verdict::Nothing);
        assert!(suspects.is_suspect(who(1)) && suspects.is_suspect(who(2)));
    }

    #[test]
    fn a_slow_server_may_have_come_to_a_batch_late() {
        let mut suspects = careful();
        suspects.handle_handed(who(1), Millis(300));
        assert_eq!(broken(&mut suspects, &[1, 2], 60_000), Verdict::Guilty(who(1)), "the only one it can be");
        let mut suspects = careful();
        suspects.handle_handed(who(1), Millis(300));
        suspects.handle_handed(who(2), Millis(500));
        assert_eq!(broken(&mut suspects, &[1, 2, 3], 60_000), Verdict::Nothing);
        assert_eq!([1, 2, 3].map(|number| suspects.is_suspect(who(number))), [true, true, false]);
    }

    #[test]
    fn what_the_server_has_taken_is_not_blamed() {
        let mut suspects = careful();
        suspects.handle_handed(who(1), Millis(300));
        suspects.handle_handed(who(2), Millis(500));
        assert_eq!(broken(&mut suspects, &[2], 600), Verdict::Guilty(who(2)));
        assert!(!suspects.is_suspect(who(1)));
    }

    #[test]
    fn blame_ends_the_care_and_begins_the_count_anew() {
        let mut suspects = two_suspects();
        suspects.handle_opened(Millis(1_000));
        assert_eq!(suspects.gate(who(3), true), Some(Millis(0)));
        broken(&mut suspects, &[3], 1_010);
        suspects.handle_opened(Millis(1_020));
        assert_eq!(suspects.gate(who(3), true), Some(Millis(0)), "one stream ended over it");
    }

    #[test]
    fn a_new_stream_forgets_what_the_last_one_was_handed() {
        let mut suspects = careful();
        suspects.handle_handed(who(1), Millis(300));
        suspects.handle_opened(Millis(400));
        assert_eq!(broken(&mut suspects, &[1], 500), Verdict::Nothing);
        assert!(suspects.is_empty());
    }

    #[test]
    fn a_suspect_waits_aside_until_the_stream_has_held_and_is_silent() {
        let mut suspects = two_suspects();
        suspects.handle_opened(Millis(10_000));
        let ripe = 10_000 + PROBE_AFTER_MS;
        assert_eq!(suspects.gate(who(1), false), Some(Millis(ripe)));
        assert_eq!(suspects.gate(who(1), true), None);
        assert!(suspects.is_set_aside(who(1), Millis(ripe - 1)) && !suspects.is_set_aside(who(1), Millis(ripe)));
        assert!(!suspects.is_set_aside(who(3), Millis(10_000)));
        suspects.handle_written(who(9), Millis(ripe - 1));
        assert_eq!(suspects.gate(who(1), false), Some(Millis(ripe - 1 + TRIAL_MS)), "silence comes before a trial");
    }

    #[test]
    fn a_suspect_that_a_stream_outlives_in_silence_is_acquitted() {
        let mut suspects = two_suspects();
        suspects.handle_opened(Millis(10_000));
        suspects.handle_handed(who(1), Millis(20_000));
        assert_eq!(suspects.gate(who(3), true), None);
        suspects.handle_written(who(1), Millis(20_010));
        let end = 20_010 + TRIAL_MS;
        assert_eq!(suspects.gate(who(3), false), Some(Millis(end)), "silence comes after a trial");
        suspects.handle_time(false, Millis(end - 1));
        assert!(suspects.is_suspect(who(1)));
        suspects.handle_time(true, Millis(end));
        assert!(suspects.is_suspect(who(1)), "it is not written whole");
        suspects.handle_time(false, Millis(end));
        assert!(!suspects.is_suspect(who(1)) && suspects.is_suspect(who(2)), "the other has its own trial");
        assert_eq!(suspects.gate(who(3), false), Some(Millis(0)));
    }

    #[test]
    fn time_acquits_nobody_without_a_trial() {
        let mut suspects = two_suspects();
        suspects.handle_opened(Millis(10_000));
        suspects.handle_time(false, Millis(1_000_000));
        assert!(suspects.is_suspect(who(1)) && suspects.is_suspect(who(2)));
    }

    #[test]
    fn a_suspect_that_the_server_takes_is_acquitted() {
        let mut suspects = two_suspects();
        suspects.handle_opened(Millis(10_000));
        suspects.handle_handed(who(1), Millis(20_000));
        suspects.handle_confirmed(who(1), true);
        assert!(!suspects.is_suspect(who(1)) && suspects.is_suspect(who(2)));
        assert_eq!(suspects.gate(who(3), true), Some(Millis(0)), "its trial is over");
        suspects.handle_confirmed(who(2), true);
        assert!(suspects.is_empty());
    }

    #[test]
    fn a_suspect_that_ends_a_stream_alone_is_guilty_and_tried_later_the_next_time() {
        let mut suspects = two_suspects();
        suspects.handle_opened(Millis(10_000));
        suspects.handle_handed(who(1), Millis(20_000));
        suspects.handle_written(who(1), Millis(20_000));
        assert_eq!(broken(&mut suspects, &[1], 20_000 + TRIAL_MS), Verdict::Guilty(who(1)));
        assert!(suspects.is_guilty(who(1)) && !suspects.is_guilty(who(2)));
        suspects.handle_opened(Millis(50_000));
        let lived = 10_000 + TRIAL_MS;
        assert_eq!(suspects.gate(who(1), false), Some(Millis(50_000 + lived + TRIAL_MS)));
        assert_eq!(suspects.gate(who(2), false), Some(Millis(50_000 + PROBE_AFTER_MS)));
    }

    #[test]
    fn an_end_long_after_a_trial_or_without_the_suspect_in_flight_is_not_its_fault() {
        for (in_flight, ended, is_writing, is_guilty) in [
            (1, 20_000 + TRIAL_MS, false, true),
            (1, 20_001 + TRIAL_MS, false, false),
            (1, 90_000, true, true),
            (3, 20_001, false, false),
        ] {
            let mut suspects = two_suspects();
            suspects.handle_opened(Millis(10_000));
            suspects.handle_handed(who(1), Millis(20_000));
            suspects.handle_written(who(1), Millis(20_000));
            suspects.handle_broken(&[(who(in_flight), false)], is_writing, Millis(ended));
            assert_eq!(suspects.is_guilty(who(1)), is_guilty, "{in_flight} {ended} {is_writing}");
        }
    }

    #[test]
    fn a_record_is_condemned_after_enough_trials_with_witnesses_in_a_row() {
        let mut suspects = one_record();
        let mut now = 1_000;
        for strikes in 1..=POISON_STRIKES {
            now = dies_of_a_record(&mut suspects, now, true);
            assert!(suspects.is_guilty(who(1)));
            assert_eq!(suspects.is_condemned(who(1)), strikes == POISON_STRIKES, "{strikes} strikes");
        }
        assert!(!suspects.is_condemned(who(2)));
        suspects.handle_dropped(who(2));
        assert!(suspects.is_condemned(who(1)));
        suspects.handle_dropped(who(1));
        assert!(!suspects.is_condemned(who(1)) && suspects.is_empty());
    }

    #[test]
    fn trials_without_a_witness_do_not_count() {
        let mut suspects = one_record();
        let mut now = 1_000;
        for _ in 0..2 * POISON_STRIKES {
            now = dies_of_a_record(&mut suspects, now, false);
        }
        assert!(!suspects.is_guilty(who(1)) && !suspects.is_condemned(who(1)));
        for _ in 0..POISON_STRIKES {
            now = dies_of_a_record(&mut suspects, now, true);
        }
        assert!(suspects.is_condemned(who(1)));
    }

    #[test]
    fn a_suspect_is_no_witness_against_another_unless_it_is_acquitted_by_its_trial() {
        let mut suspects = one_record();
        // Another suspect: the parts of a batch that was cut.
        suspects.suspect([who(2)].into_iter(), 0);
        suspects.handle_opened(Millis(1_000));
        suspects.handle_handed(who(2), Millis(10_000));
        suspects.handle_written(who(2), Millis(10_000));
        suspects.handle_time(false, Millis(10_000 + TRIAL_MS));
        assert!(!suspects.is_suspect(who(2)));
        dies_of_a_record(&mut suspects, 20_000, false);
        assert!(suspects.is_guilty(who(1)));

        let mut suspects = one_record();
        suspects.suspect([who(2)].into_iter(), 0);
        suspects.handle_confirmed(who(2), true);
        dies_of_a_record(&mut suspects, 20_000, false);
        assert!(!suspects.is_guilty(who(1)));
    }

    #[test]
    fn an_end_that_has_nothing_to_do_with_it_takes_all_strikes_back() {
        let mut suspects = one_record();
        let mut now = 1_000;
        for _ in 0..POISON_STRIKES {
            now = dies_of_a_record(&mut suspects, now, true);
        }
        suspects.handle_unrelated();
        assert!(!suspects.is_condemned(who(1)) && !suspects.is_guilty(who(1)) && suspects.is_suspect(who(1)));
        dies_of_a_record(&mut suspects, now, true);
        assert!(suspects.is_guilty(who(1)));
        suspects.handle_opened(Millis(now + 100_000));
        broken(&mut suspects, &[1], now + 100_001);
        assert!(!suspects.is_guilty(who(1)), "it was not on trial when that stream ended");
    }

    #[test]
    fn an_unrelated_end_ends_a_trial_and_the_care() {
        let mut suspects = careful();
        suspects.handle_handed(who(1), Millis(300));
        suspects.handle_unrelated();
        assert_eq!(broken(&mut suspects, &[1, 2], 400), Verdict::Nothing);
        assert!(suspects.is_empty(), "it is not blamed for what it was handed before");

        let mut suspects = two_suspects();
        suspects.handle_opened(Millis(10_000));
        suspects.handle_handed(who(1), Millis(20_000));
        suspects.handle_unrelated();
        assert_eq!(suspects.gate(who(3), true), Some(Millis(0)));
    }

    #[test]
    fn the_parts_of_a_suspect_are_suspects() {
        let mut suspects = two_suspects();
        suspects.handle_cut(who(1), [who(4), who(5)].into_iter());
        let all = [1, 2, 4, 5].map(|number| suspects.is_suspect(who(number)));
        assert_eq!(all, [false, true, true, true]);
        assert!(!suspects.is_guilty(who(4)));
        suspects.handle_cut(who(3), [who(6)].into_iter());
        assert!(!suspects.is_suspect(who(6)), "the whole was none");
    }

    #[test]
    fn suspects_are_bounded_in_number() {
        let mut suspects = two_suspects();
        suspects.handle_cut(who(1), (100..100 + 2 * MAX_SUSPECTS).map(who));
        let known = (100..100 + 2 * MAX_SUSPECTS).filter(|number| suspects.is_suspect(who(*number)));
        assert_eq!(known.clone().count(), MAX_SUSPECTS, "batch 2 has made room");
        assert_eq!(known.max(), Some(99 + MAX_SUSPECTS), "those of one cut make none for each other");
        suspects.handle_cut(who(100), [who(101), who(102)].into_iter());
        suspects.handle_dropped(who(101));
        assert!(!suspects.is_suspect(who(101)), "nobody is one twice");
    }

    #[test]
    fn what_ends_streams_before_any_of_too_many_suspects_is_tried_takes_the_place_of_the_oldest() {
        let mut suspects = Suspects::default();
        suspects.suspect((0..MAX_SUSPECTS).map(who), 0);
        for number in [900, 901] {
            for opened in [1_000, 2_000] {
                suspects.handle_opened(Millis(opened));
                assert_eq!(broken(&mut suspects, &[800, number], opened + 10), Verdict::Nothing);
            }
            suspects.handle_opened(Millis(3_000));
            suspects.handle_handed(who(number), Millis(3_200));
            broken(&mut suspects, &[number], 3_300);
            assert!(suspects.is_suspect(who(number)));
        }
        assert_eq!([0, 1, 2, 900].map(|number| suspects.is_suspect(who(number))), [false, false, true, true]);
    }

    #[test]
    fn a_suspect_that_has_ended_a_trial_makes_no_room_for_others() {
        let mut suspects = one_record();
        dies_of_a_record(&mut suspects, 1_000, true);
        suspects.suspect((100..99 + MAX_SUSPECTS).map(who), 0);
        suspects.handle_cut(who(100), [who(101), who(102), who(900), who(901)].into_iter());
        assert!(suspects.is_guilty(who(1)) && suspects.is_suspect(who(900)) && suspects.is_suspect(who(901)));
        assert!(!suspects.is_suspect(who(101)), "the oldest that has not");
        let mut suspects = Suspects::default();
        suspects.suspect((0..MAX_SUSPECTS).map(who), 1);
        suspects.suspect([who(900)].into_iter(), 0);
        assert!(!suspects.is_suspect(who(900)) && suspects.is_suspect(who(0)));
    }
}
