//! An AgentCenter, the server that Elkeid's agents connect to. An agent cannot tell it from the real one.
//!
//! [`Center::start`] runs one on threads of its own; a test then configures it, waits for what it wants to see
//! ([`Center::wait_for`], or [`Center::wait_until`] in async code), and makes it fail in the way under test ([`Fault`],
//! [`Pace`]). It counts everything that it receives and keeps none of it. A test that wants the records reads along
//! ([`Center::observe`], [`Center::subscribe`]) or has them written as JSON lines ([`RecordsTo`]).
//!
//! There is no database, no message queue and no manager behind it: configuration and commands come from a test or over the
//! HTTP port.

mod auth;
mod config;
mod connection;
mod fault;
mod grpc;
mod http;
mod ping;
mod records;
mod shared;
mod state;
mod transfer;
mod upload;

pub use auth::{AccessKey, Signed};
pub use config::{configs_from_file, configs_from_json};
pub use fault::{Fault, Pace, UploadFault};
pub use grpc::Status;
pub use http::Instance;
pub use records::{AGENT_HEARTBEAT, Batch, PLUGIN_HEARTBEAT, PackagedData, Record, RecordsTo, TASK_REPORT};
pub use state::{Agent, Count, Heartbeat, State, Totals, Upload};
pub use transfer::CommandError;

use elklet_proto::grpc::{Command, Config};
use rustls::SupportedProtocolVersion;
use shared::{Shared, lock};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::oneshot;

/// The longest that a test's command may wait for its agent. A long command may have to go through a small window, on a
/// busy machine.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// The settings of a center.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address that agents connect to. Port 0 takes any free port.
    pub listen: SocketAddr,
    /// The address of the HTTP port. Port 0 takes any free port.
    pub http: SocketAddr,
    /// The directory of `ca.crt`, `server.crt` and `server.key`.
    pub certs: PathBuf,
    /// The protocols that the center offers by ALPN. AgentCenter offers h2, and without it no agent gets in.
    pub alpn: Vec<Vec<u8>>,
    /// The versions of TLS that the center offers.
    pub tls_versions: &'static [&'static SupportedProtocolVersion],
    /// True if the HTTP port speaks TLS, with the same server certificate and without a client's.
    pub http_tls: bool,
    /// The key that requests to the HTTP port have to be signed with. Without one, everybody may use the port.
    pub access_key: Option<AccessKey>,
    /// The most Transfer streams at a time.
    pub conn_limit: usize,
    /// The longest message in bytes, both as it arrives and decompressed.
    pub message_limit: usize,
    /// What every agent should run; see [`Center::set_configs`].
    pub configs: Option<Vec<Config>>,
    /// Where records are written as JSON lines, if anywhere.
    pub records: Option<RecordsTo>,
    /// The directory for uploads. Without one they fail.
    pub upload_dir: Option<PathBuf>,
}

impl Options {
    /// AgentCenter's limits and any free ports of the loopback interface. Nothing is configured, and nothing is
    /// written.
    pub fn new(certs: impl Into<PathBuf>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: any,
            http: any,
            certs: certs.into(),
            alpn: vec![b"h2".to_vec()],
            tls_versions: rustls::ALL_VERSIONS,
            http_tls: false,
            access_key: None,
            conn_limit: 1500,
            message_limit: 10 << 20,
            configs: None,
            records: None,
            upload_dir: None,
        }
    }
}

/// A running AgentCenter. Dropping it ends it like SIGKILL: it closes every connection at once.
#[derive(Debug)]
pub struct Center {
    shared: Arc<Shared>,
    runtime: runtime::Handle,
    /// Dropped to end the runtime.
    stop: Option<oneshot::Sender<()>>,
    runner: Option<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
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
    pub fn start_observed(
        mut options: Options,
        observer: impl FnMut(&Arc<Batch>) + Send + 'static,
    ) -> io::Result<Self> {
        let tls = connection::tls(&options.certs, true, options.tls_versions, options.alpn.clone())?;
        let http_tls = match options.http_tls {
            true => Some(connection::tls(&options.certs, false, rustls::DEFAULT_VERSIONS, vec![b"http/1.1".to_vec()])?),
            false => None,
        };
        let grpc = std::net::TcpListener::bind(options.listen).map_err(|error| at(options.listen, &error))?;
        let http = std::net::TcpListener::bind(options.http).map_err(|error| at(options.http, &error))?;
        options.listen = grpc.local_addr()?;
        options.http = http.local_addr()?;
        let (lines, writer) = match &options.records {
            Some(to) => {
                let (sender, thread) = records::start_writer(to)?;
                (Some(sender), Some(thread))
            }
            None => (None, None),
        };
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(2).thread_name("center").enable_all().build()?;
        let handle = runtime.handle().clone();
        let shared = Arc::new(Shared::new(options, lines));
        shared.observe(always(observer));
        {
            let _inside = runtime.enter();
            runtime.spawn(connection::accept(listener(grpc)?, tls, Arc::clone(&shared)));
            runtime.spawn(http::accept(listener(http)?, http_tls, Arc::clone(&shared)));
        }
        let (stop, stopped) = oneshot::channel::<()>();
        // A test may drop its center in async code, and a runtime must not be dropped there. The runtime therefore ends
        // on a thread of its own.
        let runner = std::thread::Builder::new().name("center-main".into()).spawn(move || {
            // This waits until the sender is dropped. Nothing is ever sent.
            _ = runtime.block_on(stopped);
        })?;
        Ok(Self { shared, runtime: handle, stop: Some(stop), runner: Some(runner), writer })
    }

