//! The two threads of the store: one writes, one merges.
//!
//! The writer is the only one that changes a file. It stores what has gathered, puts merged runs in their place, drops old files, and
//! after a failure looks from time to time whether writing works again. The merger reads small runs and compresses them anew, and
//! hands the result to the writer.

use super::catalog::Name;
use super::day::{self, Extent, Incoming, Reader, Writer};
use super::error::{AppendError, FailureKind};
use super::merge::{Run, choose};
use super::queue::{Merged, Pending, Work};
use super::reserve::Reserve;
use super::{Failure, Shared, lock};
use crate::clock::now_ms;
use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// Retention is looked after so often, and whenever a file is begun.
const SWEEP: Duration = Duration::from_secs(60);
/// The merger looks for work after so many transactions.
const COMMITS_PER_LOOK: u32 = 16;
/// After merging failed it rests for so long. Records are stored and found without it.
const MERGE_REST: Duration = Duration::from_secs(30);
/// The pauses between attempts to write again grow up to so many times the first.
const MAX_PAUSE: u32 = 30;
/// A batch that comes so much earlier or later than the one before it and the time in between allow tells of a clock that jumped.
const JUMP_MS: i64 = 3_600_000;

/// Starts the threads. A disk that is full already is noticed before this returns.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Vec<JoinHandle<()>>> {
    let (look, looks) = mpsc::sync_channel(1);
    let mut engine = Engine {
        reserve: Reserve::new(shared.files.dir(), shared.settings.reserve_bytes),
        current: None,
        newest: shared.files.with_catalog(|catalog| catalog.newest()),
        next_seq: *shared.next_seq.borrow(),
        retry: None,
        pace: None,
        sweep_at: Instant::now(),
        commits: 0,
        look,
        shared: Arc::clone(shared),
    };
    if let Err(error) = engine.reserve.make() {
        engine.fail(&Failed::of_io(&error), now_ms());
    }
    let merger = Merger { shared: Arc::clone(shared), file: None, damaged: HashSet::new() };
    let merger = thread::Builder::new().name("store-merger".into()).spawn(move || merger.run(&looks))?;
    let writer = thread::Builder::new().name("store-writer".into()).spawn(move || engine.run())?;
    Ok(vec![writer, merger])
}

/// Why something was not written.
#[derive(Debug)]
struct Failed {
    kind: FailureKind,
    error: String,
}

impl Failed {
    fn of(error: &rusqlite::Error) -> Self {
        Self { kind: FailureKind::of(error), error: error.to_string() }
    }

    fn of_io(error: &io::Error) -> Self {
        Self { kind: FailureKind::of_io(error), error: error.to_string() }
    }
}

/// When writing is tried again.
#[derive(Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
    /// Decides which file is tried.
    received_ms: i64,
}

/// How the clock goes that batches are received by.
#[derive(Debug)]
struct Pace {
    last_ms: i64,
    last: Instant,
    /// Since when it has gone evenly.
    even_since: Instant,
}

#[derive(Debug)]
struct Engine {
    shared: Arc<Shared>,
    reserve: Reserve,
    current: Option<(Name, Writer)>,
    /// The file that was written to last, which retention spares.
    newest: Option<Name>,
    next_seq: u64,
    retry: Option<Retry>,
    pace: Option<Pace>,
    sweep_at: Instant,
    commits: u32,
    look: mpsc::SyncSender<Name>,
}

impl Engine {
    fn run(mut self) {
        loop {
            let until = self.retry.as_ref().map_or(self.sweep_at, |retry| retry.at.min(self.sweep_at));
            let Work { batches, merged, closed } = self.shared.queue.take(self.shared.settings.gather, until);
            if let Some(merged) = merged {
                self.put_in_place(&merged);
            }
            self.store(batches);
            if closed {
                return;
            }
            if self.retry.as_ref().is_some_and(|retry| retry.at <= Instant::now()) {
                self.try_again();
            }
            if self.sweep_at <= Instant::now() {
                self.sweep();
            }
        }
    }

