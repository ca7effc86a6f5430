//! A plugin's standard error. The agent reads it from a pipe, so that a plugin that talks without end neither fills the
//! disk nor blocks for good.
//!
//! The text goes to `NAME.stderr` beside the executable. When that file is full it becomes `NAME.stderr.1`, and a new one
//! begins. Both the files' size and the text written in a second are bounded; the rest is left out and counted. If the file
//! cannot be written, lines go to the log, with a bound of their own. When the plugin dies, its last lines are reported.
//!
//! Nothing here runs while a plugin is silent, and a disk that does not answer blocks nobody.

use std::fs::{self, File};
use std::future::pending;
use std::io::{self, Write};
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use elklet_core::command::PluginName;
use elklet_core::limits::{
    MAX_LAST_WORDS_BYTES, STDERR_BURST_BYTES, STDERR_BYTES_PER_SECOND, STDERR_FILE_BYTES, STDERR_LOG_BURST_BYTES,
    STDERR_LOG_BYTES_PER_SECOND,
};
use elklet_core::printable::Printable;
use elklet_core::time::Millis;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::Clock;
use crate::pump::PluginStats;
use crate::sys::blocking;

/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;

/// After this many bytes the agent pauses, which bounds the cost of a plugin that floods: 8 MiB/s. Backpressure makes
/// the plugin wait meanwhile.
const READ_PIECE: usize = 1 << 20;
const REST: Duration = Duration::from_millis(125);

/// Text is coalesced for this long between two writes.
const WRITE_INTERVAL_MS: u64 = 100;

/// Most reads after the plugin has ended. They are more than a pipe holds.
const LAST_READS: usize = 8;

/// The reading end of a plugin's standard error, and the text on its way to the file.
#[derive(Debug)]
pub(crate) struct Stderr {
    /// `None` once nobody has the writing end any more.
    pipe: Option<Receiver>,
    name: PluginName,
    clock: Clock,
    stats: Arc<PluginStats>,
    /// The end of the text so far.
    last: Vec<u8>,
    /// Text that waits to be written.
    pending: Vec<u8>,
    /// Bytes left out since the last text that was written.
    left_out: u64,
    /// Bounds the text for the file or the log.
    allowance: Allowance,
    output: Output,
    /// Bytes read since the last pause.
    read: usize,
    /// Nothing is written before this, because a thread for each line would cost more than the line.
    next_write: Millis,
}

#[derive(Debug)]
enum Output {
    File(Rotated),
    /// A thread is writing.
    Writing(oneshot::Receiver<Written>),
    /// The file cannot be written.
    Log,
}

/// The file, the text, and the result of writing it.
type Written = (Rotated, Vec<u8>, io::Result<()>);

impl Stderr {
    /// Takes over the non-blocking reading end and the path of the file.
    pub(crate) fn new(
        (pipe, path): (OwnedFd, PathBuf),
        name: PluginName,
        stats: Arc<PluginStats>,
        clock: Clock,
    ) -> Self {
        let pipe = Receiver::from_owned_fd(pipe);
        if let Err(error) = &pipe {
            // The plugin may get an error when it writes.
            log::warn!("plugin {name}: its standard error cannot be read: {error}");
        }
        Self {
            pipe: pipe.ok(),
            name,
            clock,
            stats,
            last: Vec::new(),
            pending: Vec::new(),
            left_out: 0,
            allowance: Allowance::new(STDERR_BURST_BYTES, STDERR_BYTES_PER_SECOND, clock.now()),
            output: Output::File(Rotated { path, file: None }),
            read: 0,
            next_write: Millis(0),
        }
    }

    /// Reads until `ended` says that the plugin has ended, whoever else may still write then. Returns the result of
    /// `ended` and the end of the text, made printable.
    pub(crate) async fn follow<T>(mut self, ended: impl Future<Output = T>) -> (T, String) {
        tokio::pin!(ended);
        let result = loop {
            tokio::select! {
                biased;
                result = &mut ended => break result,
                written = written(&mut self.output) => self.handle_written(written),
                () = sleep(REST), if self.read >= READ_PIECE => self.read = 0,
                () = sleep_until(Instant::from_std(self.clock.instant(self.next_write))), if self.waits_to_write() => self.write(),
                () = readable(&mut self.pipe), if self.read < READ_PIECE => self.read(),
            }
        };
        for _ in 0..LAST_READS {
            self.read();
        }
        let last_words = last_words(&self.last);
        self.next_write = Millis(0);
        self.write();
        if let Output::Writing(_) = &self.output {
            // The rest is written in the background.
            tokio::spawn(async move {
                let written = written(&mut self.output).await;
                self.handle_written(written);
            });
        }
        (result, last_words)
    }

