//! Who is signed in.

use super::{Site, SiteError};
use rusqlite::{Row, params};

/// A browser that somebody signed in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Tells the session's key when it is seen again. The key itself is with the browser alone.
    pub hash: String,
    /// Who signed in.
    pub user: String,
    /// When, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it was last used, in milliseconds since 1970.
    pub seen_ms: i64,
}

/// The table of sessions.
#[derive(Clone, Copy, Debug)]
pub struct Sessions<'a>(pub(super) &'a Site);

impl Sessions<'_> {
    /// Adds a session, or replaces the one of this hash.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set(&self, session: &Session) -> Result<(), SiteError> {
        self.0.change(|tx| {
            tx.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?1, ?2, ?3, ?4)",
                params![session.hash, session.user, session.created_ms, session.seen_ms],
            )?;
            Ok(())
        })
    }

    /// All sessions, by hash.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self) -> Result<Vec<Session>, SiteError> {
        self.0.list("SELECT * FROM sessions ORDER BY hash", [], session)
    }

    /// Removes sessions, all in one transaction.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove(&self, hashes: &[String]) -> Result<(), SiteError> {
        self.0.change(|tx| {
            let mut remove = tx.prepare_cached("DELETE FROM sessions WHERE hash = ?1")?;
            for hash in hashes {
                remove.execute([hash])?;
            }
            Ok(())
        })
    }
}

fn session(row: &Row<'_>) -> rusqlite::Result<Session> {
    Ok(Session { hash: row.get(0)?, user: row.get(1)?, created_ms: row.get(2)?, seen_ms: row.get(3)? })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    #[test]
    fn a_session_is_there_after_a_restart_until_it_is_removed() {
        let session = |hash: &str, seen_ms| Session { hash: hash.into(), user: "ann".into(), created_ms: 1, seen_ms };
        across_a_restart(
            |site| {
                for hash in ["a", "b", "c"] {
                    site.sessions().set(&session(hash, 2)).unwrap();
                }
                site.sessions().set(&session("a", 7)).unwrap();
                site.sessions().remove(&["b".into(), "nothing".into()]).unwrap();
            },
            |site| assert_eq!(site.sessions().list().unwrap(), [session("a", 7), session("c", 2)]),
        );
    }
}
