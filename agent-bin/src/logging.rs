//! The agent's log: `log/elklet.log` in the work directory, rotated, and standard error when asked.
//!
//! Size and number of files are the reference's: 1 MB each, ten old ones, compressed. A log that cannot be written never
//! stops the agent.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use log::{LevelFilter, Log, Metadata, Record};

use crate::{config, reports};

const FILE: &str = "elklet.log";

const FILE_BYTES: usize = 1 << 20;

const OLD_FILES: usize = 10;

/// Bytes of one line at most: texts of peers may be in it.
const MAX_LINE_BYTES: usize = 4096;

/// Lines that could not be written, for the heartbeat.
static LOST_LINES: AtomicU64 = AtomicU64::new(0);

/// Whether lines go to standard error as well.
static TO_STDERR: AtomicBool = AtomicBool::new(false);

/// Starts logging.
///
/// # Errors
/// When the log's directory cannot be made; the path is in the text.
pub(crate) fn start(workdir: &Path, settings: &config::Log) -> Result<(), String> {
    let directory = workdir.join("log");
    std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let logger = Logger { file: Mutex::new(open(&directory)), directory };
    log::set_boxed_logger(Box::new(logger)).map_err(|error| error.to_string())?;
    configure(settings);
    Ok(())
}

/// Logs by other settings from now on.
pub(crate) fn configure(settings: &config::Log) {
    TO_STDERR.store(settings.stderr, Ordering::Relaxed);
    log::set_max_level(if settings.debug { LevelFilter::Debug } else { LevelFilter::Info });
}

/// Lines that were not written since the start.
pub(crate) fn lost_lines() -> u64 {
    LOST_LINES.load(Ordering::Relaxed)
}

struct Logger {
    directory: PathBuf,
    file: Mutex<FileRotate<AppendCount>>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries are heard when they warn; their debugging is theirs.
        metadata.target().starts_with("elklet") || metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Texts of plugins and servers may be in it: one line stays one line, and a terminal is not spoken to.
        let text = record.args().to_string().replace(char::is_control, " ");
        reports::note(record, &text);
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        let mut line = format!("{now} {:5} {text}", record.level());
        if line.len() >= MAX_LINE_BYTES {
            line.truncate(line.floor_char_boundary(MAX_LINE_BYTES));
        }
        line.push('\n');
        if TO_STDERR.load(Ordering::Relaxed) {
            let _ = io::stderr().write_all(line.as_bytes());
        }
        if self.write(line.as_bytes()).is_err() {
            LOST_LINES.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // The rotation takes file and directory for granted; somebody may have moved or deleted them.
        if !self.directory.join(FILE).exists() {
            std::fs::create_dir_all(&self.directory)?;
            *file = open(&self.directory);
        }
        file.write_all(line)
    }
}

/// Opens the log in a directory that exists.
fn open(directory: &Path) -> FileRotate<AppendCount> {
    FileRotate::new(
        directory.join(FILE),
        AppendCount::new(OLD_FILES),
        ContentLimit::BytesSurpassed(FILE_BYTES),
        Compression::OnRotate(1),
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_rotates_survives_its_directory_and_keeps_lines_whole() {
        let workdir = tempfile::tempdir().expect("a directory");
        start(workdir.path(), &config::Log::default()).expect("a first logger");
        for i in 0..30_000 {
            log::info!("line {i} with some text that makes it long enough to fill a few files\nand a break");
        }
        log::debug!("nobody asked for this");
        let directory = workdir.path().join("log");
        let count = || std::fs::read_dir(&directory).expect("it exists").count();
        assert!((3..=OLD_FILES + 1).contains(&count()), "{} files", count());
        let current = std::fs::read_to_string(directory.join("elklet.log")).expect("text");
        assert!(current.len() <= FILE_BYTES + MAX_LINE_BYTES);
        assert!(current.lines().all(|line| line.ends_with("and a break") && line.contains(" INFO  line ")));

        std::fs::remove_dir_all(&directory).expect("writable");
        log::info!("after the end");
        assert!(
            std::fs::read_to_string(directory.join("elklet.log")).expect("made again").ends_with("after the end\n")
        );
        assert_eq!(lost_lines(), 0);
    }
}
