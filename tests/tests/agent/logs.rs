//! The log, the audit and standard error. Whatever happens to them, it does not stop the agent or hide what it did.
//! Nothing in them can control a terminal.

use crate::PLUGIN;
use crate::downloads::{plain, program};
use elklet_proto::grpc::Config;
use elklet_tests::binaries::Binaries;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Setup, Signal, Site, wait_until, whole_lines};
use rustix::fs::{Mode, OFlags, fcntl_getfl, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, tcflow};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Returns what `elklet status` prints in this form.
fn printed(workdir: &Path, flags: &[&str]) -> String {
    let mut command = Command::new(&Binaries::for_tests().elklet);
    let output = command.arg("status").arg("--workdir").arg(workdir).args(flags).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn status(agent: &Agent) -> Value {
    serde_json::from_str(&printed(agent.workdir().path(), &["--json"])).unwrap()
}

fn counter(agent: &Agent, name: &str) -> u64 {
    status(agent)["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name}"))
}

/// Makes it log lines until the condition holds.
fn log_until(what: &str, agent: &Agent, mut condition: impl FnMut() -> bool) {
    wait_until(what, || {
        agent.signal(Signal::HUP);
        condition()
    });
}

/// Standard error at both ends, and how the reader is stopped and goes on.
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
    pause: fn(&OwnedFd, bool),
}

fn pipe() -> Ends {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setpipe_size(&writer, 4096).unwrap();
    Ends { reader, writer, pause: |_, _| {} }
}

fn socket() -> Ends {
    let (reader, writer) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_send_buffer_size(&writer, 4096).unwrap();
    Ends { reader, writer, pause: |_, _| {} }
}

fn terminal() -> Ends {
    let reader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&reader).unwrap();
    unlockpt(&reader).unwrap();
    let name = ptsname(&reader, Vec::new()).unwrap();
    let writer = open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    // This does what Ctrl-S and Ctrl-Q do.
    Ends { reader, writer, pause: |end, stops| tcflow(end, if stops { Action::OOff } else { Action::OOn }).unwrap() }
}

#[test]
fn a_reader_of_standard_error_that_stops_reading_stops_nothing_and_hears_what_it_missed() {
    let site = Site::new();
    for (name, ends) in [("pipe", pipe()), ("socket", socket()), ("terminal", terminal())] {
        let Ends { reader, writer, pause } = ends;
        let shared = writer.try_clone().unwrap();
        let agent = site.eager().argument("--log-stderr").stderr_to(writer).start();
        site.wait_connected(&agent);
        pause(&shared, true);
        log_until("lost lines", &agent, || counter(&agent, "stderr_lines_lost") >= 3);
        assert!(!fcntl_getfl(&shared).unwrap().contains(OFlags::NONBLOCK), "{name}: others share the description");
        site.configure(&agent, &[agent.install("probe", PLUGIN, "run=a n=10")]);
        site.wait_records("records", &agent, |records| records.run("a").received >= 10);

        pause(&shared, false);
        let mut said = String::new();
        let mut reader = File::from(reader);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        log_until("notice", &agent, || {
            let mut some = Vec::new();
            let _ = reader.read_to_end(&mut some);
            said += &String::from_utf8_lossy(&some);
            said.contains(" lines were left out here: nobody read standard error")
        });
        // The agent treats a reader that goes away in the same way.
        drop((reader, shared));
        let lost = counter(&agent, "stderr_lines_lost");
        log_until("lost lines", &agent, || counter(&agent, "stderr_lines_lost") > lost);
        assert_eq!(counter(&agent, "log_lines_lost"), 0, "{name}");
        assert!(agent.into_setup().workdir().path().exists(), "{name}: it ends in order");
        site.center().set_configs(None);
    }
}

#[test]
fn a_full_disk_behind_standard_error_costs_lines_only() {
    let site = Site::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let agent = site.eager().argument("--log-stderr").stderr_to(full.into()).start();
    site.wait_connected(&agent);
    assert!(counter(&agent, "stderr_lines_lost") > 0);
    assert!(agent.log().contains("connected to "));
}

