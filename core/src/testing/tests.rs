//! Some seeds; `schedules` in the package `elklet-tests` runs as many as one wants.

use super::{Schedule, run};

/// Seeds that every run of the tests goes through.
const SEEDS: u64 = 300;

#[test]
fn nothing_is_lost_untold_and_nothing_gets_stuck_whatever_the_seed() {
    for seed in 0..SEEDS {
        if let Err(failure) = run(&Schedule::from_seed(seed)) {
            panic!("seed {seed}: {failure}");
        }
    }
}

#[test]
fn a_schedule_always_comes_to_the_same_end() {
    for seed in 0..20 {
        let schedule = Schedule::from_seed(seed);
        assert_eq!(run(&schedule), run(&schedule.clone().only(&schedule.kept())), "seed {seed}");
    }
}
