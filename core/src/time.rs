//! Time as the core is told it.

use core::ops::Add;

/// Milliseconds on a clock that never goes back, counted from an origin that only the shell knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// Milliseconds from `earlier` to this moment; 0 if `earlier` is in fact later.
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
