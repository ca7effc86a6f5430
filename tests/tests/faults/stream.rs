//! The server breaks the stream in the ways that servers do.

use crate::load::{RATE, assert_whole_at, start_at, wait_confirmed};
use elklet_tests::center::{Fault, Pace, Status};
use elklet_tests::harness::{Agent, Site, holds_within, wait_until};
use h2::Reason;
use http::StatusCode;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// Seconds of load of the shorter tests.
const SHORT: u64 = 6;

/// Longer than the agent takes to find messages that fit, if a server refuses them without a reason: a dozen streams,
/// some of which have to hold for seconds, and growing pauses between them.
const UNTIL_CUT: Duration = Duration::from_secs(300);

/// Injects a fault into the agent's stream, and waits for another stream, on which the rest of the `made` records keeps
/// arriving.
fn break_stream(site: &Site, agent: &Agent, fault: Fault, made: u64) {
    let streams = site.center().read(|state| state.agent(agent.id()).streams);
    assert!(site.center().inject(agent.id(), fault));
    site.wait("next stream", |state| state.agent(agent.id()).streams > streams);
    let received = site.records(agent, |records| records.run("load").received);
    site.wait_records("more records", agent, |records| {
        let now = records.run("load").received;
        now > received || now >= made
    });
}

#[test]
fn a_server_that_ends_streams_in_every_way() {
    let cases = [
        ("GOAWAY with an error", Fault::GoAway(Reason::INTERNAL_ERROR)),
        ("GOAWAY over pings", Fault::GoAway(Reason::ENHANCE_YOUR_CALM)),
        ("GOAWAY that has not seen the stream", Fault::last_stream(0)),
        ("RST_STREAM", Fault::Reset(Reason::INTERNAL_ERROR)),
        ("RST_STREAM without an error", Fault::Reset(Reason::NO_ERROR)),
        ("a clean end", Fault::Status(Status::ok())),
        ("status UNAVAILABLE", Fault::Status(Status::new(14, "going away"))),
    ];
    let site = Site::new();
    let agent = start_at(&site, site.eager(), 20);
    let twice = || site.records(&agent, |records| records.run("load").repeated);
    for (what, fault) in &cases {
        let before = twice();
        break_stream(&site, &agent, fault.clone(), 20 * RATE);
        eprintln!("{what}: {} records twice", twice() - before);
    }
    assert_whole_at(&site, &agent, "streams that end in every way", 20, cases.len() as u64);
}

#[test]
fn a_polite_goaway_under_load() {
    let site = Site::new();
    let agent = start_at(&site, site.eager(), SHORT);
    // At first any stream counts as the last one, and then this one.
    assert!(site.center().inject(agent.id(), Fault::GoAway(Reason::NO_ERROR)));
    assert!(site.center().inject(agent.id(), Fault::last_stream(1)));
    // The server waits for the stream to end, and ends it at last.
    sleep(Duration::from_secs(1));
    break_stream(&site, &agent, Fault::Status(Status::ok()), SHORT * RATE);
    assert_whole_at(&site, &agent, "polite GOAWAY", SHORT, 2);
}

#[test]
fn streams_that_are_refused_one_after_the_other() {
    let site = Site::new();
    let agent = start_at(&site, site.eager(), SHORT);
    for fault in [
        Fault::Reset(Reason::REFUSED_STREAM),
        Fault::Status(Status::new(2, "agentID conflict")),
        Fault::Status(Status::new(2, "out of max connection limit")),
        Fault::Status(Status::new(8, "trailers only")),
        Fault::HttpStatus(StatusCode::SERVICE_UNAVAILABLE),
        Fault::GoAway(Reason::NO_ERROR),
        Fault::GoAway(Reason::INTERNAL_ERROR),
        Fault::Reset(Reason::REFUSED_STREAM),
    ] {
        site.center().on_next_stream(fault);
    }
    break_stream(&site, &agent, Fault::Close, SHORT * RATE);
    assert_whole_at(&site, &agent, "nine streams refused", SHORT, 9);
}

