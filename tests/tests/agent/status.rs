//! `elklet status`, JSON and metrics over the socket in the work directory, and malicious clients.

use crate::PLUGIN;
use crate::heartbeat::AGENT_FIELDS;
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Agent, DEADLINE, Signal, Site, Workdir, holds_within, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const NOBODY: &str = "127.0.0.1:1";

fn ask(workdir: &Path, flags: &[&str]) -> Output {
    let arguments = [OsStr::new("status"), OsStr::new("--workdir"), workdir.as_os_str()];
    Command::new(&Binaries::for_tests().elklet).args(arguments).args(flags).output().unwrap()
}

/// Returns what it prints. It has to end with this code and say nothing else.
pub(crate) fn printed(workdir: &Path, flags: &[&str], code: i32) -> String {
    let Output { status, stdout, stderr } = ask(workdir, flags);
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!((status.code(), &*stderr), (Some(code), ""), "{stdout}");
    stdout
}

fn json(workdir: &Path, code: i32) -> Value {
    serde_json::from_str(&printed(workdir, &["--json"], code)).unwrap()
}

/// Starts an agent that has no server and never will.
fn offline(site: &Site) -> Agent {
    let agent = site.setup().server(NOBODY).start();
    agent.wait_for_log("the next attempt is in ");
    agent
}

