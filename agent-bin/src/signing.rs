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
    pub(super) fn verify(&self, config: &PluginConfig) -> Result<(), String> {
        self.verify_text(&config.signed_text(), config.signature.as_ref())
    }

    /// The same for a version of the agent; see [`AgentConfig::signed_text`].
    ///
    /// # Errors
    /// When there is no signature, or a wrong one.
    pub(crate) fn verify_agent(&self, config: &AgentConfig) -> Result<(), String> {
        self.verify_text(&config.signed_text(), config.signature.as_ref())
    }

    fn verify_text(&self, text: &str, signature: Option<&Signature>) -> Result<(), String> {
        let Some(signature) = signature else {
            return Err("it is not signed, and plugins.public_key demands it".to_owned());
        };
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(text.as_bytes(), &*signature.0)
            .map_err(|_| "its signature is not one of plugins.public_key over its name, version and hashes".to_owned())
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| format!("{text:.80?} is not the Base64 of an ed25519 key's 32 bytes"))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}
