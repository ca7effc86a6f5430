//! Why another version of the agent is not in place.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use elklet_core::update::NotTried;
use tokio::task::JoinError;

use crate::fetch::FetchError;
use crate::files::FileError;
use crate::signing::NotVouched;

/// The server names a version that this agent does not even fetch.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It should not be tried; if it was tried before, with why it failed then.
    NotTried(NotTried, Option<String>),
    /// Nobody whom this host trusts vouches for this version.
    NotVouched(String, NotVouched),
    /// The host leaves its version to its package manager. That is no fault: servers name one version to a whole fleet.
    SwitchedOff(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTried(why, Some(before)) => write!(f, "{why} ({before})"),
            Self::NotTried(why, None) => why.fmt(f),
            Self::NotVouched(version, why) => write!(f, "version {version:.80}: {why}"),
            Self::SwitchedOff(version) => write!(f, "the server names version {version:.80}: update.enabled is off"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Why a version was not put in place, or was taken back at once.
#[derive(Debug)]
pub(crate) enum UpdateError {
    /// The server has taken it back.
    Cancelled,
    /// The work was given up.
    GivenUp(JoinError),
    /// The fault of whoever offers the download, unless the error says that it is the host's.
    NotFetched(FetchError),
    /// The fault of whoever made the download: its beginning cannot be read.
    Unreadable(io::Error),
    /// The fault of whoever made the download: it is of no kind that can be put in place.
    UnknownKind,
    /// The fault of whoever made the download, for good.
    Unsuitable(Unsuitable),
    /// The host's fault: it has no process to spare for the new version.
    NotExecuted(String),
    /// The host's fault: this package manager has not done its work.
    Manager(&'static str, ManagerError),
    /// The host's fault: nobody knows where this program is.
    NoProgram,
    /// The host's fault: the version that runs cannot be kept.
    NotKept(io::Error),
    /// The host's fault: it refuses something with a file.
    File(FileError),
    /// The host's fault: it has no thread for the work.
    NoThread(io::Error),
    /// What went wrong, and why the host could not put the previous program back after it.
    NotPutBack(Box<Self>, io::Error),
}

/// What is wrong with a download. Another attempt with it would come to the same.
#[derive(Debug)]
pub(crate) enum Unsuitable {
    /// The package does not bring the program that runs.
    OtherPackage(PathBuf),
    /// It cannot be executed.
    NotExecutable(String),
    /// It does not say its version within this time.
    Silent(Duration),
    /// It says something else than that it is the version that is wanted.
    OtherVersion { said: String, wanted: String },
}

/// Why a package manager has not done its work.
#[derive(Debug)]
pub(crate) enum ManagerError {
    /// The host does not have it.
    Missing,
    /// It cannot be run.
    Io(io::Error),
    /// It could not install the package.
    NotInstalled(ExitStatus),
    /// It cannot read the package.
    NotRead(ExitStatus),
    /// It did not end within this time.
    Late(Duration),
}

impl From<FetchError> for UpdateError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Cancelled => Self::Cancelled,
            error => Self::NotFetched(error),
        }
    }
}

impl From<FileError> for UpdateError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<Unsuitable> for UpdateError {
    fn from(why: Unsuitable) -> Self {
        Self::Unsuitable(why)
    }
}

impl fmt::Display for UpdateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("nobody wants it any more"),
            Self::GivenUp(error) => error.fmt(f),
            Self::NotFetched(why) => why.fmt(f),
            Self::Unreadable(error) => write!(f, "the download cannot be read: {error}"),
            Self::UnknownKind => f.write_str("the download is neither a program nor a deb or rpm package"),
            Self::Unsuitable(Unsuitable::OtherPackage(program)) => {
                write!(f, "the package does not bring {}, which is this program", program.display())
            }
            Self::Unsuitable(Unsuitable::NotExecutable(why)) | Self::NotExecuted(why) => {
                write!(f, "it cannot be executed: {why}")
            }
            Self::Unsuitable(Unsuitable::Silent(time)) => {
                write!(f, "it did not say its version within {} s", time.as_secs())
            }
            Self::Unsuitable(Unsuitable::OtherVersion { said, wanted }) => {
                write!(f, "it says that it is {said:.80?}, expected \"elklet {wanted}\"")
            }
            Self::Manager(name, ManagerError::Missing) => {
                write!(f, "this host has no {name} for the package that was downloaded")
            }
            Self::Manager(name, ManagerError::Io(error)) => write!(f, "{name}: {error}"),
            Self::Manager(name, ManagerError::NotInstalled(status)) => write!(f, "{name} failed: {status}"),
            Self::Manager(name, ManagerError::NotRead(status)) => {
                write!(f, "{name} cannot read the package: {status}")
            }
            Self::Manager(name, ManagerError::Late(time)) => {
                write!(f, "{name} did not end within {} s", time.as_secs())
            }
            Self::NoProgram => f.write_str("it is not known where this program is"),
            Self::NotKept(error) => write!(f, "this version cannot be kept: {error}"),
            Self::File(why) => why.fmt(f),
            Self::NoThread(error) => error.fmt(f),
            Self::NotPutBack(why, error) => {
                write!(f, "{why}; nor could the previous program be put back, which is tried again: {error}")
            }
        }
    }
}

impl std::error::Error for UpdateError {}
