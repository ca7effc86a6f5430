//! Clients that are dead, silent, slow or greedy keep nothing from those that are not.

use crate::program::{Program, site};
use crate::support::client::{Call, Client, DEADLINE, TRANSFER, UPLOAD, prefixed};
use crate::support::http;
use crate::{batch, record};
use bytes::{Bytes, BytesMut};
use elklet_center::files::Digest;
use elklet_proto::grpc::PackagedData;
use elklet_tests::harness::{holds_within, wait_until};
use prost::Message;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const MIB: usize = 1 << 20;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn set(dir: &Path, setting: &str) {
    let path = dir.join("center.toml");
    fs::write(&path, format!("{setting}\n{}", fs::read_to_string(&path).unwrap())).unwrap();
}

async fn agent(program: &Program, dir: &Path, id: &str) -> (Client, Call) {
    let mut client = Client::connect(program.grpc, &dir.join("certs")).await.unwrap();
    let mut call = client.call(TRANSFER, None).await;
    call.send(&batch(id, vec![record(1000, &[("cpu", "0")])])).await;
    (client, call)
}

fn is_connected(program: &Program, id: &str) -> bool {
    http::get(program.http, "/conn/list").json()["data"].as_array().unwrap().contains(&json!(id))
}

/// Returns the timer of the center's end of a connection, by its number in `/proc/net/tcp`: 2 is keepalive's.
fn timer(center: SocketAddr) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{:04X}", center.port());
    let established = |line: &&str| line.split_whitespace().nth(1) == Some(&local) && line.contains(" 01 ");
    table.lines().find(established)?.split_whitespace().nth(5).map(|timer| timer[..2].to_owned())
}

#[test]
fn a_connection_that_is_silent_is_asked_whether_it_is_still_there() {
    let dir = site();
    let (program, runtime) = (Program::start(dir.path()), runtime());
    let _client = runtime.block_on(Client::connect(program.grpc, &dir.path().join("certs"))).unwrap();
    wait_until("a timer of TCP's keepalive", || timer(program.grpc).as_deref() == Some("02"));
}

#[test]
fn one_address_does_not_have_all_connections_by_a_certificate_that_is_for_no_agent_alone() {
    let dir = site();
    set(dir.path(), "conn_limit = 4");
    let (program, runtime) = (Program::start(dir.path()), runtime());
    let certs = dir.path().join("certs");
    let connect = || runtime.block_on(Client::connect(program.grpc, &certs));
    // Two for each of the four agents, and sixteen.
    let mut open: Vec<_> = (0..24).map(|_| connect().unwrap()).collect();
    assert!(connect().is_err(), "there are as many as there may be");
    open.truncate(20);
    wait_until("room for others", || connect().is_ok());
    let _agent = runtime.block_on(agent(&program, dir.path(), "late"));
    wait_until("the agent", || is_connected(&program, "late"));
}

