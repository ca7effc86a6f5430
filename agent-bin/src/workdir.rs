//! The work directory. It belongs to one agent at a time, and nobody else writes it.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::clock::Stopwatch;
use crate::config::Layout;
use crate::files::{FileError, close_to_others};
use crate::plugin;
use crate::sys::remove::remove_tree;

/// How often to try a lock that seems taken. A child that another agent was just starting holds it from its fork to its
/// exec, even if that agent has ended.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// The directories that the agent makes in it. Another module makes `spool`, but it too is closed to others.
const DIRECTORIES: [&str; 4] = ["plugin", "spool", "tmp", "update"];

/// Time limit for deleting leftovers at the end. The next start goes on with them.
const CLEARING: Duration = Duration::from_secs(5);

/// Most entries of `tmp/` that are looked at. The next start looks at more.
const MAX_LEFT: usize = 10_000;

/// The file in it that is locked. Whoever may read a file may lock it, and the directory itself may be everybody's to read.
const LOCK: &str = "lock";

/// Returns true while an agent runs in the directory, as far as this user may look.
pub(crate) fn is_taken(workdir: &Path) -> bool {
    let file = File::open(workdir.join(LOCK)).or_else(|_| File::open(workdir));
    let locked = file.map(|file| flock(&file, FlockOperation::NonBlockingLockShared));
    matches!(locked, Ok(Err(Errno::WOULDBLOCK)))
}

/// Why an agent cannot have a work directory.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// Another agent runs in it.
    Another(PathBuf),
    /// The host refuses it.
    File(FileError),
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Another(workdir) => write!(f, "another agent runs in {}", workdir.display()),
            Self::File(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for NotTaken {}

/// The directory is this agent's own for as long as this lives.
#[derive(Debug)]
pub(crate) struct WorkdirLock {
    _file: File,
}

impl WorkdirLock {
    /// Takes the directory.
    ///
    /// # Errors
    /// When another agent runs in it, or it is no directory.
    pub(crate) fn take(workdir: &Path) -> Result<Self, NotTaken> {
        let failed = |error| NotTaken::File(FileError::at(workdir)(error));
        let mut options = File::options();
        options.read(true).write(true).create(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = match options.open(workdir.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(workdir),
            opened => opened,
        };
        let file = file.map_err(failed)?;
        for _ in 0..ATTEMPTS {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::WOULDBLOCK) => thread::sleep(PAUSE),
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(NotTaken::Another(workdir.to_owned()))
    }
}

/// Takes write permission away from others on directories that an earlier version may have left open. Warns of a work
/// directory that others can write, because they could replace all of it.
pub(crate) fn tighten(layout: &Layout) {
    let workdir = &layout.workdir;
    for directory in DIRECTORIES.map(|name| workdir.join(name)).iter().chain([&layout.log]) {
        if directory.is_dir()
            && let Err(error) = close_to_others(directory)
        {
            log::error!("{}: {error}", directory.display());
        }
    }
    let mode = fs::metadata(workdir).map_or(0, |found| found.permissions().mode());
    if mode & 0o022 != 0 {
        let mode = mode & 0o7777;
        log::warn!("{}: others can write it (mode {mode:o}) and replace what the agent executes", workdir.display());
    }
}

/// Finds what earlier runs have left to delete, in `tmp/` and beside plugins. Puts back what a crash has interrupted.
pub(crate) fn leftovers(workdir: &Path) -> Vec<PathBuf> {
    let tmp = workdir.join("tmp");
    // If it is a link, others may use its target.
    let is_link = tmp.is_symlink();
    let entries = fs::read_dir(&tmp).into_iter().flatten().flatten().take(MAX_LEFT);
    let mut left: Vec<_> = entries
        .filter(|entry| !is_link || entry.file_name().as_encoded_bytes().starts_with(b"elklet-update."))
        .map(|entry| entry.path())
        .collect();
    left.extend(plugin::recover(workdir));
    left
}

/// Deletes leftovers when the agent ends.
pub(crate) fn clear(workdir: &Path) {
    let begun = Stopwatch::start();
    for path in leftovers(workdir) {
        if let Err(error) = remove_tree(&path, &|| begun.elapsed() < CLEARING) {
            log::warn!("{}: {error}; the next start tries again", path.display());
        }
    }
    // This fails if it is a link, or something is left in it.
    let _ = fs::remove_dir(workdir.join("tmp"));
}
