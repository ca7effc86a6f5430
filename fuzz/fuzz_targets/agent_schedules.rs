//! Schedules of faults for the whole agent in its simulated world, made of bytes: whatever happens to its servers, network, disk, plugins
//! and host, no record is lost untold, bounds hold, every task is answered once, and in the end the agent is connected and has nothing left.
//! `docs/simulation.md` says what is modelled and held.
#![no_main]

use elklet_core::testing::{Schedule, run, tell};
use libfuzzer_sys::fuzz_target;

/// Bytes that make a schedule; more would be ignored.
const MAX_BYTES: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    let schedule = Schedule::from_bytes(&bytes[..bytes.len().min(MAX_BYTES)]);
    if let Err(failure) = run(&schedule) {
        let story = tell(&schedule);
        let from = story.len().saturating_sub(100);
        panic!("{failure}\n{schedule}\n{}", story[from..].join("\n"));
    }
});