    /// Ends the center and returns what it takes to start another on the same ports with the same configuration.
    ///
    /// What it received has been written when this returns.
    pub fn stop(self) -> Options {
        let mut options = self.shared.options.clone();
        options.configs = lock(&self.shared.configs).default.clone();
        options
    }

    /// Returns the address that agents connect to.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.shared.options.listen
    }

    /// Returns the address of the HTTP port.
    pub fn http_addr(&self) -> SocketAddr {
        self.shared.options.http
    }

    /// Calls `look` with what the center knows. Agents wait meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.shared.read(look)
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
        let state = lock(&self.shared.state);
        let waited = self.shared.changed.wait_timeout_while(state, within, |state| !condition(state));
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() { Err(TimedOut::new(what, within, &state)) } else { Ok(()) }
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
        let mut version = self.shared.version.subscribe();
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
            let _inside = self.runtime.enter();
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
        self.shared.observe(always(observer));
    }

    /// Returns a receiver of every message from now on. They stay in memory until they are received, or the receiver is
    /// dropped.
    pub fn subscribe(&self) -> std_mpsc::Receiver<Arc<Batch>> {
        let (sender, receiver) = std_mpsc::channel();
        self.shared.observe(move |batch| sender.send(Arc::clone(batch)).is_ok());
        receiver
    }

    /// Sends a command to a connected agent.
    pub fn command(&self, agent_id: &str, command: Command) -> Delivery {
        let (done, receiver) = oneshot::channel();
        let (shared, agent_id) = (Arc::clone(&self.shared), agent_id.to_owned());
        self.runtime.spawn(async move {
            // Whoever asked may have dropped the receiver.
            _ = done.send(shared.command(&agent_id, command, COMMAND_DEADLINE).await);
        });
        Delivery(receiver)
    }

    /// Sets what every agent should run from now on, unless it has a configuration of its own. The center pushes it
    /// once a stream, at the first record 1000. It pushes an empty list like any other; `None` pushes nothing.
    pub fn set_configs(&self, configs: Option<Vec<Config>>) {
        lock(&self.shared.configs).default = configs;
    }

    /// Sets what one agent should run. `None` lets [`Center::set_configs`] decide again.
    pub fn set_configs_for(&self, agent_id: &str, configs: Option<Vec<Config>>) {
        let mut all = lock(&self.shared.configs);
        match configs {
            Some(configs) => _ = all.by_agent.insert(agent_id.to_owned(), configs),
            None => _ = all.by_agent.remove(agent_id),
        }
    }

    /// Sets what service discovery lists for `name`. By default it lists this center as `hids_svr_grpc` and
    /// `hids_svr_http`.
    pub fn set_registry(&self, name: &str, instances: Vec<Instance>) {
        lock(&self.shared.registry).insert(name.to_owned(), instances);
    }

    /// Sets how fast messages are taken from now on, on open streams as well.
    pub fn set_pace(&self, pace: Pace) {
        self.shared.pace.send_replace(pace);
    }

    /// Closes the connection without a word at each message for which `deadly` returns true. The center takes nothing
    /// of that message, as if it had crashed while reading it.
    pub fn die_of(&self, deadly: impl FnMut(&Batch) -> bool + Send + 'static) {
        self.shared.die_of(deadly);
    }

    /// Injects a fault into the open stream of an agent. Returns false when the agent has none.
    pub fn inject(&self, agent_id: &str, fault: Fault) -> bool {
        self.shared.inject(agent_id, fault)
    }

    /// Injects a fault into the next Transfer stream that is opened, before anything else happens on it. If it is
    /// called more than once, each stream gets one fault, in this order.
    pub fn on_next_stream(&self, fault: Fault) {
        lock(&self.shared.faults).push_back(fault);
    }

    /// Injects a fault into the next upload. If it is called more than once, each upload gets one fault, in this order.
    pub fn on_next_upload(&self, fault: UploadFault) {
        lock(&self.shared.upload_faults).push_back(fault);
    }
}

impl Drop for Center {
    fn drop(&mut self) {
        drop(self.stop.take());
        join(self.runner.take());
        // The streams' senders are gone with the runtime. The writer ends once this last one is dropped.
        drop(lock(&self.shared.lines).take());
        join(self.writer.take());
    }
}

/// Turns a closure into an observer that stays for ever.
fn always(mut observer: impl FnMut(&Arc<Batch>)) -> impl FnMut(&Arc<Batch>) -> bool {
    move |batch| {
        observer(batch);
        true
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread {
        // A thread that panicked has already printed why.
        _ = thread.join();
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

fn listener(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn at(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}
