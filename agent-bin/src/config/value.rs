//! Types of values in sections. Each says what it expected if it finds something else.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

/// A whole number of at least `LEAST` and at most `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "i64")]
pub(crate) struct Within<const LEAST: u32, const MOST: u32>(u32);

impl<const LEAST: u32, const MOST: u32> Within<LEAST, MOST> {
    /// A number within the bounds. A constant outside of them does not compile.
    pub(crate) const fn new(value: u32) -> Self {
        assert!(LEAST <= value && value <= MOST);
        Self(value)
    }

    /// The number.
    pub(crate) const fn value(self) -> u32 {
        self.0
    }
}

impl<const LEAST: u32, const MOST: u32> TryFrom<i64> for Within<LEAST, MOST> {
    type Error = BadValue;

    fn try_from(value: i64) -> Result<Self, BadValue> {
        match u32::try_from(value) {
            Ok(value) if (LEAST..=MOST).contains(&value) => Ok(Self(value)),
            _ => Err(BadValue::OutOfBounds { value, or_none: false, least: LEAST, most: MOST }),
        }
    }
}

/// A value that is not what its key or its flag needs. Whoever wrote it is at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadValue {
    /// A number that is not within these bounds. 0 may be allowed besides.
    OutOfBounds { value: i64, or_none: bool, least: u32, most: u32 },
    /// A text that is no name of a server.
    Name(String),
    /// A text that is no hash of a key.
    Pin(String),
    /// A text that is no server's address.
    Address(String),
    /// A path that has no beginning.
    RelativePath(PathBuf),
    /// A text that is no right of a plugin.
    Right(String),
    /// A text that is no plugin's name.
    Plugin(String),
    /// A text that is no hash of an executable.
    Executable(String),
    /// A text that names no tasks.
    Task(String),
    /// A text, here without the login, that is no proxy for this reason.
    Proxy { url: String, why: &'static str },
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBounds { value, or_none, least, most } => {
                let none = if *or_none { "0 or " } else { "" };
                write!(f, "{value} is out of bounds, expected {none}{least} to {most}")
            }
            Self::Name(text) => {
                write!(f, "{text:?} is no name, expected a DNS name or an address, as in a certificate")
            }
            Self::Pin(text) => {
                let expected = "the SHA-256 of a key, 64 hexadecimal digits or 44 of Base64";
                write!(f, "{text:?} is no pin, expected {expected}")
            }
            Self::Address(text) => {
                write!(f, "{text:?} is no address, expected HOST:PORT, as in 10.0.0.1:6751 or [fd00::1]:6751")
            }
            Self::RelativePath(path) => {
                write!(f, "{:?} is no absolute path, expected one as in /var/log", path.display().to_string())
            }
            Self::Plugin(text) => write!(f, "{text:?} is no plugin's name, expected one or \"*\""),
            Self::Executable(text) => {
                write!(f, "{text:?} is no SHA-256 of an executable, expected 64 hexadecimal digits or \"*\"")
            }
            Self::Task(text) => {
                let expected = "a plugin's name or elkeid-agent, perhaps with /DATA_TYPE, or \"*\"";
                write!(f, "{text:?} is no task, expected {expected}")
            }
            Self::Right(text) => {
                write!(
                    f,
                    "{text:?} is no right, expected network, root, a capability as in cap_net_admin, or an absolute path"
                )
            }
            Self::Proxy { url, why } => {
                write!(f, "{url} is no proxy: {why}, expected http:// or socks5://, [USER:PASSWORD@], HOST:PORT")
            }
        }
    }
}

impl std::error::Error for BadValue {}
