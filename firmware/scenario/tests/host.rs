//! The scenario on a host: the same output as on the microcontroller, and what its bytes mean to another implementation.

use std::fs;
use std::path::Path;

use elklet_core::limits::SLOTS;
use elklet_core::link::grpc::{MessageReader, prefix};
use elklet_core::record::buffer::RecordBuffer;
use elklet_firmware_scenario::{obey, send_records};
use elklet_proto::grpc::{Command, Config, PackagedData, Payload, Task};
use prost::Message;

/// Compares with a file of the repository, or writes it when `ELKLET_BLESS` is set.
fn expect(path: &str, found: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("ELKLET_BLESS").is_some() {
        fs::write(&path, found).expect("a file of the repository can be written");
    }
    let expected = fs::read(&path).expect("a file of the repository can be read");
    let text = String::from_utf8_lossy;
    assert_eq!(text(found), text(&expected), "ELKLET_BLESS=1 writes {}", path.display());
}

fn command(command: Command) -> Vec<u8> {
    let bytes = command.encode_to_vec();
    [&prefix(false, bytes.len())[..], &bytes].concat()
}

fn task(data_type: i32, object_name: &str, data: &str, token: &str) -> Command {
    let task = Task { data_type, object_name: object_name.into(), data: data.into(), token: token.into() };
    Command { task: Some(task), ..Command::default() }
}

#[test]
fn the_servers_bytes_are_these_commands() {
    let driver = Config {
        name: "driver".into(),
        r#type: "tar.gz".into(),
        version: "1.7.0.6".into(),
        sha256: "1f".repeat(32),
        signature: "2e".repeat(32),
        download_urls: vec!["https://downloads.example.org/driver-1.7.0.6.tar.gz".into()],
        detail: String::new(),
    };
    let climbing = Config { name: "../escape".into(), ..driver.clone() };
    let commands = [
        task(5, "driver", "{}", "too-early"),
        Command { configs: vec![driver, climbing], ..Command::default() },
        task(5, "driver", r#"{"exe":"/usr/bin/curl"}"#, "in-time"),
        task(1060, "elkeid-agent", "", "end"),
    ];
    expect("src/commands.bin", &commands.into_iter().flat_map(command).collect::<Vec<u8>>());
}

#[test]
fn the_output_is_what_the_microcontroller_prints() {
    let mut out = String::new();
    let mut ignore = |_: &[u8]| {};
    send_records(&mut out, &mut RecordBuffer::<_, SLOTS>::new(vec![0; 2 << 20]), &mut ignore).expect("a string");
    send_records(&mut out, &mut RecordBuffer::<_, 256>::new(vec![0; 16 << 10]), &mut ignore).expect("a string");
    obey(&mut out).expect("commands that make sense");
    expect("../expected.txt", out.as_bytes());
}

#[test]
fn the_messages_have_every_record_once_and_in_order() {
    let mut sent = Vec::new();
    send_records(&mut String::new(), &mut RecordBuffer::<_, 256>::new(vec![0; 16 << 10]), &mut |bytes| {
        sent.extend_from_slice(bytes);
    })
    .expect("a string");

    let (mut reader, mut input, mut numbers) = (MessageReader::new(1 << 20), &sent[..], Vec::new());
    while let Some(message) = reader.next(&mut input).expect("gRPC messages") {
        let batch = PackagedData::decode(&message.bytes[..]).expect("a batch");
        assert_eq!((&*batch.hostname, &*batch.product), ("mps2", "elkeid-agent"));
        for record in batch.records {
            assert_eq!(record.data_type, 59);
            let payload = Payload::decode(&record.data[..]).expect("a payload");
            numbers.push(payload.fields["n"].parse::<usize>().expect("a number"));
        }
    }
    assert!(numbers.len() > 200 && numbers.iter().enumerate().all(|(i, &n)| i == n), "{numbers:?}");
}
