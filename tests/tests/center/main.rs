//! The center behaves like AgentCenter. These tests check each rule from an agent's end of the wire.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

mod certificates;
mod faults;
mod http;
mod lifecycle;
mod messages;
mod rules;
#[path = "../support/mod.rs"]
// Some of it is for the other tests of the center.
#[allow(dead_code)]
mod support;
mod uploads;

use elklet_proto::grpc::{Command, Config, EncodedRecord, PackagedData, Payload, Task};
use elklet_tests::center::{Center, Options};
use elklet_tests::pki::Set;
use prost::Message;
use std::net::SocketAddr;
use support::client::{Call, Client, DEADLINE, TRANSFER};
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

    /// Opens a stream and gets through its first message.
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