    /// Reads once.
    fn read(&mut self) {
        let mut buffer = [0; READ_BYTES];
        let read = self.pipe.as_ref().map(|pipe| pipe.try_read(&mut buffer));
        match read {
            Some(Ok(n)) if n > 0 => {
                self.read += n;
                self.take(&buffer[..n]);
            }
            // The pipe was not readable after all, so wait again.
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Nobody has the writing end any more.
            Some(_) => self.pipe = None,
            None => {}
        }
    }

    fn take(&mut self, text: &[u8]) {
        self.last.extend_from_slice(&text[text.len().saturating_sub(MAX_LAST_WORDS_BYTES)..]);
        self.last.drain(..self.last.len().saturating_sub(MAX_LAST_WORDS_BYTES));
        // This bounds memory while a disk does not answer.
        let room = STDERR_BURST_BYTES.saturating_sub(self.pending.len());
        let admitted = self.allowance.take(text.len().min(room), self.clock.now());
        let (text, beyond) = text.split_at(admitted);
        if let Output::Log = &self.output {
            self.log(text);
        } else {
            if self.left_out > 0 && !text.is_empty() {
                let note = format!("\n[{} bytes are left out here]\n", mem::take(&mut self.left_out));
                self.pending.extend_from_slice(note.as_bytes());
            }
            self.pending.extend_from_slice(text);
        }
        self.left_out += beyond.len() as u64;
        self.stats.leave_out_stderr(beyond.len() as u64);
        self.write();
    }

    fn waits_to_write(&self) -> bool {
        !self.pending.is_empty() && matches!(self.output, Output::File(_))
    }

    /// Passes the pending text to a thread, unless one is still writing or it is too early.
    fn write(&mut self) {
        let now = self.clock.now();
        if !self.waits_to_write() || now < self.next_write {
            return;
        }
        self.next_write = now + WRITE_INTERVAL_MS;
        self.output = match mem::replace(&mut self.output, Output::Log) {
            Output::File(file) => {
                let (sender, receiver) = oneshot::channel();
                let write = move |(mut file, text): (Rotated, Vec<u8>)| {
                    let result = file.append(&text);
                    // Nobody waits any more once the agent ends.
                    let _ = sender.send((file, text, result));
                };
                match blocking::start((file, mem::take(&mut self.pending)), write) {
                    Ok(()) => Output::Writing(receiver),
                    Err(refused) => {
                        let (file, text) = refused.input;
                        self.pending = text;
                        self.next_write = now + blocking::RETRY_MS;
                        Output::File(file)
                    }
                }
            }
            other => other,
        };
    }

    fn handle_written(&mut self, (file, mut text, result): Written) {
        match result {
            Ok(()) => {
                self.output = Output::File(file);
                self.write();
            }
            Err(error) => {
                log::warn!(
                    "plugin {}: its standard error goes to the log: {}: {error}",
                    self.name,
                    file.path.display()
                );
                self.output = Output::Log;
                self.allowance = Allowance::new(STDERR_LOG_BURST_BYTES, STDERR_LOG_BYTES_PER_SECOND, self.clock.now());
                text.append(&mut self.pending);
                let (text, beyond) = text.split_at(self.allowance.take(text.len(), self.clock.now()));
                self.log(text);
                self.stats.leave_out_stderr(beyond.len() as u64);
            }
        }
    }

    fn log(&self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines().filter(|line| !line.trim().is_empty()) {
            log::info!("plugin {} says: {line}", self.name);
        }
    }
}

/// Waits until there is something to read, or for ever without a pipe.
async fn readable(pipe: &mut Option<Receiver>) {
    match pipe {
        // Reading returns the same error again.
        Some(open) => drop(open.readable().await),
        None => pending().await,
    }
}

