//! The agent's log and its audit: `log/elklet.log` and `log/audit.log` in the work directory, rotated, and standard
//! error on request.
//!
//! Size and number of files are the reference's: 1 MB each, and ten old ones, all but the newest compressed:
//! `elklet.log`, `elklet.log.1`, `elklet.log.2.gz` and so on. Only their user may read them.
//!
//! Nothing about the log stops the agent: not a file that cannot be written, not what others do to the files (`files`),
//! not a reader of standard error that does not read (`stderr`). Each place in the source has a bound, so that a peer that
//! provokes one line again and again does not wash out the others. The audit (`audit`) has a bound for each kind of event.

mod audit;
mod files;
pub(crate) mod reports;
mod stderr;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use elklet_core::flood::{Flood, Rate, Verdict};
use elklet_core::limits::{
    AUDIT_BURST_BYTES, AUDIT_BYTES_PER_MINUTE, AUDIT_REFUSED_BURST_BYTES, AUDIT_REFUSED_BYTES_PER_MINUTE,
    LOG_BURST_BYTES, LOG_BYTES_PER_MINUTE, MAX_LOG_PLACES,
};
use elklet_core::printable::Printable;
use elklet_core::reports::Place;
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};

pub(crate) use self::audit::{Event, Kind};
use self::files::{Directory, Rotated};
use self::stderr::Stderr;
use crate::clock;
use crate::clock::Clock;
use crate::config;
use crate::sys::atomic::AtomicU64;

/// The longest line, in bytes, with its line feed. Texts of peers may be in it, and a pipe takes this much at once.
const MAX_LINE_BYTES: usize = stderr::MAX_BYTES;

/// True if lines go to standard error as well.
static TO_STDERR: AtomicBool = AtomicBool::new(false);

/// Behind a pointer, because its 10 KB would lie in the program's file otherwise.
static LOGGER: OnceLock<Box<Logger>> = OnceLock::new();

/// Lines that were lost since the start.
#[derive(Debug)]
struct Losses {
    /// Lines that no file could take.
    log: AtomicU64,
    audit: AtomicU64,
    /// Lines that standard error did not take.
    stderr: AtomicU64,
}

static LOST: Losses = Losses { log: AtomicU64::new(0), audit: AtomicU64::new(0), stderr: AtomicU64::new(0) };

/// The state of the log, for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Why lines cannot be written now.
    pub(crate) error: Option<String>,
    /// Why events cannot be audited now.
    pub(crate) audit_error: Option<String>,
    /// Lines of the log, and events, that no file could take.
    pub(crate) lines_lost: u64,
    pub(crate) audit_lost: u64,
    /// Lines that standard error did not take.
    pub(crate) stderr_lines_lost: u64,
    /// Lines and events beyond the bound of their place or kind.
    pub(crate) lines_left_out: u64,
    pub(crate) audit_left_out: u64,
}

/// Starts logging into files in this directory. If there can be no file, it says so on standard error, and each line tries again.
///
/// # Errors
/// When there is a logger already.
pub(crate) fn start(directory: &Path, settings: &config::Log) -> Result<(), SetLoggerError> {
    let logger =
        LOGGER.get_or_init(|| Box::new(Logger { clock: Clock::start(), sinks: Mutex::new(Sinks::new(directory)) }));
    log::set_logger(logger)?;
    configure(settings);
    Ok(())
}

/// Uses other settings from now on.
pub(crate) fn configure(settings: &config::Log) {
    TO_STDERR.store(settings.stderr, Ordering::Relaxed);
    log::set_max_level(if settings.debug { LevelFilter::Debug } else { LevelFilter::Info });
}

/// Sets the server whose requests are audited from now on.
pub(crate) fn set_server(address: &str) {
    if let Some(logger) = LOGGER.get() {
        address.clone_into(&mut logger.lock().server);
    }
}

/// Writes an event into the audit.
pub(crate) fn audit(event: &Event<'_>) {
    if let Some(logger) = LOGGER.get() {
        logger.lock().audit(event, logger.clock);
    }
}

/// Tries failed files again, and returns the log's state.
pub(crate) fn look_after() -> State {
    LOGGER.get().map_or_else(State::default, |logger| logger.lock().look_after())
}

