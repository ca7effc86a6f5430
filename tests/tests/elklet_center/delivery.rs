//! An agent may forget a batch once the sink has it, and no sooner.

use crate::support::client::{Call, Client, TRANSFER, soon};
use crate::support::http;
use crate::{batch, record};
use elklet_center::fleet::Upload;
use elklet_center::message::Batch;
use elklet_center::serve::{Options, Server};
use elklet_center::sink::{Refused, Sink, Taking};
use elklet_tests::pki::Set;
use h2::Ping;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::watch;

/// What the sink does with what it is offered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Waits,
    Refuses,
    Takes,
}

struct Moody(watch::Sender<Mood>);

impl Sink for Moody {
    fn take<'a>(&'a self, _: &'a str, _: &'a Arc<Batch>) -> Taking<'a> {
        Box::pin(async move {
            let mut mood = self.0.subscribe();
            let decided = *mood.wait_for(|mood| *mood != Mood::Waits).await.expect("it has the sender");
            match decided {
                Mood::Refuses => Err(Refused { reason: "no space left".to_owned() }),
                _ => Ok(None),
            }
        })
    }

    fn take_upload<'a>(&'a self, _: &'a Upload) -> Taking<'a> {
        Box::pin(async { Ok(None) })
    }
}

struct Site {
    server: Server,
    sink: Arc<Moody>,
    dir: TempDir,
}

impl Site {
    fn new(mood: Mood) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Set::new().write(dir.path()).unwrap();
        let sink = Arc::new(Moody(watch::Sender::new(mood)));
        let server = Server::start(Options::new(dir.path()), Arc::clone(&sink) as _, Arc::new(())).unwrap();
        Self { server, sink, dir }
    }

    async fn agent(&self, id: &str) -> (Client, Call) {
        let mut client = Client::connect(self.server.options().listen, self.dir.path()).await.unwrap();
        let mut call = client.call(TRANSFER, None).await;
        call.send(&batch(id, vec![record(59, &[("n", "1")])])).await;
        self.until(|server| server.read(|fleet| fleet.agents.contains_key(id))).await;
        (client, call)
    }

    async fn until(&self, condition: impl Fn(&Server) -> bool) {
        let mut changes = self.server.changes();
        soon(async {
            while !condition(&self.server) {
                changes.changed().await.unwrap();
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_ping_is_answered_once_everything_before_it_is_stored() {
    let site = Site::new(Mood::Waits);
    let (mut client, _call) = site.agent("a").await;
    let mut ping = std::pin::pin!(client.pings.ping(Ping::opaque()));
    // Another connection's is answered meanwhile: nothing of it waits.
    let mut other = Client::connect(site.server.options().listen, site.dir.path()).await.unwrap();
    tokio::select! {
        biased;
        _ = &mut ping => panic!("the batch before it is not stored"),
        answered = other.ping() => answered.unwrap(),
    }
    site.sink.0.send_replace(Mood::Takes);
    soon(ping).await.unwrap();
    assert_eq!(site.server.read(|fleet| fleet.totals.records), 1);
}

#[tokio::test]
async fn a_stream_that_is_ended_before_its_batch_is_stored_does_not_end_well() {
    let site = Site::new(Mood::Waits);
    let (_client, mut call) = site.agent("a").await;
    call.finish();
    let http = site.server.options().http;
    let reset = tokio::task::spawn_blocking(move || {
        http::post(http, "/conn/reset", r#"{"type":"strict","id_list":["a"]}"#).json()
    });
    assert_eq!(reset.await.unwrap()["data"], serde_json::json!(["a"]));
    assert_eq!(call.status().await.0, 14);
}

#[tokio::test]
async fn what_the_sink_refuses_is_told_and_taken_when_it_recovers() {
    let site = Site::new(Mood::Refuses);
    let (mut client, mut call) = site.agent("a").await;
    site.until(|server| server.read(|fleet| fleet.sink_refuses.is_some())).await;
    let http = site.server.options().http;
    let get =
        |path: &'static str| async move { tokio::task::spawn_blocking(move || http::get(http, path)).await.unwrap() };
    let ready = get("/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (503, "no records are stored: no space left\n"));
    assert_eq!(get("/healthz").await.status, 200);
    assert_eq!(site.server.read(|fleet| fleet.totals.records), 0);
    site.sink.0.send_replace(Mood::Takes);
    client.ping().await.unwrap();
    assert_eq!(site.server.read(|fleet| fleet.totals.records), 1, "once");
    assert_eq!(get("/readyz").await.status, 200);
    call.finish();
    assert_eq!(call.status().await, (0, String::new()));
}
