//! The time, as the shell tells it to the core.

use core::ops::Add;

/// Milliseconds on a monotonic clock, counted from an origin that only the shell knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// Milliseconds from `earlier` to this moment, or 0 if `earlier` is in fact later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Millis {
    type Output = Self;

    /// The moment `rhs` milliseconds later.
    fn add(self, rhs: u64) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}
