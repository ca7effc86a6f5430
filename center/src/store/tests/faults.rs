//! Retention, clocks, corrupt files and full disks.

use super::*;
use crate::store::Missed;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use tempfile::TempDir;

fn files(dir: &TempDir, end: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().ends_with(end) && !path.ends_with("center.db"));
    paths.sort();
    paths
}

#[test]
fn old_files_are_dropped_by_age_once_the_clock_goes_evenly() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Settings { keep: Duration::from_secs(2 * 86_400), ..settings() }).unwrap();
    for day in 0..6 {
        append(&store, NOON + day * DAY_MS, "host", &[record(59, &[("day", &day.to_string())])]).unwrap();
    }
    // Files of the days 0 to 2 ended more than two days before the noon of day 5.
    eventually("dropping", || store.stats().files == 3);
    let mut follower = store.follow(1).unwrap();
    assert_eq!(follower.next(10).unwrap().len(), 3);
    assert_eq!(follower.missed(), Missed { records: 3, blocks: 0 }, "they were dropped before they were followed");
    assert!(follower.next(10).unwrap().is_empty());
    assert_eq!(follower.missed().records, 3, "they are missed once");
}

#[test]
fn a_clock_that_jumps_ahead_drops_nothing_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let patient = Settings { settle: Duration::from_secs(3600), ..settings() };
    let store = Store::open(dir.path(), patient).unwrap();
    append(&store, NOON, "host", &[record(59, &[])]).unwrap();
    append(&store, NOON + 30_000 * DAY_MS, "host", &[record(59, &[])]).unwrap();
    append(&store, i64::MAX, "host", &[record(59, &[])]).unwrap();
    append(&store, i64::MIN, "host", &[record(59, &[])]).unwrap();
    append(&store, NOON + 1, "host", &[record(59, &[])]).unwrap();
    let stats = store.stats();
    assert_eq!((stats.records, stats.files, stats.dropped_files), (5, 4, 0));
    assert_eq!(search(&store, &Query::default()).records.len(), 5);
}

/// Records that do not compress.
fn noise(bytes: usize, seed: u64) -> Record {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = String::new();
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("{state:x}"));
    }
    record(59, &[("seed", &seed.to_string()), ("noise", &text)])
}

#[test]
fn a_site_that_fills_its_bound_within_a_day_keeps_the_newest_part_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Settings { max_bytes: 2 << 20, ..settings() }).unwrap();
    for seed in 0..120 {
        append(&store, NOON, "host", &[noise(100_000, seed)]).unwrap();
    }
    eventually("dropping", || store.stats().dropped_files > 0);
    let found = search(&store, &Query::default()).records;
    assert!(found.len() < 120 && !found.is_empty());
    assert_eq!(found[0].seq, 120, "the newest is there");
    assert!(found.windows(2).all(|pair| pair[0].seq == pair[1].seq + 1), "and nothing is missing between");
    assert!(store.stats().bytes < 5 << 20, "{}", store.stats().bytes);
}

#[test]
fn a_file_that_is_dropped_while_it_is_read_is_read_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    for day in 0..2 {
        append(&store, NOON + day * DAY_MS, "host", &vec![record(59, &[("a", "b")]); 500]).unwrap();
    }
    let names: Vec<_> = store.shared.files.catalog().entries.iter().map(|entry| entry.name).collect();
    let reader = day::Reader::open(&store.shared.files.path(names[0])).unwrap();
    store.shared.files.drop_file(names[0]).unwrap();
    let blocks = reader.blocks(1).unwrap();
    assert_eq!(reader.content(&blocks[0]).unwrap().unwrap().len(), 500);
    // A search that comes later does not know of it, and the day's next file has another name.
    assert_eq!(search(&store, &Query { limit: 5000, ..Query::default() }).records.len(), 500);
    append(&store, NOON, "host", &[record(59, &[])]).unwrap();
    drop(reader);
    drop(store);
    let store = Store::open(dir.path(), settings()).unwrap();
    assert_eq!(store.stats().records, 501);
}

#[test]
fn corrupt_files_are_set_aside_and_the_rest_works() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    for day in 0..4 {
        append(&store, NOON + day * DAY_MS, "host", &[noise(200_000, day.unsigned_abs())]).unwrap();
    }
    let before = store.stats().next_seq;
    drop(store);
    let paths = files(&dir, ".db");
    assert_eq!(paths.len(), 4);
    fs::write(&paths[1], vec![0xA5; 100_000]).unwrap();
    fs::OpenOptions::new().write(true).open(&paths[3]).unwrap().set_len(30_000).unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    let stats = store.stats();
    assert_eq!((stats.files, stats.corrupt_files, files(&dir, ".corrupt").len()), (2, 2, 2));
    assert_eq!(search(&store, &Query::default()).records.len(), 2);
    // The last file held numbers that nobody knows any more: none of them is given again, and whoever follows learns of it.
    let mut follower = store.follow(before - 1).unwrap();
    assert!(append(&store, NOON + 3 * DAY_MS, "host", &[record(59, &[])]).unwrap().start > before);
    assert_eq!(follower.next(9).unwrap().len(), 1);
    drop(follower);
    drop(store);
    let store = Store::open(dir.path(), settings()).unwrap();
    assert_eq!((store.stats().files, store.stats().corrupt_files), (3, 2));
}

