//! Tests of the whole store.

use super::payload::tests::payload;
use super::*;
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
use tempfile::TempDir;

const DAY_MS: i64 = 86_400_000;
const NOON: i64 = 20_000 * DAY_MS + DAY_MS / 2;

fn settings() -> Settings {
    Settings {
        gather: Duration::from_millis(1),
        reserve_bytes: 64 << 10,
        retry: Duration::from_millis(20),
        settle: Duration::ZERO,
        synchronous: Synchronous::Normal,
        ..Settings::default()
    }
}

fn record(data_type: i32, fields: &[(&str, &str)]) -> Record {
    Record { data_type, timestamp: 7, payload: payload(fields).into() }
}

fn append(
    store: &Store,
    received_ms: i64,
    host: &str,
    records: &[Record],
) -> Result<std::ops::Range<u64>, AppendError> {
    store.append(Batch { received_ms, agent_id: &format!("id-of-{host}"), hostname: host, records }).wait()
}

fn search(store: &Store, query: &Query) -> Page {
    store.search(query, &Limits::default()).unwrap()
}

/// Waits until something holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} does not come to hold");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn files(dir: &TempDir, end: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().ends_with(end) && !path.ends_with("center.db"));
    paths.sort();
    paths
}

/// A record as the naive model keeps it.
#[derive(Clone, Debug)]
struct Kept {
    seq: u64,
    host: usize,
    received_ms: i64,
    data_type: i32,
    timestamp: i64,
    exe: usize,
    pid: u16,
}

const EXES: [&str; 4] = ["/usr/bin/curl", "/usr/bin/curlew", "/bin/sh", ""];

#[derive(Clone, Debug)]
enum Step {
    /// Host, day, and records of data type, timestamp, program and pid.
    Append(usize, i64, Vec<(i32, i64, usize, u16)>),
    Reopen,
    Search(Box<Asked>),
    Follow(prop::sample::Index),
}

#[derive(Clone, Debug)]
struct Asked {
    host: Option<usize>,
    types: Vec<i32>,
    exe: Option<(usize, bool)>,
    pid: Option<u16>,
    timestamp: (i64, i64),
    days: (i64, i64),
    oldest: bool,
    limit: usize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let records = prop::collection::vec((0..3i32, 0..9i64, 0..EXES.len(), 0..50u16), 1..200);
    let asked = (
        (
            prop::option::of(0..4usize),
            prop::collection::vec(0..3i32, 0..3),
            prop::option::of((0..EXES.len(), any::<bool>())),
        ),
        (prop::option::of(0..50u16), (0..9i64, 0..9i64), (0..4i64, 0..4i64), any::<bool>(), 1..300usize),
    )
        .prop_map(|((host, types, exe), (pid, timestamp, days, oldest, limit))| Asked {
            host,
            types,
            exe,
            pid,
            timestamp,
            days,
            oldest,
            limit,
        });
    let step = prop_oneof![
        40 => (0..3usize, 0..3i64, records).prop_map(|(host, day, records)| Step::Append(host, day, records)),
        2 => Just(Step::Reopen),
        6 => asked.prop_map(|asked| Step::Search(Box::new(asked))),
        2 => any::<prop::sample::Index>().prop_map(Step::Follow),
    ];
    prop::collection::vec(step, 1..120)
}

/// All pages of a query, one after the other.
fn pages(store: &Store, mut query: Query) -> Vec<Found> {
    let mut found = Vec::new();
    loop {
        let page = search(store, &query);
        assert_eq!(page.damaged, 0);
        assert!(page.records.len() <= query.limit);
        found.extend(page.records);
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return found,
        }
    }
}

