//! The center is killed a hundred times while two agents send: whatever it has confirmed is in its store.

use crate::program::{Program, site};
use crate::receivers::numbers;
use crate::support::client::{Client, TRANSFER};
use crate::support::http;
use crate::{batch, record};
use prost::Message;
use serde_json::json;
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, interval, sleep_until};

const KILLS: u64 = 100;

/// A batch of each agent leaves every so often, which makes 5,000 records a second.
const INTERVAL: Duration = Duration::from_millis(20);
const BATCH: u64 = 50;
const AGENTS: [&str; 2] = ["a", "b"];
/// The numbers of an agent's records begin so far behind those of the one before.
const NUMBERS: u64 = 1_000_000;

/// More than any window has.
const ALL: usize = 1 << 20;

/// Sends batches of numbered records for so long. Returns the numbers that were sent, and how many of them are confirmed: the center gives
/// a batch's credit back once it is stored.
async fn send(program: &Program, dir: &Path, id: &str, first: u64, length: Duration) -> (Range<u64>, u64) {
    let mut client = Client::connect(program.grpc, &dir.join("certs")).await.unwrap();
    let mut call = client.call(TRANSFER, None).await;
    let window = call.capacity(ALL).await.unwrap();
    // A window takes two dozen batches of these, so that credit has to come back for more.
    let argv = "x".repeat(20);
    let (mut next, mut sent_bytes, mut confirmed) = (first, 0, first);
    // The batches that are not confirmed: at which byte each ends, and the number that comes after it.
    let mut ends = VecDeque::new();
    // What a busy machine has missed is sent afterwards.
    let mut ticks = interval(INTERVAL);
    let end = Instant::now() + length;
    loop {
        tokio::select! {
            () = sleep_until(end) => break,
            _ = ticks.tick() => {}
        }
        let records = (next..next + BATCH).map(|n| record(59, &[("n", &n.to_string()), ("argv", &argv)])).collect();
        let message = call.encode(&batch(id, records).encode_to_vec());
        next += BATCH;
        sent_bytes += message.len();
        ends.push_back((sent_bytes, next));
        call.send_bytes(message).await.unwrap();
        call.send.reserve_capacity(ALL);
        let confirmed_bytes = sent_bytes - (window - call.send.capacity());
        let stored = ends.partition_point(|(bytes, _)| *bytes <= confirmed_bytes);
        confirmed = ends.drain(..stored).next_back().map_or(confirmed, |(_, end)| end);
    }
    (first..next, confirmed - first)
}

#[test]
#[ignore = "long: takes a minute"]
fn nothing_confirmed_is_missing_after_a_hundred_kills() {
    let dir = site();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut next, mut confirmed, mut tokens, mut sending) = ([0, NUMBERS], Vec::new(), Vec::new(), Duration::ZERO);
    for kill in 0..KILLS {
        let mut program = Program::start(dir.path());
        if kill > 0 {
            let plugins = program.get("/api/v1/plugins");
            assert_eq!(plugins["hosts"]["a"][0]["version"], (kill - 1).to_string(), "after kill {kill}");
        }
        let plugin = json!({ "name": "p", "version": kill.to_string(), "sha256": "00", "download_url": ["http://127.0.0.1:1/"] });
        let wanted = json!({ "host": "a", "plugins": [plugin] }).to_string();
        let task =
            json!({ "agent_id": "a", "task": { "data_type": 7, "name": "p", "data": kill.to_string() } }).to_string();
        let address = program.http;
        // What an operator does meanwhile is answered once it is kept.
        let operator = runtime.spawn_blocking(move || {
            assert_eq!(http::request(address, "PUT", "/api/v1/plugins", &[], wanted).status, 200);
            // Only a host that is connected can be asked.
            (0..20).find_map(|_| {
                std::thread::sleep(INTERVAL);
                let sent = http::post(address, "/api/v1/tasks", &task);
                (sent.status == 201).then(|| sent.json()["token"].as_str().unwrap().to_owned())
            })
        });
        let length = Duration::from_millis(100 + kill * 7919 % 900);
        let each = runtime.block_on(async {
            let send = |agent: usize| send(&program, dir.path(), AGENTS[agent], next[agent], length);
            let (first, second) = tokio::join!(send(0), send(1));
            [first, second]
        });
        let token = runtime.block_on(operator).unwrap();
        // This is SIGKILL, in the middle of what is not confirmed.
        program.child.kill().unwrap();
        program.child.wait().unwrap();
        tokens.extend(token.map(|token| (kill, token)));
        for (agent, (sent, stored)) in each.into_iter().enumerate() {
            confirmed.push(sent.start..sent.start + stored);
            next[agent] = sent.end;
        }
        sending += length;
    }
    let program = Program::start(dir.path());
    let body = http::get(program.http, "/api/v1/records.ndjson?type=59&order=oldest&limit=1000000").body;
    let found = numbers(&body);
    let kept: HashSet<u64> = found.iter().copied().collect();
    assert_eq!(kept.len(), found.len(), "none is there twice");
    for range in &confirmed {
        let missing = range.clone().find(|n| !kept.contains(n));
        assert_eq!(missing, None, "of {range:?}, which was confirmed");
    }
    for (kill, token) in &tokens {
        let tasks = program.get(&format!("/api/v1/tasks?token={token}"));
        assert_eq!(tasks["tasks"][0]["data"], kill.to_string(), "{tasks}");
    }
    let total: u64 = confirmed.iter().map(|range| range.end - range.start).sum();
    let sent = next[0] + next[1] - NUMBERS;
    let rate = sent as f64 / sending.as_secs_f64();
    println!(
        "{KILLS} kills: {sent} records sent, {rate:.0}/s; {total} confirmed, {} stored, {} tasks",
        kept.len(),
        tokens.len()
    );
    assert!(total > 0 && !tokens.is_empty(), "something was confirmed");
}
