//! `[buffer]`: where records wait for their batch.

use elklet_core::limits::{ARENA_BYTES, MAX_ARENA_BYTES, MIN_ARENA_BYTES};
use serde::Deserialize;

use super::value::Within;

/// How large the buffers are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Buffer {
    arena_kib: Within<{ kib(MIN_ARENA_BYTES) }, { kib(MAX_ARENA_BYTES) }>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { arena_kib: Within::new(kib(ARENA_BYTES)) }
    }
}

impl Buffer {
    /// Bytes of one of the two arenas.
    pub(crate) fn arena_bytes(&self) -> usize {
        (self.arena_kib.value() as usize) << 10
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an arena has less than 4 TiB")]
const fn kib(bytes: usize) -> u32 {
    (bytes >> 10) as u32
}
