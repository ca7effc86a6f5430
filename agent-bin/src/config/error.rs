//! What is wrong with the settings, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::value::BadValue;
use crate::files::FileError;
use crate::specified::SpecifyError;

/// Why there are no settings. Whoever wrote them is at fault, and each error says where and what was expected.
#[derive(Debug)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    File(FileError),
    /// A line of the file is wrong: the text names the key, what stands there and what was expected.
    Line { path: PathBuf, line: usize, what: String },
    /// A key of the file has a wrong value.
    Value { path: PathBuf, key: &'static str, bad: BadValue },
    /// The work directory cannot be found.
    Workdir(PathBuf, io::Error),
    /// The work directory is no directory.
    NoDirectory(PathBuf),
    /// What was specified of this host cannot be read.
    Specified(SpecifyError),
    /// A flag has a wrong value.
    Flag(&'static str, BadValue),
    /// Neither the file nor a flag names a server.
    NoServer,
    /// There are servers, and none of them for this region.
    NoServerInRegion(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(why) => why.fmt(f),
            Self::Line { path, line, what } => write!(f, "{}:{line}: {what}", path.display()),
            Self::Value { path, key, bad } => write!(f, "{}: {key}: {bad}", path.display()),
            Self::Workdir(path, error) => {
                write!(f, "work directory {}: {error} (--workdir names another)", path.display())
            }
            Self::NoDirectory(path) => write!(f, "work directory {}: is no directory", path.display()),
            Self::Specified(why) => why.fmt(f),
            Self::Flag(flag, bad) => write!(f, "{flag}: {bad}"),
            Self::NoServer => f.write_str(
                "no server: name one with --server HOST:PORT or --discovery HOST:PORT, or in the [server] section of the file",
            ),
            Self::NoServerInRegion(region) => {
                write!(f, "no server for region {region:?}: neither [regions.{region}] nor [server] names one")
            }
        }
    }
}

impl std::error::Error for ConfigError {}
