//! The center's description of `/api/v1`, held to what the center does by somebody who knows nothing else of it.

use crate::browser::Asker;
use crate::program::{Program, site};
use crate::support::client::{Client, TRANSFER};
use crate::support::http;
use crate::{batch, record};
use elklet_tests::harness::wait_until;
use serde_json::json;
use std::fs;
use std::process::Command;

#[test]
fn the_description_is_served_and_every_route_of_it_is_there() {
    let dir = site();
    let program = Program::start(dir.path());
    let described = program.get("/api/v1/openapi.json");
    assert_eq!((&described["openapi"], &described["servers"][0]["url"]), (&json!("3.1.0"), &json!("/api/v1")));
    for (path, operations) in described["paths"].as_object().unwrap() {
        // A stream does not end.
        for method in operations.as_object().unwrap().keys().filter(|_| path != "/stream") {
            let path = path.replace("{id}", "1").replace("{sha256}", &"0".repeat(64)).replace("{name}", "nobody");
            let answer = http::request(program.http, &method.to_uppercase(), &format!("/api/v1{path}"), &[], "");
            assert!(answer.status != 405 && !answer.body.contains("no route"), "{method} {path}: {}", answer.body);
        }
    }
    let wrong = Asker::command(program.http).send("PATCH", "/api/v1/hosts", "");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET")));
}

#[test]
fn a_parameter_that_cannot_be_decoded_is_refused_and_not_passed_by() {
    let dir = site();
    let program = Program::start(dir.path());
    for (path, named) in [
        ("records.ndjson?field.exe=%2fusr%2fbin%2fid%ff", "field.exe"),
        ("records.csv?host=%ff", "host"),
        ("records?limit=5&host=%ff", "host"),
        ("records?bogus%ff=1", "bogus%ff"),
        ("records?bogus", "bogus"),
        ("hosts?group=%ff", "group"),
        ("hosts?connected", "connected"),
        ("tasks?token=%c3%28", "token"),
        ("stream?host=%ff", "host"),
        ("plugins/history?group=%ff", "group"),
        ("certificates?agent_id=%ff", "agent_id"),
    ] {
        let answer = http::get(program.http, &format!("/api/v1/{path}"));
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && error.contains(named), "{path}: {} {}", answer.status, answer.body);
    }
    let uploaded = http::request(program.http, "POST", "/api/v1/files?name=%ff", &[], "a program");
    assert!(uploaded.status == 400 && uploaded.body.contains("name"), "{}", uploaded.body);
    assert_eq!(program.get("/api/v1/files"), json!([]), "it was not taken under another name");
    assert_eq!(program.get("/api/v1/hosts?group=%c3%bc&&")["hosts"], json!([]), "this one can be decoded");
}

#[test]
fn a_parameter_that_a_route_does_not_have_is_refused_by_its_name() {
    let dir = site();
    let program = Program::start(dir.path());
    let described = program.get("/api/v1/openapi.json");
    for (path, operations) in described["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "1").replace("{sha256}", &"0".repeat(64)).replace("{name}", "nobody");
        for method in operations.as_object().unwrap().keys() {
            let target = format!("/api/v1{path}?bogus%20one=1");
            let answer = http::request(program.http, &method.to_uppercase(), &target, &[], "{}");
            let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
            let told = answer.status == 400 && error == "no parameter \"bogus one\" is known here";
            assert!(told, "{method} {target}: {} {}", answer.status, answer.body);
        }
    }
    assert_eq!(program.get("/api/v1/files"), json!([]), "nothing was taken");
    for path in ["/conn/list?bogus=1", "/registry/detail?name=hids_svr_grpc&bogus=1", "/ping?bogus=1"] {
        assert_eq!(http::get(program.http, path).status, 200, "{path}: AgentCenter's routes stay as they are");
    }
}

/// `.ci/api` runs this. It needs schemathesis.
#[test]
#[ignore = "long: takes a minute, and schemathesis, which .ci/api installs"]
fn what_a_center_answers_is_what_it_describes() {
    let schemathesis = std::env::var("SCHEMATHESIS").expect(".ci/api says where schemathesis is");
    let more = std::env::var("SCHEMATHESIS_FLAGS").unwrap_or_default();
    let dir = site();
    let program = Program::start(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _connected = runtime.block_on(async {
        let mut client = Client::connect(program.grpc, &dir.path().join("certs")).await.unwrap();
        let mut call = client.call(TRANSFER, Some("snappy")).await;
        let exec = |n: i32| record(59, &[("exe", "/usr/bin/curl"), ("argv", &format!("curl \u{1b}{n}, \"x\""))]);
        let heartbeat = record(1000, &[("cpu", "0.5"), ("rss", "1024"), ("cert_days_left", "20")]);
        call.send(&batch("a", std::iter::once(heartbeat).chain((0..50).map(exec)).collect())).await;
        (client, call)
    });
    wait_until("stored records", || program.get("/api/v1/hosts/a")["records"] == 51);
    let send = |method: &str, path: &str, body: &str| {
        let answer = http::request(program.http, method, &format!("/api/v1{path}"), &[], body);
        assert!(answer.status < 300, "{path}: {}", answer.body);
        answer.json()
    };
    send("PUT", "/hosts/a", r#"{"group":"edge"}"#);
    let file = send("POST", "/files?name=probe", "a program")["sha256"].clone();
    let plugin = json!({ "name": "probe", "version": "1", "file": file });
    let rollout = json!({ "group": "edge", "canary": 1, "plugin": plugin }).to_string();
    send("POST", "/rollouts", &rollout);
    send("POST", "/tasks", r#"{"agent_id":"a","task":{"data_type":7,"name":"probe","data":"{}"}}"#);

    let key = fs::read_to_string(dir.path().join("data/local-token")).unwrap();
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                  response_schema_conformance,unsupported_method";
    let status = Command::new(schemathesis)
        .args(["run", &format!("http://{}/api/v1/openapi.json", program.http)])
        .args(["--header", &format!("Authorization: Bearer {}", key.trim()), "--checks", checks])
        .args([
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            "20",
            "--seed",
            "1",
            "--generation-database",
            "none",
        ])
        .args(["--exclude-path", "/stream", "--request-timeout", "30", "--no-color"])
        .args(more.split_whitespace())
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(program.get("/api/v1/status")["store"]["failure"], json!(null), "the center still works");
}
