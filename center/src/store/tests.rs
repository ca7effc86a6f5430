//! Tests of the whole store.

mod faults;
mod model;

use super::payload::tests::payload;
use super::*;
use std::time::Instant;

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
