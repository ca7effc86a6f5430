//! Passwords: which are good enough, and how they are checked.

use super::secret;
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use std::io;
use std::num::NonZero;
use tokio::sync::Semaphore;

/// The shortest and the longest password. Only its length makes a password hard to guess.
const MIN_CHARS: usize = 10;
const MAX_LEN: usize = 1024;

/// What OWASP names as the least for Argon2id: 19 MiB of memory, two passes, one lane.
const MEMORY_KIB: u32 = 19 << 10;
const PASSES: u32 = 2;
const LANES: u32 = 1;

const SALT_LEN: usize = 16;
const HASH_LEN: usize = 32;

/// The most memory and passes that a stored hash may ask for.
const MAX_MEMORY_KIB: u32 = 1 << 20;
const MAX_PASSES: u32 = 100;

/// What a wrong name is checked against, so that the answer takes as long as for a right one.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes passwords: one at a time on each core, since each takes 19 MiB.
#[derive(Debug)]
pub(super) struct Hasher(Semaphore);

impl Hasher {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(std::thread::available_parallelism().map_or(1, NonZero::get)))
    }

    /// Returns the text that is stored for a password.
    ///
    /// # Errors
    /// There are no random numbers, or there is no memory.
    pub(super) async fn hash(&self, password: String) -> io::Result<String> {
        self.run(move || hash(&password)).await?
    }

    /// Returns true if the password is the one that was stored. Where nothing was stored, it takes as long to say no.
    ///
    /// # Errors
    /// What is stored is no hash of a password, or there is no memory.
    pub(super) async fn verify(&self, password: String, stored: Option<String>) -> io::Result<bool> {
        self.run(move || {
            let right = verify(&password, stored.as_deref().unwrap_or(NOBODY))?;
            Ok(right && stored.is_some())
        })
        .await?
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let _turn = self.0.acquire().await.expect("nobody closes it");
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
    }
}

/// Checks that a new password is good enough.
///
/// # Errors
/// A text that says what is wrong with it.
pub(super) fn check(password: &str) -> Result<(), String> {
    let chars = password.chars().count();
    if chars < MIN_CHARS {
        return Err(format!("a password of {chars} characters, expected {MIN_CHARS} or more"));
    }
    if password.len() > MAX_LEN {
        return Err(format!("a password of {} bytes, expected {MAX_LEN} at most", password.len()));
    }
    Ok(())
}

fn hash(password: &str) -> io::Result<String> {
    let salt = secret::random::<SALT_LEN>()?;
    let hash = derive(password, &salt, MEMORY_KIB, PASSES, LANES)?;
    let (salt, hash) = (BASE64.encode(salt), BASE64.encode(hash));
    Ok(format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${salt}${hash}"))
}

fn verify(password: &str, stored: &str) -> io::Result<bool> {
    let wrong = || io::Error::other("what is stored for the password is no hash of Argon2id");
    let mut parts = stored.strip_prefix("$argon2id$v=19$m=").ok_or_else(wrong)?.split('$');
    let (Some(costs), Some(salt), Some(hash), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    let (memory, rest) = costs.split_once(",t=").ok_or_else(wrong)?;
    let (passes, lanes) = rest.split_once(",p=").ok_or_else(wrong)?;
    let number = |text: &str, max: u32| text.parse().ok().filter(|number| *number <= max).ok_or_else(wrong);
    let (memory, passes, lanes) = (number(memory, MAX_MEMORY_KIB)?, number(passes, MAX_PASSES)?, number(lanes, 64)?);
    let salt = BASE64.decode(salt).map_err(|_| wrong())?;
    let expected = BASE64.decode(hash).map_err(|_| wrong())?;
    let derived = derive(password, &salt, memory, passes, lanes)?;
    // No timing tells how much of it was right: this looks at all of both.
    let differs = derived.iter().zip(&expected).fold(0, |differs, (a, b)| differs | (a ^ b));
    Ok(differs == 0 && expected.len() == HASH_LEN)
}

fn derive(password: &str, salt: &[u8], memory: u32, passes: u32, lanes: u32) -> io::Result<[u8; HASH_LEN]> {
    let failed = |error: argon2::Error| io::Error::other(format!("the password cannot be hashed: {error}"));
    let params = Params::new(memory, passes, lanes, Some(HASH_LEN)).map_err(failed)?;
    let mut hash = [0; HASH_LEN];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(password.as_bytes(), salt, &mut hash)
        .map_err(failed)?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_password_is_right() {
        let stored = hash("correct horse").unwrap();
        assert!(verify("correct horse", &stored).unwrap());
        assert!(!verify("correct horsE", &stored).unwrap());
        assert_ne!(stored, hash("correct horse").unwrap(), "it is salted");
        assert!(!verify("", NOBODY).unwrap());
    }

    #[test]
    fn hashes_are_those_of_the_reference_implementation() {
        // What its command says: `printf password | argon2 somesalt -id -t 2 -k 256 -p 1`.
        let stored = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        assert!(verify("password", stored).unwrap());
        assert!(!verify("differentpassword", stored).unwrap());
    }

    #[test]
    fn what_is_no_hash_is_an_error_and_takes_no_memory() {
        for stored in [
            "",
            "password",
            "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=4294967295,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAA",
            "$argon2id$v=19$m=19456,t=4000000000,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAA",
            "$argon2id$v=19$m=19456,t=2,p=1$?$AAAA",
            "$argon2id$v=19$m=19456,t=2,p=1$AA$AAAA",
        ] {
            assert!(verify("x", stored).is_err(), "{stored}");
        }
    }

    #[test]
    fn a_short_password_is_refused_by_its_characters() {
        assert_eq!(check("123456789").unwrap_err(), "a password of 9 characters, expected 10 or more");
        assert!(check("ééééééééé").is_err());
        assert_eq!(check("éééééééééé"), Ok(()));
        assert!(check(&"x".repeat(MAX_LEN + 1)).is_err());
    }
}