#[test]
fn an_agent_that_reads_nothing_is_ended_all_the_same() {
    let dir = site();
    let (program, runtime) = (Program::start(dir.path()), runtime());
    let (client, _call) = runtime.block_on(async {
        let certs = dir.path().join("certs");
        let mut client = Client::connect_without_window(program.grpc, &certs).await.unwrap();
        let mut call = client.call(TRANSFER, None).await;
        call.send(&batch("a", vec![record(1000, &[("cpu", "0")])])).await;
        (client, call)
    });
    wait_until("the agent", || is_connected(&program, "a"));
    // This command waits for a window that never opens, and everything else behind it.
    let plugin = json!({ "name": "p", "version": "1", "sha256": "00", "download_url": ["http://127.0.0.1:1/"] });
    let wanted = json!({ "host": "a", "plugins": [plugin] }).to_string();
    assert_eq!(http::request(program.http, "PUT", "/api/v1/plugins", &[], wanted).status, 200);
    let reset = http::post(program.http, "/conn/reset", r#"{"type":"strict","id_list":["a"]}"#).json();
    assert_eq!(reset["data"], json!(["a"]));
    // The center closes the connection, in which order or not is its affair.
    _ = runtime.block_on(client.ended());
    wait_until("its end", || !is_connected(&program, "a"));
}

/// Sends what the window takes until no more is taken for a while, and leaves the rest. Returns how much was taken.
async fn send_what_is_taken(call: &mut Call, bytes: &mut Bytes) -> usize {
    let mut sent = 0;
    while !bytes.is_empty() {
        let Ok(capacity) = tokio::time::timeout(Duration::from_millis(500), call.capacity(bytes.len())).await else {
            break;
        };
        let part = bytes.split_to(capacity.unwrap());
        sent += part.len();
        call.send.send_data(part, false).unwrap();
    }
    sent
}

/// Takes all of the room for long messages: all of a message of 10 MiB but for its last byte, on each of sixteen calls. Returns how much was
/// taken.
async fn take_the_room(program: &Program, dir: &Path) -> (usize, Client, Vec<(Call, Bytes)>) {
    let mut unfinished = BytesMut::from(&prefixed(0, &vec![0; 10 * MIB])[..]);
    unfinished.truncate(unfinished.len() - 1);
    let unfinished = unfinished.freeze();
    let mut client = Client::connect(program.grpc, &dir.join("certs")).await.unwrap();
    let (mut taken, mut calls) = (0, Vec::new());
    for _ in 0..16 {
        calls.push((client.call(UPLOAD, None).await, unfinished.clone()));
    }
    // A busy center is late with its windows. Whoever has got none for a while tries again.
    let began = Instant::now();
    while taken < 60 * MIB && began.elapsed() < DEADLINE {
        for (call, rest) in &mut calls {
            taken += send_what_is_taken(call, rest).await;
        }
    }
    (taken, client, calls)
}

#[test]
fn messages_that_never_end_have_a_bounded_room_together() {
    let dir = site();
    let (program, runtime) = (Program::start(dir.path()), runtime());
    let (taken, _client, _calls) = runtime.block_on(take_the_room(&program, dir.path()));
    assert!((60 * MIB..66 * MIB).contains(&taken), "{} MiB were taken", taken / MIB);
    // Whoever sends short ones does not wait for them.
    let (_other, _call) = runtime.block_on(agent(&program, dir.path(), "a"));
    wait_until("the record", || program.get("/api/v1/hosts/a")["records"] == 1);
}

#[test]
fn an_upload_whose_client_is_gone_does_not_wait_for_room() {
    let dir = site();
    let (program, runtime) = (Program::start(dir.path()), runtime());
    let (_, _client, _calls) = runtime.block_on(take_the_room(&program, dir.path()));
    let ended = || program.get("/api/v1/uploads")["uploads"].as_array().unwrap().len();
    assert_eq!(ended(), 0);
    // More than half a window, so that each has to wait for room, and less than all of it, so that it can be sent.
    let part = prefixed(0, &vec![0; 10 * MIB]).slice(..48 << 10);
    let (other, mut calls) = runtime.block_on(async {
        let mut other = Client::connect(program.grpc, &dir.path().join("certs")).await.unwrap();
        let mut calls = Vec::new();
        for _ in 0..2 {
            let mut call = other.call(UPLOAD, None).await;
            call.send_bytes(part.clone()).await.unwrap();
            calls.push(call);
        }
        (other, calls)
    });
    calls.pop().unwrap().send.send_reset(h2::Reason::CANCEL);
    wait_until("the end of the call that was given up", || ended() == 1);
    other.driver.abort();
    wait_until("the end of the call whose connection is gone", || ended() == 2);
}

#[test]
fn what_a_host_says_of_itself_is_kept_as_far_as_it_is_short() {
    let dir = site();
    let (program, runtime) = (Program::start(dir.path()), runtime());
    let (_client, _call) = runtime.block_on(async {
        let mut client = Client::connect(program.grpc, &dir.path().join("certs")).await.unwrap();
        let mut call = client.call(TRANSFER, None).await;
        let data = PackagedData {
            hostname: "h".repeat(MIB),
            version: "1".repeat(MIB),
            intranet_ipv4: vec!["10.0.0.1".repeat(1000); 1000],
            ..batch("a", vec![record(1000, &[("cpu", "0")])])
        };
        call.send(&data).await;
        (client, call)
    });
    wait_until("the heartbeat", || program.get("/api/v1/hosts/a")["records"] == 1);
    let host = program.get("/api/v1/hosts/a");
    let len = |name: &str| host[name].as_str().unwrap().len();
    assert_eq!((len("hostname"), len("version")), (256, 256));
    let addresses = host["addresses"].as_array().unwrap();
    assert_eq!((addresses.len(), addresses[0].as_str().unwrap().len()), (32, 64));
}

#[test]
fn a_stranger_with_a_long_request_is_refused_at_its_head() {
    let dir = site();
    set(dir.path(), "access_key = \"ak:sk\"");
    let program = Program::start(dir.path());
    let mut tcp = TcpStream::connect(program.http).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        tcp,
        "POST /api/v1/tasks HTTP/1.1\r\nhost: {}\r\naccesskey: someone\r\ntimestamp: 1\r\nsignature: 0\r\ncontent-length: {}\r\n\r\n",
        program.http,
        16 * MIB
    )
    .unwrap();
    let mut answer = vec![0; 12];
    tcp.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), "HTTP/1.1 401");
}

