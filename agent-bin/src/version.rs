//! Which version of the agent this is.

use std::sync::OnceLock;

static VERSION: OnceLock<&str> = OnceLock::new();

/// Says which version the program is; the first word counts.
pub(crate) fn set(version: &'static str) {
    let _ = VERSION.set(version);
}

/// What the server sees as the agent's version, and compares with the one that it wants.
pub(crate) fn version() -> &'static str {
    VERSION.get().copied().unwrap_or(env!("CARGO_PKG_VERSION"))
}
