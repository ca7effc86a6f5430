//! What the tasks of one server share: what is known of the fleet, those who wait for that to change, and where messages go.

use super::connections::{self, Connections};
use super::grpc::{ASSEMBLING_KIB, Status as GrpcStatus};
use super::interpose::{Interpose, Step};
use super::rolling::Rolling;
use super::shown::{Ends, Shown};
use super::transfer::{CommandError, Order};
use super::{Instance, Options, site};
use crate::clock::now_ms;
use crate::desired::{Desired, Plugin};
use crate::enrolment::Enrolment;
use crate::files::Files;
use crate::fleet::{Fleet, Progress, Task};
use crate::forward::Status;
use crate::http::{Access, DownloadCounts, LocalKey, Thing, Watched, page_url};
use crate::message::Batch;
use crate::sink::{Numbered, Refused, Sink};
use crate::store::FailureKind;
use crate::store::site::{Site, SiteError};
use elklet_proto::grpc::Command;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};

/// The smallest window of a stream: a full DATA frame.
const MIN_WINDOW: u32 = 16 << 10;

/// KiB of all messages together that are on their way into the sink.
const MESSAGE_ROOM_KIB: u32 = 64 << 10;

/// Messages that are decompressed at a time. Until they are, nobody knows what room they need.
const DECODING: usize = 4;

/// Questions to the store's small database at a time. Each has a thread.
const QUESTIONS: usize = 4;

/// Searches of the store at a time. Those who come later wait.
const SEARCHES: usize = 2;

/// Exports of records at a time. Each has a page in memory, of 16 MiB at most. Those who come later are told to come again.
const EXPORTS: usize = 4;

/// A stream that is to end has so long to do it. An agent that reads nothing may keep it from that.
const TAKES_ITS_END: Duration = Duration::from_secs(5);

/// What all tasks of a server share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) interpose: Arc<dyn Interpose>,
    pub(crate) tokens: Semaphore,
    pub(crate) decoding: Semaphore,
    pub(crate) assembling: Arc<Semaphore>,
    pub(super) connections: Connections,
    pub(crate) searches: Arc<Semaphore>,
    pub(crate) exports: Arc<Semaphore>,
    questions: Semaphore,
    /// Whose turn it is to write hosts.
    pub(crate) writing: tokio::sync::Mutex<()>,
    /// Bytes of the uploads that are under way, and how many have begun.
    pub(crate) receiving: AtomicU64,
    pub(crate) uploads_begun: AtomicU64,
    room: Semaphore,
    fleet: Mutex<Fleet>,
    /// Wakes those who wait for a change of the fleet.
    pub(crate) version: watch::Sender<()>,
    desired: Mutex<Desired>,
    /// Who may use the HTTP port.
    pub(crate) access: Access,
    /// Who gets a certificate.
    pub(crate) enrolment: Enrolment,
    /// What changed, for those who look on.
    pub(crate) watched: Arc<Watched>,
    /// What would be in `center.db`, where there is no store.
    memory: Option<Site>,
    pub(crate) files: Option<Arc<Files>>,
    pub(crate) downloads: DownloadCounts,
    pub(crate) rolling: Rolling,
    /// What is known of each output, once they have started.
    pub(crate) forwards: OnceLock<Vec<Arc<Status>>>,
    /// The certificate that the server shows, once it does.
    pub(super) shown: OnceLock<Arc<Shown>>,
    pub(crate) registry: Mutex<BTreeMap<String, Vec<Instance>>>,
}

