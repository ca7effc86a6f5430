//! The executable's fingerprint, field `exe_hash`.
//!
//! It is the reference's, so that its rules match: XXH64 with seed 0 over the file's length as eight bytes, least
//! significant first, followed by at most the first 32 KiB of the file. It prints as sixteen hexadecimal digits, most
//! significant first. (The reference uses the host's order for the length; every host that it runs on is little-endian.)

use crate::bounded::Bounded;
use crate::procfs::{FileKey, ProcDir, read_some};
use rustix::io::Errno;
use std::fmt;
use xxhash_rust::xxh64::Xxh64;

/// A file's fingerprint. It prints as sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExeHash(u64);

impl fmt::Display for ExeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Fingerprints by file. A changed file counts as another.
pub(crate) struct Hashes {
    known: Bounded<FileKey, ExeHash>,
    head: Box<[u8]>,
}

/// A host runs a few hundred programs. Each entry takes some 64 bytes.
const CAPACITY: usize = 1024;

const HEAD_BYTES: usize = 32 * 1024;

impl Hashes {
    pub(crate) fn new() -> Self {
        Self { known: Bounded::new(CAPACITY), head: vec![0; HEAD_BYTES].into() }
    }

    /// The fingerprint of the process's executable.
    pub(crate) fn of(&mut self, dir: &ProcDir) -> Result<ExeHash, Errno> {
        let key = dir.exe_key()?;
        if let Some(hash) = self.known.get(key) {
            return Ok(*hash);
        }
        let file = dir.open_exe()?;
        let mut have = 0;
        while let Some(space) = self.head.get_mut(have..).filter(|space| !space.is_empty()) {
            match read_some(&file, space)? {
                0 => break,
                count => have += count,
            }
        }
        let hash = hash(key.len, self.head.get(..have).unwrap_or_default());
        self.known.insert(key, hash);
        Ok(hash)
    }
}

fn hash(len: u64, head: &[u8]) -> ExeHash {
    let mut hasher = Xxh64::new(0);
    hasher.update(&len.to_le_bytes());
    hasher.update(head);
    ExeHash(hasher.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, process};
    use xxhash_rust::xxh64::xxh64;

    #[test]
    fn the_length_comes_first_and_low_byte_first() {
        assert_eq!(hash(3, b"abc"), ExeHash(xxh64(b"\x03\0\0\0\0\0\0\0abc", 0)));
        // The algorithm's own test value, for the empty input and seed 0.
        assert_eq!(xxh64(b"", 0), 0xef46_db37_51d8_e999);
        assert_eq!(ExeHash(0xabc).to_string(), "0000000000000abc");
    }

    #[test]
    fn this_program_is_fingerprinted_once() {
        let contents = fs::read("/proc/self/exe").unwrap();
        let expected = hash(contents.len() as u64, &contents[..contents.len().min(HEAD_BYTES)]);
        let dir = ProcDir::open(process::id()).unwrap();
        let mut hashes = Hashes::new();
        assert_eq!(hashes.of(&dir), Ok(expected));
        hashes.head.fill(0);
        assert_eq!(hashes.of(&dir), Ok(expected));
        assert!(hashes.head.iter().all(|byte| *byte == 0), "the second answer comes from the cache");
    }
}
