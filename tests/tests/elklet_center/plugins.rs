//! Plugins come to agents from the center: uploaded, rolled out, and put back.

use crate::program::{Program, site};
use crate::support::http::{self, Answer};
use elklet_center::files::Digest;
use elklet_center::fleet::Upload;
use elklet_center::message::Batch;
use elklet_center::serve::{Options, Server};
use elklet_center::sink::{Sink, Taking};
use elklet_tests::harness::{Agent, Setup, own_address, wait_until};
use elklet_tests::pki::Set;
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A fleet of two agents in a group, and a center.
pub(crate) struct Fleet {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) program: Program,
    pub(crate) agents: [Agent; 2],
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self::with(|setup| setup)
    }

    /// The same with other settings of the agents.
    pub(crate) fn with(change: impl Fn(Setup) -> Setup) -> Self {
        let dir = site();
        let program = Program::start_at(dir.path(), own_address());
        let server = program.grpc.to_string();
        let start = || {
            // It comes back at once when its stream is ended, which it is to be asked for heartbeats.
            let setup = Setup::new(&dir.path().join("certs"));
            change((0..8).fold(setup, |setup, _| setup.server(&server))).start()
        };
        let mut agents = [start(), start()];
        agents.sort_by(|a, b| a.id().cmp(b.id()));
        let fleet = Self { program, agents, dir };
        for agent in &fleet.agents {
            let path = format!("/api/v1/hosts/{}", agent.id());
            wait_until("heartbeat", || fleet.get(&path)["hostname"].is_string());
            let put = http::request(fleet.program.http, "PUT", &path, &[], r#"{"group":"edge"}"#);
            assert_eq!(put.status, 200, "{}", put.body);
        }
        fleet
    }

    fn get(&self, path: &str) -> Value {
        self.program.get(path)
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        http::post(self.program.http, &format!("/api/v1{path}"), &body.to_string())
    }

    /// Uploads a file, and returns its SHA-256.
    fn upload(&self, name: &str, contents: &[u8]) -> String {
        let answer = http::request(self.program.http, "POST", &format!("/api/v1/files?name={name}"), &[], contents);
        assert_eq!(answer.status, 201, "{}", answer.body);
        assert_eq!(answer.json()["sha256"], Digest::of(contents).to_string());
        answer.json()["sha256"].as_str().unwrap().to_owned()
    }

    /// Begins a rollout with one canary, and returns its path.
    fn roll_out(&self, version: &str, file: &str, wait_s: u32) -> String {
        let plugin =
            json!({ "name": "probe", "version": version, "type": "", "detail": "", "signature": "", "file": file });
        // The canary is the first of those that are connected, and heartbeats are asked for by ending streams.
        wait_until("both agents", || self.get("/api/v1/hosts")["connected"] == self.agents.len());
        let begun =
            self.post("/rollouts", &json!({ "group": "edge", "plugin": plugin, "canary": 1, "wait_s": wait_s }));
        assert_eq!(begun.status, 201, "{}", begun.body);
        let rollout = begun.json();
        assert_eq!((&rollout["state"], &rollout["canary"]), (&json!("canary"), &json!([self.agents[0].id()])));
        format!("/rollouts/{}", rollout["id"])
    }

    /// Waits for something that heartbeats tell, which it asks for meanwhile: they are a minute apart, and a stream begins with one.
    pub(crate) fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let (mut asked, mut pause) = (Instant::now(), Duration::from_millis(700));
        let mut ended = Ended::default();
        wait_until(what, || {
            if asked.elapsed() > pause && ended.are_replaced(&self.program) {
                // An agent whose streams end again and again takes its time, and so does a busy machine.
                (asked, pause) = (Instant::now(), (pause * 3 / 2).min(Duration::from_secs(8)));
                ended = Ended::now(&self.program);
            }
            holds()
        });
        // Whoever goes on from here finds both agents connected.
        wait_until("the streams after those that were ended", || ended.are_replaced(&self.program));
    }

    /// Waits for the end of a command that may begin a rollout.
    pub(crate) fn end_of(&self, mut child: Child) -> Output {
        // A command that begins one while streams end finds no host there.
        let is_active = |rollout: &Value| rollout["state"] == "canary" || rollout["state"] == "rolling";
        wait_until("a rollout, or the end of the command", || {
            child.try_wait().unwrap().is_some()
                || self.get("/api/v1/rollouts").as_array().unwrap().iter().any(is_active)
        });
        self.wait("end of the command", || child.try_wait().unwrap().is_some());
        child.wait_with_output().unwrap()
    }

    /// Waits until a rollout is in a state.
    fn wait_state(&self, rollout: &str, state: &str) {
        let path = format!("/api/v1{rollout}");
        self.wait(state, || self.get(&path)["state"] == state);
    }

    /// Waits until both agents say that they run this version of the plugin.
    fn wait_versions(&self, version: &str) {
        self.wait_version(0, version);
        self.wait_version(1, version);
    }

    /// Waits until an agent says that it runs this version of the plugin.
    fn wait_version(&self, agent: usize, version: &str) {
        self.wait(&format!("version {version} on agent {agent}"), || self.version(agent) == version);
    }

    fn version(&self, agent: usize) -> Value {
        self.get(&format!("/api/v1/hosts/{}", self.agents[agent].id()))["plugins_info"][0]["pversion"].clone()
    }
}

