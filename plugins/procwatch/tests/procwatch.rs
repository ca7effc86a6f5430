//! The real binary with real pipes, in the place of a plugin of an agent.
#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

use command_fds::{CommandFdExt, FdMapping};
use elklet_proto::{bridge::Record, grpc::Task};
use prost::Message;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write, stderr};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for a loaded machine; no test that succeeds waits for it.
const DEADLINE: Duration = Duration::from_secs(30);

const EXEC: i32 = 59;
const EXIT: i32 = 60;
const TASK_RESULT: i32 = 5100;

/// Starts a program in user and network namespaces of its own.
const WITHOUT_CONNECTOR: [&str; 3] = ["unshare", "--user", "--net"];

/// Held by every test that uses the connector, since one of them gives the kernel more events than its queues hold: every
/// process of the host shows in each connector, and what one of them has lost is not told from what another has.
static CONNECTOR: Mutex<()> = Mutex::new(());

type Fields = BTreeMap<String, String>;

/// The agent's side of one running procwatch.
struct Procwatch {
    child: Child,
    tasks: Option<File>,
    records: Receiver<Record>,
    dir: TempDir,
}

impl Procwatch {
    fn start(detail: &str) -> Self {
        Self::start_with(&[], detail)
    }

    /// Where the process connector is not to be had: the kernel serves it in its first network namespace only.
    fn start_without_connector(detail: &str) -> Self {
        Self::start_with(&WITHOUT_CONNECTOR, detail)
    }

