//! One run: an agent from its start to its end, and what it took.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use elklet_proto::grpc;
use elklet_tests::harness::{Workdir, wait_until};
use elklet_tests::load::{Size, now_ns};
use elklet_tests::pki;
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::Load;

/// What a reference agent's server has to listen on.
const REFERENCE_PORT: &str = "6751";

/// From a plugin's start to its first record: the agent is looked at when it has come to rest.
const SETTLE: Duration = Duration::from_millis(1500);

/// Records that have not come for this long after the last one do not come. When all have come nobody waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent to measure.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) binary: PathBuf,
    /// It is started as the reference is.
    pub(crate) reference_certs: Option<PathBuf>,
}

/// What a run has shown.
#[derive(Debug, Clone, Copy, Default)]
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
}

/// What the peer tells; see `reading-peer`.
#[derive(Debug, Deserialize)]
struct Report {
    opened_ns: u64,
    records: u64,
    wire_bytes: u64,
    first_ns: u64,
    last_ns: u64,
    p50_us: u64,
    p99_us: u64,
}

pub(crate) fn run(program: &Program, load: &Load, seconds: u64) -> Figures {
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

    let mut peer = Peer::start(program.reference_certs.as_deref().unwrap_or(&certs), &command, program);
    let started_ns = now_ns();
    let agent = Agent::start(program, workdir.path(), &certs, &peer.port);
    wait_until("stream", || peer.ask().opened_ns > 0);
    let start_ms = (peer.ask().opened_ns - started_ns) as f64 / 1e6;

    // The plugins wait meanwhile.
    thread::sleep(SETTLE * 2 / 3);
    let (before, since) = (agent.usage(), Instant::now());
    let sent = match load.plugins {
        0 => {
            thread::sleep(Duration::from_secs(seconds));
            0
        }
        plugins => (0..plugins).map(|number| sent_by(&workdir.plugin_dir(&format!("load{number}")), seconds)).sum(),
    };
    let report = peer.all(sent);
    let (after, seconds) = (agent.usage(), since.elapsed().as_secs_f64());
    agent.end();

    let flowing = report.last_ns.saturating_sub(report.first_ns) as f64 / 1e9;
    Figures {
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
    }
}

fn sent_by(dir: &Path, seconds: u64) -> u64 {
    let (file, deadline) = (dir.join("sent"), Instant::now() + Duration::from_secs(seconds + 120));
    loop {
        if let Ok(text) = fs::read_to_string(&file) {
            return text.parse().expect("the plugin writes a number");
        }
        assert!(Instant::now() < deadline, "{}: the plugin has not come to its end", dir.display());
        thread::sleep(Duration::from_millis(20));
    }
}

struct Peer {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    port: String,
}

impl Peer {
    fn start(certs: &Path, command: &Path, program: &Program) -> Self {
        let port = if program.reference_certs.is_some() { REFERENCE_PORT } else { "0" };
        let mut child = Command::new(env!("CARGO_BIN_EXE_reading-peer"))
            .args([certs.as_os_str(), port.as_ref(), command.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer starts");
        let questions = child.stdin.take().expect("it is a pipe");
        let mut answers = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("the peer says where it listens");
        let port = line.trim().strip_prefix("listening ").expect("the peer listens").to_owned();
        Self { child, questions, answers, port }
    }

    fn ask(&mut self) -> Report {
        self.questions.write_all(b"\n").expect("the peer runs");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the peer runs");
        serde_json::from_str(&line).expect("the peer answers")
    }

    /// What it has when all that was sent has come, or no more comes.
    fn all(&mut self, sent: u64) -> Report {
        let mut latest = self.ask();
        let mut since = Instant::now();
        while latest.records < sent && since.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
            let report = self.ask();
            if report.records > latest.records {
                since = Instant::now();
            }
            latest = report;
        }
        latest
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
    cpu: f64,
    rss: u64,
    peak_rss: u64,
    threads: u64,
    switches: u64,
}

impl Agent {
    fn start(program: &Program, workdir: &Path, certs: &Path, port: &str) -> Self {
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
            .expect("the agent starts");
        Self { child }
    }

    fn usage(&self) -> Usage {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(proc.join("status")).expect("the agent runs");
        let stat = fs::read_to_string(proc.join("stat")).expect("the agent runs");
        let (_, behind_name) = stat.rsplit_once(") ").expect("the kernel writes it so");
        let ticks: u64 = behind_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let tasks = fs::read_dir(proc.join("task")).expect("the agent runs").flatten();
        let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        Usage {
            cpu: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            rss: 1024 * number(&status, "VmRSS:"),
            peak_rss: 1024 * number(&status, "VmHWM:"),
            threads: number(&status, "Threads:"),
            switches: statuses.map(|status| number(&status, "voluntary_ctxt_switches:")).sum(),
        }
    }

    fn end(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process has a positive number");
        kill_process(pid, Signal::TERM).expect("the agent runs");
        wait_until("end of the agent", || self.child.try_wait().is_ok_and(|status| status.is_some()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn number(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
    value.trim().trim_end_matches(" kB").parse().expect("it is a number")
}
