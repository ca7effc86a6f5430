//! Where things lie on the host: spread out as the Filesystem Hierarchy Standard has it, or all in one directory as Elkeid's
//! own agent has it.
//!
//! | | native | in one directory |
//! |---|---|---|
//! | settings | `/etc/elklet/elklet.toml` | `elklet.toml` |
//! | certificates | `/etc/elklet/certs/` | `certs/` |
//! | state, plugins, spool (the work directory) | `/var/lib/elklet/` | itself |
//! | log and audit | `/var/log/elklet/` | `log/` |
//! | status socket | `/run/elklet/elklet.sock` | `elklet.sock` |
//!
//! Naming a work directory, by flag or by key, chooses the second. Each of the others can be moved by a key of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, Flags, file};
use crate::files::{FileError, make_missing};

/// The one directory of Elkeid's agent.
pub(crate) const ELKEID: &str = "/etc/elkeid";

/// The native layout's settings and certificates.
const CONFIGURATION: &str = "/etc/elklet";

/// The settings' file, in the directory of the configuration.
const FILE: &str = "elklet.toml";

/// Where things lie. All paths but [`Layout::file`] are absolute if the work directory is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The settings' file, or where it would lie.
    pub(crate) file: PathBuf,
    /// The directory of certificates.
    pub(crate) certs: PathBuf,
    /// The directory of everything that the agent keeps.
    pub(crate) workdir: PathBuf,
    /// The directory of the log and the audit.
    pub(crate) log: PathBuf,
    /// The socket that answers `elklet status`.
    pub(crate) socket: PathBuf,
    /// Whether the work directory is nobody's choice, so that the agent makes it.
    is_native: bool,
}

/// The keys of the file that move something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Keys {
    pub(super) workdir: Option<PathBuf>,
    pub(super) certs: Option<PathBuf>,
    pub(super) socket: Option<PathBuf>,
    pub(super) log: LogKeys,
}

/// Those of them in `[log]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct LogKeys {
    pub(super) directory: Option<PathBuf>,
}

impl Layout {
    /// Finds out where things lie, whatever else is wrong with the file. If a flag names the work directory, the file need not be
    /// readable at all.
    ///
    /// # Errors
    /// When the file that could say it cannot be read.
    pub(crate) fn find(flags: &Flags) -> Result<Self, ConfigError> {
        match file::keys(flags) {
            Ok(keys) => Ok(Self::new(flags, &keys)),
            Err(_) if flags.workdir.is_some() => Ok(Self::new(flags, &Keys::default())),
            Err(error) => Err(error),
        }
    }

    /// As [`Layout::find`], with what can be known where the file cannot be read.
    pub(crate) fn find_at_any_rate(flags: &Flags) -> Self {
        Self::find(flags).unwrap_or_else(|_| Self::new(flags, &Keys::default()))
    }

    /// Everything in one directory.
    pub(crate) fn within(directory: &Path) -> Self {
        // A link may lead elsewhere one day, and the agent's own directory may change.
        let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        Self {
            file: directory.join(FILE),
            certs: directory.join("certs"),
            log: directory.join("log"),
            socket: directory.join("elklet.sock"),
            workdir: directory,
            is_native: false,
        }
    }

    fn native() -> Self {
        let configuration = Path::new(CONFIGURATION);
        Self {
            file: configuration.join(FILE),
            certs: configuration.join("certs"),
            workdir: PathBuf::from("/var/lib/elklet"),
            log: PathBuf::from("/var/log/elklet"),
            socket: PathBuf::from("/run/elklet/elklet.sock"),
            is_native: true,
        }
    }

    /// A key's path that is relative starts at the work directory, and that of the certificates where they lie by default.
    pub(super) fn new(flags: &Flags, keys: &Keys) -> Self {
        let mut layout = match flags.workdir.as_ref().or(keys.workdir.as_ref()) {
            Some(directory) => Self::within(directory),
            None => Self::native(),
        };
        layout.file = file::path(flags);
        match (&flags.certs, &keys.certs) {
            (Some(certs), _) => layout.certs.clone_from(certs),
            (None, Some(certs)) => layout.certs = layout.certs.parent().unwrap_or(Path::new("/")).join(certs),
            (None, None) => {}
        }
        for (place, key) in [(&mut layout.socket, &keys.socket), (&mut layout.log, &keys.log.directory)] {
            if let Some(key) = key {
                *place = layout.workdir.join(key);
            }
        }
        layout
    }

