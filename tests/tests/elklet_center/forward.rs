//! Records are passed on: each at least once, whatever becomes of the receiver and of the center.

mod kafka;

use crate::access::done;
use crate::program::{Program, site};
use crate::receivers::{Http, Mood, Syslog, number, numbers};
use crate::support::client::{Call, Client, TRANSFER};
use crate::support::http;
use crate::{batch, record};
use elklet_tests::harness::wait_until;
use elklet_tests::pki::{Ca, Validity};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// An agent that sends numbered records.
struct Feed {
    runtime: Runtime,
    call: Call,
    _client: Client,
    sent: u64,
}

impl Feed {
    fn new(dir: &Path, program: &Program, first: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (client, call) = runtime.block_on(async {
            let mut client = Client::connect(program.grpc, &dir.join("certs")).await.unwrap();
            let call = client.call(TRANSFER, None).await;
            (client, call)
        });
        Self { runtime, call, _client: client, sent: first }
    }

    /// Sends so many records of the data type 59, in messages of a hundred, each with one of the data type 60.
    fn send(&mut self, count: u64) {
        let end = self.sent + count;
        while self.sent < end {
            let until = end.min(self.sent + 100);
            let mut records: Vec<_> =
                (self.sent..until).map(|n| record(59, &[("n", &n.to_string()), ("argv", "ls \"-l\"\n")])).collect();
            records.push(record(60, &[("other", "1")]));
            self.runtime.block_on(self.call.send(&batch("a", records)));
            self.sent = until;
        }
    }

    /// Waits until the center has all of it. An agent that goes away before may take records along.
    fn stored(&self, program: &Program) {
        let of_type = |counts: &Value| counts.as_array()?.iter().find(|of| of["data_type"] == 59)?["records"].as_u64();
        let records = || of_type(&program.get("/api/v1/hosts/a")["counts"]).unwrap_or(0);
        wait_until("stored records", || records() >= self.sent);
    }
}

/// Adds outputs to the settings.
fn forward(dir: &Path, outputs: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(dir.join("center.toml")).unwrap();
    writeln!(file, "{outputs}").unwrap();
}

/// What the center says of an output.
fn output(program: &Program, name: &str) -> Value {
    let mut found = None;
    // The center answers from a moment before its outputs begin.
    wait_until(&format!("the output {name}"), || {
        let all = program.get("/api/v1/forward");
        found = all["outputs"].as_array().unwrap().iter().find(|output| output["name"] == name).cloned();
        found.is_some()
    });
    found.unwrap()
}

/// True once an output has passed everything on.
fn is_through(program: &Program, name: &str) -> bool {
    let output = output(program, name);
    output["state"] == "idle" && output["lag_records"] == 0
}

fn metric(program: &Program, name: &str) -> u64 {
    let text = http::get(program.http, "/metrics").body;
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Ends the center in order.
fn end(mut program: Program) {
    let told = Command::new("kill").arg(program.child.id().to_string()).status().unwrap();
    assert!(told.success() && program.child.wait().unwrap().success());
}

/// How often each number arrived.
fn counted(numbers: impl IntoIterator<Item = u64>) -> BTreeMap<u64, usize> {
    let mut counted = BTreeMap::new();
    numbers.into_iter().for_each(|n| *counted.entry(n).or_default() += 1);
    counted
}

fn assert_all_once(numbers: impl IntoIterator<Item = u64>, until: u64) {
    let counted = counted(numbers);
    assert_eq!(counted.keys().copied().collect::<Vec<_>>(), (0..until).collect::<Vec<_>>(), "none is missing");
    assert!(counted.values().all(|&count| count == 1), "none came twice");
}

#[test]
fn records_of_a_data_type_go_to_a_file_that_is_rotated_and_survive_a_restart() {
    let dir = site();
    let path = dir.path().join("out.ndjson");
    forward(
        dir.path(),
        &format!(
            "[[forward]]\nname = \"disk\"\nkind = \"file\"\npath = {path:?}\ntypes = [59]\nmax_size = \"64KiB\"\nkeep = 90"
        ),
    );
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 0);
    let all = || {
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.retain(|name| name.to_str().unwrap().contains("out.ndjson"));
        names.iter().flat_map(|name| numbers(&fs::read_to_string(name).unwrap())).collect::<Vec<_>>()
    };
    feed.send(1_000);
    wait_until("records in the file", || all().len() == 1_000 && is_through(&program, "disk"));
    assert!(dir.path().join("out.ndjson.1").exists(), "it is rotated");
    // As logrotate does.
    fs::rename(&path, dir.path().join("moved.out.ndjson")).unwrap();
    feed.send(100);
    wait_until("records in another file", || all().len() == 1_100 && is_through(&program, "disk"));
    let now = output(&program, "disk");
    assert_eq!((&now["sent"], &now["error"], &now["kind"]), (&1_100.into(), &Value::Null, &"file".into()), "{now}");
    assert_eq!(metric(&program, "center_forward_sent_total{output=\"disk\"}"), 1_100);
    assert_eq!(metric(&program, "center_forward_lag_records{output=\"disk\"}"), 0);
    end(program);
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 1_100);
    feed.send(100);
    wait_until("records after the restart", || all().len() == 1_200 && is_through(&program, "disk"));
    assert_all_once(all(), 1_200);
}

