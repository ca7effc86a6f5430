//! The center as a product: what it confirms is stored, and its program keeps what agents send.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

mod access;
mod api;
mod browser;
mod chromium;
mod cli;
mod delivery;
mod enroll;
mod forward;
mod full_disk;
mod hostile;
mod kills;
mod page;
mod plugins;
mod program;
mod receivers;
mod site;
#[path = "../support/mod.rs"]
// Some of it is for the other tests of the center.
#[allow(dead_code)]
mod support;

use elklet_proto::grpc::{EncodedRecord, PackagedData, Payload};
use prost::Message;

fn batch(id: &str, records: Vec<EncodedRecord>) -> PackagedData {
    PackagedData { records, agent_id: id.to_owned(), hostname: "gw1".to_owned(), ..Default::default() }
}

fn record(data_type: i32, fields: &[(&str, &str)]) -> EncodedRecord {
    let fields = fields.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    EncodedRecord { data_type, timestamp: 1_700_000_000, data: Payload { fields }.encode_to_vec() }
}
