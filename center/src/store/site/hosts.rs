//! Hosts that were ever seen.

use super::{Site, SiteError, rows};
use rusqlite::{Row, params};

/// A host, by its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The agent's id.
    pub agent_id: String,
    /// The host's name when it was last seen.
    pub hostname: String,
    /// When it was first seen, in milliseconds since 1970. [`Hosts::upsert`] keeps the first one ever given.
    pub first_seen_ms: i64,
    /// When it was last seen, in milliseconds since 1970.
    pub last_seen_ms: i64,
    /// Whatever else is known of it. The store does not look into it.
    pub details: String,
}

/// The table of hosts.
#[derive(Clone, Copy, Debug)]
pub struct Hosts<'a>(pub(super) &'a Site);

impl Hosts<'_> {
    /// Writes what is known of hosts, all in one transaction.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn upsert(&self, hosts: &[Host]) -> Result<(), SiteError> {
        self.0.change(|tx| {
            let mut write = tx.prepare_cached(
                "INSERT INTO hosts VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET
                 hostname = excluded.hostname, last_seen_ms = excluded.last_seen_ms, details = excluded.details",
            )?;
            for host in hosts {
                write.execute(params![
                    host.agent_id,
                    host.hostname,
                    host.first_seen_ms,
                    host.last_seen_ms,
                    host.details
                ])?;
            }
            Ok(())
        })
    }

    /// A host, if it was ever seen.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn get(&self, agent_id: &str) -> Result<Option<Host>, SiteError> {
        self.0.one("SELECT * FROM hosts WHERE agent_id = ?1", [agent_id], host)
    }

    /// Hosts by agent id, from the one after `after` on.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self, after: &str, limit: usize) -> Result<Vec<Host>, SiteError> {
        let sql = "SELECT * FROM hosts WHERE agent_id > ?1 ORDER BY agent_id LIMIT ?2";
        self.0.list(sql, params![after, rows(limit)], host)
    }

    /// Forgets hosts in one transaction, and returns how many were known.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove(&self, agent_ids: &[&str]) -> Result<usize, SiteError> {
        self.0.change(|tx| {
            let mut remove = tx.prepare_cached("DELETE FROM hosts WHERE agent_id = ?1")?;
            agent_ids.iter().try_fold(0, |removed, agent_id| Ok(removed + remove.execute([agent_id])?))
        })
    }
}

fn host(row: &Row<'_>) -> rusqlite::Result<Host> {
    Ok(Host {
        agent_id: row.get(0)?,
        hostname: row.get(1)?,
        first_seen_ms: row.get(2)?,
        last_seen_ms: row.get(3)?,
        details: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    fn host(agent_id: &str, seen_ms: i64) -> Host {
        let (agent_id, hostname) = (agent_id.into(), format!("name of {agent_id}"));
        Host { agent_id, hostname, first_seen_ms: seen_ms, last_seen_ms: seen_ms, details: "{}".into() }
    }

    #[test]
    fn a_host_is_known_after_a_restart_and_since_when() {
        across_a_restart(
            |site| {
                site.hosts().upsert(&[host("a", 1), host("b", 2), host("c", 3)]).unwrap();
                site.hosts().upsert(&[host("b", 9)]).unwrap();
                assert_eq!(site.hosts().remove(&["a", "d"]), Ok(1));
                assert_eq!(site.hosts().remove(&["a"]), Ok(0));
            },
            |site| {
                let b = Host { first_seen_ms: 2, ..host("b", 9) };
                assert_eq!(site.hosts().get("b").unwrap(), Some(b.clone()));
                assert_eq!(site.hosts().get("a").unwrap(), None);
                assert_eq!(site.hosts().list("", 10).unwrap(), [b.clone(), host("c", 3)]);
                assert_eq!(site.hosts().list("", 1).unwrap(), [b]);
                assert_eq!(site.hosts().list("b", usize::MAX).unwrap(), [host("c", 3)]);
            },
        );
    }
}
