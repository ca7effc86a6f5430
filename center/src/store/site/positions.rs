//! How far records were passed on, by name of where to.

use super::{Site, SiteError};
use rusqlite::params;

/// The table of positions.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a>(pub(super) &'a Site);

impl Positions<'_> {
    /// Keeps a position of a [`Follower`](crate::store::Follower).
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set(&self, name: &str, position: u64) -> Result<(), SiteError> {
        let sql = "INSERT INTO positions VALUES (?1, ?2) ON CONFLICT DO UPDATE SET position = excluded.position";
        self.0.change(|tx| tx.execute(sql, params![name, position.cast_signed()]).map(|_| ()))
    }

    /// The position that was kept last.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<u64>, SiteError> {
        let sql = "SELECT position FROM positions WHERE name = ?1";
        Ok(self.0.one(sql, [name], |row| row.get::<_, i64>(0))?.map(i64::cast_unsigned))
    }

    /// Forgets a position, and returns whether it was known.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove(&self, name: &str) -> Result<bool, SiteError> {
        self.0.change(|tx| Ok(tx.execute("DELETE FROM positions WHERE name = ?1", [name])? > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;

    #[test]
    fn a_position_is_there_after_a_restart() {
        across_a_restart(
            |site| {
                for position in [1, 1 << 41] {
                    site.positions().set("kafka", position).unwrap();
                }
                site.positions().set("syslog", 3).unwrap();
                assert!(site.positions().remove("syslog").unwrap());
            },
            |site| {
                assert_eq!(site.positions().get("kafka").unwrap(), Some(1 << 41));
                assert_eq!(site.positions().get("syslog").unwrap(), None);
            },
        );
    }
}
