//! Checks signatures of plugins and of the agent's own versions by the ed25519 keys that the configuration names.

pub(crate) mod owner;

use std::fmt;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use elklet_core::command::{Sha256, Signature, Statement};
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::Deserialize;

use crate::clock;

/// Whose signatures count, and from when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signers {
    /// The key.
    pub(crate) first: PublicKey,
    /// Another one that is as good, while keys change.
    pub(crate) second: Option<PublicKey>,
    /// Earlier signatures do not count.
    pub(crate) signed_after: SignedAfter,
}

/// An ed25519 public key, written as Base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublicKey([u8; 32]);

/// The earliest time of signing that counts, in seconds since 1970. The time is compared with what a signature says and never with
/// the clock, so that a clock that jumps changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[cfg_attr(test, serde(into = "String"))]
#[serde(try_from = "String")]
pub(crate) struct SignedAfter(pub(crate) u64);

impl Signers {
    /// Checks that the owner of one of the keys has signed what an entry says; see [`Statement::signed_text`].
    ///
    /// # Errors
    /// When the signature is missing, wrong, or too old.
    pub(crate) fn verify(&self, statement: &Statement<'_>, signature: Option<&Signature>) -> Result<(), NotVouched> {
        let signature = signature.ok_or(NotVouched::Unsigned)?;
        let text = statement.signed_text(signature, &detail_hash(statement)).ok_or(NotVouched::Lines)?;
        let is_by = |PublicKey(key): &PublicKey| {
            UnparsedPublicKey::new(&ED25519, key).verify(text.as_bytes(), &*signature.bytes).is_ok()
        };
        if ![Some(self.first), self.second].iter().flatten().any(is_by) {
            return Err(NotVouched::Forged);
        }
        if signature.signed_s < self.signed_after.0 {
            return Err(NotVouched::Old { signed_s: signature.signed_s, after_s: self.signed_after.0 });
        }
        Ok(())
    }
}

fn detail_hash(statement: &Statement<'_>) -> Sha256 {
    let mut hash = Sha256([0; 32]);
    hash.0.copy_from_slice(digest(&SHA256, statement.detail.as_bytes()).as_ref());
    hash
}

/// Nobody who may vouches for a version that the server names; the server is at fault, or whoever speaks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotVouched {
    /// Nobody has signed it.
    Unsigned,
    /// Its version has control characters, so that no text can be signed.
    Lines,
    /// Somebody else has signed it, or something else was signed.
    Forged,
    /// It was signed before the time from which on signatures count.
    Old { signed_s: u64, after_s: u64 },
}

impl fmt::Display for NotVouched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "it is not signed, and plugins.public_key demands it",
            Self::Lines => "its version has control characters, and plugins.public_key demands a version of one line",
            Self::Forged => {
                "its signature is not one of plugins.public_key over its name, version, hashes, detail and time of signing"
            }
            Self::Old { signed_s, after_s } => {
                let [signed, after] = [signed_s, after_s].map(|seconds| clock::date(seconds.cast_signed()));
                return write!(f, "it was signed at {signed}, and plugins.signed_after is {after}");
            }
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

impl FromStr for SignedAfter {
    type Err = BadTime;

    fn from_str(text: &str) -> Result<Self, BadTime> {
        const DATE_BYTES: usize = "2026-01-31".len();
        let moment = match text.len() {
            0 => return Ok(Self(0)),
            DATE_BYTES => humantime::parse_rfc3339(&format!("{text}T00:00:00Z")),
            _ => humantime::parse_rfc3339(text),
        };
        let since_1970 = moment.ok().and_then(|moment| moment.duration_since(UNIX_EPOCH).ok());
        since_1970.map(|duration| Self(duration.as_secs())).ok_or_else(|| BadTime(text.to_owned()))
    }
}

impl TryFrom<String> for SignedAfter {
    type Error = BadTime;

    fn try_from(text: String) -> Result<Self, BadTime> {
        text.parse()
    }
}

#[cfg(test)]
impl From<SignedAfter> for String {
    fn from(SignedAfter(seconds): SignedAfter) -> Self {
        if seconds == 0 { Self::new() } else { clock::date(seconds.cast_signed()) }
    }
}

/// A text that is no time; whoever wrote the settings is at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadTime(String);

impl fmt::Display for BadTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = "a date as in 2026-01-31, or with a time in UTC as in 2026-01-31T12:00:00Z";
        write!(f, "{:.80?} is no time, expected {expected}", self.0)
    }
}

impl std::error::Error for BadTime {}

#[cfg(test)]
mod tests {
    use super::*;
    use elklet_proto::grpc;

    /// A case of `tests/vectors/signatures.json`, which docs/plugins.md explains.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Vector {
        case: String,
        #[serde(rename = "why")]
        _why: String,
        public_key: Vec<String>,
        signed_after: SignedAfter,
        entry: Entry,
        signed_text: Option<String>,
        refused: Option<String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        name: String,
        version: String,
        sha256: String,
        signature: String,
        detail: String,
    }

    impl Vector {
        /// Returns the text that was signed, or in one word why the entry is refused, on the way that an entry of a server takes.
        fn verify(self) -> Result<String, &'static str> {
            let Entry { name, version, sha256, signature, detail } = self.entry;
            let entry = grpc::Config { name, version, sha256, signature, detail, ..grpc::Config::default() };
            let keys: Vec<PublicKey> = self.public_key.iter().map(|key| key.parse().expect("a key")).collect();
            let signers = Signers { first: keys[0], second: keys.get(1).copied(), signed_after: self.signed_after };
            let judged = owner::judged(&entry, |statement, signature| {
                signers.verify(statement, signature).map(|()| {
                    let signature = signature.expect("it counts");
                    statement.signed_text(signature, &detail_hash(statement)).expect("it counts")
                })
            });
            // The hashes of all cases are right, so that only the signature can be malformed.
            match judged.map_err(|_| "malformed")? {
                Ok(text) => Ok(text),
                Err(NotVouched::Unsigned) => Err("unsigned"),
                Err(NotVouched::Lines) => Err("lines"),
                Err(NotVouched::Forged) => Err("forged"),
                Err(NotVouched::Old { .. }) => Err("old"),
            }
        }
    }

    #[test]
    fn the_published_vectors_are_accepted_and_refused_as_they_say() {
        #[derive(Deserialize)]
        struct File {
            vectors: Vec<Vector>,
        }
        let file = include_str!("../../../tests/vectors/signatures.json");
        let File { vectors } = serde_json::from_str(file).expect("the vectors");
        let mut reasons = std::collections::BTreeSet::new();
        for vector in vectors {
            let case = vector.case.clone();
            let expected = match (&vector.signed_text, &vector.refused) {
                (Some(text), None) => Ok(text.clone()),
                (None, Some(reason)) => Err(reason.clone()),
                _ => panic!("{case}: expected either a text or a reason"),
            };
            reasons.insert(expected.clone().err());
            assert_eq!(vector.verify().map_err(str::to_owned), expected, "{case}");
        }
        let all = ["forged", "lines", "malformed", "old", "unsigned"].map(|reason| Some(reason.to_owned()));
        assert!(reasons.into_iter().eq([None].into_iter().chain(all)), "each outcome has a case");
    }
}
