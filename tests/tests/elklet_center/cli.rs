//! What a team types: the program's commands against a center that runs, with what hosts sent and real agents.

use crate::access::{done, failed, run};
use crate::plugins::{Fleet, program};
use crate::program::{Program, site};
use crate::support::client::{Client, TRANSFER};
use crate::{batch, record};
use elklet_proto::grpc::EncodedRecord;
use elklet_tests::binaries::{Binaries, center_for_tests};
use elklet_tests::harness::{Agent, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Hosts that stay connected until this is dropped.
struct Hosts(#[allow(dead_code, reason = "it is held")] Vec<Box<dyn std::any::Any>>, tokio::runtime::Runtime);

impl Hosts {
    fn new() -> Self {
        Self(Vec::new(), tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
    }

    /// Connects a host that sends these records behind a heartbeat, and waits until they are stored.
    fn send(
        &mut self,
        dir: &Path,
        program: &Program,
        id: &str,
        heartbeat: &[(&str, &str)],
        records: Vec<EncodedRecord>,
    ) {
        let count = records.len() + 1;
        let records = [vec![record(1000, heartbeat)], records].concat();
        let held = self.1.block_on(async {
            let mut client = Client::connect(program.grpc, &dir.join("certs")).await.unwrap();
            let mut call = client.call(TRANSFER, Some("snappy")).await;
            call.send(&batch(id, records)).await;
            (client, call)
        });
        self.0.push(Box::new(held));
        wait_until("stored records", || program.get(&format!("/api/v1/hosts/{id}"))["records"] == count);
    }
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Begins a command that goes on.
fn begin(dir: &Path, words: &[&str]) -> Child {
    let mut command = Command::new(center_for_tests());
    command.args(words).arg("--data").arg(dir.join("data"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn status_says_by_words_and_by_code_whether_the_center_is_well() {
    let dir = site();
    let none = run(dir.path(), &["status"], "");
    assert_eq!(code(&none), Some(1));
    assert!(
        told(&none).contains("local-token") && told(&none).contains("no center has run with this data"),
        "{}",
        told(&none)
    );

    let mut center = Program::start(dir.path());
    let page = done(dir.path(), &["status"], "");
    assert!(page.contains(": well\n") && page.contains("  agents    0 connected, 0 known\n"), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    let mut hosts = Hosts::new();
    hosts.send(dir.path(), &center, "a", &[("cert_days_left", "20")], vec![]);
    let status: Value = serde_json::from_str(&done(dir.path(), &["status", "--json"], "")).unwrap();
    assert_eq!((&status["agents"], &status["well"]), (&json!({ "connected": 1, "known": 1 }), &json!(true)));
    assert!(status["records_per_s"].is_u64() && status["store"]["records"] == 1, "{status}");
    assert!(status["warnings"][0]["text"].as_str().unwrap().contains("ends within 30 days: gw1"), "{status}");

    hosts.send(dir.path(), &center, "b", &[("cert_days_left", "0")], vec![]);
    let unwell = run(dir.path(), &["status"], "");
    assert_eq!(code(&unwell), Some(3), "{}", told(&unwell));
    let page = String::from_utf8(unwell.stdout).unwrap();
    assert!(page.contains(": UNWELL\n") && page.contains("FAILURE   1 host whose certificate has ended"), "{page}");

    center.child.kill().unwrap();
    center.child.wait().unwrap();
    let ended = run(dir.path(), &["status"], "");
    assert_eq!(code(&ended), Some(1));
    assert!(told(&ended).contains("no center runs at http://127.0.0.1:"), "{}", told(&ended));
}

/// Runs a command whose standard output is this.
fn to(dir: &Path, words: &[&str], stdout: impl Into<Stdio>) -> Output {
    let mut command = Command::new(center_for_tests());
    command.args(words).arg("--data").arg(dir.join("data")).stdin(Stdio::null()).stdout(stdout).output().unwrap()
}

#[test]
fn a_command_that_cannot_print_says_so_and_what_it_has_done_all_the_same() {
    let site = tempfile::tempdir().unwrap();
    let dir = site.path();
    // Its own authority can enrol hosts.
    let data = dir.join("data").display().to_string();
    fs::write(dir.join("center.toml"), format!("http = \"127.0.0.1:0\"\ndownloads = \"off\"\ndata = {data:?}\n"))
        .unwrap();
    let center = Program::start(dir);
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let said = |words: &[&str], output: &Output| {
        assert_eq!(code(output), Some(1), "{words:?}: {}", told(output));
        let said = told(output);
        assert!(said.starts_with("elklet-center: standard output: "), "{words:?}: {said}");
        said
    };
    for words in [&["--help"][..], &["hosts", "--help"], &["serve", "--help"], &["status"], &["status", "--json"]] {
        said(words, &to(dir, words, full()));
    }
    let version = Command::new(center_for_tests()).arg("--version").stdout(full()).output().unwrap();
    said(&["--version"], &version);
    for (number, output) in
        [(1, to(dir, &["token", "--uses", "5"], full())), (2, to(dir, &["token", "--uses", "5"], closed()))]
    {
        let unseen =
            format!("token {number} was made, and nobody has seen it; elklet-center token revoke {number} ends it");
        assert!(said(&["token"], &output).contains(&unseen), "{}", told(&output));
    }
    let tokens = to(dir, &["token", "list"], full());
    said(&["token", "list"], &tokens);
    let revoked = to(dir, &["token", "revoke", "1"], closed());
    assert!(said(&["token", "revoke"], &revoked).contains("all the same, token 1 lets no host in any more"));
    let usable: Vec<_> =
        center.get("/api/v1/tokens").as_array().unwrap().iter().map(|token| token["usable"].clone()).collect();
    assert_eq!(usable, [true, false], "the first one was revoked");
    for stdout in [Stdio::from(full()), Stdio::from(closed())] {
        let link = to(dir, &["link"], stdout);
        assert!(said(&["link"], &link).contains("a link was made that nobody has seen"), "{}", told(&link));
    }
    run(dir, &["user", "add", "ann", "--role", "admin"], "a long password\n");
    said(&["user", "list"], &to(dir, &["user", "list"], full()));
    // Whoever reads a list may have seen enough.
    assert_eq!(code(&to(dir, &["token", "list"], closed())), Some(0));
    // Where nobody hears of it either, there is still the code.
    let mute = Command::new(center_for_tests()).arg("dance").stderr(full()).status().unwrap();
    assert_eq!(mute.code(), Some(2));
}

#[test]
fn hosts_and_records_are_found_and_nothing_that_they_say_steers_the_terminal() {
    let dir = site();
    let center = Program::start(dir.path());
    let mut hosts = Hosts::new();
    let id = "0f3a7c11-8be8-5b0a-9a6e-000000000001";
    let evil = record(59, &[("exe", "/usr/bin/curl"), ("argv", "curl \u{1b}[2J\u{9b}31m\nx"), ("pid", "7")]);
    let connect = record(42, &[("exe", "/usr/bin/curl"), ("dip", "10.0.0.1"), ("dport", "443")]);
    hosts.send(dir.path(), &center, id, &[], vec![evil, connect]);
    hosts.send(dir.path(), &center, "other", &[], vec![record(59, &[("exe", "/bin/true"), ("argv", "true")])]);

    let listed = done(dir.path(), &["hosts"], "");
    assert!(listed.starts_with("HOST") && listed.contains("gw1   0f3a7c11"), "{listed}");
    let ids: Vec<Value> =
        lines(&done(dir.path(), &["hosts", "--json"], "")).iter().map(|host| host["id"].clone()).collect();
    assert_eq!(ids, [id, "other"]);
    assert_eq!(done(dir.path(), &["hosts", "--gone", "--json"], ""), "");
    assert_eq!(done(dir.path(), &["hosts", "--group", "edge", "--json"], ""), "");

    let found = done(dir.path(), &["records", "--host", "0f3a", "--type", "exec,connect"], "");
    let found: Vec<&str> = found.lines().map(|line| line.split_once("Z gw1 ").unwrap().1).collect();
    assert_eq!(found, ["connect: /usr/bin/curl to 10.0.0.1 port 443", "exec: curl \\u{1b}[2J\\u{9b}31m\\nx"]);
    let one = ["records", "--field", "exe=/usr/bin/curl", "--contains", "argv=curl", "--since", "1h", "--json"];
    let one = done(dir.path(), &one, "");
    assert!(one.contains("\\u001b") && one.contains("\\u009b") && !one.contains(['\u{1b}', '\u{9b}']), "{one}");
    assert_eq!(lines(&one)[0]["fields"]["argv"], "curl \u{1b}[2J\u{9b}31m\nx", "it is what was sent");
    let table = done(dir.path(), &["records", "--type", "exec", "--csv", "--limit", "5"], "");
    assert!(table.starts_with("seq,received,") && table.contains("/bin/true"), "{table}");
    assert_eq!(lines(&done(dir.path(), &["records", "--host", "gw1", "--type", "59", "--json"], "")).len(), 2);
    assert_eq!(done(dir.path(), &["records", "--until", "2001-01-01T00:00:00Z"], ""), "");
    assert_eq!(lines(&done(dir.path(), &["records", "--json", "--limit", "1"], "")).len(), 1);

    let ambiguous = failed(dir.path(), &["task", "gw1", "upload"], "");
    assert!(ambiguous.contains("\"gw1\" is 2 hosts") && ambiguous.contains("say more of the id"), "{ambiguous}");
    let unknown = run(dir.path(), &["records", "--host", "nobody"], "");
    assert!(code(&unknown) == Some(0) && told(&unknown).contains("no host \"nobody\" is known"), "{}", told(&unknown));
    for words in [&["records", "--type", "exce"][..], &["records", "--frobnicate"], &["hosts", "x"], &["push"]] {
        assert_eq!(code(&run(dir.path(), words, "")), Some(2), "{words:?}");
    }
    for command in ["status", "hosts", "records", "push", "task", "user", "link"] {
        let help = done(dir.path(), &[command, "--help"], "");
        assert!(help.starts_with(&format!("elklet-center {command}: ")), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 135), "{help}");
    }
}

#[test]
fn records_are_followed_as_they_come() {
    let dir = site();
    let center = Program::start(dir.path());
    let mut hosts = Hosts::new();
    let exec = |argv: &str| record(59, &[("argv", argv)]);
    hosts.send(dir.path(), &center, "a", &[], vec![exec("first"), exec("second")]);
    let mut child = begin(dir.path(), &["records", "--follow", "--type", "exec", "--json"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))["fields"]["argv"]
            .clone()
    };
    assert_eq!([next(), next()], ["first", "second"], "the oldest first");
    hosts.send(dir.path(), &center, "b", &[], vec![record(60, &[]), exec("third")]);
    assert_eq!(next(), "third");
    hosts.send(dir.path(), &center, "c", &[], vec![exec("fourth")]);
    assert_eq!(next(), "fourth");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_pushed_plugin_runs_where_it_is_signed_and_shows_as_refused_where_the_signature_is_wrong() {
    let desk = tempfile::tempdir().unwrap();
    let elklet = |words: &[&str]| {
        let ran = Command::new(&Binaries::for_tests().elklet).args(words).current_dir(desk.path()).output().unwrap();
        assert!(ran.status.success(), "{words:?}: {}", told(&ran));
        String::from_utf8(ran.stdout).unwrap().trim_end().to_owned()
    };
    let line = elklet(&["keygen", "key"]);
    elklet(&["keygen", "strangers"]);
    fs::write(desk.path().join("probe"), program("1")).unwrap();
    let fleet = Fleet::with(|setup| setup.setting("plugins", &line));
    let dir = fleet.dir.path();
    let file = desk.path().join("probe").display().to_string();
    let push = |key: &str, version: &str| {
        let detail = ["--detail", "hello"];
        let of = ["sign", "probe", "--key", key, "--name", "probe", "--version", version];
        let signature = elklet(&[&of[..], &detail].concat());
        let words = ["push", &file, "--name", "probe", "--version", version, "--group", "edge", "--wait", "1s"];
        let output = fleet.end_of(begin(dir, &[&words[..], &detail, &["--signature", &signature, "--json"]].concat()));
        (code(&output), told(&output), lines(&String::from_utf8_lossy(&output.stdout)).pop().unwrap())
    };
    let (status, said, rollout) = push("key", "1");
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("probe 1 for edge: done, 2 of 2 hosts run it"), "{said}");
    assert_eq!(rollout["state"], "done");

    let (status, said, rollout) = push("strangers", "2");
    assert_eq!(status, Some(3), "{said}");
    assert_eq!(rollout["state"], "aborted", "{rollout}");
    let host = rollout["hosts"].as_array().unwrap().iter().find(|host| host["state"] == "wrong");
    let host = host.unwrap_or_else(|| panic!("no host is wrong: {rollout}")).to_string();
    for shown in [&said, &host] {
        assert!(shown.contains("its signature is not one of plugins.public_key"), "{shown}");
    }
    let running = |agent: &Agent| {
        let host = fleet.program.get(&format!("/api/v1/hosts/{}", agent.id()));
        host["plugins_info"][0]["pversion"].clone()
    };
    fleet.wait("what is signed", || fleet.agents.iter().all(|agent| running(agent) == "1"));
}

#[test]
fn a_plugin_is_pushed_and_a_task_answered_with_the_outcome_as_the_exit_code() {
    let fleet = Fleet::new();
    let dir = fleet.dir.path();
    let file = |name: &str, contents: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, contents).unwrap();
        path.display().to_string()
    };
    let good = file("probe-1", &program("1"));
    let push = |what: &str, version: &str, more: &[&str]| {
        let words = ["push", what, "--name", "probe", "--version", version, "--group", "edge"];
        fleet.end_of(begin(dir, &[&words[..], more].concat()))
    };
    let pushed = push(&good, "1", &["--wait", "1s", "--json"]);
    assert_eq!(code(&pushed), Some(0), "{}", told(&pushed));
    assert!(told(&pushed).contains("probe 1 for edge: done, 2 of 2 hosts run it"), "{}", told(&pushed));
    assert_eq!(lines(&String::from_utf8_lossy(&pushed.stdout))[0]["state"], "done");

    let bad = push(&file("probe-2", b"no program"), "2", &["--wait", "1s"]);
    assert_eq!(code(&bad), Some(3), "{}", told(&bad));
    assert!(told(&bad).contains("is aborted: ") && told(&bad).contains("cannot be started"), "{}", told(&bad));
    let again = push("probe-1", "1", &[]);
    assert_eq!(code(&again), Some(1), "{}", told(&again));
    let unknown = push("probe-9", "9", &[]);
    assert_eq!(code(&unknown), Some(2));
    assert!(told(&unknown).contains("\"probe-9\" is no file here, nor the name"), "{}", told(&unknown));
    let detached = push("probe-1", "3", &["--detach", "--canary", "0"]);
    let id = String::from_utf8(detached.stdout).unwrap();
    assert_eq!(fleet.program.get(&format!("/api/v1/rollouts/{}", id.trim()))["plugin"]["version"], "3");

    let log = file("log", b"what happened\n");
    // As the page of the manual has it.
    let path = json!({ "path": log }).to_string();
    let host = fleet.agents[0].id();
    let sent = run(dir, &["task", host, "upload", &path, "--wait", "--json"], "");
    assert_eq!(code(&sent), Some(0), "{}", told(&sent));
    let task = &lines(&String::from_utf8_lossy(&sent.stdout))[0];
    assert_eq!((&task["state"], &task["upload"]["len"]), (&json!("answered"), &json!(14)), "{task}");
    let nobody = run(dir, &["task", "--group", "edge", "nobody:7", "--wait"], "");
    assert_eq!(code(&nobody), Some(3), "{}", told(&nobody));
    let answers = String::from_utf8_lossy(&nobody.stdout);
    assert_eq!(answers.matches("status=failed").count(), 2, "{answers}");
    assert!(told(&nobody).contains("0 of 2 hosts have done it"), "{}", told(&nobody));
    let given = done(dir, &["task", host, "nobody:7"], "");
    assert!(given.starts_with(&format!("{host} ")), "{given}");
    let unknown = failed(dir, &["task", "zz", "upload"], "");
    assert!(unknown.contains("no host \"zz\" is known"), "{unknown}");
}