    /// Stores batches, those for one file that follow each other in one transaction, and resolves their tickets.
    fn store(&mut self, mut batches: Vec<Pending>) {
        while let Some(first) = batches.first() {
            if self.retry.is_some() {
                // They came while writing failed, before anybody knew.
                let failure = lock(&self.shared.failure).clone();
                let (kind, error) =
                    failure.map_or((FailureKind::Io, String::new()), |failure| (failure.kind, failure.error));
                refuse(batches, &Failed { kind, error });
                return;
            }
            let received_ms = first.received_ms;
            let name = self.target(received_ms, self.newest);
            let end = batches.iter().position(|batch| self.target(batch.received_ms, Some(name)) != name);
            // A file that is yet to be made is nobody's target but that of its own day.
            let rest = batches.split_off(end.unwrap_or(batches.len()).max(1));
            let group = std::mem::replace(&mut batches, rest);
            self.keep_pace(received_ms);
            match self.write(name, &group) {
                Ok(first_seq) => confirm(group, first_seq),
                Err(failed) => {
                    self.fail(&failed, received_ms);
                    refuse(group, &failed);
                }
            }
        }
    }

    fn target(&self, received_ms: i64, current: Option<Name>) -> Name {
        let part_bytes = (self.shared.settings.max_bytes / 8).max(1 << 17);
        self.shared.files.with_catalog(|catalog| catalog.target(received_ms, current, part_bytes))
    }

    /// Writes one transaction, and returns the first sequence number.
    fn write(&mut self, name: Name, group: &[Pending]) -> Result<u64, Failed> {
        match self.write_once(name, group) {
            Err(failed) if failed.kind == FailureKind::Corrupt => {
                log::error!("{name} is corrupt and is set aside: {}", failed.error);
                self.current = None;
                self.shared.files.set_aside(name).map_err(|error| Failed::of_io(&error))?;
                let name = self.target(group.first().map_or(0, |batch| batch.received_ms), None);
                self.write_once(name, group)
            }
            written => written,
        }
    }

    fn write_once(&mut self, name: Name, group: &[Pending]) -> Result<u64, Failed> {
        let first_seq = self.next_seq;
        let mut next_seq = first_seq;
        let mut incoming = Vec::with_capacity(group.len());
        let mut received_ms = (i64::MAX, i64::MIN);
        for batch in group {
            incoming.push(Incoming {
                agent_id: &batch.agent_id,
                hostname: &batch.hostname,
                first_seq: next_seq,
                received_ms: batch.received_ms,
                records: &batch.records,
            });
            next_seq += batch.records.len() as u64;
            received_ms = (received_ms.0.min(batch.received_ms), received_ms.1.max(batch.received_ms));
        }
        // A transaction that failed may be there after all, once the disk works again. Its numbers are not given twice.
        self.next_seq = next_seq;
        self.file(name)?.store(&incoming).map_err(|error| Failed::of(&error))?;
        let extent = Extent { seq: (first_seq, next_seq - 1), received_ms, rows: next_seq - first_seq };
        let shared = &self.shared;
        let bytes = shared.files.bytes(name);
        shared.files.with_catalog(|catalog| catalog.stored(name, extent, bytes));
        shared.stored.fetch_add(extent.rows, Relaxed);
        shared.commits.fetch_add(1, Relaxed);
        shared.next_seq.send_replace(next_seq);
        self.newest = Some(name);
        self.commits = self.commits.wrapping_add(1);
        if self.commits.is_multiple_of(COMMITS_PER_LOOK) {
            // If the merger is busy, it looks again when it has done.
            let _ = self.look.try_send(name);
        }
        Ok(first_seq)
    }