/// Writes a line to standard error, unless that would block.
pub(crate) fn say(line: &str) {
    let _ = Stderr::default().write(line, |_| String::new());
}

struct Logger {
    clock: Clock,
    sinks: Mutex<Sinks>,
}

impl Logger {
    fn lock(&self) -> MutexGuard<'_, Sinks> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Log libraries' warnings, but not their debugging.
        metadata.target().starts_with("elklet") || metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Texts of plugins and servers may be in it. Keep one line one line, and send nothing to a terminal that it would act on.
        let text = Printable(record.args()).to_string();
        reports::note(record, &text);
        let place = Place { file: record.file_static().unwrap_or_default(), line: record.line().unwrap_or_default() };
        self.lock().log(record.level(), &text, place, self.clock);
    }

    fn flush(&self) {}
}

/// Where lines and events go, and the bounds of each place and kind.
#[derive(Debug)]
struct Sinks {
    directory: Directory,
    log: Kept,
    audit: Kept,
    stderr: Stderr,
    places: Flood<Place, MAX_LOG_PLACES>,
    acts: Flood<Kind, { audit::KINDS }>,
    refusals: Flood<Kind, 1>,
    /// The server that asks.
    server: String,
}

impl Sinks {
    fn new(directory: &Path) -> Self {
        let places = Rate { burst_bytes: LOG_BURST_BYTES, bytes_per_minute: LOG_BYTES_PER_MINUTE };
        let acts = Rate { burst_bytes: AUDIT_BURST_BYTES, bytes_per_minute: AUDIT_BYTES_PER_MINUTE };
        let refusals =
            Rate { burst_bytes: AUDIT_REFUSED_BURST_BYTES, bytes_per_minute: AUDIT_REFUSED_BYTES_PER_MINUTE };
        Self {
            directory: Directory::new(directory.to_owned()),
            log: Kept::new("elklet.log", "log", &LOST.log),
            audit: Kept::new("audit.log", "audit", &LOST.audit),
            stderr: Stderr::default(),
            places: Flood::new(places),
            acts: Flood::new(acts),
            refusals: Flood::new(refusals),
            server: String::new(),
        }
    }

    fn log(&mut self, level: Level, text: &str, place: Place, clock: Clock) {
        match self.places.handle_line(place, text.len(), clock.now()) {
            Verdict::Write { left_out: 0 } => self.write(&line(level, text)),
            Verdict::Write { left_out } => {
                self.write(&line(level, &format!("{left_out} lines like the next one were left out")));
                self.write(&line(level, text));
            }
            Verdict::Announce => {
                let Place { file, line: number } = place;
                let file = reports::in_source(file);
                let text = format!("lines from {file}:{number} come too fast; more of them are left out for now");
                self.write(&line(Level::Warn, &text));
            }
            Verdict::LeaveOut => {}
        }
    }

    fn audit(&mut self, event: &Event<'_>, clock: Clock) {
        let time = now();
        let mut line = event.line(&time, &self.server, 0);
        let verdict = match event.kind {
            Kind::Refused => self.refusals.handle_line(event.kind, line.len(), clock.now()),
            kind => self.acts.handle_line(kind, line.len(), clock.now()),
        };
        match verdict {
            Verdict::Write { left_out: 0 } => {}
            Verdict::Write { left_out } => line = event.line(&time, &self.server, left_out),
            Verdict::Announce => {
                let more = Event::new(event.kind, "", "more of this kind comes too fast and is left out for now");
                line = more.line(&time, &self.server, 0);
            }
            Verdict::LeaveOut => return,
        }
        self.audit.write(&mut self.directory, &line, &mut self.stderr);
    }

    fn write(&mut self, line: &str) {
        if TO_STDERR.load(Ordering::Relaxed) {
            write_to_stderr(&mut self.stderr, line);
        }
        self.log.write(&mut self.directory, line, &mut self.stderr);
    }

