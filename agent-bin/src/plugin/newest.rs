//! Remembers the newest version of each plugin that has run here, so that a signed plugin does not go back. Otherwise, whoever
//! can answer for the server could restart a version that was replaced for a flaw, because its signature is still valid.
//!
//! The file `plugins.newest` in the work directory is a JSON object of names and versions. It is replaced as a whole.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use elklet_core::command::PluginName;
use elklet_core::limits::MAX_SOURCES;
use elklet_core::update::compare;

use crate::files::{self, FileError};

/// Most bytes of the file that are read. Names and versions have bounds of their own.
const MAX_BYTES: u64 = 128 << 10;

/// The newest versions, in memory and on the disk.
#[derive(Debug)]
pub(crate) struct Newest {
    path: PathBuf,
    versions: Mutex<BTreeMap<String, String>>,
}

/// A version that may not run after the one that has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Downgrade {
    version: String,
    /// The newest that has run here.
    newest: String,
    /// True if the version is earlier, false if the two cannot be compared.
    is_earlier: bool,
}

impl fmt::Display for Downgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, newest, is_earlier } = self;
        let why = if *is_earlier { "is earlier than" } else { "cannot be compared with" };
        write!(f, "version {version:.80} {why} {newest:.80}, which has run here, and plugins.allow_downgrade is off")
    }
}

impl std::error::Error for Downgrade {}

impl Newest {
    /// Reads the file. Logs a file that cannot be read, and knows no version then.
    pub(crate) fn read(workdir: &Path) -> Self {
        let path = workdir.join("plugins.newest");
        let read = files::read_bounded(&path, MAX_BYTES).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let versions = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                log::error!("{}: {error}; which versions have run here is not known any more", path.display());
            }
            BTreeMap::new()
        });
        Self { path, versions: Mutex::new(versions) }
    }

    /// Checks that a version may run after those that have.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn check(&self, name: &PluginName, version: &str) -> Result<(), Downgrade> {
        let versions = self.lock();
        let Some(newest) = versions.get(name.as_str()).filter(|newest| *newest != version) else { return Ok(()) };
        let is_earlier = match compare(version, newest) {
            Some(Ordering::Less) => true,
            Some(_) => return Ok(()),
            None => false,
        };
        Err(Downgrade { version: version.to_owned(), newest: newest.clone(), is_earlier })
    }

    /// Remembers that a version was started. Returns true when the file has to be written.
    pub(super) fn note(&self, name: &PluginName, version: &str) -> bool {
        let mut versions = self.lock();
        let is_known = match versions.get(name.as_str()) {
            // A version that cannot be compared gets here only if the host allows it. It counts from then on.
            Some(newest) => {
                newest == version || matches!(compare(version, newest), Some(Ordering::Less | Ordering::Equal))
            }
            None => versions.len() >= MAX_SOURCES,
        };
        if !is_known {
            versions.insert(name.as_str().to_owned(), version.to_owned());
        }
        !is_known
    }

    /// Replaces the file. Blocks.
    ///
    /// # Errors
    /// When it cannot be written. The previous file is then still there.
    pub(crate) fn write(&self) -> Result<(), FileError> {
        let content = serde_json::to_vec(&*self.lock()).map_err(io::Error::from);
        let written = content.and_then(|content| files::replace(&self.path, &content, 0o600));
        written.map_err(FileError::at(&self.path))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_lower_than_the_newest_that_ran_is_refused_also_after_a_restart() {
        let workdir = tempfile::tempdir().expect("a directory");
        let name: PluginName = "p".parse().expect("a name");
        let other: PluginName = "q".parse().expect("a name");
        let newest = Newest::read(workdir.path());
        newest.check(&name, "1.0").expect("nothing has run");
        assert!(newest.note(&name, "1.2"));
        // A version that runs because the host allows it does not make the newest an older one.
        assert!(!newest.note(&name, "1.1") && !newest.note(&name, "1.2"));
        newest.write().expect("writable");
        let newest = Newest::read(workdir.path());
        for good in ["1.2", "1.2.0", "1.10", "2"] {
            newest.check(&name, good).expect(good);
        }
        newest.check(&other, "0.1").expect("it is another plugin");
        let earlier = newest.check(&name, "1.1.9").expect_err("earlier").to_string();
        assert!(earlier.contains("1.1.9 is earlier than 1.2, which has run here"), "{earlier}");
        let nightly = newest.check(&name, "nightly").expect_err("no number");
        assert!(!nightly.is_earlier && nightly.to_string().contains("cannot be compared with 1.2"), "{nightly}");
        assert!(newest.note(&other, "nightly"));
        newest.check(&other, "nightly").expect("the same");
    }

    #[test]
    fn what_is_damaged_is_begun_anew_and_the_number_of_names_is_bounded() {
        let workdir = tempfile::tempdir().expect("a directory");
        let file = workdir.path().join("plugins.newest");
        for garbage in [&b""[..], b"[1]", b"{\"p\": 1}", &[b'['; 100_000]] {
            std::fs::write(&file, garbage).expect("writable");
            Newest::read(workdir.path()).check(&"p".parse().expect("a name"), "1").expect("nothing is known");
        }
        let newest = Newest::read(workdir.path());
        for number in 0..=MAX_SOURCES {
            let is_new = newest.note(&format!("p{number}").parse().expect("a name"), "1");
            assert_eq!(is_new, number < MAX_SOURCES);
        }
        std::fs::remove_file(&file).expect("writable");
        std::fs::create_dir(&file).expect("writable");
        assert!(newest.note(&"p1".parse().expect("a name"), "2"));
        assert!(newest.write().expect_err("a directory").to_string().contains("plugins.newest"));
        newest.check(&"p1".parse().expect("a name"), "1").expect_err("it is known while the agent runs");
    }
}
