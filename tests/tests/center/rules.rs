//! Configuration, ids, tokens and pings: what the center allows, and when it says what.

use crate::support::client::TRANSFER;
use crate::{Site, batch, config, task};
use elklet_proto::grpc::Command;
use elklet_tests::center::Pace;

#[tokio::test]
async fn configuration_comes_with_the_first_heartbeat() {
    let site = Site::new();
    site.center.set_configs(Some(vec![config("driver"), config("collector")]));
    site.center.set_configs_for("special", Some(vec![]));
    let (_client, mut call) = site.agent("a").await;
    // Commands arrive in order. If the first message had triggered the configuration, it would arrive before this.
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

    // The stream keeps the id of its first message, whatever later ones say.
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
async fn the_fourth_hasty_ping_ends_the_connection() {
    let site = Site::new();
    let mut client = site.client().await;
    // The connection's own first ping is free. Two strikes are forgiven.
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