impl Shared {
    /// `local` is the key of this host's own commands, if there is one.
    ///
    /// # Errors
    /// When what is kept, or who may use the HTTP port, cannot be read, or the directory of files cannot be used.
    pub(crate) fn new(
        options: Options,
        sink: Arc<dyn Sink>,
        interpose: Arc<dyn Interpose>,
        local: Option<&LocalKey>,
    ) -> io::Result<Self> {
        let access = Access::new(&options, local.map(|local| local.key.as_str()), now_ms())?;
        let memory = if options.store.is_none() { Some(Site::in_memory().map_err(io::Error::other)?) } else { None };
        let db = options.store.as_deref().map_or(memory.as_ref(), |store| Some(store.site()));
        let db = db.expect("where there is no store there is the other");
        let given = options.configs.clone().map(|configs| configs.into_iter().map(Plugin::from).collect());
        let desired = Desired::load(db, given)?;
        let rolling = Rolling::load(db, now_ms())?;
        let enrolment = Enrolment::new(&options.certs, options.certificate_lifetime, db)?;
        let files = options.files_dir.clone().map(Files::open).transpose()?.map(Arc::new);
        let itself = [("hids_svr_grpc", options.listen), ("hids_svr_http", options.http)];
        let registry = itself.map(|(name, address)| (name.to_owned(), vec![Instance::new(name, address)]));
        let mut fleet = Fleet::new(options.max_hosts);
        if let Some(store) = &options.store {
            site::load(&mut fleet, store.site(), options.max_hosts).map_err(io::Error::other)?;
            site::give_up_waiting(&mut fleet, store.site(), now_ms()).map_err(io::Error::other)?;
        }
        Ok(Self {
            tokens: Semaphore::new(options.conn_limit),
            decoding: Semaphore::new(DECODING),
            assembling: Arc::new(Semaphore::new(ASSEMBLING_KIB as usize)),
            connections: Connections::new(options.conn_limit),
            searches: Arc::new(Semaphore::new(SEARCHES)),
            exports: Arc::new(Semaphore::new(EXPORTS)),
            room: Semaphore::new(MESSAGE_ROOM_KIB as usize),
            questions: Semaphore::new(QUESTIONS),
            writing: tokio::sync::Mutex::default(),
            receiving: AtomicU64::new(0),
            uploads_begun: AtomicU64::new(0),
            fleet: Mutex::new(fleet),
            version: watch::Sender::new(()),
            desired: Mutex::new(desired),
            access,
            enrolment,
            watched: Arc::default(),
            files,
            downloads: DownloadCounts::default(),
            rolling,
            forwards: OnceLock::new(),
            shown: OnceLock::new(),
            registry: Mutex::new(registry.into()),
            sink,
            interpose,
            memory,
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

    /// Changes what nobody waits for.
    pub(crate) fn quietly<T>(&self, change: impl FnOnce(&mut Fleet) -> T) -> T {
        change(&mut lock(&self.fleet))
    }

    /// Has a thread that may wait for the disk ask the store's small database. Returns `None` without a store.
    pub(crate) async fn site<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Site) -> Result<T, SiteError> + Send + 'static,
    ) -> Option<Result<T, SiteError>> {
        let store = self.options.store.clone()?;
        let _turn = self.questions.acquire().await.expect("nobody closes it");
        let asked = tokio::task::spawn_blocking(move || ask(store.site())).await;
        Some(asked.unwrap_or_else(|error| Err(SiteError { kind: FailureKind::Io, error: error.to_string() })))
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
        self.observe(agent_id, batch);
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

    /// Returns when the certificates that agents and the server know each other by end.
    pub(crate) fn ends(&self) -> Ends {
        self.shown.get().map(|shown| shown.ends()).unwrap_or_default()
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

    /// Sends a command and waits until the agent has taken it, at most this long. Its task is remembered if it has a token that no other
    /// task has.
    pub(crate) async fn command(
        &self,
        agent_id: &str,
        command: Command,
        by: &str,
        within: Duration,
    ) -> Result<(), CommandError> {
        if let Some(task) = command.task.as_ref().filter(|task| !task.token.is_empty())
            && self.read(|fleet| fleet.live.contains_key(agent_id))
        {
            // Its answer may be here before this hears that it is gone.
            let task = Task::new(task, agent_id, by, now_ms());
            self.add_tasks(vec![task]).await.map_err(CommandError::NotKept)?;
        }
        self.send(agent_id, command, within).await
    }

    /// Remembers tasks that are to be sent. Returns for each whether it was: not if another task has its token.
    pub(crate) async fn add_tasks(&self, mut tasks: Vec<Task>) -> Result<Vec<bool>, SiteError> {
        let rows: Vec<_> = tasks.iter().map(Task::row).collect();
        let ids = match self.site(move |site| site.tasks().add(&rows)).await {
            Some(ids) => ids?,
            // The fleet numbers them.
            None => vec![Some(0); tasks.len()],
        };
        let added: Vec<bool> = ids.iter().map(Option::is_some).collect();
        let tokens: Vec<String> = tasks.iter().map(|task| task.token.clone()).collect();
        self.change(|fleet| {
            for (mut task, id) in tasks.drain(..).zip(ids) {
                if let Some(id) = id {
                    task.id = id;
                    fleet.add_task(task);
                }
            }
        });
        tokens.iter().for_each(|token| self.watched.changed(Thing::Task, token));
        Ok(added)
    }

    /// Sends a command whose task is remembered already, and waits until the agent has taken it, at most this long.
    pub(crate) async fn send(&self, agent_id: &str, command: Command, within: Duration) -> Result<(), CommandError> {
        match tokio::time::timeout(within, self.begin_sending(agent_id, command)?).await {
            Ok(sent) => sent.unwrap_or(Err(CommandError::StreamEnded)),
            Err(_) => Err(CommandError::NotTaken(within)),
        }
    }

    /// Has an agent's stream send a command. The stream tells what became of it.
    pub(crate) fn begin_sending(
        &self,
        agent_id: &str,
        command: Command,
    ) -> Result<oneshot::Receiver<Result<(), CommandError>>, CommandError> {
        let token = command.task.as_ref().map(|task| task.token.clone()).filter(|token| !token.is_empty());
        let (done, sent) = oneshot::channel();
        if self.order(agent_id, Order::Command(command, done)) {
            return Ok(sent);
        }
        let error = CommandError::NotConnected(agent_id.to_owned());
        if let Some(token) = token {
            let (agent_id, at_ms) = (agent_id.to_owned(), now_ms());
            self.progress(Progress { token, agent_id, error: Some(error.to_string()), at_ms });
        }
        Err(error)
    }

    /// Notes that a task was sent, or will not be.
    pub(crate) fn progress(&self, progress: Progress) {
        let token = progress.token.clone();
        self.change(|fleet| fleet.progress(progress));
        self.watched.changed(Thing::Task, &token);
    }

    /// Has an agent's stream take a step. Returns false when the agent has none.
    pub(crate) fn step(&self, agent_id: &str, step: Step) -> bool {
        self.order(agent_id, Order::Step(step))
    }

    /// Ends an agent's stream with this status. Returns false when the agent has none. If the stream has not ended after a few seconds,
    /// its connection is closed. Call it within the runtime.
    pub(crate) fn end(self: &Arc<Self>, agent_id: &str, status: GrpcStatus) -> bool {
        let stream = |fleet: &Fleet, id: &str| fleet.live.get(id).map(|live| (live.stream, live.connection.clone()));
        let Some((number, connection)) = self.read(|fleet| stream(fleet, agent_id)) else { return false };
        if !self.step(agent_id, Step::End(status)) {
            return false;
        }
        let (shared, agent_id) = (Arc::clone(self), agent_id.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(TAKES_ITS_END).await;
            if shared.read(|fleet| fleet.live.get(&agent_id).is_some_and(|live| live.stream == number)) {
                shared.note(format!("stream {number} does not end: the connection of agent {agent_id} is closed"));
                connections::close([connection]);
            }
        });
        true
    }

    /// Ends the streams of an agent whose certificates are revoked, and closes the connections that it has by them a few seconds later.
    /// Call it within the runtime.
    pub(crate) fn revoke(self: &Arc<Self>, agent_id: &str) {
        if self.read(|fleet| fleet.live.get(agent_id).is_some_and(|live| live.is_bound)) {
            self.end(
                agent_id,
                GrpcStatus::new(GrpcStatus::UNAUTHENTICATED, "the certificate of this agent is revoked"),
            );
        }
        let open = self.connections.of_agent(agent_id);
        tokio::spawn(async move {
            tokio::time::sleep(TAKES_ITS_END).await;
            connections::close(open);
        });
    }

    pub(super) fn order(&self, agent_id: &str, order: Order) -> bool {
        self.read(|fleet| fleet.live.get(agent_id).is_some_and(|live| live.orders.send(Box::new(order)).is_ok()))
    }

    /// Returns what is known beside records.
    pub(crate) fn db(&self) -> &Site {
        match (&self.options.store, &self.memory) {
            (Some(store), _) => store.site(),
            (None, Some(memory)) => memory,
            (None, None) => unreachable!("where there is no store there is the other"),
        }
    }

    pub(crate) fn desired<T>(&self, look: impl FnOnce(&Desired) -> T) -> T {
        look(&lock(&self.desired))
    }

    /// Changes what agents should run, if the change is accepted and can be kept. `by` is who wants it.
    pub(crate) fn change_desired<E>(
        &self,
        by: &str,
        change: impl FnOnce(&mut Desired) -> Result<(), E>,
    ) -> Result<Result<(), E>, SiteError> {
        let mut desired = lock(&self.desired);
        let mut new = desired.clone();
        if let Err(refused) = change(&mut new) {
            return Ok(Err(refused));
        }
        new.keep(&desired, self.db(), by, now_ms())?;
        *desired = new;
        Ok(Ok(()))
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
