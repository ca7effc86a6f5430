//! One file of records: the records that were received on one day, or a part of them.
//!
//! The tables, all written in one transaction for each run:
//!
//! - `hosts`: agent ids and host names, numbered;
//! - `runs`: what one transaction stored, or what merging made of several, by first sequence number;
//! - `blocks`: what each block holds, by run; small rows, which a search reads all of;
//! - `filters` and `contents`: the two large parts of a block, apart, so that reading one does not read the other.

use super::FailureKind;
use super::block::{Content, Damaged, Encoded, Row, Summary, encode_run};
use super::merge::Run;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row as SqlRow, Transaction, TransactionBehavior, params};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// Marks a SQLite file as one of the store's (`PRAGMA application_id`).
const APPLICATION_ID: i64 = 0x456C_5265;
/// The version of the tables (`PRAGMA user_version`).
pub(super) const VERSION: i64 = 1;
/// Blocks are some hundred thousand bytes long, so that larger pages mean fewer of them.
const PAGE_BYTES: u32 = 16 * 1024;
/// zstd's fastest ordinary level. Level 3 takes half as long again and makes records of processes no smaller.
const LEVEL: i32 = 1;
/// The writer forgets the numbers of hosts beyond so many, and looks them up again.
const MAX_KNOWN_HOSTS: usize = 65_536;
/// How long a connection waits for what another one does to the log's index.
const BUSY: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE hosts (id INTEGER PRIMARY KEY, agent_id TEXT NOT NULL, hostname TEXT NOT NULL, UNIQUE (agent_id, hostname));
CREATE TABLE runs (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE blocks (
  id INTEGER NOT NULL, run INTEGER NOT NULL, rows INTEGER NOT NULL, raw_len INTEGER NOT NULL,
  seq_lo INTEGER NOT NULL, seq_hi INTEGER NOT NULL, host_lo INTEGER NOT NULL, host_hi INTEGER NOT NULL,
  received_lo INTEGER NOT NULL, received_hi INTEGER NOT NULL, time_lo INTEGER NOT NULL, time_hi INTEGER NOT NULL,
  types BLOB, PRIMARY KEY (run, id)
) WITHOUT ROWID;
CREATE TABLE filters (id INTEGER PRIMARY KEY, bits BLOB NOT NULL);
CREATE TABLE contents (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
";

/// What lies in a file, as far as a search needs it to pass over the whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First and last sequence number.
    pub(super) seq: (u64, u64),
    /// Earliest and latest time of receipt.
    pub(super) received_ms: (i64, i64),
    /// How many records.
    pub(super) rows: u64,
}

/// A record on its way into a file.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    pub(super) agent_id: &'a str,
    pub(super) hostname: &'a str,
    pub(super) first_seq: u64,
    pub(super) received_ms: i64,
    pub(super) records: &'a [super::Record],
}

/// A block as the index tells of it.
#[derive(Clone, Debug)]
pub(super) struct Indexed {
    pub(super) id: i64,
    pub(super) summary: Summary,
}

/// The connection that writes a file. There is one for each file that is written to.
#[derive(Debug)]
pub(super) struct Writer {
    db: Connection,
    hosts: HashMap<(Box<str>, Box<str>), u32>,
}

