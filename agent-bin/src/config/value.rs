//! Types of values in sections. Each says what it expected if it finds something else.

use serde::Deserialize;

/// A whole number of at least `LEAST` and at most `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "i64")]
pub(crate) struct Within<const LEAST: u32, const MOST: u32>(u32);

impl<const LEAST: u32, const MOST: u32> Within<LEAST, MOST> {
    /// A number within the bounds. A constant outside of them does not compile.
    pub(crate) const fn new(value: u32) -> Self {
        assert!(LEAST <= value && value <= MOST);
        Self(value)
    }

    /// The number.
    pub(crate) const fn value(self) -> u32 {
        self.0
    }
}

impl<const LEAST: u32, const MOST: u32> TryFrom<i64> for Within<LEAST, MOST> {
    type Error = String;

    fn try_from(value: i64) -> Result<Self, String> {
        match u32::try_from(value) {
            Ok(value) if (LEAST..=MOST).contains(&value) => Ok(Self(value)),
            _ => Err(format!("{value} is out of bounds, expected {LEAST} to {MOST}")),
        }
    }
}
