//! Prepares an executable for a configuration. It uses the file in place if that is the right one. Otherwise it
//! downloads one, while whatever runs goes on.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use elklet_core::command::{Packing, PluginConfig, Sha256};
use elklet_core::limits::MAX_DOWNLOAD_BYTES;
use rustix::fs::{OFlags, syncfs};

use super::archive::{EntryError, UnpackError, unpack_in};
use super::executable::{Executable, directory, verify};
use super::newest::{Downgrade, Newest};
use super::quota::{OverQuota, Quota};
use super::stage::{PLUGIN_MODE, Stage, Staged};
use crate::fetch::{Cancel, FetchError, Fetcher, Request};
use crate::files::{FileError, make_directory};
use crate::signing::{NotVouched, Signers};

/// A file in a plugin's directory with the SHA-256 of the archive that was unpacked there.
const ORIGIN: &str = ".elklet-archive";

/// Prepares plugins. It works on any thread.
#[derive(Debug)]
pub(crate) struct Preparer {
    pub(crate) workdir: PathBuf,
    pub(crate) fetcher: Fetcher,
    /// Whose signature a plugin needs, if anybody's.
    pub(crate) signers: Option<Signers>,
    /// True if a signed plugin may go back to an earlier version.
    pub(crate) allow_downgrade: bool,
    /// The newest versions that have run.
    pub(crate) newest: Arc<Newest>,
}

/// A verified executable, and what has to be put in place before it is started.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(super) executable: Executable,
    staged: Option<Staged>,
}

/// Why a plugin is not prepared.
#[derive(Debug)]
pub(crate) enum PrepareError {
    /// Nobody wants it any more.
    Cancelled,
    /// The server's fault: nobody whom this host trusts vouches for the plugin.
    NotVouched(NotVouched),
    /// The server's fault: a later version has run here.
    Downgrade(Downgrade),
    /// The fault of whoever offers the download, unless the error says that it is the host's.
    NotFetched(FetchError),
    /// The fault of whoever made the archive, unless the error says that it is the host's.
    NotUnpacked(UnpackError),
    /// The executable is another one than was named.
    OtherExecutable { path: PathBuf, sha256: Sha256, expected: Sha256 },
    /// There is something else in the executable's place.
    NoFile(PathBuf),
    /// The files beside the executable are those of another archive, of which this is the beginning of the hash.
    OtherArchive { place: PathBuf, origin: String },
    /// The plugin's fault, or that of another who fills its directory.
    OverQuota(OverQuota),
    /// The host's fault: it refuses something with a file.
    File(FileError),
    /// The host's fault: it has no thread for the work.
    NoThread(io::Error),
}

impl From<FileError> for PrepareError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<OverQuota> for PrepareError {
    fn from(over: OverQuota) -> Self {
        Self::OverQuota(over)
    }
}

impl From<FetchError> for PrepareError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Cancelled => Self::Cancelled,
            error => Self::NotFetched(error),
        }
    }
}

