use super::settings::{FileOutput, From, Kind};
use super::*;
use crate::store::{Batch, Missed, Record, Settings, Synchronous};
use std::time::Instant;

const DAY_MS: i64 = 86_400_000;
const NOON: i64 = 20_000 * DAY_MS + DAY_MS / 2;

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "no {what} in 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_retention_dropped_is_counted_and_the_rest_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Settings {
        keep: Duration::from_secs(2 * 86_400),
        gather: Duration::from_millis(1),
        settle: Duration::ZERO,
        synchronous: Synchronous::Normal,
        ..Settings::default()
    };
    let store = Arc::new(Store::open(dir.path().join("data"), keep).unwrap());
    store.site().positions().set("disk", 1).unwrap();
    for day in 0..6 {
        let records = [Record { data_type: 59, timestamp: day, payload: bytes::Bytes::new() }];
        let batch = Batch { received_ms: NOON + day * DAY_MS, agent_id: "a", hostname: "gw1", records: &records };
        store.append(batch).wait().unwrap();
    }
    eventually("dropping", || store.stats().files == 3);
    let path = dir.path().join("out");
    let file = FileOutput { path: path.clone(), max_size: 1 << 20, keep: 1 };
    let output = Output { name: "disk".into(), types: Vec::new(), from: From::Now, kind: Kind::File(file) };
    let (known, facts): (OnceLock<Vec<Arc<Status>>>, Facts) = (OnceLock::new(), Arc::new(|_| None));
    let forwarding = Forwarding::start(vec![output], &store, &known, &facts).unwrap();
    let status = &known.get().unwrap()[0];
    eventually("records in the file", || status.snapshot().sent == 3 && status.snapshot().state == State::Idle);
    assert_eq!(status.snapshot().missed, Missed { records: 3, blocks: 0 });
    assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 3);
    drop(forwarding);
    assert_eq!(store.site().positions().get("disk").unwrap(), Some(7), "the end writes the position");
}
