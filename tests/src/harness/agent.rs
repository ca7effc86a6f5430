//! One agent: its directory, its process, its log.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use elklet_proto::grpc::Config;
use ring::digest::{SHA256, digest};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::wait_until;
use crate::binaries::Binaries;

/// Lines of the log that are shown when a test fails.
const LINES_SHOWN: usize = 80;

/// Environment variables that mean something to the agent: those of whoever runs the tests are kept from it.
const VARIABLES: [&str; 13] = [
    "SPECIFIED_AGENT_ID",
    "specified_idc",
    "specified_region",
    "RUNTIME_MODE",
    "DETAIL",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// A working directory of an agent's own, and the plugins in it.
#[derive(Debug)]
pub struct Workdir {
    dir: TempDir,
}

impl Default for Workdir {
    fn default() -> Self {
        Self::new()
    }
}

impl Workdir {
    /// An empty one.
    ///
    /// # Panics
    /// When there is no temporary directory to be had; all methods panic when the file system fails.
    #[must_use]
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of a plugin.
    #[must_use]
    pub fn plugin_dir(&self, name: &str) -> PathBuf {
        self.path().join("plugin").join(name)
    }

    /// Puts a program into a plugin's place, and gives the entry that configures it.
    ///
    /// # Panics
    /// When it cannot be copied.
    #[must_use]
    pub fn install(&self, name: &str, program: &str, detail: &str) -> Config {
        let dir = self.plugin_dir(name);
        fs::create_dir_all(&dir).expect("it is writable");
        // Another process does the copying: a file that this one has open for writing would be so in every process that
        // another test forks meanwhile, and could not be executed.
        let copied = Command::new("cp").arg("--remove-destination").arg(program).arg(dir.join(name)).status();
        assert!(copied.is_ok_and(|status| status.success()), "{program} can be copied");
        config(name, "1.0", &sha256(&dir.join(name)), detail)
    }

    /// Processes whose working directory is in here: the agent's plugins and their children.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let inside =
            |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(self.path()));
        numbers.filter(inside).collect()
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid, Signal::KILL);
        }
    }
}

/// The entry that configures a plugin whose executable is on the disk.
#[must_use]
pub fn config(name: &str, version: &str, sha256: &str, detail: &str) -> Config {
    Config {
        name: name.to_owned(),
        r#type: "exec".to_owned(),
        version: version.to_owned(),
        sha256: sha256.to_owned(),
        signature: sha256.to_owned(),
        download_urls: Vec::new(),
        detail: detail.to_owned(),
    }
}

fn sha256(path: &Path) -> String {
    let bytes = fs::read(path).expect("the file is there");
    digest(&SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An agent that is not running: what it will be started with.
#[derive(Debug)]
pub struct Setup {
    workdir: Workdir,
    id: String,
    arguments: Vec<OsString>,
    environment: BTreeMap<String, String>,
    /// Lines of its file by section.
    settings: BTreeMap<String, String>,
    /// Another program than the one under test.
    program: Option<PathBuf>,
    /// What starts it, if it is not started directly.
    starter: Vec<OsString>,
    /// Where its standard error goes, if not into a file.
    stderr: Option<OwnedFd>,
}

impl Setup {
    /// An agent in a fresh directory with an id of its own, which belongs to no fleet: after a stable stream, a lost
    /// server is tried again within a second.
    #[must_use]
    pub fn new(certs: &Path) -> Self {
        let mut setup = Self::in_directory(Workdir::new());
        setup.arguments.extend(["--certs".into(), certs.into()]);
        setup.setting("server", "reconnect_spread_s = 1")
    }

    /// An agent in a directory that has something in it, and an id of its own.
    #[must_use]
    pub fn in_directory(workdir: Workdir) -> Self {
        static AGENTS: AtomicU32 = AtomicU32::new(1);
        let id = format!("agent-{}-{}", std::process::id(), AGENTS.fetch_add(1, Ordering::Relaxed));
        let arguments = ["run".into(), "--workdir".into(), workdir.path().into()].to_vec();
        let environment = BTreeMap::from([("SPECIFIED_AGENT_ID".to_owned(), id.clone())]);
        Self {
            workdir,
            id,
            arguments,
            environment,
            settings: BTreeMap::new(),
            program: None,
            starter: Vec::new(),
            stderr: None,
        }
    }

    /// These words for its command line, and no others.
    #[must_use]
    pub fn only(mut self, words: &[&str]) -> Self {
        self.arguments = words.iter().map(Into::into).collect();
        self
    }

    /// One more server, `HOST:PORT`.
    #[must_use]
    pub fn server(self, address: &str) -> Self {
        self.argument("--server").argument(address)
    }

    /// One more word of the command line.
    #[must_use]
    pub fn argument(mut self, word: &str) -> Self {
        self.arguments.push(word.into());
        self
    }

    /// One more line of a section of its file, which is written anew.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn setting(mut self, section: &str, line: &str) -> Self {
        let lines = self.settings.entry(section.to_owned()).or_default();
        *lines = format!("{lines}{line}\n");
        let file: String = self.settings.iter().map(|(section, lines)| format!("[{section}]\n{lines}")).collect();
        fs::write(self.workdir.path().join("elklet.toml"), file).expect("it is writable");
        self
    }

    /// One more variable of the environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Leaves the agent to find its id itself; [`Agent::id`] is for nothing until [`Agent::set_id`].
    #[must_use]
    pub fn without_id(mut self) -> Self {
        self.environment.remove("SPECIFIED_AGENT_ID");
        self.id.clear();
        self
    }

    /// Starts it by this command, which is to become the one that follows it.
    #[must_use]
    pub fn started_by(mut self, words: &[&str]) -> Self {
        self.starter = words.iter().map(Into::into).collect();
        self
    }

    /// Another program than the one under test.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Its standard error goes there, at its next start.
    #[must_use]
    pub fn stderr_to(mut self, end: OwnedFd) -> Self {
        self.stderr = Some(end);
        self
    }

    /// Its directory.
    #[must_use]
    pub fn workdir(&self) -> &Workdir {
        &self.workdir
    }

    /// Starts it.
    ///
    /// # Panics
    /// When the program cannot be built or started.
    #[must_use]
    pub fn start(mut self) -> Agent {
        let stderr = self.workdir.path().join("stderr");
        let file = || File::options().create(true).append(true).open(&stderr).expect("it is writable").into();
        let stderr = self.stderr.take().unwrap_or_else(file);
        let program = self.program.as_ref().unwrap_or_else(|| &Binaries::for_tests().elklet);
        let mut words = self.starter.iter().map(OsString::as_os_str).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().expect("the program is one"));
        command.args(words);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.args(&self.arguments).envs(&self.environment);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("the agent starts");
        Agent { setup: Some(self), child }
    }
}