    /// The file of this name, which is opened or made if it is not the one being written.
    fn file(&mut self, name: Name) -> Result<&mut Writer, Failed> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != name) {
            let files = &self.shared.files;
            if let Some((old, writer)) = self.current.take() {
                // Closing copies the log into the file.
                drop(writer);
                let bytes = files.bytes(old);
                files.with_catalog(|catalog| catalog.resized(old, bytes));
            }
            if files.with_catalog(|catalog| catalog.entry(name).is_none()) {
                files.begin(name).map_err(|error| Failed::of_io(&error))?;
            }
            let settings = &self.shared.settings;
            #[cfg(test)]
            let max_pages = settings.max_pages.load(Relaxed);
            #[cfg(not(test))]
            let max_pages = 0;
            let writer = Writer::open(&files.path(name), settings.synchronous, max_pages);
            let writer = writer.map_err(|error| Failed::of(&error))?;
            files.sync().map_err(|error| Failed::of_io(&error))?;
            self.sweep_at = Instant::now();
            self.current = Some((name, writer));
        }
        Ok(&mut self.current.as_mut().expect("it was just set if it was not there").1)
    }

    fn put_in_place(&mut self, merged: &Merged) {
        let Merged { name, runs, blocks, done } = merged;
        // A file is merged while it is being written; one that is closed stays as it is.
        let Some((_, writer)) = self.current.as_mut().filter(|(current, _)| current == name) else { return };
        match writer.replace(runs, blocks) {
            Ok(placed) => {
                let rows: usize = if placed { runs.iter().map(|run| run.rows).sum() } else { 0 };
                self.shared.merged.fetch_add(rows as u64, Relaxed);
                let bytes = self.shared.files.bytes(*name);
                self.shared.files.with_catalog(|catalog| catalog.resized(*name, bytes));
                // The merger waits for this.
                let _ = done.send(placed);
            }
            Err(error) => log::warn!("runs of {name} are not merged: {error}"),
        }
    }

    /// Takes note that writing fails.
    fn fail(&mut self, failed: &Failed, received_ms: i64) {
        log::error!("no records can be stored, {}: {}", failed.kind, failed.error);
        self.shared.failures.fetch_add(1, Relaxed);
        if failed.kind == FailureKind::Full {
            self.reserve.release();
        }
        // A connection is not used again after an error; opening the file anew reads what is really there.
        self.current = None;
        let pause = self.shared.settings.retry;
        self.retry = Some(Retry { at: Instant::now() + pause, pause, received_ms });
        let failure = Failure { kind: failed.kind, error: failed.error.clone(), since: SystemTime::now() };
        *lock(&self.shared.failure) = Some(failure);
    }

    /// Looks whether writing works again, with room to spare.
    fn try_again(&mut self) {
        let Some(mut retry) = self.retry.take() else { return };
        self.sweep();
        match self.probe(retry.received_ms) {
            Ok(()) => {
                log::info!("records can be stored again");
                *lock(&self.shared.failure) = None;
            }
            Err(failed) => {
                log::debug!("still no records can be stored, {}: {}", failed.kind, failed.error);
                self.reserve.release();
                self.current = None;
                if let Some(failure) = &mut *lock(&self.shared.failure) {
                    (failure.kind, failure.error) = (failed.kind, failed.error);
                }
                retry.pause = (retry.pause * 2).min(self.shared.settings.retry * MAX_PAUSE);
                retry.at = Instant::now() + retry.pause;
                self.retry = Some(retry);
            }
        }
    }

    fn probe(&mut self, received_ms: i64) -> Result<(), Failed> {
        self.reserve.make().map_err(|error| Failed::of_io(&error))?;
        let name = self.target(received_ms, self.newest);
        let probed = self.file(name).and_then(|file| file.probe().map_err(|error| Failed::of(&error)));
        match probed {
            Err(failed) if failed.kind == FailureKind::Corrupt => {
                self.current = None;
                self.shared.files.set_aside(name).map_err(|error| Failed::of_io(&error))
            }
            probed => probed,
        }
    }

    fn keep_pace(&mut self, received_ms: i64) {
        let now = Instant::now();
        let even_since = match &self.pace {
            Some(pace) => {
                let passed = i64::try_from(now.duration_since(pace.last).as_millis()).unwrap_or(i64::MAX);
                let jumped = received_ms.saturating_sub(pace.last_ms.saturating_add(passed)).saturating_abs() > JUMP_MS;
                if jumped { now } else { pace.even_since }
            }
            None => now,
        };
        self.pace = Some(Pace { last_ms: received_ms, last: now, even_since });
    }

    /// Drops files that are too old or too many.
    fn sweep(&mut self) {
        self.sweep_at = Instant::now() + SWEEP;
        if self.retry.is_none() {
            self.reserve.restore();
        }
        let settings = &self.shared.settings;
        let files = &self.shared.files;
        let current = self.newest;
        // A file that was just begun is not the one that was written to last yet.
        let spared = |name: &Name| self.current.as_ref().is_some_and(|(current, _)| current == name);
        let keep_ms = i64::try_from(settings.keep.as_millis()).unwrap_or(i64::MAX);
        let now_ms =
            self.pace.as_ref().filter(|pace| pace.even_since.elapsed() >= settings.settle).map(|pace| pace.last_ms);
        let (old, total) = files.with_catalog(|catalog| {
            let old = now_ms.map(|now_ms| catalog.older(keep_ms, now_ms, current)).unwrap_or_default();
            let total = catalog.entries.iter().map(|entry| entry.bytes).sum::<u64>();
            (old, total)
        });
        if let Err(error) = files.drop_corrupt(settings.max_bytes.saturating_sub(total), keep_ms, now_ms) {
            log::error!("a corrupt file cannot be dropped: {error}");
        }
        let beyond = || files.with_catalog(|catalog| catalog.beyond(settings.max_bytes, current));
        for name in old.into_iter().chain(beyond()).filter(|name| !spared(name)) {
            if files.with_catalog(|catalog| catalog.entry(name).is_none()) {
                continue;
            }
            match files.drop_file(name) {
                Ok(()) => {
                    log::info!("{name} is dropped");
                    self.shared.dropped_files.fetch_add(1, Relaxed);
                }
                Err(error) => log::error!("{name} cannot be dropped: {error}"),
            }
        }
    }
}

