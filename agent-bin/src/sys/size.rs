//! Measures what a directory holds, within bounds on the walk.
//!
//! Processes that still run may rename things in the tree meanwhile. The walk therefore works only through descriptors, as
//! [`super::remove`] does, and neither follows a link nor enters another file system: wherever it is sent, it measures nothing
//! outside. A process that moves files about while they are measured can keep some of them from being counted.

use std::ffi::CStr;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::remove::{DIRECTORY, is_dots};

/// Most entries that one measurement looks at. The agent's directory has some hundreds; a walk has to end soon wherever it
/// is sent.
pub(crate) const MAX_ENTRIES: usize = 20_000;

/// Most levels that a measurement enters, the directory itself included. Plugins' directories have some five levels. Each
/// takes a descriptor.
pub(crate) const MAX_LEVELS: usize = 16;

/// Bytes of one block as `stat` counts them, whatever the blocks of the file system are.
const BLOCK_BYTES: u64 = 512;

/// What a directory holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// The sum of the lengths of the regular files.
    pub(crate) lengths: u64,
    /// The bytes that everything takes on the disk: a sparse file less than its length, a small file more, a file with
    /// several names once. A file that was deleted and is still open takes room too, but has no name by which to find it.
    pub(crate) on_disk: u64,
    /// False if there is more than this: more entries or levels than are looked at, or a directory that may not be read.
    pub(crate) is_whole: bool,
}

/// Measures what is below `dir`, but for directories with the name `skipped`. What has gone meanwhile, or cannot be read,
/// counts as nothing. Blocks.
pub(crate) fn measure(dir: &Path, skipped: Option<&CStr>) -> Size {
    let size = Size { lengths: 0, on_disk: 0, is_whole: true };
    // The directory itself may be a link to another disk.
    let opened = openat(CWD, dir, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty());
    let Ok(top) = opened else { return size };
    let Ok(found) = fstat(&top) else { return size };
    let mut walk = Walk { device: found.st_dev, skipped, entries_left: MAX_ENTRIES, linked: Vec::new(), size };
    if let Ok(entries) = Dir::new(top) {
        walk.enter(entries, 1);
    }
    walk.size
}

struct Walk<'a> {
    device: u64,
    skipped: Option<&'a CStr>,
    entries_left: usize,
    /// The files with several names that were counted, in order.
    linked: Vec<u64>,
    size: Size,
}