    /// Through the launcher given, a program and its arguments that replaces itself.
    fn start_with(launcher: &[&str], detail: &str) -> Self {
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

    fn start_writing_to(records: File, launcher: &[&str], detail: &str) -> Self {
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
    fn wait_for(&self, what: &str, fits: impl Fn(i32, &Fields) -> bool) -> Fields {
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
    fn wait_until_ready(&self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "it does not get ready; stderr: {}", self.stderr());
            let pid = run("/bin/true", &[]).to_string();
            loop {
                match self.records.recv_timeout(Duration::from_millis(500)) {
                    Ok(record) if record.data_type == EXIT && fields(&record)["pid"] == pid => return,
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => panic!("it has ended; stderr: {}", self.stderr()),
                }
            }
        }
    }

    /// Starts programs until something is reported: what ran at the first look at /proc is taken as given.
    fn wait_until_scanning(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut held = Vec::new();
        while self.records.recv_timeout(Duration::from_millis(1500)).is_err() {
            assert!(Instant::now() < deadline, "nothing is seen; stderr: {}", self.stderr());
            held.push(Held::start(&mut Command::new("/bin/cat")));
        }
    }

    fn send(&mut self, task: &Task) {
        let body = task.encode_to_vec();
        let prefix = u32::try_from(body.len()).unwrap().to_le_bytes();
        self.tasks.as_mut().unwrap().write_all(&[&prefix[..], &body].concat()).unwrap();
    }

    /// Closes the task pipe, as an agent does to stop a plugin.
    fn stop(&mut self) {
        self.tasks = None;
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end; stderr: {}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    fn wait_for_stderr(&self, text: &str) {
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

fn next_record(pipe: &mut impl Read) -> Option<Record> {
    let mut prefix = [0; 4];
    pipe.read_exact(&mut prefix).ok()?;
    let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
    pipe.read_exact(&mut body).expect("a whole frame");
    Some(Record::decode(body.as_slice()).expect("a record"))
}

fn fields(record: &Record) -> Fields {
    record.data.clone().unwrap_or_default().fields
}

/// Runs a program to its end and returns the process id that it had.
fn run(program: &str, arguments: &[&str]) -> u32 {
    let mut child = Command::new(program).args(arguments).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    child.id()
}

/// The events that the kernel threw away, over all connector sockets (protocol 11 in `/proc/net/netlink`).
fn dropped_events() -> u64 {
    let sockets = fs::read_to_string("/proc/net/netlink").unwrap();
    let columns = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns.filter(|columns| columns[1] == "11").map(|columns| columns[8].parse::<u64>().unwrap()).sum()
}

/// A program that reads standard input to its end, which comes when this is dropped: so it can be looked at for as long as a
/// busy machine takes.
struct Held(Child);

impl Held {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says by name that a test was skipped, and why; past the harness, which would keep it to itself.
fn skipped(test: &str, reason: &str) {
    stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes()).unwrap();
}

fn skipped_without_root(test: &str) -> bool {
    if !is_root() {
        skipped(test, "the process connector needs root");
    }
    !is_root()
}

/// The same where users may not have namespaces of their own.
fn skipped_without_namespaces(test: &str) -> bool {
    let [program, arguments @ ..] = WITHOUT_CONNECTOR;
    let works = Command::new(program).args(arguments).arg("true").output().is_ok_and(|output| output.status.success());
    if !works {
        skipped(test, "`unshare` gives no namespace here");
    }
    !works
}

/// The fields that the reference's driver gives every record of these types.
const COMMON: &str = "uid exe pid ppid pgid tgid sid comm nodename sessionid pns root_pns \
                      argv ppid_argv pgid_argv username pod_name exe_hash pid_tree";
const EXEC_ONLY: &str =
    "run_path stdin stdout dip dport sip sport sa_family tty socket_pid ssh ld_preload res socket_argv";

fn names(fields: &Fields) -> Vec<&str> {
    fields.keys().map(String::as_str).collect()
}

fn sorted(lists: &[&'static str]) -> Vec<&'static str> {
    let mut names: Vec<_> = lists.iter().flat_map(|list| list.split_whitespace()).collect();
    names.sort_unstable();
    names
}

#[test]
fn connector_reports_exec_and_exit_with_all_fields() {
    if skipped_without_root("connector_reports_exec_and_exit_with_all_fields") {
        return;
    }
    let _connector = CONNECTOR.lock();
    let procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    let argument = format!("connector-{}", process::id());
    let mut command = Command::new("/bin/cat");
    command.args(["-", &argument]).env("LD_PRELOAD", "").env("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22");
    let held = Held::start(command.current_dir("/usr"));
    let pid = held.pid();
    let exec = procwatch.wait_for("exec of cat", |kind, fields| kind == EXEC && fields["pid"] == pid);
    drop(held);
    let exit = procwatch.wait_for("exit of cat", |kind, fields| kind == EXIT && fields["pid"] == pid);

    assert_eq!(names(&exec), sorted(&[COMMON, EXEC_ONLY]));
    assert_eq!(names(&exit), sorted(&[COMMON]));
    let cat = fs::canonicalize("/bin/cat").unwrap();
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    for record in [&exec, &exit] {
        assert_eq!(record["exe"], cat.to_str().unwrap());
        assert_eq!(record["argv"], format!("/bin/cat - {argument}"));
        assert_eq!(record["comm"], "cat");
        assert_eq!(record["tgid"], pid);
        assert_eq!(record["ppid"], process::id().to_string());
        assert_eq!((record["uid"].as_str(), record["username"].as_str()), ("0", "root"));
        assert_eq!(record["nodename"], rustix::system::uname().nodename().to_str().unwrap());
        assert_eq!(record["sessionid"], fs::read_to_string("/proc/self/sessionid").unwrap());
        assert_eq!(own.to_str().unwrap(), format!("pid:[{}]", record["pns"]));
        assert_eq!(record["root_pns"], "4026531836");
        assert_eq!(record["exe_hash"], exe_hash(&fs::read(&cat).unwrap()));
        assert!(record["pid_tree"].starts_with(&format!("{pid}.cat<{}.", process::id())), "{}", record["pid_tree"]);
        assert_ne!(record["ppid_argv"], "-3");
    }
    assert_eq!((exec["run_path"].as_str(), exec["stdout"].as_str()), ("/usr", "/dev/null"));
    assert!(exec["stdin"].starts_with("pipe:["));
    assert_eq!((exec["ld_preload"].as_str(), exec["ssh"].as_str()), ("", "192.0.2.1 1 192.0.2.2 22"));
    assert_eq!((exec["res"].as_str(), exec["dip"].as_str(), exec["socket_argv"].as_str()), ("0", "-1", "-3"));
}

/// What the reference computes, spelled out.
fn exe_hash(contents: &[u8]) -> String {
    let head = &contents[..contents.len().min(32 * 1024)];
    let input = [&(contents.len() as u64).to_le_bytes()[..], head].concat();
    format!("{:016x}", xxhash_rust::xxh64::xxh64(&input, 0))
}

#[test]
fn connector_reports_each_of_many_short_lives() {
    const LIVES: usize = 200;
    if skipped_without_root("connector_reports_each_of_many_short_lives") {
        return;
    }
    let _connector = CONNECTOR.lock();
    let mut procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    let mut pids: Vec<String> = (0..LIVES).map(|number| run("/bin/true", &[&number.to_string()]).to_string()).collect();
    procwatch.stop();
    assert!(procwatch.wait_for_end().success());
    let (mut execs, mut exits) = (Vec::new(), Vec::new());
    for record in &procwatch.records {
        let fields = fields(&record);
        if fields["ppid"] == process::id().to_string() && pids.contains(&fields["pid"]) {
            if record.data_type == EXEC { &mut execs } else { &mut exits }.push(fields["pid"].clone());
        }
    }
    for list in [&mut pids, &mut execs, &mut exits] {
        list.sort_unstable();
    }
    assert_eq!(execs, pids);
    assert_eq!(exits, pids);
}

#[test]
fn connector_does_not_report_threads() {
    if skipped_without_root("connector_does_not_report_threads") {
        return;
    }
    let _connector = CONNECTOR.lock();
    let procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    let threads: Vec<_> =
        (0..10).map(|_| thread::spawn(|| rustix::thread::gettid().as_raw_nonzero().to_string())).collect();
    let threads: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let last = run("/bin/true", &[]).to_string();
    procwatch.wait_for("exit of the last program", |kind, fields| {
        assert!(!threads.contains(&fields["pid"]), "a thread is reported");
        assert_eq!(fields["pid"], fields["tgid"]);
        kind == EXIT && fields["pid"] == last
    });
}

#[test]
fn connector_knows_a_process_that_only_forked() {
    if skipped_without_root("connector_knows_a_process_that_only_forked") {
        return;
    }
    let _connector = CONNECTOR.lock();
    let procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    let marker = format!("forked-{}", process::id());
    let script = format!(": {marker}; read line; (exit 0) & wait; exit 0");
    let held = Held::start(Command::new("/bin/sh").args(["-c", &script]));
    let shell = held.pid();
    procwatch.wait_for("exec of the shell", |kind, fields| kind == EXEC && fields["pid"] == shell);
    drop(held);
    let exit = procwatch.wait_for("exit of the subshell", |kind, fields| kind == EXIT && fields["ppid"] == shell);
    assert_eq!(exit["argv"], format!("/bin/sh -c {script}"));
    assert_eq!(exit["exe"], fs::canonicalize("/bin/sh").unwrap().to_str().unwrap());
    assert_eq!(exit["uid"], "0");
}

#[test]
fn lost_events_are_told_and_it_goes_on() {
    if skipped_without_root("lost_events_are_told_and_it_goes_on") {
        return;
    }
    let _connector = CONNECTOR.lock();
    let mut procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    let pid = rustix::process::Pid::from_child(&procwatch.child);
    // It takes thousands of processes to fill the queue.
    let deadline = Instant::now() + 4 * DEADLINE;
    let dropped_before = dropped_events();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    loop {
        assert!(Instant::now() < deadline, "the queue takes everything");
        run("/bin/sh", &["-c", "i=0; while [ $i -lt 5000 ]; do (:); i=$((i+1)); done"]);
        if dropped_events() > dropped_before {
            break;
        }
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    procwatch.wait_for_stderr("the kernel's event queue overran");
    procwatch.wait_until_ready();
    procwatch.stop();
    assert!(procwatch.wait_for_end().success());
}

#[test]
fn scan_reports_exec_and_exit() {
    let procwatch = Procwatch::start("mode=scan");
    procwatch.wait_until_scanning();
    let held = Held::start(&mut Command::new("/bin/cat"));
    let pid = held.pid();
    let exec = procwatch.wait_for("exec", |kind, fields| kind == EXEC && fields["pid"] == pid);
    drop(held);
    let exit = procwatch.wait_for("exit", |kind, fields| kind == EXIT && fields["pid"] == pid);
    assert_eq!(names(&exec), sorted(&[COMMON, EXEC_ONLY]));
    assert_eq!(names(&exit), sorted(&[COMMON]));
    for record in [&exec, &exit] {
        assert_eq!(record["argv"], "/bin/cat");
        assert_eq!(record["comm"], "cat");
        assert_eq!(record["ppid"], process::id().to_string());
    }
    assert!(!procwatch.stderr().contains("connector"), "{}", procwatch.stderr());
}

#[test]
fn without_the_connector_it_says_so_and_scans() {
    if skipped_without_namespaces("without_the_connector_it_says_so_and_scans") {
        return;
    }
    let procwatch = Procwatch::start_without_connector("");
    procwatch.wait_for_stderr("the process connector is not to be had, so /proc is looked through every second");
    procwatch.wait_until_scanning();
    let held = Held::start(&mut Command::new("/bin/cat"));
    let pid = held.pid();
    let exec = procwatch.wait_for("exec", |kind, fields| kind == EXEC && fields["pid"] == pid);
    drop(held);
    assert_eq!(exec["comm"], "cat");
    procwatch.wait_for("exit", |kind, fields| kind == EXIT && fields["pid"] == pid);
}

#[test]
fn without_the_connector_and_told_to_it_fails() {
    if skipped_without_namespaces("without_the_connector_and_told_to_it_fails") {
        return;
    }
    let mut procwatch = Procwatch::start_without_connector("mode=connector");
    assert!(!procwatch.wait_for_end().success());
    assert!(procwatch.stderr().contains("the process connector is not to be had"), "{}", procwatch.stderr());
}

#[test]
fn unknown_words_of_the_detail_are_told() {
    let mut procwatch = Procwatch::start("mode=scan colour=blue");
    procwatch.wait_for_stderr("the detail's word `colour=blue` is not known");
    procwatch.stop();
    assert!(procwatch.wait_for_end().success());
}

#[test]
fn tasks_are_refused() {
    let mut procwatch = Procwatch::start("mode=scan");
    procwatch.send(&Task { data_type: 1, token: "token-1".into(), ..Task::default() });
    let answer = procwatch.wait_for("answer", |kind, _| kind == TASK_RESULT);
    let expected = [("token", "token-1"), ("status", "failed"), ("msg", "procwatch takes no tasks")];
    assert_eq!(answer, expected.map(|(name, value)| (name.into(), value.into())).into());
}

#[test]
fn the_end_of_the_tasks_is_the_end_and_nothing_buffered_is_lost() {
    let _connector = CONNECTOR.lock();
    for mode in ["mode=scan", ""] {
        let mut procwatch = Procwatch::start(mode);
        procwatch.send(&Task { token: "last".into(), ..Task::default() });
        procwatch.stop();
        assert!(procwatch.wait_for_end().success(), "{}", procwatch.stderr());
        procwatch.wait_for("answer", |kind, fields| kind == TASK_RESULT && fields["token"] == "last");
    }
}

#[test]
fn it_ends_when_the_agent_reads_no_more() {
    let _connector = CONNECTOR.lock();
    for mode in ["mode=scan", ""] {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut procwatch = Procwatch::start_writing_to(writer.into(), &[], mode);
        drop(reader);
        assert!(!procwatch.wait_for_end().success());
        assert!(procwatch.stderr().contains("the agent has gone"), "{}", procwatch.stderr());
    }
}

#[test]
fn sigterm_does_not_end_it() {
    let mut procwatch = Procwatch::start("mode=scan colour=blue");
    // It ignores the signal before it reads its detail.
    procwatch.wait_for_stderr("colour=blue");
    let pid = rustix::process::Pid::from_child(&procwatch.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    procwatch.send(&Task { token: "alive".into(), ..Task::default() });
    procwatch.wait_for("answer", |kind, fields| kind == TASK_RESULT && fields["token"] == "alive");
    procwatch.stop();
    assert!(procwatch.wait_for_end().success());
}
