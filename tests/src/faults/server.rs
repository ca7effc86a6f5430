//! A center that is a process of its own: it can be stopped and killed like one, and what it had received is known even so.

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use elklet_proto::grpc::Config;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::journal::Reader;
use crate::harness::{AgentRecords, Setup, holds_within, own_address, wait_until};
use crate::pki::Set;

/// AgentCenter's port.
const PORT: u16 = 6751;

/// A center for one agent.
#[derive(Debug)]
pub struct Server {
    program: &'static str,
    /// Words before the program, which have it run elsewhere.
    prefix: Vec<String>,
    dir: TempDir,
    address: SocketAddr,
    child: Option<Child>,
    journal: Mutex<Reader>,
}

impl Server {
    /// One with fresh certificates on an address of its own, not yet running; `program` is the binary `center`.
    ///
    /// # Panics
    /// When there is no directory to be had for it.
    #[must_use]
    pub fn new(program: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Set::new().write(dir.path()).expect("it is writable");
        let journal = Mutex::new(Reader::of(dir.path().join("journal")));
        // The address is nobody else's, and so is every port of it.
        let address = SocketAddr::new(own_address().ip(), PORT);
        Self { program, prefix: Vec::new(), dir, address, child: None, journal }
    }

    /// The same inside a network namespace, where every port is free.
    #[must_use]
    pub fn within(mut self, prefix: &[String]) -> Self {
        self.prefix = prefix.to_vec();
        self.address = (Ipv4Addr::LOCALHOST, PORT).into();
        self
    }

    /// The same on all addresses of its namespace, IPv6 ones included.
    #[must_use]
    pub fn on_all_addresses(mut self) -> Self {
        self.address = (Ipv6Addr::UNSPECIFIED, PORT).into();
        self
    }

    /// The directory with its certificates.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// An agent for this server that is not started yet, in the same namespace.
    #[must_use]
    pub fn setup(&self) -> Setup {
        let words: Vec<_> = self.prefix.iter().map(String::as_str).collect();
        Setup::new(self.dir.path()).started_by(&words)
    }

    /// Where agents connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its agent is to run, from its next start on.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, configs: &[Config]) {
        let entries: Vec<_> = configs
            .iter()
            .map(|config| {
                json!({
                    "name": config.name, "type": config.r#type, "version": config.version, "sha256": config.sha256,
                    "signature": config.signature, "download_url": config.download_urls, "detail": config.detail,
                })
            })
            .collect();
        fs::write(self.dir.path().join("configs"), json!(entries).to_string()).expect("it is writable");
    }

    /// Starts it, at the address that it had before.
    ///
    /// # Panics
    /// When it cannot be started, or was not configured.
    pub fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let log = self.dir.path().join("log");
        let output = File::create(&log).expect("it is writable");
        let mut words: Vec<_> = self.prefix.iter().cloned().chain([self.program.to_owned()]).collect();
        words.extend(["--certs".to_owned(), self.dir.path().display().to_string()]);
        words.extend(["--listen".to_owned(), self.address.to_string()]);
        words.extend(["--http".to_owned(), SocketAddr::new(self.address.ip(), 0).to_string()]);
        words.extend(["--config".to_owned(), path("configs"), "--journal".to_owned(), path("journal")]);
        if !self.address.ip().is_loopback() {
            // All addresses of a namespace are loopback ones.
            words.push("--allow-non-loopback".to_owned());
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stderr(output);
        self.child = Some(command.spawn().expect("the center starts"));
        wait_until("center that listens", || {
            fs::read_to_string(&log).is_ok_and(|said| said.lines().any(|line| line.starts_with("listening ")))
        });
    }

    /// Kills it with SIGKILL.
    ///
    /// # Panics
    /// When it is not running.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it is our child");
        child.wait().expect("it was killed");
    }

    /// Stops it with SIGSTOP.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on with SIGCONT.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().map(|child| child.id().cast_signed()).and_then(Pid::from_raw);
        kill_process(pid.expect("it runs"), signal).expect("it is our child");
    }

    /// Looks at what its agent has sent so far, to all of its processes.
    pub fn records<T>(&self, look: impl FnOnce(&AgentRecords) -> T) -> T {
        look(self.journal.lock().unwrap_or_else(PoisonError::into_inner).records())
    }

    /// Waits until what its agent has sent is as wanted.
    ///
    /// # Panics
    /// When it does not become so in time.
    pub fn wait_records(&self, what: &str, within: Duration, condition: impl Fn(&AgentRecords) -> bool) {
        let holds = holds_within(within, || self.records(&condition));
        assert!(holds, "no {what} within {within:?}; series: {:?}", self.records(|records| records.series.clone()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            _ = child.kill();
            _ = child.wait();
        }
    }
}