    /// The settings' file if neither flag nor key says anything else.
    pub(super) fn default_file(flags: &Flags) -> PathBuf {
        flags.workdir.as_deref().unwrap_or(Path::new(CONFIGURATION)).join(FILE)
    }

    /// Checks that there is a work directory. A native one may be missing: the agent makes it.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match fs::metadata(&self.workdir) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(ConfigError::NoDirectory(self.workdir.clone())),
            Err(error) if self.is_native && error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ConfigError::Workdir(self.workdir.clone(), error)),
        }
    }

    /// True while the work directory is missing and the agent would make it.
    pub(crate) fn is_to_be_made(&self) -> bool {
        self.is_native && !self.workdir.exists()
    }

    /// Makes the directories that are missing. That of the socket is open to all users, as the socket itself is not.
    ///
    /// # Errors
    /// Which one cannot be made. A work directory that somebody has named is never made, since its name may be a mistake.
    pub(crate) fn make(&self) -> Result<(), FileError> {
        let socket = self.socket.parent().unwrap_or(Path::new("/"));
        let workdir = self.is_native.then_some((&*self.workdir, 0o700));
        for (directory, mode) in workdir.into_iter().chain([(&*self.log, 0o700), (socket, 0o755)]) {
            make_missing(directory, mode)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(layout: &Layout) -> [&str; 5] {
        [&layout.file, &layout.certs, &layout.workdir, &layout.log, &layout.socket]
            .map(|path| path.to_str().expect("they are text"))
    }

    fn flags(workdir: Option<&str>) -> Flags {
        Flags { workdir: workdir.map(PathBuf::from), ..Flags::default() }
    }

    #[test]
    fn without_a_work_directory_things_lie_where_a_package_puts_them() {
        let native = Layout::new(&flags(None), &Keys::default());
        let expected = [
            "/etc/elklet/elklet.toml",
            "/etc/elklet/certs",
            "/var/lib/elklet",
            "/var/log/elklet",
            "/run/elklet/elklet.sock",
        ];
        assert_eq!(paths(&native), expected);
    }

    #[test]
    fn a_work_directory_has_everything_in_it() {
        let keys = Keys { workdir: Some("/not/this".into()), ..Keys::default() };
        let one = Layout::new(&flags(Some("/x")), &keys);
        assert_eq!(paths(&one), ["/x/elklet.toml", "/x/certs", "/x", "/x/log", "/x/elklet.sock"]);
        let by_key = Layout::new(&flags(None), &Keys { workdir: Some("/x".into()), ..Keys::default() });
        assert_eq!(paths(&by_key), ["/etc/elklet/elklet.toml", "/x/certs", "/x", "/x/log", "/x/elklet.sock"]);
    }

    #[test]
    fn each_thing_can_be_moved_alone() {
        let keys = Keys {
            workdir: None,
            certs: Some("pki".into()),
            socket: Some("/run/e.sock".into()),
            log: LogKeys { directory: Some("l".into()) },
        };
        let moved = Layout::new(&flags(None), &keys);
        let expected =
            ["/etc/elklet/elklet.toml", "/etc/elklet/pki", "/var/lib/elklet", "/var/lib/elklet/l", "/run/e.sock"];
        assert_eq!(paths(&moved), expected);
        let by_flag = Flags { config: Some("f".into()), certs: Some("c".into()), ..flags(None) };
        assert_eq!(paths(&Layout::new(&by_flag, &keys))[..2], ["f", "c"]);
    }

    #[test]
    fn missing_directories_are_made_but_for_a_work_directory_that_somebody_named() {
        let host = tempfile::tempdir().expect("a directory");
        let at = |name: &str| host.path().join(name);
        let native = Layout { workdir: at("lib"), log: at("a/log"), socket: at("run/s"), ..Layout::native() };
        assert!(native.is_to_be_made() && native.check().is_ok());
        native.make().expect("it can be made");
        assert!(at("lib").is_dir() && at("a/log").is_dir() && at("run").is_dir() && !native.is_to_be_made());
        let named = Layout::within(&at("named"));
        assert!(matches!(named.check(), Err(ConfigError::Workdir(..))));
        fs::write(at("named"), "").expect("writable");
        assert!(matches!(named.check(), Err(ConfigError::NoDirectory(_))));
    }
}
