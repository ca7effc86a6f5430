//! The real binary with real pipes, in the place of a plugin of an agent.
#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

mod harness;

use elklet_proto::grpc::Task;
use harness::*;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs;
use std::process::{self, Command};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Held by every test that uses the connector, since one of them gives the kernel more events than its queues hold: every
/// process of the host shows in each connector, and what one of them has lost is not told from what another has.
static CONNECTOR: Mutex<()> = Mutex::new(());

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
fn arguments_are_told_up_to_4_kib() {
    if skipped_without_root("arguments_are_told_up_to_4_kib") {
        return;
    }
    let _connector = CONNECTOR.lock();
    let procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    for length in [3000, 100_000] {
        let script = "read line; (exit 0); exit 0";
        let argument = "a".repeat(length);
        let held = Held::start(Command::new("/bin/sh").args(["-c", script, &argument]));
        let pid = held.pid();
        let exec = procwatch.wait_for("exec", |kind, fields| kind == EXEC && fields["pid"] == pid);
        drop(held);
        let child = procwatch.wait_for("exit of the child", |kind, fields| kind == EXIT && fields["ppid"] == pid);
        let exit = procwatch.wait_for("exit", |kind, fields| kind == EXIT && fields["pid"] == pid);
        let whole = format!("/bin/sh -c {script} {argument}");
        let expected = &whole[..whole.len().min(4096)];
        for told in [&exec["argv"], &child["argv"], &child["ppid_argv"], &exit["argv"]] {
            assert_eq!(told, expected);
        }
    }
}

#[test]
fn exits_can_be_turned_off() {
    if skipped_without_root("exits_can_be_turned_off") {
        return;
    }
    let _connector = CONNECTOR.lock();
    for mode in ["mode=connector", "mode=scan"] {
        let mut procwatch = Procwatch::start(&format!("{mode} exits=off"));
        let execs = 3;
        let mut seen = 0;
        let deadline = Instant::now() + DEADLINE;
        while seen < execs {
            assert!(Instant::now() < deadline, "nothing is seen; stderr: {}", procwatch.stderr());
            // It lives until an exec has been told, also to one who looks once a second, and ends then.
            let _held = Held::start(&mut Command::new("/bin/cat"));
            let round = Instant::now() + Duration::from_millis(1500);
            while let Ok(record) = procwatch.records.recv_timeout(round.saturating_duration_since(Instant::now())) {
                assert_eq!(record.data_type, EXEC);
                seen += 1;
            }
        }
        procwatch.stop();
        assert!(procwatch.wait_for_end().success());
        assert!(procwatch.records.iter().all(|record| record.data_type == EXEC));
    }
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
    let told = procwatch.wait_for("a record of lost events", |kind, _| kind == LOG);
    assert_eq!((told["level"].as_str(), told["plugin"].as_str()), ("warn", "procwatch"));
    assert!(told["msg"].contains("events were lost"), "{told:?}");
    let number = |name: &str| told[name].parse::<u64>().unwrap();
    assert!(number("lost_events") > 0 && number("overruns") > 0, "{told:?}");
    assert!(number("lost_events_total") <= dropped_events(), "{told:?}");
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
