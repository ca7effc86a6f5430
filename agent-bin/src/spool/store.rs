//! Carries out the outbox's operations on the files, one at a time. It runs on a thread that may block.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use elklet_core::delivery::spool::format::{SEGMENT_HEAD_BYTES, batch_head, read_manifest, segment_head};
use elklet_core::delivery::spool::{Done, Failed, Found, Op, Place, Replay, Write};
use elklet_core::record::manifest::{Manifest, Row, Sources};

use super::segment::{BatchAt, Segment};
use super::{numbers, path};

/// How often to try for the directory's lock again, and the pause before each attempt.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The spool's directory and its open files.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    sources: Arc<Mutex<Sources>>,
    lock: Option<File>,
    tail: Option<Tail>,
    reading: Option<(u64, Segment)>,
}

/// The segment that is being written.
#[derive(Debug)]
struct Tail {
    number: u64,
    file: File,
}

impl Store {
    /// The spool in `directory`, which is not opened before [`Op::Open`].
    #[must_use]
    pub fn new(directory: PathBuf, sources: Arc<Mutex<Sources>>) -> Self {
        Self { directory, sources, lock: None, tail: None, reading: None }
    }

    /// Carries out an operation. Logs a failure.
    pub fn carry_out(&mut self, op: Op<Bytes>) -> Done<Bytes> {
        let done = match op {
            Op::Open => self.open().map(Done::Opened),
            Op::Append { place, batches } => self.append(place, &batches).map(Done::Appended),
            Op::Read(place) => self.read(place).map(Done::Read),
            Op::Drop(place) => self.drop_from(place).map(Done::Dropped),
            Op::Delete(number) => self.delete(number).map(|()| Done::Deleted),
            Op::Mark(place) => self.mark(place).map(|()| Done::Marked),
            Op::Sync => self.sync().map(|()| Done::Synced),
        };
        done.unwrap_or_else(|error| {
            log::error!("{}: {error}", self.directory.display());
            self.tail = None;
            self.reading = None;
            Done::Failed(match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failed::Full,
                io::ErrorKind::NotFound => Failed::Vanished,
                _ => Failed::Broken,
            })
        })
    }

    fn open(&mut self) -> io::Result<Vec<Found>> {
        (self.tail, self.reading, self.lock) = (None, None, None);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.directory.join("lock"))?;
        lock_soon(&lock)?;
        self.lock = Some(lock);
        let mut found: Vec<Found> = Vec::new();
        let mut is_numbered = false;
        for number in numbers(&self.directory)? {
            let path = path(&self.directory, number);
            match self.examine(number) {
                Ok(Some(segment)) => {
                    if !is_numbered {
                        // The record numbers of the segments before this one are unknown, so they hold none.
                        let first = segment.first_record;
                        found.iter_mut().for_each(|other| (other.first_record, other.end_record) = (first, first));
                        is_numbered = true;
                    }
                    found.push(segment);
                }
                Ok(None) => {
                    log::debug!("{}: nothing is left to be sent", path.display());
                    if let Err(error) = fs::remove_file(&path) {
                        log::error!("{}: {error}: it stays where it is", path.display());
                    }
                }
                // Keep the segment, because a later read may get further or else skips it. Nothing may be written to a
                // file of the same number.
                Err(error) => {
                    log::error!("{}: {error}", path.display());
                    let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                    let (mark, end) = (SEGMENT_HEAD_BYTES as u64, bytes.max(SEGMENT_HEAD_BYTES as u64 + 1));
                    let next_record = found.last().map_or(0, |last| last.end_record);
                    found.push(Found { number, mark, end, first_record: next_record, end_record: next_record });
                }
            }
        }
        let records: u64 = found.iter().map(|segment| segment.end_record - segment.first_record).sum();
        if records > 0 {
            log::info!("{}: {records} records in {} files wait to be sent", self.directory.display(), found.len());
        }
        Ok(found)
    }

    /// Examines a segment and cuts off a torn end. Returns `None` if nothing in it is to be sent.
    fn examine(&self, number: u64) -> io::Result<Option<Found>> {
        let path = path(&self.directory, number);
        let Some(segment) = Segment::new(File::open(&path)?)? else {
            log::error!("{}: this is no segment of a spool", path.display());
            return Ok(None);
        };
        if !segment.is_headed {
            log::error!("{}: its head is damaged; batches are looked for behind it", path.display());
        }
        let mut found: Option<Found> = None;
        let mut at = segment.mark;
        while let Some(BatchAt { head, end, begin, skipped, .. }) = segment.batch_from(at)? {
            if skipped > 0 {
                log::error!(
                    "{}: {skipped} bytes at {} are no batch; they are passed over",
                    path.display(),
                    begin - skipped
                );
            }
            let end_record = head.first_record + u64::from(head.records);
            let start = Found { number, mark: segment.mark, end, first_record: head.first_record, end_record };
            let known = found.get_or_insert(start);
            (known.end, known.end_record) = (end, end_record.max(known.end_record));
            at = end;
        }
        if at < segment.bytes() && found.is_some() {
            log::warn!("{}: a torn batch of {} bytes at its end is cut off", path.display(), segment.bytes() - at);
            OpenOptions::new().write(true).open(&path)?.set_len(at)?;
        }
        Ok(found)
    }

    fn append(&mut self, place: Place, batches: &[Write<Bytes>]) -> io::Result<Vec<u64>> {
        if self.tail.as_ref().is_none_or(|tail| tail.number != place.segment) {
            self.open_tail(place)?;
        }
        let Some(tail) = &mut self.tail else { return Err(io::ErrorKind::NotFound.into()) };
        let written = write(&tail.file, place.offset, batches, &self.sources).and_then(|ends| {
            // Somebody may have deleted the file or the directory.
            let is_there = tail.file.metadata()?.nlink() > 0;
            if is_there { Ok(ends) } else { Err(io::ErrorKind::NotFound.into()) }
        });
        if written.is_err() {
            let _ = tail.file.set_len(place.offset);
        }
        written
    }

    fn open_tail(&mut self, place: Place) -> io::Result<()> {
        if let Some(last) = self.tail.take() {
            last.file.sync_data()?;
        }
        let path = path(&self.directory, place.segment);
        let is_new = place.offset == SEGMENT_HEAD_BYTES as u64;
        let file = OpenOptions::new().write(true).create(is_new).truncate(is_new).mode(0o600).open(&path)?;
        if is_new {
            let head = segment_head(place.offset, crc32c::crc32c);
            if let Err(error) = file.write_all_at(&head, 0) {
                let _ = fs::remove_file(&path);
                return Err(error);
            }
        }
        self.tail = Some(Tail { number: place.segment, file });
        Ok(())
    }

    fn read(&mut self, place: Place) -> io::Result<Option<Replay<Bytes>>> {
        let path = path(&self.directory, place.segment);
        let segment = match &mut self.reading {
            Some((number, segment)) if *number == place.segment => {
                segment.refresh()?;
                segment
            }
            reading => match File::open(&path).and_then(Segment::new) {
                Ok(Some(segment)) => &mut reading.insert((place.segment, segment)).1,
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    log::error!("{}: {error}", path.display());
                    return Ok(None);
                }
                Err(error) => return Err(error),
            },
        };
        let mut at = place.offset;
        while let Some(batch) = segment.batch_from(at)? {
            if batch.skipped > 0 {
                log::error!("{}: {} bytes at {at} are no batch; they are passed over", path.display(), batch.skipped);
            }
            match segment.payload(&batch) {
                Ok(Some(payload)) => {
                    let rows = read_manifest(&batch.manifest, &mut locked(&self.sources));
                    let BatchAt { head, begin, end, .. } = batch;
                    return Ok(Some(Replay {
                        bytes: payload.len(),
                        fingerprint: head.payload_sum,
                        message: payload.into(),
                        content_bytes: head.content_bytes,
                        begin,
                        end,
                        first_record: head.first_record,
                        rows,
                    }));
                }
                Ok(None) => {
                    log::error!("{}: the batch at {} is damaged; it is passed over", path.display(), batch.begin)
                }
                Err(error) => {
                    log::error!("{}: the batch at {}: {error}; it is passed over", path.display(), batch.begin)
                }
            }
            at = batch.end;
        }
        Ok(None)
    }

    fn drop_from(&mut self, place: Place) -> io::Result<Vec<Row>> {
        let path = path(&self.directory, place.segment);
        let mut manifest = Manifest::default();
        // A segment that cannot be read can still be deleted.
        if let Err(error) = self.count_from(&path, place.offset, &mut manifest) {
            log::error!("{}: {error}", path.display());
        }
        self.delete(place.segment)?;
        Ok(manifest.rows().to_vec())
    }

    fn count_from(&self, path: &Path, mut at: u64, manifest: &mut Manifest) -> io::Result<()> {
        if let Some(segment) = File::open(path).and_then(Segment::new)? {
            while let Some(batch) = segment.batch_from(at)? {
                read_manifest(&batch.manifest, &mut locked(&self.sources)).iter().for_each(|row| manifest.add(*row));
                at = batch.end;
            }
        }
        Ok(())
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        self.tail.take_if(|tail| tail.number == number);
        self.reading.take_if(|(reading, _)| *reading == number);
        match fs::remove_file(path(&self.directory, number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Syncs the segment that is being written, and the directory. Older segments were synced at their ends.
    fn sync(&self) -> io::Result<()> {
        if let Some(tail) = &self.tail {
            tail.file.sync_data()?;
        }
        File::open(&self.directory)?.sync_all()
    }

    fn mark(&self, place: Place) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path(&self.directory, place.segment))?;
        file.write_all_at(&segment_head(place.offset, crc32c::crc32c), 0)
    }
}

