//! The center as a test wants it: [`elklet_center`]'s server, with faults around it. It has AgentCenter's manners, also where the product
//! promises more.
//!
//! [`Center::start`] runs one on threads of its own; a test then configures it, waits for what it wants to see
//! ([`Center::wait_for`], or [`Center::wait_until`] in async code), and makes it fail in the way under test ([`Fault`],
//! [`Pace`]). It counts everything that it receives and keeps none of it. A test that wants the records reads along
//! ([`Center::observe`], [`Center::subscribe`]) or has them written as JSON lines ([`RecordsTo`]).
//!
//! There is no database, no message queue and no manager behind it: configuration and commands come from a test or over the
//! HTTP port.

mod fault;
mod hooks;
mod records;

pub use elklet_center::fleet::{Agent, Count, Fleet as State, Heartbeat, Totals, Upload};
pub use elklet_center::http::{AccessKey, Signed, configs_from_file, configs_from_json};
pub use elklet_center::message::{AGENT_HEARTBEAT, Batch, PLUGIN_HEARTBEAT, PackagedData, Record, TASK_REPORT};
pub use elklet_center::serve::{CommandError, Instance, Status};
pub use fault::{Fault, Pace, UploadFault};
pub use records::RecordsTo;

use elklet_center::serve::{self, Server, Step};
use elklet_center::sink::Sink;
use elklet_proto::grpc::{Command, Config};
use hooks::{Hooks, lock};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The longest that a test's command may wait for its agent. A long command may have to go through a small window, on a
/// busy machine.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// The settings of a center: those of its server, which it is read as, and where its records go.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server's.
    pub server: serve::Options,
    /// Where records are written as JSON lines, if anywhere.
    pub records: Option<RecordsTo>,
}

impl Options {
    /// AgentCenter's limits and manners, and any free ports of the loopback interface. Nothing is configured, and nothing is
    /// written.
    pub fn new(certs: impl Into<PathBuf>) -> Self {
        let mut server = serve::Options::new(certs);
        server.pings_wait = false;
        server.window_memory = usize::MAX;
        Self { server, records: None }
    }
}

impl Deref for Options {
    type Target = serve::Options;

    fn deref(&self) -> &serve::Options {
        &self.server
    }
}

impl DerefMut for Options {
    fn deref_mut(&mut self) -> &mut serve::Options {
        &mut self.server
    }
}

/// A running AgentCenter. Dropping it ends it like SIGKILL: it closes every connection at once.
#[derive(Debug)]
pub struct Center {
    server: Option<Server>,
    records: Option<RecordsTo>,
    hooks: Arc<Hooks>,
    changes: Arc<Changes>,
    writer: Option<JoinHandle<()>>,
}

/// Wakes threads that wait for a change of what the center knows.
#[derive(Debug, Default)]
struct Changes {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Center {
    /// Starts a center, which listens when this returns.
    ///
    /// # Errors
    /// When a certificate cannot be read, an address cannot be bound or the file for records cannot be created.
    pub fn start(options: Options) -> io::Result<Self> {
        Self::start_observed(options, |_| {})
    }

    /// Starts a center with an observer. Agents may dial at once, and this way the observer misses nothing. See
    /// [`Center::observe`].
    ///
    /// # Errors
    /// When a certificate cannot be read, an address cannot be bound or the file for records cannot be created.
    pub fn start_observed(options: Options, observer: impl FnMut(&Arc<Batch>) + Send + 'static) -> io::Result<Self> {
        let (lines, writer) = match &options.records {
            Some(to) => {
                let (sender, thread) = records::start_writer(to)?;
                (Some(sender), Some(thread))
            }
            None => (None, None),
        };
        let hooks = Arc::new(Hooks::new(lines));
        hooks.observe(always(observer));
        let server = Server::start(options.server, Arc::clone(&hooks) as Arc<dyn Sink>, Arc::clone(&hooks) as _)?;
        let changes = Arc::new(Changes::default());
        let (mut version, told) = (server.changes(), Arc::clone(&changes));
        server.runtime().spawn(async move {
            while version.changed().await.is_ok() {
                *lock(&told.count) += 1;
                told.changed.notify_all();
            }
        });
        Ok(Self { server: Some(server), records: options.records, hooks, changes, writer })
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("it is only taken when the center is dropped")
    }

