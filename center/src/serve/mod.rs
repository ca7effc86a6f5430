//! An AgentCenter, the server that Elkeid's agents connect to. An agent cannot tell it from the real one.
//!
//! [`Server::start`] runs one on threads of its own. What it receives goes into a [`Sink`], what it knows of its
//! agents is the [`Fleet`], and [`crate::http`] answers on its second port.

mod connection;
mod connections;
mod enroll;
mod grpc;
mod held;
mod interpose;
mod ping;
mod rolling;
mod shared;
mod shown;
mod site;
mod telling;
mod transfer;
mod upload;

pub use crate::http::Instance;
pub use grpc::Status;
pub use interpose::{ConnectionStep, Interpose, Step, UploadAt, UploadStep, UploadWatch};
pub(crate) use rolling::RolloutError;
pub(crate) use shared::{Shared, lock};
pub use transfer::CommandError;
pub(crate) use transfer::Live;
pub(crate) use upload::{remove as remove_upload, report as upload_report};

use crate::desired::{Plugin, Target};
use crate::fleet::Fleet;
use crate::forward::settings::Output;
use crate::forward::{Facts, Forwarding};
use crate::http::{self, AccessKey, LocalKey};
use crate::sink::Sink;
use crate::store::Store;
use connection::{AgentTls, Clients};
use elklet_proto::grpc::{Command, Config};
use rustls::SupportedProtocolVersion;
pub(crate) use shown::Ends;
use shown::{Certificates, Shown};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::{runtime, task};

/// Threads that may wait for the disk. Each has a stack.
const BLOCKING: usize = 32;

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address that agents connect to. Port 0 takes any free port.
    pub listen: SocketAddr,
    /// The address of the HTTP port. Port 0 takes any free port.
    pub http: SocketAddr,
    /// The directory of `ca.crt`, `server.crt` and `server.key`, and of `ca.key` where the server enrols hosts.
    pub certs: PathBuf,
    /// How long the certificates of hosts are valid that the server enrols. Without it, it enrols none.
    pub certificate_lifetime: Option<Duration>,
    /// True if `certs` is the server's own authority, whose certificate for the server is made anew before its end.
    pub renews_own: bool,
    /// The protocols that the server offers by ALPN. AgentCenter offers h2, and without it no agent gets in.
    pub alpn: Vec<Vec<u8>>,
    /// The versions of TLS that the server offers.
    pub tls_versions: &'static [&'static SupportedProtocolVersion],
    /// True if the HTTP port speaks TLS, with the same server certificate and without a client's.
    pub http_tls: bool,
    /// The key that requests to the HTTP port may be signed with. Without one and without users, whoever reaches a loopback port may
    /// use it.
    pub access_key: Option<AccessKey>,
    /// The most Transfer streams at a time.
    pub conn_limit: usize,
    /// The most hosts that the server knows. Beyond it, it forgets who has been gone for longest.
    pub max_hosts: usize,
    /// The longest message in bytes, both as it arrives and decompressed.
    pub message_limit: usize,
    /// The longest file in bytes that an agent may upload.
    pub upload_limit: u64,
    /// Bytes of all uploaded files together, if there is a store. Beyond it, the oldest files go. Uploads that are under way have as much
    /// again.
    pub max_uploads: u64,
    /// The largest window of a stream in bytes: what an agent may send while its last message is not stored.
    pub max_window: u32,
    /// Bytes of all streams' windows together, as far as 16 KiB for each allow.
    pub window_memory: usize,
    /// True if a PING is answered once everything that came before it is stored, and false if at once. AgentCenter answers at once, and
    /// its agents forget what it may yet lose.
    pub pings_wait: bool,
    /// True if an empty configuration has agents end all plugins. AgentCenter sends it as a command with nothing in it, over which agents
    /// do nothing.
    pub empty_ends_all: bool,
    /// What every agent should run until somebody says otherwise, which the store keeps; see [`Server::set_configs`].
    pub configs: Option<Vec<Config>>,
    /// The store that the HTTP port searches, if there is one, and in which everything beside records is kept. What goes into it is the
    /// sink's affair.
    pub store: Option<Arc<Store>>,
    /// The directory into which the key of this host's own commands is written, if there are such commands.
    pub local_dir: Option<PathBuf>,
    /// The directory for uploads. Without one they fail.
    pub upload_dir: Option<PathBuf>,
    /// The directory of the files that agents may fetch. Without one there are none.
    pub files_dir: Option<PathBuf>,
    /// The address at which agents fetch these files, without TLS. Port 0 takes any free port. Without one they cannot.
    pub downloads: Option<SocketAddr>,
    /// The host that agents are told to fetch files from. Without one, it is the address at which the agent reached the server.
    pub download_host: Option<String>,
}