impl Writer {
    /// Makes a file with empty tables, or opens one.
    pub(super) fn open(path: &Path, synchronous: super::Synchronous, max_pages: u32) -> rusqlite::Result<Self> {
        let mut db = Connection::open(path)?;
        db.busy_timeout(BUSY)?;
        // A reader that meets the index of the log half written takes the lock for writing for a moment. SQLite waits for it only at the
        // begin of a transaction: one that has read already fails, with "database is locked".
        db.set_transaction_behavior(TransactionBehavior::Immediate);
        db.pragma_update(None, "page_size", PAGE_BYTES)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", synchronous.name())?;
        // 16 MiB of log before it is copied into the file, and as much is kept for reuse.
        db.pragma_update(None, "wal_autocheckpoint", 1024)?;
        db.pragma_update(None, "journal_size_limit", 1024 * i64::from(PAGE_BYTES))?;
        db.pragma_update(None, "cache_size", -4096)?;
        if max_pages > 0 {
            db.pragma_update(None, "max_page_count", max_pages)?;
        }
        if db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))? == 0 {
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; COMMIT;"
            ))?;
        }
        Ok(Self { db, hosts: HashMap::new() })
    }

    /// Stores batches as one run, which is on the disk when this returns.
    pub(super) fn store(&mut self, batches: &[Incoming<'_>]) -> rusqlite::Result<()> {
        if self.hosts.len() > MAX_KNOWN_HOSTS {
            self.hosts.clear();
        }
        let stored = Self::store_run(&mut self.db, &mut self.hosts, batches);
        if stored.is_err() {
            // A number that was given in a transaction that did not happen is nobody's.
            self.hosts.clear();
        }
        stored
    }

    fn store_run(
        db: &mut Connection,
        hosts: &mut HashMap<(Box<str>, Box<str>), u32>,
        batches: &[Incoming<'_>],
    ) -> rusqlite::Result<()> {
        let tx = db.transaction()?;
        let mut rows = Vec::with_capacity(batches.iter().map(|batch| batch.records.len()).sum());
        for batch in batches {
            let key = (Box::from(batch.agent_id), Box::from(batch.hostname));
            let host = match hosts.get(&key) {
                Some(&host) => host,
                None => {
                    let host = host_number(&tx, batch.agent_id, batch.hostname)?;
                    hosts.insert(key, host);
                    host
                }
            };
            rows.extend((batch.first_seq..).zip(batch.records).map(|(seq, record)| Row {
                host,
                seq,
                data_type: record.data_type,
                timestamp: record.timestamp,
                received_ms: batch.received_ms,
                payload: record.payload.clone(),
            }));
        }
        if let (Some(first), Some(last)) = (rows.first().map(|row| row.seq), rows.last().map(|row| row.seq)) {
            let blocks = encode_run(&mut rows, LEVEL);
            insert_run(&tx, (first, last), &blocks)?;
        }
        tx.commit()
    }

    /// Puts one run in the place of several that follow each other. Does nothing if they are no longer all there.
    pub(super) fn replace(&mut self, runs: &[Run], blocks: &[Encoded]) -> rusqlite::Result<bool> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(false) };
        let tx = self.db.transaction()?;
        let range = params![int(first.seq.0), int(last.seq.0)];
        let found: i64 =
            tx.query_row("SELECT count(*) FROM runs WHERE first_seq BETWEEN ?1 AND ?2", range, |row| row.get(0))?;
        if usize::try_from(found) != Ok(runs.len()) {
            return Ok(false);
        }
        for table in ["filters", "contents"] {
            let delete = format!("DELETE FROM {table} WHERE id IN (SELECT id FROM blocks WHERE run BETWEEN ?1 AND ?2)");
            tx.prepare_cached(&delete)?.execute(range)?;
        }
        tx.prepare_cached("DELETE FROM blocks WHERE run BETWEEN ?1 AND ?2")?.execute(range)?;
        tx.prepare_cached("DELETE FROM runs WHERE first_seq BETWEEN ?1 AND ?2")?.execute(range)?;
        insert_run(&tx, (first.seq.0, last.seq.1), blocks)?;
        tx.commit()?;
        Ok(true)
    }

    /// Writes something that says nothing, to learn whether writing works.
    pub(super) fn probe(&mut self) -> rusqlite::Result<()> {
        let write =
            "INSERT INTO meta VALUES ('probe', randomblob(?1)) ON CONFLICT DO UPDATE SET value = excluded.value";
        self.db.execute(write, [PAGE_BYTES])?;
        self.db.execute("DELETE FROM meta WHERE name = 'probe'", [])?;
        Ok(())
    }
}

fn host_number(tx: &Transaction<'_>, agent_id: &str, hostname: &str) -> rusqlite::Result<u32> {
    let mut find = tx.prepare_cached("SELECT id FROM hosts WHERE agent_id = ?1 AND hostname = ?2")?;
    if let Some(host) = find.query_row([agent_id, hostname], |row| row.get(0)).optional()? {
        return Ok(host);
    }
    tx.prepare_cached("INSERT INTO hosts (agent_id, hostname) VALUES (?1, ?2)")?.execute([agent_id, hostname])?;
    Ok(u32::try_from(tx.last_insert_rowid()).expect("a file has fewer hosts than records, and those are below 2^32"))
}

