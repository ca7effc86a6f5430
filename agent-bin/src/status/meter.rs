//! Rates for whoever asks, whenever that is.

use elklet_core::time::Millis;

/// Samples closer than this do not replace each other.
const INTERVAL_MS: u64 = 10_000;

/// Rates of `N` counters since one of the last two samples: over ten seconds at least, once the counters are as old, and over
/// two intervals of sampling at most.
#[derive(Debug)]
pub(crate) struct Meter<const N: usize> {
    before: (Millis, [u64; N]),
    last: (Millis, [u64; N]),
}

impl<const N: usize> Meter<N> {
    /// A meter of counters that are 0 now.
    pub(crate) fn new(now: Millis) -> Self {
        Self { before: (now, [0; N]), last: (now, [0; N]) }
    }

    /// Samples the counters: to be called as often as heartbeats leave, and before [`Meter::rates`].
    pub(crate) fn sample(&mut self, now: Millis, totals: [u64; N]) {
        if now.since(self.last.0) >= INTERVAL_MS {
            self.before = self.last;
            self.last = (now, totals);
        }
    }

    /// Milliseconds, and the rates per second over them.
    pub(crate) fn rates(&self, now: Millis, totals: [u64; N]) -> (u64, [f64; N]) {
        let (then, before) = self.before;
        let over_ms = now.since(then);
        let mut rates = [0.0; N];
        for ((rate, total), before) in rates.iter_mut().zip(totals).zip(before) {
            // One decimal says enough.
            *rate = (total.saturating_sub(before) as f64 * 10_000.0 / over_ms.max(1) as f64).round() / 10.0;
        }
        (over_ms, rates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_reach_back_to_the_sample_before_the_last() {
        let at = |ms: u64| Millis(1_000_000 + ms);
        let mut meter = Meter::new(at(0));
        assert_eq!(meter.rates(at(0), [0]), (0, [0.0]));
        assert_eq!(meter.rates(at(500), [100]), (500, [200.0]));
        meter.sample(at(60_000), [600]);
        assert_eq!(meter.rates(at(60_000), [600]), (60_000, [10.0]));
        // Whoever asks often hears of at least ten seconds.
        meter.sample(at(61_000), [1_600]);
        assert_eq!(meter.rates(at(61_000), [1_600]), (61_000, [26.2]));
        meter.sample(at(70_000), [1_600]);
        assert_eq!(meter.rates(at(70_000), [1_600]), (10_000, [100.0]));
        meter.sample(at(80_000), [1_601]);
        assert_eq!(meter.rates(at(80_000), [1_601]), (10_000, [0.1]));
    }
}
