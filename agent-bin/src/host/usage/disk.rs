//! Measures how much a directory holds.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most directory entries that one measurement looks at. The agent's directory has some hundreds; a walk has to end
/// soon wherever it is sent.
const ENTRY_LIMIT: usize = 20_000;

/// Most levels that a measurement enters. Plugins' directories have some five levels.
const DEPTH_LIMIT: usize = 16;

/// The directories that the agent's own `du` leaves out (generation C), because each plugin reports its own.
const PLUGIN_DIR: &str = "plugin";

/// Returns the sum of the lengths of the regular files below `dir`, in bytes.
///
/// With `skip_plugins`, it leaves out directories named `plugin`. It does not follow links or enter other file systems
/// (such as a cgroup mounted below the working directory). A walk that reaches its limits, 20,000 entries or 16 levels,
/// returns the bytes found so far. What cannot be read counts as nothing.
pub(in crate::host) fn directory_bytes(dir: &Path, skip_plugins: bool) -> u64 {
    let Ok(meta) = fs::metadata(dir) else { return 0 };
    let mut walk = Walk { device: meta.dev(), skip_plugins, entries_left: ENTRY_LIMIT, bytes: 0 };
    walk.run(dir.to_owned());
    walk.bytes
}

struct Walk {
    device: u64,
    skip_plugins: bool,
    entries_left: usize,
    bytes: u64,
}

impl Walk {
    /// Visits one directory after another. Directories still to be visited wait in a list, which has the same bound as
    /// the entries. One descriptor is open at a time.
    fn run(&mut self, dir: PathBuf) {
        let mut waiting = vec![(dir, 1)];
        while let Some((dir, depth)) = waiting.pop() {
            let Ok(entries) = fs::read_dir(dir) else { continue };
            for entry in entries.flatten() {
                let Some(entries_left) = self.entries_left.checked_sub(1) else { return };
                self.entries_left = entries_left;
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_file() {
                    self.bytes = self.bytes.saturating_add(meta.len());
                } else if meta.is_dir()
                    && depth < DEPTH_LIMIT
                    && meta.dev() == self.device
                    && !(self.skip_plugins && entry.file_name() == PLUGIN_DIR)
                {
                    waiting.push((entry.path(), depth + 1));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::root::tests::Tree;
    use super::*;

    #[test]
    fn files_are_summed_and_plugins_skipped_when_asked() {
        let tree = Tree::new(&[("a", "12345"), ("log/b", "123"), ("plugin/x/x", "1234567"), ("log/plugin/c", "1")]);
        assert_eq!(directory_bytes(tree.path(), false), 16);
        assert_eq!(directory_bytes(tree.path(), true), 8);
        tree.write("log/deep/plugin", "a file of that name counts");
        assert_eq!(directory_bytes(tree.path(), true), 8 + 26);
    }

    #[test]
    fn links_are_not_followed() {
        let tree = Tree::new(&[("wd/a", "12"), ("outside/big", "1234567890")]);
        std::os::unix::fs::symlink(tree.path().join("outside"), tree.path().join("wd/dir")).unwrap();
        std::os::unix::fs::symlink(tree.path().join("outside/big"), tree.path().join("wd/file")).unwrap();
        std::os::unix::fs::symlink(tree.path().join("wd"), tree.path().join("wd/loop")).unwrap();
        assert_eq!(directory_bytes(&tree.path().join("wd"), false), 2);
    }

    #[test]
    fn depth_and_entries_are_bounded() {
        let deep = |levels: usize| format!("{}file", "d/".repeat(levels));
        let tree = Tree::new(&[(&deep(DEPTH_LIMIT - 1), "12"), (&deep(DEPTH_LIMIT), "1234")]);
        assert_eq!(directory_bytes(tree.path(), false), 2);
        let mut walk =
            Walk { device: fs::metadata(tree.path()).unwrap().dev(), skip_plugins: false, entries_left: 3, bytes: 0 };
        for n in 0..10 {
            tree.write(&format!("{n}"), "1");
        }
        walk.run(tree.path().to_owned());
        assert!(walk.bytes <= 3 && walk.entries_left == 0);
    }

    #[test]
    fn what_is_not_there_is_empty() {
        assert_eq!(directory_bytes(Path::new("/nonexistent/dir"), false), 0);
    }
}