    /// Ends the center and returns what it takes to start another on the same ports with the same configuration.
    ///
    /// What it received has been written when this returns.
    pub fn stop(self) -> Options {
        let mut server = self.server().options().clone();
        server.configs = self.server().configs();
        Options { server, records: self.records.clone() }
    }

    /// Returns the address that agents connect to.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.server().options().listen
    }

    /// Returns the address of the HTTP port.
    pub fn http_addr(&self) -> SocketAddr {
        self.server().options().http
    }

    /// Calls `look` with what the center knows. Agents wait meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.server().read(look)
    }

    /// Blocks until `condition` holds. It checks at once and after every change. `what` says what it waits for.
    ///
    /// # Errors
    /// When it does not hold before `within` has passed.
    pub fn wait_for(
        &self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut(&State) -> bool,
    ) -> Result<(), TimedOut> {
        let end = Instant::now() + within;
        loop {
            let count = *lock(&self.changes.count);
            if self.read(&mut condition) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.read(|state| TimedOut::new(what, within, state)));
            }
            let counted = lock(&self.changes.count);
            let waited = self.changes.changed.wait_timeout_while(counted, left, |now| *now == count);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Waits until `condition` holds, in async code.
    ///
    /// # Errors
    /// When it does not hold before `within` has passed.
    pub async fn wait_until(
        &self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut(&State) -> bool,
    ) -> Result<(), TimedOut> {
        let mut version = self.server().changes();
        let held = async {
            loop {
                version.mark_unchanged();
                if self.read(&mut condition) {
                    return;
                }
                version.changed().await.expect("the center has the sender");
            }
        };
        // The caller's runtime may have no timer, so this uses the center's.
        let deadline = {
            let _inside = self.server().runtime().enter();
            tokio::time::sleep(within)
        };
        tokio::select! {
            () = held => Ok(()),
            () = deadline => Err(self.read(|state| TimedOut::new(what, within, state))),
        }
    }

    /// Calls `observer` with every message that is taken from now on, before it is counted, as long as the center lives.
    ///
    /// The stream waits meanwhile, as it would for AgentCenter's message queue.
    pub fn observe(&self, observer: impl FnMut(&Arc<Batch>) + Send + 'static) {
        self.hooks.observe(always(observer));
    }

    /// Returns a receiver of every message from now on. They stay in memory until they are received, or the receiver is
    /// dropped.
    pub fn subscribe(&self) -> std_mpsc::Receiver<Arc<Batch>> {
        let (sender, receiver) = std_mpsc::channel();
        self.hooks.observe(move |batch| sender.send(Arc::clone(batch)).is_ok());
        receiver
    }

    /// Sends a command to a connected agent.
    pub fn command(&self, agent_id: &str, command: Command) -> Delivery {
        let (done, receiver) = oneshot::channel();
        let command = self.server().command(agent_id, command, COMMAND_DEADLINE);
        self.server().runtime().spawn(async move {
            // Whoever asked may have dropped the receiver.
            _ = done.send(command.await);
        });
        Delivery(receiver)
    }

    /// Sets what every agent should run from now on, unless it has a configuration of its own. The center pushes it
    /// once a stream, at the first record 1000. It pushes an empty list like any other; `None` pushes nothing.
    pub fn set_configs(&self, configs: Option<Vec<Config>>) {
        self.server().set_configs(configs);
    }

    /// Sets what one agent should run. `None` lets [`Center::set_configs`] decide again.
    pub fn set_configs_for(&self, agent_id: &str, configs: Option<Vec<Config>>) {
        self.server().set_configs_for(agent_id, configs);
    }

    /// Sets what service discovery lists for `name`. By default it lists this center as `hids_svr_grpc` and
    /// `hids_svr_http`.
    pub fn set_registry(&self, name: &str, instances: Vec<Instance>) {
        self.server().set_registry(name, instances);
    }

    /// Sets how fast messages are taken from now on, on open streams as well.
    pub fn set_pace(&self, pace: Pace) {
        self.hooks.pace.send_replace(pace);
    }

    /// Closes the connection without a word at each message for which `deadly` returns true. The center takes nothing
    /// of that message, as if it had crashed while reading it.
    pub fn die_of(&self, deadly: impl FnMut(&Batch) -> bool + Send + 'static) {
        self.hooks.die_of(deadly);
    }

    /// Injects a fault into the open stream of an agent. Returns false when the agent has none.
    pub fn inject(&self, agent_id: &str, fault: Fault) -> bool {
        self.server().step(agent_id, Step::from(fault))
    }

    /// Injects a fault into the next Transfer stream that is opened, before anything else happens on it. If it is
    /// called more than once, each stream gets one fault, in this order.
    pub fn on_next_stream(&self, fault: Fault) {
        lock(&self.hooks.faults).push_back(fault);
    }

    /// Injects a fault into the next upload. If it is called more than once, each upload gets one fault, in this order.
    pub fn on_next_upload(&self, fault: UploadFault) {
        lock(&self.hooks.upload_faults).push_back(fault);
    }
}