#[test]
fn connections_that_ask_nothing_keep_nobody_out() {
    let dir = site();
    let program = Program::start(dir.path());
    for port in [program.http, program.downloads.unwrap()] {
        let silent: Vec<_> = (0..400).map(|_| TcpStream::connect(port).unwrap()).collect();
        let began = Instant::now();
        let mut tcp = TcpStream::connect(port).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        tcp.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = vec![0; 8];
        tcp.read_exact(&mut answer).unwrap();
        assert!(began.elapsed() < Duration::from_secs(8), "it waited until they were cut off");
        drop(silent);
    }
}

#[test]
fn what_the_center_keeps_is_for_nobody_else_on_its_host() {
    let dir = site();
    let (program, runtime) = (Program::start(dir.path()), runtime());
    let _agent = runtime.block_on(agent(&program, dir.path(), "a"));
    wait_until("the record", || program.get("/api/v1/hosts/a")["records"] == 1);
    let data = dir.path().join("data");
    let files = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
    let all: Vec<_> = files.chain([data.clone()]).collect();
    assert!(all.iter().any(|path| path.ends_with("center.db")) && all.len() > 4, "{all:?}");
    for path in all {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
}

#[test]
#[ignore = "long: takes a minute"]
fn a_download_of_which_nothing_is_read_gives_its_place_back() {
    let dir = site();
    let program = Program::start(dir.path());
    let downloads = program.downloads.unwrap();
    // More than the kernel takes for a reader who may come yet.
    let contents = "x".repeat(12 * MIB);
    assert_eq!(http::post(program.http, "/api/v1/files?name=x", &contents).status, 201);
    let mut greedy = TcpStream::connect(downloads).unwrap();
    write!(greedy, "GET /files/{} HTTP/1.1\r\nhost: x\r\n\r\n", Digest::of(contents.as_bytes())).unwrap();
    let began = Instant::now();
    wait_until("the download", || timer(downloads).is_some());
    assert!(holds_within(Duration::from_secs(90), || timer(downloads).is_none()), "it keeps its place");
    assert!(began.elapsed() > Duration::from_secs(50), "it has had a minute");
}

#[test]
#[ignore = "long: takes a minute"]
fn a_stream_without_a_first_message_gives_its_place_back() {
    let dir = site();
    set(dir.path(), "conn_limit = 1");
    let (program, runtime) = (Program::start(dir.path()), runtime());
    let began = Instant::now();
    let _silent = runtime.block_on(async {
        let mut client = Client::connect(program.grpc, &dir.path().join("certs")).await.unwrap();
        let call = client.call(TRANSFER, None).await;
        (client, call)
    });
    let try_another = || {
        runtime.block_on(async {
            let mut client = Client::connect(program.grpc, &dir.path().join("certs")).await.unwrap();
            let mut call = client.call(TRANSFER, None).await;
            // The call may be refused before this is sent.
            _ = call.send_bytes(call.encode(&batch("a", vec![]).encode_to_vec())).await;
            let ended = tokio::time::timeout(Duration::from_secs(1), call.status()).await;
            (client, call, ended)
        })
    };
    let (_, _, refused) = try_another();
    assert_eq!(refused, Ok((2, "out of max connection limit".to_owned())));
    let _taken = loop {
        assert!(began.elapsed() < Duration::from_secs(90), "the silent one keeps its place");
        std::thread::sleep(Duration::from_secs(1));
        if let (client, call, Err(_)) = try_another() {
            break (client, call);
        }
    };
    assert!(is_connected(&program, "a"));
    assert!(began.elapsed() > Duration::from_secs(50), "it has had a minute");
}