    fn look_after(&mut self) -> State {
        for kept in [&mut self.log, &mut self.audit] {
            kept.try_again(&mut self.directory);
        }
        let error = |kept: &Kept| kept.trouble.as_ref().map(|trouble| trouble.text.clone());
        State {
            error: error(&self.log),
            audit_error: error(&self.audit),
            lines_lost: self.log.lost.load(Ordering::Relaxed),
            audit_lost: self.audit.lost.load(Ordering::Relaxed),
            stderr_lines_lost: LOST.stderr.load(Ordering::Relaxed),
            lines_left_out: self.places.left_out(),
            audit_left_out: self.acts.left_out() + self.refusals.left_out(),
        }
    }
}

fn write_to_stderr(stderr: &mut Stderr, text: &str) {
    let notice = |lost| line(Level::Warn, &format!("{lost} lines were left out here: nobody read standard error"));
    if !stderr.write(text, notice) {
        LOST.stderr.fetch_add(1, Ordering::Relaxed);
    }
}

/// A rotated file, and why it cannot be written, if so.
#[derive(Debug)]
struct Kept {
    file: Rotated,
    /// The name for people.
    called: &'static str,
    lost: &'static AtomicU64,
    trouble: Option<Trouble>,
}

/// Why a file cannot be written.
#[derive(Debug)]
struct Trouble {
    text: String,
    /// Lines that had been lost before.
    lost_before: u64,
}

impl Kept {
    fn new(name: &'static str, called: &'static str, lost: &'static AtomicU64) -> Self {
        Self { file: Rotated::new(name), called, lost, trouble: None }
    }

