//! A center in a process of its own. It can be stopped and killed, and a journal keeps what it had received.

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
    /// Words before the program, such as those that run it in a namespace.
    prefix: Vec<String>,
    dir: TempDir,
    address: SocketAddr,
    child: Option<Child>,
    journal: Mutex<Reader>,
}

impl Server {
    /// Prepares a center with fresh certificates on an address of its own, without starting it. `program` is the binary
    /// `center`.
    ///
    /// # Panics
    /// When its directory cannot be created.
    #[must_use]
    pub fn new(program: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Set::new().write(dir.path()).expect("it is writable");
        let journal = Mutex::new(Reader::of(dir.path().join("journal")));
        // No other process uses this address, so every port of it is free.
        let address = SocketAddr::new(own_address().ip(), PORT);
        Self { program, prefix: Vec::new(), dir, address, child: None, journal }
    }

    /// Prepares one inside a network namespace, where every port is free.
    #[must_use]
    pub fn within(mut self, prefix: &[String]) -> Self {
        self.prefix = prefix.to_vec();
        self.address = (Ipv4Addr::LOCALHOST, PORT).into();
        self
    }

    /// Prepares one that listens on all addresses of its namespace, IPv6 included.
    #[must_use]
    pub fn on_all_addresses(mut self) -> Self {
        self.address = (Ipv6Addr::UNSPECIFIED, PORT).into();
        self
    }

    /// Returns the directory with its certificates.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns an agent for this server, in the same namespace, that is not started yet.
    #[must_use]
    pub fn setup(&self) -> Setup {
        let words: Vec<_> = self.prefix.iter().map(String::as_str).collect();
        Setup::new(self.dir.path()).started_by(&words)
    }

    /// Returns the address that agents connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what its agent should run, from the server's next start on.
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

    /// Starts it at the address that it had before.
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
            // A namespace has loopback addresses only, so this does not expose anything.
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

    /// Calls `look` with what the agent has sent so far, to all lives of this server.
    pub fn records<T>(&self, look: impl FnOnce(&AgentRecords) -> T) -> T {
        look(self.journal.lock().unwrap_or_else(PoisonError::into_inner).records())
    }

    /// Waits until the condition holds for what the agent has sent.
    ///
    /// # Panics
    /// When it does not hold in time.
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
