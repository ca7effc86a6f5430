//! The work directory, which belongs to one agent at a time.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A lock that seems taken is tried again this often: what another agent was just starting holds it from its fork to its exec,
/// though that agent has ended.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// What lies in the directory is this agent's own, as long as this lives.
#[derive(Debug)]
pub(crate) struct WorkdirLock {
    _directory: File,
}

impl WorkdirLock {
    /// Takes the directory.
    ///
    /// # Errors
    /// When another agent runs in it, or it is none; the text names it.
    pub(crate) fn take(workdir: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", workdir.display());
        let directory = File::open(workdir).map_err(failed)?;
        for _ in 0..ATTEMPTS {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _directory: directory }),
                Err(Errno::WOULDBLOCK) => thread::sleep(PAUSE),
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(format!("another agent runs in {}", workdir.display()))
    }
}
