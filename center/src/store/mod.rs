//! The store: every record that agents sent, searchable, in files by day, and a small database of everything else.
//!
//! [`Store::append`] queues a batch; a thread of its own writes what has gathered as one transaction, and only then resolves the
//! batches' tickets. [`Store::search`] answers queries, and [`Follower`] hands out records in the order in which they were stored,
//! from a position that survives restarts. Old files are dropped whole, by age and by size. A full or failing disk is told by
//! [`Store::stats`]; appending fails until the disk works again, which the store tries by itself.
//!
//! `docs/center-store.md` describes the files, and `docs/decisions/` why records lie in compressed blocks.

mod block;
mod catalog;
mod date;
mod day;
mod error;
mod files;
mod filter;
mod follow;
mod merge;
mod payload;
mod queue;
mod reserve;
mod scan;
mod search;
pub mod site;
mod writer;

pub use error::{AppendError, FailureKind, SearchError, StoreError};
pub use follow::{Follower, Missed};
pub use payload::{Fields, fields};
pub use queue::Ticket;
pub use search::{Condition, End, Found, Limits, Order, Page, Query, Test};

use bytes::Bytes;
use files::Files;
use queue::{Pending, Queue};
use reserve::Reserve;
use site::Site;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use tokio::sync::{oneshot, watch};

/// A longer payload is refused: AgentCenter refuses messages of more than 10 MiB.
const MAX_PAYLOAD: usize = 16 << 20;
/// A longer agent id or host name is refused.
const MAX_NAME: usize = 1024;

/// How the store works. The default is right for most sites.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Files of days that ended longer ago are dropped.
    pub keep: Duration,
    /// The oldest files are dropped when all together have more bytes. A file is an eighth of this at most, so that the bound holds for
    /// sites that fill it in less than a day.
    pub max_bytes: u64,
    /// Batches in memory have so many bytes at most; more wait outside.
    pub queue_bytes: usize,
    /// For so long, batches gather before they are written as one transaction.
    pub gather: Duration,
    /// What is confirmed survives.
    pub synchronous: Synchronous,
    /// A file of so many bytes is given up when the disk is full, so that what frees room still works.
    pub reserve_bytes: u64,
    /// After a failure, writing is tried again after so long, and then after twice as long each time, up to thirty times as long.
    pub retry: Duration,
    /// Files are dropped by age only after the clock has gone evenly for so long. A clock that jumps far ahead would otherwise take
    /// every record with it.
    pub settle: Duration,
    #[cfg(test)]
    pub(crate) max_pages: Arc<std::sync::atomic::AtomicU32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(14 * 24 * 3600),
            max_bytes: 20 << 30,
            queue_bytes: 32 << 20,
            gather: Duration::from_millis(50),
            synchronous: Synchronous::Full,
            reserve_bytes: 16 << 20,
            retry: Duration::from_secs(1),
            settle: Duration::from_secs(3600),
            #[cfg(test)]
            max_pages: Arc::default(),
        }
    }
}

/// What a confirmed batch survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    /// The loss of power: each transaction is written through to the disk.
    Full,
    /// The end of the process, but not of the system. For disks that are slow to write through.
    Normal,
}

impl Synchronous {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

/// A record as an agent sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the record is about.
    pub data_type: i32,
    /// Seconds since 1970, by the host's clock.
    pub timestamp: i64,
    /// A serialized `grpc.Payload`. Kept as it is, whatever it holds.
    pub payload: Bytes,
}

/// Records that came together from one host.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// When they came, in milliseconds since 1970, by the center's clock. Decides which file they go into.
    pub received_ms: i64,
    /// Which agent sent them.
    pub agent_id: &'a str,
    /// The host's name.
    pub hostname: &'a str,
    /// The records, in their order.
    pub records: &'a [Record],
}

/// Why the store cannot write at present.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is wrong.
    pub kind: FailureKind,
    /// What SQLite or the system says.
    pub error: String,
    /// Since when.
    pub since: SystemTime,
}

/// What the store holds and does.
#[derive(Clone, Debug)]
pub struct Stats {
    /// The sequence number that the next record gets.
    pub next_seq: u64,
    /// Records in all files.
    pub records: u64,
    /// Files of records.
    pub files: usize,
    /// Bytes that files of records take, with their logs.
    pub bytes: u64,
    /// When the oldest record was received, in milliseconds since 1970.
    pub oldest_received_ms: Option<i64>,
    /// Bytes that wait to be written.
    pub queued_bytes: usize,
    /// Why nothing can be written at present.
    pub failure: Option<Failure>,
    /// Records stored since the store was opened.
    pub stored: u64,
    /// Transactions since the store was opened.
    pub commits: u64,
    /// Records rewritten by merging since the store was opened.
    pub merged: u64,
    /// Failures to write since the store was opened.
    pub failures: u64,
    /// Files that retention dropped since the store was opened.
    pub dropped_files: u64,
    /// Corrupt files that lie aside.
    pub corrupt_files: usize,
    /// Blocks that could not be read since the store was opened.
    pub damaged_blocks: u64,
}

/// What threads share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    files: Files,
    queue: Arc<Queue>,
    failure: Mutex<Option<Failure>>,
    next_seq: watch::Sender<u64>,
    closed: AtomicBool,
    stored: AtomicU64,
    commits: AtomicU64,
    merged: AtomicU64,
    failures: AtomicU64,
    dropped_files: AtomicU64,
    damaged_blocks: AtomicU64,
}

