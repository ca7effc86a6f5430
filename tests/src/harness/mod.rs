//! The vocabulary of whole-agent tests: a [`Site`] with a center, real [`Agent`]s in directories of their own, the
//! [`Records`] that arrived, and plugins that do what they are told (`src/bin/scripted-plugin.rs`).
//!
//! Nothing in here looks inside the agent. The harness starts it as a program and sees what it sends, what it logs and
//! how it ends. Every wait is for a condition and has a deadline. When the deadline passes, the test panics with what
//! was seen instead.

mod agent;
pub(crate) mod journal;
mod raw;
mod records;

pub use agent::{Agent, Heartbeats, Setup, Workdir, config, whole_lines};
pub use journal::Journal;
pub use raw::RawServer;
pub use records::{AgentRecords, Records, Series, Taken};
pub use rustix::process::Signal;

use crate::center::{Batch, Center, Options, State};
use crate::pki::Set;
use elklet_proto::grpc::{Command, Task};
use std::io::{self, Write, stderr};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a test waits for anything: far longer than it takes, for the sake of slow and busy machines.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The data types of the scripted plugin's records.
pub mod types {
    /// A numbered record: `run`, `seq`, and padding.
    pub const NUMBERED: i32 = 7000;
    /// What the plugin found around it.
    pub const HELLO: i32 = 7001;
    /// A child's `pid`.
    pub const CHILD: i32 = 7002;
    /// A task that it received: `token`, `bytes`.
    pub const TASK: i32 = 7003;
    /// The plugin's last record: `run`, and how many records of it were `sent`.
    pub const GOODBYE: i32 = 7004;
}

/// A center, and what its agents have sent it. The center can be stopped and started again, and the site still knows
/// what was sent.
#[derive(Debug)]
pub struct Site {
    center: Option<Center>,
    /// The number of centers so far.
    centers: u64,
    records: Arc<Records>,
    certs: TempDir,
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// Starts a center with fresh certificates on free ports.
    #[must_use]
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Starts a center with other options.
    ///
    /// # Panics
    /// When the center cannot be started. Everything in this module panics when it cannot go on.
    #[must_use]
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let certs = tempfile::tempdir().expect("a temporary directory");
        Set::new().write(certs.path()).expect("it is writable");
        let mut options = Options::new(certs.path());
        let own = own_address();
        (options.listen, options.http) = (own, own);
        change(&mut options);
        let mut site = Self { center: None, centers: 0, records: Arc::default(), certs };
        site.start(options);
        site
    }

    /// Returns the running center.
    ///
    /// # Panics
    /// While it is stopped.
    #[must_use]
    pub fn center(&self) -> &Center {
        self.center.as_ref().expect("the center runs")
    }

    /// Returns the directory of the site's certificates, those of both ends.
    #[must_use]
    pub fn certs(&self) -> &Path {
        self.certs.path()
    }

    /// Returns the address that agents connect to, as `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.center().grpc_addr().to_string()
    }

    /// Stops the center, like SIGKILL, and returns the options to start it again.
    ///
    /// # Panics
    /// When it is stopped already.
    pub fn stop(&mut self) -> Options {
        self.center.take().expect("the center runs").stop()
    }

    /// Starts a center in place of the one that was stopped.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&mut self, options: Options) {
        self.start_observed(options, |_| {});
    }

    /// Does the same with an observer. It misses nothing, although agents may come back before this returns.
    ///
    /// # Panics
    /// When the center cannot be started.
    pub fn start_observed(&mut self, options: Options, observer: impl FnMut(&Arc<Batch>) + Clone + Send + 'static) {
        let (number, mut started) = (self.centers + 1, None);
        wait_until("address to listen on", || {
            // Another test may just be starting a process, which may still hold the sockets of the center that was
            // stopped.
            let (records, mut observer) = (Arc::clone(&self.records), observer.clone());
            let result = Center::start_observed(options.clone(), move |batch| {
                observer(batch);
                records.take(number, batch);
            });
            let taken = result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
            started = Some(result);
            !taken
        });
        self.center = Some(started.expect("it was tried").expect("the center starts"));
        self.centers = number;
    }

    /// Prepares an agent of this site. It has the site's certificates and no server to go to.
    #[must_use]
    pub fn setup(&self) -> Setup {
        Setup::new(self.certs())
    }

    /// Prepares an agent for this center that comes back at once when its stream ends.
    ///
    /// An agent waits between two rounds over its servers. Within a round it goes on to the next server at once, and
    /// losing a stream that was not stable yet ends no round. Its settings therefore name this server several times.
    #[must_use]
    pub fn eager(&self) -> Setup {
        (0..8).fold(self.setup(), |setup, _| setup.server(&self.address()))
    }

    /// Starts an eager agent, and waits until it is connected.
    #[must_use]
    pub fn agent(&self) -> Agent {
        let agent = self.eager().start();
        self.wait_connected(&agent);
        agent
    }

    /// Waits until an agent's stream is open and its heartbeat has arrived.
    pub fn wait_connected(&self, agent: &Agent) {
        self.wait("connected agent", |state| {
            let known = state.agent(agent.id());
            known.connected && known.heartbeat.is_some()
        });
    }

    /// Waits until the condition holds for the center's state; see [`Center::wait_for`].
    ///
    /// # Panics
    /// When it does not hold before the [`DEADLINE`].
    pub fn wait(&self, what: &str, condition: impl FnMut(&State) -> bool) {
        if let Err(timed_out) = self.center().wait_for(what, DEADLINE, condition) {
            panic!("{timed_out}");
        }
    }

    /// Waits until the condition holds for what an agent has sent.
    ///
    /// # Panics
    /// When it does not hold before the [`DEADLINE`].
    pub fn wait_records(&self, what: &str, agent: &Agent, condition: impl Fn(&AgentRecords) -> bool) {
        // The center observes a message before it counts it. Each change of the center's state is therefore also a
        // change of the records.
        let waited = self.center().wait_for(what, DEADLINE, |_| self.records.of(agent.id(), &condition));
        if let Err(timed_out) = waited {
            panic!("{timed_out}\n  series: {:?}", self.records.of(agent.id(), |records| records.series.clone()));
        }
    }

    /// Calls `look` with what an agent has sent so far, over all streams and centers of this site.
    pub fn records<T>(&self, agent: &Agent, look: impl FnOnce(&AgentRecords) -> T) -> T {
        self.records.of(agent.id(), look)
    }

    /// Sends a command and waits until it is on the wire.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn command(&self, agent: &Agent, command: Command) {
        if let Err(error) = self.center().command(agent.id(), command).wait() {
            panic!("{error}: {:#?}", self.center().read(|state| state.log.clone()));
        }
    }

    /// Sends a task.
    pub fn task(&self, agent: &Agent, plugin: &str, data_type: i32, data: &str, token: &str) {
        let task = Task { data_type, object_name: plugin.into(), data: data.into(), token: token.into() };
        self.command(agent, Command { task: Some(task), ..Command::default() });
    }

    /// Gives a scripted plugin that is reading tasks more words to carry out.
    pub fn tell(&self, agent: &Agent, plugin: &str, script: &str) {
        self.task(agent, plugin, 1, &format!("do {script}"), script);
    }

    /// Sends a configuration.
    pub fn configure(&self, agent: &Agent, configs: &[elklet_proto::grpc::Config]) {
        self.command(agent, Command { configs: configs.to_vec(), ..Command::default() });
    }

    /// Ends the agent's stream, as AgentCenter does on `/conn/reset`, and returns the heartbeats that begin the next
    /// one.
    ///
    /// The agent replays there what it does not know to have arrived.
    ///
    /// # Panics
    /// When the agent is not connected.
    #[must_use]
    pub fn fresh_heartbeats(&self, agent: &Agent) -> Heartbeats {
        use crate::center::{Fault, Status};
        let before = self.center().read(|state| state.agent(agent.id()).streams);
        assert!(self.center().inject(agent.id(), Fault::Status(Status::ok())), "{} is connected", agent.id());
        self.wait("heartbeat of a new stream", |state| {
            let known = state.agent(agent.id());
            known.streams > before && known.heartbeat.is_some()
        });
        self.heartbeats(agent)
    }

    /// Returns the latest heartbeats of the agent's latest stream.
    ///
    /// # Panics
    /// When there is none yet.
    #[must_use]
    pub fn heartbeats(&self, agent: &Agent) -> Heartbeats {
        let known = self.center().read(|state| state.agent(agent.id()));
        Heartbeats {
            agent: known.heartbeat.expect("the stream has brought a heartbeat").fields(),
            plugins: known.plugins.into_iter().map(|(name, heartbeat)| (name, heartbeat.fields())).collect(),
        }
    }
}

