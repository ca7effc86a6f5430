//! Names of users, only from /etc/passwd, because a static binary has no name service to ask.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The password file as it was at the last look.
pub(crate) struct Users {
    file: PathBuf,
    modified: Option<SystemTime>,
    /// When it was last checked, in seconds since 1970.
    checked: i64,
    /// Names by number. As with getpwuid(3), the first of several users with one number counts.
    names: Vec<(u32, Box<str>)>,
}

impl Users {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.into(), modified: None, checked: i64::MIN, names: Vec::new() }
    }

    /// Returns the user's name at the time `now`, in seconds. Checks at most once in a second whether the file has changed.
    pub(crate) fn name(&mut self, uid: u32, now: i64) -> Option<&str> {
        if self.checked != now {
            self.checked = now;
            self.refresh();
        }
        let at = self.names.binary_search_by_key(&uid, |(uid, _)| *uid).ok()?;
        self.names.get(at).map(|(_, name)| &**name)
    }

    fn refresh(&mut self) {
        let modified = fs::metadata(&self.file).and_then(|metadata| metadata.modified()).ok();
        if modified.is_some() && modified == self.modified {
            return;
        }
        self.modified = modified;
        self.names = fs::read(&self.file).map(|file| parse(&file)).unwrap_or_default();
    }
}

/// Parses lines `name:password:uid:...`, and skips others.
fn parse(file: &[u8]) -> Vec<(u32, Box<str>)> {
    let mut names: Vec<(u32, Box<str>)> = String::from_utf8_lossy(file)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some((uid, name.into()))
        })
        .collect();
    // A stable sort keeps the first user of a number first, and only that one is kept.
    names.sort_by_key(|(uid, _)| *uid);
    names.dedup_by_key(|(uid, _)| *uid);
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::Duration;

    #[test]
    fn the_first_name_of_a_number_counts() {
        let file = b"root:x:0:0::/root:/bin/sh\n# remark\nwww:x:33\n:x:34:\ntoor:x:0:0\nbad:x:many:0\nx\n";
        assert_eq!(parse(file), [(0, "root".into()), (33, "www".into())]);
    }

    #[test]
    fn a_changed_file_is_read_again_in_the_next_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        let mut users = Users::new(&path);
        assert_eq!(users.name(5, 1), None);
        fs::write(&path, "a:x:5:").unwrap();
        assert_eq!(users.name(5, 1), None);
        assert_eq!(users.name(5, 2), Some("a"));
        fs::write(&path, "b:x:5:").unwrap();
        // Two writes may fall into one tick of the file system's clock.
        let later = SystemTime::now() + Duration::from_secs(5);
        File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(users.name(5, 2), Some("a"));
        assert_eq!(users.name(5, 3), Some("b"));
    }
}
