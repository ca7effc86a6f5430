//! Why a file did not reach the server.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::task::JoinError;

use super::file::Refusal;
use crate::net::End;

/// Why a file did not reach the server; the answer to the task.
#[derive(Debug)]
pub(crate) enum UploadError {
    /// The file with this path, as the server has named it, did not.
    File { path: String, why: Failure },
    /// It was not there after this time. Nobody knows whose fault that is.
    Late(Duration),
    /// The upload was given up.
    GivenUp(JoinError),
}

/// What kept a file from the server.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It may not be read, or cannot be.
    Refused(Refusal),
    /// How the call to the server ended.
    Call(End),
    /// The host has no thread to read it.
    NoThread(io::Error),
}

impl fmt::Display for UploadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, why } => write!(f, "upload of {path}: {why}"),
            Self::Late(time) => write!(f, "upload of the file did not end within {} s", time.as_secs()),
            Self::GivenUp(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for UploadError {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => why.fmt(f),
            Self::Call(end) => end.fmt(f),
            Self::NoThread(error) => error.fmt(f),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(why: Refusal) -> Self {
        Self::Refused(why)
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        Self::Call(end)
    }
}