    /// Writes a line. Reports the first that cannot be written on standard error, whether or not lines go there.
    fn write(&mut self, directory: &mut Directory, text: &str, stderr: &mut Stderr) {
        self.try_again(directory);
        let written = match &self.trouble {
            Some(_) => Ok(false),
            None => self.file.write(directory, text.as_bytes()).map(|()| true),
        };
        match written {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                let text = self.describe(directory, &error);
                write_to_stderr(stderr, &line(Level::Error, &format!("the {} cannot be written: {text}", self.called)));
                self.trouble = Some(Trouble { text, lost_before: self.lost.load(Ordering::Relaxed) });
            }
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Tries the file again. If it works, writes how many lines are missing.
    fn try_again(&mut self, directory: &mut Directory) {
        let Some(trouble) = &self.trouble else { return };
        let lost = self.lost.load(Ordering::Relaxed) - trouble.lost_before;
        let text = format!("{lost} lines are missing here, which could not be written: {}", trouble.text);
        let missing = match self.called {
            "audit" => Event::new(Kind::Refused, "audit", &text).line(&now(), "", 0),
            _ => line(Level::Warn, &text),
        };
        match self.file.write(directory, missing.as_bytes()) {
            Ok(()) => self.trouble = None,
            Err(error) => {
                let (text, lost_before) = (self.describe(directory, &error), trouble.lost_before);
                self.trouble = Some(Trouble { text, lost_before });
            }
        }
    }

    fn describe(&self, directory: &Directory, error: &io::Error) -> String {
        Printable(format_args!("{}/{}: {error}", directory.path().display(), self.file.name())).to_string()
    }
}

fn now() -> String {
    clock::date_and_time().to_string()
}

/// Formats a line of the log with its time and a line feed.
fn line(level: Level, text: &str) -> String {
    let mut line = format!("{} {level:5} {text}", now());
    if line.len() >= MAX_LINE_BYTES {
        line.truncate(line.floor_char_boundary(MAX_LINE_BYTES - 1));
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PLACE: Place = Place { file: "src/x.rs", line: 1 };

    fn texts(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap_or_default();
        // Skip the time and the level.
        text.lines().map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")).collect()
    }

    /// Logs as the macros do, past the logger of the process: that one would take the lines of other tests too.
    fn log_to(logger: &Logger, level: Level, target: &str, text: &str) {
        let mut record = Record::builder();
        record.level(level).target(target).file_static(Some(PLACE.file)).line(Some(PLACE.line));
        logger.log(&record.args(format_args!("{text}")).build());
    }

    #[test]
    fn lines_are_whole_bounded_and_speak_to_no_terminal() {
        let workdir = tempfile::tempdir().expect("a directory");
        let logger = Logger { clock: Clock::start(), sinks: Mutex::new(Sinks::new(&workdir.path().join("log"))) };
        let long = format!("one\nline \x1b[31m{}", "x".repeat(2 * MAX_LINE_BYTES));
        log_to(&logger, Level::Info, "elklet_agent", &long);
        log_to(&logger, Level::Info, "h2", "libraries are heard when they warn");
        let path = workdir.path().join("log/elklet.log");
        let current = fs::read_to_string(&path).expect("text");
        assert_eq!((current.len(), current.lines().count()), (MAX_LINE_BYTES, 1), "{current}");
        assert!(current.contains(" INFO  one line \u{fffd}[31mxxx"), "{current}");

        fs::remove_dir_all(workdir.path().join("log")).expect("writable");
        log_to(&logger, Level::Warn, "h2", "after the end");
        assert_eq!(texts(&path), ["after the end"], "the directory is made again");
        assert_eq!(logger.lock().look_after().lines_lost, 0);
    }

    #[test]
    fn debugging_is_logged_when_it_is_asked_for() {
        let settings = |debug| config::Log { debug, ..config::Log::default() };
        for (debug, level) in [(true, LevelFilter::Debug), (false, LevelFilter::Info)] {
            configure(&settings(debug));
            assert_eq!(log::max_level(), level);
        }
    }

    #[test]
    fn a_flood_of_one_place_or_kind_washes_nothing_out() {
        let workdir = tempfile::tempdir().expect("a directory");
        // Other tests log too, and the process-wide counters are theirs as well.
        static LOST_HERE: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
        let [log, audit] = &LOST_HERE;
        let mut sinks = Sinks {
            log: Kept::new("elklet.log", "log", log),
            audit: Kept::new("audit.log", "audit", audit),
            ..Sinks::new(&workdir.path().join("log"))
        };
        let clock = Clock::start();
        sinks.log(Level::Info, "evidence", Place { file: "src/y.rs", line: 2 }, clock);
        sinks.audit(&Event::new(Kind::Upload, "/etc/evidence", "done"), clock);
        let long = "x".repeat(4000);
        for _ in 0..5_000 {
            sinks.log(Level::Warn, &long, PLACE, clock);
            sinks.audit(&Event::new(Kind::Refused, &long, "no"), clock);
        }
        let lines = texts(&workdir.path().join("log/elklet.log"));
        assert_eq!(lines[0], "evidence");
        assert_eq!(lines.last().map(|line| line.starts_with("lines from x.rs:1 come too fast")), Some(true));
        let audit = fs::read_to_string(workdir.path().join("log/audit.log")).expect("text");
        assert!(audit.starts_with('{') && audit.contains("/etc/evidence") && audit.contains("comes too fast"));
        let state = sinks.look_after();
        assert_eq!(lines.len() as u64 - 2 + state.lines_left_out, 5_000);
        assert_eq!(audit.lines().count() as u64 - 2 + state.audit_left_out, 5_000);
        assert_eq!((state.lines_lost, state.audit_lost), (0, 0));
    }

    #[test]
    fn a_log_that_cannot_be_written_says_so_and_what_is_missing_later() {
        static LOST_HERE: AtomicU64 = AtomicU64::new(0);
        let workdir = tempfile::tempdir().expect("a directory");
        let log = workdir.path().join("log");
        fs::write(&log, "in the way").expect("writable");
        let mut sinks =
            Sinks { log: Kept::new("elklet.log", "log", &LOST_HERE), ..Sinks::new(&workdir.path().join("log")) };
        for text in ["one", "two"] {
            sinks.log(Level::Info, text, PLACE, Clock::start());
        }
        let error = sinks.look_after().error.expect("it cannot be written");
        assert!(error.contains("/log/elklet.log: it is no directory"), "{error}");
        assert_eq!(LOST_HERE.load(Ordering::Relaxed), 2);
        fs::remove_file(&log).expect("writable");
        assert_eq!(sinks.look_after().error, None);
        sinks.log(Level::Info, "three", PLACE, Clock::start());
        let lines = texts(&log.join("elklet.log"));
        assert!(lines[0].starts_with("2 lines are missing here, which could not be written: "), "{lines:?}");
        assert_eq!(lines[1..], ["three"]);
    }
}
