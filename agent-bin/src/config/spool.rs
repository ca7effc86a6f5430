//! `[spool]`: how much is kept on disk for a server that is not there.

use elklet_core::limits::{MAX_SPOOL_BYTES, MIN_SPOOL_BYTES, SPOOL_BYTES};
use serde::Deserialize;

use super::value::BadValue;

/// How much is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SpoolSettings {
    mib: Size,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self { mib: Size(mib(SPOOL_BYTES)) }
    }
}

impl SpoolSettings {
    /// Most bytes of all its files, or 0 for no spool.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.mib.0) << 20
    }
}

/// MiB of a spool, or 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "i64")]
struct Size(u32);

impl TryFrom<i64> for Size {
    type Error = BadValue;

    fn try_from(value: i64) -> Result<Self, BadValue> {
        let (least, most) = (mib(MIN_SPOOL_BYTES), mib(MAX_SPOOL_BYTES));
        match u32::try_from(value) {
            Ok(value) if value == 0 || (least..=most).contains(&value) => Ok(Self(value)),
            _ => Err(BadValue::OutOfBounds { value, or_none: true, least, most }),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a spool has less than 4 PiB")]
const fn mib(bytes: u64) -> u32 {
    (bytes >> 20) as u32
}
