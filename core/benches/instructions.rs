//! Instructions that the core spends on what happens most, counted by valgrind and held to `instructions.txt`.
//!
//! An instruction count is the same on a busy machine as on a quiet one, so a test can be strict about it. It depends on the
//! compiler and on the C library's copying; counts are therefore those of the static target, whose library comes with Rust:
//!
//!     cargo bench -p elklet-core --target x86_64-unknown-linux-musl            # fails when a count has grown by over 5 %
//!     cargo bench -p elklet-core --target x86_64-unknown-linux-musl -- --bless # writes the counts as they are now
#![allow(clippy::print_stdout, reason = "a table is what it is for")]

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use elklet_core::command;
use elklet_core::delivery::{Batch, Bounds, Kind, Outbox};
use elklet_core::dispatch::{Action, Dispatch, PluginAction};
use elklet_core::limits::{ARENA_BYTES, FLUSH_INTERVAL_MS, LEDGER_BYTES, MAX_RECORD_BYTES, URGENT_ARENA_BYTES};
use elklet_core::link::grpc;
use elklet_core::record::envelope::{Envelope, Sender};
use elklet_core::record::frame::FrameDecoder;
use elklet_core::record::intake::{Buffers, Intake, Lane, Origin};
use elklet_core::record::manifest::{Row, Source};
use elklet_core::record::{OwnRecord, Record};
use elklet_core::time::Millis;
use elklet_proto::grpc::{Config, Task};
use prost::Message;

/// Percent by which a count may grow before that has to be meant.
const TOLERANCE: f64 = 5.0;

/// Frames of the first case; bytes of each payload, as many as in an execve event; and bytes of one read.
const FRAMES: usize = 1000;
const PAYLOAD_BYTES: usize = 870;
const READ_BYTES: usize = 64 << 10;

const CASES: [(&str, fn()); 5] = [
    ("decode_1000_frames", decode_frames),
    ("fill_and_drain_the_buffer", fill_and_drain),
    ("assemble_a_batch", assemble_batch),
    ("confirm_100_batches", confirm_batches),
    ("dispatch_a_command", dispatch_command),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--case"
    {
        let (_, run) = CASES.iter().find(|(case, _)| case == name).expect("it is one of the cases");
        run();
        return ExitCode::SUCCESS;
    }
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let counts: BTreeMap<&str, u64> = CASES.iter().map(|(name, _)| (*name, count(name))).collect();
    if arguments.iter().any(|word| word == "--bless") {
        let mut text = String::new();
        for (name, count) in &counts {
            writeln!(text, "{name} {count}").expect("strings grow");
        }
        fs::write(&file, &text).expect("the file is writable");
        print!("{text}");
        return ExitCode::SUCCESS;
    }
    let text = fs::read_to_string(&file).unwrap_or_default();
    let expected: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, count)| Some((name, count.parse().ok()?)))
        .collect();
    compare(&counts, &expected)
}

/// Counts by running this program again under valgrind.
fn count(name: &str) -> u64 {
    let program = env::current_exe().expect("it has a path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*measured*"])
        .arg(program)
        .args(["--case", name])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    let collected =
        said.lines().find_map(|line| line.split_once("Collected : ")).expect("valgrind tells what it counted");
    collected.1.trim().parse().expect("it is a number")
}

fn compare(counts: &BTreeMap<&str, u64>, expected: &BTreeMap<&str, u64>) -> ExitCode {
    let mut verdict = ExitCode::SUCCESS;
    println!("{:<28} {:>12} {:>12} {:>8}", "instructions", "expected", "counted", "change");
    for (name, count) in counts {
        let before = expected.get(name).copied().unwrap_or(0);
        let change = (*count as f64 / before as f64 - 1.0) * 100.0;
        let remark = match change {
            // An unknown case is infinitely more than it was.
            grown if grown > TOLERANCE => {
                verdict = ExitCode::FAILURE;
                "  has grown: make it cheaper, or mean it (--bless)"
            }
            shrunk if shrunk < -TOLERANCE => "  has shrunk: keep it so (--bless)",
            _ => "",
        };
        println!("{name:<28} {before:>12} {count:>12} {change:>+7.1}%{remark}");
    }
    verdict
}

/// Only what runs in here is counted.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn frames() -> Vec<u8> {
    let value = "x".repeat(PAYLOAD_BYTES);
    let record = OwnRecord { data_type: 59, timestamp: 1_700_000_000, fields: [("argv", &*value)].into_iter() };
    let mut frame = vec![0; 4 + record.encoded_len()];
    let length = u32::try_from(record.encoded_len()).expect("it is short");
    frame[..4].copy_from_slice(&length.to_le_bytes());
    record.write(&mut frame[4..]);
    frame.repeat(FRAMES)
}

