//! The agent's log: `log/elklet.log` in the work directory, rotated, and standard error when asked.
//!
//! Size and number of files are the reference's: 1 MB each, ten old ones, of which all but the newest are compressed:
//! `elklet.log`, `elklet.log.1`, `elklet.log.2.gz` and so on. Their user alone may read them. A log that cannot be written
//! never stops the agent, nor does anything that others do to the files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use log::{LevelFilter, Log, Metadata, Record};

use crate::{config, reports};

const FILE: &str = "elklet.log";

/// A file that has more is put away before the next line.
const FILE_BYTES: u64 = 1 << 20;

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
    make(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let logger = Logger(Mutex::new(Files { directory, open: None }));
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

struct Logger(Mutex<Files>);

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
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line.as_bytes()).is_err() {
            LOST_LINES.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// The log's files. Nothing of what lies in the directory is remembered, since others may change it.
#[derive(Debug)]
struct Files {
    directory: PathBuf,
    /// The current file, and its device and inode.
    open: Option<(File, (u64, u64))>,
}

impl Files {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.current()?.write_all(line)
    }

    /// The file that lies at the log's path: another one when it is full, or when somebody has moved or deleted it.
    fn current(&mut self) -> io::Result<&File> {
        let path = self.directory.join(FILE);
        let mut present = fs::metadata(&path).ok();
        if present.as_ref().is_some_and(|file| file.len() > FILE_BYTES) {
            rotate(&self.directory)?;
            present = None;
        }
        let present = present.as_ref().map(inode);
        // A file that is left is closed before the next is opened: a process may have no descriptor to spare.
        let open = match self.open.take().filter(|(_, inode)| Some(*inode) == present) {
            Some(open) => open,
            None => {
                make(&self.directory)?;
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
                let inode = inode(&file.metadata()?);
                (file, inode)
            }
        };
        Ok(&self.open.insert(open).0)
    }
}

