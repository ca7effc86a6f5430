//! The spool's files: the outbox's operations on them, and the commands that look at them from outside.
//!
//! A spool is a directory of segments, `spool/<16 hexadecimal digits>.seg`, with a lock that keeps a second agent out.
//! Core's `delivery::spool::format` defines what is in a segment.

mod command;
mod segment;
mod store;

pub(crate) use self::command::{Look, look};
pub use self::store::Store;

use std::io;
use std::path::{Path, PathBuf};

/// The spool's directory in the work directory.
pub(crate) const DIRECTORY: &str = "spool";

const EXTENSION: &str = "seg";

/// The file of a segment.
fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.{EXTENSION}"))
}

/// The numbers of the segments in a directory, oldest first. A missing directory has none.
fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(EXTENSION)?.strip_suffix('.'));
        let number = number.filter(|digits| digits.len() == 16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}
