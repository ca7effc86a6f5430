//! The way into the store: a queue bounded in bytes, and tickets that resolve once a batch is on the disk.

use super::block::Encoded;
use super::catalog::Name;
use super::error::AppendError;
use super::merge::Run;
use super::{Record, lock};
use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

/// One transaction holds so many bytes or records at most: what queued behind them goes into the next.
const GROUP_BYTES: usize = 8 << 20;
const GROUP_ROWS: usize = 32_768;
/// The queue counts bytes in units of this, so that the count fits the semaphore's on every machine.
const UNIT: usize = 1024;
/// What a record costs in memory beside its payload.
const RECORD_BYTES: usize = 64;

/// A batch on its way to the disk.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) agent_id: Box<str>,
    pub(super) hostname: Box<str>,
    pub(super) received_ms: i64,
    pub(super) records: Vec<Record>,
    pub(super) done: oneshot::Sender<Result<Range<u64>, AppendError>>,
    /// The batch's room in the queue, which is free again once the batch is stored or refused.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

impl Pending {
    pub(super) fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.payload.len() + RECORD_BYTES).sum()
    }
}

/// A run to be put in the place of others.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) name: Name,
    pub(super) runs: Vec<Run>,
    pub(super) blocks: Vec<Encoded>,
    /// Told whether the run is in its place; dropped without a word if nobody is left to put it there.
    pub(super) done: std::sync::mpsc::Sender<bool>,
}

/// What the writer finds in the queue.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) batches: Vec<Pending>,
    pub(super) merged: Option<Merged>,
    /// True if nothing will come any more.
    pub(super) closed: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: VecDeque<Pending>,
    merged: Option<Merged>,
    /// When the first of the batches came.
    since: Option<Instant>,
    bytes: usize,
    closed: bool,
}

/// The queue between whoever appends and the writer's thread.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
    room: Arc<Semaphore>,
    units: u32,
}

impl Queue {
    pub(super) fn new(bytes: usize) -> Self {
        let units = u32::try_from((bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX >> 3);
        let room = Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX)));
        Self { waiting: Mutex::default(), came: Condvar::new(), room, units }
    }

    /// Bytes that batches take in the queue and in the transaction that is being written.
    pub(super) fn used_bytes(&self) -> usize {
        (usize::try_from(self.units).unwrap_or(usize::MAX) - self.room.available_permits()) * UNIT
    }

    /// Puts a batch into the queue at once if there is room, and else when the ticket is polled and there is.
    pub(super) fn enter(
        self: &Arc<Self>,
        batch: Pending,
        done: oneshot::Receiver<Result<Range<u64>, AppendError>>,
    ) -> Ticket {
        let units = u32::try_from(batch.bytes().div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        match Arc::clone(&self.room).try_acquire_many_owned(units) {
            Ok(room) => {
                self.push(batch, room);
                Ticket(State::Queued(done))
            }
            Err(_) => {
                let room = Box::pin(Arc::clone(&self.room).acquire_many_owned(units));
                Ticket(State::Outside { queue: Arc::clone(self), room, batch: Some(batch), done: Some(done) })
            }
        }
    }

    fn push(&self, mut batch: Pending, room: OwnedSemaphorePermit) {
        batch.room = Some(room);
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            // Dropping the batch tells its ticket.
            return;
        }
        waiting.bytes += batch.bytes();
        waiting.batches.push_back(batch);
        // The writer sleeps until the group is old enough; it is woken for the first batch, and when the group is full.
        if waiting.since.is_none() {
            waiting.since = Some(Instant::now());
            self.came.notify_one();
        } else if waiting.bytes >= GROUP_BYTES {
            self.came.notify_one();
        }
    }

    /// Hands a merged run to the writer. Only one is on its way at a time.
    pub(super) fn push_merged(&self, merged: Merged) {
        let mut waiting = lock(&self.waiting);
        if !waiting.closed {
            waiting.merged = Some(merged);
            self.came.notify_one();
        }
    }

    /// Waits until a group has gathered for `gather` or is full, there is a merged run, the queue is closed, or `until` is over.
    pub(super) fn take(&self, gather: Duration, until: Instant) -> Work {
        let mut waiting = lock(&self.waiting);
        loop {
            let now = Instant::now();
            let due = waiting.since.map(|since| if waiting.bytes >= GROUP_BYTES { now } else { since + gather });
            if waiting.closed || waiting.merged.is_some() || due.is_some_and(|due| due <= now) || until <= now {
                break;
            }
            let rest = due.map_or(until, |due| due.min(until)) - now;
            waiting = self.came.wait_timeout(waiting, rest).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        let (mut bytes, mut rows, mut batches) = (0, 0, Vec::new());
        while let Some(next) = waiting.batches.front() {
            bytes += next.bytes();
            rows += next.records.len();
            if !batches.is_empty() && (bytes > GROUP_BYTES || rows > GROUP_ROWS) {
                break;
            }
            batches.extend(waiting.batches.pop_front());
        }
        let left = waiting.batches.iter().map(Pending::bytes).sum();
        waiting.bytes = left;
        waiting.since = waiting.since.filter(|_| !waiting.batches.is_empty());
        Work { batches, merged: waiting.merged.take(), closed: waiting.closed && waiting.batches.is_empty() }
    }

    /// Takes nothing in any more. What is in the queue is still written.
    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.room.close();
        self.came.notify_one();
    }
}

/// Resolves once the batch is on the disk, to the sequence numbers of its records, or to why it is not stored.
///
/// If the queue was full, the batch waits in the ticket, in the order of the calls, and goes into the queue when the ticket is
/// polled; dropping such a ticket withdraws the batch. Whoever awaits each ticket before taking in the next batch is thereby slowed
/// down to the disk's speed, and holds one batch in memory.
#[must_use = "a batch is stored only once its ticket says so"]
#[derive(Debug)]
pub struct Ticket(State);

enum State {
    Outside {
        queue: Arc<Queue>,
        room: Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
        batch: Option<Pending>,
        done: Option<oneshot::Receiver<Result<Range<u64>, AppendError>>>,
    },
    Queued(oneshot::Receiver<Result<Range<u64>, AppendError>>),
    Known(Result<Range<u64>, AppendError>),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Outside { .. } => "Outside",
            Self::Queued(_) => "Queued",
            Self::Known(_) => "Known",
        })
    }
}

impl Ticket {
    /// A ticket whose end is known.
    pub(super) fn known(result: Result<Range<u64>, AppendError>) -> Self {
        Self(State::Known(result))
    }

    /// Waits on a thread that no task runs on.
    ///
    /// # Errors
    /// Why the batch is not stored.
    pub fn wait(mut self) -> Result<Range<u64>, AppendError> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            if let Poll::Ready(result) = Pin::new(&mut self).poll(&mut Context::from_waker(&waker)) {
                return result;
            }
            std::thread::park();
        }
    }
}

impl Future for Ticket {
    type Output = Result<Range<u64>, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.0 {
                State::Known(result) => return Poll::Ready(result.clone()),
                State::Queued(done) => {
                    return Pin::new(done).poll(cx).map(|done| done.unwrap_or(Err(AppendError::Closed)));
                }
                State::Outside { queue, room, batch, done } => {
                    let room = std::task::ready!(room.as_mut().poll(cx));
                    let state = match (room, batch.take(), done.take()) {
                        (Ok(room), Some(batch), Some(done)) => {
                            queue.push(batch, room);
                            State::Queued(done)
                        }
                        _ => State::Known(Err(AppendError::Closed)),
                    };
                    self.0 = state;
                }
            }
        }
    }
}
