//! Messages in both directions: encodings, lengths, credit, and broken ones.

use crate::support::client::{DEADLINE, TRANSFER, prefixed, soon};
use crate::{Site, batch, task};
use elklet_proto::grpc::{Command, PackagedData, Task};
use elklet_tests::center::Pace;
use prost::Message;

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
        ("too many records", None, Some(prefixed(0, &b"\x0a\0".repeat(65_537)))),
    ];
    for (before, (what, encoding, message)) in (0..).zip(cases) {
        let mut call = client.call(TRANSFER, encoding).await;
        call.send(&batch("a", &[59])).await;
        let message = message.unwrap_or_else(|| call.encode(&long));
        call.send_bytes(message).await.unwrap();
        assert_eq!(call.status().await, (0, String::new()), "{what}");
        site.until(what, |state| state.totals.bad_messages == before + 1).await;
    }
    // The center takes a message of exactly the limit.
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
async fn a_command_of_four_mebibytes() {
    let site = Site::new();
    let (_client, mut call) = site.agent("a").await;
    // The data hardly compresses, so that it takes many windows on the wire as well.
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
