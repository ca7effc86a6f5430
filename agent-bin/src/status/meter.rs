//! Rates that can be asked for at any time.

use elklet_core::time::Millis;

/// A sample sooner than this after the last one does not replace it.
const INTERVAL_MS: u64 = 10_000;

/// Rates of `N` counters since one of the last two samples. They cover at least ten seconds, once the counters are that
/// old, and at most two intervals of sampling.
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

    /// Samples the counters. Call this whenever a heartbeat leaves, and before [`Meter::rates`].
    pub(crate) fn sample(&mut self, now: Millis, totals: [u64; N]) {
        if now.since(self.last.0) >= INTERVAL_MS {
            self.before = self.last;
            self.last = (now, totals);
        }
    }

    /// Returns the period in milliseconds, and the rates per second over it.
    pub(crate) fn rates(&self, now: Millis, totals: [u64; N]) -> (u64, [f64; N]) {
        let (then, before) = self.before;
        let over_ms = now.since(then);
        let mut rates = [0.0; N];
        for ((rate, total), before) in rates.iter_mut().zip(totals).zip(before) {
            // One decimal is enough.
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
        // Whoever asks often still gets rates over at least ten seconds.
        meter.sample(at(61_000), [1_600]);
        assert_eq!(meter.rates(at(61_000), [1_600]), (61_000, [26.2]));
        meter.sample(at(70_000), [1_600]);
        assert_eq!(meter.rates(at(70_000), [1_600]), (10_000, [100.0]));
        meter.sample(at(80_000), [1_601]);
        assert_eq!(meter.rates(at(80_000), [1_601]), (10_000, [0.1]));
    }
}