/// Returns the socket by a path that is short, however long the directory's is.
fn connect(workdir: &Path) -> UnixStream {
    let directory = fs::File::open(workdir).unwrap();
    let socket = UnixStream::connect(format!("/proc/self/fd/{}/elklet.sock", directory.as_raw_fd())).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn exchange(workdir: &Path, request: &[u8]) -> String {
    let mut socket = connect(workdir);
    socket.write_all(request).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// Starts an agent with a plugin that has sent some records, which are all confirmed, and one plugin that cannot be
/// started.
fn busy(site: &Site) -> Agent {
    let setup = site.setup().server(NOBODY).server(&site.address());
    let mut missing = setup.workdir().install("missing", PLUGIN, "");
    fs::remove_dir_all(setup.workdir().plugin_dir("missing")).unwrap();
    missing.version = "2.0".into();
    let probe = setup.workdir().install("probe", PLUGIN, "run=a n=2000");
    site.center().set_configs(Some(vec![probe, missing]));
    let agent = setup.start();
    site.wait_records("records", &agent, |records| records.run("a").received >= 2000);
    wait_until("confirmation", || json(agent.workdir().path(), 0)["ledger"]["unconfirmed_records"] == 0);
    agent
}

#[test]
fn a_connected_agent_tells_everything_as_json() {
    let site = Site::new();
    let agent = busy(&site);
    let mut seen = Value::Null;
    wait_until("rest", || {
        seen = json(agent.workdir().path(), 0);
        seen["ledger"]["unconfirmed_records"] == 0
            && seen["buffer"]["records"] == 0
            && seen["rates"]["records_per_second"].as_f64().unwrap() > 0.0
    });
    assert_eq!(seen["agent"]["id"], agent.id());
    assert_eq!(seen["agent"]["pid"], agent.pid());
    assert_eq!(seen["agent"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(seen["agent"]["workdir"], fs::canonicalize(agent.workdir().path()).unwrap().to_str().unwrap());
    assert_eq!(seen["agent"]["state"], "abnormal");
    assert!(seen["agent"]["state_detail"][0].as_str().unwrap().contains("plugin missing cannot be started"), "{seen}");
    assert!(seen["agent"]["footprint"]["rss_bytes"].as_u64().unwrap() > 100_000, "{seen}");

    let connection = &seen["connection"];
    assert_eq!((&connection["connected"], &connection["state"]), (&Value::Bool(true), &"connected".into()));
    assert_eq!((&connection["address"], &connection["net_mode"]), (&site.address().into(), &"private".into()));
    assert_eq!(connection["next_attempt_ms"], Value::Null);
    assert!(connection["last_error"]["text"].as_str().unwrap().starts_with("127.0.0.1:1: no TCP connection"), "{seen}");

    let sent = u64::try_from(2000 + 1).unwrap(); // and the plugin's last words
    assert!(seen["counters"]["records"].as_u64().unwrap() >= 2000, "{seen}");
    assert!(seen["counters"]["records"].as_u64().unwrap() <= sent, "{seen}");
    assert_eq!((&seen["counters"]["streams"], &seen["counters"]["connect_failures"]), (&1.into(), &1.into()));
    // Everything that the heartbeat counts is here, under the same name.
    let heartbeat = site.heartbeats(&agent).agent;
    // What may become less has a place of its own there.
    let others = ["records_unconfirmed", "records_in_spool", "spool_bytes", "cert_days_left", "ca_days_left"];
    let is_counter = |name: &&String| AGENT_FIELDS.split_whitespace().chain(others).all(|other| other != *name);
    let counted = heartbeat.keys().filter(is_counter);
    let shown = seen["counters"].as_object().unwrap().keys();
    assert_eq!(shown.collect::<BTreeSet<_>>(), counted.collect::<BTreeSet<_>>());
    assert!(seen["buffer"]["high_water_records"].as_u64().unwrap() > 0, "{seen}");
    assert_eq!(seen["buffer"]["capacity_records"], 8704);

    let plugins: Vec<_> = seen["plugins"].as_array().unwrap().iter().collect();
    let [missing, probe] = plugins[..] else { panic!("{seen}") };
    assert_eq!((&missing["name"], &missing["version"]), (&"missing".into(), &"2.0".into()));
    assert!(missing["process"].is_null() && ["waiting", "preparing"].map(Value::from).contains(&missing["state"]));
    assert_eq!(
        (&probe["name"], &probe["version"], &probe["state"]),
        (&"probe".into(), &"1.0".into(), &"running".into())
    );
    let pid = u32::try_from(probe["process"]["pid"].as_u64().unwrap()).unwrap();
    assert!(agent.workdir().processes().contains(&pid), "{seen}");
    assert!(probe["process"]["counters"]["records"].as_u64().unwrap() >= 2000, "{seen}");

    agent.signal(Signal::TERM);
}

#[test]
fn a_connected_agent_tells_people_the_same() {
    let site = Site::new();
    let agent = busy(&site);
    let expected = [
        agent.id(),
        &agent.pid().to_string(),
        &format!("connection  connected to {} (private) for ", site.address()),
        "last error  ",
        "127.0.0.1:1: no TCP connection",
        "plugin missing cannot be started",
        " records/s and ",
        " confirmed, 0 not yet, 0 sent again, 0 lost\n",
        "ledger      0 batches, 0 B of 4.0 MiB\n",
        "streams 1, connect_failures 1\n",
    ];
    let mut text = String::new();
    let says_all = holds_within(DEADLINE, || {
        text = printed(agent.workdir().path(), &[], 0);
        expected.iter().all(|says| text.contains(says))
    });
    assert!(says_all, "expected {expected:?}:\n{text}");
    // The table's columns are aligned: every row has its version below the title's.
    let table: Vec<_> = text.lines().skip_while(|line| !line.starts_with("PLUGIN")).collect();
    let at = table[0].find("VERSION").unwrap();
    assert!(table[1].starts_with("missing ") && table[1][at..].starts_with("2.0 "), "{text}");
    assert!(table[2].starts_with("probe ") && table[2][at..].starts_with("1.0 "), "{text}");
    assert!(text.lines().all(|line| line.trim_end() == line && !line.contains(char::is_control)), "{text:?}");
}

#[test]
fn metrics_are_as_prometheus_wants_them() {
    let site = Site::new();
    let agent = busy(&site);
    let answer = exchange(agent.workdir().path(), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");

    // A family is announced once and before its samples, which are not interleaved with others. Counters end in _total.
    let mut family = "";
    let mut families = Vec::new();
    for line in body.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => {
                assert!(!families.contains(&name) && name.starts_with("elklet_") && !help.is_empty(), "{line}");
                family = name;
                families.push(name);
            }
            ["#", "TYPE", name, kind] => {
                assert_eq!((name, kind == "counter"), (family, name.ends_with("_total")), "{line}");
                assert!(["gauge", "counter"].contains(&kind), "{line}");
            }
            _ => {
                let (series, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(series.split('{').next(), Some(family), "{line}");
                assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
            }
        }
    }
    // Every metric that the documentation lists is there.
    for name in include_str!("../../../docs/operations.md").split('`').filter(|word| word.starts_with("elklet_")) {
        let name = name.split([' ', '[']).next().unwrap();
        assert!(families.contains(&name), "{name} is documented and missing:\n{body}");
    }
    let value = |series: &str| {
        let line = body.lines().find(|line| line.starts_with(&format!("{series} ")));
        line.unwrap_or_else(|| panic!("no {series}:\n{body}")).rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    assert_eq!((value("elklet_up"), value("elklet_connected"), value("elklet_streams_total")), (1.0, 1.0, 1.0));
    assert!(value("elklet_records_total") >= 2000.0 && value("elklet_records_confirmed_total") >= 2000.0);
    assert!(value("elklet_plugin_records_total{plugin=\"probe\"}") >= 2000.0);
    assert_eq!(value("elklet_plugin_running{plugin=\"missing\"}"), 0.0);
    value(&format!("elklet_info{{id=\"{}\",version=\"{}\"}}", agent.id(), env!("CARGO_PKG_VERSION")));
    let printed = printed(agent.workdir().path(), &["--metrics"], 0);
    assert_eq!(printed.lines().count(), body.lines().count(), "the same by the command");
}

#[test]
fn an_agent_without_a_server_answers_with_code_3() {
    let site = Site::new();
    let agent = offline(&site);
    let workdir = agent.workdir().path();
    let mut text = String::new();
    wait_until("wait for the next attempt", || {
        text = printed(workdir, &[], 3);
        text.contains("the next attempt is in ")
    });
    assert!(
        text.contains("connection  not connected for ") && text.contains("127.0.0.1:1: no TCP connection"),
        "{text}"
    );
    assert!(text.ends_with("\nno plugins\n"), "{text}");
    let seen = json(workdir, 3);
    assert_eq!(seen["connection"]["connected"], false);
    assert!(seen["counters"]["connect_failures"].as_u64().unwrap() >= 1, "{seen}");
    let metrics = printed(workdir, &["--metrics"], 0);
    assert!(metrics.contains("\nelklet_up 1\n") && metrics.contains("\nelklet_connected 0\n"), "{metrics}");
}

#[test]
fn no_agent_is_said_with_code_1() {
    let site = Site::new();
    let agent = offline(&site);
    let directory = agent.workdir().path().to_owned();
    let socket = directory.join("elklet.sock");
    let mode = fs::symlink_metadata(&socket).unwrap();
    assert!(mode.file_type().is_socket() && mode.permissions().mode() & 0o7777 == 0o600, "{mode:?}");
    let setup = agent.into_setup();
    assert!(!socket.exists(), "an agent that ends in order takes its socket with it");

    let refused = |workdir: &Path, flags: &[&str]| {
        let Output { status, stdout, stderr } = ask(workdir, flags);
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("elklet: no agent listens at ") && stderr.lines().count() == 1, "{stderr}");
        String::from_utf8(stdout).unwrap()
    };
    assert_eq!(refused(&directory, &[]), "");
    assert_eq!(refused(&directory, &["--json"]), "");
    assert!(refused(&directory, &["--metrics"]).ends_with("\nelklet_up 0\n"));
    assert_eq!(refused(Path::new("/no/such"), &[]), "");

    // An agent that was killed leaves its socket behind. The next one replaces it.
    let mut agent = setup.start();
    wait_until("socket of the second run", || socket.exists());
    agent.signal(Signal::KILL);
    let _ = agent.wait_for_exit();
    assert!(socket.exists());
    assert_eq!(refused(&directory, &[]), "");
    let next = site.setup().server(NOBODY);
    fs::rename(&socket, next.workdir().path().join("elklet.sock")).unwrap();
    let next = next.start();
    next.wait_for_log("the next attempt is in ");
    assert_eq!(json(next.workdir().path(), 3)["agent"]["pid"], next.pid());
}

#[test]
fn what_is_no_stale_socket_is_left_alone() {
    let site = Site::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let theirs = elsewhere.path().join("theirs");
    let _listener = UnixListener::bind(&theirs).unwrap();
    for kind in ["file", "directory", "symlink", "dangling symlink"] {
        let setup = site.setup().server(NOBODY);
        let socket = setup.workdir().path().join("elklet.sock");
        match kind {
            "file" => fs::write(&socket, "precious").unwrap(),
            "directory" => fs::create_dir(&socket).unwrap(),
            "symlink" => symlink(&theirs, &socket).unwrap(),
            _ => symlink("/no/such", &socket).unwrap(),
        }
        let before = fs::symlink_metadata(&socket).unwrap();
        let agent = setup.start();
        agent.wait_for_log("`elklet status` cannot ask this agent: ");
        agent.wait_for_log("the next attempt is in ");
        let setup = agent.into_setup();
        let after = fs::symlink_metadata(setup.workdir().path().join("elklet.sock")).unwrap();
        assert_eq!(before.ino(), after.ino(), "{kind}");
        assert!(theirs.exists());
    }
}

#[test]
fn a_second_agent_in_the_directory_is_refused_and_touches_nothing() {
    let site = Site::new();
    let agent = offline(&site);
    let directory = agent.workdir().path();
    let downloads = directory.join("tmp");
    fs::create_dir_all(&downloads).unwrap();
    let second = Command::new(&Binaries::for_tests().elklet)
        .args(["run", "--server", NOBODY, "--workdir"])
        .arg(directory)
        .arg("--certs")
        .arg(site.certs())
        .output()
        .unwrap();
    let says = format!("another agent runs in {}", directory.display());
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains(&says), "{second:?}");
    assert!(downloads.exists());
    assert_eq!(json(directory, 3)["agent"]["pid"], agent.pid());
}

#[test]
fn a_long_path_is_no_hindrance() {
    let site = Site::new();
    let top = Workdir::new();
    let long = top.path().join("d".repeat(100)).join("e".repeat(100));
    fs::create_dir_all(&long).unwrap();
    let agent = site.eager().argument("--workdir").argument(long.to_str().unwrap()).start();
    site.wait_connected(&agent);
    assert!(long.join("elklet.sock").exists());
    assert_eq!(json(&long, 0)["agent"]["pid"], agent.pid());
    // The same by a file that names it.
    let file = top.path().join("settings");
    fs::write(&file, format!("workdir = \"{}\"\n", long.display())).unwrap();
    let output = Command::new(&Binaries::for_tests().elklet).args(["status", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn garbage_is_refused() {
    let site = Site::new();
    let agent = offline(&site);
    let workdir = agent.workdir().path();
    for (request, says) in [
        (&b"GET /nothing HTTP/1.1\r\n\r\n"[..], "HTTP/1.1 404 "),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 "),
        (b"\x00\xff\xfe garbage\r\n\r\n", "HTTP/1.1 400 "),
        (b"\r\n\r\n", "HTTP/1.1 400 "),
        (&[b'x'; 4096], "HTTP/1.1 400 "),
    ] {
        let answer = exchange(workdir, request);
        assert!(answer.starts_with(says) && answer.contains("\r\nConnection: close\r\n"), "{answer}");
    }
    // The agent answers a client that says nothing as well.
    let mut socket = connect(workdir);
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let _ = json(workdir, 3);
}

#[test]
fn clients_that_do_not_read_or_write_are_hung_up_on_and_hold_nothing_up() {
    let site = Site::new();
    let agent = site.agent();
    let workdir = agent.workdir().path();
    let begun = Instant::now();
    // These are more clients than the agent serves at a time. Some say nothing, some half a request, some never read
    // their answer.
    let mut silent: Vec<_> = (0..6).map(|_| connect(workdir)).collect();
    for (i, socket) in silent.iter_mut().enumerate() {
        match i % 3 {
            0 => {}
            1 => socket.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap(),
            _ => socket.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap(),
        }
    }
    // The agent's own work goes on meanwhile.
    site.task(&agent, "nobody", 1, "", "while they wait");
    site.wait_records("answer", &agent, |records| {
        records.values(5100, "token").contains(&"while they wait".to_owned())
    });
    assert!(begun.elapsed() < DEADLINE);
    // When their time is over, the agent serves others.
    assert!(holds_within(DEADLINE, || ask(workdir, &[]).status.code() == Some(0)));
    // A client with half a request stays the longest.
    let mut rest = String::new();
    silent[1].read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "hung up on");
    assert!(begun.elapsed() >= Duration::from_secs(5), "not before its time is over");
}

#[test]
fn clients_at_the_same_time_are_all_answered() {
    let site = Site::new();
    let agent = site.agent();
    let workdir = agent.workdir().path();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| json(workdir, 0))).collect();
        for client in clients {
            assert_eq!(client.join().unwrap()["agent"]["pid"], agent.pid());
        }
    });
}