/// The agents whose streams were told to end, and the number of streams that each had had.
///
/// The center answers before a stream ends. Until it does, the agent still counts as connected, and then it is away for a moment.
#[derive(Default)]
pub(crate) struct Ended(Vec<(String, u64)>);

impl Ended {
    /// Ends the streams of all agents.
    pub(crate) fn now(program: &Program) -> Self {
        let hosts = program.get("/api/v1/hosts")["hosts"].clone();
        let streams = |id: &str| program.get(&format!("/api/v1/hosts/{id}"))["streams"].as_u64().unwrap();
        let ids = hosts.as_array().unwrap().iter().map(|host| host["id"].as_str().unwrap().to_owned());
        let mut all: Vec<_> = ids.map(|id| (id.clone(), streams(&id))).collect();
        let reset = http::post(program.http, "/conn/reset", r#"{"type":"random","count":2}"#);
        assert_eq!(reset.status, 200, "{}", reset.body);
        let told = reset.json()["data"].clone();
        all.retain(|(id, _)| told.as_array().unwrap().contains(&json!(id)));
        Self(all)
    }

    /// Returns true once each of the agents is there with another stream.
    pub(crate) fn are_replaced(&self, program: &Program) -> bool {
        self.0.iter().all(|(id, streams)| {
            let host = program.get(&format!("/api/v1/hosts/{id}"));
            host["connected"] == true && host["streams"].as_u64() > Some(*streams)
        })
    }
}

/// The program of a plugin that does nothing, in as many versions as wanted.
pub(crate) fn program(version: &str) -> Vec<u8> {
    // What follows the end of an executable is nobody's.
    [&fs::read(env!("CARGO_BIN_EXE_scripted-plugin")).unwrap(), version.as_bytes()].concat()
}

#[test]
fn a_plugin_is_rolled_out_upgraded_and_put_back() {
    let mut fleet = Fleet::new();
    let first = fleet.upload("probe-1", &program("1"));
    let rollout = fleet.roll_out("1", &first, 0);
    // The center knows what a heartbeat says a moment before its rollouts do.
    let hosts = || fleet.get(&format!("/api/v1{rollout}"))["hosts"].clone();
    fleet.wait("canary", || hosts()[0]["state"] == "running");
    assert_eq!((fleet.version(0), &hosts()[1]["state"]), (json!("1"), &json!("waiting")), "{}", hosts());
    assert_eq!(fleet.version(1), Value::Null);
    let put = http::request(fleet.program.http, "PUT", "/api/v1/plugins", &[], r#"{"group":"edge","plugins":[]}"#);
    assert_eq!(put.status, 409, "{}", put.body);
    assert_eq!(fleet.post(&format!("{rollout}/promote"), &json!({})).status, 200);
    fleet.wait_state(&rollout, "done");
    fleet.wait_versions("1");

    let second = fleet.upload("probe-2", &program("2"));
    let upgrade = fleet.roll_out("2", &second, 1);
    fleet.wait_state(&upgrade, "done");
    fleet.wait_versions("2");
    let again = json!({ "group": "edge", "plugin": { "name": "probe", "version": "2", "file": second }, "canary": 1 });
    assert_eq!(fleet.post("/rollouts", &again).status, 409, "they run it already");

    // Its agent tells what is wrong within a second, when that may still be about the version before, and then with each heartbeat.
    let bad = fleet.upload("probe-3", b"no program");
    let failing = fleet.roll_out("3", &bad, 1);
    let path = format!("/api/v1{failing}");
    fleet.wait_state(&failing, "aborted");
    let reason = fleet.get(&path)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(fleet.agents[0].id()) && reason.contains("cannot be started"), "{reason}");
    fleet.wait_version(0, "2");
    assert_eq!(fleet.get("/api/v1/plugins")["groups"]["edge"][0]["version"], "2");

    let history = fleet.get("/api/v1/plugins/history?group=edge");
    let versions: Vec<_> = history.as_array().unwrap().iter().map(|one| &one["plugins"][0]["version"]).collect();
    assert_eq!(versions, ["2", "1"], "{history}");
    let back = fleet.post("/plugins/rollback", &json!({ "group": "edge", "version": history[1]["version"] }));
    assert_eq!(back.status, 200, "{}", back.body);
    fleet.wait_versions("1");

    let interrupted = fleet.roll_out("2", &second, 0);
    fleet.program.child.kill().unwrap();
    fleet.program.child.wait().unwrap();
    fleet.program = Program::start_at(fleet.dir.path(), fleet.program.grpc);
    let path = format!("/api/v1{interrupted}");
    fleet.wait("canary after the restart", || fleet.get(&path)["hosts"][0]["state"] == "running");
    fleet.wait_version(1, "1");
    assert_eq!(fleet.post(&format!("{interrupted}/abort"), &json!({})).status, 200);
    fleet.wait_version(0, "1");
    let rollouts = fleet.get("/api/v1/rollouts");
    let states: Vec<_> = rollouts.as_array().unwrap().iter().map(|rollout| &rollout["state"]).collect();
    assert_eq!(states, ["aborted", "aborted", "done", "done"]);
    assert_eq!(fleet.get("/api/v1/plugins/history?group=edge").as_array().unwrap().len(), 3);

    let delete =
        |sha256: &str| http::request(fleet.program.http, "DELETE", &format!("/api/v1/files/{sha256}"), &[], "").status;
    assert_eq!([delete(&bad), delete(&bad)], [200, 404]);
    let back = fleet.post("/plugins/rollback", &json!({ "group": "edge", "version": history[1]["version"] }));
    assert_eq!((back.status, delete(&first)), (200, 409), "it is wanted");
    assert_eq!(fleet.get("/api/v1/files").as_array().unwrap().len(), 2);
}

#[test]
fn what_agents_would_refuse_is_refused_at_once() {
    let dir = site();
    let program = Program::start(dir.path());
    let upload = |name: &str| http::post(program.http, &format!("/api/v1/files?name={name}"), "file").status;
    assert_eq!([upload("a%20file"), upload(""), upload("a%0Ab")], [201, 400, 400]);
    let file = Digest::of(b"file").to_string();
    let set = |plugin: Value| {
        let body = json!({ "plugins": [plugin] }).to_string();
        let answer = http::request(program.http, "PUT", "/api/v1/plugins", &[], &body);
        (answer.status, answer.body)
    };
    let other = Digest::of(b"other").to_string();
    for (plugin, told) in [
        (json!({ "name": "a b", "version": "1", "file": file }), "letters, digits"),
        (json!({ "name": "a", "file": file }), "a version of 0 bytes"),
        (json!({ "name": "a", "version": "1", "file": file, "signature": "x" }), "signature"),
        (json!({ "name": "a", "version": "1", "file": file, "sha256": other }), "expected the same"),
        (json!({ "name": "a", "version": "1", "file": file, "type": "tar.gz" }), "is no tar.gz of plugin a"),
        (json!({ "name": "a", "version": "1", "file": "../x" }), "64 hexadecimal digits"),
        (json!({ "name": "a", "version": "1", "file": other }), "upload it first"),
    ] {
        let (status, body) = set(plugin);
        assert!(matches!(status, 400 | 409) && body.contains(told), "{status} {body}");
    }
    let (status, body) = set(json!({ "name": "a", "version": "1", "file": file }));
    assert_eq!(status, 200, "{body}");
    assert_eq!(program.get("/api/v1/plugins")["default"][0]["sha256"], file.as_str());
    let rollout = json!({ "plugin": { "name": "a", "version": "2", "file": file }, "canary": 1 });
    let begun = http::post(program.http, "/api/v1/rollouts", &rollout.to_string());
    assert!(begun.status == 409 && begun.body.contains("no host"), "{}", begun.body);
    assert_eq!(http::post(program.http, "/api/v1/rollouts/7/abort", "{}").status, 404);
}

/// Takes nothing: no agent connects.
struct Nobody;

impl Sink for Nobody {
    fn take<'a>(&'a self, _: &'a str, _: &'a Arc<Batch>) -> Taking<'a> {
        Box::pin(std::future::pending())
    }

    fn take_upload<'a>(&'a self, _: &'a Upload) -> Taking<'a> {
        Box::pin(std::future::pending())
    }
}

