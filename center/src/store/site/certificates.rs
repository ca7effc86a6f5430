//! Certificates that the center has issued to hosts.

use super::{Site, SiteError, rows};
use rusqlite::{Connection, Row, params};

/// Certificates are kept for so long after their end, in milliseconds.
const KEPT_AFTER_MS: i64 = 90 * 86_400_000;

/// A certificate of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its number, in the order in which they were issued.
    pub id: i64,
    /// Its serial number, in lower-case hexadecimal digits.
    pub serial: String,
    /// The agent that it is for.
    pub agent_id: String,
    /// The token with which its agent came. One that renews another has none.
    pub token: Option<i64>,
    /// When it was issued, in milliseconds since 1970.
    pub issued_ms: i64,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: i64,
    /// When it was revoked, in milliseconds since 1970.
    pub revoked_ms: Option<i64>,
    /// Who revoked it, or nothing.
    pub revoked_by: String,
}

/// The table of certificates.
#[derive(Clone, Copy, Debug)]
pub struct Certificates<'a>(pub(super) &'a Site);

impl Certificates<'_> {
    /// Adds a certificate; `id` is not looked at. Those that have been over for long are forgotten.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add(&self, certificate: &Certificate) -> Result<(), SiteError> {
        self.0.change(|tx| {
            insert(tx, certificate)?;
            tx.execute("DELETE FROM certificates WHERE expires_ms < ?1", [certificate.issued_ms - KEPT_AFTER_MS])?;
            Ok(())
        })
    }

    /// Certificates, the latest first, from the one before `before` on.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self, before: Option<i64>, limit: usize) -> Result<Vec<Certificate>, SiteError> {
        let sql = "SELECT * FROM certificates WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
        self.0.list(sql, params![before.unwrap_or(i64::MAX), rows(limit)], certificate)
    }

    /// An agent's certificates, the latest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn of(&self, agent_id: &str, limit: usize) -> Result<Vec<Certificate>, SiteError> {
        let sql = "SELECT * FROM certificates WHERE agent_id = ?1 ORDER BY id DESC LIMIT ?2";
        self.0.list(sql, params![agent_id, rows(limit)], certificate)
    }

    /// The serial numbers of those that are revoked.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn revoked(&self) -> Result<Vec<String>, SiteError> {
        let db = super::lock(&self.0.db);
        let mut find = db.prepare("SELECT serial FROM certificates WHERE revoked_ms IS NOT NULL")?;
        Ok(find.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
    }

    /// Revokes all certificates of an agent that are not revoked yet, and returns their serial numbers.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn revoke(&self, agent_id: &str, by: &str, now_ms: i64) -> Result<Vec<String>, SiteError> {
        self.0.change(|tx| {
            let sql = "UPDATE certificates SET revoked_ms = ?2, revoked_by = ?3 WHERE agent_id = ?1 AND revoked_ms IS NULL \
                       RETURNING serial";
            let mut revoke = tx.prepare(sql)?;
            revoke.query_map(params![agent_id, now_ms, by], |row| row.get(0))?.collect()
        })
    }
}

/// Returns true if an agent has a certificate that is neither over nor revoked.
pub(super) fn is_live(db: &Connection, agent_id: &str, now_ms: i64) -> rusqlite::Result<bool> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM certificates WHERE agent_id = ?1 AND expires_ms > ?2 AND revoked_ms IS NULL)";
    db.query_row(sql, params![agent_id, now_ms], |row| row.get(0))
}

pub(super) fn insert(db: &Connection, certificate: &Certificate) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO certificates (serial, agent_id, token, issued_ms, expires_ms, revoked_by) VALUES (?1, ?2, ?3, ?4, ?5, '')",
        params![certificate.serial, certificate.agent_id, certificate.token, certificate.issued_ms, certificate.expires_ms],
    )?;
    Ok(())
}

fn certificate(row: &Row<'_>) -> rusqlite::Result<Certificate> {
    Ok(Certificate {
        id: row.get(0)?,
        serial: row.get(1)?,
        agent_id: row.get(2)?,
        token: row.get(3)?,
        issued_ms: row.get(4)?,
        expires_ms: row.get(5)?,
        revoked_ms: row.get(6)?,
        revoked_by: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    fn certificate(serial: &str, agent_id: &str, issued_ms: i64) -> Certificate {
        Certificate {
            id: 0,
            serial: serial.into(),
            agent_id: agent_id.into(),
            token: None,
            issued_ms,
            expires_ms: issued_ms + 10,
            revoked_ms: None,
            revoked_by: String::new(),
        }
    }

    #[test]
    fn what_is_revoked_stays_so_after_a_restart_and_what_is_long_over_is_forgotten() {
        across_a_restart(
            |site| {
                for (serial, agent) in [("1", "a"), ("2", "a"), ("3", "b")] {
                    site.certificates().add(&certificate(serial, agent, 5)).unwrap();
                }
                assert_eq!(site.certificates().revoke("a", "ann", 6).unwrap(), ["1", "2"]);
                assert!(site.certificates().revoke("a", "ann", 7).unwrap().is_empty());
            },
            |site| {
                let found = site.certificates().of("a", 1).unwrap();
                assert_eq!((&*found[0].serial, found[0].revoked_ms, &*found[0].revoked_by), ("2", Some(6), "ann"));
                assert_eq!(site.certificates().revoked().unwrap(), ["1", "2"]);
                assert_eq!(site.certificates().list(Some(3), 9).unwrap().len(), 2);
                site.certificates().add(&certificate("4", "a", 16 + KEPT_AFTER_MS)).unwrap();
                let left: Vec<_> =
                    site.certificates().list(None, 9).unwrap().into_iter().map(|one| one.serial).collect();
                assert_eq!(left, ["4"]);
            },
        );
    }
}
