//! The file tree from which the host is read.

use std::io;
use std::path::PathBuf;

use crate::files::read_bounded;

/// The root of the file tree that describes the host: `/`, or a directory that a test has filled.
///
/// Paths are those on the host (`/etc/os-release`). The system follows symbolic links inside the tree, so an absolute
/// link in a test's tree leads out of it.
#[derive(Debug, Clone)]
pub(crate) struct HostRoot {
    root: PathBuf,
}

impl HostRoot {
    /// The host that this process runs on.
    pub(crate) fn live() -> Self {
        Self::at("/")
    }

    /// A host whose files lie under `root`.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path of the host's `path` in this tree.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns true when something exists at `path`. A dangling link does not count.
    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The first `limit` bytes of the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub(crate) fn bytes(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        read_bounded(&self.path(path), limit)
    }

    /// The first `limit` bytes of the file at `path` as text. What is not UTF-8 is replaced, and a file that cannot be
    /// read is empty.
    pub(crate) fn text(&self, path: &str, limit: u64) -> String {
        self.bytes(path, limit).map(lossy).unwrap_or_default()
    }
}

/// Converts bytes to text, without copying them if they are UTF-8.
fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// A file tree for one test. Dropping it deletes it.
    #[derive(Debug)]
    pub(in crate::host) struct Tree {
        dir: tempfile::TempDir,
        host: HostRoot,
    }

    impl Tree {
        pub(in crate::host) fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let tree = Self { host: HostRoot::at(dir.path()), dir };
            for (path, content) in files {
                tree.write(path, content);
            }
            tree
        }

        pub(in crate::host) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
            let path = self.host.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        pub(in crate::host) fn host(&self) -> &HostRoot {
            &self.host
        }

        pub(in crate::host) fn path(&self) -> &Path {
            self.dir.path()
        }
    }

    #[test]
    fn reads_are_bounded() {
        let tree = Tree::new(&[("/proc/long", "0123456789")]);
        assert_eq!(tree.host().text("/proc/long", 4), "0123");
        assert_eq!(tree.host().text("/proc/long", 64), "0123456789");
    }

    #[test]
    fn what_cannot_be_read_is_empty() {
        let tree = Tree::new(&[("/etc/dir/file", "")]);
        assert!(tree.host().exists("/etc/dir"));
        assert!(!tree.host().exists("/etc/none"));
        assert_eq!(tree.host().text("/etc/none", 64), "");
        assert_eq!(tree.host().text("/etc/dir", 64), "");
    }

    #[test]
    fn text_that_is_not_utf8_is_replaced() {
        let tree = Tree::new(&[]);
        tree.write("/sys/odd", b"a\xffb");
        assert_eq!(tree.host().text("/sys/odd", 64), "a\u{fffd}b");
    }
}
