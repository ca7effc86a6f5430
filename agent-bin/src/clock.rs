//! The agent's clock. Only this module looks at one; clippy.toml forbids it to all others.
#![allow(clippy::disallowed_methods, reason = "this is the place")]

use std::time::{Duration, Instant, UNIX_EPOCH};

use elklet_core::time::Millis;
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// A monotonic clock in milliseconds since it was made. Copies share their origin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(self) -> Millis {
        // 584 million years fit.
        Millis(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Time until a moment, or zero if it has passed.
    pub(crate) fn until(self, moment: Millis) -> Duration {
        self.instant(moment).saturating_duration_since(Instant::now())
    }

    /// Converts a moment for tokio's timers.
    pub(crate) fn instant(self, moment: Millis) -> Instant {
        self.origin.checked_add(Duration::from_millis(moment.0)).unwrap_or(self.origin)
    }
}

/// Measures how long something takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// The wall clock for people (RFC 3339, UTC), to the millisecond.
pub(crate) fn date_and_time() -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(UNIX_EPOCH + since_1970())
}

/// Formats seconds since 1970 as a date (RFC 3339, UTC).
pub(crate) fn date(unix_seconds: i64) -> String {
    // The format ends with the year 9999.
    let seconds = u64::try_from(unix_seconds).unwrap_or(0).min(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// Seconds since 1970 by the wall clock, for records' timestamps, or 0 before 1970.
pub(crate) fn unix_seconds() -> i64 {
    since_1970().as_secs().cast_signed()
}

/// The wall clock by which certificates are judged.
#[derive(Debug)]
pub(crate) struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(since_1970()))
    }
}

/// Reads the wall clock. Before 1970 it is a host without time, and this returns zero.
///
/// Rust's own clock cannot tell a time after January 2038 on processors of 32 bits.
fn since_1970() -> Duration {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}