impl Asked {
    fn query(&self) -> Query {
        let condition = |field: &str, test, value: &str| Condition { field: field.into(), test, value: value.into() };
        let exe =
            self.exe.map(|(exe, whole)| condition("exe", if whole { Test::Is } else { Test::Contains }, EXES[exe]));
        let pid = self.pid.map(|pid| condition("pid", Test::Is, &pid.to_string()));
        Query {
            received_ms: NOON + self.days.0 * DAY_MS..=NOON + self.days.1 * DAY_MS,
            timestamp: self.timestamp.0..=self.timestamp.1,
            host: self.host.map(|host| format!("host-{host}")),
            data_types: self.types.clone(),
            conditions: exe.into_iter().chain(pid).collect(),
            order: if self.oldest { Order::Oldest } else { Order::Newest },
            limit: self.limit,
            cursor: None,
        }
    }

    fn naive(&self, kept: &[Kept]) -> Vec<u64> {
        let holds = |record: &&Kept| {
            self.host.is_none_or(|host| record.host == host)
                && (self.types.is_empty() || self.types.contains(&record.data_type))
                && self.exe.is_none_or(|(exe, whole)| {
                    if whole { EXES[record.exe] == EXES[exe] } else { EXES[record.exe].contains(EXES[exe]) }
                })
                && self.pid.is_none_or(|pid| record.pid == pid)
                && (self.timestamp.0..=self.timestamp.1).contains(&record.timestamp)
                && (NOON + self.days.0 * DAY_MS..=NOON + self.days.1 * DAY_MS).contains(&record.received_ms)
        };
        let mut seqs: Vec<u64> = kept.iter().filter(holds).map(|record| record.seq).collect();
        if !self.oldest {
            seqs.reverse();
        }
        seqs
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_search_finds_what_a_list_of_all_records_would(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), settings()).unwrap();
        let mut kept: Vec<Kept> = Vec::new();
        for step in steps {
            match step {
                Step::Append(host, day, records) => {
                    let received_ms = NOON + day * DAY_MS;
                    let made: Vec<Record> = records
                        .iter()
                        .map(|&(data_type, timestamp, exe, pid)| {
                            let payload = payload(&[("exe", EXES[exe]), ("pid", &pid.to_string())]).into();
                            Record { data_type, timestamp, payload }
                        })
                        .collect();
                    let seqs = append(&store, received_ms, &format!("host-{host}"), &made).unwrap();
                    prop_assert_eq!(seqs.end - seqs.start, records.len() as u64);
                    prop_assert!(kept.last().is_none_or(|last| last.seq < seqs.start));
                    kept.extend(seqs.zip(records).map(|(seq, (data_type, timestamp, exe, pid))| {
                        Kept { seq, host, received_ms, data_type, timestamp, exe, pid }
                    }));
                }
                Step::Reopen => {
                    drop(store);
                    store = Store::open(dir.path(), settings()).unwrap();
                }
                Step::Search(asked) => {
                    let found: Vec<u64> = pages(&store, asked.query()).iter().map(|found| found.seq).collect();
                    prop_assert_eq!(found, asked.naive(&kept), "{:?}", asked);
                }
                Step::Follow(from) => {
                    let position = if kept.is_empty() { 0 } else { kept[from.index(kept.len())].seq };
                    let mut follower = store.follow(position).unwrap();
                    let mut found = Vec::new();
                    loop {
                        let next = follower.next(70).unwrap();
                        if next.is_empty() {
                            break;
                        }
                        found.extend(next);
                    }
                    let expected: Vec<&Kept> = kept.iter().filter(|record| record.seq >= position).collect();
                    prop_assert_eq!(found.len(), expected.len());
                    for (found, record) in found.iter().zip(expected) {
                        prop_assert_eq!(
                            (found.seq, &*found.hostname, found.data_type, found.timestamp, found.received_ms),
                            (record.seq, &*format!("host-{}", record.host), record.data_type, record.timestamp, record.received_ms)
                        );
                        let of_record = payload(&[("exe", EXES[record.exe]), ("pid", &record.pid.to_string())]);
                        prop_assert_eq!(&found.payload[..], &of_record[..]);
                    }
                    prop_assert!(!follower.missed());
                }
            }
        }
        prop_assert_eq!(store.stats().records, kept.len() as u64);
    }
}

