//! A server's short texts, checked once: a plugin's name, a digest, a signature.
//!
//! A text that does not pass is the server's fault. Each kind of text has an error of its own, because the text may stand in
//! more than one field, and only the caller knows in which.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::limits::MAX_PLUGIN_NAME_BYTES;

/// A plugin's name: 1 to 64 ASCII letters, digits, `_` and `-`. It is therefore safe as a path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName(Box<str>);

impl PluginName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PluginName {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        match name.len() {
            0 => Err(BadName::Missing),
            1..=MAX_PLUGIN_NAME_BYTES if name.chars().all(allowed) => Ok(Self(name.into())),
            1..=MAX_PLUGIN_NAME_BYTES => Err(BadName::Characters),
            long => Err(BadName::TooLong(long)),
        }
    }
}

/// Why a text is not the name of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadName {
    /// It is empty.
    Missing,
    /// It has a character that a name cannot have.
    Characters,
    /// It has this many bytes, more than [`MAX_PLUGIN_NAME_BYTES`].
    TooLong(usize),
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("a plugin without a name"),
            Self::Characters => f.write_str("a name has only letters, digits, _ and -"),
            Self::TooLong(bytes) => write!(f, "a name of {bytes} bytes, the limit is {MAX_PLUGIN_NAME_BYTES}"),
        }
    }
}

impl core::error::Error for BadName {}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

impl FromStr for Sha256 {
    type Err = BadDigest;

    fn from_str(hex: &str) -> Result<Self, BadDigest> {
        let not_hex = || BadDigest(shortened(hex));
        let digits = <&[u8; 64]>::try_from(hex.as_bytes()).map_err(|_| not_hex())?;
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
            *byte = digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(not_hex)?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The beginning of a text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadDigest(String);

impl fmt::Display for BadDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not 64 hexadecimal digits", self.0)
    }
}

impl core::error::Error for BadDigest {}

/// An ed25519 signature with what its maker says about it, written as `BASE64:SECONDS` or `BASE64:SECONDS:open`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The signature itself.
    pub bytes: Box<[u8; 64]>,
    /// When it was made, in seconds since 1970.
    pub signed_s: u64,
    /// True if its maker leaves the plugin's detail to the server.
    pub has_open_detail: bool,
}

impl FromStr for Signature {
    type Err = BadSignature;

    fn from_str(text: &str) -> Result<Self, BadSignature> {
        // A text that is longer than all of this has a part that is too long.
        const BASE64_BYTES: usize = 88;
        const SECONDS_BYTES: usize = 12;
        let parse = || {
            let (base64, rest) = text.split_once(':')?;
            let (seconds, has_open_detail) = match rest.strip_suffix(":open") {
                Some(seconds) => (seconds, true),
                None => (rest, false),
            };
            // A plus sign would parse as well.
            let is_number = seconds.len() <= SECONDS_BYTES && seconds.bytes().all(|digit| digit.is_ascii_digit());
            let signed_s = is_number.then(|| seconds.parse().ok())??;
            let bytes = (base64.len() == BASE64_BYTES).then(|| BASE64.decode(base64).ok())??;
            Some(Self { bytes: Box::try_from(bytes).ok()?, signed_s, has_open_detail })
        };
        parse().ok_or_else(|| BadSignature(shortened(text)))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = if self.has_open_detail { ":open" } else { "" };
        write!(f, "{}:{}{open}", BASE64.encode(*self.bytes), self.signed_s)
    }
}

/// The beginning of a text that is no signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSignature(String);

impl fmt::Display for BadSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "signature {:?} is not the Base64 of 64 bytes, a colon and seconds since 1970", self.0)
    }
}

impl core::error::Error for BadSignature {}

/// Enough of a peer's text to recognise it in a log.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