impl Drop for Center {
    fn drop(&mut self) {
        drop(self.server.take());
        // The streams' senders are gone with the server. The writer ends once this last one is dropped.
        drop(lock(&self.hooks.lines).take());
        if let Some(writer) = self.writer.take() {
            // A thread that panicked has already printed why.
            _ = writer.join();
        }
    }
}

/// Turns a closure into an observer that stays for ever.
fn always(mut observer: impl FnMut(&Arc<Batch>)) -> impl FnMut(&Arc<Batch>) -> bool {
    move |batch| {
        observer(batch);
        true
    }
}

/// A command on its way. Await it, or call [`Delivery::wait`]. Dropping it does not cancel the command.
#[derive(Debug)]
#[must_use = "a command may fail to go out"]
pub struct Delivery(oneshot::Receiver<Result<(), CommandError>>);

impl Delivery {
    /// Blocks until the command is on the wire, at most 60 s.
    ///
    /// # Errors
    /// Why it is not.
    ///
    /// # Panics
    /// In async code, where it can be awaited instead.
    pub fn wait(self) -> Result<(), CommandError> {
        self.0.blocking_recv().unwrap_or(Err(CommandError::StreamEnded))
    }
}

impl Future for Delivery {
    type Output = Result<(), CommandError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|sent| sent.unwrap_or(Err(CommandError::StreamEnded)))
    }
}

/// Something did not happen in time. The text says what, and what the center saw instead.
#[derive(Clone)]
pub struct TimedOut {
    text: String,
}

impl TimedOut {
    fn new(what: &str, within: Duration, state: &State) -> Self {
        use fmt::Write as _;
        let mut text = format!("no {what} within {} ms\n  totals: {:?}", within.as_millis(), state.totals);
        for (id, agent) in &state.agents {
            let counts: BTreeMap<_, _> =
                agent.counts.iter().map(|(data_type, count)| (data_type, count.records)).collect();
            let Agent { connected, streams, messages, commands, .. } = agent;
            write!(
                text,
                "\n  agent {id:?}: connected {connected}, {streams} streams, {messages} messages, {commands} commands, \
                 records by type {counts:?}"
            )
            .expect("strings grow");
        }
        for line in &state.log {
            write!(text, "\n  {line}").expect("strings grow");
        }
        Self { text }
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for TimedOut {}
