//! What agents should run, and what they should have run before.

use super::{Site, SiteError, lock};
use rusqlite::{Row, params};

/// So many versions of a scope are kept.
const KEPT: i64 = 50;

/// The body of a scope that has no configuration any more.
pub const NOTHING: &str = "null";

/// So many scopes without a configuration keep their versions, those that were changed last.
const KEPT_EMPTY: i64 = 1_000;

const NEWEST: &str = "SELECT * FROM configs AS c WHERE version = (SELECT max(version) FROM configs WHERE scope = c.scope) ORDER BY scope";

const FORGET_EMPTY: &str = "DELETE FROM configs WHERE scope IN (
  SELECT scope FROM configs AS c
  WHERE version = (SELECT max(version) FROM configs WHERE scope = c.scope) AND body = ?1
  ORDER BY changed_ms DESC LIMIT -1 OFFSET ?2)";

/// A desired configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whom it is for, in the caller's words: all hosts, a group, one agent.
    pub scope: String,
    /// Counts the changes of the scope, from 1.
    pub version: i64,
    /// The configuration. The store does not look into it.
    pub body: String,
    /// Who set it.
    pub changed_by: String,
    /// When, in milliseconds since 1970.
    pub changed_ms: i64,
}

/// The table of configurations.
#[derive(Clone, Copy, Debug)]
pub struct Configs<'a>(pub(super) &'a Site);

impl Configs<'_> {
    /// Sets the configuration of a scope, and returns its version. The last fifty versions are kept.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set(&self, scope: &str, body: &str, changed_by: &str, changed_ms: i64) -> Result<i64, SiteError> {
        self.0.change(|tx| {
            let newest = "SELECT coalesce(max(version), 0) + 1 FROM configs WHERE scope = ?1";
            let version: i64 = tx.query_row(newest, [scope], |row| row.get(0))?;
            tx.execute(
                "INSERT INTO configs VALUES (?1, ?2, ?3, ?4, ?5)",
                params![scope, version, body, changed_by, changed_ms],
            )?;
            tx.execute("DELETE FROM configs WHERE scope = ?1 AND version <= ?2", params![scope, version - KEPT])?;
            if body == NOTHING {
                tx.execute(FORGET_EMPTY, params![NOTHING, KEPT_EMPTY])?;
            }
            Ok(version)
        })
    }

    /// The configuration of a scope.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn get(&self, scope: &str) -> Result<Option<Config>, SiteError> {
        self.0.one("SELECT * FROM configs WHERE scope = ?1 ORDER BY version DESC LIMIT 1", [scope], config)
    }

    /// A version of a scope, if it is still kept.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn version(&self, scope: &str, version: i64) -> Result<Option<Config>, SiteError> {
        self.0.one("SELECT * FROM configs WHERE scope = ?1 AND version = ?2", params![scope, version], config)
    }

    /// The configurations of all scopes, by scope. Whoever sets them bounds how many there are.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self) -> Result<Vec<Config>, SiteError> {
        let db = lock(&self.0.db);
        let mut find = db.prepare(NEWEST)?;
        Ok(find.query_map([], config)?.collect::<rusqlite::Result<_>>()?)
    }

    /// The versions of a scope that are kept, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn history(&self, scope: &str) -> Result<Vec<Config>, SiteError> {
        self.0.list("SELECT * FROM configs WHERE scope = ?1 ORDER BY version DESC", [scope], config)
    }

    /// Puts an agent into a group, or takes it out of its group.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set_member(&self, agent_id: &str, group: Option<&str>) -> Result<(), SiteError> {
        self.0.change(|tx| match group {
            Some(group) => {
                let sql = "INSERT INTO members VALUES (?1, ?2) ON CONFLICT DO UPDATE SET in_group = excluded.in_group";
                tx.execute(sql, [agent_id, group]).map(drop)
            }
            None => tx.execute("DELETE FROM members WHERE agent_id = ?1", [agent_id]).map(drop),
        })
    }

    /// The group of each agent that is in one. Whoever sets them bounds how many there are.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn members(&self) -> Result<Vec<(String, String)>, SiteError> {
        let db = lock(&self.0.db);
        let mut find = db.prepare("SELECT agent_id, in_group FROM members")?;
        Ok(find.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?)
    }

    /// Forgets a scope with all its versions, and returns whether it was known.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove(&self, scope: &str) -> Result<bool, SiteError> {
        self.0.change(|tx| Ok(tx.execute("DELETE FROM configs WHERE scope = ?1", [scope])? > 0))
    }
}

fn config(row: &Row<'_>) -> rusqlite::Result<Config> {
    Ok(Config {
        scope: row.get(0)?,
        version: row.get(1)?,
        body: row.get(2)?,
        changed_by: row.get(3)?,
        changed_ms: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    #[test]
    fn a_configuration_is_there_after_a_restart_and_so_are_fifty_before_it() {
        across_a_restart(
            |site| {
                for change in 1..=60 {
                    assert_eq!(site.configs().set("all", &format!("body {change}"), "ann", change).unwrap(), change);
                }
                assert_eq!(site.configs().set("group/edge", "edge", "bob", 7).unwrap(), 1);
                assert_eq!(site.configs().set("gone", "gone", "bob", 7).unwrap(), 1);
                assert!(site.configs().remove("gone").unwrap());
            },
            |site| {
                let body = |version: i64| Config {
                    scope: "all".into(),
                    version,
                    body: format!("body {version}"),
                    changed_by: "ann".into(),
                    changed_ms: version,
                };
                assert_eq!(site.configs().get("all").unwrap(), Some(body(60)));
                assert_eq!(site.configs().get("gone").unwrap(), None);
                assert_eq!(site.configs().history("all").unwrap(), (11..=60).rev().map(body).collect::<Vec<_>>());
                let scopes: Vec<String> =
                    site.configs().list().unwrap().into_iter().map(|config| config.scope).collect();
                assert_eq!(scopes, ["all", "group/edge"]);
            },
        );
    }

    #[test]
    fn the_group_of_an_agent_is_there_after_a_restart() {
        across_a_restart(
            |site| {
                for (agent, group) in [("a", Some("edge")), ("b", Some("edge")), ("a", Some("core")), ("b", None)] {
                    site.configs().set_member(agent, group).unwrap();
                }
            },
            |site| assert_eq!(site.configs().members().unwrap(), [("a".to_owned(), "core".to_owned())]),
        );
    }

    #[test]
    fn scopes_that_came_and_went_are_forgotten_in_the_end() {
        let site = Site::in_memory().unwrap();
        site.configs().set("kept", "[]", "ann", 0).unwrap();
        for at in 1..=KEPT_EMPTY + 2 {
            site.configs().set(&format!("host/{at}"), NOTHING, "ann", at).unwrap();
        }
        let history = |scope: &str| site.configs().history(scope).unwrap().len();
        assert_eq!([history("kept"), history("host/2"), history("host/3")], [1, 0, 1]);
    }
}