#[test]
fn a_receiver_that_fails_in_every_way_gets_everything() {
    let dir = site();
    let receiver = Http::start([
        Mood::Refuses(500),
        Mood::Answers(200, String::new()),
        Mood::Refuses(429),
        Mood::Answers(200, String::new()),
        Mood::BreaksHalfWay,
        Mood::Answers(200, String::new()),
        Mood::TakesAndBreaks,
        Mood::Answers(200, String::new()),
        Mood::Hangs,
    ]);
    let password = dir.path().join("password");
    fs::write(&password, "open sesame\n").unwrap();
    let url = format!("http://{}/in?x=1", receiver.address);
    forward(
        dir.path(),
        &format!(
            "[[forward]]\nname = \"siem\"\nkind = \"http\"\nurl = \"{url}\"\ntypes = [59]\ngzip = true\ntimeout = \"1s\"\n\
             user = \"center\"\npassword_file = {password:?}"
        ),
    );
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 0);
    // Each mood meets a batch of its own.
    for round in 1..6 {
        feed.send(200);
        let arrived = || counted(receiver.numbers()).len() as u64 == feed.sent && is_through(&program, "siem");
        wait_until(&format!("records of round {round}"), arrived);
    }
    assert!(receiver.requests() >= 10, "all moods had their turn");
    let counted = counted(receiver.numbers());
    assert_eq!(counted.keys().copied().collect::<Vec<_>>(), (0..1_000).collect::<Vec<_>>());
    // Three of the moods have a batch sent again: 500, 429, and no answer in time. A busy machine is late with other answers as well.
    let again = metric(&program, "center_forward_retries_total{output=\"siem\"}");
    assert!(again >= 3, "{again}");
    let late = usize::try_from(again - 3).unwrap();
    assert!(counted.values().all(|&count| count <= 2 + late), "what got no answer came twice at most");
    let asked = &receiver.taken()[0];
    assert!(asked.head.starts_with("POST /in?x=1 HTTP/1.1\r\n"), "{}", asked.head);
    assert!(asked.head.contains("authorization: Basic Y2VudGVyOm9wZW4gc2VzYW1l\r\n"), "{}", asked.head);
    assert_eq!(metric(&program, "center_forward_refused_total{output=\"siem\"}"), 0);
    let now = output(&program, "siem");
    assert!(now["error"].as_str().unwrap().contains("no answer within 1 s"), "{now}");
}

#[test]
fn a_record_that_is_refused_for_ever_is_passed_by() {
    let dir = site();
    // The batch, the half with the culprit, and so on: six halvings of 64 find one.
    let bad = || Mood::Refuses(400);
    let receiver = Http::start([bad(), bad(), bad(), bad(), bad(), bad(), bad()]);
    let url = format!("http://{}/", receiver.address);
    forward(dir.path(), &format!("[[forward]]\nname = \"siem\"\nkind = \"http\"\nurl = \"{url}\"\ntypes = [59]"));
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 0);
    feed.send(64);
    wait_until("the others", || receiver.numbers().len() == 63 && is_through(&program, "siem"));
    assert_eq!(counted(receiver.numbers()).len(), 63, "each of them once");
    assert_eq!(metric(&program, "center_forward_refused_total{output=\"siem\"}"), 1);
}

