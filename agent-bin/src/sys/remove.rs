//! Deletes directories that a plugin or an archive has filled.
//!
//! `std::fs::remove_dir_all` recurses and keeps a descriptor open for each level, so a tree of 20,000 levels overflows
//! the stack or runs out of descriptors. This removal never goes deeper than one level. It first moves what lies two
//! levels down up, next to its parent. It needs two descriptors for any depth, and no path is ever longer than a name.
//!
//! Processes that still run may rename things in the tree meanwhile. The removal therefore works only through
//! descriptors, never follows a link, and renames a directory before it enters it. The kernel refuses to rename a mount
//! point, so what is mounted in the tree is left alone.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, chmod, fchmod, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Most entries that one removal looks at. Nothing legitimate has as many. A process that fills the tree as fast as it
/// is emptied would keep the removal busy for ever.
const MAX_STEPS: u64 = 4_000_000;

/// Suffix of the names that directories get on their way up.
const MOVED: &str = ".elklet-removing";

pub(super) const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::RDONLY);

/// Deletes a file, or a directory with everything in it, while `may_go_on` returns true. Deletes a link itself, and
/// empties a mount point. A missing file is no error. Blocks.
///
/// # Errors
/// The first failure. Everything else that can be deleted is gone all the same.
pub(crate) fn remove_tree(path: &Path, may_go_on: &dyn Fn() -> bool) -> io::Result<()> {
    let Some(name) = path.file_name() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = match File::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        parent => parent?,
    };
    match unlink(parent.as_fd(), name) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => {}
        Err(error) => return Err(error.into()),
    }
    Removal::new(open_directory(parent.as_fd(), name)?, may_go_on)?.run()?;
    match unlink(parent.as_fd(), name) {
        Ok(()) | Err(Errno::NOENT | Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// One removal, in the directory `top`.
struct Removal<'a> {
    top: OwnedFd,
    device: u64,
    /// The number of the next name for a directory that moves up.
    next: u64,
    steps: u64,
    /// The first failure of this pass.
    failed: Option<io::Error>,
    may_go_on: &'a dyn Fn() -> bool,
}

impl<'a> Removal<'a> {
    fn new(top: OwnedFd, may_go_on: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let device = fstat(&top)?.st_dev;
        Ok(Self { top, device, next: 0, steps: 0, failed: None, may_go_on })
    }

    /// Makes passes over `top` until nothing is left that can be deleted. What moves up in one pass is emptied in the next.
    fn run(&mut self) -> io::Result<()> {
        loop {
            self.failed = None;
            let mut has_advanced = false;
            let mut entries = Dir::read_from(&self.top)?;
            while let Some(entry) = entries.read() {
                let entry = entry?;
                if is_dots(entry.file_name()) {
                    continue;
                }
                self.step()?;
                let done = self.remove(entry.file_name());
                has_advanced |= self.note(done).unwrap_or(false);
            }
            if !has_advanced {
                return self.failed.take().map_or(Ok(()), Err);
            }
        }
    }

    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(io::Error::other(format!("{MAX_STEPS} entries were looked at and there are still more")));
        }
        if !(self.may_go_on)() {
            return Err(io::Error::other(format!("its removal was interrupted after {} entries", self.steps)));
        }
        Ok(())
    }

    /// Remembers the first failure.
    fn note<T>(&mut self, result: io::Result<T>) -> Option<T> {
        result.map_err(|error| self.failed.get_or_insert(error)).ok()
    }

    /// Deletes an entry of `top`, or as much of it as possible. Returns true when that is anything.
    fn remove(&mut self, name: &CStr) -> io::Result<bool> {
        match unlink(self.top.as_fd(), name) {
            // Somebody else may have deleted it.
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let moved;
        let name = if is_moved(name) {
            name
        } else {
            moved = self.take_up(None, name)?;
            &*moved
        };
        let child = open_directory(self.top.as_fd(), name)?;
        if fstat(&child)?.st_dev != self.device {
            return Err(io::Error::other("another file system is mounted in it"));
        }
        let mut has_advanced = false;
        let mut entries = Dir::new(child)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            if is_dots(entry.file_name()) {
                continue;
            }
            self.step()?;
            let done = match unlink(entries.fd()?, entry.file_name()) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.take_up(Some(entries.fd()?), entry.file_name()).map(drop),
                Err(error) if error != Errno::NOENT => Err(error.into()),
                _ => Ok(()),
            };
            has_advanced |= self.note(done).is_some();
        }
        match unlink(self.top.as_fd(), name) {
            Ok(()) => Ok(true),
            // Failures have been noted, and the next pass finds what has come meanwhile.
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(has_advanced),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves a directory to `top` under a name of its own, from `from` or from `top` itself.
    fn take_up(&mut self, from: Option<BorrowedFd<'_>>, name: &CStr) -> io::Result<std::ffi::CString> {
        loop {
            let to = std::ffi::CString::new(format!("{}{MOVED}", self.next)).expect("a number has no NUL");
            self.next += 1;
            let from = from.unwrap_or(self.top.as_fd());
            match renameat(from, name, &self.top, &to) {
                Ok(()) => return Ok(to),
                // An earlier removal has left something under this name.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => self.step()?,
                // A directory that changes its parent has to be writable itself.
                Err(Errno::ACCESS) => {
                    open_directory(from, name)?;
                    renameat(from, name, &self.top, &to)?;
                    return Ok(to);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Deletes a file or an empty directory.
fn unlink(at: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> Result<(), Errno> {
    match unlinkat(at, name, AtFlags::empty()) {
        // For a directory, POSIX returns the second error and Linux the first. Linux returns the second also for a file
        // that may not be deleted.
        Err(error @ (Errno::ISDIR | Errno::PERM)) => match unlinkat(at, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => Err(error),
            done => done,
        },
        done => done,
    }
}

/// Opens a directory so that its entries can be deleted, whatever its mode was.
fn open_directory(at: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> io::Result<OwnedFd> {
    let opened = match openat(at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // Change the mode by the descriptor. The name may be a link by now, which would be followed.
            let path = openat(at, name, DIRECTORY | OFlags::PATH, Mode::empty())?;
            chmod(format!("/proc/self/fd/{}", path.as_raw_fd()), Mode::RWXU)?;
            openat(at, name, DIRECTORY, Mode::empty())?
        }
        opened => opened?,
    };
    if !Mode::from_raw_mode(fstat(&opened)?.st_mode).contains(Mode::RWXU) {
        // A failure does not matter: root, for instance, may write without the permission.
        let _ = fchmod(&opened, Mode::RWXU);
    }
    Ok(opened)
}

pub(super) fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn is_moved(name: &CStr) -> bool {
    let number = name.to_bytes().strip_suffix(MOVED.as_bytes());
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use rustix::fs::mkdirat;

    use super::*;

    struct Place {
        _directory: tempfile::TempDir,
        tree: PathBuf,
        outside: PathBuf,
    }

    fn place() -> Place {
        place_in(tempfile::tempdir().expect("a directory"))
    }

    fn place_in(directory: tempfile::TempDir) -> Place {
        let (tree, outside) = (directory.path().join("tree"), directory.path().join("outside"));
        fs::create_dir_all(outside.join("kept")).expect("writable");
        fs::write(outside.join("kept/file"), "kept").expect("writable");
        fs::create_dir(&tree).expect("writable");
        Place { _directory: directory, tree, outside }
    }

    /// Makes a chain of directories below `top` with a file in each. Paths could not name the deeper ones.
    fn dig(top: &Path, levels: usize) {
        let mut at: OwnedFd = File::open(top).expect("it exists").into();
        for _ in 0..levels {
            mkdirat(&at, "d", Mode::RWXU).expect("writable");
            drop(openat(&at, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("writable"));
            at = openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).expect("it was just made");
        }
    }

    #[test]
    fn a_tree_of_20000_levels_is_deleted_on_a_small_stack() {
        // A disk takes minutes for so many directories, whoever deletes them. Memory does not.
        let in_memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let place = place_in(in_memory.expect("a directory"));
        dig(&place.tree, 20_000);
        let tree = place.tree.clone();
        let small =
            thread::Builder::new().stack_size(64 << 10).spawn(move || remove_tree(&tree, &|| true)).expect("a thread");
        small.join().expect("no panic").expect("deleted");
        assert!(!place.tree.exists());
    }

    #[test]
    fn wide_and_branching_trees_are_deleted_with_two_descriptors_more() {
        let place = place();
        for i in 0..50 {
            let branch = place.tree.join(format!("{i}/a/b/{i}"));
            fs::create_dir_all(&branch).expect("writable");
            (0..20).for_each(|i| fs::write(branch.join(i.to_string()), "x").expect("writable"));
        }
        (0..500).for_each(|i| fs::write(place.tree.join(format!("f{i}")), "x").expect("writable"));
        remove_tree(&place.tree, &|| true).expect("deleted");
        assert!(!place.tree.exists());
        remove_tree(&place.tree, &|| true).expect("what is not there is no error");
        remove_tree(&place.tree.join("below"), &|| true).expect("nor where its parent is not there");
    }

    #[test]
    fn links_are_deleted_and_not_followed() {
        let place = place();
        symlink(&place.outside, place.tree.join("link")).expect("writable");
        fs::create_dir_all(place.tree.join("a/b")).expect("writable");
        symlink(&place.outside, place.tree.join("a/b/link")).expect("writable");
        symlink(place.outside.join("kept/file"), place.tree.join("a/file")).expect("writable");
        remove_tree(&place.tree, &|| true).expect("deleted");
        symlink(&place.outside, &place.tree).expect("writable");
        remove_tree(&place.tree, &|| true).expect("deleted");
        assert!(place.tree.symlink_metadata().is_err());
        assert_eq!(fs::read_to_string(place.outside.join("kept/file")).expect("it is there"), "kept");
    }

    #[test]
    fn modes_do_not_keep_the_owner_from_deleting() {
        let place = place();
        fs::create_dir_all(place.tree.join("a/b/c")).expect("writable");
        fs::write(place.tree.join("a/b/c/file"), "x").expect("writable");
        for (path, mode) in [("a/b/c", 0), ("a/b", 0o500), ("a", 0o600)] {
            fs::set_permissions(place.tree.join(path), Permissions::from_mode(mode)).expect("ours");
        }
        remove_tree(&place.tree, &|| true).expect("deleted");
        assert!(!place.tree.exists());
    }

    #[test]
    fn leftovers_of_an_interrupted_removal_are_no_obstacle() {
        let place = place();
        fs::create_dir_all(place.tree.join("0.elklet-removing/x/y")).expect("writable");
        fs::create_dir_all(place.tree.join("a/b/c")).expect("writable");
        fs::write(place.tree.join("1.elklet-removing"), "a file of that name").expect("writable");
        let interrupted = remove_tree(&place.tree, &|| false).expect_err("it may not go on");
        assert!(interrupted.to_string().contains("interrupted"), "{interrupted}");
        remove_tree(&place.tree, &|| true).expect("deleted");
        assert!(!place.tree.exists());
    }

    #[test]
    fn processes_that_rename_things_meanwhile_lead_it_nowhere() {
        let place = place();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Alternate between a directory and a link to what must be kept, and swap directories.
                let (a, b, aside) = (place.tree.join("x/a"), place.tree.join("x/b"), place.tree.join("x/aside"));
                while !stop.load(Ordering::Relaxed) {
                    let _ = fs::create_dir_all(a.join("deep/er"));
                    let _ = fs::rename(&a, &aside);
                    let _ = symlink(&place.outside, &a);
                    let _ = fs::rename(&aside, &b);
                    let _ = fs::rename(b.join("deep"), place.tree.join("x/up"));
                    let _ = fs::remove_file(&a);
                }
            });
            for _ in 0..100 {
                // It may well be filled again meanwhile.
                let _ = remove_tree(&place.tree, &|| true);
            }
            stop.store(true, Ordering::Relaxed);
        });
        remove_tree(&place.tree, &|| true).expect("deleted in peace");
        assert!(!place.tree.exists());
        assert_eq!(fs::read_to_string(place.outside.join("kept/file")).expect("it is there"), "kept");
    }
}
