//! Who did what, from where, and what came of it.

use super::{Site, SiteError, rows};
use rusqlite::{Row, params};

/// The newest entries are kept, so many.
const KEPT: i64 = 100_000;

/// Something that somebody did, or was not allowed to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its number, in the order in which entries were appended.
    pub id: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Who.
    pub who: String,
    /// From which address.
    pub origin: String,
    /// What was done.
    pub action: String,
    /// To whom or what.
    pub object: String,
    /// With what.
    pub detail: String,
    /// What came of it.
    pub outcome: String,
}

/// The audit trail. Entries are never changed; the oldest beyond 100,000 are forgotten.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a>(pub(super) &'a Site);

impl Audit<'_> {
    /// Appends an entry, and returns its number; `id` is not looked at.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn append(&self, entry: &AuditEntry) -> Result<i64, SiteError> {
        self.0.change(|tx| {
            tx.execute(
                "INSERT INTO audit (at_ms, who, origin, action, object, detail, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![entry.at_ms, entry.who, entry.origin, entry.action, entry.object, entry.detail, entry.outcome],
            )?;
            let id = tx.last_insert_rowid();
            tx.execute("DELETE FROM audit WHERE id <= ?1", [id - KEPT])?;
            Ok(id)
        })
    }

    /// Entries, newest first, from the one before `before` on.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self, before: Option<i64>, limit: usize) -> Result<Vec<AuditEntry>, SiteError> {
        let sql = "SELECT * FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
        self.0.list(sql, params![before.unwrap_or(i64::MAX), rows(limit)], entry)
    }
}

fn entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    Ok(AuditEntry {
        id: row.get(0)?,
        at_ms: row.get(1)?,
        who: row.get(2)?,
        origin: row.get(3)?,
        action: row.get(4)?,
        object: row.get(5)?,
        detail: row.get(6)?,
        outcome: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    fn entry(id: i64) -> AuditEntry {
        AuditEntry {
            id,
            at_ms: 5,
            who: "ann".into(),
            origin: "127.0.0.1".into(),
            action: "task".into(),
            object: "a".into(),
            detail: "{}".into(),
            outcome: "sent".into(),
        }
    }

    #[test]
    fn the_trail_is_there_after_a_restart_newest_first() {
        across_a_restart(
            |site| {
                for id in 1..=5 {
                    assert_eq!(site.audit().append(&entry(0)).unwrap(), id);
                }
            },
            |site| {
                assert_eq!(site.audit().list(None, 2).unwrap(), [entry(5), entry(4)]);
                assert_eq!(site.audit().list(Some(4), 9).unwrap(), [entry(3), entry(2), entry(1)]);
            },
        );
    }

    #[test]
    fn the_trail_is_bounded() {
        across_a_restart(
            |site| {
                site.audit().append(&entry(0)).unwrap();
                let far = "UPDATE sqlite_sequence SET seq = 100000 WHERE name = 'audit'";
                site.change(|tx| tx.execute(far, []).map(|_| ())).unwrap();
                site.audit().append(&entry(0)).unwrap();
            },
            |site| assert_eq!(site.audit().list(None, 9).unwrap(), [entry(100_001)]),
        );
    }
}
