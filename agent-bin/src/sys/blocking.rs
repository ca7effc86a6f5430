//! Runs blocking work off the net thread. Each piece gets a thread of its own, which ends with it.
//!
//! A thread cannot always be started. The user's process limit, the pids cgroup or memory may be exhausted, by an
//! attacker too. `std::thread::spawn` and tokio's `spawn_blocking` then panic, which ends the agent; clippy.toml bans
//! them. Here it is an error that the caller handles, and the input of the work comes back with it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use elklet_core::limits::MAX_WORKERS;
use elklet_core::time::Millis;
use tokio::sync::oneshot;

use super::atomic::AtomicU64;

/// Time until work that got no thread is tried again. A try costs one system call.
pub(crate) const RETRY_MS: u64 = 1_000;

/// Number of threads at work.
static AT_WORK: Mutex<usize> = Mutex::new(0);
/// Notified when no thread is at work any more.
static QUIET: Condvar = Condvar::new();
/// True if the last thread could not be started.
static IS_SHORT: AtomicBool = AtomicBool::new(false);
/// Number of threads and processes that could not be started.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// Work that got no thread.
#[derive(Debug)]
pub(crate) struct NotStarted<I> {
    /// The input of the work.
    pub(crate) input: I,
    /// Why there is no thread.
    pub(crate) error: io::Error,
}

/// Runs `work` on `input` in a thread of its own.
///
/// # Errors
/// When no thread can be started. `input` comes back, so that nothing that it owns is lost. `work` is gone and should
/// own nothing of value.
pub(crate) fn start<I: Send + 'static>(
    input: I,
    work: impl FnOnce(I) + Send + 'static,
) -> Result<(), Box<NotStarted<I>>> {
    // A failed spawn drops the closure. The slot lets the input be taken back.
    let slot = Arc::new(Mutex::new(Some(input)));
    let take = |slot: &Mutex<Option<I>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let theirs = Arc::clone(&slot);
    let started = Worker::enlist().and_then(|worker| {
        thread::Builder::new().name("work".to_owned()).spawn(move || {
            let _worker = worker;
            if let Some(input) = take(&theirs) {
                work(input);
            }
        })
    });
    match started {
        Ok(_detached) => {
            if IS_SHORT.swap(false, Ordering::Relaxed) {
                log::info!("threads can be started again");
            }
            Ok(())
        }
        Err(error) => {
            count_refused();
            if !IS_SHORT.swap(true, Ordering::Relaxed) {
                log::warn!("no thread can be started: {error}; what needs one is tried again");
            }
            let input = take(&slot).expect("no thread has taken it");
            let error = io::Error::new(error.kind(), format!("no thread can be started: {error}"));
            Err(Box::new(NotStarted { input, error }))
        }
    }
}

/// Returns the result of blocking work.
///
/// # Errors
/// When no thread can be started for it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    receive(work).await.map_err(|refused| refused.error)
}

/// Returns the result of work that has to be done. Waits until a thread can be started.
pub(crate) async fn blocking_at_last<T: Send + 'static>(mut work: impl FnOnce() -> T + Send + 'static) -> T {
    loop {
        match receive(work).await {
            Ok(result) => return result,
            Err(refused) => work = refused.input,
        }
        tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
    }
}

async fn receive<T, W>(work: W) -> Result<T, Box<NotStarted<W>>>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    start(work, move |work: W| _ = sender.send(work()))?;
    Ok(receiver.await.expect("a panic ends the process"))
}

/// Number of threads and processes that could not be started, since the agent's start.
pub(crate) fn refused() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

/// Counts a thread or a process that could not be started.
pub(crate) fn count_refused() {
    REFUSED.fetch_add(1, Ordering::Relaxed);
}

/// Waits until no thread is at work, but no longer than `most`.
pub(crate) fn wait_for_quiet(most: Duration) {
    let _quiet = QUIET.wait_timeout_while(at_work(), most, |at_work| *at_work > 0);
}

fn at_work() -> MutexGuard<'static, usize> {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts one thread at work for as long as it lives.
struct Worker;

impl Worker {
    fn enlist() -> io::Result<Self> {
        let mut at_work = at_work();
        if *at_work == MAX_WORKERS {
            let why = format!("{MAX_WORKERS} are at work, which is the limit");
            return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
        }
        *at_work += 1;
        Ok(Self)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut at_work = at_work();
        *at_work -= 1;
        if *at_work == 0 {
            QUIET.notify_all();
        }
    }
}

/// A piece of work whose result nobody needs.
type Chore = Box<dyn FnOnce() + Send>;

/// Chores that one thread does one after another. [`Chores::handle_timeout`] starts the thread when there are any, at
/// the time from [`Chores::poll_timeout`].
#[derive(Default)]
pub(crate) struct Chores {
    queue: Arc<Mutex<Queue>>,
    retry_at: Option<Millis>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Chore>,
    is_served: bool,
}

impl Chores {
    /// Adds a chore. This may change [`Chores::poll_timeout`].
    pub(crate) fn push(&mut self, chore: impl FnOnce() + Send + 'static) {
        lock(&self.queue).waiting.push_back(Box::new(chore));
    }

    /// Starts a thread for the waiting chores, or schedules another attempt.
    pub(crate) fn handle_timeout(&mut self, now: Millis) {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        lock(&self.queue).is_served = true;
        self.retry_at = None;
        if start(Arc::clone(&self.queue), |queue| serve(&queue)).is_err() {
            lock(&self.queue).is_served = false;
            self.retry_at = Some(now + RETRY_MS);
        }
    }

    /// When to call [`Chores::handle_timeout`], or `None` if no chore waits for a thread.
    pub(crate) fn poll_timeout(&self) -> Option<Millis> {
        let queue = lock(&self.queue);
        (!queue.is_served && !queue.waiting.is_empty()).then(|| self.retry_at.unwrap_or(Millis(0)))
    }
}

impl fmt::Debug for Chores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chores").field("retry_at", &self.retry_at).finish_non_exhaustive()
    }
}

fn serve(queue: &Mutex<Queue>) {
    let next = || {
        let mut queue = lock(queue);
        let chore = queue.waiting.pop_front();
        queue.is_served = chore.is_some();
        chore
    };
    while let Some(chore) = next() {
        chore();
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn chores_are_done_in_order_by_one_thread_that_ends() {
        let mut chores = Chores::default();
        assert_eq!(chores.poll_timeout(), None);
        let (sender, receiver) = mpsc::channel();
        for number in 0..3 {
            let sender = sender.clone();
            chores.push(move || sender.send((number, thread::current().id())).expect("somebody listens"));
        }
        assert_eq!(chores.poll_timeout(), Some(Millis(0)));
        chores.handle_timeout(Millis(5));
        let done: Vec<_> = (0..3).map(|_| receiver.recv().expect("it is done")).collect();
        assert_eq!(done.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(done.iter().all(|(_, thread)| *thread == done[0].1));
        assert_eq!(chores.poll_timeout(), None);
    }
}