fn write(file: &File, at: u64, batches: &[Write<Bytes>], sources: &Mutex<Sources>) -> io::Result<Vec<u64>> {
    let mut end = at;
    let mut ends = Vec::with_capacity(batches.len());
    for Write { message, content_bytes, first_record, rows } in batches {
        let head = batch_head(message, *content_bytes, *first_record, rows, &locked(sources), crc32c::crc32c);
        file.write_all_at(&head, end)?;
        end += head.len() as u64;
        file.write_all_at(message, end)?;
        end += message.len() as u64;
        ends.push(end);
    }
    Ok(ends)
}

/// Takes the lock. A child between its fork and its exec still holds a lock that this process has just released, so
/// this tries again for a while.
fn lock_soon(lock: &File) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if attempts == LOCK_ATTEMPTS => {
                return Err(io::Error::other("another agent uses it"));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
        }
        attempts += 1;
    }
}

fn locked(sources: &Mutex<Sources>) -> std::sync::MutexGuard<'_, Sources> {
    sources.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(tail) = &self.tail
            && let Err(error) = tail.file.sync_data()
        {
            log::error!("{}: {error}", self.directory.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use elklet_core::record::manifest::Source;
    use proptest::prelude::*;

    use super::*;

    fn store(directory: &Path) -> Store {
        Store::new(directory.to_owned(), Arc::default())
    }

    fn rows(records: u64) -> Box<[Row]> {
        Box::new([Row { source: Source::AGENT, data_type: 59, records, first: 1, last: 2 }])
    }

    const START: Place = Place { segment: 3, offset: SEGMENT_HEAD_BYTES as u64 };

    /// Writes three batches of 2, 3 and 4 records, the second of 300 bytes, and returns where each ends.
    fn three(store: &mut Store) -> Vec<u64> {
        let batches: Vec<_> = [(0, 2, 100), (2, 3, 300), (5, 4, 50)]
            .map(|(first_record, records, bytes)| Write {
                message: Bytes::from(vec![7; bytes]),
                content_bytes: 9,
                first_record,
                rows: rows(records),
            })
            .into();
        match store.carry_out(Op::Append { place: START, batches }) {
            Done::Appended(ends) => ends,
            other => panic!("{other:?}"),
        }
    }

    fn read(store: &mut Store, offset: u64) -> Option<Replay<Bytes>> {
        match store.carry_out(Op::Read(Place { offset, ..START })) {
            Done::Read(replay) => replay,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_written_is_found_and_read_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut first = store(directory.path());
        assert_eq!(first.carry_out(Op::Open), Done::Opened(Vec::new()));
        let ends = three(&mut first);
        assert_eq!(first.carry_out(Op::Mark(Place { offset: ends[0], ..START })), Done::Marked);
        assert_eq!(store(directory.path()).carry_out(Op::Open), Done::Failed(Failed::Broken), "one agent at a time");
        drop(first);
        let mut second = store(directory.path());
        let found = Found { number: 3, mark: ends[0], end: ends[2], first_record: 2, end_record: 9 };
        assert_eq!(second.carry_out(Op::Open), Done::Opened(vec![found]));
        let replay = read(&mut second, ends[0]).expect("a batch");
        assert_eq!((replay.first_record, replay.bytes, replay.end, &replay.rows), (2, 300, ends[1], &rows(3)));
        assert_eq!(second.carry_out(Op::Drop(Place { offset: ends[1], ..START })), Done::Dropped(rows(4).into()));
        assert_eq!(second.carry_out(Op::Open), Done::Opened(Vec::new()));
    }

    #[test]
    fn what_was_written_can_be_synchronised_and_a_directory_that_is_gone_says_so() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("spool");
        let mut store = store(&directory);
        store.carry_out(Op::Open);
        assert_eq!(store.carry_out(Op::Sync), Done::Synced, "nothing was written");
        three(&mut store);
        assert_eq!(store.carry_out(Op::Sync), Done::Synced);
        fs::remove_dir_all(&directory).expect("it is there");
        assert_eq!(store.carry_out(Op::Sync), Done::Failed(Failed::Vanished));
    }

    #[test]
    fn a_lock_that_is_held_for_a_moment_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = File::create(directory.path().join("lock")).expect("writable");
        held.lock().expect("nobody else has it");
        let mut store = store(directory.path());
        let release = thread::spawn(move || {
            thread::sleep(3 * LOCK_PAUSE);
            drop(held);
        });
        assert_eq!(store.carry_out(Op::Open), Done::Opened(Vec::new()));
        release.join().expect("it ends");
    }

    /// A directory in place of a file fails to be read like a file on a broken disk, whichever user runs the test.
    #[test]
    fn a_file_that_cannot_be_examined_leaves_the_others_as_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut first = store(directory.path());
        first.carry_out(Op::Open);
        let ends = three(&mut first);
        drop(first);
        for number in [1, 5] {
            fs::create_dir(path(directory.path(), number)).expect("writable");
        }
        let mut second = store(directory.path());
        let Done::Opened(found) = second.carry_out(Op::Open) else { panic!("it opens") };
        let numbers: Vec<_> = found.iter().map(|found| (found.number, found.first_record, found.end_record)).collect();
        assert_eq!(numbers, [(1, 0, 0), (3, 0, 9), (5, 9, 9)]);
        assert!(found.iter().all(|found| found.mark < found.end), "each is tried");
        assert_eq!(second.carry_out(Op::Read(Place { segment: 5, ..START })), Done::Failed(Failed::Broken));
        assert_eq!(read(&mut second, ends[1]).map(|replay| replay.first_record), Some(5));
    }

    #[test]
    fn a_deleted_directory_is_noticed() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("spool");
        let mut store = store(&directory);
        store.carry_out(Op::Open);
        let ends = three(&mut store);
        fs::remove_dir_all(&directory).expect("it is there");
        let place = Place { offset: ends[2], ..START };
        let write = Write { message: Bytes::from_static(b"x"), content_bytes: 1, first_record: 9, rows: rows(1) };
        let append = Op::Append { place, batches: vec![write] };
        assert_eq!(store.carry_out(append), Done::Failed(Failed::Vanished));
        assert_eq!(read(&mut store, START.offset), None);
        assert_eq!(store.carry_out(Op::Open), Done::Opened(Vec::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever happens to a file's bytes, only what was written is read back, and the rest is skipped.
        #[test]
        fn a_damaged_file_costs_what_is_damaged(
            spots in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let directory = tempfile::tempdir().expect("a directory");
            let mut first = store(directory.path());
            first.carry_out(Op::Open);
            let ends = three(&mut first);
            drop(first);
            let file = path(directory.path(), START.segment);
            let mut bytes = fs::read(&file).expect("it is there");
            let intact = bytes.clone();
            for (at, value) in &spots {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            fs::write(&file, &bytes).expect("writable");

            let mut second = store(directory.path());
            let Done::Opened(found) = second.carry_out(Op::Open) else { panic!("it opens") };
            let mut at = found.first().map(|found| found.mark);
            let mut seen = Vec::new();
            while let Some(replay) = at.and_then(|at| read(&mut second, at)) {
                seen.push((replay.begin, replay.end));
                at = Some(replay.end);
            }
            let begins = [START.offset, ends[0], ends[1]];
            let is_whole = |begin: u64, end: u64| {
                let [begin, end] = [begin, end].map(|at| usize::try_from(at).expect("a small file"));
                intact.get(begin..end) == bytes.get(begin..end)
            };
            let expected: Vec<_> = begins.into_iter().zip(ends.iter().copied())
                .filter(|(begin, end)| is_whole(*begin, *end)).collect();
            // A corrupted mark counts as none, but the corrupted byte may also be the same as before.
            prop_assert_eq!(seen, expected);
        }
    }
}
