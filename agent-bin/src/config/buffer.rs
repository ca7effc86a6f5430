//! `[buffer]`: the buffers in which records wait for their batch.

use elklet_core::limits::{ARENA_BYTES, MAX_ARENA_BYTES, MAX_REPLAY_MS, MIN_ARENA_BYTES, REPLAY_MS};
use serde::Deserialize;

use super::value::Within;

/// How large the buffers are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Buffer {
    arena_kib: Within<{ kib(MIN_ARENA_BYTES) }, { kib(MAX_ARENA_BYTES) }>,
    replay_ms: Within<0, { ms(MAX_REPLAY_MS) }>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { arena_kib: Within::new(kib(ARENA_BYTES)), replay_ms: Within::new(ms(REPLAY_MS)) }
    }
}

impl Buffer {
    /// Bytes of one of the two arenas.
    pub(crate) fn arena_bytes(&self) -> usize {
        (self.arena_kib.value() as usize) << 10
    }

    /// How long batches are kept after the server has taken them, in milliseconds.
    pub(crate) fn replay_ms(&self) -> u64 {
        self.replay_ms.value().into()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an arena has less than 4 TiB")]
const fn kib(bytes: usize) -> u32 {
    (bytes >> 10) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "it is a minute at most")]
const fn ms(time: u64) -> u32 {
    time as u32
}
