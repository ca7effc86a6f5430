//! What the center knows beside records: hosts, tasks, uploads, desired configurations, positions, tokens, certificates, users and the audit
//! trail, in `center.db`.
//!
//! It is written seldom and little, so that every call is a transaction of its own, which is on the disk when the call returns. Calls
//! block for as long as that takes.

mod audit;
mod certificates;
mod configs;
mod files;
mod hosts;
mod positions;
mod rollouts;
mod sessions;
mod tasks;
mod tokens;
mod uploads;
mod users;

pub use audit::{Audit, AuditEntry};
pub use certificates::{Certificate, Certificates};
pub use configs::{Config, Configs, NOTHING};
pub use files::{File, Files};
pub use hosts::{Host, Hosts};
pub use positions::Positions;
pub use rollouts::{Rollout, Rollouts};
pub use sessions::{Session, Sessions};
pub use tasks::{Task, TaskState, Tasks};
pub use tokens::{Token, Tokens, Unusable};
pub use uploads::{Upload, Uploads};
pub use users::{User, Users};

use super::error::{FailureKind, StoreError};
use super::lock;
use super::reserve::Reserve;
use rusqlite::{Connection, Row, Transaction};
use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// Each step makes the next version of the tables of what the one before made. Steps are never changed, only added.
const STEPS: [&str; 4] = [
    "
CREATE TABLE hosts (
  agent_id TEXT PRIMARY KEY, hostname TEXT NOT NULL, first_seen_ms INTEGER NOT NULL, last_seen_ms INTEGER NOT NULL,
  details TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE tasks (
  id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, agent_id TEXT NOT NULL, object_name TEXT NOT NULL,
  data_type INTEGER NOT NULL, data TEXT NOT NULL, state TEXT NOT NULL, answer TEXT NOT NULL, created_by TEXT NOT NULL,
  created_ms INTEGER NOT NULL, changed_ms INTEGER NOT NULL
);
CREATE INDEX tasks_of_agent ON tasks (agent_id, id);
CREATE TABLE uploads (
  id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL, agent_id TEXT NOT NULL, path TEXT NOT NULL, file TEXT NOT NULL,
  bytes INTEGER NOT NULL, error TEXT NOT NULL, received_ms INTEGER NOT NULL
);
CREATE INDEX uploads_of_token ON uploads (token);
CREATE TABLE configs (
  scope TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL, changed_by TEXT NOT NULL, changed_ms INTEGER NOT NULL,
  PRIMARY KEY (scope, version)
) WITHOUT ROWID;
CREATE TABLE positions (name TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE audit (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, who TEXT NOT NULL, origin TEXT NOT NULL, action TEXT NOT NULL,
  object TEXT NOT NULL, detail TEXT NOT NULL, outcome TEXT NOT NULL
);
",
    "
CREATE TABLE users (
  name TEXT PRIMARY KEY, role TEXT NOT NULL, password TEXT NOT NULL, created_ms INTEGER NOT NULL, last_login_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE sessions (
  hash TEXT PRIMARY KEY, user TEXT NOT NULL, created_ms INTEGER NOT NULL, seen_ms INTEGER NOT NULL
) WITHOUT ROWID;
",
    "
CREATE TABLE members (agent_id TEXT PRIMARY KEY, in_group TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
  sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, bytes INTEGER NOT NULL, uploaded_ms INTEGER NOT NULL, uploaded_by TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE rollouts (id INTEGER PRIMARY KEY AUTOINCREMENT, active INTEGER NOT NULL, body TEXT NOT NULL);
",
    "
CREATE TABLE tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL UNIQUE, uses INTEGER NOT NULL, used INTEGER NOT NULL, in_group TEXT,
  created_by TEXT NOT NULL, created_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, revoked_ms INTEGER
);
CREATE TABLE certificates (
  id INTEGER PRIMARY KEY AUTOINCREMENT, serial TEXT NOT NULL UNIQUE, agent_id TEXT NOT NULL, token INTEGER, issued_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL, revoked_ms INTEGER, revoked_by TEXT NOT NULL
);
CREATE INDEX certificates_of_agent ON certificates (agent_id, id);
",
];

/// A list has so many rows at most; the next ones are asked for by the last one's key.
const MAX_LIST: usize = 10_000;

/// The database of everything but records.
#[derive(Debug)]
pub struct Site {
    db: Mutex<Connection>,
    /// What makes room when the disk is full.
    reserve: Option<Reserve>,
}

/// Reading or writing `center.db` failed. Nothing of the call was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteError {
    /// What is wrong.
    pub kind: FailureKind,
    /// What SQLite says.
    pub error: String,
}

impl From<rusqlite::Error> for SiteError {
    fn from(error: rusqlite::Error) -> Self {
        Self { kind: FailureKind::of(&error), error: error.to_string() }
    }
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "center.db cannot be used, {}: {}", self.kind, self.error)
    }
}

impl std::error::Error for SiteError {}

impl Site {
    /// Opens `center.db` in a directory, makes it if it is not there, and brings its tables up to date.
    pub(super) fn open(dir: &Path, reserve: Reserve) -> Result<Self, StoreError> {
        let path = dir.join("center.db");
        let mut db = Connection::open(&path).map_err(|error| StoreError::Sqlite(path.clone(), error))?;
        match prepare(&mut db) {
            Ok(version) if version == newest() => Ok(Self { db: Mutex::new(db), reserve: Some(reserve) }),
            Ok(version) => Err(StoreError::Newer(path, version, newest())),
            Err(error) => Err(StoreError::Sqlite(path, error)),
        }
    }

