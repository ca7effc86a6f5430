//! What a plugin's directory may hold on the disk.
//!
//! No kernel keeps such a bound for a directory on every file system, so the agent measures. Whoever calls decides when.

use std::fmt;
use std::path::Path;

use crate::sys::size::{MAX_ENTRIES, MAX_LEVELS, Size, measure};

/// Bytes that a plugin's directory may hold, a whole number of MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota(pub(crate) u64);

/// A directory that holds more than its quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverQuota {
    /// Bytes that it holds; `None` if it has more in it than is measured.
    holds: Option<u64>,
    quota: Quota,
}

impl Quota {
    pub(crate) fn mib(self) -> u64 {
        self.0 >> 20
    }

    /// Measures a directory. Blocks.
    ///
    /// # Errors
    /// When it holds more.
    pub(crate) fn check(self, directory: &Path) -> Result<(), OverQuota> {
        let Size { on_disk, is_whole, .. } = measure(directory, None);
        if is_whole && on_disk <= self.0 {
            return Ok(());
        }
        Err(OverQuota { holds: is_whole.then_some(on_disk), quota: self })
    }
}

impl fmt::Display for OverQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quota = self.quota.mib();
        match self.holds {
            Some(bytes) => {
                let mib = bytes.div_ceil(1 << 20);
                write!(f, "its directory holds {mib} MiB, disk_mib = {quota} is its quota")
            }
            None => write!(
                f,
                "its directory has more than {MAX_ENTRIES} entries or {MAX_LEVELS} levels, or some that cannot be read, \
                 which counts as more than its quota of disk_mib = {quota}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_is_over_when_it_holds_more_and_when_nobody_can_say() {
        let directory = tempfile::tempdir().expect("a directory");
        let quota = Quota(1 << 20);
        fs::write(directory.path().join("half"), vec![b'x'; 1 << 19]).expect("writable");
        assert_eq!(quota.check(directory.path()), Ok(()));
        fs::write(directory.path().join("more"), vec![b'x'; 1 << 20]).expect("writable");
        let over = quota.check(directory.path()).expect_err("it holds more").to_string();
        assert_eq!(over, "its directory holds 2 MiB, disk_mib = 1 is its quota");
        fs::remove_file(directory.path().join("half")).expect("writable");
        fs::remove_file(directory.path().join("more")).expect("writable");
        assert_eq!(quota.check(directory.path()), Ok(()));
        fs::create_dir_all(directory.path().join("d/".repeat(MAX_LEVELS))).expect("writable");
        let over = quota.check(directory.path()).expect_err("nobody looks deeper").to_string();
        assert!(over.contains("16 levels") && over.ends_with("disk_mib = 1"), "{over}");
    }
}
