//! A server's short texts, checked once: a plugin's name, a digest, a signature.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
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
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        match name.len() {
            0 => Err("a plugin without a name".to_owned()),
            1..=MAX_PLUGIN_NAME_BYTES if name.chars().all(allowed) => Ok(Self(name.into())),
            1..=MAX_PLUGIN_NAME_BYTES => Err("a name has only letters, digits, _ and -".to_owned()),
            long => Err(format!("a name of {long} bytes, the limit is {MAX_PLUGIN_NAME_BYTES}")),
        }
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

impl FromStr for Sha256 {
    type Err = String;

    fn from_str(hex: &str) -> Result<Self, String> {
        let not_hex = || format!("{:?} is not 64 hexadecimal digits", shortened(hex));
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

/// An ed25519 signature, written as Base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature(pub Box<[u8; 64]>);

impl FromStr for Signature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| Box::try_from(bytes).ok());
        let why = || format!("signature {:?} is not the Base64 of 64 bytes", shortened(text));
        bytes.map(Self).ok_or_else(why)
    }
}

/// Enough of a peer's text to recognise it in a log.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
