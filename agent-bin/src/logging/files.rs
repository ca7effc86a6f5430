//! The log's directory and its rotated files: `NAME`, `NAME.1`, `NAME.2.gz` and so on.
//!
//! Other users of the host may have tampered with the work directory. So nothing here follows a symbolic link, and the
//! agent writes only to what belongs to its user, to root, or to the owner of the directory around it. It remembers
//! nothing about the directory's contents, because an operator may move, delete and unpack files while the agent runs.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::sys::gzip;

/// A longer file is rotated before the next line.
pub(super) const FILE_BYTES: u64 = 1 << 20;

pub(super) const OLD_FILES: usize = 10;

/// Only the agent's user may read the files.
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);

/// Permissions that others must not have on a file or directory of the log.
const WRITABLE_BY_OTHERS: Mode = Mode::from_raw_mode(0o022);

type Inode = (u64, u64);

/// The log's directory. It is made when it is missing.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// The directory stays open, so that a line can be written when the process has no descriptor to spare.
    open: Option<(OwnedFd, Inode)>,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory that is at the path now.
    fn current(&mut self) -> io::Result<&OwnedFd> {
        let present = fs::symlink_metadata(&self.path).ok().map(|found| (found.dev(), found.ino()));
        let open = match self.open.take().filter(|(_, inode)| Some(*inode) == present) {
            Some(open) => open,
            None => open_directory(&self.path)?,
        };
        Ok(&self.open.insert(open).0)
    }
}

fn open_directory(path: &Path) -> io::Result<(OwnedFd, Inode)> {
    let is_new = match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, path, flags, Mode::empty()).map_err(|error| match error {
        // Kernels differ in what O_DIRECTORY and O_NOFOLLOW report for a symbolic link.
        Errno::LOOP | Errno::NOTDIR => {
            io::Error::other("it is no directory, or a symbolic link, which is not followed")
        }
        error => error.into(),
    })?;
    let found = fstat(&directory)?;
    let around = path.parent().and_then(|parent| fs::metadata(parent).ok()).map(|parent| parent.uid());
    expect_owner(&found, around)?;
    let mode = Mode::from_raw_mode(found.st_mode);
    if is_new {
        fchmod(&directory, DIRECTORY_MODE)?;
    } else if mode.intersects(WRITABLE_BY_OTHERS) {
        // Keep read permission, because an operator may have let in a group that collects logs.
        let _ = fchmod(&directory, mode.difference(WRITABLE_BY_OTHERS));
    }
    Ok((directory, inode(&found)))
}

/// Refuses what belongs to another user. That user could remove what is written, or make it appear elsewhere.
fn expect_owner(found: &Stat, around: Option<u32>) -> io::Result<()> {
    let (owner, own) = (found.st_uid, geteuid().as_raw());
    // On a file system that maps users, the agent's files belong to the owner of the directory around them.
    if owner == own || owner == 0 || Some(owner) == around {
        return Ok(());
    }
    Err(io::Error::other(format!("it belongs to user {owner}, expected {own}")))
}

#[expect(clippy::unnecessary_cast, clippy::useless_conversion, reason = "their widths differ between architectures")]
fn inode(found: &Stat) -> Inode {
    (found.st_dev as u64, u64::from(found.st_ino))
}

/// A file of lines that rotates when it is full, with [`OLD_FILES`] old ones.
#[derive(Debug)]
pub(super) struct Rotated {
    name: &'static str,
    open: Option<(File, Inode)>,
}

