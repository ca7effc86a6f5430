//! Keeps account of events that the kernel had no room for.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often the event queue overran, and when that is to be told.
#[derive(Debug, Default)]
pub(crate) struct Overruns {
    total: u64,
    unreported: u64,
    reported_at: Option<Instant>,
    needs_reload: bool,
}

/// Often enough to see when it happened, seldom enough for a log in a storm.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

impl Overruns {
    pub(crate) fn add(&mut self) {
        self.total += 1;
        self.unreported += 1;
        self.needs_reload = true;
    }

    /// Whether what is known of processes has to be read anew; asks once for any number of overruns.
    pub(crate) fn take_need_to_reload(&mut self) -> bool {
        std::mem::take(&mut self.needs_reload)
    }

    /// The message that is due at `now`, or at once when it is the `last` occasion.
    pub(crate) fn report_due(&mut self, now: Instant, last: bool) -> Option<impl Display + use<>> {
        let is_due = last || self.poll_timeout(now)?.is_zero();
        if self.unreported == 0 || !is_due {
            return None;
        }
        let Self { unreported, total, .. } = *self;
        self.unreported = 0;
        self.reported_at = Some(now);
        Some(format!("the kernel's event queue overran {unreported} times ({total} since the start), events were lost"))
    }

    /// How long one may sleep at `now` before a report is due; `None` when none is.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Duration> {
        if self.unreported == 0 {
            return None;
        }
        let due = self.reported_at.map_or(now, |at| at + REPORT_INTERVAL);
        Some(due.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_next_together() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut overruns = Overruns::default();
        let told = |overruns: &mut Overruns, now, last| overruns.report_due(now, last).map(|m| m.to_string());
        assert_eq!(overruns.poll_timeout(start), None);
        assert_eq!(told(&mut overruns, start, true), None);

        overruns.add();
        assert!(overruns.take_need_to_reload() && !overruns.take_need_to_reload());
        let first = "the kernel's event queue overran 1 times (1 since the start), events were lost";
        assert_eq!(told(&mut overruns, start, false).as_deref(), Some(first));

        overruns.add();
        overruns.add();
        assert_eq!(told(&mut overruns, after(4), false), None);
        assert_eq!(overruns.poll_timeout(after(4)), Some(Duration::from_secs(6)));
        let second = "the kernel's event queue overran 2 times (3 since the start), events were lost";
        assert_eq!(told(&mut overruns, after(10), false).as_deref(), Some(second));

        overruns.add();
        assert!(told(&mut overruns, after(11), true).is_some(), "the end does not wait");
    }
}
