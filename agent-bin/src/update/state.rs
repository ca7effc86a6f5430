//! The state of updates in `update/` of the work directory: the previous program, the version on trial, and the version
//! that failed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Layout;
use crate::files;
use crate::version;

/// Most bytes of a state file that are read. A version, a hash, a path and a reason have some hundred.
const MAX_STATE_BYTES: u64 = 64 << 10;

/// A version on trial. It has replaced another and has not held a stream for long enough yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trial {
    pub(crate) version: String,
    pub(crate) sha256: String,
    /// The version that is kept and restored if this one fails.
    pub(crate) previous: String,
    /// The path of the program.
    pub(crate) program: PathBuf,
    /// How often the new version has been started.
    pub(crate) starts: u32,
}

/// The last version that was rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) version: String,
    pub(crate) sha256: String,
    pub(crate) why: String,
}

/// The directory of the state, and that of the log.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    workdir: PathBuf,
    log: PathBuf,
}

impl Store {
    pub(crate) fn new(layout: &Layout) -> Self {
        Self { workdir: layout.workdir.clone(), log: layout.log.clone() }
    }

    /// The path of the previous program.
    pub(crate) fn previous(&self) -> PathBuf {
        self.path("previous")
    }

    /// The version on trial, if there is one.
    pub(crate) fn trial(&self) -> Option<Trial> {
        self.read("trial.json")
    }

    pub(crate) fn set_trial(&self, trial: &Trial) -> io::Result<()> {
        self.write("trial.json", trial)
    }

    pub(crate) fn end_trial(&self) {
        let _ = fs::remove_file(self.path("trial.json"));
    }

    pub(crate) fn failed(&self) -> Option<Failed> {
        self.read("failed.json")
    }

    pub(crate) fn set_failed(&self, failed: &Failed) -> io::Result<()> {
        self.make()?;
        self.write("failed.json", failed)
    }

    pub(crate) fn forget_failed(&self) {
        let _ = fs::remove_file(self.path("failed.json"));
    }

    /// Keeps a copy of the running program, whatever has happened to its file.
    pub(crate) fn keep_previous(&self) -> io::Result<()> {
        self.make()?;
        replace_program(&mut File::open("/proc/self/exe")?, &self.previous())
    }

    /// Puts the previous program back, and remembers why the one on trial failed.
    ///
    /// # Errors
    /// When it cannot be put back, for instance on a full disk. The trial stays then, so that the next start knows of
    /// it and [`Store::put_back_again`] can try again.
    pub(crate) fn put_back(&self, trial: &Trial, why: &str) -> io::Result<()> {
        let Trial { version, sha256, .. } = trial.clone();
        let failed = Failed { version, sha256, why: why.to_owned() };
        // The program comes first, because nothing else matters as much when there is little room.
        let put_back = File::open(self.previous()).and_then(|mut file| replace_program(&mut file, &trial.program));
        if let Err(error) = put_back {
            // Keep the reason for the next attempt, if there is room.
            let _ = self.set_failed(&failed);
            return Err(error);
        }
        self.end_trial();
        if let Err(error) = self.set_failed(&failed) {
            log::error!(
                "{}: {error}; version {:.80} may be tried again",
                self.path("failed.json").display(),
                failed.version
            );
        }
        // Keep the failed version's log, which would be rotated away one day.
        let _ = fs::copy(self.log.join("elklet.log"), self.path("failed.log"));
        Ok(())
    }

    /// Returns the trial of a version that could not be rolled back. In that case this is the version before it, and
    /// the program in its place is not this one, or missing.
    pub(crate) fn pending(&self) -> Option<Trial> {
        let trial = self.trial().filter(|trial| trial.version != version() && trial.previous == version())?;
        let inode = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        (inode(&trial.program) != inode(Path::new("/proc/self/exe"))).then_some(trial)
    }

    /// Tries once more to put the previous program back.
    ///
    /// # Errors
    /// As [`Store::put_back`].
    pub(crate) fn put_back_again(&self, trial: &Trial) -> io::Result<()> {
        let known = self.failed().filter(|failed| failed.version == trial.version && failed.sha256 == trial.sha256);
        let why = known.map_or_else(|| "it did not stand its trial".to_owned(), |failed| failed.why);
        self.put_back(trial, &why)
    }

    fn make(&self) -> io::Result<()> {
        files::make_directory(&self.workdir.join("update"), 0o700)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.workdir.join("update").join(name)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        // A file is written whole or not at all, so one that cannot be read says nothing.
        serde_json::from_slice(&files::read_bounded(&self.path(name), MAX_STATE_BYTES).ok()?).ok()
    }

    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        files::replace(&self.path(name), &serde_json::to_vec(value)?, 0o600)
    }
}

/// Replaces a program, which may be running, by a copy of another. The copy has the same permissions, except that
/// others may not write it.
pub(crate) fn replace_program(from: &mut File, to: &Path) -> io::Result<()> {
    let mode = fs::metadata(to).map_or(0o700, |meta| meta.permissions().mode() & 0o755);
    files::replace_by_copy(to, from, mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_back_that_fails_keeps_the_trial_and_is_tried_again() {
        let workdir = tempfile::tempdir().expect("a directory");
        let store = Store::new(&Layout::within(workdir.path()));
        let program = workdir.path().join("elklet");
        fs::write(&program, "new").expect("writable");
        store.make().expect("writable");
        fs::write(store.previous(), "old").expect("writable");
        let trial = Trial {
            version: "2".into(),
            sha256: "22".into(),
            previous: "1".into(),
            program: program.clone(),
            starts: 1,
        };
        store.set_trial(&trial).expect("writable");
        // A directory in the way stands for a disk without room.
        let new = workdir.path().join("elklet.new");
        fs::create_dir(&new).expect("writable");
        store.put_back(&trial, "it held no stream").expect_err("there is no room");
        assert_eq!(
            (store.trial(), fs::read_to_string(&program).expect("it is there")),
            (Some(trial.clone()), "new".into())
        );
        fs::remove_dir(&new).expect("writable");
        store.put_back_again(&trial).expect("there is room");
        assert_eq!((store.trial(), fs::read_to_string(&program).expect("it is there")), (None, "old".into()));
        assert_eq!(store.failed().expect("it is remembered").why, "it held no stream");
    }

    #[test]
    fn state_that_is_damaged_says_nothing() {
        let workdir = tempfile::tempdir().expect("a directory");
        let store = Store::new(&Layout::within(workdir.path()));
        store.make().expect("writable");
        for garbage in [&b""[..], b"{}", b"null", b"{\"version\": 1}", &[b'['; 100_000]] {
            fs::write(workdir.path().join("update/trial.json"), garbage).expect("writable");
            fs::write(workdir.path().join("update/failed.json"), garbage).expect("writable");
            assert_eq!((store.trial(), store.failed(), store.pending()), (None, None, None));
        }
    }
}
