//! One run: an agent from its start to its end, and what it took.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use elklet_proto::grpc;
use elklet_tests::harness::Workdir;
use elklet_tests::load::{Size, now_ns};
use elklet_tests::pki;
use nix::time::clock_getcpuclockid;
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::compare::{Load, Program};

/// What a reference agent's server has to listen on.
const REFERENCE_PORT: &str = "6751";

/// From a plugin's start to its first record: the agent is looked at when it has come to rest.
const SETTLE: Duration = Duration::from_millis(1500);

/// Records that have not come for this long after the last one do not come. When all have come nobody waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an agent may take to open its stream, and to end.
const PATIENCE_AT_THE_ENDS: Duration = Duration::from_secs(30);

/// Why a run has shown nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The agent gives plugins no pipe for urgent records, which this load consists of.
    NoUrgentPipe,
    /// In words.
    Other(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

/// What a run has shown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) sent: u64,
    pub(crate) delivered: u64,
    pub(crate) per_second: f64,
    /// Seconds of CPU, user and system.
    pub(crate) cpu: f64,
    pub(crate) idle_rss: u64,
    pub(crate) peak_rss: u64,
    pub(crate) threads: u64,
    /// Voluntary context switches a second.
    pub(crate) wakeups: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) wire_bytes: u64,
    pub(crate) start_ms: f64,
    /// Seconds that were looked at.
    pub(crate) seconds: f64,
    /// TLS version and cipher suite of the stream.
    pub(crate) tls: String,
}

/// What the peer tells; see `reading-peer`.
#[derive(Debug, Deserialize)]
struct Report {
    opened_ns: u64,
    tls: String,
    records: u64,
    wire_bytes: u64,
    first_ns: u64,
    last_ns: u64,
    p50_us: u64,
    p99_us: u64,
}

pub(crate) fn run(program: &Program, load: &Load, seconds: u64) -> Result<Figures, Failure> {
    let workdir = Workdir::new();
    let configs = (0..load.plugins)
        .map(|number| {
            let size = match load.size {
                Size::Full => "full".to_owned(),
                Size::Small => "small".to_owned(),
                Size::Bytes(bytes) => bytes.to_string(),
            };
            let (rate, wait) = (load.rate / load.plugins, SETTLE.as_millis());
            let lane = if load.urgent { "urgent" } else { "" };
            let detail = format!("plugin={number} rate={rate} secs={seconds} size={size} wait={wait} {lane}");
            workdir.install(&format!("load{number}"), env!("CARGO_BIN_EXE_load-plugin"), &detail)
        })
        .collect();
    let certs = workdir.path().join("certs");
    fs::create_dir(&certs).expect("it is writable");
    pki::Set::new().write(&certs).expect("it is writable");
    let command = workdir.path().join("command");
    fs::write(&command, grpc::Command { configs, ..Default::default() }.encode_to_vec()).expect("it is writable");

    let mut peer = Peer::start(program.reference_certs.as_deref().unwrap_or(&certs), &command, program)?;
    let started_ns = now_ns();
    let mut agent = Agent::start(program, workdir.path(), &certs, &peer.port)?;
    let deadline = Instant::now() + PATIENCE_AT_THE_ENDS;
    let opened_ns = loop {
        match peer.ask()?.opened_ns {
            0 if Instant::now() >= deadline => {
                return Err(format!("no stream in {} s", PATIENCE_AT_THE_ENDS.as_secs()).into());
            }
            0 => agent.is_to_run()?,
            opened_ns => break opened_ns,
        }
        thread::sleep(Duration::from_millis(1));
    };
    let start_ms = opened_ns.saturating_sub(started_ns) as f64 / 1e6;

    // The plugins wait meanwhile.
    thread::sleep(SETTLE * 2 / 3);
    let (before, since) = (agent.usage()?, Instant::now());
    let mut sent = 0;
    if load.plugins == 0 {
        thread::sleep(Duration::from_secs(seconds));
    }
    for number in 0..load.plugins {
        sent += sent_by(&workdir.plugin_dir(&format!("load{number}")), seconds, &mut agent)?;
    }
    let (report, after, at) = all_that_comes(&mut peer, &mut agent, sent)?;
    let seconds = (at - since).as_secs_f64();
    agent.end()?;

    let flowing = report.last_ns.saturating_sub(report.first_ns) as f64 / 1e9;
    Ok(Figures {
        sent,
        delivered: report.records,
        per_second: if flowing > 0.0 { report.records as f64 / flowing } else { 0.0 },
        cpu: after.cpu - before.cpu,
        idle_rss: before.rss,
        peak_rss: after.peak_rss,
        threads: after.threads,
        wakeups: after.switches.saturating_sub(before.switches) as f64 / seconds,
        p50_ms: report.p50_us as f64 / 1e3,
        p99_ms: report.p99_us as f64 / 1e3,
        wire_bytes: report.wire_bytes,
        start_ms,
        seconds,
        tls: report.tls,
    })
}