impl From<UnpackError> for PrepareError {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Entry { why: EntryError::Cancelled, .. } => Self::Cancelled,
            error => Self::NotUnpacked(error),
        }
    }
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("it is not wanted any more"),
            Self::NotVouched(why) => why.fmt(f),
            Self::Downgrade(why) => why.fmt(f),
            Self::NotFetched(why) => why.fmt(f),
            Self::NotUnpacked(why) => why.fmt(f),
            Self::OtherExecutable { path, sha256, expected } => {
                let path = path.display();
                write!(f, "{path}: is not what was configured: its SHA-256 is {sha256}, expected {expected}")
            }
            Self::NoFile(path) => {
                write!(f, "{}: is no regular file: a plugin's executable has to be one", path.display())
            }
            Self::OtherArchive { place, origin } => {
                write!(f, "{} was unpacked from the archive {origin:.64}", place.display())
            }
            Self::OverQuota(over) => over.fmt(f),
            Self::File(why) => why.fmt(f),
            Self::NoThread(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PrepareError {}

impl Preparer {
    /// Verifies the plugin's executable in place. Blocks, but not for long.
    ///
    /// # Errors
    /// When it is missing or another one, or lacks a signature that it needs, or when its directory is over its quota. No
    /// download helps against the last.
    pub(crate) fn verify(
        &self,
        config: &PluginConfig,
        quota: Option<Quota>,
        cancel: &Cancel,
    ) -> Result<Prepared, PrepareError> {
        self.check_signature(config)?;
        let place = directory(&self.workdir, &config.name);
        let executable = verify(&place.join(config.name.as_str()), config.executable_sha256, cancel)?;
        check_origin(&place, config)?;
        quota.map_or(Ok(()), |quota| quota.check(&place))?;
        Ok(Prepared { executable, staged: None })
    }

    fn check_signature(&self, config: &PluginConfig) -> Result<(), PrepareError> {
        let Some(signers) = &self.signers else { return Ok(()) };
        signers.verify(&config.statement(), config.signature.as_ref()).map_err(PrepareError::NotVouched)?;
        if !self.allow_downgrade {
            self.newest.check(&config.name, &config.version).map_err(PrepareError::Downgrade)?;
        }
        Ok(())
    }

    /// Downloads the plugin and verifies it, beside the one in place. Blocks for as long as the download takes.
    ///
    /// # Errors
    /// When it cannot be downloaded, is not what was configured, or lacks a signature that it needs, or when the directory
    /// that it is to come into is over its quota.
    pub(crate) fn download(
        &self,
        config: &PluginConfig,
        quota: Option<Quota>,
        cancel: &Cancel,
    ) -> Result<Prepared, PrepareError> {
        self.check_signature(config)?;
        let place = directory(&self.workdir, &config.name);
        // An archive replaces all that is there.
        if config.packing == Packing::Plain {
            quota.map_or(Ok(()), |quota| quota.check(&place))?;
        }
        let name = config.name.as_str();
        let mut stage = Stage::beside(&place)?;
        let download = stage.path().join("download");
        let request = Request { urls: &config.urls, sha256: config.download_sha256, max_bytes: MAX_DOWNLOAD_BYTES };
        let mut file = self.fetcher.fetch(&request, &download, stage.room(), cancel)?;
        let (staged, executable) = match config.packing {
            Packing::Plain => {
                // A file that is open for writing cannot be executed.
                drop(file);
                let synced = File::open(stage.path()).and_then(|directory| directory.sync_all());
                check_synced(synced, stage.path())?;
                (Staged::new(stage, download.clone(), &place, name, true), download)
            }
            Packing::TarGz => {
                let tree = stage.path().join("tree");
                make_directory(&tree, PLUGIN_MODE).map_err(FileError::at(&tree))?;
                unpack_in(&mut file, &tree, stage.room(), &|| cancel.is_cancelled())?;
                let origin = tree.join(ORIGIN);
                write_origin(&origin, config).map_err(FileError::at(&origin))?;
                let _ = fs::remove_file(download);
                // One call syncs all files and directories of the archive.
                check_synced(syncfs(&file).map_err(io::Error::from), &tree)?;
                (Staged::new(stage, tree.clone(), &place, name, false), tree.join(name))
            }
        };
        let mut executable = verify(&executable, config.executable_sha256, cancel)?;
        executable.path = place.join(name);
        Ok(Prepared { executable, staged: Some(staged) })
    }

    /// Remembers that a version was started, if that matters. Returns true when the file has to be written.
    pub(crate) fn note_started(&self, config: &PluginConfig) -> bool {
        self.signers.is_some() && self.newest.note(&config.name, &config.version)
    }
}

/// Fails when what was written may be lost. Some file systems cannot sync directories, and a container's filter may
/// refuse it; both are only logged.
fn check_synced(synced: io::Result<()>, path: &Path) -> Result<(), FileError> {
    match synced {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            log::warn!("{}: {error}; what was downloaded may not outlast a loss of power", path.display());
            Ok(())
        }
        synced => synced.map_err(FileError::because(path, "it cannot be synced")),
    }
}

fn write_origin(path: &Path, config: &PluginConfig) -> io::Result<()> {
    // An archive of a plugin's directory may contain this file.
    let _ = fs::remove_file(path);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(config.download_sha256.to_string().as_bytes())
}

/// Reads what [`write_origin`] has written, unless the plugin has replaced it.
fn read_origin(path: &Path) -> io::Result<String> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut origin = String::new();
    File::options().read(true).custom_flags(flags).open(path)?.take(1 << 10).read_to_string(&mut origin)?;
    Ok(origin)
}

/// Checks that the other files of an archive in a plugin's directory belong to the verified executable. Accepts files
/// that came there in another way, such as with a package.
fn check_origin(place: &Path, config: &PluginConfig) -> Result<(), PrepareError> {
    match read_origin(&place.join(ORIGIN)) {
        Ok(origin) if config.packing == Packing::TarGz && origin != config.download_sha256.to_string() => {
            Err(PrepareError::OtherArchive { place: place.to_owned(), origin })
        }
        _ => Ok(()),
    }
}

impl Prepared {
    /// Returns true when dropping it deletes files.
    pub(crate) fn is_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// Puts the download in place. [`Prepared::put_back`] undoes this.
    pub(super) fn install(&mut self) -> io::Result<()> {
        self.staged.as_mut().map_or(Ok(()), Staged::install)
    }

    pub(super) fn put_back(&mut self) -> io::Result<()> {
        self.staged.as_mut().map_or(Ok(()), Staged::put_back)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Proxies;

    /// Prepares what needs no download.
    pub(crate) fn prepared(workdir: &Path, config: &PluginConfig) -> Result<Prepared, PrepareError> {
        let fetcher = Fetcher::new(workdir.join("no-authority"), Proxies::default());
        let newest = Arc::new(Newest::read(workdir));
        let workdir = workdir.to_owned();
        let preparer = Preparer { workdir, fetcher, signers: None, allow_downgrade: false, newest };
        preparer.verify(config, None, &Cancel::default())
    }
}