/// The store of a directory. Dropping it writes what is in the queue.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    site: Site,
    threads: Vec<JoinHandle<()>>,
}

impl Store {
    /// Opens the store of a directory, which is made if it is not there. A file of records that is not whole is set aside: its name
    /// then ends in `.corrupt`.
    ///
    /// # Errors
    /// The directory cannot be used, another process uses it, or a newer program wrote in it. A full disk is none of these: such a
    /// store opens, can be searched, and takes records as soon as there is room.
    pub fn open(dir: impl AsRef<Path>, settings: Settings) -> Result<Self, StoreError> {
        if settings.max_bytes < 1 << 20 {
            return Err(StoreError::Settings("the store needs a bound of at least 1 MiB"));
        }
        let opened = match Files::open(dir.as_ref()) {
            Err(StoreError::Sqlite(path, error)) => {
                // The disk may be so full that a file cannot even be read. The writer makes the reserve again when there is room.
                log::warn!("{}: {error}; the reserve is given up", path.display());
                Reserve::new(dir.as_ref(), settings.reserve_bytes).release();
                Files::open(dir.as_ref())
            }
            opened => opened,
        };
        let (files, next_seq) = opened?;
        let site = Site::open(dir.as_ref(), Reserve::new(dir.as_ref(), settings.reserve_bytes))?;
        let shared = Arc::new(Shared {
            queue: Arc::new(Queue::new(settings.queue_bytes)),
            settings,
            files,
            failure: Mutex::default(),
            next_seq: watch::Sender::new(next_seq),
            closed: AtomicBool::new(false),
            stored: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            merged: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            dropped_files: AtomicU64::new(0),
            damaged_blocks: AtomicU64::new(0),
        });
        let threads = writer::start(&shared).map_err(|error| StoreError::Io(dir.as_ref().into(), error))?;
        Ok(Self { shared, site, threads })
    }

    /// Queues a batch to be stored. While writing fails, the ticket says so at once.
    pub fn append(&self, batch: Batch<'_>) -> Ticket {
        if batch.records.is_empty() {
            let next = *self.shared.next_seq.borrow();
            return Ticket::known(Ok(next..next));
        }
        if batch.agent_id.len() > MAX_NAME || batch.hostname.len() > MAX_NAME {
            return Ticket::known(Err(AppendError::Refused("the agent id or the host name is longer than 1024 bytes")));
        }
        if batch.records.iter().any(|record| record.payload.len() > MAX_PAYLOAD) {
            return Ticket::known(Err(AppendError::Refused("a payload is longer than 16 MiB")));
        }
        if let Some(failure) = &*lock(&self.shared.failure) {
            return Ticket::known(Err(AppendError::Failing(failure.kind, failure.error.clone())));
        }
        let (done, ticket) = oneshot::channel();
        let pending = Pending {
            agent_id: batch.agent_id.into(),
            hostname: batch.hostname.into(),
            received_ms: batch.received_ms,
            records: batch.records.to_vec(),
            done,
            room: None,
        };
        self.shared.queue.enter(pending, ticket)
    }

    /// Answers a query. Blocks for as long as that takes, so it is not for a thread that runs tasks.
    ///
    /// # Errors
    /// The query makes no sense, or a file cannot be read. Blocks that cannot be read are passed over, and counted in the page.
    pub fn search(&self, query: &Query, limits: &Limits) -> Result<Page, SearchError> {
        search::search(&self.shared, query, limits)
    }

    /// Hands out records in the order in which they were stored, from the one that has sequence number `position`. Position 0 is the
    /// oldest record that is kept.
    ///
    /// # Errors
    /// The position belongs to another store: nothing was stored there yet, and will not be next.
    pub fn follow(&self, position: u64) -> Result<Follower, SearchError> {
        Follower::new(&self.shared, position)
    }

    /// Tells of the sequence number that the next record gets, whenever it changes. Whoever follows waits for this.
    #[must_use]
    pub fn next_seq(&self) -> watch::Receiver<u64> {
        self.shared.next_seq.subscribe()
    }

    /// Everything that the center knows beside records.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// How the store works.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Bytes that this process may still write to the disk that the store is on.
    ///
    /// # Errors
    /// The system does not say.
    pub fn disk_free(&self) -> std::io::Result<u64> {
        let disk = rustix::fs::statvfs(self.shared.files.dir())?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// What the store holds and does.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let catalog = shared.files.catalog();
        let extents = || catalog.entries.iter().filter_map(|entry| entry.extent);
        Stats {
            next_seq: *shared.next_seq.borrow(),
            records: extents().map(|extent| extent.rows).sum(),
            files: catalog.entries.len(),
            bytes: catalog.entries.iter().map(|entry| entry.bytes).sum(),
            oldest_received_ms: extents().map(|extent| extent.received_ms.0).min(),
            queued_bytes: shared.queue.used_bytes(),
            failure: lock(&shared.failure).clone(),
            stored: shared.stored.load(Relaxed),
            commits: shared.commits.load(Relaxed),
            merged: shared.merged.load(Relaxed),
            failures: shared.failures.load(Relaxed),
            dropped_files: shared.dropped_files.load(Relaxed),
            corrupt_files: shared.files.corrupt().len(),
            damaged_blocks: shared.damaged_blocks.load(Relaxed),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.closed.store(true, Relaxed);
        self.shared.queue.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has told so already, and its tickets say that they are not stored.
            let _ = thread.join();
        }
    }
}

/// Locks what no panic leaves half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