    /// A database that ends with the process, for a center without a store.
    pub(crate) fn in_memory() -> Result<Self, SiteError> {
        let mut db = Connection::open_in_memory()?;
        prepare(&mut db)?;
        Ok(Self { db: Mutex::new(db), reserve: None })
    }

    /// Hosts that were ever seen.
    #[must_use]
    pub fn hosts(&self) -> Hosts<'_> {
        Hosts(self)
    }

    /// Tasks that were given to agents, with their answers.
    #[must_use]
    pub fn tasks(&self) -> Tasks<'_> {
        Tasks(self)
    }

    /// Files that agents sent. Only what is known of them is here.
    #[must_use]
    pub fn uploads(&self) -> Uploads<'_> {
        Uploads(self)
    }

    /// What agents should run.
    #[must_use]
    pub fn configs(&self) -> Configs<'_> {
        Configs(self)
    }

    /// Files that agents may fetch. Only what is known of them is here.
    #[must_use]
    pub fn files(&self) -> Files<'_> {
        Files(self)
    }

    /// Plugins on their way to agents, step by step.
    #[must_use]
    pub fn rollouts(&self) -> Rollouts<'_> {
        Rollouts(self)
    }

    /// What lets hosts in that have no certificate yet.
    #[must_use]
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens(self)
    }

    /// Certificates that the center has issued to hosts.
    #[must_use]
    pub fn certificates(&self) -> Certificates<'_> {
        Certificates(self)
    }

    /// How far records were passed on.
    #[must_use]
    pub fn positions(&self) -> Positions<'_> {
        Positions(self)
    }

    /// Who may do what.
    #[must_use]
    pub fn users(&self) -> Users<'_> {
        Users(self)
    }

    /// Who is signed in.
    #[must_use]
    pub fn sessions(&self) -> Sessions<'_> {
        Sessions(self)
    }

    /// Who did what.
    #[must_use]
    pub fn audit(&self) -> Audit<'_> {
        Audit(self)
    }

    /// Does something in one transaction, which happens whole or not at all. When the disk is full it gives up the reserve and tries once
    /// more.
    fn change<T>(&self, mut change: impl FnMut(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, SiteError> {
        let mut db = lock(&self.db);
        let mut try_it = || {
            let tx = db.transaction()?;
            let changed = change(&tx)?;
            tx.commit()?;
            Ok::<_, rusqlite::Error>(changed)
        };
        match (try_it(), &self.reserve) {
            (Err(error), Some(reserve)) if FailureKind::of(&error) == FailureKind::Full && reserve.release() => {
                log::warn!("the disk is full, and the reserve is given up: center.db could not be written");
                Ok(try_it()?)
            }
            (tried, _) => Ok(tried?),
        }
    }

    /// Reads rows, at most [`MAX_LIST`].
    fn list<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, SiteError> {
        let db = lock(&self.db);
        let mut find = db.prepare_cached(sql)?;
        Ok(find.query_map(params, row)?.take(MAX_LIST).collect::<rusqlite::Result<_>>()?)
    }

    /// Reads a row that may not be there.
    fn one<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, SiteError> {
        Ok(self.list(sql, params, row)?.pop())
    }
}

/// Brings the tables up to date, unless a newer program made them, and returns their version.
fn prepare(db: &mut Connection) -> rusqlite::Result<i64> {
    db.busy_timeout(Duration::from_secs(10))?;
    // A journal beside the file needs no room before something is written, so that it opens on a full disk as well.
    db.pragma_update(None, "journal_mode", "DELETE")?;
    db.pragma_update(None, "synchronous", "EXTRA")?;
    let tx = db.transaction()?;
    let version: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(missing) = usize::try_from(version).ok().and_then(|done| STEPS.get(done..)) else {
        return Ok(version);
    };
    if !missing.is_empty() {
        for step in missing {
            tx.execute_batch(step)?;
        }
        tx.pragma_update(None, "user_version", newest())?;
        tx.commit()?;
    }
    Ok(newest())
}

/// The version that the last step makes.
fn newest() -> i64 {
    i64::try_from(STEPS.len()).expect("there are few steps")
}

/// A number of rows as SQLite takes it.
fn rows(limit: usize) -> i64 {
    i64::try_from(limit.min(MAX_LIST)).expect("it is bounded")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does something to a database, opens it again, and looks at what is there.
    pub(super) fn across_a_restart(change: impl FnOnce(&Site), look: impl FnOnce(&Site)) {
        let dir = tempfile::tempdir().unwrap();
        change(&Site::open(dir.path(), Reserve::new(dir.path(), 0)).unwrap());
        look(&Site::open(dir.path(), Reserve::new(dir.path(), 0)).unwrap());
    }

    #[test]
    fn a_database_of_a_newer_program_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        drop(Site::open(dir.path(), Reserve::new(dir.path(), 0)).unwrap());
        Connection::open(dir.path().join("center.db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Site::open(dir.path(), Reserve::new(dir.path(), 0)), Err(StoreError::Newer(_, 99, _))));
    }

    #[test]
    fn a_corrupt_database_is_an_error_and_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("center.db"), [7; 5000]).unwrap();
        assert!(matches!(Site::open(dir.path(), Reserve::new(dir.path(), 0)), Err(StoreError::Sqlite(..))));
        assert_eq!(std::fs::read(dir.path().join("center.db")).unwrap(), [7; 5000]);
    }

    #[test]
    fn a_change_that_fails_leaves_nothing_behind() {
        across_a_restart(
            |site| {
                let failed = site.change(|tx| {
                    tx.execute("INSERT INTO positions VALUES ('a', 1)", [])?;
                    tx.execute("INSERT INTO positions VALUES ('a', 2)", [])
                });
                assert!(failed.is_err());
            },
            |site| assert_eq!(site.positions().get("a").unwrap(), None),
        );
    }
}
