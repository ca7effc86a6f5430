//! `[upload]`: which files the server may ask for.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::value::BadValue;

/// Which files the server may ask for (task 1050).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Upload {
    /// Files that may be sent, and directories below which everything may.
    pub(crate) allow: Vec<AbsolutePath>,
}

impl Default for Upload {
    /// Allows any file, as the reference does: whoever can send plugins that run as root can read everything anyway.
    fn default() -> Self {
        Self { allow: vec![AbsolutePath(PathBuf::from("/"))] }
    }
}

#[cfg(test)]
impl Upload {
    pub(crate) fn of(allow: &[&Path]) -> Self {
        Self { allow: allow.iter().map(|path| AbsolutePath(path.to_path_buf())).collect() }
    }
}

/// An absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "PathBuf")]
pub(crate) struct AbsolutePath(PathBuf);

impl AbsolutePath {
    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = BadValue;

    fn try_from(path: PathBuf) -> Result<Self, BadValue> {
        match path.is_absolute() {
            true => Ok(Self(path)),
            false => Err(BadValue::RelativePath(path)),
        }
    }
}