impl Options {
    /// AgentCenter's limits and any free ports of the loopback interface. Nothing is configured.
    pub fn new(certs: impl Into<PathBuf>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: any,
            http: any,
            certs: certs.into(),
            certificate_lifetime: None,
            renews_own: false,
            alpn: vec![b"h2".to_vec()],
            tls_versions: rustls::ALL_VERSIONS,
            http_tls: false,
            access_key: None,
            conn_limit: 1500,
            max_hosts: 10_000,
            message_limit: 10 << 20,
            upload_limit: 1 << 30,
            max_uploads: 1 << 30,
            // grpc-go's default.
            max_window: 65_535,
            window_memory: 128 << 20,
            pings_wait: true,
            empty_ends_all: false,
            configs: None,
            store: None,
            local_dir: None,
            upload_dir: None,
            files_dir: None,
            downloads: None,
            download_host: None,
        }
    }
}

/// A running server. Dropping it ends it like SIGKILL: it closes every connection at once.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    certificates: Arc<Certificates>,
    runtime: runtime::Handle,
    accepting: task::AbortHandle,
    /// Dropped to end the runtime.
    stop: Option<oneshot::Sender<()>>,
    runner: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server, which listens when this returns.
    ///
    /// # Errors
    /// When a certificate cannot be read or an address cannot be bound.
    pub fn start(mut options: Options, sink: Arc<dyn Sink>, interpose: Arc<dyn Interpose>) -> io::Result<Self> {
        let shown = Shown::load(&options.certs)?;
        let grpc = std::net::TcpListener::bind(options.listen).map_err(|error| at(options.listen, &error))?;
        let http = std::net::TcpListener::bind(options.http).map_err(|error| at(options.http, &error))?;
        options.listen = grpc.local_addr()?;
        options.http = http.local_addr()?;
        let bind = |address| std::net::TcpListener::bind(address).map_err(|error| at(address, &error));
        let downloads = options.downloads.map(bind).transpose()?;
        options.downloads = downloads.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(BLOCKING)
            .thread_name("center")
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let local = match &options.local_dir {
            Some(dir) => {
                let certificate = if options.http_tls { Some(shown.certificate()?) } else { None };
                let local = LocalKey::new(options.http, certificate.as_deref())?;
                local.write(dir)?;
                Some(local)
            }
            None => None,
        };
        if let Some(dir) = &options.upload_dir {
            upload::remove_unfinished(dir);
        }
        let shared = Arc::new(Shared::new(options, sink, interpose, local.as_ref())?);
        let options = &shared.options;
        let (shown, clients) = match shared.enrolment.authority() {
            Ok(authority) => {
                let shown = shown.with_authority(authority.certificate().clone())?;
                (shown, Clients::CertifiedAndAnonymous)
            }
            Err(_) => (shown, Clients::Certified),
        };
        let shown = Arc::clone(shared.shown.get_or_init(|| Arc::new(shown)));
        let agents = AgentTls::new(Arc::clone(&shown), clients, options)?;
        let http_tls = if options.http_tls { Some(connection::http_tls(Arc::clone(&shown))?) } else { None };
        let certificates = Arc::new(Certificates { shown, agents, local });
        let accepting = {
            let _inside = runtime.enter();
            if options.renews_own {
                runtime.spawn(shown::keep_renewed(Arc::clone(&shared), Arc::clone(&certificates)));
            }
            runtime.spawn(http::accept(listener(http)?, http_tls, Arc::clone(&shared)));
            if let Some(store) = shared.options.store.clone() {
                runtime.spawn(site::keep_written(Arc::clone(&shared), store));
            }
            runtime.spawn(rolling::drive(Arc::clone(&shared)));
            if let Some(downloads) = downloads {
                runtime.spawn(http::accept_downloads(listener(downloads)?, Arc::clone(&shared)));
            }
            let accepting = connection::accept(listener(grpc)?, Arc::clone(&certificates), Arc::clone(&shared));
            runtime.spawn(accepting).abort_handle()
        };
        let (stop, stopped) = oneshot::channel::<()>();
        // Its owner may drop the server in async code, and a runtime must not be dropped there. The runtime therefore ends on a thread
        // of its own.
        let runner = std::thread::Builder::new().name("center-main".into()).spawn(move || {
            // This waits until the sender is dropped. Nothing is ever sent.
            _ = runtime.block_on(stopped);
        })?;
        Ok(Self { shared, certificates, runtime: handle, accepting, stop: Some(stop), runner: Some(runner) })
    }

    /// Takes no more agents, ends every stream in order, and waits until they have ended, at most `within`.
    pub async fn end(&self, within: Duration) {
        let _inside = self.runtime.enter();
        self.accepting.abort();
        let mut version = self.shared.version.subscribe();
        let ids: Vec<String> = self.shared.read(|fleet| fleet.connected().map(str::to_owned).collect());
        for id in ids {
            self.shared.end(&id, Status::ok());
        }
        let gone = async {
            while !self.shared.read(|fleet| fleet.live.is_empty()) {
                version.changed().await.expect("the server has the sender");
            }
        };
        if tokio::time::timeout(within, gone).await.is_err() {
            log::warn!("streams are still open after {} s, and break now", within.as_secs());
        }
        if let Some(store) = &self.shared.options.store {
            site::write(&self.shared, store, true).await;
        }
    }

    /// Reads `server.crt`, `server.key` and `ca.crt` again, for connections that come from now on.
    ///
    /// # Errors
    /// What is wrong with them. Those of before stay then.
    pub fn reload(&self) -> io::Result<()> {
        self.certificates.reload(&self.shared.options)
    }

    /// Starts to pass records on, and goes on with that until what it returns is dropped. It is called once.
    ///
    /// # Errors
    /// There is no store, a certificate cannot be read, or the system gives no thread.
    pub fn forward(&self, outputs: Vec<Output>) -> io::Result<Forwarding> {
        let store = self.shared.options.store.as_ref().ok_or_else(|| io::Error::other("there is no store"))?;
        let shared = Arc::clone(&self.shared);
        let facts: Facts = Arc::new(move |id| shared.read(|fleet| fleet.agents.get(id)?.host().cloned()));
        Forwarding::start(outputs, store, &self.shared.forwards, &facts)
    }

    /// Returns its settings, with the ports that it has.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Returns a link that opens the page once within ten minutes, as an admin and without a password.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn link(&self) -> io::Result<String> {
        self.shared.new_link()
    }

    /// Returns the runtime that it runs on.
    pub fn runtime(&self) -> &runtime::Handle {
        &self.runtime
    }

    /// Calls `look` with what the server knows. Agents wait meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&Fleet) -> T) -> T {
        self.shared.read(look)
    }

    /// Returns a receiver that hears of each change of what the server knows.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.version.subscribe()
    }

    /// Sends a command to a connected agent, and waits until it is on the wire, at most `within`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn command(
        &self,
        agent_id: &str,
        command: Command,
        within: Duration,
    ) -> impl Future<Output = Result<(), CommandError>> + Send + 'static {
        let (shared, agent_id) = (Arc::clone(&self.shared), agent_id.to_owned());
        async move { shared.command(&agent_id, command, "", within).await }
    }

    /// Sets what every agent should run from now on, unless it has a configuration of its own. The server pushes it once a stream, at
    /// the first record 1000. It pushes an empty list like any other; `None` pushes nothing.
    pub fn set_configs(&self, configs: Option<Vec<Config>>) {
        self.set_desired(Target::Everybody, configs);
    }

    /// Returns what every agent should run.
    pub fn configs(&self) -> Option<Vec<Config>> {
        let plugins = self.shared.desired(|desired| desired.everybody().cloned())?;
        Some(plugins.into_iter().map(|plugin| plugin.config).collect())
    }

    /// Sets what one agent should run. `None` lets [`Server::set_configs`] decide again.
    pub fn set_configs_for(&self, agent_id: &str, configs: Option<Vec<Config>>) {
        self.set_desired(Target::Host(agent_id.to_owned()), configs);
    }

    fn set_desired(&self, target: Target, configs: Option<Vec<Config>>) {
        let plugins = configs.map(|configs| configs.into_iter().map(Plugin::from).collect());
        match self.shared.change_desired("program", |desired| desired.set(target, plugins)) {
            Ok(Ok(())) => {}
            Ok(Err(too_much)) => log::error!("agents keep what they run: {too_much}"),
            Err(error) => log::error!("agents keep what they run: {error}"),
        }
    }

    /// Sets what service discovery lists for `name`. By default it lists this server as `hids_svr_grpc` and `hids_svr_http`.
    pub fn set_registry(&self, name: &str, instances: Vec<Instance>) {
        lock(&self.shared.registry).insert(name.to_owned(), instances);
    }

    /// Has the open stream of an agent take a step. Returns false when the agent has none.
    pub fn step(&self, agent_id: &str, step: Step) -> bool {
        self.shared.step(agent_id, step)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(runner) = self.runner.take() {
            // A thread that panicked has already printed why.
            _ = runner.join();
        }
    }
}

fn listener(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn at(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}
