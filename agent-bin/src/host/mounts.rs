//! Finds where a file system is mounted, and how.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::root::HostRoot;
use crate::files::read_bounded;

/// Most bytes of the list of mounts that are read. A host with a thousand containers has some hundred KiB.
const LIST_LIMIT: u64 = 4 << 20;

/// A mount in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    /// True if no program on it can be executed.
    pub(crate) is_noexec: bool,
}

/// Returns the mount that a path lies on, or `None` if that is unknown.
pub(crate) fn mount_of(host: &HostRoot, path: &Path) -> Option<Mount> {
    let path = path.canonicalize().ok()?;
    let list = read_bounded(&host.path("/proc/self/mountinfo"), LIST_LIMIT).ok()?;
    let mounts = list.split(|byte| *byte == b'\n').filter_map(parse).filter(|mount| path.starts_with(&mount.point));
    // Of several mounts at one point, the last hides the others.
    mounts.max_by_key(|mount| mount.point.as_os_str().len())
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ').skip(4);
    let (point, options) = (fields.next()?, fields.next()?);
    let is_noexec = options.split(|byte| *byte == b',').any(|option| option == b"noexec");
    Some(Mount { point: unescaped(point), is_noexec })
}

/// Decodes a path in which blanks, newlines and backslashes are a backslash and three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        let escaped = behind.first_chunk::<3>().filter(|_| *first == b'\\');
        let value = escaped.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &behind[3..] } else { behind };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::root::tests::Tree;
    use super::*;

    #[test]
    fn the_longest_and_last_mount_point_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let top = directory.path().canonicalize().expect("it exists");
        fs::create_dir_all(top.join("a b/plugin")).expect("writable");
        fs::create_dir(top.join("a")).expect("writable");
        let shown = top.display();
        let list = format!(
            "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
             2 1 0:30 / {shown}/a\\040b rw - tmpfs tmpfs rw\n\
             3 1 0:31 / {shown}/a\\040b rw,nosuid,noexec,relatime shared:7 - tmpfs tmpfs rw,noexecutive\n\
             4 1 0:32 / {shown}/a\\04 rw - tmpfs tmpfs rw\n\
             nonsense\n\n5 4 3 2\n"
        );
        let tree = Tree::new(&[("proc/self/mountinfo", &list)]);
        let found = |path: &str| mount_of(tree.host(), &top.join(path)).expect("one of them");
        assert_eq!(found("a b/plugin"), Mount { point: top.join("a b"), is_noexec: true });
        assert_eq!(found("a"), Mount { point: "/".into(), is_noexec: false });
        assert_eq!(mount_of(tree.host(), &top.join("missing")), None);
        assert_eq!(mount_of(Tree::new(&[]).host(), &top), None);
    }
}
