//! Records for Kafka, as AgentCenter writes them. `tests/kafka/mock.py` has the brokers, and checks what they got.

use super::{end, forward, is_through};
use crate::program::{Program, site};
use crate::record;
use crate::support::client::{Call, Client, TRANSFER};
use elklet_proto::grpc::{EncodedRecord, PackagedData};
use elklet_tests::harness::wait_until;
use std::env;

/// As in `mock.py`.
const AGENTS: u64 = 5;
const RECORDS: u64 = 300;

fn packaged(agent: u64, records: Vec<EncodedRecord>) -> PackagedData {
    PackagedData {
        records,
        agent_id: format!("agent-{agent}"),
        hostname: "gw1".to_owned(),
        version: "1.7.0.1".to_owned(),
        product: "elkeid-agent".to_owned(),
        intranet_ipv4: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
        extranet_ipv6: vec!["2001:db8::1".to_owned()],
        ..Default::default()
    }
}

/// Sends records of all agents, and waits until they are stored.
fn send(program: &Program, certs: &std::path::Path, numbers: std::ops::Range<u64>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let connected: Vec<(Client, Call)> = runtime.block_on(async {
        let mut connected = Vec::new();
        for agent in 0..AGENTS {
            let mut client = Client::connect(program.grpc, certs).await.unwrap();
            let mut call = client.call(TRANSFER, None).await;
            // The heartbeat says which version the agent has, and is not passed on.
            call.send(&packaged(agent, vec![record(1000, &[("version", "1.7.0.1")])])).await;
            let numbered = |n: u64| record(59, &[("n", &n.to_string()), ("argv", "ls \"-l\"\n")]);
            call.send(&packaged(agent, numbers.clone().map(numbered).collect())).await;
            connected.push((client, call));
        }
        connected
    });
    let count = |agent: u64| {
        let path = format!("/api/v1/records?host=agent-{agent}&type=59&field.n={}", numbers.end - 1);
        program.get(&path)["records"].as_array().map_or(0, Vec::len)
    };
    wait_until("stored records", || (0..AGENTS).all(|agent| count(agent) == 1));
    drop(connected);
}

#[test]
#[ignore = "it needs the brokers of tests/kafka/mock.py, which .ci/forward starts"]
fn brokers_get_what_agent_center_writes() {
    let brokers = env::var("ELKLET_KAFKA").expect("mock.py sets it");
    let brokers: Vec<&str> = brokers.split(',').collect();
    let dir = site();
    let certs = dir.path().join("certs");
    let outputs = [("hids_svr", "none"), ("gzip", "gzip"), ("snappy", "snappy"), ("zstd", "zstd")];
    for (topic, compression) in outputs {
        forward(
            dir.path(),
            &format!(
                "[[forward]]\nname = \"{topic}\"\nkind = \"kafka\"\nbrokers = {brokers:?}\ntopic = \"{topic}\"\n\
                 compression = \"{compression}\"\ntypes = [59]"
            ),
        );
    }
    let through = |program: &Program| outputs.iter().all(|(name, _)| is_through(program, name));
    let program = Program::start(dir.path());
    send(&program, &certs, 0..100);
    wait_until("the first records", || through(&program));
    // In order, so that what is known of hosts is written.
    end(program);
    let mut program = Program::start(dir.path());
    send(&program, &certs, 100..200);
    // This is SIGKILL, perhaps before anything of the second part is confirmed.
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    let program = Program::start(dir.path());
    send(&program, &certs, 200..RECORDS);
    wait_until("the last records", || through(&program));
    end(program);
}