impl Rotated {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, open: None }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Appends a whole line, or nothing.
    pub(super) fn write(&mut self, directory: &mut Directory, line: &[u8]) -> io::Result<()> {
        let mut file = self.current(directory.current()?)?;
        let written = loop {
            match file.write(line) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if written < line.len() {
            // The disk is full. Remove the part that found room, so that no line is torn.
            let end = file.metadata()?.len();
            file.set_len(end.saturating_sub(written as u64))?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Returns the file at the log's path. It is a new one when the last was full, or when somebody has moved or deleted it.
    fn current(&mut self, directory: &OwnedFd) -> io::Result<&File> {
        let mut present = statat(directory, self.name, AtFlags::SYMLINK_NOFOLLOW).ok();
        if present.as_ref().is_some_and(|file| is_regular(file) && length(file) > FILE_BYTES) {
            rotate(directory, self.name)?;
            present = None;
        }
        let present = present.as_ref().map(inode);
        // Close the old file before opening the next, because the process may have no descriptor to spare.
        let open = match self.open.take().filter(|(_, inode)| Some(*inode) == present) {
            Some(open) => open,
            None => open_file(directory, self.name)?,
        };
        Ok(&self.open.insert(open).0)
    }
}

fn is_regular(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
}

fn length(found: &Stat) -> u64 {
    u64::try_from(found.st_size).unwrap_or(0)
}

fn open_file(directory: &OwnedFd, name: &str) -> io::Result<(File, Inode)> {
    // Opening a pipe that somebody has put there must not wait for its reader.
    let how = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(directory, name, how | OFlags::NOFOLLOW | OFlags::CLOEXEC, FILE_MODE).map_err(not_followed)?;
    let found = fstat(&file)?;
    if !is_regular(&found) || found.st_nlink > 1 {
        return Err(io::Error::other("it is no regular file with one name, expected one"));
    }
    expect_owner(&found, fstat(directory).ok().map(|around| around.st_uid))?;
    // Set the mode whatever the umask is.
    if length(&found) == 0 || Mode::from_raw_mode(found.st_mode).intersects(WRITABLE_BY_OTHERS) {
        fchmod(&file, FILE_MODE)?;
    }
    Ok((file.into(), inode(&found)))
}

fn not_followed(error: Errno) -> io::Error {
    match error {
        Errno::LOOP => io::Error::other("it is a symbolic link, which is not followed"),
        error => error.into(),
    }
}

/// Makes the current file the newest old one, and deletes the oldest. Skips what does not exist.
fn rotate(directory: &OwnedFd, name: &str) -> io::Result<()> {
    let old = |number: usize, suffix: &str| format!("{name}.{number}{suffix}");
    let rename = |from: &str, to: &str| renameat(directory, from, directory, to);
    // Somebody may have unpacked one, so keep both.
    for suffix in ["", ".gz"] {
        unless_absent(unlinkat(directory, old(OLD_FILES, suffix), AtFlags::empty()))?;
        for number in (1..OLD_FILES).rev() {
            unless_absent(rename(&old(number, suffix), &old(number + 1, suffix)))?;
        }
    }
    unless_absent(rename(name, &old(1, "")))?;
    // A file that cannot be compressed, perhaps because the disk is full, stays as it is.
    let (plain, unfinished) = (old(2, ""), format!("{name}.gz.new"));
    if compress(directory, &plain, &unfinished).is_ok() && rename(&unfinished, &old(2, ".gz")).is_ok() {
        unless_absent(unlinkat(directory, &plain, AtFlags::empty()))?;
    } else {
        let _ = unlinkat(directory, &unfinished, AtFlags::empty());
    }
    Ok(())
}

fn unless_absent(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

fn compress(directory: &OwnedFd, from: &str, to: &str) -> io::Result<()> {
    let safely = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut from = File::from(openat(directory, from, OFlags::RDONLY | safely, Mode::empty())?);
    if !from.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    unless_absent(unlinkat(directory, to, AtFlags::empty()))?;
    let to = openat(directory, to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | safely, FILE_MODE)?;
    fchmod(&to, FILE_MODE)?;
    gzip::compress(&mut from, &mut File::from(to))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use flate2::read::GzDecoder;

    use super::*;

    const FILE: &str = "elklet.log";

    /// Writes numbered lines until the log has been rotated a number of times.
    struct Lines {
        directory: Directory,
        file: Rotated,
        next: usize,
    }

    impl Lines {
        /// In a directory that does not exist yet.
        fn new(directory: PathBuf) -> Self {
            Self { directory: Directory::new(directory), file: Rotated::new(FILE), next: 0 }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&mut self) -> io::Result<()> {
            self.next += 1;
            self.file.write(&mut self.directory, format!("{:01023}\n", self.next).as_bytes())
        }

        fn rotate(&mut self, times: usize) {
            for _ in 0..times {
                let mut before = 0;
                loop {
                    self.write().expect("a line");
                    let now = fs::metadata(self.path(FILE)).expect("the log").len();
                    if std::mem::replace(&mut before, now) > now {
                        break;
                    }
                }
            }
        }

        fn names(&self) -> BTreeSet<String> {
            let entries = fs::read_dir(self.directory.path()).expect("it exists");
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
        }

        /// The numbers of one file's lines.
        fn numbers(&self, name: &str) -> Vec<usize> {
            let mut text = String::new();
            let mut file = File::open(self.path(name)).expect(name);
            match name.ends_with(".gz") {
                true => GzDecoder::new(file).read_to_string(&mut text).expect("compressed text"),
                false => file.read_to_string(&mut text).expect("text"),
            };
            text.lines().map(|line| line.parse().expect("a number")).collect()
        }
    }

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| format!("{FILE}{name}")).collect()
    }

    #[test]
    fn old_files_are_numbered_compressed_and_bounded_and_nobody_else_reads_them() {
        let workdir = tempfile::tempdir().expect("a directory");
        let mut lines = Lines::new(workdir.path().join("log"));
        lines.rotate(3);
        assert_eq!(lines.names(), names(&["", ".1", ".2.gz", ".3.gz"]));
        let inner: Vec<_> = [".3.gz", ".2.gz", ".1", ""]
            .into_iter()
            .flat_map(|suffix| lines.numbers(&format!("{FILE}{suffix}")))
            .collect();
        assert_eq!(inner, (1..=lines.next).collect::<Vec<_>>());
        lines.rotate(OLD_FILES);
        assert_eq!(lines.names().len(), OLD_FILES + 1, "{:?}", lines.names());
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!(mode(lines.directory.path()), 0o700);
        assert!(lines.names().iter().all(|name| mode(&lines.path(name)) == 0o600));
    }

    #[test]
    fn old_files_may_be_deleted_moved_and_unpacked_while_it_logs() {
        let workdir = tempfile::tempdir().expect("a directory");
        let mut lines = Lines::new(workdir.path().join("log"));
        lines.rotate(4);
        fs::remove_file(lines.path("elklet.log.1")).expect("an old file");
        lines.rotate(1);
        assert_eq!(lines.names(), names(&["", ".1", ".3.gz", ".4.gz", ".5.gz"]));
        // As gunzip does, with and without keeping the compressed file.
        let unpacked = lines.numbers("elklet.log.3.gz");
        fs::rename(lines.path("elklet.log.3.gz"), lines.path("elklet.log.3")).expect("an old file");
        fs::copy(lines.path("elklet.log.4.gz"), lines.path("elklet.log.4")).expect("an old file");
        lines.rotate(1);
        assert_eq!(lines.names(), names(&["", ".1", ".2.gz", ".4", ".5", ".5.gz", ".6.gz"]));
        fs::rename(lines.path("elklet.log.4"), lines.path("elklet.log.4.gz")).expect("an old file");
        assert_eq!(lines.numbers("elklet.log.4.gz"), unpacked);
        // The current file may be moved too. What is in its place is appended to.
        fs::rename(lines.path(FILE), lines.path("taken")).expect("the log");
        fs::write(lines.path(FILE), "0\n").expect("writable");
        lines.write().expect("a line");
        assert_eq!(lines.numbers(FILE), [0, lines.next]);
        lines.rotate(OLD_FILES + 1);
        assert_eq!(lines.names().len(), OLD_FILES + 2, "{:?}", lines.names());
    }

    #[test]
    fn a_line_that_no_file_takes_is_an_error_and_the_next_one_may_not_be() {
        let workdir = tempfile::tempdir().expect("a directory");
        let mut lines = Lines::new(workdir.path().join("log"));
        fs::create_dir_all(lines.path(FILE)).expect("a directory in the way");
        lines.write().expect_err("not a file");
        fs::remove_dir(lines.path(FILE)).expect("empty");
        lines.write().expect("a line");
        // An old file that rotation cannot replace.
        fs::create_dir(lines.path("elklet.log.10")).expect("a directory in the way");
        while lines.write().is_ok() {}
        lines.write().expect_err("still in the way");
        assert_eq!(lines.names(), names(&["", ".10"]));
        fs::remove_dir(lines.path("elklet.log.10")).expect("empty");
        lines.write().expect("a line");
        assert_eq!(lines.names(), names(&["", ".1"]));
    }

    #[test]
    fn links_pipes_and_other_names_are_not_written_through() {
        let workdir = tempfile::tempdir().expect("a directory");
        let precious = workdir.path().join("precious");
        fs::write(&precious, "precious").expect("writable");
        let refused = |lines: &mut Lines, says: &str| {
            let error = lines.write().expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(fs::read(&precious).expect("readable"), b"precious");
        };

        let mut lines = Lines::new(workdir.path().join("log"));
        fs::create_dir(lines.path("")).expect("writable");
        symlink(&precious, lines.path(FILE)).expect("a link");
        refused(&mut lines, "symbolic link");
        fs::remove_file(lines.path(FILE)).expect("the link");
        fs::hard_link(&precious, lines.path(FILE)).expect("a second name");
        refused(&mut lines, "one name");
        fs::remove_file(lines.path(FILE)).expect("the second name");
        // Without a reader, a pipe cannot be opened for writing, and the agent must not wait for one.
        rustix::fs::mknodat(CWD, lines.path(FILE), FileType::Fifo, FILE_MODE, 0).expect("a pipe");
        refused(&mut lines, "");
        fs::remove_file(lines.path(FILE)).expect("the pipe");
        lines.write().expect("nothing is in the way any more");

        // The file that rotation compresses, and the one that it compresses into.
        lines.rotate(1);
        fs::remove_file(lines.path("elklet.log.1")).expect("an old file");
        symlink(&precious, lines.path("elklet.log.1")).expect("a link");
        symlink(&precious, lines.path("elklet.log.gz.new")).expect("a link");
        lines.rotate(2);
        assert_eq!(fs::read(&precious).expect("readable"), b"precious");
        assert!(fs::symlink_metadata(lines.path("elklet.log.2.gz")).expect("compressed").is_file());

        // And the directory.
        let elsewhere = workdir.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("writable");
        symlink(&elsewhere, workdir.path().join("linked")).expect("a link");
        refused(&mut Lines::new(workdir.path().join("linked")), "symbolic link");
        assert_eq!(fs::read_dir(&elsewhere).expect("readable").count(), 0);
    }

    #[test]
    fn what_others_could_write_is_closed_to_them_and_what_others_own_is_refused() {
        let workdir = tempfile::tempdir().expect("a directory");
        let mut lines = Lines::new(workdir.path().join("log"));
        let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        fs::create_dir(lines.path("")).expect("writable");
        fs::write(lines.path(FILE), "0\n").expect("writable");
        set_mode(&lines.path(""), 0o777);
        set_mode(&lines.path(FILE), 0o666);
        lines.write().expect("a line");
        assert_eq!((mode(&lines.path("")), mode(&lines.path(FILE))), (0o755, 0o600));
        if geteuid().is_root() {
            let mut lines = Lines::new(workdir.path().join("other"));
            lines.write().expect("a line");
            std::os::unix::fs::chown(lines.path(FILE), Some(65_534), None).expect("root may");
            fs::rename(lines.path(FILE), lines.path("moved")).expect("ours");
            fs::rename(lines.path("moved"), lines.path(FILE)).expect("ours");
            let error = Lines::new(workdir.path().join("other")).write().expect_err("another's file");
            assert!(error.to_string().contains("belongs to user 65534, expected 0"), "{error}");
        }
    }
}
