//! The version of the agent.

use std::sync::OnceLock;

static VERSION: OnceLock<&str> = OnceLock::new();

/// Sets the program's version. Only the first call counts.
pub(crate) fn set(version: &'static str) {
    let _ = VERSION.set(version);
}

/// The agent's version as the server sees it and compares it with the one that it wants.
pub(crate) fn version() -> &'static str {
    VERSION.get().copied().unwrap_or(env!("CARGO_PKG_VERSION"))
}
