//! `elklet doctor`: each hop on the way to a server fails in turn, and the doctor names it and says what helps.

use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Site, Workdir, wait_until};
use serde_json::Value;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

mod host;
mod way;

/// An address at which nobody listens: a privileged port that has no service.
const NOBODY: &str = "127.0.0.1:1";

const HOPS: [&str; 7] = ["DNS", "TCP", "proxy", "TLS", "ALPN", "gRPC", "AgentCenter"];

/// The settings of a doctor: as an agent would get them, in a directory of its own.
struct Visit {
    workdir: Workdir,
    id: String,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Visit {
    fn new(certs: &Path, server: &str) -> Self {
        let workdir = Workdir::new();
        let id = format!("visitor-{}", workdir.path().display());
        Self { workdir, id, arguments: Vec::new(), variables: Vec::new() }
            .with("--certs", certs.to_str().unwrap())
            .with("--server", server)
    }

    fn with(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn file(self, text: &str) -> Self {
        fs::write(self.workdir.path().join("elklet.toml"), text).unwrap();
        self
    }

    fn run(&self, flags: &[&str]) -> Output {
        let place = [OsStr::new("doctor"), OsStr::new("--workdir"), self.workdir.path().as_os_str()];
        let mut command = Command::new(&Binaries::for_tests().elklet);
        // `.ci/coverage` needs the file in which an instrumented program counts.
        let profile = env::var_os("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file));
        command.env_clear().envs(profile).env("SPECIFIED_AGENT_ID", &self.id).envs(self.variables.iter().cloned());
        command.args(place).args(flags).args(&self.arguments).output().unwrap()
    }

    /// Runs the doctor, which has to end with this code, and returns its findings as JSON.
    fn finds(&self, code: i32) -> Value {
        let output = self.run(&["--json"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!((output.status.code(), &*output.stderr), (Some(code), &b""[..]), "{said}");
        serde_json::from_str(&said).unwrap()
    }

    /// Expects it to end at one hop: it passes those before, and does not try those behind. As text it says this and
    /// what helps.
    fn fails_at(&self, hop: &str, says: &str, advises: &str) {
        let found = self.finds(1);
        assert!(found["server"].is_null(), "{hop}: {found}");
        let findings = findings(&found);
        let at = findings.iter().position(|finding| finding["verdict"] == "FAILED");
        let at = at.unwrap_or_else(|| panic!("{hop}: {found}"));
        let part = |name: &str| findings[at][name].as_str().unwrap_or_default();
        assert_eq!(part("hop"), hop, "{found}");
        assert!(part("detail").contains(says), "{hop} with {says:?}: {found}");
        assert!(part("advice").contains(advises), "{hop} with {advises:?}: {found}");
        for (i, finding) in findings.iter().enumerate().filter(|(i, _)| *i != at) {
            let verdict = &finding["verdict"];
            let is_passed = verdict == "ok" || verdict == "warning";
            assert!(verdict == "skipped" || (i < at && is_passed), "{hop}: {found}");
        }
    }
}

fn findings(found: &Value) -> Vec<&Value> {
    found["findings"].as_array().unwrap().iter().collect()
}

fn verdicts<'f>(found: &'f Value, server: &str) -> Vec<(&'f str, &'f str)> {
    let of_server = findings(found).into_iter().filter(|finding| finding["server"] == server);
    of_server.map(|finding| (finding["hop"].as_str().unwrap(), finding["verdict"].as_str().unwrap())).collect()
}

/// Returns the warnings of one kind: what the doctor says, and what helps.
fn warnings(found: &Value, hop: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_hop = findings(found).into_iter().filter(|finding| finding["hop"] == hop && finding["verdict"] == "warning");
    of_hop.map(|finding| (text(&finding["detail"]), text(&finding["advice"]))).collect()
}

const PASSED: [(&str, &str); 7] = [
    ("DNS", "skipped"),
    ("TCP", "ok"),
    ("proxy", "skipped"),
    ("TLS", "ok"),
    ("ALPN", "ok"),
    ("gRPC", "ok"),
    ("AgentCenter", "ok"),
];

#[test]
fn all_is_well_and_nothing_is_left_behind() {
    let site = Site::new();
    let visit = Visit::new(site.certs(), &site.address());
    let found = visit.finds(0);
    let server = format!("{} (private)", site.address());
    assert_eq!(found["server"], *server);
    assert_eq!(verdicts(&found, &server), PASSED);
    assert!(findings(&found).iter().all(|finding| finding["verdict"] != "FAILED"), "{found}");
    // The doctor sent no record, and the id is free again.
    site.center().read(|state| {
        let seen = state.agent(&visit.id);
        assert_eq!((seen.streams, seen.connected, seen.heartbeat.is_some(), seen.counts.len()), (1, false, false, 0));
    });
    assert_eq!(fs::read_dir(visit.workdir.path()).unwrap().count(), 0, "it looks and touches nothing");

    let output = visit.run(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains(&format!("\n{server}\n  DNS             skipped  it is an address\n")), "{text}");
    assert!(text.ends_with(&format!("\nthe way to {server} is open\n")), "{text}");
}

#[test]
fn one_server_that_works_is_enough() {
    let site = Site::new();
    let visit = Visit::new(site.certs(), NOBODY).with("--server", &site.address());
    let found = visit.finds(0);
    assert_eq!(found["server"], format!("{} (private)", site.address()));
    assert_eq!(verdicts(&found, &format!("{NOBODY} (private)"))[1], ("TCP", "FAILED"));
    let text = String::from_utf8(visit.run(&[]).stdout).unwrap();
    let says = "  TCP             FAILED   Connection refused (os error 111)\n                           -> nothing listens there";
    assert!(text.contains(says), "{text}");
}

#[test]
fn a_running_agent_is_not_disturbed() {
    let site = Site::new();
    let agent = site.agent();
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = agent.id().to_owned();
    let directory = agent.workdir().path().to_str().unwrap();
    let found = visit.with("--workdir", directory).finds(0);
    let verdicts = verdicts(&found, &format!("{} (private)", site.address()));
    assert_eq!(verdicts[..6], PASSED[..6], "{found}");
    assert_eq!(verdicts[6], ("AgentCenter", "ok"), "{found}");
    assert!(found.to_string().contains("the running agent is connected to it by this id"), "{found}");
    let says = format!("it runs as process {}, connected to {} for ", agent.pid(), site.address());
    assert!(found.to_string().contains(&says), "{found}");
    let conflicts = site.center().read(|state| state.totals.conflicts);
    assert_eq!((conflicts, site.fresh_heartbeats(&agent).count("streams")), (0, 2), "its own, and the one just opened");
}

#[test]
fn a_wrong_file_is_named_with_line_and_key() {
    let site = Site::new();
    let visit = || Visit::new(site.certs(), &site.address());
    visit().file("[server]\nprivat = []\n").fails_at("configuration", "elklet.toml:2: ", "mend");
    visit().file("\n\nbuffer = 3\n").fails_at("configuration", "elklet.toml:3: buffer", "mend");
    visit().with("--config", "/no/such.toml").fails_at("configuration", "/no/such.toml: No such file", "mend");
    visit().with("--server", "nowhere").fails_at("configuration", "--server: \"nowhere\" is no address", "mend");
}

#[test]
fn wrong_flags_are_no_finding() {
    let workdir = Workdir::new();
    for words in [&["doctor", "--metrics"][..], &["doctor", "extra"], &["status", "--server", "a:1"]] {
        let output =
            Command::new(&Binaries::for_tests().elklet).current_dir(workdir.path()).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn a_wrong_id_is_named() {
    let site = Site::new();
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = "x".repeat(300);
    visit.fails_at("agent id", "300 bytes, the limit is 256", "SPECIFIED_AGENT_ID");
}

#[test]
fn an_agent_that_the_server_refuses_is_not_well() {
    let site = Site::new();
    let first = site.agent();
    let second = site.setup().server(&site.address()).variable("SPECIFIED_AGENT_ID", first.id()).start();
    second.wait_for_log("agentID conflict");
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = first.id().to_owned();
    let visit = visit.with("--workdir", second.workdir().path().to_str().unwrap());
    // While an attempt is under way, it is not refused yet.
    wait_until("refusal", || visit.run(&[]).status.code() == Some(1));
    let found = || {
        let found: Value = serde_json::from_slice(&visit.run(&["--json"]).stdout).unwrap();
        findings(&found).into_iter().find(|finding| finding["verdict"] == "FAILED").cloned()
    };
    let mut failed = None;
    wait_until("finding", || {
        failed = found();
        failed.is_some()
    });
    let failed = failed.unwrap();
    let part = |name: &str| failed[name].as_str().unwrap_or_default();
    assert!(part("hop") == "agent" && part("detail").contains("agentID conflict"), "{failed}");
    assert!(part("advice").contains("look for another host with this id"), "{failed}");
}

#[test]
fn an_agent_that_is_not_connected_says_so_to_the_doctor() {
    let site = Site::new();
    let agent = site.setup().server(NOBODY).start();
    agent.wait_for_log("the next attempt is in ");
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = agent.id().to_owned();
    let found = visit.with("--workdir", agent.workdir().path().to_str().unwrap()).finds(0);
    let warned = warnings(&found, "agent");
    assert!(
        warned.len() == 1 && warned[0].0.contains("is not connected (waiting); its last error: 127.0.0.1:1: "),
        "{found}"
    );
    let verdicts = verdicts(&found, &format!("{} (private)", site.address()));
    assert_eq!(verdicts[6], ("AgentCenter", "skipped"), "its id is its own: {found}");
}
