//! A file that takes up room for hard times: when the disk is full it is removed, so that dropping files and the small database of
//! tasks and configuration still work.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The reserve of a directory.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    pub(super) fn new(dir: &Path, bytes: u64) -> Self {
        Self { path: dir.join("reserve"), bytes }
    }

    /// Makes the file if it is not there in its whole length.
    ///
    /// # Errors
    /// The disk has no room for it, or fails; nothing is left of it then.
    pub(super) fn make(&self) -> io::Result<()> {
        if fs::metadata(&self.path).map_or(0, |file| file.len()) == self.bytes {
            return Ok(());
        }
        let written = self.write();
        if written.is_err() {
            self.release();
        }
        written
    }

    /// Makes the file again that was given up, where the disk has room for twice as much.
    pub(super) fn restore(&self) {
        let Some(dir) = self.path.parent() else { return };
        let room = rustix::fs::statvfs(dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if !self.path.exists()
            && room >= 2 * self.bytes
            && let Err(error) = self.make()
        {
            log::warn!("{}: {error}", self.path.display());
        }
    }

    /// Removes the file. Returns true if there was one.
    pub(super) fn release(&self) -> bool {
        // Nothing else can be done about a directory that cannot be written either.
        fs::remove_file(&self.path).is_ok()
    }

    fn write(&self) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)?;
        // Zeros take no room on a file system that compresses.
        let mut chunk = vec![0u8; 64 * 1024];
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        for word in chunk.as_chunks_mut().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        let mut left = self.bytes;
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            file.write_all(&chunk[..len])?;
            left -= len as u64;
        }
        file.sync_all()
    }
}