#[test]
fn a_kill_of_the_center_in_mid_flow_loses_nothing() {
    let dir = site();
    let receiver = Http::start([]);
    let url = format!("http://{}/", receiver.address);
    let path = dir.path().join("out.ndjson");
    forward(
        dir.path(),
        &format!(
            "[[forward]]\nname = \"siem\"\nkind = \"http\"\nurl = \"{url}\"\ntypes = [59]\n\
             [[forward]]\nname = \"disk\"\nkind = \"file\"\npath = {path:?}\ntypes = [59]"
        ),
    );
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 0);
    feed.send(500);
    wait_until("the first records", || is_through(&program, "siem") && receiver.numbers().len() == 500);
    wait_until("the first lines", || is_through(&program, "disk"));
    end(program);

    let mut program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 500);
    while receiver.numbers().len() < 1_500 {
        feed.send(500);
    }
    feed.send(500);
    // This is SIGKILL.
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    drop(feed);

    let program = Program::start(dir.path());
    let stored = numbers(&http::get(program.http, "/api/v1/records.ndjson?type=59&order=oldest&limit=1000000").body);
    for name in ["siem", "disk"] {
        wait_until(&format!("the end of {name}"), || is_through(&program, name));
    }
    let lines = numbers(&fs::read_to_string(&path).unwrap());
    for (name, arrived) in [("siem", receiver.numbers()), ("disk", lines)] {
        let counted = counted(arrived);
        assert!(
            stored.iter().all(|n| counted.contains_key(n)),
            "{name} has all of the {} stored records",
            stored.len()
        );
        assert!(counted.iter().all(|(n, &count)| count == 1 || (*n >= 500 && count == 2)), "{name}: {counted:?}");
    }
}

#[test]
fn a_receiver_that_is_away_holds_up_nobody_and_gets_everything_later() {
    let dir = site();
    // Nobody listens there yet, and no other test can get the port meanwhile.
    let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let path = dir.path().join("out.ndjson");
    forward(
        dir.path(),
        &format!(
            "[[forward]]\nname = \"away\"\nkind = \"http\"\nurl = \"http://{address}/\"\ntypes = [59]\n\
             [[forward]]\nname = \"disk\"\nkind = \"file\"\npath = {path:?}\ntypes = [59]"
        ),
    );
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 0);
    feed.send(1_000);
    feed.stored(&program);
    wait_until("failure", || output(&program, "away")["state"] == "failing");
    wait_until("lines of the other output", || is_through(&program, "disk"));
    assert_all_once(numbers(&fs::read_to_string(&path).unwrap()), 1_000);
    let now = output(&program, "away");
    assert!(now["error"].as_str().unwrap().contains("connecting to 127.0.0.1"), "{now}");
    assert!(now["lag_records"].as_u64().unwrap() >= 1_000, "{now}");
    assert_eq!(metric(&program, "center_forward_failing{output=\"away\"}"), 1);
    assert_eq!(http::get(program.http, "/readyz").status, 200);
    let status = program.get("/api/v1/status");
    let told = status["warnings"][0]["text"].as_str().unwrap_or_default();
    assert!(told.starts_with("output away has delivered nothing for ") && told.contains("connecting to"), "{status}");
    assert_eq!((&status["warnings"][0]["about"], &status["well"]), (&json!("forward"), &json!(true)), "{status}");
    let page = done(dir.path(), &["status"], "");
    assert!(page.contains(": well\n") && page.contains("  warning   output away has delivered nothing for "), "{page}");
    net::listen(&listener, 16).unwrap();
    let receiver = Http::start_on(listener, []);
    wait_until("records at the other end", || is_through(&program, "away"));
    assert_all_once(receiver.numbers(), 1_000);
    assert_eq!(program.get("/api/v1/status")["warnings"], json!([]));
}

