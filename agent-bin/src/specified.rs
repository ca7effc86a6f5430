//! What an operator or the server has specified for this host: id, idc and region, in the file `specified_env` of the
//! work directory.
//!
//! The reference's `elkeidctl set` writes the same file (`agent/deploy/control`): lines `key = value`, which its unit
//! reads as an EnvironmentFile. Other lines stay as they are.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::files::{self, FileError};

const FILE: &str = "specified_env";

/// The longest value, in bytes.
const MAX_VALUE_BYTES: usize = 128;

/// Most bytes of the file that are read. `elkeidctl` writes some hundred.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The file's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Id,
    Idc,
    Region,
    ServiceType,
}

impl Key {
    pub(crate) const ALL: [Self; 4] = [Self::Id, Self::Idc, Self::Region, Self::ServiceType];

    fn name(self) -> &'static str {
        match self {
            Self::Id => "specified_id",
            Self::Idc => "specified_idc",
            Self::Region => "specified_region",
            Self::ServiceType => "service_type",
        }
    }

    /// The word for it on the command line and in messages.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Idc => "idc",
            Self::Region => "region",
            Self::ServiceType => "service_type",
        }
    }
}

/// Why a host cannot be specified, or what was specified cannot be known.
#[derive(Debug)]
pub(crate) enum SpecifyError {
    /// The host refuses something with the file.
    File(FileError),
    /// Whoever names the value is at fault: it has this many bytes.
    Length(Key, usize),
    /// Whoever names the value is at fault: it has this character.
    Character(Key, char),
    /// Whoever names the value is at fault: it is no service manager.
    ServiceType(String),
}

impl fmt::Display for SpecifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(why) => why.fmt(f),
            Self::Length(key, bytes) => {
                write!(f, "{} has {bytes} bytes, expected 1 to {MAX_VALUE_BYTES}", key.word())
            }
            Self::Character(key, c) => {
                write!(f, "{} has {c:?} in it, expected letters, digits and any of -_.:/@+,", key.word())
            }
            Self::ServiceType(value) => {
                write!(f, "{} is {value:?}, expected systemd or sysvinit", Key::ServiceType.word())
            }
        }
    }
}

impl std::error::Error for SpecifyError {}

/// The file's content.
#[derive(Debug, Default)]
pub(crate) struct Specified {
    text: String,
}

impl Specified {
    /// Reads the file of a work directory. A missing file specifies nothing.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read(workdir: &Path) -> Result<Self, SpecifyError> {
        let path = path(workdir);
        let failed = |error| SpecifyError::File(FileError::at(&path)(error));
        match files::read_regular(&path, MAX_FILE_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error)),
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Ok(Self { text }),
                Err(_) => Err(failed(io::Error::other("it is no UTF-8"))),
            },
        }
    }

    /// The value in the last line with this key, if it is not empty.
    pub(crate) fn value(&self, key: Key) -> Option<&str> {
        let mut values = self.text.lines().filter_map(split).filter(|(name, _)| *name == key.name());
        values.next_back().map(|(_, value)| value).filter(|value| !value.is_empty())
    }

    /// Sets or removes a value.
    fn set(&mut self, key: Key, value: Option<&str>) {
        let mut text = String::new();
        let others = self.text.lines().filter(|line| split(line).is_none_or(|(name, _)| name != key.name()));
        others.for_each(|line| text.extend([line, "\n"]));
        if let Some(value) = value {
            text.extend([key.name(), " = ", value, "\n"]);
        }
        self.text = text;
    }
}

/// Sets or removes values in the file of a work directory.
///
/// # Errors
/// When a value is invalid, or the file cannot be read or written. Nothing has changed then.
pub(crate) fn change(workdir: &Path, changes: &[(Key, Option<&str>)]) -> Result<(), SpecifyError> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut specified = Specified::read(workdir)?;
    for (key, value) in changes {
        if let Some(value) = value {
            check(*key, value)?;
        }
        specified.set(*key, *value);
    }
    let path = path(workdir);
    let replaced = files::replace(&path, specified.text.as_bytes(), 0o600);
    replaced.map_err(|error| SpecifyError::File(FileError::at(&path)(error)))
}

/// Checks that both systemd and the reference read a value back as it is.
///
/// # Errors
/// What is wrong with it.
fn check(key: Key, value: &str) -> Result<(), SpecifyError> {
    if value.is_empty() || value.len() > MAX_VALUE_BYTES {
        return Err(SpecifyError::Length(key, value.len()));
    }
    if key == Key::ServiceType && !["systemd", "sysvinit"].contains(&value) {
        return Err(SpecifyError::ServiceType(value.to_owned()));
    }
    match value.chars().find(|c| !c.is_alphanumeric() && !"-_.:/@+,".contains(*c)) {
        Some(c) => Err(SpecifyError::Character(key, c)),
        None => Ok(()),
    }
}

fn path(workdir: &Path) -> PathBuf {
    workdir.join(FILE)
}

/// Splits a line into key and value. systemd allows quotes around the value.
fn split(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with(['#', '!', ';']) {
        return None;
    }
    let (name, value) = line.split_once(['=', ':'])?;
    let value = value.trim();
    let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    Some((name.trim(), unquoted.unwrap_or(value)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn other_lines_stay_and_the_last_value_counts() {
        let workdir = tempfile::tempdir().expect("a directory");
        let path = workdir.path().join(FILE);
        let text =
            "# mine\nservice_type = systemd\nspecified_idc=a\nspecified_idc: \"b\"\nodd line\nspecified_region =";
        fs::write(&path, text).expect("writable");
        let specified = Specified::read(workdir.path()).expect("readable");
        assert_eq!(specified.value(Key::Idc), Some("b"));
        assert_eq!((specified.value(Key::Region), specified.value(Key::Id)), (None, None));
        change(workdir.path(), &[(Key::Idc, Some("c/1")), (Key::Id, Some("h-1"))]).expect("writable");
        let expected =
            "# mine\nservice_type = systemd\nodd line\nspecified_region =\nspecified_idc = c/1\nspecified_id = h-1\n";
        assert_eq!(fs::read_to_string(&path).expect("readable"), expected);
        change(workdir.path(), &[(Key::Idc, None), (Key::Region, None)]).expect("writable");
        let expected = "# mine\nservice_type = systemd\nodd line\nspecified_id = h-1\n";
        assert_eq!(fs::read_to_string(&path).expect("readable"), expected);
    }

    #[test]
    fn values_cannot_break_out_of_their_line() {
        let workdir = tempfile::tempdir().expect("a directory");
        for (value, what) in [
            ("", "idc has 0 bytes, expected 1 to 128"),
            ("a\nLD_PRELOAD=/x", "idc has '\\n' in it"),
            ("a b", "' '"),
            ("a\"", "'\"'"),
            ("a#", "'#'"),
            ("$HOME", "'$'"),
            ("\u{0}", "in it"),
        ] {
            let why = change(workdir.path(), &[(Key::Idc, Some(value))]).expect_err(value).to_string();
            assert!(why.contains(what), "{why}");
        }
        assert!(change(workdir.path(), &[(Key::ServiceType, Some("upstart"))]).is_err());
        assert!(!workdir.path().join(FILE).exists());
        change(workdir.path(), &[(Key::Idc, Some(&"机".repeat(42)))]).expect("letters of any script");
    }
}
