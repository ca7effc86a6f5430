//! What the program knows of its site outlives it: hosts, tasks with their answers, and files. And what it stores can be had as a file.

use crate::program::{Program, site};
use crate::support::client::{Client, TRANSFER, UPLOAD};
use crate::support::http;
use crate::{batch, record};
use elklet_proto::grpc::{FileUploadRequest, FileUploadResponse};
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::wait_until;
use prost::Message;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A real agent, which ends with the test.
struct Agent(Child);

impl Agent {
    fn start(dir: &Path, program: &Program) -> Self {
        let work = dir.join("work");
        fs::create_dir_all(&work).unwrap();
        let agent = Command::new(&Binaries::for_tests().elklet)
            .args(["run", "--server", &program.grpc.to_string(), "--certs"])
            .arg(dir.join("certs"))
            .arg("--workdir")
            .arg(&work)
            .env("SPECIFIED_AGENT_ID", "gateway")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("host with a heartbeat", || program.get("/api/v1/hosts")["hosts"][0]["hostname"].is_string());
        Self(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn delete(program: &Program, path: &str) -> u16 {
    http::request(program.http, "DELETE", path, &[], "").status
}

/// Sends a task to the agent, and waits for its answer. Returns the task with the answer.
fn answered(program: &Program, task: &Value) -> Value {
    let task = json!({ "agent_id": "gateway", "task": task });
    let sent = http::post(program.http, "/api/v1/tasks", &task.to_string());
    assert_eq!(sent.status, 201, "{}", sent.body);
    let path = format!("/api/v1/tasks?token={}", sent.json()["token"].as_str().unwrap());
    wait_until("answer", || program.get(&path)["tasks"][0]["state"] == "answered");
    program.get(&path)["tasks"][0].clone()
}

#[test]
fn answers_and_files_survive_the_kill_of_the_center() {
    let dir = site();
    let program = Program::start(dir.path());
    let agent = Agent::start(dir.path(), &program);
    let asked = answered(&program, &json!({ "data_type": 7, "name": "nobody", "data": "{}" }));
    assert_eq!((&asked["answers"][0]["status"], &asked["created_by"]), (&json!("failed"), &json!("local")), "{asked}");
    let file = dir.path().join("sent.bin");
    let content: String = (0..60_000).map(|n| format!("{n}\n")).collect();
    fs::write(&file, &content).unwrap();
    let data = json!({ "path": file, "buf_size": 100_000 }).to_string();
    let sent = answered(&program, &json!({ "data_type": 1050, "name": "elkeid-agent", "data": data }));
    assert_eq!((&sent["upload"]["len"], &sent["upload"]["error"]), (&json!(content.len()), &Value::Null), "{sent}");
    // This is SIGKILL.
    drop((program, agent));

    let program = Program::start(dir.path());
    let tasks = program.get("/api/v1/tasks?agent_id=gateway");
    assert_eq!(tasks["tasks"], json!([sent, asked]), "as it was, the latest first");
    let first = program.get("/api/v1/tasks?limit=1");
    assert_eq!((&first["tasks"][0], &first["next"]), (&sent, &sent["id"]));
    let second = program.get(&format!("/api/v1/tasks?limit=1&before={}", first["next"]));
    assert_eq!((&second["tasks"][0], &second["next"]), (&asked, &Value::Null));

    let uploads = program.get("/api/v1/uploads");
    let (id, of) = (&uploads["uploads"][0]["id"], &uploads["uploads"][0]);
    assert_eq!((&of["path"], &of["agent_id"]), (&json!(file), &json!("gateway")), "{uploads}");
    let path = format!("/api/v1/uploads/{id}/file");
    assert!(http::get(program.http, &path).body == content);
    assert_eq!(delete(&program, &format!("/api/v1/uploads/{id}")), 200);
    assert_eq!((http::get(program.http, &path).status, delete(&program, &format!("/api/v1/uploads/{id}"))), (404, 404));
    assert_eq!(fs::read_dir(dir.path().join("data/uploads")).unwrap().count(), 0);
}

#[test]
fn a_host_that_is_gone_is_listed_after_a_restart_until_it_is_forgotten() {
    let dir = site();
    let mut program = Program::start(dir.path());
    let agent = Agent::start(dir.path(), &program);
    let put = http::request(program.http, "PUT", "/api/v1/hosts/gateway", &[], r#"{"group":"edge"}"#);
    assert_eq!(put.status, 200, "{}", put.body);
    assert_eq!(program.get("/api/v1/groups"), json!([{ "name": "edge", "hosts": 1, "connected": 1 }]));
    assert_eq!(delete(&program, "/api/v1/hosts/gateway"), 409, "it is connected");
    let task = json!({ "group": "edge", "task": { "data_type": 7, "name": "nobody" } }).to_string();
    let sent = http::post(program.http, "/api/v1/tasks", &task);
    assert!(sent.status == 201 && sent.json()["tokens"]["gateway"].is_string(), "{}", sent.body);
    let listed = program.get("/api/v1/hosts?group=edge&q=GATE")["hosts"][0].clone();
    assert!(listed["rss"].is_number() && listed["mode"] == "private" && listed["cert_days"].is_number(), "{listed}");
    assert!(listed["lost"] == 0 && listed["unconfirmed"].is_number() && listed["spooled"] == 0, "{listed}");
    drop(agent);
    wait_until("the end of the stream", || program.get("/api/v1/hosts/gateway")["connected"] == false);
    let before = program.get("/api/v1/hosts/gateway");
    let killed = Command::new("kill").arg(program.child.id().to_string()).status().unwrap();
    assert!(killed.success() && program.child.wait().unwrap().success());
    drop(program);

    let program = Program::start(dir.path());
    assert_eq!(program.get("/api/v1/hosts/gateway"), before, "all that was known");
    let all = program.get("/api/v1/hosts");
    assert_eq!((&all["known"], &all["connected"], &all["hosts"][0]["id"]), (&json!(1), &json!(0), &json!("gateway")));
    for (query, hosts) in [("connected=true", 0), ("group=edge", 1), ("group=core", 0), ("q=gate", 1), ("q=other", 0)] {
        let found = program.get(&format!("/api/v1/hosts?{query}"));
        assert_eq!(found["hosts"].as_array().map(Vec::len), Some(hosts), "{query}");
    }
    assert_eq!((delete(&program, "/api/v1/hosts/gateway"), delete(&program, "/api/v1/hosts/gateway")), (200, 404));
    drop(program);
    assert_eq!(Program::start(dir.path()).get("/api/v1/hosts")["known"], 0);
}

#[test]
fn exports_hold_what_the_store_holds() {
    /// More than two pages.
    const RECORDS: usize = 2_300;
    let dir = site();
    let program = Program::start(dir.path());
    let connected = runtime();
    let call = connected.block_on(async {
        let mut client = Client::connect(program.grpc, &dir.path().join("certs")).await.unwrap();
        let mut call = client.call(TRANSFER, None).await;
        let exec = |n: usize| record(59, &[("n", &n.to_string()), ("argv", "=1+1")]);
        for start in (0..RECORDS).step_by(100) {
            call.send(&batch("a", (start..start + 100).map(exec).collect())).await;
        }
        (client, call)
    });
    wait_until("stored records", || program.get("/api/v1/hosts/a")["records"] == RECORDS);

    let lines = http::get(program.http, "/api/v1/records.ndjson?type=59&order=oldest").body;
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<_> = records.iter().map(|record| record["fields"]["n"].as_str().unwrap()).collect();
    assert_eq!(numbers, (0..RECORDS).map(|n| n.to_string()).collect::<Vec<_>>());
    let page = program.get("/api/v1/records?type=59&order=oldest&limit=1000");
    assert_eq!(page["records"].as_array().unwrap()[..], records[..1000], "the same objects");

    let table = http::get(program.http, "/api/v1/records.csv?order=oldest").body;
    let mut rows = table.split_terminator("\r\n");
    assert_eq!(rows.next(), Some("seq,received,hostname,agent_id,data_type,timestamp,argv,n,other"));
    let row = |record: &Value| format!("gw1,a,59,1700000000,'=1+1,{},", record["fields"]["n"].as_str().unwrap());
    let ends: Vec<_> = rows.map(|row| row.splitn(3, ',').nth(2).unwrap().to_owned()).collect();
    assert_eq!(ends, records.iter().map(row).collect::<Vec<_>>());
    let chosen = http::get(program.http, "/api/v1/records.csv?fields=n&field.n=7").body;
    assert!(chosen.lines().count() == 2 && chosen.ends_with(",gw1,a,59,1700000000,7\r\n"), "{chosen}");
    assert_eq!(http::get(program.http, "/api/v1/records.ndjson?limit=5").body.lines().count(), 5);
    for wrong in ["records.csv?limit=1000001", "records.ndjson?fields=a", "records.csv?hots=a"] {
        assert_eq!(http::get(program.http, &format!("/api/v1/{wrong}")).status, 400, "{wrong}");
    }

    let store = program.get("/api/v1/store");
    assert_eq!((&store["records"], &store["files"]), (&json!(RECORDS), &json!(1)), "{store}");
    assert!(store["failure"].is_null() && store["disk_free_bytes"].is_number() && store["keep_s"] == 1_209_600);
    let metrics = http::get(program.http, "/metrics").body;
    for line in
        [format!("center_store_records {RECORDS}"), format!("center_records_total{{data_type=\"59\"}} {RECORDS}")]
    {
        assert!(metrics.lines().any(|has| has == line), "{line}: {metrics}");
    }
    drop((call, connected));
}

#[test]
fn the_oldest_files_make_room() {
    let dir = site();
    let mut settings = fs::read_to_string(dir.path().join("center.toml")).unwrap();
    settings.push_str("max_uploads = \"1MiB\"\n");
    fs::write(dir.path().join("center.toml"), settings).unwrap();
    let program = Program::start(dir.path());
    let certs = dir.path().join("certs");
    let upload = |token: &str, bytes: usize| {
        runtime().block_on(async {
            let mut client = Client::connect(program.grpc, &certs).await.unwrap();
            let mut call = client.call(UPLOAD, None).await;
            // A small message, so that none waits for the window.
            for _ in 0..bytes / 10_000 {
                call.send(&FileUploadRequest { token: token.to_owned(), data: vec![7; 10_000] }).await;
            }
            call.finish();
            let response = call.message().await.unwrap().unwrap();
            FileUploadResponse::decode(&response.body[..]).unwrap().status
        })
    };
    assert_eq!([upload("a", 600_000), upload("b", 300_000), upload("c", 300_000)], [0; 3]);
    let known = |program: &Program| {
        let uploads = program.get("/api/v1/uploads")["uploads"].clone();
        Vec::from_iter(uploads.as_array().unwrap().iter().map(|upload| upload["token"].as_str().unwrap().to_owned()))
    };
    assert_eq!(known(&program), ["c", "b"]);
    // Its last piece is the one that is too much.
    assert_eq!(upload("too long", 1_050_000), 1);
    assert_eq!(known(&program), ["too long", "c", "b"], "that it failed is known");
    assert!(program.get("/api/v1/uploads?limit=1")["uploads"][0]["error"].as_str().unwrap().contains("1048576"));
    assert_eq!(fs::read_dir(dir.path().join("data/uploads")).unwrap().count(), 2);
}