fn inode(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Makes the log's directory if it is not there.
fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Puts the current file away as the newest of the old ones, and deletes the oldest. What is not there is passed over.
fn rotate(directory: &Path) -> io::Result<()> {
    let old = |number: usize, suffix: &str| directory.join(format!("{FILE}.{number}{suffix}"));
    // Somebody may have unpacked one: both are kept.
    for suffix in ["", ".gz"] {
        unless_absent(fs::remove_file(old(OLD_FILES, suffix)))?;
        for number in (1..OLD_FILES).rev() {
            unless_absent(fs::rename(old(number, suffix), old(number + 1, suffix)))?;
        }
    }
    unless_absent(fs::rename(directory.join(FILE), old(1, "")))?;
    // What cannot be compressed, perhaps because the disk is full, stays as it is.
    let (plain, unfinished) = (old(2, ""), directory.join(format!("{FILE}.gz.new")));
    if compress(&plain, &unfinished).and_then(|()| fs::rename(&unfinished, old(2, ".gz"))).is_ok() {
        unless_absent(fs::remove_file(&plain))?;
    } else {
        let _ = fs::remove_file(&unfinished);
    }
    Ok(())
}

fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn compress(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    let mut encoder = GzEncoder::new(to, Compression::default());
    io::copy(&mut from, &mut encoder)?;
    encoder.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use flate2::read::GzDecoder;

    use super::*;

    /// Lines of a number each, until the log has been rotated so often.
    struct Lines {
        files: Files,
        next: usize,
    }

    impl Lines {
        /// In a directory that is not there yet.
        fn new(directory: PathBuf) -> Self {
            Self { files: Files { directory, open: None }, next: 0 }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.files.directory.join(name)
        }

        fn write(&mut self) -> io::Result<()> {
            self.next += 1;
            self.files.write(format!("{:01023}\n", self.next).as_bytes())
        }

        fn rotate(&mut self, times: usize) {
            for _ in 0..times {
                let mut before = 0;
                loop {
                    self.write().expect("a line");
                    let now = fs::metadata(self.path(FILE)).expect("the log").len();
                    if std::mem::replace(&mut before, now) > now {
                        break;
                    }
                }
            }
        }

        fn names(&self) -> BTreeSet<String> {
            let entries = fs::read_dir(&self.files.directory).expect("it exists");
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
        }

        /// The numbers of one file's lines.
        fn numbers(&self, name: &str) -> Vec<usize> {
            let mut text = String::new();
            let mut file = File::open(self.path(name)).expect(name);
            match name.ends_with(".gz") {
                true => GzDecoder::new(file).read_to_string(&mut text).expect("compressed text"),
                false => file.read_to_string(&mut text).expect("text"),
            };
            text.lines().map(|line| line.parse().expect("a number")).collect()
        }
    }

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| format!("{FILE}{name}")).collect()
    }

    #[test]
    fn old_files_are_numbered_compressed_and_bounded_and_nobody_else_reads_them() {
        let workdir = tempfile::tempdir().expect("a directory");
        let mut lines = Lines::new(workdir.path().join("log"));
        lines.rotate(3);
        assert_eq!(lines.names(), names(&["", ".1", ".2.gz", ".3.gz"]));
        let inner: Vec<_> = [".3.gz", ".2.gz", ".1", ""]
            .into_iter()
            .flat_map(|suffix| lines.numbers(&format!("{FILE}{suffix}")))
            .collect();
        assert_eq!(inner, (1..=lines.next).collect::<Vec<_>>());
        lines.rotate(OLD_FILES);
        assert_eq!(lines.names().len(), OLD_FILES + 1, "{:?}", lines.names());
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!(mode(&lines.files.directory), 0o700);
        assert!(lines.names().iter().all(|name| mode(&lines.path(name)) == 0o600));
    }

    #[test]
    fn old_files_may_be_deleted_moved_and_unpacked_while_it_logs() {
        let workdir = tempfile::tempdir().expect("a directory");
        let mut lines = Lines::new(workdir.path().join("log"));
        lines.rotate(4);
        fs::remove_file(lines.path("elklet.log.1")).expect("an old file");
        lines.rotate(1);
        assert_eq!(lines.names(), names(&["", ".1", ".3.gz", ".4.gz", ".5.gz"]));
        // As gunzip does it, and as it does when it is to keep what it unpacks.
        let unpacked = lines.numbers("elklet.log.3.gz");
        fs::rename(lines.path("elklet.log.3.gz"), lines.path("elklet.log.3")).expect("an old file");
        fs::copy(lines.path("elklet.log.4.gz"), lines.path("elklet.log.4")).expect("an old file");
        lines.rotate(1);
        assert_eq!(lines.names(), names(&["", ".1", ".2.gz", ".4", ".5", ".5.gz", ".6.gz"]));
        fs::rename(lines.path("elklet.log.4"), lines.path("elklet.log.4.gz")).expect("an old file");
        assert_eq!(lines.numbers("elklet.log.4.gz"), unpacked);
        // The current file too, and what stands in its place is written on.
        fs::rename(lines.path(FILE), lines.path("taken")).expect("the log");
        fs::write(lines.path(FILE), "0\n").expect("writable");
        lines.write().expect("a line");
        assert_eq!(lines.numbers(FILE), [0, lines.next]);
        lines.rotate(OLD_FILES + 1);
        assert_eq!(lines.names().len(), OLD_FILES + 2, "{:?}", lines.names());
    }

    #[test]
    fn a_line_that_no_file_takes_is_an_error_and_the_next_one_may_not_be() {
        let workdir = tempfile::tempdir().expect("a directory");
        let mut lines = Lines::new(workdir.path().join("log"));
        fs::create_dir_all(lines.path(FILE)).expect("a directory in the way");
        lines.write().expect_err("not a file");
        fs::remove_dir(lines.path(FILE)).expect("empty");
        lines.write().expect("a line");
        // An old file that cannot be made room for.
        fs::create_dir(lines.path("elklet.log.10")).expect("a directory in the way");
        while lines.write().is_ok() {}
        lines.write().expect_err("still in the way");
        assert_eq!(lines.names(), names(&["", ".10"]));
        fs::remove_dir(lines.path("elklet.log.10")).expect("empty");
        lines.write().expect("a line");
        assert_eq!(lines.names(), names(&["", ".1"]));
    }

    #[test]
    fn the_log_rotates_survives_its_directory_and_keeps_lines_whole() {
        let workdir = tempfile::tempdir().expect("a directory");
        start(workdir.path(), &config::Log::default()).expect("a first logger");
        for i in 0..30_000 {
            log::info!("line {i} with some text that makes it long enough to fill a few files\nand a break");
        }
        log::debug!("nobody asked for this");
        let directory = workdir.path().join("log");
        let count = || fs::read_dir(&directory).expect("it exists").count();
        assert!((3..=OLD_FILES + 1).contains(&count()), "{} files", count());
        let current = fs::read_to_string(directory.join("elklet.log")).expect("text");
        assert!(current.len() as u64 <= FILE_BYTES + MAX_LINE_BYTES as u64);
        assert!(current.lines().all(|line| line.ends_with("and a break") && line.contains(" INFO  line ")));

        fs::remove_dir_all(&directory).expect("writable");
        log::info!("after the end");
        assert!(fs::read_to_string(directory.join("elklet.log")).expect("made again").ends_with("after the end\n"));
        assert_eq!(lost_lines(), 0);
    }
}
