//! The log: lines on standard error.

use log::{LevelFilter, Log, Metadata, Record};
use std::io::{self, Write};
use std::sync::OnceLock;

/// Has log lines written to standard error from now on, behind the program's name: warnings and errors, and unless it is to be quiet,
/// what else this workspace's crates say. Only the first call counts.
pub fn to_stderr(program: &'static str, quiet: bool) {
    static LOGGER: OnceLock<Stderr> = OnceLock::new();
    if log::set_logger(LOGGER.get_or_init(|| Stderr(program))).is_ok() {
        log::set_max_level(if quiet { LevelFilter::Warn } else { LevelFilter::Info });
    }
}

struct Stderr(&'static str);

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("elklet") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{}: {}\n", self.0, record.args());
            // Nobody may read it any more. That is no reason to end.
            _ = io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