fn confirm(group: Vec<Pending>, mut first_seq: u64) {
    for batch in group {
        let end = first_seq + batch.records.len() as u64;
        // Whoever does not wait for the ticket does not want to know.
        let _ = batch.done.send(Ok(Range { start: first_seq, end }));
        first_seq = end;
    }
}

fn refuse(group: Vec<Pending>, failed: &Failed) {
    for batch in group {
        let _ = batch.done.send(Err(AppendError::Failing(failed.kind, failed.error.clone())));
    }
}

/// Merges the runs of the file that is being written.
#[derive(Debug)]
struct Merger {
    shared: Arc<Shared>,
    file: Option<Name>,
    /// Runs of the file that cannot be read, by first sequence number. They and what lies before them are left alone.
    damaged: HashSet<u64>,
}

impl Merger {
    fn run(mut self, looks: &mpsc::Receiver<Name>) {
        let mut rest_until = Instant::now();
        while let Ok(name) = looks.recv() {
            if self.file != Some(name) {
                self.file = Some(name);
                self.damaged.clear();
            }
            while Instant::now() >= rest_until && !self.shared.closed.load(Relaxed) {
                match self.merge(name) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        log::warn!("runs of {name} cannot be merged: {error}");
                        rest_until = Instant::now() + MERGE_REST;
                    }
                }
            }
        }
    }

    /// Merges some runs, and returns whether there may be more to merge.
    fn merge(&mut self, name: Name) -> rusqlite::Result<bool> {
        let reader = Reader::open(&self.shared.files.path(name))?;
        let runs = reader.newest_runs(|run| run.is_final() || self.damaged.contains(&run.seq.0))?;
        let Some(chosen) = choose(&runs).map(<[Run]>::to_vec) else { return Ok(false) };
        let blocks = match day::merge(&reader, &chosen)? {
            Ok(blocks) => blocks,
            Err(run) => {
                log::error!("a block of {name} is damaged, at sequence number {} or after it", run.seq.0);
                self.shared.damaged_blocks.fetch_add(1, Relaxed);
                self.damaged.insert(run.seq.0);
                return Ok(true);
            }
        };
        // A reader keeps the log from being used again from its beginning.
        drop(reader);
        let (done, placed) = mpsc::channel();
        self.shared.queue.push_merged(Merged { name, runs: chosen, blocks, done });
        // A run that was refused is left alone until more has been stored.
        Ok(placed.recv().unwrap_or(false))
    }
}
