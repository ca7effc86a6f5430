//! Decides which of the agent's own warnings and errors go to the server (data type 1010) and which are only counted.
//!
//! A place in the source may have [`REPORTS_PER_PLACE`] reports an interval. Further ones are counted, and the place's
//! next report says how many there were. No more than that of one place may wait either. A long time without a server
//! therefore costs no more than a short one, and the server hears of what came first: why it is out of reach.

use alloc::collections::VecDeque;

use crate::limits::{MAX_REPORT_PLACES, MAX_REPORTS_WAITING, REPORT_INTERVAL_MS, REPORTS_PER_PLACE};
use crate::time::Millis;

/// A place in the source that warns or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The file, as the compiler names it.
    pub file: &'static str,
    /// The line, from 1.
    pub line: u32,
}

/// Reports that wait to be taken, and the counts of their places.
#[derive(Debug)]
pub struct Reports<T> {
    places: heapless::Vec<Known, MAX_REPORT_PLACES>,
    /// Each report with the index of its place.
    waiting: VecDeque<(usize, T)>,
    suppressed: u64,
}

#[derive(Debug)]
struct Known {
    place: Place,
    /// When the interval began, and how many reports have been admitted in it.
    since: Millis,
    admitted: usize,
    waiting: usize,
    /// Reports suppressed since the last one that was admitted.
    suppressed: u64,
}

impl Known {
    fn is_idle(&self, now: Millis) -> bool {
        self.waiting == 0 && now.since(self.since) >= REPORT_INTERVAL_MS
    }
}

impl<T> Reports<T> {
    /// No report waits, and no place is known.
    #[must_use]
    pub const fn new() -> Self {
        Self { places: heapless::Vec::new(), waiting: VecDeque::new(), suppressed: 0 }
    }

    /// A place warns or fails. If that is to be reported, `report` makes the report from the number that the same place
    /// had suppressed before. Returns true when there is a new report to take.
    pub fn handle(&mut self, place: Place, now: Millis, report: impl FnOnce(u64) -> T) -> bool {
        let room = self.waiting.len() < MAX_REPORTS_WAITING;
        let index = self.index_of(place, now);
        let Some(known) = index.and_then(|index| self.places.get_mut(index)) else {
            self.suppressed += 1;
            return false;
        };
        if now.since(known.since) >= REPORT_INTERVAL_MS {
            (known.since, known.admitted) = (now, 0);
        }
        if !room || known.admitted == REPORTS_PER_PLACE || known.waiting == REPORTS_PER_PLACE {
            known.suppressed += 1;
            self.suppressed += 1;
            return false;
        }
        known.admitted += 1;
        known.waiting += 1;
        let report = report(core::mem::take(&mut known.suppressed));
        self.waiting.extend(index.map(|index| (index, report)));
        true
    }

    /// Takes the oldest report.
    pub fn take(&mut self) -> Option<T> {
        let (index, report) = self.waiting.pop_front()?;
        if let Some(known) = self.places.get_mut(index) {
            known.waiting -= 1;
        }
        Some(report)
    }

    /// Number of suppressed reports, of all places.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }

    /// Finds the place. If there is no room for a new one, it replaces one that has been idle for an interval.
    fn index_of(&mut self, place: Place, now: Millis) -> Option<usize> {
        if let Some(index) = self.places.iter().position(|known| known.place == place) {
            return Some(index);
        }
        let new = Known { place, since: now, admitted: 0, waiting: 0, suppressed: 0 };
        match self.places.push(new) {
            Ok(()) => Some(self.places.len() - 1),
            Err(new) => {
                let index = self.places.iter().position(|known| known.is_idle(now))?;
                self.places[index] = new;
                Some(index)
            }
        }
    }
}

