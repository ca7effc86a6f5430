//! What is kept of updates in `update/` of the work directory: the previous program, what is on trial, what has failed.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files;

/// A version that has been put in the place of another, until it has held a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trial {
    pub(crate) version: String,
    pub(crate) sha256: String,
    /// The version that is kept, and comes back if this one fails.
    pub(crate) previous: String,
    /// Where the program is.
    pub(crate) program: PathBuf,
    /// How often the new version was started.
    pub(crate) starts: u32,
}

/// The version that was tried last and did not stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) version: String,
    pub(crate) sha256: String,
    pub(crate) why: String,
}

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    workdir: PathBuf,
}

impl Store {
    pub(crate) fn new(workdir: PathBuf) -> Self {
        Self { workdir }
    }

    /// The program that comes back.
    pub(crate) fn previous(&self) -> PathBuf {
        self.path("previous")
    }

    /// What is on trial, if anything is.
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

    /// Keeps the program that runs, whatever has become of its file.
    pub(crate) fn keep_previous(&self) -> io::Result<()> {
        self.make()?;
        replace_program(Path::new("/proc/self/exe"), &self.previous())
    }

    /// Puts the previous program back, and remembers why the one on trial failed.
    pub(crate) fn put_back(&self, trial: &Trial, why: &str) -> io::Result<()> {
        // What the failed version has logged would be rotated away one day.
        let _ = fs::copy(self.workdir.join("log/elklet.log"), self.path("failed.log"));
        let Trial { version, sha256, .. } = trial.clone();
        self.set_failed(&Failed { version, sha256, why: why.to_owned() })?;
        replace_program(&self.previous(), &trial.program)?;
        self.end_trial();
        Ok(())
    }

    fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.path(""))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.workdir.join("update").join(name)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        // One that cannot be read says nothing: it is written whole or not at all.
        serde_json::from_slice(&fs::read(self.path(name)).ok()?).ok()
    }

    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        files::replace(&self.path(name), &serde_json::to_vec(value)?, 0o600)
    }
}

/// Puts a copy of a program in the place of another, which may be running, with the same permissions.
pub(crate) fn replace_program(from: &Path, to: &Path) -> io::Result<()> {
    let mode = fs::metadata(to).map_or(0o700, |meta| meta.permissions().mode() & 0o777);
    files::replace_by_copy(to, from, mode)
}
