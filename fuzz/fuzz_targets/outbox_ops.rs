//! Sequences of events on the outbox, with a naive server, disk and clock. What is confirmed was taken, and memory and disk stay
//! within their bounds. When all is well again everything has arrived, in order, except for what was counted as lost.
#![no_main]

extern crate alloc;

#[path = "../../core/src/delivery/world.rs"]
mod world;

use arbitrary::Arbitrary;
use elklet_core::delivery::spool::Failed;
use elklet_core::delivery::{Bounds, Kind};
use libfuzzer_sys::fuzz_target;
use world::{FORGOTTEN_MS, World};

/// Steps of one sequence at most.
const STEPS: usize = 250;

#[derive(Arbitrary, Debug)]
struct Input {
    is_short_of_memory: bool,
    spool: Spool,
    may_drop: bool,
    /// Keeps what was confirmed for as long as a killed server may lose it.
    replays: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug, Clone, Copy, PartialEq)]
enum Spool {
    None,
    Small,
    Large,
}

/// [`world::Step`] as it is made of a fuzzer's bytes.
#[derive(Arbitrary, Debug, Clone, Copy, PartialEq)]
enum Step {
    New {
        bytes: u16,
        records: u8,
        kind: u8,
    },
    Hand,
    Write,
    /// The server's application takes what has arrived, up to so many messages.
    Take(u8),
    /// The server returns credit, as far as it may: this share of it.
    Credit(u8),
    Wait(u16),
    /// The shell begins an operation on the disk, or ends one.
    Disk,
    /// Everything on the connection that was not taken is gone.
    Break,
    /// The same, and the server gives no reason: it may have been because of a batch.
    Die,
    /// The server is killed, and what it took within the last second dies with it.
    Forget,
    Open,
    /// From here on each operation on the disk fails like this.
    Full,
    Broken,
    Vanished,
    Mended,
    /// One batch on the disk cannot be read any more.
    Spoil(u16),
    /// The agent is killed and starts again.
    Crash,
    /// One file can be neither read nor deleted, and stays like that.
    Jam(u16),
}

impl From<Step> for world::Step {
    fn from(step: Step) -> Self {
        match step {
            Step::New { bytes, records, kind } => Self::New {
                bytes: 1 + usize::from(bytes) % 399,
                records: 1 + u64::from(records) % 4,
                kind: match kind {
                    0 => Kind::Heartbeat,
                    1..32 => Kind::Urgent,
                    _ => Kind::Bulk,
                },
            },
            Step::Hand => Self::Hand,
            Step::Write => Self::Write,
            Step::Take(most) => Self::Take(most.into()),
            Step::Credit(share) => Self::Credit(share),
            Step::Wait(time) => Self::Wait(time.into()),
            Step::Disk => Self::Disk,
            Step::Break => Self::Break,
            Step::Die => Self::Die,
            Step::Forget => Self::Forget,
            Step::Open => Self::Open,
            Step::Full => Self::Fault(Some(Failed::Full)),
            Step::Broken => Self::Fault(Some(Failed::Broken)),
            Step::Vanished => Self::Fault(Some(Failed::Vanished)),
            Step::Mended => Self::Fault(None),
            Step::Spoil(which) => Self::Spoil(which.into()),
            Step::Crash => Self::Crash,
            Step::Jam(which) => Self::Jam(which.into()),
        }
    }
}

fuzz_target!(|input: Input| {
    let Input { is_short_of_memory, spool, may_drop, replays, mut steps } = input;
    steps.truncate(STEPS);
    let memory = if is_short_of_memory { 1_000 } else { 1 << 20 };
    let disk = match spool {
        Spool::None => 0,
        Spool::Small => 2_000,
        Spool::Large => 1 << 20,
    };
    let mut world = World::new(Bounds { memory, spool: disk }, may_drop);
    if replays {
        world.outbox.set_replay_ms(FORGOTTEN_MS);
    }
    steps.iter().for_each(|step| world.act(&(*step).into()));
    world.calm();

    let (not_taken, lost) = (world.not_taken(), world.outbox.losses().sum());
    let happened = |what: &[Step]| steps.iter().any(|step| what.contains(step));
    let is_spoilt = steps.iter().any(|step| matches!(step, Step::Spoil(_) | Step::Jam(_)));
    let is_sound = !is_spoilt && !happened(&[Step::Full, Step::Broken, Step::Vanished, Step::Crash]);
    // When memory is short, what was confirmed goes first, and a server may have forgotten it.
    let is_forgotten = happened(&[Step::Forget]) && (!replays || is_short_of_memory);
    if is_sound && (!is_short_of_memory || spool == Spool::Large) {
        assert_eq!(lost, 0, "nothing has to go");
        assert!(is_forgotten || not_taken == 0, "{not_taken} did not arrive");
        // Other batches overtake one that the server may have died of, and a replay comes after later records.
        if !happened(&[Step::Die, Step::Forget]) {
            assert!(world.first_arrivals().is_sorted(), "{:?}", world.first_arrivals());
        }
    } else if !happened(&[Step::Crash]) && !is_forgotten {
        // A crash takes the counts with it.
        assert!(not_taken <= lost, "{not_taken} did not arrive, {lost} were counted");
    }
});
