//! The center does as AgentCenter does: each rule, seen from an agent's end of the wire.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

mod support;

use elklet_proto::grpc::{
    Command, Config, EncodedRecord, FileUploadRequest, FileUploadResponse, PackagedData, Payload, Task,
};
use elklet_tests::center::{AccessKey, Center, Fault, Instance, Options, Pace, RecordsTo, Signed, Status};
use elklet_tests::harness::{own_address, skipped, wait_until};
use elklet_tests::pki::{self, Ca, Set, Validity};
use prost::Message;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use support::client::{Call, Client, DEADLINE, TRANSFER, UPLOAD, prefixed, soon};
use support::http;
use tempfile::TempDir;

/// A center with certificates of its own.
struct Site {
    center: Center,
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Set::new().write(dir.path()).unwrap();
        let mut options = Options::new(dir.path());
        change(&mut options);
        Self { center: Center::start(options).unwrap(), dir }
    }

    async fn client(&self) -> Client {
        Client::connect(self.center.grpc_addr(), self.dir.path()).await.unwrap()
    }

    /// A stream that is through with its first message.
    async fn agent(&self, id: &str) -> (Client, Call) {
        let mut client = self.client().await;
        let call = self.stream(&mut client, id).await;
        (client, call)
    }

    async fn stream(&self, client: &mut Client, id: &str) -> Call {
        let before = self.center.read(|state| state.agent(id).streams);
        let mut call = client.call(TRANSFER, Some("snappy")).await;
        call.send(&batch(id, &[59])).await;
        self.until("stream", |state| state.agent(id).streams > before).await;
        call
    }

    async fn until(&self, what: &str, condition: impl FnMut(&elklet_tests::center::State) -> bool) {
        self.center.wait_until(what, DEADLINE, condition).await.unwrap();
    }

    fn http(&self) -> SocketAddr {
        self.center.http_addr()
    }
}

fn batch(id: &str, data_types: &[i32]) -> PackagedData {
    PackagedData {
        records: data_types.iter().map(|&data_type| record(data_type, &[("n", "1")])).collect(),
        agent_id: id.to_owned(),
        hostname: "host".to_owned(),
        version: "1.7.0.24".to_owned(),
        product: "elkeid-agent".to_owned(),
        intranet_ipv4: vec!["10.0.0.1".to_owned()],
        ..Default::default()
    }
}

fn record(data_type: i32, fields: &[(&str, &str)]) -> EncodedRecord {
    let fields = fields.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    EncodedRecord { data_type, timestamp: 1_700_000_000, data: Payload { fields }.encode_to_vec() }
}

fn task(token: &str) -> Command {
    let task = Task { data_type: 1, object_name: "driver".into(), data: "{}".into(), token: token.into() };
    Command { task: Some(task), ..Default::default() }
}

fn config(name: &str) -> Config {
    Config { name: name.to_owned(), version: "1".to_owned(), ..Default::default() }
}

#[tokio::test]
async fn messages_in_either_encoding() {
    let site = Site::new();
    let batches = site.center.subscribe();
    for (id, encoding, flag) in [("plain", None, 0), ("named", Some("identity"), 0), ("small", Some("snappy"), 1)] {
        let mut client = site.client().await;
        let mut call = client.call(TRANSFER, encoding).await;
        let sent = batch(id, &[59, 60, 59]);
        call.send(&sent).await;
        site.until("records", |state| state.records(id, 59) == 2 && state.records(id, 60) == 1).await;
        site.center.command(id, task("t")).await.unwrap();
        let received = call.message().await.unwrap().unwrap();
        assert_eq!(received.flag, flag);
        assert_eq!(Command::decode(&received.body[..]).unwrap(), task("t"));
        call.finish();
        assert_eq!(call.status().await, (0, String::new()));

        let agent = site.center.read(|state| state.agent(id));
        assert_eq!(agent.decoded_bytes, sent.encoded_len() as u64);
        assert_eq!((agent.messages, agent.streams, agent.commands, agent.connected), (1, 1, 1, false));
        let taken = batches.recv_timeout(DEADLINE).unwrap();
        assert_eq!((taken.index, taken.data.agent_id.as_str()), (0, id));
        assert_eq!(taken.data.records[0].fields().unwrap()["n"], "1");
    }
}

