//! The faults that a test can inject.

use crate::support::client::{TRANSFER, soon};
use crate::{Site, batch, task};
use elklet_tests::center::{Fault, Status};

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
