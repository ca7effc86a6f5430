//! Bounds the downloads and unpacked files on the disk that are not in their place yet.
//!
//! All of them together have a quota, and the file system keeps a floor of free space and of free inodes. If the agent
//! filled a disk, the host's own services would fail.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use elklet_core::limits::{MAX_STAGED_BYTES, free_bytes_floor, free_inodes_floor};
use rustix::fs::{StatVfs, fstatvfs};

use super::atomic::AtomicU64;

/// Bytes that all stages of this process have taken.
static STAGED: AtomicU64 = AtomicU64::new(0);

/// One stage's share of the quota. Dropping this returns it.
#[derive(Debug)]
pub(crate) struct Room {
    directory: OwnedFd,
    staged: &'static AtomicU64,
    taken: u64,
}

impl Room {
    /// Room in the file system of this directory.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub(crate) fn below(directory: &Path) -> io::Result<Self> {
        Self::of_quota(directory, &STAGED)
    }

    fn of_quota(directory: &Path, staged: &'static AtomicU64) -> io::Result<Self> {
        Ok(Self { directory: File::open(directory)?.into(), staged, taken: 0 })
    }

    /// Takes room for one more file or directory of `bytes` bytes, or for `bytes` more of one.
    ///
    /// # Errors
    /// When the quota or the file system has no room. The text says which, with the numbers.
    pub(crate) fn take(&mut self, bytes: u64) -> io::Result<()> {
        let add = |before: u64| before.checked_add(bytes).filter(|after| *after <= MAX_STAGED_BYTES);
        if let Err(before) = self.staged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            return Err(full(format!(
                "{before} bytes are staged already and {bytes} more are wanted, the limit is {MAX_STAGED_BYTES}"
            )));
        }
        self.taken += bytes;
        // If the file system does not tell, let the write find out whether the disk is full.
        fstatvfs(&self.directory).map_or(Ok(()), |found| check(&found, bytes))
    }

    /// Returns all of it, because what was written is gone.
    pub(crate) fn give_back(&mut self) {
        self.staged.fetch_sub(self.taken, Ordering::Relaxed);
        self.taken = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Checks that a file system has room beyond its floor. One without a size of its own (a tmpfs without limit) has.
fn check(found: &StatVfs, bytes: u64) -> io::Result<()> {
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let floor = free_bytes_floor(found.f_blocks.saturating_mul(found.f_frsize));
    if found.f_blocks > 0 && free < floor.saturating_add(bytes) {
        return Err(full(format!(
            "{bytes} bytes are wanted and {free} are free on the disk, of which {floor} are to stay free"
        )));
    }
    let floor = free_inodes_floor(found.f_files);
    if found.f_files > 0 && found.f_favail < floor {
        return Err(full(format!("{} inodes are free on the disk, and {floor} are to stay free", found.f_favail)));
    }
    Ok(())
}

fn full(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_shared_and_given_back() {
        static QUOTA: AtomicU64 = AtomicU64::new(0);
        let directory = tempfile::tempdir().expect("a directory");
        let mut first = Room::of_quota(directory.path(), &QUOTA).expect("it is there");
        let mut second = Room::of_quota(directory.path(), &QUOTA).expect("it is there");
        second.take(1).expect("there is room");
        let error = first.take(MAX_STAGED_BYTES).expect_err("one byte is taken");
        assert!(error.to_string().contains("more are wanted, the limit is"), "{error}");
        first.take(1 << 10).expect("as much as there is room for");
        first.give_back();
        drop(second);
        assert_eq!(QUOTA.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_floor_of_space_and_inodes_stays_free() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut found = fstatvfs(File::open(directory.path()).expect("it is there")).expect("it tells");
        (found.f_frsize, found.f_blocks, found.f_files) = (4096, 25_600, 10_000);
        let floor = free_bytes_floor(100 << 20);
        (found.f_bavail, found.f_favail) = (floor / 4096 + 1, 10_000);
        check(&found, 4096).expect("just enough");
        let error = check(&found, 4097).expect_err("too much");
        assert!(error.to_string().contains(&format!("of which {floor} are to stay free")), "{error}");
        found.f_favail = free_inodes_floor(10_000) - 1;
        assert!(check(&found, 0).expect_err("too many").to_string().contains("inodes"));
        (found.f_blocks, found.f_files, found.f_bavail) = (0, 0, 0);
        check(&found, 1 << 30).expect("it has no size");
    }
}
