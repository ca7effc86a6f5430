//! From a configuration to an executable that may be started: what lies there already if it is the right one, else what is
//! downloaded, beside whatever runs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use elklet_core::command::{Packing, PluginConfig};
use elklet_core::limits::MAX_DOWNLOAD_BYTES;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::archive::unpack;
use super::executable::{Executable, directory, verify};
use super::trust::PublicKey;
use crate::fetch::{Cancel, Fetcher, Order};

/// A file in a plugin's directory with the SHA-256 of the archive that was unpacked there.
const ORIGIN: &str = ".elklet-archive";

/// Prepares plugins, on any thread.
#[derive(Debug)]
pub(crate) struct Preparer {
    pub(crate) workdir: PathBuf,
    pub(crate) fetcher: Fetcher,
    /// Who has to vouch for what is started, if anybody.
    pub(crate) public_key: Option<PublicKey>,
}

/// An executable that was verified, and what is to be put in its place before it is started.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(super) executable: Executable,
    staged: Option<Staged>,
}

impl Preparer {
    /// Verifies the plugin's executable, downloading it if there is none or another one. Blocks.
    ///
    /// # Errors
    /// When it cannot be had, is not what was configured, or nobody vouches for it who has to; the text says why.
    pub(crate) fn prepare(&self, config: &PluginConfig, cancel: &Cancel) -> Result<Prepared, String> {
        if let Some(key) = &self.public_key {
            key.verify(config)?;
        }
        let place = directory(&self.workdir, &config.name);
        let name = config.name.as_str();
        let here = verify(&place.join(name), config.executable_sha256, cancel);
        let why = match here.and_then(|executable| check_origin(&place, config).map(|()| executable)) {
            Ok(executable) => return Ok(Prepared { executable, staged: None }),
            Err(why) => why,
        };
        if config.urls.is_empty() {
            return Err(why);
        }
        let stage = Stage::new(&self.workdir, name)?;
        let download = stage.0.join("download");
        let order = Order { urls: &config.urls, sha256: config.download_sha256, max_bytes: MAX_DOWNLOAD_BYTES };
        let mut file = self.fetcher.fetch(&order, &download, cancel)?;
        let (staged, executable) = match config.packing {
            Packing::Plain => {
                // Nothing can be executed while it is open for writing.
                drop(file);
                (Staged::new(stage, download.clone(), place.join(name)), download)
            }
            Packing::TarGz => {
                let tree = stage.0.join("tree");
                make_directory(&tree).map_err(|error| format!("{}: {error}", tree.display()))?;
                unpack(&mut file, &tree, &|| cancel.is_cancelled())?;
                let origin = tree.join(ORIGIN);
                fs::write(&origin, config.download_sha256.to_string())
                    .map_err(|error| format!("{}: {error}", origin.display()))?;
                let _ = fs::remove_file(download);
                (Staged::new(stage, tree.clone(), place.clone()), tree.join(name))
            }
        };
        let mut executable = verify(&executable, config.executable_sha256, cancel)?;
        executable.path = place.join(name);
        Ok(Prepared { executable, staged: Some(staged) })
    }
}

/// Whether the rest of an archive that lies in a plugin's directory belongs to the executable that was verified. What came
/// there in another way, as with a package, is taken for what it is.
fn check_origin(place: &Path, config: &PluginConfig) -> Result<(), String> {
    match fs::read_to_string(place.join(ORIGIN)) {
        Ok(origin) if config.packing == Packing::TarGz && origin != config.download_sha256.to_string() => {
            Err(format!("{} was unpacked from the archive {origin:.64}", place.display()))
        }
        _ => Ok(()),
    }
}

impl Prepared {
    /// Whether there are files that are deleted with it.
    pub(crate) fn is_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// Puts what was downloaded in its place; [`Prepared::put_back`] undoes it.
    pub(super) fn install(&mut self) -> io::Result<()> {
        self.staged.as_mut().map_or(Ok(()), Staged::install)
    }

    pub(super) fn put_back(&mut self) -> io::Result<()> {
        self.staged.as_mut().map_or(Ok(()), Staged::put_back)
    }
}