impl<T> Default for Reports<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(line: u32) -> Place {
        Place { file: "src/x.rs", line }
    }

    #[test]
    fn a_flood_is_cut_and_its_length_is_told() {
        let mut reports = Reports::new();
        let admitted = (0..1000).filter(|i| reports.handle(at(1), Millis(*i), |suppressed| suppressed)).count();
        assert_eq!((admitted, reports.suppressed()), (REPORTS_PER_PLACE, 1000 - REPORTS_PER_PLACE as u64));
        assert!(reports.handle(at(2), Millis(1000), |suppressed| suppressed), "another place has its own");
        assert!(core::iter::from_fn(|| reports.take()).all(|suppressed| suppressed == 0));
        assert!(!reports.handle(at(1), Millis(REPORT_INTERVAL_MS - 1), |suppressed| suppressed));
        assert!(reports.handle(at(1), Millis(REPORT_INTERVAL_MS), |suppressed| suppressed));
        assert_eq!(reports.take(), Some(1001 - REPORTS_PER_PLACE as u64));
    }

    #[test]
    fn while_nobody_takes_them_the_first_ones_stay() {
        let mut reports = Reports::new();
        // An interpreter would take an hour for as many as an agent has in a week.
        let minutes = if cfg!(miri) { 20 } else { 10_000 };
        for minute in 0..minutes {
            for line in 0..100 {
                reports.handle(at(line), Millis(minute * REPORT_INTERVAL_MS), |_| (minute, line));
            }
        }
        let kept: alloc::vec::Vec<_> = core::iter::from_fn(|| reports.take()).collect();
        assert_eq!(kept.len(), MAX_REPORTS_WAITING);
        assert!(kept.iter().all(|(minute, _)| *minute < 10), "{kept:?}");
    }

    proptest! {
        #[test]
        fn every_one_is_reported_or_counted(steps in prop::collection::vec((0..80u32, 0..20_000u64, prop::bool::ANY), 0..400)) {
            let mut reports = Reports::new();
            let (mut now, mut handled, mut taken) = (Millis(0), 0u64, 0);
            for (line, later, take) in steps {
                now = now + later;
                reports.handle(at(line), now, |_| ());
                handled += 1;
                if take {
                    taken += u64::from(reports.take().is_some());
                }
            }
            while reports.take().is_some() {
                taken += 1;
            }
            prop_assert_eq!(handled, taken + reports.suppressed());
        }
    }

    #[test]
    fn a_place_may_report_again_when_its_interval_is_over() {
        let mut reports = Reports::new();
        for start in [0, REPORT_INTERVAL_MS, 2 * REPORT_INTERVAL_MS] {
            let admitted =
                (0..10).filter(|i| reports.handle(at(1), Millis(start + i), |suppressed| suppressed)).count();
            assert_eq!(admitted, REPORTS_PER_PLACE);
            let taken: alloc::vec::Vec<_> = core::iter::from_fn(|| reports.take()).collect();
            assert_eq!(taken[0], if start == 0 { 0 } else { 10 - REPORTS_PER_PLACE as u64 });
            assert!(taken[1..].iter().all(|suppressed| *suppressed == 0), "they are told once");
        }
    }

    #[test]
    fn no_more_reports_wait_than_there_is_room_for() {
        let mut reports = Reports::new();
        let mut handle = |line| reports.handle(at(line), Millis(0), |_| line);
        assert!((0..40).all(&mut handle), "each of 40 places has one");
        let admitted = (0..40).filter(|line| handle(*line)).count();
        assert_eq!(admitted, MAX_REPORTS_WAITING - 40);
        assert_eq!(reports.suppressed(), 40 - admitted as u64);
        assert_eq!(reports.take(), Some(0), "the oldest goes first");
        assert!(reports.handle(at(47), Millis(0), |_| 47), "and leaves room");
    }

    #[test]
    fn a_new_place_takes_that_of_one_that_has_been_silent_and_has_nothing_waiting() {
        let places = u32::try_from(MAX_REPORT_PLACES).expect("few");
        let mut reports = Reports::new();
        (0..places).for_each(|line| assert!(reports.handle(at(line), Millis(0), |_| line)));
        let later = Millis(REPORT_INTERVAL_MS);
        assert!(!reports.handle(at(900), later, |_| 900), "all have reports that wait");
        assert_eq!(core::iter::from_fn(|| reports.take()).count(), MAX_REPORT_PLACES);
        assert!(!reports.handle(at(901), Millis(REPORT_INTERVAL_MS - 1), |_| 901), "all were heard of lately");
        assert_eq!(reports.suppressed(), 2, "what no place is known for is counted as well");
        assert!(reports.handle(at(902), later, |_| 902));
        assert_eq!(reports.take(), Some(902));
    }

    #[test]
    fn reports_that_wait_are_counted_by_place() {
        let mut reports = Reports::new();
        for i in 0..REPORTS_PER_PLACE as u64 {
            assert!(reports.handle(at(1), Millis(i), |_| ()));
        }
        let later = Millis(REPORT_INTERVAL_MS);
        assert!(!reports.handle(at(1), later, |_| ()), "as many wait as may");
        assert_eq!(reports.take(), Some(()));
        assert!(reports.handle(at(1), later, |_| ()), "one was taken");
        assert!(!reports.handle(at(1), later, |_| ()));
    }
}
