//! Plugins on their way to agents, step by step.

use super::{Site, SiteError, rows};
use rusqlite::{Row, params};

/// So many rollouts that have ended are kept, the newest ones.
const KEPT: i64 = 200;

/// A rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Its number, in the order in which rollouts began.
    pub id: i64,
    /// True until it has ended.
    pub active: bool,
    /// Everything else. The store does not look into it.
    pub body: String,
}

/// The table of rollouts.
#[derive(Clone, Copy, Debug)]
pub struct Rollouts<'a>(pub(super) &'a Site);

impl Rollouts<'_> {
    /// Adds a rollout, and returns its number.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add(&self, body: &str) -> Result<i64, SiteError> {
        self.0.change(|tx| {
            tx.execute("INSERT INTO rollouts (active, body) VALUES (1, ?1)", [body])?;
            let id = tx.last_insert_rowid();
            let old = "SELECT id FROM rollouts WHERE active = 0 ORDER BY id DESC LIMIT -1 OFFSET ?1";
            tx.execute(&format!("DELETE FROM rollouts WHERE id IN ({old})"), [KEPT])?;
            Ok(id)
        })
    }

    /// Replaces a rollout by what has become of it.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn update(&self, rollout: &Rollout) -> Result<(), SiteError> {
        let row = params![rollout.id, rollout.active, rollout.body];
        self.0.change(|tx| tx.execute("UPDATE rollouts SET active = ?2, body = ?3 WHERE id = ?1", row).map(drop))
    }

    /// A rollout by its number.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn get(&self, id: i64) -> Result<Option<Rollout>, SiteError> {
        self.0.one("SELECT * FROM rollouts WHERE id = ?1", [id], rollout)
    }

    /// Rollouts, newest first, from the one before `before` on.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self, before: Option<i64>, limit: usize) -> Result<Vec<Rollout>, SiteError> {
        let sql = "SELECT * FROM rollouts WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
        self.0.list(sql, params![before.unwrap_or(i64::MAX), rows(limit)], rollout)
    }

    /// Those that have not ended, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn active(&self) -> Result<Vec<Rollout>, SiteError> {
        self.0.list("SELECT * FROM rollouts WHERE active = 1 ORDER BY id", [], rollout)
    }
}

fn rollout(row: &Row<'_>) -> rusqlite::Result<Rollout> {
    Ok(Rollout { id: row.get(0)?, active: row.get(1)?, body: row.get(2)? })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    #[test]
    fn what_has_not_ended_is_there_after_a_restart_and_some_of_what_has() {
        let rollout = |id, active, body: &str| Rollout { id, active, body: body.into() };
        across_a_restart(
            |site| {
                for id in 1..=3 {
                    assert_eq!(site.rollouts().add("new").unwrap(), id);
                }
                site.rollouts().update(&rollout(2, false, "done")).unwrap();
            },
            |site| {
                let (one, two, three) = (rollout(1, true, "new"), rollout(2, false, "done"), rollout(3, true, "new"));
                assert_eq!(site.rollouts().active().unwrap(), [one.clone(), three.clone()]);
                assert_eq!(site.rollouts().list(None, 2).unwrap(), [three, two.clone()]);
                assert_eq!(site.rollouts().list(Some(2), 9).unwrap(), [one]);
                assert_eq!(site.rollouts().get(2).unwrap(), Some(two));
            },
        );
    }

    #[test]
    fn rollouts_that_ended_long_ago_are_forgotten() {
        let site = Site::in_memory().unwrap();
        let first = site.rollouts().add("under way").unwrap();
        for _ in 0..KEPT + 5 {
            let id = site.rollouts().add("").unwrap();
            site.rollouts().update(&Rollout { id, active: false, body: String::new() }).unwrap();
        }
        site.rollouts().add("").unwrap();
        assert_eq!(site.rollouts().list(None, 1_000).unwrap().len(), 202);
        assert_eq!(site.rollouts().get(first).unwrap().map(|rollout| rollout.active), Some(true));
    }
}