#[test]
fn messages_arrive_by_syslog_over_tls_although_a_connection_breaks() {
    let dir = site();
    let (ca, stranger) = (Ca::new("receivers"), Ca::new("stranger"));
    let leaf = ca.issue("localhost", Validity::Current);
    let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let receiver = Syslog::start(Arc::new(tls), 50);
    let mut outputs = String::new();
    for (name, ca) in [("siem", &ca), ("stranger", &stranger)] {
        let path = dir.path().join(format!("{name}.crt"));
        fs::write(&path, ca.certificate()).unwrap();
        let port = receiver.port;
        outputs += &format!(
            "[[forward]]\nname = \"{name}\"\nkind = \"syslog\"\naddress = \"localhost:{port}\"\nca = {path:?}\n\
             types = [59]\nfrom = \"start\"\nfacility = 16\nseverity = 5\n"
        );
        // The first connection is not the stranger's.
        if name == "siem" {
            forward(dir.path(), &std::mem::take(&mut outputs));
        }
    }
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 0);
    feed.send(1_000);
    feed.stored(&program);
    wait_until("all messages", || is_through(&program, "siem"));
    let messages = receiver.messages();
    assert!(messages.iter().all(|message| message.starts_with("<133>1 2023-11-14T22:13:20Z gw1 elklet-center - 59 [")));
    let value = |message: &String| -> u64 {
        let rest = message.split_once(" n=\"").unwrap_or_else(|| panic!("{message}")).1;
        rest.split_once('"').unwrap().0.parse().unwrap()
    };
    let counted = counted(messages.iter().map(value));
    assert_eq!(counted.keys().copied().collect::<Vec<_>>(), (0..1_000).collect::<Vec<_>>(), "none is missing");
    assert!(messages.len() >= 1_050, "what the broken connection had is sent again: {}", messages.len());
    assert!(messages[0].contains(r#" argv="ls \"-l\"#), "{}", messages[0]);
    assert_eq!(output(&program, "siem")["kind"], "syslog");
    end(program);

    forward(dir.path(), &outputs);
    let program = Program::start(dir.path());
    wait_until("distrust", || output(&program, "stranger")["state"] == "failing");
    let now = output(&program, "stranger");
    assert!(now["error"].as_str().unwrap().contains("certificate"), "{now}");
    assert_eq!(now["sent"], 0);
}

#[test]
fn elasticsearch_answers_for_each_record() {
    let dir = site();
    let item =
        |status: u16| format!(r#"{{"create":{{"status":{status},"error":{{"type":"t{status}","reason":"r"}}}}}}"#);
    let mixed = format!(r#"{{"errors":true,"items":[{},{},{}]}}"#, item(409), item(429), item(400));
    let fine = || Mood::Answers(200, r#"{"errors":false}"#.to_owned());
    let receiver = Http::start([Mood::Answers(200, mixed), fine(), fine()]);
    let url = format!("http://{}/base/", receiver.address);
    forward(
        dir.path(),
        &format!(
            "[[forward]]\nname = \"es\"\nkind = \"http\"\nformat = \"elasticsearch\"\nurl = \"{url}\"\ntypes = [59]"
        ),
    );
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 0);
    feed.send(3);
    feed.stored(&program);
    wait_until("the record that was not taken at first", || is_through(&program, "es") && receiver.requests() == 2);
    let taken = receiver.taken();
    assert!(taken[0].head.starts_with("POST /base/_bulk?filter_path="), "{}", taken[0].head);
    let documents = |body: &str| -> Vec<u64> {
        let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(
            lines.iter().step_by(2).all(|action| action["create"]["_index"].as_str().unwrap().starts_with("elkeid-2"))
        );
        lines.iter().skip(1).step_by(2).map(number).collect()
    };
    assert_eq!((documents(&taken[0].body), documents(&taken[1].body)), (vec![0, 1, 2], vec![1]));
    let now = output(&program, "es");
    assert_eq!((&now["sent"], &now["refused"], &now["retries"]), (&2.into(), &1.into(), &1.into()), "{now}");
    assert!(now["error"].as_str().unwrap().contains("t4"), "{now}");
}

#[test]
fn loki_gets_streams_by_data_type() {
    let dir = site();
    let receiver = Http::start([]);
    let (url, token) = (format!("http://{}", receiver.address), "0123");
    forward(
        dir.path(),
        &format!(
            "[[forward]]\nname = \"loki\"\nkind = \"http\"\nformat = \"loki\"\nurl = \"{url}\"\ntoken = \"{token}\"\n\
             gzip = true\nlabels = [\"host\"]"
        ),
    );
    let program = Program::start(dir.path());
    let mut feed = Feed::new(dir.path(), &program, 0);
    feed.send(2);
    wait_until("records", || is_through(&program, "loki") && receiver.requests() > 0);
    let taken = receiver.taken();
    assert!(taken[0].head.starts_with("POST /loki/api/v1/push HTTP/1.1"), "{}", taken[0].head);
    assert!(taken[0].head.contains("authorization: Bearer 0123\r\n"), "{}", taken[0].head);
    let pushed: Value = serde_json::from_str(&taken[0].body).unwrap();
    let of_type = |data_type: &str| {
        let labels = serde_json::json!({ "job": "elkeid", "data_type": data_type, "host": "gw1" });
        let streams = pushed["streams"].as_array().unwrap();
        let stream = streams.iter().find(|stream| stream["stream"] == labels);
        stream.unwrap_or_else(|| panic!("{pushed}"))["values"].as_array().unwrap().clone()
    };
    let lines: Vec<u64> =
        of_type("59").iter().map(|value| number(&serde_json::from_str(value[1].as_str().unwrap()).unwrap())).collect();
    assert_eq!((lines, of_type("60").len()), (vec![0, 1], 1));
    assert_eq!(of_type("59")[0][0].as_str().unwrap().len(), 19, "nanoseconds");
}
