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

/// The last lines of the log that are shown when a test fails.
const LINES_SHOWN: usize = 80;

/// The most lines before these that are shown because they say that something was wrong.
const WRONG_SHOWN: usize = 200;

/// Environment variables that mean something to the agent. The harness removes them, so that the values of whoever runs
/// the tests do not matter.
const VARIABLES: [&str; 16] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
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

/// An agent's own work directory, with the plugins in it.
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
    /// Creates an empty one.
    ///
    /// # Panics
    /// When no temporary directory can be created. All methods panic when the file system fails.
    #[must_use]
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Creates an empty one in this directory, for what does not work below `/tmp`.
    ///
    /// # Panics
    /// When it cannot be created.
    #[must_use]
    pub fn within(parent: &Path) -> Self {
        Self { dir: tempfile::tempdir_in(parent).expect("a directory") }
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the directory of a plugin.
    #[must_use]
    pub fn plugin_dir(&self, name: &str) -> PathBuf {
        self.path().join("plugin").join(name)
    }

    /// Copies a program into a plugin's place, and returns the entry that configures it.
    ///
    /// # Panics
    /// When it cannot be copied.
    #[must_use]
    pub fn install(&self, name: &str, program: &str, detail: &str) -> Config {
        let dir = self.plugin_dir(name);
        fs::create_dir_all(&dir).expect("it is writable");
        // Another process does the copying. If this one had the file open for writing, every process that another test
        // forks meanwhile would inherit that, and the file could not be executed.
        let copied = Command::new("cp").arg("--remove-destination").arg(program).arg(dir.join(name)).status();
        assert!(copied.is_ok_and(|status| status.success()), "{program} can be copied");
        config(name, "1.0", &sha256(&dir.join(name)), detail)
    }

    /// Returns the processes whose working directory is in here: the agent's plugins and their children.
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

/// Returns the entry that configures a plugin whose executable is on the disk.
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

/// An agent that is not running, with everything that it will be started with.
#[derive(Debug)]
pub struct Setup {
    workdir: Workdir,
    id: String,
    arguments: Vec<OsString>,
    environment: BTreeMap<String, String>,
    /// The lines of its file, by section.
    settings: BTreeMap<String, String>,
    /// The program to start instead of the one under test.
    program: Option<PathBuf>,
    /// The command that starts it, if it is not started directly.
    starter: Vec<OsString>,
    /// Where its standard error goes, if not to a file.
    stderr: Option<OwnedFd>,
}

impl Setup {
    /// Prepares an agent in a fresh directory, with an id of its own. It belongs to no fleet, so it retries a lost
    /// server within a second after a stable stream.
    #[must_use]
    pub fn new(certs: &Path) -> Self {
        let mut setup = Self::in_directory(Workdir::new());
        setup.arguments.extend(["--certs".into(), certs.into()]);
        setup.setting("server", "reconnect_spread_s = 1")
    }

    /// Prepares an agent in an existing directory, with an id of its own.
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

    /// Replaces the words of its command line.
    #[must_use]
    pub fn only(mut self, words: &[&str]) -> Self {
        self.arguments = words.iter().map(Into::into).collect();
        self
    }

    /// Adds a server, `HOST:PORT`.
    #[must_use]
    pub fn server(self, address: &str) -> Self {
        self.argument("--server").argument(address)
    }

    /// Adds a word to the command line.
    #[must_use]
    pub fn argument(mut self, word: &str) -> Self {
        self.arguments.push(word.into());
        self
    }

    /// Adds a line to a section of its file, and writes the file anew.
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

    /// Adds an environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Lets the agent find its id itself. [`Agent::id`] is of no use until [`Agent::set_id`].
    #[must_use]
    pub fn without_id(mut self) -> Self {
        self.environment.remove("SPECIFIED_AGENT_ID");
        self.id.clear();
        self
    }

    /// Starts it by this command, which has to exec the command that follows it.
    #[must_use]
    pub fn started_by(mut self, words: &[&str]) -> Self {
        self.starter = words.iter().map(Into::into).collect();
        self
    }

    /// Starts another program than the one under test.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Sends its standard error there, from its next start on.
    #[must_use]
    pub fn stderr_to(mut self, end: OwnedFd) -> Self {
        self.stderr = Some(end);
        self
    }

    /// Returns its directory.
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

/// A started agent. Dropping it kills it, and whatever runs in its directory.
#[derive(Debug)]
pub struct Agent {
    /// `None` only after [`Agent::into_setup`] and [`Agent::kill`].
    setup: Option<Setup>,
    child: Child,
}

/// The heartbeats of an agent and its plugins, as fields.
#[derive(Debug, Clone)]
pub struct Heartbeats {
    /// Record 1000.
    pub agent: BTreeMap<String, String>,
    /// The records 1001, by the plugin's name.
    pub plugins: BTreeMap<String, BTreeMap<String, String>>,
}

impl Heartbeats {
    /// Returns a counter of the agent's own heartbeat.
    ///
    /// # Panics
    /// When it is missing or not a number.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        count(&self.agent, name)
    }

    /// Returns a counter of a plugin's heartbeat.
    ///
    /// # Panics
    /// When the plugin or the counter is missing, or the counter is not a number.
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

    /// Returns its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.setup().id
    }

    /// Tells the harness which id it has found.
    ///
    /// # Panics
    /// Never.
    pub fn set_id(&mut self, id: &str) {
        self.setup.as_mut().expect("it is taken with the agent only").id = id.to_owned();
    }

    /// Returns its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its directory.
    #[must_use]
    pub fn workdir(&self) -> &Workdir {
        self.setup().workdir()
    }

    /// See [`Workdir::install`].
    #[must_use]
    pub fn install(&self, name: &str, program: &str, detail: &str) -> Config {
        self.workdir().install(name, program, detail)
    }

    /// Returns its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        whole_lines(&self.workdir().path().join("log/elklet.log"))
    }

    /// Returns the lines of its log that contain this text.
    #[must_use]
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// Waits for a log line that contains this text, and returns the first.
    pub fn wait_for_log(&self, text: &str) -> String {
        let mut lines = Vec::new();
        wait_until(&format!("log line with {text:?}"), || {
            lines = self.log_lines(text);
            !lines.is_empty()
        });
        lines.swap_remove(0)
    }

    /// Returns what it has written to standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        whole_lines(&self.workdir().path().join("stderr"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Returns true while it is running.
    ///
    /// # Panics
    /// When the system call fails.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Waits until it has ended, and returns how.
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

    /// Ends it in order, and returns the setup to start it again in the same directory.
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

    /// Kills it, and returns the setup to start it again in the same directory. Its plugins may go on for a moment.
    ///
    /// # Panics
    /// When it cannot be killed.
    #[must_use]
    pub fn kill(mut self) -> Setup {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it was killed");
        self.setup.take().expect("it is taken with the agent only")
    }

    /// Returns the most bytes of memory that it has had resident.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn peak_rss(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Returns the bytes of memory that it has resident.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn rss(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Returns the most bytes of memory that it has had mapped, used or not.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn peak_mapped(&self) -> u64 {
        self.memory("VmPeak:")
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
            let (before, last) = lines.split_at(lines.len().saturating_sub(LINES_SHOWN));
            let is_wrong = |line: &&str| ["WARN", "ERROR", "lost"].iter().any(|word| line.contains(word));
            let wrong: Vec<_> = before.iter().copied().filter(is_wrong).take(WRONG_SHOWN).collect();
            let (wrong, last) = (wrong.join("\n"), last.join("\n"));
            let ended = self.child.try_wait();
            eprintln!("--- {} ({ended:?}), what was wrong:\n{wrong}\n--- its last lines:\n{last}", self.id());
            eprintln!("--- its standard error:\n{stderr}");
        }
        // If it has ended already both fail, which does no harm.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Returns the lines of a file that is being written, if there is one. Whoever reads it while a line is on its way may see a part of the
/// line, which is left out.
#[must_use]
pub fn whole_lines(path: &Path) -> String {
    let mut text = fs::read(path).unwrap_or_default();
    text.truncate(text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
    String::from_utf8(text).unwrap_or_default()
}

fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process has a positive number");
    // It may have ended by itself.
    _ = kill_process(pid, signal);
}
