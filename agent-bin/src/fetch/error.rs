//! Why a file was not downloaded.

use std::fmt;
use std::io;

use elklet_core::command::Sha256;

use super::QUOTED_CHARS;
use crate::files::FileError;

/// Why a file was not downloaded.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// Nobody wants it any more.
    Cancelled,
    /// The server named no address.
    NoAddress,
    /// No address had it. Each says why.
    EveryAddress(Vec<Attempt>),
    /// The host has no place for it.
    File(FileError),
}

/// An address that did not have the file.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Enough of the address to recognise it.
    pub(super) url: String,
    pub(super) why: Miss,
}

/// Why the file did not come from an address.
#[derive(Debug)]
pub(super) enum Miss {
    Cancelled,
    /// The address is of another kind.
    NotHttp,
    /// The answer's status.
    Status(u16),
    /// The most bytes that it may have.
    TooLong(u64),
    /// Another file came.
    Digest {
        bytes: u64,
        sha256: Sha256,
        expected: Sha256,
    },
    /// What the HTTP client says.
    Client(String),
    /// The host has no room for it, or cannot write it.
    NotWritten(io::Error),
    /// The host cannot delete what was written.
    NotEmptied(io::Error),
}

impl Miss {
    /// Takes the beginning of a client's error, because the error may quote the server.
    pub(super) fn client(error: &dyn fmt::Display) -> Self {
        Self::Client(error.to_string().chars().take(QUOTED_CHARS).collect())
    }
}

impl From<FileError> for FetchError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => Miss::Cancelled.fmt(f),
            Self::NoAddress => f.write_str("no address to download it from was given"),
            Self::EveryAddress(attempts) => {
                attempts.iter().enumerate().try_for_each(|(number, Attempt { url, why })| {
                    let separator = if number == 0 { "" } else { "; " };
                    write!(f, "{separator}{url}: {why}")
                })
            }
            Self::File(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for FetchError {}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("the download was cancelled"),
            Self::NotHttp => f.write_str("is no http or https address"),
            Self::Status(status) => write!(f, "the server answers with status {status}"),
            Self::TooLong(limit) => write!(f, "it is longer than {limit} bytes"),
            Self::Digest { bytes, sha256, expected } => {
                write!(f, "its {bytes} bytes have the SHA-256 {sha256}, expected {expected}")
            }
            Self::Client(why) => f.write_str(why),
            Self::NotWritten(error) => write!(f, "what has come cannot be written: {error}"),
            Self::NotEmptied(error) => error.fmt(f),
        }
    }
}
