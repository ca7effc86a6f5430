//! How fast the store takes records, how large they are in it, and how fast it finds them.
//!
//!     cargo bench -p elklet-center --bench store -- [--records N] [--rate N] [--seconds N] [--dir PATH]
//!
//! Stores N records (default 1,000,000) of twenty hosts, spread over three days, as fast as it goes; then records at a steady rate; then
//! searches. What the processor did for the store is told from what it did to make up records by the names of threads.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod records;

use bytes::Bytes;
use elklet_center::store::{Batch, Condition, Limits, Order, Query, Record, Settings, Store, Test, Ticket};
use records::{Numbers, record};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const HOSTS: u64 = 20;
const BATCH: u64 = 100;
/// Batches on their way at once, as from so many agents.
const STREAMS: usize = 40;
const DAY_MS: u64 = 86_400_000;
/// The first of the three days.
const BEGIN_MS: u64 = 20_000 * DAY_MS;

fn main() -> Result<(), lexopt::Error> {
    use lexopt::prelude::*;
    let (mut count, mut rate, mut seconds, mut dir) = (1_000_000, 20_000, 10, None);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("records") => count = parser.value()?.parse()?,
            Long("rate") => rate = parser.value()?.parse()?,
            Long("seconds") => seconds = parser.value()?.parse()?,
            Long("dir") => dir = Some(PathBuf::from(parser.value()?)),
            // Cargo says so.
            Long("bench") => {}
            _ => return Err(argument.unexpected()),
        }
    }
    let temporary = tempfile::tempdir().unwrap();
    let dir = dir.unwrap_or_else(|| temporary.path().into());
    let store = Store::open(&dir, Settings::default()).unwrap();
    let mut feed = Feed { numbers: Numbers::new(1), waiting: VecDeque::new(), raw: 0 };

    let ms_each = 3.0 * DAY_MS as f64 / count as f64;
    let (start, cpu) = (Instant::now(), store_cpu());
    for batch in 0..count / BATCH {
        feed.append(&store, BEGIN_MS + ((batch * BATCH) as f64 * ms_each) as u64);
    }
    feed.wait();
    let (wall, cpu) = (start.elapsed(), store_cpu() - cpu);
    let stats = store.stats();
    println!(
        "stored          {count} records of {} bytes in {:.1} s: {:.0} a second",
        feed.raw / count,
        wall.as_secs_f64(),
        count as f64 / wall.as_secs_f64()
    );
    println!(
        "processor       {:.2} us a record in the store's threads, {:.0} % of one core",
        cpu.as_secs_f64() * 1e6 / count as f64,
        cpu.as_secs_f64() / wall.as_secs_f64() * 100.0
    );
    println!(
        "on the disk     {} bytes a record, {} MiB in {} files",
        stats.bytes / count,
        stats.bytes >> 20,
        stats.files
    );
    println!(
        "rewritten       {:.2} times by merging; {} transactions",
        stats.merged as f64 / count as f64,
        stats.commits
    );
    println!("memory          {} MiB at most", peak_rss() >> 20);

    let (start, cpu) = (Instant::now(), store_cpu());
    let batches = rate * seconds / BATCH;
    for batch in 0..batches {
        let due = Duration::from_secs_f64((batch * BATCH) as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        feed.append(&store, BEGIN_MS + 3 * DAY_MS - 1);
    }
    feed.wait();
    let (wall, cpu) = (start.elapsed(), store_cpu() - cpu);
    println!(
        "steady          {:.0} records a second take {:.1} % of one core",
        (batches * BATCH) as f64 / wall.as_secs_f64(),
        cpu.as_secs_f64() / wall.as_secs_f64() * 100.0
    );

    let is = |field: &str, value: &str| Condition { field: field.into(), test: Test::Is, value: value.into() };
    let contains =
        |field: &str, value: &str| Condition { field: field.into(), test: Test::Contains, value: value.into() };
    let yesterday = (BEGIN_MS + DAY_MS) as i64..=(BEGIN_MS + 2 * DAY_MS - 1) as i64;
    let curl = Query {
        received_ms: yesterday.clone(),
        host: Some("gateway-07.site.example".into()),
        data_types: vec![59],
        conditions: vec![is("exe", "/usr/bin/curl")],
        ..Query::default()
    };
    ask(&store, "exec of curl on a host yesterday", &curl);
    ask(&store, "all of them", &Query { limit: 10_000, ..curl.clone() });
    ask(
        &store,
        "exec of curl on any host, ever",
        &Query { host: None, received_ms: i64::MIN..=i64::MAX, ..curl.clone() },
    );
    let anywhere = |condition| Query { conditions: vec![condition], ..Query::default() };
    ask(&store, "a program that never ran, anywhere", &anywhere(is("exe", "/usr/bin/never")));
    ask(
        &store,
        "argv contains text, a host's yesterday",
        &Query { conditions: vec![contains("argv", "no-such-text")], ..curl },
    );
    ask(&store, "newest of all", &Query::default());
    ask(&store, "oldest of all", &Query { order: Order::Oldest, ..Query::default() });
    ask(&store, "argv contains text, everything", &anywhere(contains("argv", "no-such-text")));

    let start = Instant::now();
    let mut follower = store.follow(0).unwrap();
    let mut followed = 0;
    while followed < 1_000_000 {
        match follower.next(1000).unwrap().len() {
            0 => break,
            read => followed += read,
        }
    }
    println!("following       {:.0} records a second", followed as f64 / start.elapsed().as_secs_f64());
    println!("memory          {} MiB at most", peak_rss() >> 20);
    Ok(())
}