#[tokio::test]
async fn only_agents_with_the_right_certificate_come_in() {
    let site = Site::new();
    let (dir, address) = (site.dir.path(), site.center.grpc_addr());
    assert!(Client::connect_anonymously(address, dir).await.is_err());
    let good = Set::new();
    let ca = std::fs::read_to_string(dir.join("ca.crt")).unwrap();
    for (what, client) in [
        ("a stranger's", Ca::new("stranger").issue(pki::SERVER_NAME, Validity::Current)),
        ("one by another authority of the same name", good.client),
    ] {
        let wrong = tempfile::tempdir().unwrap();
        std::fs::write(wrong.path().join("ca.crt"), &ca).unwrap();
        client.write(wrong.path(), "client").unwrap();
        assert!(Client::connect(address, wrong.path()).await.is_err(), "{what}");
    }
    site.until("failed handshakes", |state| state.totals.failed_handshakes == 3).await;
    assert_eq!(site.center.read(|state| state.totals.streams), 0);
}

#[tokio::test]
async fn certificates_of_every_kind() {
    let set = Set::new();
    for (what, set, accepted) in [
        ("sec1", Set { client: set.client.with_sec1_key(), server: set.server.with_sec1_key(), ..set.clone() }, true),
        ("expired client", Set { client: set.ca.issue(pki::SERVER_NAME, Validity::Expired), ..set.clone() }, false),
        ("future client", Set { client: set.ca.issue(pki::SERVER_NAME, Validity::Future), ..set.clone() }, false),
        ("expired server", Set { server: set.ca.issue(pki::SERVER_NAME, Validity::Expired), ..set.clone() }, false),
        ("other server", Set { server: set.ca.issue("example.org", Validity::Current), ..set.clone() }, false),
        // The client's name means nothing to AgentCenter.
        ("other client", Set { client: set.ca.issue("example.org", Validity::Current), ..set.clone() }, true),
    ] {
        let site = Site::with(|options| set.write(&options.certs).unwrap());
        let connected = Client::connect(site.center.grpc_addr(), site.dir.path()).await;
        assert_eq!(connected.is_ok(), accepted, "{what}: {:?}", connected.err());
    }
}

#[tokio::test]
async fn certificates_as_the_reference_has_them() {
    let dir = tempfile::tempdir().unwrap();
    if !pki::write_like_reference(dir.path()).unwrap() {
        return skipped("certificates_as_the_reference_has_them", "there is no openssl to make them");
    }
    let key = std::fs::read_to_string(dir.path().join("client.key")).unwrap();
    assert!(key.starts_with("-----BEGIN RSA PRIVATE KEY-----"), "{key}");
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["x509", "-noout", "-text", "-in"]).arg(dir.path().join("ca.crt"));
    let text = String::from_utf8(openssl.output().unwrap().stdout).unwrap();
    assert!(text.contains("Version: 1 "), "{text}");
    let center = Center::start(Options::new(dir.path())).unwrap();
    Client::connect(center.grpc_addr(), dir.path()).await.unwrap();
}

#[tokio::test]
async fn configuration_comes_with_the_first_heartbeat() {
    let site = Site::new();
    site.center.set_configs(Some(vec![config("driver"), config("collector")]));
    site.center.set_configs_for("special", Some(vec![]));
    let (_client, mut call) = site.agent("a").await;
    // Commands come in order: had the first message brought the configuration, it would be before this.
    site.center.command("a", task("before")).await.unwrap();
    assert_eq!(call.command().await, task("before"));
    call.send(&batch("a", &[59, 1000])).await;
    assert_eq!(call.command().await.configs, [config("driver"), config("collector")]);
    call.send(&batch("a", &[1000, 1000])).await;
    site.until("heartbeats", |state| state.records("a", 1000) == 3).await;
    site.center.command("a", task("after")).await.unwrap();
    assert_eq!(call.command().await, task("after"), "once a stream");

    let (_client, mut call) = site.agent("special").await;
    call.send(&batch("special", &[1000])).await;
    assert_eq!(call.command().await, Command::default(), "an empty list is a list");

    site.center.set_configs(None);
    let (_client, mut call) = site.agent("b").await;
    call.send(&batch("b", &[1000])).await;
    site.until("heartbeat", |state| state.records("b", 1000) == 1).await;
    site.center.command("b", task("only")).await.unwrap();
    assert_eq!(call.command().await, task("only"));
}