#[test]
fn a_server_that_reads_slowly_and_then_not_at_all() {
    let site = Site::new();
    let agent = start_at(&site, site.eager(), 12);
    site.center().set_pace(Pace::Delay(Duration::from_millis(400)));
    sleep(Duration::from_secs(4));
    site.center().set_pace(Pace::Stopped);
    sleep(Duration::from_secs(3));
    site.center().set_pace(Pace::Full);
    assert_whole_at(&site, &agent, "slow flow control", 12, 0);
    assert_eq!(site.center().read(|state| state.agent(agent.id()).streams), 1, "slow is not dead");
}

#[test]
fn a_server_that_takes_connections_and_never_answers() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut site = Site::new();
    let setup = site.setup().server(&site.address()).server(&silent.local_addr().unwrap().to_string());
    let agent = start_at(&site, setup, 25);
    let options = site.stop();
    // The first server refuses, the second hangs for the 15 s that TLS may take.
    agent.wait_for_log("no answer in time: TCP and TLS");
    let behind_it = || agent.log().split("no answer in time").nth(1).map(str::to_owned).unwrap_or_default();
    wait_until("a word on when it tries again", || behind_it().contains("the next attempt is in "));
    site.start(options);
    assert_whole_at(&site, &agent, "15 s at a server that never answers", 25, 1);
}

#[test]
fn messages_that_are_too_large_for_the_server() {
    let site = Site::with(|options| options.message_limit = 3 << 19);
    let agent = start_at(&site, site.eager(), SHORT);
    // What piles up meanwhile leaves in messages of 2 MiB. The server refuses those without a reason, and half of that
    // fits.
    site.center().set_pace(Pace::Stopped);
    sleep(Duration::from_secs(3));
    site.center().set_pace(Pace::Full);
    // The server gives no reason, so the agent has to find out over which batch it ends the streams. Others go first meanwhile.
    let arrived = || site.records(&agent, |records| records.distinct("load"));
    assert!(
        holds_within(UNTIL_CUT, || arrived() >= SHORT * RATE),
        "{} of {} have arrived\n{:?}\n{}",
        arrived(),
        SHORT * RATE,
        site.fresh_heartbeats(&agent).agent,
        agent.log()
    );
    let refused = site.center().read(|state| state.totals.bad_messages);
    assert!(refused > 0, "the server has refused none");
    assert_eq!(site.fresh_heartbeats(&agent).count("records_lost"), 0);
}

#[test]
fn under_load_little_is_unconfirmed_and_soon_after_it_nothing() {
    let (site, largest) = (Site::new(), Arc::new(AtomicU64::new(0)));
    let seen = Arc::clone(&largest);
    site.center().observe(move |batch| _ = seen.fetch_max(batch.data.records.len() as u64, Ordering::Relaxed));
    // 100 MB at 5,000/s are 22 s.
    let agent = start_at(&site, site.eager(), 24);
    site.wait_records("100 MB", &agent, |records| records.run("load").received >= 110_000);
    break_stream(&site, &agent, Fault::Close, 24 * RATE);
    // The window is 65,535 bytes, of which a record takes some 200: less than two messages, each of which holds what has come
    // within 100 ms, and more on a busy machine. Two more may be under way.
    let unconfirmed = || site.heartbeats(&agent).count("records_sent_again");
    let under_load = unconfirmed();
    let largest = largest.load(Ordering::Relaxed);
    assert!(
        under_load <= 4 * largest,
        "{under_load} records were unconfirmed under load, a message had {largest} at most"
    );
    assert_whole_at(&site, &agent, &format!("{under_load} unconfirmed after 100 MB"), 24, 1);

    // Credit confirms what came before the last messages, and a PING some seconds later the rest.
    wait_confirmed(&agent);
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.count("records_sent_again"), under_load, "nothing that was confirmed comes again");
}
