//! What the tasks of one server share: what is known of the fleet, those who wait for that to change, and where messages go.

use super::interpose::{Interpose, Step};
use super::transfer::{CommandError, Order};
use super::{Instance, Options};
use crate::desired::Desired;
use crate::fleet::{Fleet, Task};
use crate::http::{Access, LocalKey, Thing, Watched, now_ms, page_url};
use crate::message::Batch;
use crate::sink::{Numbered, Refused, Sink};
use elklet_proto::grpc::{Command, Config};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};

/// The smallest window of a stream: a full DATA frame.
const MIN_WINDOW: u32 = 16 << 10;

/// KiB of all messages together that are on their way into the sink.
const MESSAGE_ROOM_KIB: u32 = 64 << 10;

/// Messages that are decompressed at a time. Until they are, nobody knows what room they need.
const DECODING: usize = 4;

/// Searches of the store at a time. Those who come later wait.
const SEARCHES: usize = 2;

/// What all tasks of a server share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) interpose: Arc<dyn Interpose>,
    pub(crate) tokens: Semaphore,
    pub(crate) decoding: Semaphore,
    pub(crate) searches: Semaphore,
    room: Semaphore,
    fleet: Mutex<Fleet>,
    /// Wakes those who wait for a change of the fleet.
    pub(crate) version: watch::Sender<()>,
    desired: Mutex<Desired>,
    /// Who may use the HTTP port.
    pub(crate) access: Access,
    /// What changed, for those who look on.
    pub(crate) watched: Arc<Watched>,
    pub(crate) registry: Mutex<BTreeMap<String, Vec<Instance>>>,
}

