//! The store against a list of all records.

use super::*;
use crate::store::Missed;
use proptest::prelude::*;

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
                    for (found, record) in found.iter().zip(&expected) {
                        prop_assert_eq!(
                            (found.seq, &*found.hostname, found.data_type, found.timestamp, found.received_ms),
                            (record.seq, &*format!("host-{}", record.host), record.data_type, record.timestamp, record.received_ms)
                        );
                        let of_record = payload(&[("exe", EXES[record.exe]), ("pid", &record.pid.to_string())]);
                        prop_assert_eq!(&found.payload[..], &of_record[..]);
                    }
                    prop_assert_eq!(follower.missed(), Missed::default());
                    // Whoever wants one data type gets just its records, and is as far afterwards as who wanted all.
                    let wanted = expected.first().map_or(0, |record| record.data_type);
                    let mut of_type = store.follow(position).unwrap().only(vec![wanted]);
                    let mut found = Vec::new();
                    while let Some(next) = Some(of_type.next(70).unwrap()).filter(|next| !next.is_empty()) {
                        found.extend(next.iter().map(|found| found.seq));
                    }
                    let expected: Vec<u64> =
                        expected.iter().filter(|record| record.data_type == wanted).map(|record| record.seq).collect();
                    prop_assert_eq!(found, expected);
                    prop_assert_eq!(of_type.position(), follower.position());
                }
            }
        }
        prop_assert_eq!(store.stats().records, kept.len() as u64);
    }
}
