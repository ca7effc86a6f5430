//! `[log]`: how much is logged, and where besides the log file.

use serde::Deserialize;

/// How much is logged, and where besides the log file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// Log to standard error as well.
    pub(crate) stderr: bool,
    /// Log details that help to find out what is wrong.
    pub(crate) debug: bool,
}
