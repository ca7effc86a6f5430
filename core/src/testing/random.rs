//! Where a schedule's choices come from: a small generator, or bytes that somebody else has chosen.

/// A source of choices.
pub(super) trait Draw {
    /// A number below `n`, which is at least 1.
    fn below(&mut self, n: u64) -> u64;

    /// A number from `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True this often in a hundred times.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// An index below `n`.
    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap_or(0)
    }

    /// One of these.
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// SplitMix64. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Draw for Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Bytes from outside, such as a fuzzer's. Once they are used up, every choice is the first one.
#[derive(Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Draw for Bytes<'_> {
    fn below(&mut self, n: u64) -> u64 {
        let mut value = 0;
        let mut reach = 1;
        while reach < n
            && let Some((first, rest)) = self.0.split_first()
        {
            value = value << 8 | u64::from(*first);
            reach <<= 8;
            self.0 = rest;
        }
        value % n
    }
}

impl Bytes<'_> {
    /// Returns true while there are bytes left.
    pub(super) fn has_more(&self) -> bool {
        !self.0.is_empty()
    }
}
