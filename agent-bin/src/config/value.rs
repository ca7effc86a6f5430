//! Kinds of values that sections are made of; each says what was expected when it is something else.

use serde::Deserialize;

/// A whole number of at least `LEAST` and at most `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "i64")]
pub(crate) struct Within<const LEAST: u32, const MOST: u32>(u32);

impl<const LEAST: u32, const MOST: u32> Within<LEAST, MOST> {
    /// A number that is known to be within the bounds; another does not compile where it is a constant.
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
