//! Decides when to try again: once in each of a series of windows, at the same random place in each. Every window is
//! longer than the one before.
//!
//! An agent that loses its stream cannot tell whether it alone does or a whole fleet. What counts is the load on one
//! server when it comes back, and an AgentCenter takes 1,500 agents. The agent therefore draws one random place when it
//! loses a stable stream, and tries once in each window at that place:
//!
//! ```text
//!  lost                 each window is half as long again as the one before, up to the cap
//!   |--- spread ---|------ 1.5 x ------|---------- 2.25 x ----------|---- ...
//!         ^                ^                     ^
//!         the turn is at the same share of every window
//! ```
//! The turns of N agents that lose their streams together spread evenly over each window. N agents therefore make at
//! most N / spread attempts in a second, from the first moment on, and fewer the longer the server is away. Windows do
//! not overlap. Attempts of different agents therefore do not pile up, as they do when each agent waits a random
//! multiple of its last wait. The schedule depends on when the stream was lost, not on when attempts fail. If a server
//! leaves attempts hanging and drops them all in one second, their agents do not come back in one second.
//!
//! An agent that has never had a stable stream follows the same rule from its first failure on.

use crate::time::Millis;

/// The shortest time between a failed round and the next one.
pub const BACKOFF_BASE_MS: u64 = 1_000;

/// The longest window, unless the spread is longer. The mean wait is then half a minute.
pub const BACKOFF_CAP_MS: u64 = 60_000;

/// The default length of the first window. 1,500 agents, as many as AgentCenter takes on a node, then make 300
/// handshakes in a second.
pub const RECONNECT_SPREAD_MS: u64 = 5_000;

/// The schedule of an agent's attempts to reach its servers.
#[derive(Debug, Clone)]
pub struct Backoff {
    spread_ms: u64,
    /// The window of the agent's next turn, or `None` before the first failure.
    window: Option<Window>,
    random: SplitMix64,
}

/// A stretch of time in which the agent tries once.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: Millis,
    length_ms: u64,
    /// The turn's place in this window and all later ones, in units of 2^-32.
    place: u64,
}

impl Window {
    fn turn(self) -> Millis {
        self.start + ((self.length_ms * self.place) >> 32)
    }

    fn next(self) -> Self {
        // A spread above the cap stays as it is.
        let longer = (self.length_ms + self.length_ms / 2).min(BACKOFF_CAP_MS).max(self.length_ms);
        Self { start: self.start + self.length_ms, length_ms: longer, ..self }
    }
}

impl Backoff {
    /// The first window takes `spread_ms`, at least [`BACKOFF_BASE_MS`]. A generator that starts at `seed` draws the places.
    #[must_use]
    pub fn new(spread_ms: u64, seed: u64) -> Self {
        Self { spread_ms: spread_ms.max(BACKOFF_BASE_MS), window: None, random: SplitMix64(seed) }
    }

    /// Sets the length of the first window. If it changes, the windows begin anew at the next failure.
    pub fn set_spread(&mut self, spread_ms: u64) {
        let spread_ms = spread_ms.max(BACKOFF_BASE_MS);
        if self.spread_ms != spread_ms {
            self.spread_ms = spread_ms;
            self.window = None;
        }
    }

    /// A stable stream was lost. Clears earlier failures and returns the moment of the next round, within the spread.
    #[must_use]
    pub fn after_loss(&mut self, now: Millis) -> Millis {
        self.begin(now).turn()
    }

    /// A round has failed. Returns the moment of the next one: the first turn that is at least [`BACKOFF_BASE_MS`] away.
    #[must_use]
    pub fn after_failure(&mut self, now: Millis) -> Millis {
        let mut window = match self.window {
            Some(window) => window,
            None => self.begin(now),
        };
        while window.turn() < now + BACKOFF_BASE_MS {
            window = window.next();
        }
        self.window = Some(window);
        window.turn()
    }

    fn begin(&mut self, now: Millis) -> Window {
        let window = Window { start: now, length_ms: self.spread_ms, place: self.random.next() >> 32 };
        self.window = Some(window);
        window
    }
}

