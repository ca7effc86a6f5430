//! Turns counters into rates.

/// A sample that comes sooner than this makes no new rate. The kernel counts CPU time in steps of 10 ms, and two
/// heartbeats can come close together when a connection opens right after one was due.
const MIN_INTERVAL_MS: u64 = 1000;

/// The rates per second of `N` counters that are sampled together.
///
/// Rates are finite and not negative, whatever the counters and the clock do. A counter or a clock that goes back makes
/// a rate of 0.
#[derive(Debug, Clone)]
pub(in crate::host) struct Rates<const N: usize> {
    last: Option<(u64, [u64; N])>,
    per_second: [f64; N],
}

impl<const N: usize> Rates<N> {
    pub(in crate::host) fn new() -> Self {
        Self { last: None, per_second: [0.0; N] }
    }

    /// Rates of counters that were 0 at `began_ms`. The first sample returns the rates since then.
    pub(in crate::host) fn since(began_ms: u64) -> Self {
        Self { last: Some((began_ms, [0; N])), ..Self::new() }
    }

    /// Returns the rates since the last sample. `totals` are the counters at `now_ms`, which is monotonic. The first
    /// sample returns zeros unless it is known when the counters began. A sample less than a second after the last
    /// returns the same rates again.
    pub(in crate::host) fn sample(&mut self, now_ms: u64, totals: [u64; N]) -> [f64; N] {
        let elapsed_ms = self.last.and_then(|(then_ms, _)| now_ms.checked_sub(then_ms));
        match (self.last, elapsed_ms) {
            (Some(_), Some(elapsed_ms)) if elapsed_ms < MIN_INTERVAL_MS => return self.per_second,
            (Some((_, before)), Some(elapsed_ms)) => {
                let seconds = elapsed_ms as f64 / 1000.0;
                for ((rate, total), before) in self.per_second.iter_mut().zip(totals).zip(before) {
                    *rate = total.saturating_sub(before) as f64 / seconds;
                }
            }
            (None, _) | (Some(_), None) => self.per_second = [0.0; N],
        }
        self.last = Some((now_ms, totals));
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_of_the_time_between() {
        let mut rates = Rates::new();
        assert_eq!(rates.sample(5_000, [100, 0]), [0.0, 0.0]);
        assert_eq!(rates.sample(7_000, [300, 5]), [100.0, 2.5]);
        assert_eq!(rates.sample(67_000, [300, 65]), [0.0, 1.0]);
    }

    #[test]
    fn counters_whose_beginning_is_known_have_rates_from_the_first_sample_on() {
        assert_eq!(Rates::since(5_000).sample(9_000, [100]), [25.0]);
        let mut rates = Rates::since(5_000);
        assert_eq!(rates.sample(5_000, [100]), [0.0], "there was no time yet");
        assert_eq!(rates.sample(7_000, [100]), [50.0]);
    }

    #[test]
    fn samples_too_close_repeat_the_last_rate_and_lose_nothing() {
        let mut rates = Rates::new();
        assert_eq!(rates.sample(0, [0]), [0.0]);
        assert_eq!(rates.sample(0, [50]), [0.0]);
        assert_eq!(rates.sample(999, [70]), [0.0]);
        assert_eq!(rates.sample(1_000, [100]), [100.0]);
        assert_eq!(rates.sample(1_500, [900]), [100.0]);
        assert_eq!(rates.sample(3_000, [900]), [400.0]);
    }

    #[test]
    fn clocks_and_counters_that_jump_give_finite_rates() {
        let mut rates = Rates::new();
        rates.sample(10_000, [1_000]);
        assert_eq!(rates.sample(12_000, [10]), [0.0], "the counter has started anew");
        assert_eq!(rates.sample(1, [2_000]), [0.0], "the clock has gone back");
        assert_eq!(rates.sample(2_001, [4_000]), [1_000.0]);
        let [rate] = rates.sample(u64::MAX, [u64::MAX]);
        assert!(rate.is_finite() && rate >= 0.0);
    }
}