#[test]
fn a_log_that_cannot_be_written_is_told_until_it_can() {
    let site = Site::new();
    let agent = site.agent();
    let log = agent.workdir().path().join("log");
    let text = || printed(agent.workdir().path(), &[]);
    let metrics = || printed(agent.workdir().path(), &["--metrics"]);
    assert!(metrics().contains("\nelklet_log_writable 1\n") && !text().contains("NOT WRITTEN"));
    fs::rename(&log, agent.workdir().path().join("away")).unwrap();
    fs::write(&log, "in the way").unwrap();
    log_until("trouble", &agent, || text().contains("log         NOT WRITTEN: "));
    let error = status(&agent)["logs"]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("/log/elklet.log: it is no directory"), "{error}");
    assert!(metrics().contains("\nelklet_log_writable 0\n"), "{}", metrics());
    log_until("more lost lines", &agent, || counter(&agent, "log_lines_lost") >= 3);
    // The agent says it there once, although nobody asked for lines there.
    assert_eq!(agent.stderr().matches("ERROR the log cannot be written: ").count(), 1, "{}", agent.stderr());
    assert_eq!(agent.stderr().lines().count(), 1, "{}", agent.stderr());

    fs::remove_file(&log).unwrap();
    wait_until("the log", || status(&agent)["logs"]["error"].is_null());
    agent.wait_for_log(" lines are missing here, which could not be written: ");
    assert!(metrics().contains("\nelklet_log_writable 1\n"));
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn an_agent_starts_without_a_log() {
    let site = Site::new();
    let setup = site.eager();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), setup.workdir().path().join("log")).unwrap();
    let agent = setup.start();
    site.wait_connected(&agent);
    assert!(agent.stderr().contains("a symbolic link, which is not followed"), "{}", agent.stderr());
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nothing is written through a link");
}