#[tokio::test]
async fn one_stream_an_id() {
    let site = Site::new();
    let (mut client, mut first) = site.agent("a").await;
    let mut second = client.call(TRANSFER, Some("snappy")).await;
    second.send(&batch("a", &[59])).await;
    assert_eq!(second.status().await, (2, "agentID conflict".to_owned()));
    assert_eq!(site.center.read(|state| state.totals.conflicts), 1);

    // The id of the first message is the stream's, whatever later ones say.
    first.send(&batch("b", &[60])).await;
    site.until("record under the first id", |state| state.records("a", 60) == 1).await;
    first.finish();
    assert_eq!(first.status().await.0, 0);
    site.stream(&mut client, "a").await;
}

#[tokio::test]
async fn a_lost_connection_frees_the_id() {
    let site = Site::new();
    site.center.set_pace(Pace::Full);
    let (client, call) = site.agent("a").await;
    site.center.set_pace(Pace::Stopped);
    client.driver.abort();
    drop(call);
    site.until("end", |state| !state.agent("a").connected).await;
}

#[tokio::test]
async fn no_more_streams_than_tokens() {
    let site = Site::with(|options| options.conn_limit = 1);
    let (mut client, mut first) = site.agent("a").await;
    let mut second = client.call(TRANSFER, Some("snappy")).await;
    assert_eq!(second.status().await, (2, "out of max connection limit".to_owned()));
    assert_eq!(site.center.read(|state| state.totals.out_of_tokens), 1);
    first.finish();
    first.status().await;
    site.stream(&mut client, "b").await;
}

#[tokio::test]
async fn messages_that_cannot_be_taken_look_like_an_orderly_end() {
    const LIMIT: usize = 10 << 20;
    let site = Site::new();
    let mut client = site.client().await;
    let long = PackagedData { hostname: "x".repeat(LIMIT), ..Default::default() }.encode_to_vec();
    let cases = [
        ("decodes too long", Some("snappy"), None),
        ("too long", None, Some(prefixed(0, &vec![0; LIMIT + 1]).slice(..5))),
        ("not snappy", Some("snappy"), Some(prefixed(1, b"garbage"))),
        ("unknown flag", None, Some(prefixed(2, b""))),
        ("compressed without encoding", None, Some(prefixed(1, b"garbage"))),
        ("no PackagedData", None, Some(prefixed(0, b"\xff\xff\xff"))),
    ];
    for (before, (what, encoding, message)) in (0..).zip(cases) {
        let mut call = client.call(TRANSFER, encoding).await;
        call.send(&batch("a", &[59])).await;
        let message = message.unwrap_or_else(|| call.encode(&long));
        call.send_bytes(message).await.unwrap();
        assert_eq!(call.status().await, (0, String::new()), "{what}");
        site.until(what, |state| state.totals.bad_messages == before + 1).await;
    }
    // A message of exactly the limit is taken.
    let mut call = client.call(TRANSFER, Some("snappy")).await;
    let overhead = long.len() - LIMIT;
    let full = PackagedData { hostname: "x".repeat(LIMIT - overhead), ..Default::default() };
    assert_eq!(full.encoded_len(), LIMIT);
    call.send(&full).await;
    site.until("a full message", |state| state.agent("").decoded_bytes == LIMIT as u64).await;
}