struct Feed {
    numbers: Numbers,
    waiting: VecDeque<Ticket>,
    raw: u64,
}

impl Feed {
    fn append(&mut self, store: &Store, received_ms: u64) {
        let host = self.numbers.below(HOSTS);
        let timestamp = (received_ms / 1000) as i64;
        let records: Vec<Record> = (0..BATCH)
            .map(|_| {
                let (data_type, payload) = record(&mut self.numbers, host);
                self.raw += payload.len() as u64;
                Record { data_type, timestamp, payload: Bytes::from(payload) }
            })
            .collect();
        let hostname = format!("gateway-{host:02}.site.example");
        let agent_id = format!("00000000-0000-4000-8000-{host:012}");
        let batch =
            Batch { received_ms: received_ms as i64, agent_id: &agent_id, hostname: &hostname, records: &records };
        self.waiting.push_back(store.append(batch));
        // The queue holds what many agents have on their way; the oldest is waited for.
        while self.waiting.len() >= STREAMS * 16 {
            self.waiting.pop_front().unwrap().wait().unwrap();
        }
    }

    fn wait(&mut self) {
        for ticket in self.waiting.drain(..) {
            ticket.wait().unwrap();
        }
    }
}

fn ask(store: &Store, what: &str, query: &Query) {
    let mut times = Vec::new();
    let mut page = None;
    for _ in 0..5 {
        let start = Instant::now();
        page = Some(store.search(query, &Limits::default()).unwrap());
        times.push(start.elapsed());
        if start.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    let first = times[0];
    times.sort();
    let page = page.unwrap();
    println!(
        "search          {what}: {} found, {} blocks opened, {:.1} ms ({:.1} ms at first)",
        page.records.len(),
        page.opened,
        times[times.len() / 2].as_secs_f64() * 1e3,
        first.as_secs_f64() * 1e3
    );
}

/// What the processor has done in the store's threads.
fn store_cpu() -> Duration {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        if stat.contains("(store-") {
            let fields: Vec<u64> =
                stat.rsplit(") ").next().unwrap().split(' ').map(|field| field.parse().unwrap_or(0)).collect();
            ticks += fields[11] + fields[12];
        }
    }
    // A tick is a hundredth of a second on every Linux that this runs on.
    Duration::from_millis(ticks * 10)
}

/// The most memory that the process ever had, in bytes.
fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