#[test]
fn merging_small_runs_changes_nothing_that_a_search_sees() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    for batch in 0..400 {
        let host = format!("host-{}", batch % 3);
        append(&store, NOON + batch, &host, &[record(59, &[("n", &batch.to_string())])]).unwrap();
    }
    eventually("merging", || store.stats().merged > 0);
    let all = pages(&store, Query { order: Order::Oldest, limit: 37, ..Query::default() });
    let numbers: Vec<String> =
        all.iter().map(|found| String::from_utf8(fields(&found.payload).next().unwrap().1.to_vec()).unwrap()).collect();
    assert_eq!(numbers, (0..400).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(all.iter().zip(1..).all(|(found, seq)| found.seq == seq));
    let is = Condition { field: "n".into(), test: Test::Is, value: "123".into() };
    assert_eq!(pages(&store, Query { conditions: vec![is], ..Query::default() }).len(), 1);
}

#[test]
fn pages_that_are_read_while_records_are_stored_and_merged_have_each_record_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    let total: u64 = 600;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for batch in 0..total {
                // Every tenth batch is of the day before, so that two files are written in turns.
                let day = if batch % 10 == 9 { 0 } else { 1 };
                append(&store, NOON + day * DAY_MS, "host", &[record(59, &[])]).unwrap();
            }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let next = store.stats().next_seq;
            for (order, limit) in [(Order::Oldest, 50), (Order::Newest, 70)] {
                let mut seqs: Vec<u64> =
                    pages(&store, Query { order, limit, ..Query::default() }).iter().map(|found| found.seq).collect();
                if order == Order::Newest {
                    seqs.reverse();
                }
                assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{order:?}: {seqs:?}");
                assert!(seqs.len() as u64 >= next - 1, "what was stored before the search began is found");
            }
            if next == total + 1 {
                break;
            }
            assert!(Instant::now() < deadline);
        }
    });
}

#[test]
fn a_filter_keeps_a_search_from_opening_blocks_that_do_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    for batch in 0..20 {
        let name = format!("/bin/tool-{batch}");
        append(&store, NOON, "host", &vec![record(59, &[("exe", &name)]); 50]).unwrap();
    }
    let is = |data_types, value: &str| Query {
        data_types,
        conditions: vec![Condition { field: "exe".into(), test: Test::Is, value: value.into() }],
        ..Query::default()
    };
    let page = search(&store, &is(vec![59], "/bin/tool-7"));
    assert_eq!(page.records.len(), 50);
    assert!(page.opened <= 2, "{}", page.opened);
    assert!(search(&store, &is(vec![], "/bin/no-such-tool")).opened <= 2);
    assert_eq!(search(&store, &is(vec![42], "/bin/tool-7")).opened, 0);
}

#[test]
fn what_was_confirmed_is_there_after_the_store_was_opened_again_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Settings::default()).unwrap();
    let first = append(&store, NOON, "host", &[record(59, &[("a", "b")])]).unwrap();
    drop(store);
    let store = Store::open(dir.path(), Settings::default()).unwrap();
    let second = append(&store, NOON, "host", &[record(59, &[("a", "c")])]).unwrap();
    assert_eq!(second.start, first.end);
    assert_eq!(search(&store, &Query::default()).records.len(), 2);
}

#[test]
fn two_processes_cannot_have_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Store::open(dir.path(), settings()).unwrap();
    assert!(matches!(Store::open(dir.path(), settings()), Err(StoreError::InUse(_))));
}

#[test]
fn batches_beyond_the_queue_wait_in_their_tickets_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Settings { queue_bytes: 4096, ..settings() }).unwrap();
    let records = vec![record(59, &[("text", &"x".repeat(1000))]); 3];
    let batch = Batch { received_ms: NOON, agent_id: "a", hostname: "h", records: &records };
    let tickets: Vec<Ticket> = (0..50).map(|_| store.append(batch)).collect();
    assert!(store.stats().queued_bytes <= 4096);
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    assert_eq!(search(&store, &Query { limit: 1000, ..Query::default() }).records.len(), 150);
}

