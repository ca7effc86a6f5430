//! Files that agents sent: what is known of them. The files themselves lie elsewhere.

use super::{Site, SiteError, rows};
use rusqlite::{Row, params};

/// A file that an agent sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Its number, in the order in which uploads were added.
    pub id: i64,
    /// Which task asked for it.
    pub token: String,
    /// Whose file it is.
    pub agent_id: String,
    /// Where it lay on the host.
    pub path: String,
    /// What it is called here.
    pub file: String,
    /// How many bytes arrived.
    pub bytes: i64,
    /// Why it is not whole; empty if it is.
    pub error: String,
    /// When it came, in milliseconds since 1970.
    pub received_ms: i64,
}

/// The table of uploads.
#[derive(Clone, Copy, Debug)]
pub struct Uploads<'a>(pub(super) &'a Site);

impl Uploads<'_> {
    /// Adds an upload, and returns its number; `id` is not looked at.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add(&self, upload: &Upload) -> Result<i64, SiteError> {
        self.0.change(|tx| {
            tx.execute(
                "INSERT INTO uploads (token, agent_id, path, file, bytes, error, received_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    upload.token,
                    upload.agent_id,
                    upload.path,
                    upload.file,
                    upload.bytes,
                    upload.error,
                    upload.received_ms
                ],
            )?;
            Ok(tx.last_insert_rowid())
        })
    }

    /// An upload by its number.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn get(&self, id: i64) -> Result<Option<Upload>, SiteError> {
        self.0.one("SELECT * FROM uploads WHERE id = ?1", [id], upload)
    }

    /// The newest upload for a task.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn of_token(&self, token: &str) -> Result<Option<Upload>, SiteError> {
        self.0.one("SELECT * FROM uploads WHERE token = ?1 ORDER BY id DESC LIMIT 1", [token], upload)
    }

    /// Uploads, newest first, from the one before `before` on.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self, before: Option<i64>, limit: usize) -> Result<Vec<Upload>, SiteError> {
        let sql = "SELECT * FROM uploads WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
        self.0.list(sql, params![before.unwrap_or(i64::MAX), rows(limit)], upload)
    }

    /// Bytes of all files together.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn bytes(&self) -> Result<i64, SiteError> {
        let sum = self.0.one("SELECT COALESCE(SUM(bytes), 0) FROM uploads WHERE error = ''", [], |row| row.get(0))?;
        Ok(sum.unwrap_or_default())
    }

    /// The oldest upload, and how many there are.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn oldest(&self) -> Result<Option<(Upload, i64)>, SiteError> {
        let sql = "SELECT *, (SELECT COUNT(*) FROM uploads) FROM uploads ORDER BY id LIMIT 1";
        self.0.one(sql, [], |row| Ok((upload(row)?, row.get(8)?)))
    }

    /// Forgets an upload, whose file the caller has removed, and returns whether it was known.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove(&self, id: i64) -> Result<bool, SiteError> {
        self.0.change(|tx| Ok(tx.execute("DELETE FROM uploads WHERE id = ?1", [id])? > 0))
    }
}

fn upload(row: &Row<'_>) -> rusqlite::Result<Upload> {
    Ok(Upload {
        id: row.get(0)?,
        token: row.get(1)?,
        agent_id: row.get(2)?,
        path: row.get(3)?,
        file: row.get(4)?,
        bytes: row.get(5)?,
        error: row.get(6)?,
        received_ms: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    fn upload(id: i64, token: &str) -> Upload {
        Upload {
            id,
            token: token.into(),
            agent_id: "a".into(),
            path: "/etc/hosts".into(),
            file: format!("file of {token}"),
            bytes: 7,
            error: String::new(),
            received_ms: 5,
        }
    }

    #[test]
    fn an_upload_is_known_after_a_restart_until_it_is_removed() {
        across_a_restart(
            |site| {
                for token in ["t1", "t2", "t2"] {
                    site.uploads().add(&upload(0, token)).unwrap();
                }
                assert!(site.uploads().remove(1).unwrap());
                site.uploads().add(&Upload { error: "broke off".into(), ..upload(0, "t9") }).unwrap();
            },
            |site| {
                assert_eq!(site.uploads().get(1).unwrap(), None);
                assert_eq!(site.uploads().get(2).unwrap(), Some(upload(2, "t2")));
                assert_eq!(site.uploads().of_token("t2").unwrap(), Some(upload(3, "t2")));
                assert_eq!(site.uploads().list(Some(4), 9).unwrap(), [upload(3, "t2"), upload(2, "t2")]);
                assert_eq!(site.uploads().list(Some(3), 9).unwrap(), [upload(2, "t2")]);
                assert_eq!(site.uploads().bytes(), Ok(14), "without those that are not whole");
                assert_eq!(site.uploads().oldest().unwrap(), Some((upload(2, "t2"), 3)));
                assert_eq!(site.uploads().add(&upload(0, "t3")).unwrap(), 5, "a number is not given twice");
            },
        );
    }
}
