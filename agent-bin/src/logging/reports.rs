//! The agent's warnings and errors as records for the server (data type 1010), as the reference sends its errors.
//!
//! The logger brings every warning and error here, from whatever thread; the net loop takes what core's [`Reports`] lets
//! through while there is a stream. Nothing in here logs.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use elklet_core::limits::MAX_REPORT_CHARS;
use elklet_core::reports::{Place, Reports};
use log::{Level, Record};
use tokio::sync::Notify;

use crate::clock::{self, Clock};

/// The target of log lines that the server is told of in another way.
pub(crate) const TOLD_OTHERWISE: &str = "elklet::told";

static REPORTS: Mutex<Reports<ErrorReport>> = Mutex::new(Reports::new());
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::start);
static NEWS: Notify = Notify::const_new();

/// One warning or error.
#[derive(Debug)]
pub(crate) struct ErrorReport {
    /// Seconds since 1970 when it was logged.
    pub(crate) timestamp: i64,
    /// As the reference names it.
    pub(crate) level: &'static str,
    /// File and line, from the crate's `src` on.
    pub(crate) source: String,
    pub(crate) text: String,
    /// How many of the same place were not reported before it.
    pub(crate) suppressed: u64,
}

/// Takes note of a log line; `text` is its text as it stands in the log.
pub(crate) fn note(record: &Record<'_>, text: &str) {
    let (Some(file), Some(line)) = (record.file_static(), record.line()) else { return };
    if record.level() > Level::Warn || record.target() == TOLD_OTHERWISE {
        return;
    }
    let report = |suppressed| ErrorReport {
        timestamp: clock::unix_seconds(),
        level: if record.level() == Level::Error { "error" } else { "warn" },
        source: format!("{}:{line}", in_source(file)),
        text: text.chars().take(MAX_REPORT_CHARS).collect(),
        suppressed,
    };
    if lock().handle(Place { file, line }, CLOCK.now(), report) {
        NEWS.notify_one();
    }
}

/// A file's path within the crate's `src`: the rest is that of the machine on which it was built.
pub(crate) fn in_source(file: &str) -> &str {
    file.rsplit_once("src/").map_or(file, |(_, inner)| inner)
}

/// The oldest that nobody has taken.
pub(crate) fn take() -> Option<ErrorReport> {
    lock().take()
}

/// How many were only counted.
pub(crate) fn suppressed() -> u64 {
    lock().suppressed()
}

/// Returns when there is something to take that was not there the last time.
pub(crate) async fn news() {
    NEWS.notified().await;
}

fn lock() -> MutexGuard<'static, Reports<ErrorReport>> {
    REPORTS.lock().unwrap_or_else(PoisonError::into_inner)
}
