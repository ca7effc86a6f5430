//! A store whose process is killed at any moment has everything that was confirmed.
//!
//! The test runs itself as the process that is killed: it appends at full speed and prints what is confirmed. It kills twenty times, or as
//! often as `ELKLET_STORE_KILLS` says.
#![allow(clippy::unwrap_used)]

use elklet_center::store::{Batch, Record, Settings, Store, fields};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Says in which directory, and from which number on, a process appends.
const CHILD: &str = "ELKLET_STORE_KILL_CHILD";
const ROUNDS: u64 = 20;
/// Ten minutes past noon of some day, and one minute before the next.
const TIMES_MS: [i64; 2] = [20_000 * 86_400_000 + 43_800_000, 20_001 * 86_400_000 - 60_000];

fn settings() -> Settings {
    // Short groups, so that many transactions, and merging, are there to be broken off.
    Settings { gather: Duration::from_millis(1), reserve_bytes: 1 << 16, ..Settings::default() }
}

/// A record that says which one it is.
fn record(number: u64) -> Record {
    let number = number.to_string();
    let text = "x".repeat(100);
    let mut payload = Vec::new();
    for (name, value) in [("n", number.as_str()), ("text", text.as_str())] {
        let entry =
            [&[0x0A, u8::try_from(name.len()).unwrap()], name.as_bytes(), &[0x12, u8::try_from(value.len()).unwrap()]];
        let entry: Vec<u8> = entry.concat().into_iter().chain(value.bytes()).collect();
        payload.extend([0x0A, u8::try_from(entry.len()).unwrap()]);
        payload.extend(entry);
    }
    Record { data_type: 59, timestamp: 1, payload: payload.into() }
}

fn append_for_ever(dir: &Path, mut number: u64) -> ! {
    let store = Store::open(dir, settings()).unwrap();
    let mut out = std::io::stdout().lock();
    loop {
        let batches: Vec<Vec<Record>> =
            (0..8).map(|batch| (0..5).map(|n| record(number + batch * 5 + n)).collect()).collect();
        let tickets: Vec<_> = batches
            .iter()
            .zip(0..)
            .map(|(records, host)| {
                // The days are written in turns, so that files are closed and opened all the time.
                let received_ms = TIMES_MS[usize::try_from(number / 4000 % 2).unwrap()]
                    + 60_000 * i64::try_from(number / 4000 % 2).unwrap();
                store.append(Batch { received_ms, agent_id: "a", hostname: &format!("host-{host}"), records })
            })
            .collect();
        for (ticket, batch) in tickets.into_iter().zip(0..) {
            let seqs = ticket.wait().unwrap();
            writeln!(out, "confirmed {} {}", number + batch * 5, seqs.start).unwrap();
        }
        out.flush().unwrap();
        number += 40;
    }
}

#[test]
fn nothing_that_was_confirmed_is_missing_after_the_process_was_killed() {
    if let Ok(child) = std::env::var(CHILD) {
        let (number, dir) = child.split_once(' ').unwrap();
        append_for_ever(Path::new(dir), number.parse().unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut next_number, mut position, mut confirmed) = (0, 0, 0);
    let mut stored: HashMap<u64, u64> = HashMap::new();
    let rounds = std::env::var("ELKLET_STORE_KILLS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_that_was_confirmed_is_missing_after_the_process_was_killed", "--nocapture"])
            .env(CHILD, format!("{next_number} {}", dir.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        // The moment is another in each round: between the first confirmation and some thousand records later.
        let step = round % ROUNDS;
        let lines = 1 + step * step * 5 + round * 7 % 16;
        let (mut line, mut seen) = (String::new(), 0);
        let mut claims = Vec::new();
        while out.read_line(&mut line).unwrap() > 0 {
            if let Some(claim) = line.strip_suffix('\n').and_then(|line| line.strip_prefix("confirmed ")) {
                let (number, seq) = claim.split_once(' ').unwrap();
                claims.push((number.parse::<u64>().unwrap(), seq.parse::<u64>().unwrap()));
                seen += 1;
                if seen == lines {
                    child.kill().unwrap();
                }
            }
            line.clear();
        }
        child.wait().unwrap();
        assert!(seen >= lines, "round {round}: the process ended by itself after {seen} confirmations");

        let store = Store::open(dir.path(), settings()).unwrap();
        assert_eq!(store.stats().corrupt_files, 0, "round {round}");
        let mut follower = store.follow(position).unwrap();
        loop {
            let records = follower.next(10_000).unwrap();
            if records.is_empty() {
                break;
            }
            for found in records {
                let (name, value) = fields(&found.payload).next().unwrap();
                assert_eq!(name, b"n");
                let number: u64 = std::str::from_utf8(value).unwrap().parse().unwrap();
                assert_eq!(stored.insert(found.seq, number), None, "sequence number {} was given twice", found.seq);
                next_number = next_number.max(number + 1);
            }
        }
        position = follower.position();
        for (number, seq) in claims {
            for n in 0..5 {
                assert_eq!(stored.get(&(seq + n)), Some(&(number + n)), "round {round}: confirmed, and not there");
                confirmed += 1;
            }
        }
        // Numbers that were on their way are not used again, so that each says which round it is of.
        next_number = next_number.div_ceil(40) * 40 + 40;
    }
    println!("{rounds} kills, {confirmed} confirmed records, {} stored", stored.len());
}