/// Returns the events of the audit.
fn audited(agent: &Agent) -> Vec<Value> {
    let text = whole_lines(&agent.workdir().path().join("log/audit.log"));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Waits for an event, and returns it.
fn wait_audited(agent: &Agent, is_it: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    wait_until("event", || {
        found = audited(agent).into_iter().find(|event| is_it(event));
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn what_a_server_has_done_is_audited_and_a_flood_does_not_wash_it_out() {
    let uploads = tempfile::tempdir().unwrap();
    let site = Site::with(|options| options.upload_dir = Some(uploads.path().to_owned()));
    // This holds whatever the umask is.
    let agent = site.eager().started_by(&["sh", "-c", "umask 0; exec \"$0\" \"$@\""]).start();
    site.wait_connected(&agent);
    let evidence = agent.workdir().path().join("evidence");
    fs::write(&evidence, "secret").unwrap();
    let asks =
        |data_type, data: Value, token: &str| site.task(&agent, "elkeid-agent", data_type, &data.to_string(), token);
    asks(1050, serde_json::json!({ "path": evidence, "buf_size": 1000 }), "token-1");
    let done = wait_audited(&agent, |event| event["kind"] == "upload" && event["result"] == "done, 6 bytes");
    assert_eq!((&done["what"], &done["token"]), (&evidence.to_str().unwrap().into(), &"token-1".into()), "{done}");
    assert_eq!(done["server"], *site.address());
    assert!(audited(&agent).iter().any(|event| event["kind"] == "upload" && event["result"] == "begins"));

    asks(1051, serde_json::json!({ "idc": "dc-1" }), "token-2");
    let metadata = wait_audited(&agent, |event| event["kind"] == "metadata");
    assert_eq!((&metadata["what"], &metadata["token"]), (&"idc dc-1, region default".into(), &"token-2".into()));

    let files = Files::start();
    let probe = plain("probe", &program(), &[files.serve("probe", program(), How::Right)], "");
    site.configure(&agent, std::slice::from_ref(&probe));
    let installed = wait_audited(&agent, |event| event["kind"] == "plugin");
    assert_eq!((&installed["what"], &installed["result"]), (&"probe version 1.0".into(), &"installed".into()));
    assert_eq!(installed["sha256"], *probe.sha256);
    let wrong = Config {
        sha256: "11".repeat(32),
        signature: "11".repeat(32),
        ..plain("wrong", b"x", &[files.serve("wrong", b"x", How::Right)], "")
    };
    site.configure(&agent, &[wrong]);
    let removed = wait_audited(&agent, |event| event["result"] == "removed");
    assert_eq!(removed["what"], "probe");
    let refused = wait_audited(&agent, |event| event["what"] == "plugin wrong");
    assert!(refused["kind"] == "refused" && !refused["result"].as_str().unwrap().is_empty(), "{refused}");

    // The texts are long, so that this is a flood.
    let path = format!("/{}", "x".repeat(3000));
    for i in 0..400 {
        asks(1050, serde_json::json!({ "path": path, "buf_size": 0 }), &format!("bad-{i}"));
    }
    wait_until("answers", || counter(&agent, "refused_tasks") >= 400);
    let directory = agent.workdir().path().join("log");
    let bytes: u64 = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 400_000, "{bytes} bytes of log");
    assert!(counter(&agent, "log_lines_left_out") > 0 || counter(&agent, "audit_lines_left_out") > 0);
    assert!(agent.log().contains("uploaded ") && agent.log().contains("token-1"), "{}", agent.log());
    assert!(audited(&agent).iter().any(|event| event["token"] == "token-1"));
    for name in ["elklet.log", "audit.log"] {
        assert_eq!(fs::metadata(directory.join(name)).unwrap().mode() & 0o7777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o700);
    site.task(&agent, "elkeid-agent", 1060, "", "");
    let _ = wait_audited(&agent, |event| event["kind"] == "shutdown");
}

#[test]
fn nothing_that_a_server_sends_speaks_to_a_terminal() {
    const EVIL: &str = "\x1b]0;owned\x07\u{9b}31m\u{7f}\r\n\u{202e}txt\u{2066}\u{2028}\u{feff}";
    let site = Site::new();
    let agent = site.agent();
    let good = agent.install("probe", PLUGIN, "");
    let evil = |name: &str| Config { name: name.to_owned(), version: format!("1{EVIL}"), ..good.clone() };
    let unknown = Config {
        download_urls: vec![format!("http://127.0.0.1:1/{EVIL}"), EVIL.to_owned()],
        sha256: "11".repeat(32),
        ..evil("absent")
    };
    site.configure(&agent, &[evil("probe"), evil(&format!("bad{EVIL}")), unknown]);
    site.task(&agent, &format!("nobody{EVIL}"), 1, EVIL, "token-of-nobody");
    wait_until("trouble", || {
        let details = status(&agent)["agent"]["state_detail"].clone();
        let details: Vec<_> = details.as_array().unwrap().iter().filter_map(Value::as_str).map(str::to_owned).collect();
        details.iter().any(|detail| detail.contains("absent")) && details.iter().any(|detail| detail.contains("bad"))
    });
    let answer = || {
        site.records(&agent, |records| {
            records
                .of_type(5100)
                .find(|fields| fields["token"] == "token-of-nobody")
                .map(|fields| fields["msg"].clone())
        })
    };
    wait_until("answer", || answer().is_some());
    let spoken = |text: &str| text.replace('\n', "").contains(elklet_core::printable::is_unprintable);
    for (name, text) in [
        ("text", printed(agent.workdir().path(), &[])),
        ("JSON", printed(agent.workdir().path(), &["--json"])),
        ("metrics", printed(agent.workdir().path(), &["--metrics"])),
        ("log", agent.log()),
        ("audit", fs::read_to_string(agent.workdir().path().join("log/audit.log")).unwrap()),
        // A message may also leave the server's text out.
        ("answer", answer().unwrap() + "owned"),
    ] {
        assert!(!spoken(&text) && text.contains("owned"), "{name}: {text:?}");
    }
    // JSON keeps the version as the server sent it, because programs read it.
    let seen = status(&agent);
    assert!(seen["plugins"].as_array().unwrap().iter().any(|plugin| plugin["version"] == format!("1{EVIL}")), "{seen}");
}

#[test]
fn what_waits_on_the_disk_is_listed_without_speaking_to_a_terminal() {
    let setup = Setup::new(Path::new("/no/certs"));
    let spool = setup.workdir().path().join("spool\x1b[31m");
    let mut command = Command::new(&Binaries::for_tests().elklet);
    let output = command.args(["spool", "ls", "--workdir"]).arg(&spool).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains('\x1b') && !said.is_empty(), "{said:?}");
}
