//! `[update]`: what the server may do about the agent's own version.

use serde::Deserialize;

use super::value::Within;

/// What the server may do about the agent's own version.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Update {
    /// True if the agent becomes the version that the server names.
    pub(crate) enabled: bool,
    /// True if that may be an earlier version, or one that cannot be compared.
    pub(crate) allow_downgrade: bool,
    hold_s: Within<1, 86_400>,
    trial_s: Within<1, 86_400>,
}

impl Default for Update {
    fn default() -> Self {
        Self { enabled: true, allow_downgrade: false, hold_s: Within::new(60), trial_s: Within::new(600) }
    }
}

impl Update {
    /// How long a new version has to hold a stream.
    pub(crate) fn hold_ms(&self) -> u64 {
        u64::from(self.hold_s.value()) * 1000
    }

    /// How long it may take to open that stream.
    pub(crate) fn trial_ms(&self) -> u64 {
        u64::from(self.trial_s.value()) * 1000
    }
}