fn sent_by(dir: &Path, seconds: u64, agent: &mut Agent) -> Result<u64, Failure> {
    let patience = Duration::from_secs(seconds + 120);
    let (file, deadline) = (dir.join("sent"), Instant::now() + patience);
    loop {
        if let Some(outcome) = outcome(&file) {
            return outcome;
        }
        agent.is_to_run()?;
        if Instant::now() >= deadline {
            return Err(format!("the plugin has not come to its end in {} s", patience.as_secs()).into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What the load plugin has left: the number of records that it has sent, or that it could not.
pub(crate) fn outcome(sent: &Path) -> Option<Result<u64, Failure>> {
    let text = fs::read_to_string(sent).ok()?;
    Some(text.parse().map_err(|_| Failure::NoUrgentPipe))
}

/// What the peer has when all that was sent has come, or no more comes, and what the agent had taken when the last of it
/// came. An agent that loses records is not charged for the time in which they are waited for.
fn all_that_comes(peer: &mut Peer, agent: &mut Agent, sent: u64) -> Result<(Report, Usage, Instant), Failure> {
    let mut latest = peer.ask()?;
    let (mut usage, mut at) = (agent.usage()?, Instant::now());
    while latest.records < sent && at.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(20));
        let report = peer.ask()?;
        if report.records > latest.records {
            (usage, at) = (agent.usage()?, Instant::now());
        }
        latest = report;
    }
    Ok((latest, usage, at))
}

struct Peer {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    port: String,
}

impl Peer {
    fn start(certs: &Path, command: &Path, program: &Program) -> Result<Self, String> {
        let port = if program.reference_certs.is_some() { REFERENCE_PORT } else { "0" };
        let mut child = Command::new(env!("CARGO_BIN_EXE_reading-peer"))
            .args([certs.as_os_str(), port.as_ref(), command.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer starts");
        let questions = child.stdin.take().expect("it is a pipe");
        let answers = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let mut peer = Self { child, questions, answers, port: String::new() };
        let line = peer.line()?;
        peer.port = line.trim().strip_prefix("listening ").ok_or("the peer does not listen")?.to_owned();
        Ok(peer)
    }

    fn ask(&mut self) -> Result<Report, String> {
        self.questions.write_all(b"\n").map_err(|error| format!("the peer has ended: {error}"))?;
        let line = self.line()?;
        serde_json::from_str(&line).map_err(|error| format!("the peer has ended: {error}"))
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| format!("the peer has ended: {error}"))?;
        Ok(line)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

struct Agent {
    child: Child,
}

/// What the kernel has counted for a process.
struct Usage {
    /// Seconds, of all threads.
    cpu: f64,
    rss: u64,
    peak_rss: u64,
    threads: u64,
    switches: u64,
}

impl Agent {
    fn start(program: &Program, workdir: &Path, certs: &Path, port: &str) -> Result<Self, String> {
        let mut command = Command::new(&program.binary);
        if program.reference_certs.is_none() {
            command.arg("run").arg("--workdir").arg(workdir).arg("--certs").arg(certs);
            command.args(["--server", &format!("127.0.0.1:{port}")]);
        }
        let output = File::create(workdir.join("output")).expect("it is writable");
        let child = command
            .current_dir(workdir)
            .env("SPECIFIED_AGENT_ID", "benchmark")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", program.binary.display()))?;
        Ok(Self { child })
    }

    /// # Errors
    /// When it has ended.
    fn is_to_run(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("the agent ended with {status}")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn usage(&mut self) -> Result<Usage, String> {
        self.is_to_run()?;
        self.counted().ok_or_else(|| "the agent ended while it was looked at".to_owned())
    }

    fn counted(&self) -> Option<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(proc.join("status")).ok()?;
        // `/proc/PID/stat` counts in ticks of 10 ms, of which a light load takes a handful.
        let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).ok()?)).ok()?;
        let tasks = fs::read_dir(proc.join("task")).ok()?.flatten();
        let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        Some(Usage {
            cpu: Duration::from(clock.now().ok()?).as_secs_f64(),
            rss: 1024 * number(&status, "VmRSS:")?,
            peak_rss: 1024 * number(&status, "VmHWM:")?,
            threads: number(&status, "Threads:")?,
            switches: statuses.filter_map(|status| number(&status, "voluntary_ctxt_switches:")).sum(),
        })
    }

    fn end(mut self) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process has a positive number");
        kill_process(pid, Signal::TERM).map_err(|error| format!("the agent cannot be ended: {error}"))?;
        let deadline = Instant::now() + PATIENCE_AT_THE_ENDS;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() >= deadline {
                return Err(format!("the agent has not ended {} s after SIGTERM", PATIENCE_AT_THE_ENDS.as_secs()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// `None` also for a process that has ended, whose memory the kernel does not tell any more.
fn number(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().trim_end_matches(" kB").parse().ok()
}
