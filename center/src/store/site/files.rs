//! Files that agents may fetch: what is known of them. The files themselves lie elsewhere.

use super::{Site, SiteError};
use rusqlite::{Row, params};

/// A file that somebody uploaded for agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The SHA-256 of its contents, in 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// What whoever uploaded it calls it.
    pub name: String,
    /// Its length.
    pub bytes: i64,
    /// When it came, in milliseconds since 1970.
    pub uploaded_ms: i64,
    /// Who uploaded it.
    pub uploaded_by: String,
}

/// The table of files.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a>(pub(super) &'a Site);

impl Files<'_> {
    /// Adds a file. One with the same contents that is there already gets the new name.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add(&self, file: &File) -> Result<(), SiteError> {
        let row = params![file.sha256, file.name, file.bytes, file.uploaded_ms, file.uploaded_by];
        self.0.change(|tx| tx.execute("INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5)", row).map(drop))
    }

    /// A file by the SHA-256 of its contents.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn get(&self, sha256: &str) -> Result<Option<File>, SiteError> {
        self.0.one("SELECT * FROM files WHERE sha256 = ?1", [sha256], file)
    }

    /// All files, newest first, at most 10,000.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self) -> Result<Vec<File>, SiteError> {
        self.0.list("SELECT * FROM files ORDER BY uploaded_ms DESC, sha256", [], file)
    }

    /// Forgets a file, and returns whether it was known.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove(&self, sha256: &str) -> Result<bool, SiteError> {
        self.0.change(|tx| Ok(tx.execute("DELETE FROM files WHERE sha256 = ?1", [sha256])? > 0))
    }
}

fn file(row: &Row<'_>) -> rusqlite::Result<File> {
    Ok(File {
        sha256: row.get(0)?,
        name: row.get(1)?,
        bytes: row.get(2)?,
        uploaded_ms: row.get(3)?,
        uploaded_by: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    #[test]
    fn files_are_known_after_a_restart_newest_first() {
        let file = |sha256: &str, name: &str, uploaded_ms| File {
            sha256: sha256.into(),
            name: name.into(),
            bytes: 3,
            uploaded_ms,
            uploaded_by: "ann".into(),
        };
        across_a_restart(
            |site| {
                for file in [file("a", "driver", 1), file("b", "gone", 2), file("c", "new", 3), file("a", "again", 4)] {
                    site.files().add(&file).unwrap();
                }
                assert!(site.files().remove("b").unwrap() && !site.files().remove("b").unwrap());
            },
            |site| {
                assert_eq!(site.files().list().unwrap(), [file("a", "again", 4), file("c", "new", 3)]);
                assert_eq!(site.files().get("c").unwrap(), Some(file("c", "new", 3)));
                assert_eq!(site.files().get("b").unwrap(), None);
            },
        );
    }
}