/// Waits for the thread that writes, or for ever if none does.
async fn written(output: &mut Output) -> Written {
    match output {
        Output::Writing(result) => result.await.expect("a panic ends the process"),
        Output::File(_) | Output::Log => pending().await,
    }
}

/// A file that rotates when it is full. It is opened when there is something to write.
#[derive(Debug)]
struct Rotated {
    path: PathBuf,
    /// The open file, and its length.
    file: Option<(File, usize)>,
}

impl Rotated {
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        for piece in text.chunks(STDERR_FILE_BYTES) {
            let full = self.file.take_if(|(_, bytes)| *bytes + piece.len() > STDERR_FILE_BYTES);
            drop(full);
            let (file, bytes) = match &mut self.file {
                Some(open) => open,
                none => none.insert((begin(&self.path)?, 0)),
            };
            file.write_all(piece)?;
            *bytes += piece.len();
        }
        Ok(())
    }
}

/// Moves the old file away and creates a new one. Neither follows nor writes to anything that lies there.
fn begin(path: &Path) -> io::Result<File> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    match fs::rename(path, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// How many bytes may be written: a burst, and then some each second.
#[derive(Debug)]
struct Allowance {
    burst: usize,
    per_second: usize,
    left: usize,
    at: Millis,
}

impl Allowance {
    fn new(burst: usize, per_second: usize, now: Millis) -> Self {
        Self { burst, per_second, left: burst, at: now }
    }

    /// Takes as many of `wanted` bytes as are allowed now.
    fn take(&mut self, wanted: usize, now: Millis) -> usize {
        let earned = usize::try_from(now.since(self.at)).unwrap_or(usize::MAX).saturating_mul(self.per_second) / 1000;
        if earned > 0 {
            self.at = now;
            self.left = self.left.saturating_add(earned).min(self.burst);
        }
        let taken = wanted.min(self.left);
        self.left -= taken;
        taken
    }
}

/// The last lines of a text, joined into one.
fn last_words(text: &[u8]) -> String {
    // The text may begin in the middle of a character or a line.
    let text = String::from_utf8_lossy(text);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    Printable(last.join(" | ")).to_string()
}

/// Lines that are reported when a plugin has died.
const LAST_LINES: usize = 4;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_that_is_full_becomes_the_old_one_and_no_link_is_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("p.stderr");
        let old = directory.path().join("p.stderr.1");
        let victim = directory.path().join("victim");
        fs::write(&victim, "whole").expect("writable");
        symlink(&victim, &path).expect("writable");
        let mut file = Rotated { path: path.clone(), file: None };
        file.append(b"first").expect("writable");
        assert_eq!(
            (fs::read(&victim).expect("there"), fs::read(&path).expect("there")),
            (b"whole".into(), b"first".into())
        );
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        for _ in 0..5 {
            file.append(&[b'x'; STDERR_FILE_BYTES / 2]).expect("writable");
        }
        let bytes = |path: &Path| fs::metadata(path).expect("there").len();
        assert_eq!((bytes(&old), bytes(&path)), (STDERR_FILE_BYTES as u64, STDERR_FILE_BYTES as u64));
        // Another life begins another file.
        Rotated { path: path.clone(), file: None }.append(b"again").expect("writable");
        assert_eq!((bytes(&old), bytes(&path)), (STDERR_FILE_BYTES as u64, 5));
    }

    #[test]
    fn an_allowance_has_its_burst_and_its_rate() {
        let mut allowance = Allowance::new(1_000, 100, Millis(0));
        assert_eq!([allowance.take(600, Millis(0)), allowance.take(600, Millis(0))], [600, 400]);
        let taken: usize = (1..=10_000).map(|ms| allowance.take(1_000, Millis(ms))).sum();
        assert_eq!(taken, 1_000, "it earns however often it is asked");
        assert_eq!(allowance.take(5_000, Millis(1_000_000)), 1_000, "and saves no more than its burst");
    }

    #[test]
    fn last_words_are_the_last_lines_and_harmless() {
        let text = "a line\n\nthread 'main' panicked\n\u{1b}[2Jat\u{9b}x\r\n\u{202e}gnp\n  caused by\n";
        assert_eq!(
            last_words(text.as_bytes()),
            "thread 'main' panicked | \u{fffd}[2Jat\u{fffd}x | \u{fffd}gnp | caused by"
        );
        assert_eq!(last_words(b""), "");
    }
}
