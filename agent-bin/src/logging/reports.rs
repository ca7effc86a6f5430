//! Sends the agent's warnings and errors to the server as records (data type 1010), as the reference sends its errors.
//!
//! The logger passes every warning and error here, from any thread. While there is a stream, the net loop takes those
//! that core's [`Reports`] admits. Nothing in here logs.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use elklet_core::limits::MAX_REPORT_CHARS;
use elklet_core::reports::{Place, Reports};
use log::{Level, Record};
use tokio::sync::Notify;

use crate::clock::{self, Clock};

/// The target of log lines about which the server hears in another way.
pub(crate) const TOLD_OTHERWISE: &str = "elklet::told";

static REPORTS: Mutex<Reports<ErrorReport>> = Mutex::new(Reports::new());
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::start);
static NEWS: Notify = Notify::const_new();

/// One warning or error.
#[derive(Debug)]
pub(crate) struct ErrorReport {
    /// When it was logged, in seconds since 1970.
    pub(crate) timestamp: i64,
    /// The level, under the reference's name.
    pub(crate) level: &'static str,
    /// File and line, relative to the crate's `src`.
    pub(crate) source: String,
    pub(crate) text: String,
    /// How many of the same place were suppressed before it.
    pub(crate) suppressed: u64,
}

/// Notes a log line. `text` is its text in the log.
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

/// A file's path relative to the crate's `src`. The rest belongs to the machine that built it.
pub(crate) fn in_source(file: &str) -> &str {
    file.rsplit_once("src/").map_or(file, |(_, inner)| inner)
}

/// Takes the oldest report.
pub(crate) fn take() -> Option<ErrorReport> {
    lock().take()
}

/// Number of suppressed reports.
pub(crate) fn suppressed() -> u64 {
    lock().suppressed()
}

/// Waits until there is a new report to take.
pub(crate) async fn news() {
    NEWS.notified().await;
}

fn lock() -> MutexGuard<'static, Reports<ErrorReport>> {
    REPORTS.lock().unwrap_or_else(PoisonError::into_inner)
}