#[test]
fn a_damaged_block_is_passed_over_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    for seed in 0..3 {
        append(&store, NOON, "host", &[noise(100_000, seed)]).unwrap();
    }
    drop(store);
    let path = &files(&dir, ".db")[0];
    let mut bytes = fs::read(path).unwrap();
    // The content of blocks takes most of the file; a byte in the middle is one of theirs.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    fs::write(path, bytes).unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    let page = search(&store, &Query::default());
    assert_eq!((page.records.len(), page.damaged, store.stats().damaged_blocks), (2, 1, 1));
}

#[test]
fn a_store_of_a_newer_program_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    append(&store, NOON, "host", &[record(59, &[])]).unwrap();
    drop(store);
    rusqlite::Connection::open(&files(&dir, ".db")[0]).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(dir.path(), settings()), Err(StoreError::Newer(_, 99, 1))));
}

/// Appends until the store refuses; returns the sequence numbers that were confirmed.
fn fill(store: &Store, bytes: usize) -> (Vec<u64>, AppendError) {
    let mut confirmed = Vec::new();
    for seed in 0..10_000 {
        match append(store, NOON, "host", &[noise(bytes, seed)]) {
            Ok(seqs) => confirmed.extend(seqs),
            Err(error) => return (confirmed, error),
        }
    }
    panic!("the store never fills");
}

fn seqs(store: &Store) -> Vec<u64> {
    pages(store, Query { order: Order::Oldest, ..Query::default() }).iter().map(|found| found.seq).collect()
}

#[test]
fn a_full_file_refuses_batches_loses_nothing_and_takes_them_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings();
    settings.max_pages.store(100, Relaxed);
    let store = Store::open(dir.path(), settings.clone()).unwrap();
    let (mut confirmed, error) = fill(&store, 50_000);
    assert!(matches!(error, AppendError::Failing(FailureKind::Full, _)), "{error}");
    assert_eq!(store.stats().failure.unwrap().kind, FailureKind::Full);
    // Each attempt to write again makes it again for a moment.
    eventually("release of the reserve", || files(&dir, "reserve").is_empty());
    assert_eq!(seqs(&store), confirmed, "and everything can still be found");
    settings.max_pages.store(1 << 20, Relaxed);
    // An attempt that had begun before may still find room for itself alone, so that the store is well for a moment and full again.
    let mut taken = None;
    eventually("recovery", || {
        taken = append(&store, NOON, "host", &[noise(50_000, 1)]).ok();
        taken.is_some()
    });
    confirmed.extend(taken.unwrap());
    drop(store);
    let store = Store::open(dir.path(), settings).unwrap();
    assert_eq!(seqs(&store), confirmed);
}

/// A file system of four megabytes, which goes away with this.
struct Small(TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        mount.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_batches_loses_nothing_and_takes_them_again_when_there_is_room() {
    let Some(small) = Small::mount() else {
        let why = "cannot mount a tmpfs\n";
        // What a test prints by other means is seen only if it fails.
        let test = "SKIPPED a_full_disk_refuses_batches_loses_nothing_and_takes_them_again_when_there_is_room: ";
        return std::io::stderr().write_all([test, why].concat().as_bytes()).unwrap();
    };
    let dir = small.0.path();
    let other = dir.join("somebody-else");
    fs::write(&other, vec![1; 2 << 20]).unwrap();
    let settings = settings();
    let store = Store::open(dir, settings.clone()).unwrap();
    let (mut confirmed, error) = fill(&store, 50_000);
    assert!(matches!(error, AppendError::Failing(FailureKind::Full, _)), "{error}");
    assert!(store.stats().failure.is_some());
    assert_eq!(seqs(&store), confirmed);
    fs::remove_file(&other).unwrap();
    eventually("recovery", || store.stats().failure.is_none());
    confirmed.extend(append(&store, NOON, "host", &[noise(50_000, 1)]).unwrap());
    assert_eq!(seqs(&store), confirmed);
    // A store that is opened on a full disk can be searched, and recovers as well.
    drop(store);
    let mut file = fs::File::create(&other).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    fs::remove_file(dir.join("reserve")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    let store = Store::open(dir, settings).unwrap();
    assert!(store.stats().failure.is_some());
    fs::remove_file(&other).unwrap();
    eventually("recovery", || store.stats().failure.is_none());
    assert_eq!(seqs(&store), confirmed);
}

#[test]
fn a_writer_waits_for_a_reader_that_holds_the_lock_for_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    append(&store, NOON, "first", &[record(59, &[])]).unwrap();
    let other = rusqlite::Connection::open(&files(&dir, ".db")[0]).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        // The number of a host that is not known yet is looked up before it is given.
        let stored = scope.spawn(|| append(&store, NOON, "second", &[record(59, &[])]));
        std::thread::sleep(Duration::from_millis(100));
        other.execute_batch("ROLLBACK").unwrap();
        stored.join().unwrap().unwrap();
    });
}