/// Returns port 0 of a loopback address that no other site uses. Nobody else is given the port of a center that was
/// stopped, then.
#[must_use]
pub fn own_address() -> SocketAddr {
    static SITES: AtomicU32 = AtomicU32::new(0);
    let [_, a, b, _] = std::process::id().wrapping_mul(0x9e37_79b1).to_be_bytes();
    let number = 1 + SITES.fetch_add(1, Ordering::Relaxed) % 250;
    let number = u8::try_from(number).expect("it is at most 250");
    (Ipv4Addr::new(127, a.max(1), b, number), 0).into()
}

/// Blocks until a condition holds. It polls, because nobody announces the change.
///
/// # Panics
/// When it does not hold before the [`DEADLINE`].
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(DEADLINE, condition), "no {what} within {} s", DEADLINE.as_secs());
}

/// Returns true if a condition comes to hold within this time.
pub fn holds_within(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs all cases of a test at once, each on a thread with the case's name, because they mostly wait.
///
/// # Panics
/// When one of them panics.
pub fn all_at_once<C: Sync>(cases: &[(&str, C)], run: impl Fn(&str, &C) + Sync) {
    thread::scope(|scope| {
        for (name, case) in cases {
            let run = &run;
            let spawned = thread::Builder::new().name((*name).to_owned()).spawn_scoped(scope, move || run(name, case));
            spawned.expect("a thread");
        }
    });
}

/// Says that a test cannot run here, and why. It bypasses the capture of output, so that whoever runs the tests sees
/// it.
///
/// # Panics
/// When standard error is closed.
pub fn skipped(test: &str, why: &str) {
    stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes()).expect("standard error is open");
}

/// Returns true if the process exists and is no zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, behind_name)| !behind_name.starts_with(['Z', 'X']))
}
