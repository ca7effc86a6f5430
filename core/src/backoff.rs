//! When to try again: a turn in a period for those who were connected, decorrelated jitter for those who never were.
//!
//! An agent that loses its stream cannot tell whether it alone does or a whole fleet. So that a fleet does not fall upon a
//! server that comes back, each of its agents tries once in a period (the *spread*), at its own moment in it, which it draws
//! when it loses a stable stream. N agents thus make N / spread attempts a second, in every second and however long the
//! server is away. No rule that keeps to that bound brings an agent back sooner in the mean than half a spread.
//!
//! An agent that has not had a stable stream yet tries soon, then later and later: each wait is drawn between the base and
//! three times the last one, and never exceeds the cap. Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use crate::time::Millis;

/// The shortest wait between two rounds over all targets.
pub const BACKOFF_BASE_MS: u64 = 1_000;

/// The longest wait of an agent that has not been connected yet.
pub const BACKOFF_CAP_MS: u64 = 60_000;

/// The spread unless configured otherwise: 1.7 % of a fleet in a second, and half a minute's wait in the mean.
pub const RECONNECT_SPREAD_MS: u64 = 60_000;

/// When an agent tries to reach its servers again.
#[derive(Debug, Clone)]
pub struct Backoff {
    spread_ms: u64,
    /// The last wait of one that was never connected.
    last_ms: u64,
    /// The latest of its turns, once it has lost a stable stream.
    turn: Option<Millis>,
    random: SplitMix64,
}

impl Backoff {
    /// Turns in periods of `spread_ms`, at least [`BACKOFF_BASE_MS`], drawn by a generator that starts at `seed`.
    #[must_use]
    pub fn new(spread_ms: u64, seed: u64) -> Self {
        Self {
            spread_ms: spread_ms.max(BACKOFF_BASE_MS),
            last_ms: BACKOFF_BASE_MS,
            turn: None,
            random: SplitMix64(seed),
        }
    }

    /// Turns come in periods of this from now on.
    pub fn set_spread(&mut self, spread_ms: u64) {
        self.spread_ms = spread_ms.max(BACKOFF_BASE_MS);
    }

    /// A stable stream was lost: the moment of the next round, between [`BACKOFF_BASE_MS`] and the spread from now.
    #[must_use]
    pub fn after_loss(&mut self, now: Millis) -> Millis {
        let turn = now + self.random.within(BACKOFF_BASE_MS, self.spread_ms);
        self.turn = Some(turn);
        turn
    }

    /// A round has failed: the moment of the next one, at least [`BACKOFF_BASE_MS`] from now.
    ///
    /// Turns stay a whole number of periods apart whenever it is that rounds fail: those that a server keeps hanging and
    /// drops in one second do not come back in one second.
    #[must_use]
    pub fn after_failure(&mut self, now: Millis) -> Millis {
        match &mut self.turn {
            Some(turn) => {
                // None, where a round came before the turn, as after SIGHUP.
                let periods = (now + BACKOFF_BASE_MS).since(*turn).div_ceil(self.spread_ms);
                *turn = *turn + periods * self.spread_ms;
                *turn
            }
            None => {
                self.last_ms = self.random.within(BACKOFF_BASE_MS, self.last_ms * 3).min(BACKOFF_CAP_MS);
                now + self.last_ms
            }
        }
    }
}

/// A small generator for jitter; nothing secret hangs on it. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom
/// Number Generators", 2014.
#[derive(Debug, Clone)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `least` to `most`, both included; `least` may not be more than `most`.
    fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn who_was_never_connected_waits_longer_each_time_between_base_and_cap(seed: u64, rounds in 1..50usize) {
            let mut backoff = Backoff::new(RECONNECT_SPREAD_MS, seed);
            let (mut now, mut last) = (Millis(0), BACKOFF_BASE_MS);
            for _ in 0..rounds {
                let next = backoff.after_failure(now);
                let wait = next.since(now);
                prop_assert!((BACKOFF_BASE_MS..=BACKOFF_CAP_MS).contains(&wait) && wait <= last * 3);
                (now, last) = (next, wait);
            }
        }

        /// Whatever the rounds take that fail: one at a time, each in its turn, and no turn is left out but for want of time.
        #[test]
        fn who_was_connected_has_one_turn_in_a_period(
            seed: u64,
            spread in 0..100_000u64,
            rounds in prop::collection::vec(0..200_000u64, 1..20),
        ) {
            let mut backoff = Backoff::new(spread, seed);
            let period = spread.max(BACKOFF_BASE_MS);
            let lost = Millis(7);
            let first = backoff.after_loss(lost);
            prop_assert!((BACKOFF_BASE_MS..=period).contains(&first.since(lost)));
            let mut turn = first;
            for lasts in rounds {
                let failed = turn + lasts;
                let next = backoff.after_failure(failed);
                prop_assert_eq!(next.since(first) % period, 0);
                prop_assert!(next.since(failed) >= BACKOFF_BASE_MS);
                prop_assert!(next.since(turn) == period || next.since(failed) < BACKOFF_BASE_MS + period);
                turn = next;
            }
        }
    }

    #[test]
    fn agents_with_other_seeds_have_other_turns() {
        let mut turns: Vec<_> =
            (0..1000).map(|seed| Backoff::new(RECONNECT_SPREAD_MS, seed).after_loss(Millis(0))).collect();
        turns.sort_unstable();
        turns.dedup();
        assert!(turns.len() > 950, "{} different turns of 1000", turns.len());
    }
}
