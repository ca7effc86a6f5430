//! Reading no more of a file than it should have, and writing files so that a reader, and a host that loses its power, has
//! the old content or the new, never a part.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The first `limit` bytes of a file.
///
/// # Errors
/// Whatever opening or reading the file gives.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Puts `content` in the place of a file, with this mode.
///
/// # Errors
/// Whatever writing gives; the old file stays then.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_by(path, mode, |file| file.write_all(content))
}

/// Puts a copy of `from` in the place of a file, with this mode.
///
/// # Errors
/// Whatever reading or writing gives; the old file stays then.
pub(crate) fn replace_by_copy(path: &Path, from: &Path, mode: u32) -> io::Result<()> {
    replace_by(path, mode, |file| io::copy(&mut File::open(from)?, file).map(drop))
}

fn replace_by(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    // One that was left by a crash, or that somebody has put there.
    let _ = fs::remove_file(new);
    let put = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
        write(&mut file)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(new, path)
    };
    put().inspect_err(|_| drop(fs::remove_file(new)))?;
    // The new content is in place, whether or not the directory can be made to last, which some file systems refuse.
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        log::warn!("{}: {error}; what was written may not outlast a loss of power", directory.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let mode = || fs::metadata(&path).expect("it exists").permissions().mode() & 0o777;
        fs::write(directory.path().join("file.new"), "from a crash").expect("writable");
        replace(&path, b"one", 0o600).expect("writable");
        assert_eq!((read_bounded(&path, 9).expect("readable"), mode()), (b"one".to_vec(), 0o600));
        replace_by(&path, 0o600, |_| Err(io::ErrorKind::StorageFull.into())).expect_err("no room");
        replace_by_copy(&path, &directory.path().join("missing"), 0o600).expect_err("nothing to copy");
        assert_eq!(read_bounded(&path, 2).expect("readable"), b"on");
        let from = directory.path().join("from");
        fs::write(&from, "two").expect("writable");
        // Whatever the umask is.
        replace_by_copy(&path, &from, 0o757).expect("writable");
        assert_eq!((fs::read(&path).expect("readable"), mode()), (b"two".to_vec(), 0o757));
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 2);
    }
}