impl Shared {
    /// `local` is the key of this host's own commands, if there is one.
    ///
    /// # Errors
    /// When what agents should run cannot be read, or who may use the HTTP port.
    pub(crate) fn new(
        options: Options,
        sink: Arc<dyn Sink>,
        interpose: Arc<dyn Interpose>,
        local: Option<&LocalKey>,
    ) -> io::Result<Self> {
        let access = Access::new(&options, local.map(|local| local.key.as_str()), now_ms())?;
        let kept = options.desired_file.as_deref().map(Desired::read).transpose()?.flatten();
        let desired = kept.unwrap_or_else(|| Desired::new(options.configs.clone()));
        let itself = [("hids_svr_grpc", options.listen), ("hids_svr_http", options.http)];
        let registry = itself.map(|(name, address)| (name.to_owned(), vec![Instance::new(name, address)]));
        Ok(Self {
            tokens: Semaphore::new(options.conn_limit),
            decoding: Semaphore::new(DECODING),
            searches: Semaphore::new(SEARCHES),
            room: Semaphore::new(MESSAGE_ROOM_KIB as usize),
            fleet: Mutex::new(Fleet::new(options.max_hosts)),
            version: watch::Sender::new(()),
            desired: Mutex::new(desired),
            access,
            watched: Arc::default(),
            registry: Mutex::new(registry.into()),
            sink,
            interpose,
            options,
        })
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Fleet) -> T) -> T {
        look(&lock(&self.fleet))
    }

    /// Changes what is known and wakes those who wait for a change.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Fleet) -> T) -> T {
        let changed = change(&mut lock(&self.fleet));
        self.version.send_replace(());
        changed
    }

    /// Adds a line to the log, both on standard error and in what is known.
    pub(crate) fn note(&self, line: String) {
        log::info!("{line}");
        self.change(|fleet| fleet.note(line));
    }

    /// Counts a message that the sink has taken.
    pub(crate) fn sink_took(&self, agent_id: &str, batch: &Batch, numbered: Option<Numbered>) {
        let recovered = self.change(|fleet| {
            fleet.take(agent_id, batch);
            fleet.sink_refuses.take()
        });
        self.watched.took(agent_id, batch, numbered);
        if let Some(reason) = recovered {
            log::warn!("records are stored again; before: {reason}");
            self.note("records are stored again".to_owned());
        }
    }

    /// Notes that the sink takes nothing. It logs the first refusal and each other reason.
    pub(crate) fn sink_refused(&self, refused: Refused) {
        let new = self.change(|fleet| {
            fleet.totals.sink_refusals += 1;
            let new = fleet.sink_refuses.as_ref() != Some(&refused.reason);
            fleet.sink_refuses = Some(refused.reason.clone());
            new
        });
        if new {
            log::error!("no records are stored, and agents keep theirs: {refused}");
            self.note(format!("no records are stored, and agents keep theirs: {refused}"));
        }
    }

    /// Makes a link that opens the page once, as an admin and without a password.
    pub(crate) fn new_link(&self) -> io::Result<String> {
        let key = self.access.new_link(now_ms())?;
        Ok(page_url(&self.options, &key))
    }

    /// Returns the window for the streams of a new connection. Unread windows are memory, so that the more agents there are, the smaller
    /// it is.
    pub(crate) fn window(&self) -> u32 {
        let connected = self.read(|fleet| fleet.live.len()) + 1;
        let share = u32::try_from(self.options.window_memory / connected).unwrap_or(u32::MAX);
        share.clamp(MIN_WINDOW, self.options.max_window.max(MIN_WINDOW))
    }

    /// Waits until there is room for a message of so many bytes.
    pub(crate) async fn room_for(&self, len: usize) -> SemaphorePermit<'_> {
        let kib = u32::try_from(len.div_ceil(1024)).unwrap_or(u32::MAX).min(MESSAGE_ROOM_KIB);
        self.room.acquire_many(kib).await.expect("nobody closes it")
    }

    /// Sends a command and waits until the agent has taken it, at most this long.
    pub(crate) async fn command(&self, agent_id: &str, command: Command, within: Duration) -> Result<(), CommandError> {
        let task = command.task.as_ref().filter(|task| !task.token.is_empty()).map(|task| Task {
            agent_id: agent_id.to_owned(),
            token: task.token.clone(),
            name: task.object_name.clone(),
            data_type: task.data_type,
            sent_at: unix_seconds(),
            answers: Vec::new(),
        });
        let (done, sent) = oneshot::channel();
        if let Some(task) = task
            && self.read(|fleet| fleet.live.contains_key(agent_id))
        {
            // Its answer may be here before this hears that it is gone.
            let token = task.token.clone();
            self.change(|fleet| fleet.add_task(task));
            self.watched.changed(Thing::Task, &token);
        }
        if !self.order(agent_id, Order::Command(command, done)) {
            return Err(CommandError::NotConnected(agent_id.to_owned()));
        }
        match tokio::time::timeout(within, sent).await {
            Ok(sent) => sent.unwrap_or(Err(CommandError::StreamEnded)),
            Err(_) => Err(CommandError::NotTaken(within)),
        }
    }

    /// Has an agent's stream take a step. Returns false when the agent has none.
    pub(crate) fn step(&self, agent_id: &str, step: Step) -> bool {
        self.order(agent_id, Order::Step(step))
    }

    fn order(&self, agent_id: &str, order: Order) -> bool {
        self.read(|fleet| fleet.live.get(agent_id).is_some_and(|live| live.orders.send(order).is_ok()))
    }

    pub(crate) fn configs_for(&self, agent_id: &str) -> Option<Vec<Config>> {
        self.desired(|desired| desired.of(agent_id).cloned())
    }

    pub(crate) fn desired<T>(&self, look: impl FnOnce(&Desired) -> T) -> T {
        look(&lock(&self.desired))
    }

    /// Changes what agents should run, if the change is accepted and can be kept.
    pub(crate) fn change_desired<E>(
        &self,
        change: impl FnOnce(&mut Desired) -> Result<(), E>,
    ) -> io::Result<Result<(), E>> {
        let mut desired = lock(&self.desired);
        let mut new = desired.clone();
        if let Err(refused) = change(&mut new) {
            return Ok(Err(refused));
        }
        if let Some(path) = &self.options.desired_file {
            new.write(path)?;
        }
        *desired = new;
        Ok(Ok(()))
    }

    /// Tells connected agents what they should run.
    pub(crate) fn push_configs(&self, concerned: impl Fn(&str) -> bool) {
        let ids: Vec<String> =
            self.read(|fleet| fleet.connected().filter(|id| concerned(id)).map(str::to_owned).collect());
        for id in ids {
            if let Some(configs) = self.configs_for(&id) {
                let (done, _) = oneshot::channel();
                // Who is gone meanwhile hears of it when it comes back.
                self.order(&id, Order::Command(Command { configs, ..Default::default() }, done));
            }
        }
    }

    pub(crate) fn instances(&self, name: &str) -> Vec<Instance> {
        lock(&self.registry).get(name).cloned().unwrap_or_default()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// What panics while it looks on fails alone. The server goes on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