/// A directory of its own under `tmp`, which is deleted when it is dropped.
#[derive(Debug)]
struct Stage(PathBuf);

impl Stage {
    fn new(workdir: &Path, name: &str) -> Result<Self, String> {
        static STAGES: AtomicU64 = AtomicU64::new(0);
        let path = workdir.join("tmp").join(format!("{name}.{}", STAGES.fetch_add(1, Ordering::Relaxed)));
        match DirBuilder::new().recursive(true).mode(0o700).create(&path) {
            Ok(()) => Ok(Self(path)),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{}: {error}", self.0.display());
        }
    }
}

/// A file or directory that is to take the place of another, which is kept where it was until this is dropped.
#[derive(Debug)]
struct Staged {
    new: PathBuf,
    place: PathBuf,
    has_replaced: bool,
    stage: Stage,
}

impl Staged {
    fn new(stage: Stage, new: PathBuf, place: PathBuf) -> Self {
        Self { new, place, has_replaced: false, stage }
    }

    fn install(&mut self) -> io::Result<()> {
        if self.place.symlink_metadata().is_ok() {
            self.exchange()?;
            self.has_replaced = true;
            return Ok(());
        }
        if let Some(parent) = self.place.parent() {
            make_directory(parent)?;
        }
        fs::rename(&self.new, &self.place)
    }

    fn put_back(&mut self) -> io::Result<()> {
        match self.has_replaced {
            true => self.exchange(),
            false => fs::rename(&self.place, &self.new),
        }
    }

    fn exchange(&self) -> io::Result<()> {
        match renameat_with(CWD, &self.new, CWD, &self.place, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(()),
            // Not every file system can do it at once (jffs2, NFS).
            Err(Errno::INVAL | Errno::NOSYS) => self.exchange_in_steps(),
            Err(error) => Err(error.into()),
        }
    }

    fn exchange_in_steps(&self) -> io::Result<()> {
        let aside = self.stage.0.join("aside");
        fs::rename(&self.place, &aside)?;
        if let Err(error) = fs::rename(&self.new, &self.place) {
            fs::rename(&aside, &self.place)?;
            return Err(error);
        }
        fs::rename(&aside, &self.new)
    }
}

/// A plugin's directory, as the reference makes it: a plugin that has given up being root may still reach its own files.
fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o701).create(path)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Proxies;

    /// What can be prepared without a download.
    pub(crate) fn prepared(workdir: &Path, config: &PluginConfig) -> Result<Prepared, String> {
        let fetcher = Fetcher::new(workdir.join("no-authority"), Proxies::default());
        let preparer = Preparer { workdir: workdir.to_owned(), fetcher, public_key: None };
        preparer.prepare(config, &Cancel::default())
    }

    fn staged(workdir: &Path) -> Staged {
        let stage = Stage::new(workdir, "p").expect("writable");
        let new = stage.0.join("tree");
        fs::create_dir(&new).expect("writable");
        fs::write(new.join("p"), "new").expect("writable");
        Staged::new(stage, new, workdir.join("plugin/p"))
    }

    #[test]
    fn the_new_takes_the_place_of_the_old_and_gives_it_back() {
        let workdir = tempfile::tempdir().expect("a directory");
        let place = workdir.path().join("plugin/p/p");
        let read = || fs::read_to_string(&place).ok();
        let mut first = staged(workdir.path());
        first.install().expect("installed");
        assert_eq!(read().as_deref(), Some("new"));
        first.put_back().expect("put back");
        assert_eq!(read(), None);
        first.install().expect("installed again");
        drop(first);
        fs::write(&place, "old").expect("writable");

        let mut second = staged(workdir.path());
        for exchange in [Staged::exchange, Staged::exchange_in_steps] {
            second.install().expect("installed");
            assert_eq!(read().as_deref(), Some("new"));
            exchange(&second).expect("put back");
            assert_eq!(read().as_deref(), Some("old"));
        }
        second.install().expect("installed");
        drop(second);
        assert_eq!(read().as_deref(), Some("new"));
        assert_eq!(fs::read_dir(workdir.path().join("tmp")).expect("readable").count(), 0, "the old is gone");
    }
}