#[test]
fn a_batch_that_waits_outside_is_withdrawn_with_its_ticket_and_one_in_the_queue_is_stored_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let slow = Settings { queue_bytes: 1024, gather: Duration::from_secs(3600), ..settings() };
    let store = Store::open(dir.path(), slow).unwrap();
    let records = [record(59, &[])];
    let batch = Batch { received_ms: NOON, agent_id: "a", hostname: "h", records: &records };
    let inside = store.append(batch);
    let outside = store.append(batch);
    drop((inside, outside));
    // Closing the store writes what is in the queue.
    drop(store);
    let store = Store::open(dir.path(), settings()).unwrap();
    assert_eq!(store.stats().records, 1);
}

#[test]
fn a_batch_that_can_never_be_stored_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    let long = Record { data_type: 1, timestamp: 1, payload: vec![0; (16 << 20) + 1].into() };
    assert!(matches!(append(&store, NOON, "host", &[long]), Err(AppendError::Refused(_))));
    assert!(matches!(append(&store, NOON, &"h".repeat(2000), &[record(1, &[])]), Err(AppendError::Refused(_))));
    assert_eq!(append(&store, NOON, "host", &[]), Ok(1..1));
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
    assert!(follower.missed(), "three records were dropped before they were followed");
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
    assert!(files(&dir, "reserve").is_empty(), "the reserve is given up");
    assert_eq!(seqs(&store), confirmed, "and everything can still be found");
    settings.max_pages.store(1 << 20, Relaxed);
    eventually("recovery", || store.stats().failure.is_none());
    confirmed.extend(append(&store, NOON, "host", &[noise(50_000, 1)]).unwrap());
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
        println!(
            "SKIPPED a_full_disk_refuses_batches_loses_nothing_and_takes_them_again_when_there_is_room: cannot mount a tmpfs"
        );
        return;
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
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    fs::remove_file(dir.join("reserve")).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    drop(file);
    let store = Store::open(dir, settings).unwrap();
    assert!(store.stats().failure.is_some());
    fs::remove_file(&other).unwrap();
    eventually("recovery", || store.stats().failure.is_none());
    assert_eq!(seqs(&store), confirmed);
}

#[test]
fn a_search_ends_when_it_is_cancelled_or_its_time_is_up_and_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    for batch in 0..20 {
        append(&store, NOON + batch, "host", &vec![record(59, &[("a", "b")]); 10]).unwrap();
    }
    let cancelled = Limits { cancelled: Arc::new(AtomicBool::new(true)), ..Limits::default() };
    assert_eq!(store.search(&Query::default(), &cancelled).unwrap().end, End::Cancelled);
    let mut query = Query { limit: 1000, ..Query::default() };
    let mut found = 0;
    loop {
        let limits = Limits { deadline: Some(Instant::now()), ..Limits::default() };
        let page = store.search(&query, &limits).unwrap();
        found += page.records.len();
        assert_eq!(limits.total.load(Relaxed), 200);
        assert!(limits.passed.load(Relaxed) > 0);
        if page.end == End::Complete {
            break;
        }
        assert_eq!(page.end, End::Deadline);
        query.cursor = page.next;
    }
    assert_eq!(found, 200);
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), settings()).unwrap();
    let ask = |query: Query| store.search(&query, &Limits::default());
    assert!(matches!(ask(Query { limit: 0, ..Query::default() }), Err(SearchError::Query(_))));
    assert!(matches!(ask(Query { limit: 10_001, ..Query::default() }), Err(SearchError::Query(_))));
    assert!(matches!(store.follow(99), Err(SearchError::Ahead(99, 1))));
    for cursor in [0, 1, u64::MAX] {
        for order in [Order::Newest, Order::Oldest] {
            assert!(ask(Query { cursor: Some(cursor), order, ..Query::default() }).unwrap().records.is_empty());
        }
    }
}
