//! The agent's side of a procwatch that runs, and programs for it to see.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(missing_docs, missing_debug_implementations, unreachable_pub, reason = "it is no library")]
#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

use command_fds::{CommandFdExt, FdMapping};
use elklet_proto::{bridge::Record, grpc::Task};
use prost::Message;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write, stderr};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for a loaded machine; no test that succeeds waits for it.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub const EXEC: i32 = 59;
pub const EXIT: i32 = 60;
pub const TASK_RESULT: i32 = 5100;
pub const LOG: i32 = 1010;

/// Starts a program in user and network namespaces of its own.
pub const WITHOUT_CONNECTOR: [&str; 3] = ["unshare", "--user", "--net"];

pub type Fields = BTreeMap<String, String>;

/// The agent's side of one running procwatch.
pub struct Procwatch {
    pub child: Child,
    tasks: Option<File>,
    pub records: Receiver<Record>,
    dir: TempDir,
}

impl Procwatch {
    pub fn start(detail: &str) -> Self {
        Self::start_with(&[], detail)
    }

    /// Where the process connector is not to be had: the kernel serves it in its first network namespace only.
    pub fn start_without_connector(detail: &str) -> Self {
        Self::start_with(&WITHOUT_CONNECTOR, detail)
    }

    /// Through the launcher given, a program and its arguments that replaces itself.
    pub fn start_with(launcher: &[&str], detail: &str) -> Self {
        let (records, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut procwatch = Self::start_writing_to(writer.into(), launcher, detail);
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut pipe = File::from(records);
            while let Some(record) = next_record(&mut pipe) {
                if sender.send(record).is_err() {
                    return;
                }
            }
        });
        procwatch.records = receiver;
        procwatch
    }

    pub fn start_writing_to(records: File, launcher: &[&str], detail: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (tasks_reader, tasks) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mappings =
            [(tasks_reader, 3), (records.into(), 4)].map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        let words = [launcher, &[env!("CARGO_BIN_EXE_elklet-procwatch")]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("DETAIL", detail).stderr(File::create(dir.path().join("stderr")).unwrap());
        command.fd_mappings(mappings.into()).unwrap();
        let child = command.spawn().unwrap();
        Self { child, tasks: Some(tasks.into()), records: channel().1, dir }
    }

    /// The next record that fits; others are passed over.
    pub fn wait_for(&self, what: &str, fits: impl Fn(i32, &Fields) -> bool) -> Fields {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.records.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(record) => {
                    let fields = fields(&record);
                    if fits(record.data_type, &fields) {
                        return fields;
                    }
                }
                Err(error) => panic!("no {what}: {error}; stderr: {}", self.stderr()),
            }
        }
    }

    /// Runs short programs until one is reported: then it listens.
    ///
    /// Programs that ran before it listened are never reported, while those of a busy host are reported all the time. A round
    /// therefore ends by the clock and not by silence.
    pub fn wait_until_ready(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut pids = Vec::new();
        loop {
            assert!(Instant::now() < deadline, "it does not get ready; stderr: {}", self.stderr());
            pids.push(run("/bin/true", &[]).to_string());
            let round = Instant::now() + Duration::from_millis(500);
            loop {
                match self.records.recv_timeout(round.saturating_duration_since(Instant::now())) {
                    Ok(record) if record.data_type == EXIT && pids.contains(&fields(&record)["pid"]) => return,
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => panic!("it has ended; stderr: {}", self.stderr()),
                }
            }
        }
    }

    /// Starts programs until something is reported: what ran at the first look at /proc is taken as given.
    pub fn wait_until_scanning(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut held = Vec::new();
        while self.records.recv_timeout(Duration::from_millis(1500)).is_err() {
            assert!(Instant::now() < deadline, "nothing is seen; stderr: {}", self.stderr());
            held.push(Held::start(&mut Command::new("/bin/cat")));
        }
    }

    pub fn send(&mut self, task: &Task) {
        let body = task.encode_to_vec();
        let prefix = u32::try_from(body.len()).unwrap().to_le_bytes();
        self.tasks.as_mut().unwrap().write_all(&[&prefix[..], &body].concat()).unwrap();
    }

    /// Closes the task pipe, as an agent does to stop a plugin.
    pub fn stop(&mut self) {
        self.tasks = None;
    }

    pub fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end; stderr: {}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    pub fn wait_for_stderr(&self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.stderr().contains(text) {
            assert!(Instant::now() < deadline, "no `{text}` in stderr: {}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Procwatch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn next_record(pipe: &mut impl Read) -> Option<Record> {
    let mut prefix = [0; 4];
    pipe.read_exact(&mut prefix).ok()?;
    let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
    pipe.read_exact(&mut body).expect("a whole frame");
    Some(Record::decode(body.as_slice()).expect("a record"))
}

pub fn fields(record: &Record) -> Fields {
    record.data.clone().unwrap_or_default().fields
}

/// Runs a program to its end and returns the process id that it had.
pub fn run(program: &str, arguments: &[&str]) -> u32 {
    let mut child = Command::new(program).args(arguments).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    child.id()
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come to be");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The events that the kernel threw away, over all connector sockets (protocol 11 in `/proc/net/netlink`).
pub fn dropped_events() -> u64 {
    let sockets = fs::read_to_string("/proc/net/netlink").unwrap();
    let columns = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns.filter(|columns| columns[1] == "11").map(|columns| columns[8].parse::<u64>().unwrap()).sum()
}

/// A program that reads standard input to its end, which comes when this is dropped: so it can be looked at for as long as a
/// busy machine takes.
pub struct Held(Child);

impl Held {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says by name that a test was skipped, and why; past the harness, which would keep it to itself.
pub fn skipped(test: &str, reason: &str) {
    stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes()).unwrap();
}

pub fn skipped_without_root(test: &str) -> bool {
    if !is_root() {
        skipped(test, "the process connector needs root");
    }
    !is_root()
}

/// The same where users may not have namespaces of their own.
pub fn skipped_without_namespaces(test: &str) -> bool {
    let [program, arguments @ ..] = WITHOUT_CONNECTOR;
    let works = Command::new(program).args(arguments).arg("true").output().is_ok_and(|output| output.status.success());
    if !works {
        skipped(test, "`unshare` gives no namespace here");
    }
    !works
}