/// An agent that was started. Dropping it kills it, and whatever runs in its directory.
#[derive(Debug)]
pub struct Agent {
    /// `None` only after [`Agent::into_setup`] and [`Agent::kill`].
    setup: Option<Setup>,
    child: Child,
}

/// An agent's heartbeat and its plugins', as fields.
#[derive(Debug, Clone)]
pub struct Heartbeats {
    /// Record 1000.
    pub agent: BTreeMap<String, String>,
    /// Records 1001, by the plugin's name.
    pub plugins: BTreeMap<String, BTreeMap<String, String>>,
}

impl Heartbeats {
    /// A counter in the agent's own.
    ///
    /// # Panics
    /// When it is not there or no number.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        count(&self.agent, name)
    }

    /// A counter in a plugin's.
    ///
    /// # Panics
    /// When the plugin, or the counter, is not there or no number.
    #[must_use]
    pub fn plugin_count(&self, plugin: &str, name: &str) -> u64 {
        let fields = self.plugins.get(plugin).unwrap_or_else(|| panic!("no 1001 of {plugin}: {:?}", self.plugins));
        count(fields, name)
    }
}

fn count(fields: &BTreeMap<String, String>, name: &str) -> u64 {
    let value = fields.get(name).unwrap_or_else(|| panic!("no field {name}: {fields:?}"));
    value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, expected a number"))
}

impl Agent {
    fn setup(&self) -> &Setup {
        self.setup.as_ref().expect("it is taken with the agent only")
    }

    /// The id that it goes by.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.setup().id
    }

    /// Says what id it has found.
    ///
    /// # Panics
    /// Never.
    pub fn set_id(&mut self, id: &str) {
        self.setup.as_mut().expect("it is taken with the agent only").id = id.to_owned();
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its directory.
    #[must_use]
    pub fn workdir(&self) -> &Workdir {
        self.setup().workdir()
    }

    /// See [`Workdir::install`].
    #[must_use]
    pub fn install(&self, name: &str, program: &str, detail: &str) -> Config {
        self.workdir().install(name, program, detail)
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.workdir().path().join("log/elklet.log")).unwrap_or_default()
    }

    /// The lines of its log that have this text in them.
    #[must_use]
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// Waits for a line of the log with this text in it, and gives the first.
    pub fn wait_for_log(&self, text: &str) -> String {
        let mut lines = Vec::new();
        wait_until(&format!("log line with {text:?}"), || {
            lines = self.log_lines(text);
            !lines.is_empty()
        });
        lines.swap_remove(0)
    }

    /// What it has written to standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.workdir().path().join("stderr")).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Whether it is running.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Waits until it has ended, and says how.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("end of the agent", || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Ends it in order and gives what it takes to start it again in the same directory.
    ///
    /// # Panics
    /// When it does not end with code 0.
    #[must_use]
    pub fn into_setup(mut self) -> Setup {
        self.signal(Signal::TERM);
        let status = self.wait_for_exit();
        assert!(status.success(), "the agent ended with {status}");
        self.setup.take().expect("it is taken with the agent only")
    }

    /// Kills it and gives what it takes to start it again in the same directory. Its plugins may go on for a moment.
    ///
    /// # Panics
    /// When it cannot be killed.
    #[must_use]
    pub fn kill(mut self) -> Setup {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it was killed");
        self.setup.take().expect("it is taken with the agent only")
    }

    /// Bytes of memory that it had resident at most.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn peak_rss(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Bytes of memory that it has resident.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn rss(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a process has memory");
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() && self.setup.is_some() {
            let (log, stderr) = (self.log(), self.stderr());
            let lines: Vec<_> = log.lines().collect();
            let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            let ended = self.child.try_wait();
            eprintln!("--- {} ({ended:?}), its log:\n{shown}\n--- its standard error:\n{stderr}", self.id());
        }
        // It may have ended already; then both fail, which is as well.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process has a positive number");
    // It may have ended by itself.
    _ = kill_process(pid, signal);
}
