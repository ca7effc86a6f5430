//! Counts events that the kernel had no room for, and reports them to the server.
//!
//! Events also have numbers, one series for each processor. But the filter takes most events out of every series, so a
//! gap says nothing. The kernel counts for each socket what it could not queue.

use elklet_plugin::{Client, SendError};
use std::time::{Duration, Instant};

/// How often the event queue overran, and when to report that.
#[derive(Debug, Default)]
pub(crate) struct Overruns {
    total: u64,
    unreported: u64,
    reported_at: Option<Instant>,
    /// Events that the kernel had dropped at the last report.
    dropped_before: u64,
    needs_reload: bool,
}

/// Shortest time between reports: often enough to see when it happened, seldom enough for a log in a storm.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The data type of the reference's plugins' error logs that go to the server.
const LOG: i32 = 1010;

/// A report of lost events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// How often the queue overran since the last report, and since the start.
    overruns: u64,
    overruns_total: u64,
    /// Events that were lost since the last report, and since the start, if the kernel says.
    lost: Option<u64>,
    lost_total: Option<u64>,
}

impl Overruns {
    pub(crate) fn add(&mut self) {
        self.total += 1;
        self.unreported += 1;
        self.needs_reload = true;
    }

    /// Returns true when processes have to be read anew, once for any number of overruns.
    pub(crate) fn take_need_to_reload(&mut self) -> bool {
        std::mem::take(&mut self.needs_reload)
    }

    /// Returns the report that is due at `now`, or at once if this is the `last` occasion. `dropped` asks the kernel
    /// how many events it has dropped so far.
    pub(crate) fn report_due(
        &mut self,
        now: Instant,
        last: bool,
        dropped: impl FnOnce() -> Option<u64>,
    ) -> Option<Report> {
        let is_due = last || self.poll_timeout(now)?.is_zero();
        if self.unreported == 0 || !is_due {
            return None;
        }
        let lost_total = dropped();
        let lost = lost_total.map(|dropped| dropped.saturating_sub(self.dropped_before));
        self.dropped_before = lost_total.unwrap_or(self.dropped_before);
        self.reported_at = Some(now);
        let overruns = std::mem::take(&mut self.unreported);
        Some(Report { overruns, overruns_total: self.total, lost, lost_total })
    }

    /// Time from `now` until a report is due, or `None` if none is.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Duration> {
        if self.unreported == 0 {
            return None;
        }
        let due = self.reported_at.map_or(now, |at| at + REPORT_INTERVAL);
        Some(due.saturating_duration_since(now))
    }
}

impl Report {
    /// A line for the log.
    pub(crate) fn message(&self) -> String {
        let Self { overruns, overruns_total, lost, lost_total } = self;
        let counted =
            |events: &Option<u64>| events.map_or_else(|| "an unknown number of".into(), |events| events.to_string());
        format!(
            "the kernel's event queue overran {overruns} times and {} events were lost ({overruns_total} times and {} \
             events since the start)",
            counted(lost),
            counted(lost_total),
        )
    }

    /// Sends it to the server in the form of a plugin's log, with the counts in fields of their own.
    ///
    /// # Errors
    /// When the agent is gone.
    pub(crate) fn send(&self, client: &Client) -> Result<(), SendError> {
        let text = |number: Option<u64>| number.map_or_else(|| crate::row::FAILED.into(), |number| number.to_string());
        client.send(
            LOG,
            &[
                ("level", "warn"),
                ("source", concat!(file!(), ":", line!())),
                ("msg", &self.message()),
                ("plugin", "procwatch"),
                ("pver", env!("CARGO_PKG_VERSION")),
                ("overruns", &self.overruns.to_string()),
                ("overruns_total", &self.overruns_total.to_string()),
                ("lost_events", &text(self.lost)),
                ("lost_events_total", &text(self.lost_total)),
            ],
        )
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
        assert_eq!(overruns.poll_timeout(start), None);
        assert_eq!(overruns.report_due(start, true, || Some(0)), None);

        overruns.add();
        assert!(overruns.take_need_to_reload() && !overruns.take_need_to_reload());
        let first = Report { overruns: 1, overruns_total: 1, lost: Some(40), lost_total: Some(40) };
        assert_eq!(overruns.report_due(start, false, || Some(40)), Some(first));

        overruns.add();
        overruns.add();
        assert_eq!(overruns.report_due(after(4), false, || Some(50)), None);
        assert_eq!(overruns.poll_timeout(after(4)), Some(Duration::from_secs(6)));
        let second = Report { overruns: 2, overruns_total: 3, lost: Some(60), lost_total: Some(100) };
        assert_eq!(overruns.report_due(after(10), false, || Some(100)), Some(second));

        overruns.add();
        let last = Report { overruns: 1, overruns_total: 4, lost: None, lost_total: None };
        assert_eq!(overruns.report_due(after(11), true, || None), Some(last), "the end does not wait");
    }

    #[test]
    fn a_report_says_what_is_not_known() {
        let report = Report { overruns: 2, overruns_total: 3, lost: None, lost_total: Some(9) };
        let expected = "the kernel's event queue overran 2 times and an unknown number of events were lost \
                        (3 times and 9 events since the start)";
        assert_eq!(report.message(), expected);
    }
}