#[test]
fn the_port_for_downloads_has_files_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    Set::new().write(dir.path()).unwrap();
    let options = Options {
        files_dir: Some(dir.path().join("files")),
        downloads: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..Options::new(dir.path())
    };
    let server = Server::start(options, Arc::new(Nobody), Arc::new(())).unwrap();
    let (http, downloads) = (server.options().http, server.options().downloads.unwrap());
    let contents: String = (0..50_000).map(|n| format!("{n} ")).collect();
    assert_eq!(http::post(http, "/api/v1/files?name=x", &contents).status, 201);
    let path = format!("/files/{}", Digest::of(contents.as_bytes()));
    let get = |method: &str, path: &str, range: &str| {
        let answer = http::request(downloads, method, path, &[("range", range)], "");
        (answer.status, answer.body)
    };
    assert_eq!(get("GET", &path, ""), (200, contents.clone()));
    assert_eq!(get("HEAD", &path, ""), (200, String::new()));
    assert_eq!(get("GET", &path, "bytes=1000-"), (206, contents[1000..].to_owned()));
    assert_eq!(get("GET", &path, &format!("bytes={}-", contents.len())).0, 416);
    assert_eq!(get("POST", &path, "").0, 405);
    let other = format!("/files/{}", Digest::of(b"other"));
    for nothing in ["/", "/files/", "/files/x", &other, "/api/v1/hosts", "/metrics"] {
        assert_eq!(get("GET", nothing, "").0, 404, "{nothing}");
    }
    let metrics = http::get(http, "/metrics").body;
    assert!(metrics.contains("center_downloads_total 3\n"), "{metrics}");
    assert!(metrics.contains("center_downloads_refused_total 8\n"), "{metrics}");
}