fn insert_run(tx: &Transaction<'_>, seq: (u64, u64), blocks: &[Encoded]) -> rusqlite::Result<()> {
    let (mut rows, mut bytes) = (0, 0);
    for block in blocks {
        let Summary { rows: block_rows, raw_len, seq: block_seq, host, received_ms, timestamp, types } = &block.summary;
        tx.prepare_cached("INSERT INTO contents (data) VALUES (?1)")?.execute([&block.data])?;
        let id = tx.last_insert_rowid();
        tx.prepare_cached("INSERT INTO filters VALUES (?1, ?2)")?.execute(params![id, block.filter])?;
        let types =
            types.as_ref().map(|types| types.iter().flat_map(|data_type| data_type.to_le_bytes()).collect::<Vec<u8>>());
        tx.prepare_cached("INSERT INTO blocks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)")?
            .execute(params![
                id,
                int(seq.0),
                size(*block_rows),
                size(*raw_len),
                int(block_seq.0),
                int(block_seq.1),
                host.0,
                host.1,
                received_ms.0,
                received_ms.1,
                timestamp.0,
                timestamp.1,
                types
            ])?;
        rows += block_rows;
        bytes += raw_len;
    }
    tx.prepare_cached("INSERT INTO runs VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        int(seq.0),
        int(seq.1),
        size(rows),
        size(bytes)
    ])?;
    Ok(())
}

/// A connection that reads a file, and sees it as it was when reading began.
#[derive(Debug)]
pub(super) struct Reader {
    db: Connection,
}

