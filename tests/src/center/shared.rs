//! What the tasks of one center share: the state, those who wait for it to change, and what tests have set.

use super::fault::{Fault, Pace, UploadFault};
use super::records::{Batch, Line};
use super::transfer::{CommandError, Order};
use super::{Instance, Options, State};
use elklet_proto::grpc::{Command, Config};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// What all tasks of a center share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) tokens: Semaphore,
    pub(super) state: Mutex<State>,
    /// Wakes those who wait for a change of the state, in threads and in tasks.
    pub(super) changed: Condvar,
    pub(super) version: watch::Sender<()>,
    pub(super) pace: watch::Sender<Pace>,
    pub(super) configs: Mutex<Configs>,
    pub(super) registry: Mutex<BTreeMap<String, Vec<Instance>>>,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    pub(super) upload_faults: Mutex<VecDeque<UploadFault>>,
    observers: Mutex<Vec<Observer>>,
    deadly: Mutex<Option<Deadly>>,
    pub(super) lines: Mutex<Option<mpsc::Sender<Line>>>,
}

/// Returns true if it wants to be called again.
type Observer = Box<dyn FnMut(&Arc<Batch>) -> bool + Send>;

/// Returns true for a message that ends its connection.
type Deadly = Box<dyn FnMut(&Batch) -> bool + Send>;

#[derive(Debug, Default)]
pub(super) struct Configs {
    pub(super) default: Option<Vec<Config>>,
    pub(super) by_agent: BTreeMap<String, Vec<Config>>,
}

impl Shared {
    pub(super) fn new(options: Options, lines: Option<mpsc::Sender<Line>>) -> Self {
        let itself = [("hids_svr_grpc", options.listen), ("hids_svr_http", options.http)];
        let registry = itself.map(|(name, address)| (name.to_owned(), vec![Instance::new(name, address)]));
        Self {
            tokens: Semaphore::new(options.conn_limit),
            state: Mutex::default(),
            changed: Condvar::new(),
            version: watch::Sender::new(()),
            pace: watch::Sender::new(Pace::Full),
            configs: Mutex::new(Configs { default: options.configs.clone(), by_agent: BTreeMap::new() }),
            registry: Mutex::new(registry.into()),
            faults: Mutex::default(),
            upload_faults: Mutex::default(),
            observers: Mutex::default(),
            deadly: Mutex::default(),
            lines: Mutex::new(lines),
            options,
        }
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.state))
    }

    /// Changes the state and wakes those who wait for a change.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut lock(&self.state));
        self.changed.notify_all();
        self.version.send_replace(());
        changed
    }

    /// Adds a line to the log, both on standard error and in the state.
    pub(super) fn note(&self, line: String) {
        log::info!("{line}");
        self.change(|state| state.note(line));
    }

    pub(super) fn observe(&self, observer: impl FnMut(&Arc<Batch>) -> bool + Send + 'static) {
        lock(&self.observers).push(Box::new(observer));
    }

    pub(super) fn die_of(&self, deadly: impl FnMut(&Batch) -> bool + Send + 'static) {
        *lock(&self.deadly) = Some(Box::new(deadly));
    }

    pub(super) fn dies_of(&self, batch: &Batch) -> bool {
        lock(&self.deadly).as_mut().is_some_and(|deadly| deadly(batch))
    }

    /// Passes a message on to all observers, and counts it.
    pub(super) async fn take(&self, agent_id: &str, batch: Arc<Batch>) {
        lock(&self.observers).retain_mut(|observer| observer(&batch));
        self.write(Line::Batch(Arc::clone(&batch))).await;
        self.change(|state| state.take(agent_id, &batch));
    }

    /// Queues a line for the writer, and waits while the queue is full.
    pub(super) async fn write(&self, line: Line) {
        let lines = lock(&self.lines).clone();
        if let Some(lines) = lines {
            // The writer has already said why it is gone.
            _ = lines.send(line).await;
        }
    }

    /// Sends a command and waits until the agent has taken it, at most this long.
    pub(super) async fn command(&self, agent_id: &str, command: Command, within: Duration) -> Result<(), CommandError> {
        let (done, sent) = oneshot::channel();
        if !self.order(agent_id, Order::Command(command, done)) {
            return Err(CommandError::NotConnected(agent_id.to_owned()));
        }
        match tokio::time::timeout(within, sent).await {
            Ok(sent) => sent.unwrap_or(Err(CommandError::StreamEnded)),
            Err(_) => Err(CommandError::NotTaken(within)),
        }
    }

    pub(super) fn inject(&self, agent_id: &str, fault: Fault) -> bool {
        self.order(agent_id, Order::Fault(fault))
    }

    fn order(&self, agent_id: &str, order: Order) -> bool {
        self.read(|state| state.live.get(agent_id).is_some_and(|live| live.orders.send(order).is_ok()))
    }

    pub(super) fn next_fault(&self) -> Option<Fault> {
        lock(&self.faults).pop_front()
    }

    pub(super) fn configs_for(&self, agent_id: &str) -> Option<Vec<Config>> {
        let configs = lock(&self.configs);
        configs.by_agent.get(agent_id).or(configs.default.as_ref()).cloned()
    }

    pub(super) fn instances(&self, name: &str) -> Vec<Instance> {
        lock(&self.registry).get(name).cloned().unwrap_or_default()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).field("state", &self.state).finish_non_exhaustive()
    }
}

/// An observer that panics fails its test. The center goes on.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