impl Walk<'_> {
    /// Visits a directory and those in it. The bound on levels bounds the stack.
    fn enter(&mut self, mut entries: Dir, level: usize) {
        while let Some(Ok(entry)) = entries.read() {
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let Some(entries_left) = self.entries_left.checked_sub(1) else {
                self.size.is_whole = false;
                return;
            };
            self.entries_left = entries_left;
            let Ok(directory) = entries.fd() else { return };
            let Ok(found) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if found.st_dev != self.device {
                continue;
            }
            let kind = FileType::from_raw_mode(found.st_mode);
            if kind == FileType::Directory && self.skipped == Some(name) {
                continue;
            }
            self.count(kind, &found);
            if kind != FileType::Directory {
                continue;
            }
            if level == MAX_LEVELS {
                self.size.is_whole = false;
                continue;
            }
            match openat(directory, name, DIRECTORY, Mode::empty()) {
                Ok(child) => {
                    // Something else may be in its place by now.
                    if fstat(&child).is_ok_and(|found| found.st_dev == self.device)
                        && let Ok(entries) = Dir::new(child)
                    {
                        self.enter(entries, level + 1);
                    }
                }
                Err(Errno::ACCESS) => self.size.is_whole = false,
                Err(_) => {}
            }
        }
    }

    fn count(&mut self, kind: FileType, found: &Stat) {
        if kind == FileType::RegularFile {
            self.size.lengths = self.size.lengths.saturating_add(u64::try_from(found.st_size).unwrap_or(0));
            if found.st_nlink > 1 {
                match self.linked.binary_search(&found.st_ino) {
                    Ok(_) => return,
                    Err(at) => self.linked.insert(at, found.st_ino),
                }
            }
        }
        let blocks = u64::try_from(found.st_blocks).unwrap_or(0);
        self.size.on_disk = self.size.on_disk.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn tree(files: &[(&str, usize)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().expect("a directory");
        for (name, length) in files {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
            fs::write(path, vec![b'x'; *length]).expect("writable");
        }
        tree
    }

    fn lengths(dir: &Path) -> u64 {
        measure(dir, None).lengths
    }

    #[test]
    fn files_are_summed_and_some_directories_left_out_when_asked() {
        let tree = tree(&[("a", 5), ("log/b", 3), ("plugin/x/x", 7), ("log/plugin/c", 1)]);
        assert_eq!(lengths(tree.path()), 16);
        assert_eq!(measure(tree.path(), Some(c"plugin")).lengths, 8);
        fs::create_dir(tree.path().join("deep")).expect("writable");
        fs::write(tree.path().join("deep/plugin"), "a file of that name counts").expect("writable");
        assert_eq!(measure(tree.path(), Some(c"plugin")).lengths, 8 + 26);
        assert!(measure(tree.path(), None).is_whole);
        let nowhere = measure(Path::new("/nonexistent/dir"), None);
        assert_eq!((nowhere.lengths, nowhere.on_disk, nowhere.is_whole), (0, 0, true));
    }

    #[test]
    fn links_lead_nowhere_but_the_directory_itself_may_be_one() {
        let tree = tree(&[("wd/a", 2), ("outside/big", 1 << 20)]);
        let wd = tree.path().join("wd");
        for (to, name) in [("outside", "dir"), ("outside/big", "file"), ("wd", "loop")] {
            symlink(tree.path().join(to), wd.join(name)).expect("writable");
        }
        symlink("/", wd.join("root")).expect("writable");
        let size = measure(&wd, None);
        assert!(size.lengths == 2 && size.on_disk < 100 << 10 && size.is_whole, "{size:?}");
        symlink(&wd, tree.path().join("link")).expect("writable");
        assert_eq!(lengths(&tree.path().join("link")), 2);
    }

    #[test]
    fn files_count_for_what_they_take_and_once() {
        let tree = tree(&[("data", 1 << 20), ("small", 1)]);
        let path = tree.path().join("data");
        let blocks = |name: &str| fs::metadata(tree.path().join(name)).expect("it is there").blocks() * BLOCK_BYTES;
        let expected = blocks("data") + blocks("small");
        assert!(blocks("data") >= 1 << 20, "this file system compresses, or counts late: {expected}");
        assert_eq!(measure(tree.path(), None).on_disk, expected);
        for name in ["again", "sub"] {
            fs::hard_link(&path, tree.path().join(name)).expect("writable");
        }
        assert_eq!(measure(tree.path(), None).on_disk, expected, "three names, one file");
        let sparse = File::create(tree.path().join("sparse")).expect("writable");
        sparse.set_len(1 << 40).expect("it takes no room");
        let size = measure(tree.path(), None);
        assert_eq!(size.on_disk, expected + blocks("sparse"));
        assert!(size.lengths > 1 << 40 && size.on_disk < 4 << 20, "{size:?}");
    }

    #[test]
    fn a_tree_beyond_the_bounds_is_not_whole() {
        let deep = |levels: usize| format!("{}file", "d/".repeat(levels));
        let whole = tree(&[(&deep(MAX_LEVELS - 1), 2)]);
        let size = measure(whole.path(), None);
        assert!(size.lengths == 2 && size.is_whole, "{size:?}");
        let deeper = tree(&[(&deep(MAX_LEVELS - 1), 2), (&deep(MAX_LEVELS), 4)]);
        let size = measure(deeper.path(), None);
        assert!(size.lengths == 2 && !size.is_whole, "{size:?}");

        let wide = tree(&[]);
        let names = (0..=MAX_ENTRIES).map(|number| wide.path().join(number.to_string()));
        names.for_each(|path| drop(File::create(path).expect("writable")));
        assert!(!measure(wide.path(), None).is_whole);
        fs::remove_file(wide.path().join("0")).expect("writable");
        assert!(measure(wide.path(), None).is_whole);
    }

    #[test]
    fn what_may_not_be_read_is_not_whole() {
        let tree = tree(&[("closed/file", 1)]);
        let closed = tree.path().join("closed");
        fs::set_permissions(tree.path(), Permissions::from_mode(0o755)).expect("ours");
        fs::set_permissions(&closed, Permissions::from_mode(0o000)).expect("ours");
        let path = tree.path().to_owned();
        // Root reads everything, so a thread of root's becomes somebody else.
        let measured = std::thread::spawn(move || {
            if rustix::process::getuid().is_root() {
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may");
            }
            measure(&path, None)
        });
        assert!(!measured.join().expect("it ends").is_whole);
        fs::set_permissions(&closed, Permissions::from_mode(0o700)).expect("ours");
    }
}