/// As the pump does: pieces of a read's size, frames cut where they end.
fn decode(decoder: &mut FrameDecoder, bytes: &[u8], mut take: impl FnMut(&Record<'_>)) {
    for mut piece in bytes.chunks(READ_BYTES) {
        while let Some(record) = decoder.peek(&mut piece) {
            take(&record.expect("the frames are sound"));
            decoder.take(&mut piece);
        }
    }
}

fn decode_frames() {
    let bytes = frames();
    let mut decoder = FrameDecoder::new(MAX_RECORD_BYTES);
    measured(|| {
        decode(&mut decoder, &bytes, |record| {
            black_box(record);
        });
    });
    assert_eq!(decoder.tally().records, FRAMES as u64);
}

const ORIGIN: Origin = Origin { source: Source::OTHER, may_drop: true };

fn buffers() -> Box<Buffers<Vec<u8>>> {
    Box::new(Buffers::new(vec![0; URGENT_ARENA_BYTES], vec![0; ARENA_BYTES]))
}

/// From the bytes of a read to the bytes of a message: decoding is part of it.
fn fill_and_drain() {
    let (bytes, mut intake, mut spare) = (frames(), Intake::new(buffers()), buffers());
    let mut decoder = FrameDecoder::new(MAX_RECORD_BYTES);
    let drained = measured(|| {
        decode(&mut decoder, &bytes, |record| {
            let _ = intake.push(Lane::Bulk, ORIGIN, record).expect("there is room");
        });
        let _ = intake.swap(&mut spare);
        let drained = spare.parts().map(<[u8]>::len);
        spare.clear();
        drained
    });
    assert!(drained[1] > FRAMES * PAYLOAD_BYTES);
}

/// What stands around records that are in their buffer: once more who sends them, and the message's head.
fn assemble_batch() {
    let sender = || Sender {
        agent_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        intranet_ipv4: vec!["10.21.4.17".to_owned()],
        extranet_ipv4: Vec::new(),
        intranet_ipv6: vec!["fe80::1".to_owned()],
        extranet_ipv6: Vec::new(),
        hostname: "prod-web-eu-0317.example.net".to_owned(),
        version: "1.0.0".to_owned(),
        product: "elkeid-agent".to_owned(),
    };
    let (before, mut after) = (Envelope::new(sender()), sender());
    after.hostname = "another.example.net".to_owned();
    let (mut envelope, mut intake, mut spare) = (before, Intake::new(buffers()), buffers());
    let record = Record::parse(&[8, 1, 16, 1]).expect("a record");
    let _ = intake.push(Lane::Bulk, ORIGIN, &record).expect("there is room");
    let length = measured(|| {
        envelope.update(after);
        let _ = intake.swap(&mut spare);
        let [urgent, bulk] = spare.parts();
        let length = urgent.len() + bulk.len() + envelope.bytes().len();
        black_box(grpc::prefix(true, length));
        length
    });
    assert!(length > 80);
}

fn confirm_batches() {
    const BATCHES: usize = 100;
    const BYTES: usize = 20_000;
    let rows: Box<[Row]> = Box::new([Row { source: Source::OTHER, data_type: 59, records: 1, first: 0, last: 0 }]);
    let mut outbox = Outbox::new(Bounds { memory: LEDGER_BYTES, spool: 0 }, Millis(0));
    outbox.handle_opened(Millis(0));
    let confirmed = measured(|| {
        for number in 0..BATCHES as u64 {
            let now = Millis(number * FLUSH_INTERVAL_MS);
            if !outbox.has_room() {
                black_box(outbox.make_room(true, now));
            }
            outbox.push(Batch::new(Kind::Bulk, (), BYTES, 0, rows.clone()));
            black_box(outbox.poll_send(Millis(0)));
            outbox.handle_written(now);
            outbox.handle_credit(number * BYTES as u64, Millis(0));
            black_box((outbox.wanted_credit(), outbox.wants_ping(now), outbox.poll_timeout(now)));
        }
        outbox.counters().confirmed
    });
    assert!(confirmed > BATCHES as u64 / 2);
}

/// A task for a plugin that runs, from its bytes to the action, and the same for a configuration of seven plugins.
fn dispatch_command() {
    let config = |number: usize| Config {
        name: format!("plugin-{number}"),
        r#type: "exec".to_owned(),
        version: "1.0.0.1".to_owned(),
        sha256: "ab".repeat(32),
        signature: "ab".repeat(32),
        download_urls: vec!["https://example.net/plugin".to_owned()],
        detail: "a detail".to_owned(),
    };
    let configs = (0..7).map(config).collect();
    let configuration = elklet_proto::grpc::Command { configs, ..Default::default() }.encode_to_vec();
    let task =
        Task { data_type: 6057, object_name: "plugin-3".to_owned(), data: "{}".repeat(20), token: "t".repeat(32) };
    let task = elklet_proto::grpc::Command { task: Some(task), ..Default::default() }.encode_to_vec();
    let mut dispatch = Dispatch::new("1.0.0".to_owned());
    let actions = measured(|| {
        let mut actions = 0;
        for bytes in [&configuration, &task] {
            dispatch.handle_command(command::Command::decode(bytes).expect("it is a command"), Millis(5));
            while let Some(action) = dispatch.poll_action() {
                if let Action::Plugin(PluginAction::Prepare(preparation, config)) = &action {
                    dispatch.handle_prepared(&config.name, *preparation, Millis(5));
                }
                assert!(!matches!(action, Action::Answer(_)), "{action:?}");
                actions += 1;
            }
        }
        actions
    });
    assert!(actions > 7 + 7, "{actions} actions");
}
