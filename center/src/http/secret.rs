//! Keys that whoever has them is let in by: of sessions, of links, of newcomers, and of the host's own commands.
//!
//! The center remembers only their hashes. A key has 256 bits of chance, so that a plain hash does, and so does comparing hashes as
//! texts: who can choose neither the key nor its hash learns nothing from how long that takes.

use crate::hex::hex;
use ring::digest::{SHA256, digest};
use ring::rand::{Random, SystemRandom, generate};
use std::io;

/// Returns a new key: 64 hexadecimal digits.
///
/// # Errors
/// The system gives no random numbers.
pub(crate) fn new_key() -> io::Result<String> {
    random::<32>().map(|bytes| hex(&bytes))
}

/// Returns bytes that nobody can guess.
///
/// # Errors
/// The system gives no random numbers.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]>
where
    [u8; N]: ring::rand::RandomlyConstructable,
{
    let random: Random<[u8; N]> =
        generate(&SystemRandom::new()).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(random.expose())
}

/// Returns the hash of a key.
pub(crate) fn hash(key: &str) -> String {
    hex(digest(&SHA256, key.as_bytes()).as_ref())
}

/// Returns the SHA-256 of a certificate.
pub(crate) fn fingerprint(certificate: &[u8]) -> String {
    hex(digest(&SHA256, certificate).as_ref())
}

/// Returns what a page has to send with each change, beside its cookie: a page from elsewhere can have the browser send the cookie, but
/// cannot read this.
pub(super) fn csrf(session_key: &str) -> String {
    hash(&format!("csrf {session_key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_are_the_same_and_a_key_does_not_follow_from_what_is_known_of_it() {
        let (one, other) = (new_key().unwrap(), new_key().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
        assert_eq!(hash(&one), hash(&one));
        assert!(hash(&one) != csrf(&one) && hash(&one) != one && csrf(&one) != csrf(&other));
    }
}
