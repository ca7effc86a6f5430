//! What can go wrong in the store, by what a caller does about it.

use std::{fmt, io, path::PathBuf};

/// Why writing fails. Agents keep their records until it works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The disk, or what the store may use of it, is full.
    Full,
    /// The file system or the files may not be written.
    ReadOnly,
    /// A file is not what the store wrote.
    Corrupt,
    /// The disk fails, or refuses for another reason.
    Io,
}

impl FailureKind {
    /// Tells what an error of SQLite means for writing.
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt,
            // There is no room for the log's index, which SQLite tells apart from other lack of room.
            _ if error
                .sqlite_error()
                .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE) =>
            {
                Self::Full
            }
            _ => Self::Io,
        }
    }

    /// Tells what an error of the system means for writing.
    pub(super) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the disk is full",
            Self::ReadOnly => "the disk is read-only",
            Self::Corrupt => "a file is corrupt",
            Self::Io => "the disk fails",
        })
    }
}

/// Why the store cannot be opened.
#[derive(Debug)]
pub enum StoreError {
    /// Another process has the directory open.
    InUse(PathBuf),
    /// The directory or a file in it cannot be used.
    Io(PathBuf, io::Error),
    /// SQLite refuses a file.
    Sqlite(PathBuf, rusqlite::Error),
    /// A newer version of the program wrote the file; the numbers are the file's version and the one that this program writes.
    Newer(PathBuf, i64, i64),
    /// A setting makes no sense.
    Settings(&'static str),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(path) => write!(f, "another process has the store {} open", path.display()),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Sqlite(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Newer(path, found, own) => {
                write!(f, "{} has version {found}, and this program knows versions up to {own}", path.display())
            }
            Self::Settings(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for StoreError {}

/// Why a batch is not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Writing failed, or has failed and is not tried again yet. The same batch may be appended again later.
    Failing(FailureKind, String),
    /// The batch can never be stored; the text says why.
    Refused(&'static str),
    /// The store has been closed.
    Closed,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing(kind, error) => write!(f, "records cannot be stored, {kind}: {error}"),
            Self::Refused(why) => write!(f, "the batch is refused: {why}"),
            Self::Closed => f.write_str("the store is closed"),
        }
    }
}

impl std::error::Error for AppendError {}

/// Why a search has no answer.
#[derive(Debug)]
pub enum SearchError {
    /// The query makes no sense.
    Query(&'static str),
    /// A file cannot be read.
    Sqlite(PathBuf, rusqlite::Error),
    /// The position lies behind everything that was ever stored: it belongs to another store. The numbers are the position and
    /// the next one that the store will give.
    Ahead(u64, u64),
}

impl fmt::Display for SearchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(what) => f.write_str(what),
            Self::Sqlite(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Ahead(position, next) => write!(f, "position {position} is ahead of this store, which is at {next}"),
        }
    }
}

impl std::error::Error for SearchError {}