impl Reader {
    /// Opens a file that exists and begins to read it. What is written from now on is not seen.
    ///
    /// Reading needs a little room beside the file, for the index of its log. On a disk that has none, or is read-only, a file
    /// without a log is read as one that nobody changes.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let opened = Self::begin(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
        let no_log = || std::fs::metadata(format!("{}-wal", path.display())).map_or(0, |log| log.len()) == 0;
        match opened {
            Err(error) if FailureKind::of(&error) != FailureKind::Corrupt && path.exists() && no_log() => {
                // A path in a URI may hold anything but these.
                let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
                Self::begin(Path::new(&format!("file:{path}?immutable=1")), flags).map_err(|_| error)
            }
            opened => opened,
        }
    }

    fn begin(path: &Path, flags: OpenFlags) -> rusqlite::Result<Self> {
        let db = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "query_only", true)?;
        db.pragma_update(None, "cache_size", -4096)?;
        db.execute_batch("BEGIN")?;
        // Reading begins with the first thing that is read.
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(Self { db })
    }

    /// Looks whether the file is whole as far as that can be told without reading all of it, and what lies in it.
    ///
    /// Returns the version instead if it is another than this program's.
    pub(super) fn check(&self) -> rusqlite::Result<Result<Option<Extent>, i64>> {
        let number = |pragma: &str| self.db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        // A crash may come between making a file and its tables.
        if self.db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(Ok(None));
        }
        if number("application_id")? != APPLICATION_ID {
            return Err(corrupt());
        }
        let version = number("user_version")?;
        if version != VERSION {
            return Ok(Err(version));
        }
        self.extent().map(Ok)
    }

    /// What lies in the file, or nothing if it is empty. Reads the index of all blocks.
    fn extent(&self) -> rusqlite::Result<Option<Extent>> {
        let sums = "SELECT min(seq_lo), max(seq_hi), min(received_lo), max(received_hi), total(rows) FROM blocks";
        self.db.query_row(sums, [], |row| {
            let Some(first) = row.get::<_, Option<i64>>(0)? else { return Ok(None) };
            Ok(Some(Extent {
                seq: (first.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()),
                received_ms: (row.get(2)?, row.get(3)?),
                rows: rounded(row.get(4)?),
            }))
        })
    }

    /// The numbers of the hosts whose name or agent id this is.
    pub(super) fn hosts(&self, name: &str) -> rusqlite::Result<Vec<u32>> {
        let mut find = self.db.prepare("SELECT id FROM hosts WHERE hostname = ?1 OR agent_id = ?1")?;
        find.query_map([name], |row| row.get(0))?.collect()
    }

    /// The agent id and the name of a host.
    pub(super) fn host(&self, number: u32) -> rusqlite::Result<(String, String)> {
        let mut find = self.db.prepare_cached("SELECT agent_id, hostname FROM hosts WHERE id = ?1")?;
        find.query_row([number], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// All runs, oldest first.
    pub(super) fn runs(&self) -> rusqlite::Result<Vec<Run>> {
        let mut find = self.db.prepare("SELECT first_seq, last_seq, rows, bytes FROM runs ORDER BY first_seq")?;
        find.query_map([], run)?.collect()
    }

    /// The newest runs back to the first for which `until` is true, which is not returned, oldest first.
    pub(super) fn newest_runs(&self, until: impl Fn(&Run) -> bool) -> rusqlite::Result<Vec<Run>> {
        let mut find = self.db.prepare("SELECT first_seq, last_seq, rows, bytes FROM runs ORDER BY first_seq DESC")?;
        let mut runs = Vec::new();
        for found in find.query_map([], run)? {
            let found = found?;
            if until(&found) {
                break;
            }
            runs.push(found);
        }
        runs.reverse();
        Ok(runs)
    }

    /// The blocks of a run.
    pub(super) fn blocks(&self, first_seq: u64) -> rusqlite::Result<Vec<Indexed>> {
        let mut find = self.db.prepare_cached(
            "SELECT id, rows, raw_len, seq_lo, seq_hi, host_lo, host_hi, received_lo, received_hi, time_lo, time_hi, types
             FROM blocks WHERE run = ?1",
        )?;
        find.query_map([int(first_seq)], |row| {
            let types = row
                .get_ref(11)?
                .as_blob_or_null()?
                .map(|types| types.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect());
            let summary = Summary {
                rows: usize::try_from(row.get::<_, i64>(1)?).unwrap_or(usize::MAX),
                raw_len: usize::try_from(row.get::<_, i64>(2)?).unwrap_or(usize::MAX),
                seq: (row.get::<_, i64>(3)?.cast_unsigned(), row.get::<_, i64>(4)?.cast_unsigned()),
                host: (row.get(5)?, row.get(6)?),
                received_ms: (row.get(7)?, row.get(8)?),
                timestamp: (row.get(9)?, row.get(10)?),
                types,
            };
            Ok(Indexed { id: row.get(0)?, summary })
        })?
        .collect()
    }

    /// Tests a block's filter.
    pub(super) fn with_filter<T>(&self, id: i64, test: impl FnOnce(&[u8]) -> T) -> rusqlite::Result<T> {
        let mut find = self.db.prepare_cached("SELECT bits FROM filters WHERE id = ?1")?;
        find.query_row([id], |row| Ok(test(row.get_ref(0)?.as_blob()?)))
    }

    /// Reads a block.
    pub(super) fn content(&self, block: &Indexed) -> rusqlite::Result<Result<Content, Damaged>> {
        let mut find = self.db.prepare_cached("SELECT data FROM contents WHERE id = ?1")?;
        find.query_row([block.id], |row| {
            Ok(Content::decode(row.get_ref(0)?.as_blob()?, block.summary.rows, block.summary.raw_len))
        })
    }
}

/// The records of runs as one run's blocks, ready for [`Writer::replace`], or the run that cannot be read.
pub(super) fn merge(reader: &Reader, runs: &[Run]) -> rusqlite::Result<Result<Vec<Encoded>, Run>> {
    let mut rows = Vec::with_capacity(runs.iter().map(|run| run.rows).sum());
    for run in runs {
        for block in reader.blocks(run.seq.0)? {
            match reader.content(&block)? {
                Ok(content) => rows.extend((0..content.len()).map(|row| content.row(row))),
                Err(Damaged) => return Ok(Err(*run)),
            }
        }
    }
    Ok(Ok(encode_run(&mut rows, LEVEL)))
}

fn run(row: &SqlRow<'_>) -> rusqlite::Result<Run> {
    Ok(Run {
        seq: (row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()),
        rows: usize::try_from(row.get::<_, i64>(2)?).unwrap_or(usize::MAX),
        bytes: usize::try_from(row.get::<_, i64>(3)?).unwrap_or(usize::MAX),
    })
}

/// A sequence number as SQLite keeps it.
fn int(seq: u64) -> i64 {
    seq.cast_signed()
}

fn size(size: usize) -> i64 {
    i64::try_from(size).expect("nothing in memory is that large")
}

/// A sum as SQLite's `total` gives it, which is exact for as many records as a disk holds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the conversion saturates")]
fn rounded(total: f64) -> u64 {
    total as u64
}

/// The error for a file that SQLite reads and that is not the store's.
fn corrupt() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB),
        Some("it is not a file of records".into()),
    )
}
