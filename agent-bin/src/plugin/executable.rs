//! Opens a plugin's executable and checks its hash.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use elklet_core::command::{PluginName, Sha256};
use elklet_core::limits::MAX_DOWNLOAD_BYTES;
use ring::digest;
use rustix::fs::OFlags;

use super::prepare::PrepareError;
use super::process::raised;
use crate::fetch::Cancel;
use crate::files::FileError;
use crate::host::{HostRoot, mount_of};

/// A verified executable. It is held by the descriptor through which it was verified.
#[derive(Debug)]
pub(crate) struct Executable {
    file: OwnedFd,
    /// Where it lies, or will lie when it is started.
    pub(super) path: PathBuf,
    is_script: bool,
}

impl Executable {
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its path, from which its name and its directory follow.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true when an interpreter has to open it again.
    pub(super) fn is_script(&self) -> bool {
        self.is_script
    }
}

/// The directory of a plugin.
pub(crate) fn directory(workdir: &Path, name: &PluginName) -> PathBuf {
    workdir.join("plugin").join(name.as_str())
}

/// Opens the file at `path` and checks its hash. Blocks.
///
/// # Errors
/// When the file is missing, has another hash, or the preparation was cancelled.
pub(super) fn verify(path: &Path, expected: Sha256, cancel: &Cancel) -> Result<Executable, PrepareError> {
    let failed = |what| FileError::because(path, what);
    let mut file = File::options()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .map_err(failed("cannot be opened"))?;
    let metadata = file.metadata().map_err(failed("cannot be looked at"))?;
    if !metadata.is_file() {
        return Err(PrepareError::NoFile(path.to_owned()));
    }
    let digest = digest(&mut file, cancel).map_err(failed("cannot be read"))?;
    let (sha256, is_script) = digest.ok_or(PrepareError::Cancelled)?;
    if sha256 != expected {
        return Err(PrepareError::OtherExecutable { path: path.to_owned(), sha256, expected });
    }
    make_executable(&file, &metadata).map_err(failed("cannot be made executable"))?;
    let file = raised(&file).map_err(failed("cannot be kept open"))?;
    Ok(Executable { file, path: path.to_owned(), is_script })
}

/// Sets a file's mode to 0700. On a read-only file system (or one that has become so, as after an error) another mode
/// will do if the file can be executed, because nobody can write it there.
fn make_executable(file: &File, metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.permissions().mode() & 0o7777 == 0o700 {
        return Ok(());
    }
    match file.set_permissions(fs::Permissions::from_mode(0o700)) {
        Err(error)
            if error.kind() == io::ErrorKind::ReadOnlyFilesystem && metadata.permissions().mode() & 0o100 != 0 =>
        {
            Ok(())
        }
        changed => changed,
    }
}

/// Explains why a program could not be executed. The kernel reports the same error for a file without permission and
/// for a noexec mount; this tells them apart.
pub(crate) fn explain(error: &io::Error, program: &Path) -> String {
    match mount_of(&HostRoot::live(), program) {
        Some(mount) if error.kind() == io::ErrorKind::PermissionDenied && mount.is_noexec => {
            let (shown, point) = (program.display(), mount.point.display());
            format!("{error}: {shown} lies on {point}, which is mounted noexec: no program there can be executed")
        }
        _ => error.to_string(),
    }
}

/// The hash of a file that somebody wants to sign, or to check.
///
/// # Errors
/// When it cannot be read, or is longer than a download may be.
pub(crate) fn sha256_of(path: &Path) -> io::Result<Sha256> {
    let digest = digest(&mut File::open(path)?, &Cancel::default())?;
    digest.map(|(hash, _)| hash).ok_or_else(|| io::ErrorKind::Interrupted.into())
}

/// Returns the hash, and whether it is a script; `None` if this was cancelled.
fn digest(file: &mut File, cancel: &Cancel) -> io::Result<Option<(Sha256, bool)>> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 << 10];
    let (mut total, mut is_script) = (0, false);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        if total == 0 {
            is_script = buffer[..n].starts_with(b"#!");
        }
        total += n as u64;
        if total > MAX_DOWNLOAD_BYTES {
            return Err(io::Error::other(format!("it has more than {MAX_DOWNLOAD_BYTES} bytes")));
        }
        if cancel.is_cancelled() {
            return Ok(None);
        }
        hash.update(&buffer[..n]);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    Ok(Some((Sha256(digest), is_script)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(path: &Path, hex: &str) -> Result<Executable, PrepareError> {
        verify(path, hex.parse().expect("64 digits"), &Cancel::default())
    }

    /// A hash that no file here has.
    const OTHER: &str = "0011223344556677889900112233445566778899001122334455667788990011";

    #[test]
    fn only_the_configured_bytes_in_a_regular_file_pass() {
        let workdir = tempfile::tempdir().expect("a directory");
        let dir = workdir.path().join("plugin/p");
        fs::create_dir_all(&dir).expect("writable");
        let missing = verified(&dir.join("p"), OTHER).expect_err("there is no file").to_string();
        assert!(missing.contains("plugin/p/p: cannot be opened"), "{missing}");

        fs::write(dir.join("p"), "abc").expect("writable");
        // The SHA-256 of "abc" is the first test vector of FIPS 180-2.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let executable = verified(&dir.join("p"), abc).expect("the configured bytes");
        assert!(!executable.is_script());
        let other = verified(&dir.join("p"), OTHER).expect_err("other bytes").to_string();
        assert!(other.contains(abc) && other.contains(OTHER), "{other}");

        let cancel = Cancel::default();
        cancel.cancel();
        let given_up = verify(&dir.join("p"), Sha256([0; 32]), &cancel).expect_err("nobody wants it");
        assert!(matches!(given_up, PrepareError::Cancelled), "{given_up}");

        fs::remove_file(dir.join("p")).expect("writable");
        std::os::unix::fs::symlink("/bin/sh", dir.join("p")).expect("writable");
        assert!(verified(&dir.join("p"), abc).is_err(), "a link is not followed");
        fs::remove_file(dir.join("p")).expect("writable");
        fs::create_dir(dir.join("p")).expect("writable");
        let directory = verified(&dir.join("p"), abc).expect_err("a directory");
        assert!(matches!(directory, PrepareError::NoFile(_)), "{directory}");
    }
}
