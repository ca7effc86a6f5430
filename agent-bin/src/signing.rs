//! Checks signatures by the ed25519 key that the configuration names.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use elklet_core::command::{AgentConfig, PluginConfig, Signature};
use ring::signature::{ED25519, UnparsedPublicKey};

/// An ed25519 public key, written as Base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublicKey([u8; 32]);

impl PublicKey {
    /// Checks that the key's owner has signed what `config` says about the plugin; see [`PluginConfig::signed_text`].
    ///
    /// # Errors
    /// When the signature is missing or wrong.
    pub(super) fn verify(&self, config: &PluginConfig) -> Result<(), NotVouched> {
        self.verify_text(&config.signed_text(), config.signature.as_ref())
    }

    /// The same for a version of the agent; see [`AgentConfig::signed_text`].
    ///
    /// # Errors
    /// When there is no signature, or a wrong one.
    pub(crate) fn verify_agent(&self, config: &AgentConfig) -> Result<(), NotVouched> {
        self.verify_text(&config.signed_text(), config.signature.as_ref())
    }

    fn verify_text(&self, text: &str, signature: Option<&Signature>) -> Result<(), NotVouched> {
        let signature = signature.ok_or(NotVouched::Unsigned)?;
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(text.as_bytes(), &*signature.0).map_err(|_| NotVouched::Forged)
    }
}

/// The key's owner does not vouch for a version that the server names; the server is at fault, or whoever speaks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotVouched {
    /// Nobody has signed it.
    Unsigned,
    /// Somebody else has signed it, or something else was signed.
    Forged,
}

impl fmt::Display for NotVouched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "it is not signed, and plugins.public_key demands it",
            Self::Forged => "its signature is not one of plugins.public_key over its name, version and hashes",
        })
    }
}

impl std::error::Error for NotVouched {}

impl FromStr for PublicKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| BadKey(text.to_owned()))
    }
}

/// A text that is no key; whoever wrote the settings is at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadKey(String);

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.80?} is not the Base64 of an ed25519 key's 32 bytes", self.0)
    }
}

impl std::error::Error for BadKey {}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}
