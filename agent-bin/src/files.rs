//! Reads files with a bound on their length, and writes files atomically: a reader, or a host after a power loss, finds
//! the old content or the new, never a part.

use std::fmt;
use std::fs::{self, DirBuilder, File, FileType, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// The host refuses to do something with a file or a directory.
#[derive(Debug)]
pub struct FileError(Box<Refused>);

#[derive(Debug)]
struct Refused {
    path: PathBuf,
    /// What it refuses, where the error alone does not say it.
    what: Option<&'static str>,
    error: io::Error,
}

impl FileError {
    /// Makes an error of one at this path.
    pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> Self + Copy {
        move |error| Self::new(path, None, error)
    }

    /// The same, and says what cannot be done there: "cannot be opened".
    pub(crate) fn because(path: &Path, what: &'static str) -> impl Fn(io::Error) -> Self + Copy {
        move |error| Self::new(path, Some(what), error)
    }

    /// Two dozen places make one. Each would have this code of its own if it were inlined.
    #[cold]
    #[inline(never)]
    fn new(path: &Path, what: Option<&'static str>, error: io::Error) -> Self {
        Self(Box::new(Refused { path: path.to_owned(), what, error }))
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { path, what, error } = &*self.0;
        match what {
            Some(what) => write!(f, "{}: {what}: {error}", path.display()),
            None => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for FileError {}

/// Names a kind of file that is not a regular one.
pub(crate) fn named(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Reads the first `limit` bytes of a file.
///
/// # Errors
/// When the file cannot be opened or read.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_start(File::open(path)?, limit)
}

fn read_start(file: File, limit: u64) -> io::Result<Vec<u8>> {
    // A text that grows leaves parts of itself behind in memory, secret or not.
    let size = file.metadata()?.len().min(limit);
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Reads a regular file of at most `limit` bytes. Anybody may have put something else in its place: a named pipe would keep the agent
/// waiting, and a device may have no end.
///
/// # Errors
/// When it cannot be opened or read, is no regular file, or is longer.
pub(crate) fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // Without this flag, to open a named pipe is to wait for somebody who writes into it.
    let file =
        File::options().read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    let kind = found.file_type();
    if !kind.is_file() {
        return Err(io::Error::other(format!("it is {}, expected a regular file", named(kind))));
    }
    let content = read_start(file, limit + 1)?;
    // Files of /proc have no size.
    let bytes = found.len().max(content.len() as u64);
    if bytes > limit {
        return Err(io::Error::other(format!("{bytes} bytes, the limit is {limit}")));
    }
    Ok(content)
}

/// Replaces a file by one with `content` and this mode.
///
/// # Errors
/// When it cannot be written. The old file then stays.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_by(path, mode, |file| file.write_all(content))
}

/// Replaces a file by a copy of `from` with this mode.
///
/// # Errors
/// When it cannot be read or written. The old file then stays.
pub(crate) fn replace_by_copy(path: &Path, from: &mut File, mode: u32) -> io::Result<()> {
    replace_by(path, mode, |file| io::copy(from, file).map(drop))
}

fn replace_by(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    // A crash may have left it, or somebody may have put it there.
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
    // The new content is in place even if the directory cannot be synced, which some file systems refuse.
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        log::warn!("{}: {error}; what was written may not outlast a loss of power", directory.display());
    }
    Ok(())
}

/// Makes a directory with this mode if there is none, and those on the way to it. An existing directory has to be the agent's
/// own. If others may write it, they lose that permission, because whoever may write a directory can replace what lies in it.
///
/// # Errors
/// When it cannot be made, or belongs to another user.
pub(crate) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => return fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(mode).create(path)?;
            return fs::set_permissions(path, Permissions::from_mode(mode));
        }
        Err(error) if path.symlink_metadata().is_err() => return Err(error),
        Err(_) => {}
    }
    close_to_others(path)
}

/// Makes a directory with this mode, and those on the way to it, unless there is one, which stays as it is.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_missing(path: &Path, mode: u32) -> Result<(), FileError> {
    // A name without a directory is in the current one.
    if path.as_os_str().is_empty() || path.is_dir() {
        Ok(())
    } else {
        make_directory(path, mode).map_err(FileError::at(path))
    }
}

/// Takes write permission on one of the agent's directories away from others.
///
/// # Errors
/// When another user owns it, or it cannot be changed.
pub(crate) fn close_to_others(path: &Path) -> io::Result<()> {
    let directory = File::options().read(true).custom_flags(OFlags::DIRECTORY.bits().cast_signed()).open(path)?;
    let found = directory.metadata()?;
    let (own, owner) = (rustix::process::geteuid().as_raw(), found.uid());
    if owner != own && owner != 0 {
        return Err(io::Error::other(format!(
            "it belongs to user {owner}, expected {own}: who owns it can replace what is in it"
        )));
    }
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o022 == 0 {
        return Ok(());
    }
    directory.set_permissions(Permissions::from_mode(mode & !0o7022))?;
    log::warn!("{}: others could write it (mode {mode:o}); now they cannot", path.display());
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
        replace_by_copy(&path, &mut File::open(directory.path()).expect("it exists"), 0o600).expect_err("no file");
        assert_eq!(read_bounded(&path, 2).expect("readable"), b"on");
        let from = directory.path().join("from");
        fs::write(&from, "two").expect("writable");
        // The mode does not depend on the umask.
        replace_by_copy(&path, &mut File::open(&from).expect("readable"), 0o757).expect("writable");
        assert_eq!((fs::read(&path).expect("readable"), mode()), (b"two".to_vec(), 0o757));
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 2);
    }

    #[test]
    fn a_regular_file_is_read_up_to_its_limit_and_nothing_else_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "four").expect("writable");
        std::os::unix::fs::symlink(at("file"), at("link")).expect("writable");
        assert_eq!(read_regular(&at("link"), 4).expect("it has four bytes"), b"four");
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("writable");
        let refused = |path: &Path| read_regular(path, 3).expect_err("no such file").to_string();
        assert_eq!(refused(&at("file")), "4 bytes, the limit is 3");
        assert_eq!(refused(directory.path()), "it is a directory, expected a regular file");
        assert_eq!(refused(&at("pipe")), "it is a named pipe, expected a regular file");
        assert_eq!(refused(Path::new("/dev/zero")), "it is a device, expected a regular file");
        // It has no size, and ends where it ends.
        assert!(read_regular(Path::new("/proc/self/stat"), 9_999).is_ok_and(|bytes| bytes.len() > 9));
        assert_eq!(refused(Path::new("/proc/self/stat")), "4 bytes, the limit is 3");
    }

    #[test]
    fn directories_are_closed_to_others_whatever_they_were() {
        let directory = tempfile::tempdir().expect("a directory");
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o7777;
        let path = directory.path().join("a/b");
        make_directory(&path, 0o701).expect("writable");
        assert_eq!((mode(&path), mode(path.parent().expect("a"))), (0o701, 0o701));
        for (open, closed) in [(0o777, 0o755), (0o1777, 0o755), (0o2770, 0o750), (0o755, 0o755), (0o500, 0o500)] {
            fs::set_permissions(&path, Permissions::from_mode(open)).expect("ours");
            make_directory(&path, 0o701).expect("ours");
            assert_eq!(mode(&path), closed, "{open:o}");
        }
        fs::write(directory.path().join("file"), "").expect("writable");
        make_directory(&directory.path().join("file"), 0o700).expect_err("a file");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).expect("root may");
            let error = make_directory(&path, 0o701).expect_err("somebody else's");
            assert!(error.to_string().contains("belongs to user 12345, expected 0"), "{error}");
        }
    }
}
