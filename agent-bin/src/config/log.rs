//! `[log]`: how much is logged, and where besides the log file.

use std::path::PathBuf;

use serde::Deserialize;

/// How much is logged, and where besides the log file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// The directory of the log and the audit; [`Settings::layout`](super::Settings::layout) is what it comes to.
    pub(crate) directory: Option<PathBuf>,
    /// Log to standard error as well.
    pub(crate) stderr: bool,
    /// Log details that help to find out what is wrong.
    pub(crate) debug: bool,
}