#[tokio::test]
async fn a_broken_message_ends_nothing_but_its_stream() {
    let site = Site::new();
    let (mut client, mut call) = site.agent("a").await;
    call.send_bytes(prefixed(0, &[0; 100]).slice(..50)).await.unwrap();
    call.finish();
    assert_eq!(call.status().await.0, 0);
    site.until("truncated message", |state| state.log.iter().any(|line| line.contains("50 bytes into a message")))
        .await;
    site.stream(&mut client, "a").await;
}

#[tokio::test]
async fn the_fourth_hasty_ping_ends_the_connection() {
    let site = Site::new();
    let mut client = site.client().await;
    // Connecting took the first, which is free. Two strikes are forgiven.
    client.ping().await.unwrap();
    client.ping().await.unwrap();
    assert!(client.ping().await.is_err());
    let error = client.ended().await.unwrap_err();
    assert!(error.is_go_away() && error.is_remote(), "{error}");
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    assert!(error.to_string().contains("too_many_pings"), "{error}");
    site.until("count", |state| state.totals.too_many_pings == 1).await;
}

#[tokio::test]
async fn what_the_center_sends_forgives_pings() {
    let site = Site::new();
    let (mut client, mut call) = site.agent("a").await;
    for n in 0..5 {
        client.ping().await.unwrap();
        client.ping().await.unwrap();
        site.center.command("a", task(&n.to_string())).await.unwrap();
        assert_eq!(call.command().await, task(&n.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_come_in_over_http() {
    let site = Site::new();
    let (_client, mut call) = site.agent("a").await;
    let post = |body: &str| http::post(site.http(), "/command/", body);
    let answer = post(
        r#"{"agent_id":"a","command":{"agent_ctrl":1,
            "task":{"data_type":1060,"name":"elkeid-agent","data":"{}","token":"t1"},
            "config":[{"name":"driver","type":"exec","version":"1","sha256":"s","signature":"g",
                "download_url":["http://x/"],"detail":"d"}]}}"#,
    );
    assert_eq!((answer.status, &answer.json()["code"]), (200, &0.into()));
    let command = call.command().await;
    assert_eq!(command.agent_ctrl, 1);
    let task = Task { data_type: 1060, object_name: "elkeid-agent".into(), data: "{}".into(), token: "t1".into() };
    assert_eq!(command.task, Some(task));
    assert_eq!(command.configs[0].download_urls, ["http://x/"]);
    assert_eq!((command.configs[0].detail.as_str(), command.configs[0].signature.as_str()), ("d", "g"));

    for wrong in ["", "{", r#"{"agent_id":"a"}"#, r#"{"agent_id":"","command":{}}"#, r#"{"agent_id":1,"command":{}}"#] {
        let answer = post(wrong);
        assert_eq!((answer.status, &answer.json()["code"]), (400, &2.into()), "{wrong}");
    }
    let answer = post(r#"{"agent_id":"nobody","command":{}}"#).json();
    assert_eq!((&answer["code"], &answer["msg"]), (&3.into(), &"agent nobody is not connected".into()));
}

#[tokio::test]
async fn a_command_of_four_mebibytes() {
    let site = Site::new();
    let (_client, mut call) = site.agent("a").await;
    // Hard to compress, so that it takes many windows on the wire too.
    let mut seed = 1_u32;
    let data: String = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'!' + u8::try_from(seed >> 26).unwrap())
    })
    .take(4 << 20)
    .collect();
    let command = Command { task: Some(Task { data, ..Default::default() }), ..Default::default() };
    let sent = site.center.command("a", command.clone());
    assert_eq!(call.command().await, command);
    sent.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_told() {
    let site = Site::new();
    let http = site.http();
    let (_client_a, mut call_a) = site.agent("a").await;
    let (_client_b, mut call_b) = site.agent("b").await;
    let mut heartbeat = batch("a", &[]);
    heartbeat.records = vec![
        record(1000, &[("rss", "1024"), ("cpu", "0.50000000"), ("kernel_version", "6.1"), ("host_serial", "007")]),
        record(1001, &[("name", "driver"), ("pversion", "1.0"), ("pid", "7")]),
    ];
    call_a.send(&heartbeat).await;
    site.until("heartbeat", |state| state.agent("a").heartbeat.is_some()).await;

    assert_eq!(http::get(http, "/conn/list").json()["data"], serde_json::json!(["a", "b"]));
    assert_eq!(http::get(http, "/conn/count").json()["data"], 2);
    let stat = http::get(http, "/conn/stat").json();
    let info = &stat["data"][0]["agent_info"];
    assert_eq!((&info["rss"], &info["cpu"], &info["kernel_version"]), (&1024.into(), &0.5.into(), &6.1.into()));
    assert_eq!((&info["host_serial"], &info["version"]), (&"007".into(), &"1.7.0.24".into()));
    assert_eq!((&info["agent_id"], &info["intranet_ipv4"][0]), (&"a".into(), &"10.0.0.1".into()));
    assert!(info["last_heartbeat_time"].is_u64() && info["create_at"].is_u64() && info["agent_addr"].is_string());
    let plugin = &stat["data"][0]["plugins_info"][0];
    assert_eq!((&plugin["name"], &plugin["pversion"], &plugin["pid"]), (&"driver".into(), &"1.0".into(), &7.into()));
    assert_eq!(stat["data"][1], serde_json::json!({"agent_info": {}, "plugins_info": []}));
    assert_eq!(http::get(http, "/ping").status, 200);
    let metrics = http::get(http, "/metrics").body;
    assert!(metrics.contains("center_connected_agents 2\n"), "{metrics}");
    assert!(metrics.contains("center_records_total{data_type=\"1000\"} 1\n"), "{metrics}");
    assert_eq!(http::get(http, "/nowhere").status, 404);

    let reset = http::post(http, "/conn/reset", r#"{"type":"strict","id_list":["b","nobody"]}"#).json();
    assert_eq!((&reset["code"], &reset["data"]), (&0.into(), &serde_json::json!(["b"])));
    assert_eq!(call_b.status().await, (0, String::new()));
    let reset = http::post(http, "/conn/reset", r#"{"type":"random","count":5}"#).json();
    assert_eq!(reset["data"], serde_json::json!(["a"]));
    assert_eq!(call_a.status().await, (0, String::new()));
    assert_eq!(http::post(http, "/conn/reset", r#"{"type":"other"}"#).json()["code"], 2);
    site.until("ends", |state| state.connected().next().is_none()).await;
}

#[test]
fn service_discovery_knows_the_center_and_what_it_is_told() {
    let site = Site::new();
    let http = site.http();
    let detail = |query: &str| http::get(http, &format!("/registry/detail{query}"));
    let itself = detail("?name=hids_svr_grpc&count=10").json();
    assert_eq!(itself["msg"], "ok");
    assert_eq!(itself["data"][0]["ip"], "127.0.0.1");
    assert_eq!(itself["data"][0]["port"], site.center.grpc_addr().port());
    assert_eq!(detail("?count=10&name=other").json(), serde_json::json!({"msg": "ok", "data": []}));
    assert_eq!(detail("").status, 400);
    assert_eq!(detail("?name=").status, 400);
    let elsewhere = ["10.0.0.1:6751", "[fd00::1]:6751"].map(|at| Instance::new("hids_svr_grpc", at.parse().unwrap()));
    site.center.set_registry("hids_svr_grpc", elsewhere.to_vec());
    let told = detail("?name=hids_svr_grpc").json();
    assert_eq!((&told["data"][0]["ip"], &told["data"][1]["ip"]), (&"10.0.0.1".into(), &"fd00::1".into()));
}

#[test]
fn requests_are_signed_where_keys_are_set() {
    let key = AccessKey { access_key: "ak".into(), secret_key: "sk".into() };
    let site = Site::with(|options| options.access_key = Some(key.clone()));
    let http = site.http();
    assert_eq!(http::get(http, "/conn/list").json()["code"], 1);
    assert_eq!(http::get(http, "/ping").json()["code"], 0);
    assert_eq!(http::get(http, "/registry/detail?name=x").status, 200);
    let now =
        std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string();
    let unsigned = Signed {
        access_key: "ak",
        timestamp: &now,
        signature: "",
        method: "GET",
        path: "/conn/list",
        query: "a=b",
        body: b"",
    };
    let signature = key.sign(&unsigned);
    let headers = [("AccessKey", "ak"), ("TimeStamp", now.as_str()), ("Signature", signature.as_str())];
    assert_eq!(http::request(http, "GET", "/conn/list?a=b", &headers, "").json()["code"], 0);
    assert_eq!(http::request(http, "GET", "/conn/list?a=c", &headers, "").json()["code"], 1);
}

#[tokio::test]
async fn uploads_are_files() {
    let uploads = tempfile::tempdir().unwrap();
    let site = Site::with(|options| options.upload_dir = Some(uploads.path().join("new")));
    let mut client = site.client().await;
    let mut call = client.call(UPLOAD, Some("snappy")).await;
    for data in [&b"one "[..], b"two"] {
        call.send(&FileUploadRequest { token: "../t1".into(), data: data.to_vec() }).await;
    }
    call.finish();
    assert_eq!(upload_status(&mut call).await, 0);
    site.until("upload", |state| state.uploads.len() == 1).await;
    let upload = site.center.read(|state| state.uploads[0].clone());
    assert_eq!((upload.token.as_str(), upload.len, upload.error), ("../t1", 7, None));
    assert_eq!(upload.path, uploads.path().join("new/_._t1"));
    assert_eq!(std::fs::read(&upload.path).unwrap(), b"one two");

    let site = Site::new();
    let mut client = site.client().await;
    let mut call = client.call(UPLOAD, None).await;
    call.send(&FileUploadRequest { token: "t".into(), data: vec![1] }).await;
    call.finish();
    assert_eq!(upload_status(&mut call).await, 1, "nowhere to put it");
}

async fn upload_status(call: &mut Call) -> i32 {
    let response = call.message().await.unwrap().unwrap();
    let response = FileUploadResponse::decode(&response.body[..]).unwrap();
    assert_eq!(call.status().await.0, 0);
    response.status
}

#[tokio::test]
async fn unknown_methods_and_encodings() {
    let site = Site::new();
    let mut client = site.client().await;
    assert_eq!(client.call("/grpc.Transfer/Other", None).await.status().await.0, 12);
    assert_eq!(client.call(TRANSFER, Some("gzip")).await.status().await.0, 12);
}

#[tokio::test]
async fn credit_comes_back_for_what_was_taken_only() {
    const WINDOW: usize = 65_535;
    let site = Site::new();
    site.center.set_pace(Pace::Stopped);
    let mut client = site.client().await;
    let mut call = client.call(TRANSFER, None).await;
    let message = call.encode(
        &PackagedData { agent_id: "a".into(), hostname: "x".repeat(30_000), ..Default::default() }.encode_to_vec(),
    );
    let mut all = bytes::Bytes::from(message.repeat(6));
    while all.len() > message.len() * 6 - WINDOW {
        let granted = soon(call.capacity(all.len())).await.unwrap();
        call.send.send_data(all.split_to(granted), false).unwrap();
    }
    assert_eq!(all.len(), message.len() * 6 - WINDOW);
    // The ping's answer comes after the center has seen all of it, and after any credit that it gave.
    client.ping().await.unwrap();
    call.send.reserve_capacity(all.len());
    assert_eq!(call.send.capacity(), 0);
    assert_eq!(site.center.read(|state| state.agent("a").messages), 0);

    site.center.set_pace(Pace::Delay(std::time::Duration::from_millis(1)));
    call.send_bytes(all).await.unwrap();
    site.until("messages", |state| state.agent("a").messages == 6).await;
}

#[tokio::test]
async fn faults_at_a_streams_opening() {
    let site = Site::new();
    let mut client = site.client().await;
    for (fault, status) in [
        (Fault::Status(Status::new(14, "not today, 100 % sure")), (14, "not today, 100 %25 sure")),
        (Fault::Status(Status::ok()), (0, "")),
    ] {
        site.center.on_next_stream(fault);
        let mut call = client.call(TRANSFER, Some("snappy")).await;
        let (code, message) = call.status().await;
        assert_eq!((code, message.as_str()), status);
        assert!(call.headers.contains_key("grpc-status"), "trailers only");
    }
    site.center.on_next_stream(Fault::HttpStatus(::http::StatusCode::BAD_GATEWAY));
    let mut call = client.call(TRANSFER, Some("snappy")).await;
    assert_eq!(soon(call.answered()).await.unwrap(), 502);

    site.center.on_next_stream(Fault::Reset(h2::Reason::REFUSED_STREAM));
    let mut call = client.call(TRANSFER, Some("snappy")).await;
    let error = call.try_status().await.unwrap_err();
    assert!(error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM), "{error}");

    site.stream(&mut client, "a").await;
}

#[tokio::test]
async fn faults_of_an_open_stream() {
    let site = Site::new();
    let (_client, mut call) = site.agent("a").await;
    for body in [&b"garbage"[..], b""] {
        assert!(site.center.inject("a", Fault::message(body)));
        let received = call.message().await.unwrap().unwrap();
        assert_eq!((received.flag, &received.body[..]), (0, body));
    }
    site.center.inject("a", Fault::Dribble(task("slow")));
    assert_eq!(call.command().await, task("slow"));
    site.center.command("a", task("sound")).await.unwrap();
    assert_eq!(call.command().await, task("sound"), "the stream goes on");
    site.center.inject("a", Fault::prefix(100 << 20));
    site.center.inject("a", Fault::Status(Status::new(13, "enough")));
    assert_eq!(call.status().await, (13, "enough".to_owned()));
    assert!(!call.headers.contains_key("grpc-status"), "in trailers");
    assert!(!site.center.inject("a", Fault::Close), "nobody there");
}

#[tokio::test]
async fn faults_of_the_connection() {
    let site = Site::new();
    let (client, mut call) = site.agent("a").await;
    site.center.inject("a", Fault::GoAway(h2::Reason::NO_ERROR));
    site.center.command("a", task("still open")).await.unwrap();
    assert_eq!(call.command().await, task("still open"));
    call.finish();
    assert_eq!(call.status().await.0, 0);
    drop(call);
    client.ended().await.unwrap();

    let (client, mut call) = site.agent("a").await;
    site.center.inject("a", Fault::GoAway(h2::Reason::INTERNAL_ERROR));
    assert!(call.try_status().await.is_err());
    assert_eq!(client.ended().await.unwrap_err().reason(), Some(h2::Reason::INTERNAL_ERROR));

    site.until("end", |state| !state.agent("a").connected).await;
    let (client, mut call) = site.agent("a").await;
    site.center.inject("a", Fault::Close);
    assert!(call.try_status().await.is_err());
    assert!(client.ended().await.is_err());
}

#[tokio::test]
async fn a_frozen_connection_holds_its_id() {
    let site = Site::new();
    let (mut frozen, mut call) = site.agent("a").await;
    site.center.inject("a", Fault::Freeze);
    let mut other = site.client().await;
    let mut second = other.call(TRANSFER, Some("snappy")).await;
    second.send(&batch("a", &[59])).await;
    assert_eq!(second.status().await, (2, "agentID conflict".to_owned()));
    site.center.inject("a", Fault::Thaw);
    frozen.ping().await.unwrap();
    call.send(&batch("a", &[60])).await;
    site.until("record", |state| state.records("a", 60) == 1).await;
}

#[tokio::test]
async fn a_center_comes_back_where_it_was() {
    // On an address of its own, of which nobody else is given a port meanwhile.
    let site = Site::with(|options| (options.listen, options.http) = (own_address(), own_address()));
    site.center.set_configs(Some(vec![config("driver")]));
    let (client, mut call) = site.agent("a").await;
    let Site { center, dir } = site;
    let address = center.grpc_addr();
    let options = center.stop();
    assert!(call.try_status().await.is_err());
    assert!(client.ended().await.is_err());
    let mut started = None;
    wait_until("address to listen on", || {
        // A process that another test is just starting may still have the sockets of the center that was stopped.
        let result = Center::start(options.clone());
        let taken = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        started = Some(result);
        !taken
    });
    let site = Site { center: started.unwrap().unwrap(), dir };
    assert_eq!(site.center.grpc_addr(), address);
    let (_client, mut call) = site.agent("a").await;
    call.send(&batch("a", &[1000])).await;
    assert_eq!(call.command().await.configs, [config("driver")]);
}

#[tokio::test]
async fn records_are_written_as_lines() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("records");
    let site = Site::with(|options| {
        options.records = Some(RecordsTo::File(path.clone()));
        options.upload_dir = Some(out.path().to_owned());
    });
    let seen = Arc::new(std::sync::Mutex::new(0));
    site.center.observe({
        let seen = Arc::clone(&seen);
        move |batch| *seen.lock().unwrap() += batch.data.records.len()
    });
    let (mut client, mut call) = site.agent("a").await;
    let mut odd = batch("a", &[60]);
    odd.records.push(EncodedRecord { data_type: 7, timestamp: 0, data: vec![0xff; 3] });
    call.send(&odd).await;
    let mut upload = client.call(UPLOAD, None).await;
    upload.send(&FileUploadRequest { token: "t".into(), data: vec![] }).await;
    upload.finish();
    upload.status().await;
    site.until("all", |state| state.records("a", 7) == 1 && state.uploads.len() == 1).await;
    site.center.stop();
    assert_eq!(*seen.lock().unwrap(), 3);
    let lines = lines(&path);
    let of = |data_type: i32| lines.iter().find(|line| line["data_type"] == data_type).unwrap();
    assert_eq!(lines.len(), 4);
    assert_eq!((&of(59)["agent_id"], &of(59)["hostname"]), (&"a".into(), &"host".into()));
    assert_eq!((&of(60)["timestamp"], &of(60)["fields"]["n"]), (&1_700_000_000.into(), &"1".into()));
    assert!(of(60)["svr_time"].is_u64());
    assert_eq!((&of(7)["raw_len"], of(7)["error"].is_string()), (&3.into(), true));
    assert_eq!((&of(5100)["fields"]["token"], &of(5100)["fields"]["status"]), (&"t".into(), &"succeed".into()));
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_wait_that_fails_says_what_there_was() {
    let site = Site::new();
    let (_client, _call) = site.agent("a").await;
    let waited = site.center.wait_until("miracle", std::time::Duration::ZERO, |_| false).await;
    let text = waited.unwrap_err().to_string();
    assert!(text.contains("no miracle within 0 ms") && text.contains("agent \"a\": connected true"), "{text}");
}

#[test]
fn the_binary_makes_certificates_serves_and_ends_on_sigterm() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    let mut center = std::process::Command::new(env!("CARGO_BIN_EXE_center"))
        .args(["--listen", "127.0.0.1:0", "--http", "localhost:0", "--quiet", "--make-certs", "--certs"])
        .arg(&certs)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(center.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let rest = line.trim_end().strip_prefix("listening grpc=").unwrap_or_else(|| panic!("{line}"));
    let (grpc, http) = rest.split_once(" http=").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Client::connect(grpc.parse().unwrap(), &certs)).unwrap();
    assert_eq!(http::get(http.parse().unwrap(), "/conn/count").json()["data"], 0);
    let killed = std::process::Command::new("sh").arg("-c").arg(format!("kill {}", center.id())).status().unwrap();
    assert!(killed.success());
    assert!(center.wait().unwrap().success());
}

#[test]
fn the_binary_says_what_is_wrong_with_its_flags() {
    let run =
        |arguments: &[&str]| std::process::Command::new(env!("CARGO_BIN_EXE_center")).args(arguments).output().unwrap();
    for (arguments, message) in [
        (&["--listen", "0.0.0.0:1", "--certs", "."][..], "--listen 0.0.0.0:1 is not a loopback address"),
        (&[], "--certs DIR is missing"),
        (&["--certs", ".", "--conn-limit", "many"], "many"),
        (&["--frobnicate"], "--frobnicate"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(message), "{said}");
    }
    let help = run(&["--help"]);
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("curl"));
}
