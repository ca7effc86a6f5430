//! The protocols below commands: gRPC, snappy and HTTP/2. The server wants the agent's end or its memory.
//!
//! Whether it has got either, the stage says after each attempt, so that most of these have nothing to say themselves.

use elklet_tests::center::{Fault, Status};

use super::Attempt;
use super::stage::Stage;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const UNKNOWN: u8 = 0x77;

/// A flag of HEADERS, PUSH_PROMISE and CONTINUATION.
const END_HEADERS: u8 = 4;

/// The most bytes of a frame that a peer has to take.
const FRAME_BYTES: usize = 16 << 10;

pub(super) const MESSAGES: &[Attempt] = &[
    ("send-nonsense", |stage| inject(stage, Fault::message(b"\xff\xff\xff nonsense"))),
    ("snappy-bomb", |stage| {
        let mut encoder = snap::write::FrameEncoder::new(Vec::new());
        let zeros = vec![0; 1 << 20];
        for _ in 0..512 {
            std::io::Write::write_all(&mut encoder, &zeros).unwrap();
        }
        let bomb = encoder.into_inner().unwrap();
        // As many bytes as a message may have, which are half a gigabyte unpacked.
        inject(stage, Fault::compressed_message(&bomb[..bomb.len().min(4 << 20)]))
    }),
    ("claim-4-gib", |stage| inject(stage, Fault::prefix(u32::MAX))),
    ("status-with-escapes", |stage| {
        let forged = "\u{1b}]0;title\u{7}\n2026-11-27 forged";
        inject(stage, Fault::Status(Status::new(13, forged)));
        stage.agent.wait_for_log("gRPC status 13");
        stage.written().contains(['\u{1b}', '\u{7}'])
    }),
];

pub(super) const FLOODS: &[Attempt] = &[
    ("ping-flood", |stage| flood(stage, &frame(PING, 0, 0, b"12345678"), 100_000)),
    // The longest list of settings, none of which is known.
    ("settings-flood", |stage| flood(stage, &frame(SETTINGS, 0, 0, &[0xff; 6 * 100]), 10_000)),
    ("reset-flood", |stage| flood(stage, &frame(RST_STREAM, 0, 3, &[0; 4]), 100_000)),
    ("empty-flood", |stage| flood(stage, &frame(DATA, 0, 1, &[]), 100_000)),
    ("unknown-flood", |stage| flood(stage, &frame(UNKNOWN, 0, 1, &[]), 100_000)),
    ("priority-flood", |stage| flood(stage, &frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]), 100_000)),
];

pub(super) const FRAMES: &[Attempt] = &[
    ("window-overflow", |stage| flood(stage, &frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), 2)),
    ("push", |stage| flood(stage, &frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82, 0x86, 0x84]), 1)),
    ("long-frame", |stage| inject(stage, Fault::Frame(frame(DATA, 0, 1, &vec![0; FRAME_BYTES + 1]).into()))),
    ("many-headers", |stage| {
        // 32 MiB of fields, each of which has to be kept.
        let field = [&[0x10, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'a'; 4000]].concat();
        let fields = field.repeat(4);
        let first = frame(HEADERS, 0, 1, &fields);
        let rest = frame(CONTINUATION, 0, 1, &fields).repeat((32 << 20) / fields.len());
        inject(stage, Fault::Frame([first, rest, frame(CONTINUATION, END_HEADERS, 1, &[])].concat().into()))
    }),
    ("header-bomb", |stage| {
        // A field that goes into the table (RFC 7541, section 6.2.1), and 12,000 times its number: 48 MB from 16 KB.
        let field = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'a'; 4000]].concat();
        let fields = [&field[..], &[0xbe; 12_000]].concat();
        inject(stage, Fault::Frame(frame(HEADERS, END_HEADERS, 1, &fields).into()))
    }),
];

/// Does it to the agent's stream. Returns true if that harms the agent.
fn inject(stage: &mut Stage, fault: Fault) -> bool {
    stage.site.wait_connected(&stage.agent);
    assert!(stage.site.center().inject(stage.agent.id(), fault));
    // The center may send its next command before this. The one of the stage's next look comes behind it.
    stage.harm("injected").is_some()
}

fn flood(stage: &mut Stage, frame: &[u8], times: usize) -> bool {
    inject(stage, Fault::Frame(frame.repeat(times).into()))
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}