/// A small generator for jitter. Nothing secret depends on it. Source: Steele, Lea, Flood, "Fast Splittable
/// Pseudorandom Number Generators", 2014.
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
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The waits grow by half each time, up to the cap or the spread, wherever in its windows an agent's turn is.
        #[test]
        fn rounds_that_fail_at_once_come_later_each_time(seed: u64, spread in 0..200_000u64) {
            let mut backoff = Backoff::new(spread, seed);
            let spread = spread.max(BACKOFF_BASE_MS);
            let lost = Millis(7);
            let mut turn = backoff.after_loss(lost);
            prop_assert!(turn.since(lost) <= spread);
            let mut last = 0;
            for _ in 0..30 {
                let next = backoff.after_failure(turn);
                let wait = next.since(turn);
                prop_assert!(wait + 1 >= last && (spread..=spread.max(BACKOFF_CAP_MS)).contains(&wait), "{wait} ms");
                (turn, last) = (next, wait);
            }
            prop_assert!(last + 1 >= spread.max(BACKOFF_CAP_MS));
        }

        /// However long rounds take to fail, no window has two turns, and the agent uses every turn that it could keep.
        #[test]
        fn a_window_has_one_turn(
            seed: u64,
            spread in 0..100_000u64,
            rounds in prop::collection::vec(0..200_000u64, 1..20),
        ) {
            let mut backoff = Backoff::new(spread, seed);
            let mut turn = backoff.after_loss(Millis(7));
            for lasts in rounds {
                let before = backoff.window.expect("it has begun");
                let failed = turn + lasts;
                let next = backoff.after_failure(failed);
                let after = backoff.window.expect("it goes on");
                prop_assert!(after.start >= before.start + before.length_ms);
                prop_assert!(next.since(failed) >= BACKOFF_BASE_MS);
                prop_assert!(next.since(failed) < BACKOFF_BASE_MS + after.length_ms);
                turn = next;
            }
        }
    }

    #[test]
    fn agents_with_other_seeds_fill_the_window_evenly() {
        let mut tenths = vec![0; 10];
        for seed in 0..1000 {
            let turn = Backoff::new(RECONNECT_SPREAD_MS, seed).after_loss(Millis(0));
            tenths[usize::try_from(10 * turn.0 / RECONNECT_SPREAD_MS).expect("it is below ten")] += 1;
        }
        assert!(tenths.iter().all(|turns| (60..150).contains(turns)), "{tenths:?}");
    }

    #[test]
    fn a_stable_stream_forgets_failures_and_so_does_another_spread() {
        let mut backoff = Backoff::new(RECONNECT_SPREAD_MS, 5);
        let mut now = backoff.after_loss(Millis(0));
        let waits: Vec<_> = (0..10)
            .map(|_| {
                let before = now;
                now = backoff.after_failure(now);
                now.since(before)
            })
            .collect();
        assert!(waits[9] > 50_000, "{waits:?}");
        let mut other = backoff.clone();
        assert!(backoff.after_loss(now).since(now) <= RECONNECT_SPREAD_MS);
        other.set_spread(RECONNECT_SPREAD_MS);
        assert!(other.after_failure(now).since(now) > 50_000);
        other.set_spread(2_000);
        assert!(other.after_failure(now).since(now) <= BACKOFF_BASE_MS + 3_000);
    }

    #[test]
    fn a_turn_that_is_exactly_the_shortest_wait_away_is_taken() {
        let mut backoff = Backoff::new(RECONNECT_SPREAD_MS, 5);
        let window = Window { start: Millis(2_000), length_ms: 5_000, place: 1 << 31 };
        assert_eq!(window.turn(), Millis(4_500), "half of a window lies before a place in its middle");
        backoff.window = Some(window);
        assert_eq!(backoff.after_failure(Millis(4_500 - BACKOFF_BASE_MS)), Millis(4_500));
        assert_eq!(backoff.after_failure(Millis(4_501 - BACKOFF_BASE_MS)), Millis(7_000 + 3_750));
    }

    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = SplitMix64(1_234_567);
        let numbers: Vec<_> = (0..3).map(|_| random.next()).collect();
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
