//! What gets confirmed when, by a server on grpc-go that was not written for this agent.
//!
//! `ELKLET_PEER` names the directory in which its program `sink` and its certificates are. It follows the field `seq` of
//! records as this project's own center does; `POST /kick` ends the agent's stream.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use elklet_tests::harness::{Agent, Setup, holds_within, wait_until};
use serde_json::{Value, json};

use crate::PLUGIN;
use crate::http::{Answer, get, post};
use crate::load::{RATE, SETTLE, script, wait_confirmed};

/// The messages that fit into a window. grpc-go widens it, by SETTINGS, to twice what has arrived within a round trip,
/// which is one message of this load.
const MESSAGES_A_WINDOW: u64 = 2;

fn json_of(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

struct Peer {
    process: Child,
    control: SocketAddr,
    stream: SocketAddr,
}

impl Peer {
    fn start(directory: &Path) -> Self {
        // No other test has this address, because it is made of this process's pid.
        let [_, _, a, b] = std::process::id().to_be_bytes();
        let ip = IpAddr::V4(Ipv4Addr::new(127, 77, a, b.max(1)));
        let (stream, control) = (SocketAddr::new(ip, 6751), SocketAddr::new(ip, 6790));
        let mut command = Command::new(directory.join("sink"));
        command.arg("--certs").arg(directory.join("certs/good"));
        command.args(["--listen", &stream.to_string(), "--ctl", &control.to_string()]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the peer starts");
        wait_until("peer", || std::net::TcpStream::connect(control).is_ok());
        Self { process, control, stream }
    }

    fn stats(&self) -> Value {
        json_of(&get(self.control, "/stats"))
    }

    fn received(&self) -> u64 {
        self.stats()["runs"][0]["unique"].as_u64().unwrap_or(0)
    }

    /// Ends the agent's stream, and returns how many of its records the agent says were unconfirmed and therefore
    /// replayed.
    fn unconfirmed(&self, agent: &Agent) -> u64 {
        let streams = || self.stats()["streams_opened"].as_u64().unwrap();
        let count = || -> u64 {
            let heartbeat = json_of(&get(self.control, "/last?type=1000"));
            heartbeat["fields"]["records_sent_again"].as_str().expect("a heartbeat counts them").parse().unwrap()
        };
        let ended = || agent.log_lines("gRPC status 14").len();
        let (before, counted, ended_before) = (streams(), count(), ended());
        assert_eq!(json_of(&post(self.control, "/kick", "")), json!({"kicked": 1}));
        wait_until("next stream", || streams() > before);
        wait_until("the stream's end", || ended() > ended_before);
        // The heartbeat that begins the stream has the figures of the last stream's end.
        sleep(Duration::from_secs(2));
        count() - counted
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[test]
#[ignore = "takes the grpc-go peer of the interop checks"]
fn the_grpc_go_peer_confirms_under_load_and_after_it() {
    let directory = PathBuf::from(std::env::var_os("ELKLET_PEER").expect("ELKLET_PEER names the peer's directory"));
    let peer = Peer::start(&directory);
    let setup = Setup::new(&directory.join("certs/good")).server(&peer.stream.to_string());
    let config = setup.workdir().install("load", PLUGIN, &script(26));
    let agent = setup.start();
    wait_until("stream", || peer.stats()["streams_opened"] == 1);
    let entry = json!({
        "name": config.name, "type": config.r#type, "version": config.version, "sha256": config.sha256,
        "signature": config.signature, "detail": config.detail,
    });
    let command = json!({"configs": [entry]}).to_string();
    json_of(&post(peer.control, &format!("/command?agent={}", agent.id()), &command));

    assert!(holds_within(SETTLE, || peer.received() > 115_000), "100 MB have arrived");
    let largest = peer.stats()["max_batch"].as_u64().unwrap();
    let under_load = peer.unconfirmed(&agent);
    eprintln!("after 100 MB: {under_load} records unconfirmed, the largest message had {largest}");
    assert!(under_load <= (MESSAGES_A_WINDOW + 2) * largest);

    assert!(holds_within(SETTLE, || peer.received() == 26 * RATE), "all have arrived: {}", peer.stats());
    wait_confirmed(&agent);
    let quiet = peer.unconfirmed(&agent);
    eprintln!("when the agent knew that all had come: {quiet} records unconfirmed");
    assert_eq!(quiet, 0);
    let stats = peer.stats();
    assert_eq!((&stats["runs"][0]["lost"], &stats["bad_messages"]), (&json!(0), &json!(0)), "{stats}");
}
