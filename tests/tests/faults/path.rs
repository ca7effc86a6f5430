//! The path between agent and server breaks.

use crate::CENTER;
use crate::load::{RATE, Run, wait_confirmed};
use elklet_tests::faults::{Namespace, Proxy, Server};
use elklet_tests::harness::{Setup, holds_within, skipped, wait_until};
use std::fs::File;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Starts load through a proxy. The agent's settings name it several times, so that the agent reconnects at once after
/// a stream that was not stable.
fn through_a_proxy(seconds: u64) -> (Run, Proxy) {
    let server = Server::new(CENTER);
    let proxy = Proxy::start(server.address());
    let servers = |setup| (0..8).fold(setup, |setup: Setup, _| setup.server(&proxy.address()));
    let run = Run::start_with(server, seconds, servers);
    (run, proxy)
}

/// Resets every connection after each `pause`, for as long as `lasting` and at least four times. A machine that has no time for a server
/// lets it take nothing between two of them, so that the agent suspects what it has sent; the order is then not what it was.
fn reset_again_and_again(pause: Duration, lasting: Duration) {
    let (run, proxy) = through_a_proxy(lasting.as_secs() + 4);
    let end = Instant::now() + lasting;
    let mut resets = 0;
    while Instant::now() < end || resets <= 3 {
        let before = proxy.accepted();
        proxy.reset();
        resets += 1;
        sleep(pause);
        // A reset counts only if there is a connection.
        wait_until("next connection", || proxy.accepted() > before);
    }
    run.assert_none_lost(&format!("{resets} resets, {pause:?} apart"));
}

#[test]
fn connections_that_are_reset_every_half_second() {
    reset_again_and_again(Duration::from_millis(500), Duration::from_secs(8));
}

#[test]
#[ignore = "long: takes more than a minute"]
fn connections_that_are_reset_every_two_seconds_for_a_minute() {
    reset_again_and_again(Duration::from_secs(2), Duration::from_secs(60));
}

#[test]
fn a_proxy_that_closes_corrupts_delays_throttles_and_stops() {
    let (run, proxy) = through_a_proxy(20);
    let broken = |how: &str, breaks: &dyn Fn(&Proxy)| {
        let (before, received) = (proxy.accepted(), run.received());
        breaks(&proxy);
        wait_until(&format!("connection after it {how}"), || proxy.accepted() > before);
        run.wait_received(received + 1000);
    };
    broken("was cut", &Proxy::cut);
    broken("corrupted a byte", &Proxy::corrupt);
    proxy.delay(Duration::from_millis(300));
    run.wait_received(run.received() + 5000);
    // This is a quarter of what the load needs.
    proxy.throttle(Some(256 << 10));
    sleep(Duration::from_secs(2));
    proxy.throttle(None);
    proxy.delay(Duration::ZERO);
    proxy.stop();
    sleep(Duration::from_secs(4));
    proxy.go_on();
    run.assert_whole("cut, corrupted, delayed, throttled, stopped", 2);
}

/// Creates a network namespace for the test of this name, which is skipped if there can be none.
pub(crate) fn namespace(test: &str) -> Option<Namespace> {
    let namespace = Namespace::new();
    if let Err(reason) = &namespace {
        skipped(test, reason);
    }
    namespace.ok()
}

/// How long the agent may take to notice a dead path.
const NOTICED: Duration = Duration::from_secs(60);

/// Makes the path silent, gives the agent something to send, and waits until it notices. Returns how long that took.
fn silence_until_noticed(namespace: &Namespace, run: &Run, send: impl FnOnce()) -> Duration {
    let lines = || run.agent.log_lines("connection broke").len() + run.agent.log_lines("no answer in time").len();
    let before = lines();
    namespace.silence(run.server.address());
    let begun = Instant::now();
    send();
    // The agent's own limits are 10 s for a PING and 18 s for TCP. Without them the system would try for a quarter of
    // an hour. The test can therefore allow a busy machine some more seconds.
    assert!(holds_within(NOTICED, || lines() > before), "a dead path is noticed");
    begun.elapsed()
}

#[test]
fn a_path_that_is_silent_for_thirty_seconds() {
    let Some(namespace) = namespace("a_path_that_is_silent_for_thirty_seconds") else { return };
    let run = Run::start_at(Server::new(CENTER).within(&namespace.prefix()), 34);
    let after = silence_until_noticed(&namespace, &run, || {});
    sleep(Duration::from_secs(30).saturating_sub(after));
    namespace.restore();
    run.assert_whole(&format!("silent for 30 s, noticed after {:.1} s", after.as_secs_f64()), 1);
}

/// A server that had nothing to send during the silence keeps the old connection, and with it the agent's id.
#[test]
fn a_server_that_believes_in_a_connection_that_has_died() {
    let Some(namespace) = namespace("a_server_that_believes_in_a_connection_that_has_died") else { return };
    let server = Server::new(CENTER).within(&namespace.prefix());
    let setup = server.setup().server(&server.address().to_string());
    let go_on = setup.workdir().path().join("go-on");
    let script = format!("run=load execve rate={RATE} n={RATE} deaf={} n={RATE}", go_on.display());
    let run = Run::start_script(server, setup, &script, 2 * RATE);
    wait_confirmed(&run.agent);
    // The last acknowledgement may be delayed.
    sleep(Duration::from_secs(1));
    silence_until_noticed(&namespace, &run, || drop(File::create(go_on).unwrap()));
    namespace.restore();
    let begun = Instant::now();
    run.assert_whole("restored", 1);
    let after = begun.elapsed();
    assert!(after < Duration::from_secs(40), "the server took the agent back after {after:?}");
}

/// Longer packets vanish, as on VPNs and LTE. A handshake and a heartbeat still pass, a batch does not.
const LONG: usize = 4_000;

/// If the agent wrote to a connection that dies, the system would hold its port for minutes.
#[test]
fn a_path_on_which_connections_die_again_and_again() {
    let Some(namespace) = namespace("a_path_on_which_connections_die_again_and_again") else { return };
    let run = Run::start_at(Server::new(CENTER).within(&namespace.prefix()), 30);
    namespace.drop_long(run.server.address(), LONG);
    let deaths = || run.agent.log_lines("connection broke").len() + run.agent.log_lines("no answer in time").len();
    assert!(holds_within(Duration::from_secs(90), || deaths() >= 3), "connections die: {}", deaths());
    namespace.restore();
    let begun = Instant::now();
    run.assert_whole("long packets vanished", 4);
    let after = begun.elapsed();
    let conflicts = run.agent.log_lines("agentID conflict").len();
    assert!(conflicts <= 1 && after < Duration::from_secs(60), "{conflicts} conflicts, {after:?} until all had come");
}

/// Two connections die one after the other. The server hears of neither, because nothing reaches it meanwhile.
#[test]
fn a_server_that_believes_in_two_connections_that_have_died() {
    let Some(namespace) = namespace("a_server_that_believes_in_two_connections_that_have_died") else { return };
    let run = Run::start_at(Server::new(CENTER).within(&namespace.prefix()), 40);
    let address = run.server.address();
    for _ in 0..2 {
        silence_until_noticed(&namespace, &run, || {});
        let streams = run.agent.log_lines("connected to ").len();
        // Enough packets pass for another connection, which then dies of its first batch.
        namespace.drop_long(address, LONG);
        assert!(holds_within(Duration::from_secs(60), || run.agent.log_lines("connected to ").len() > streams));
    }
    namespace.restore();
    let begun = Instant::now();
    run.assert_whole("two silent deaths", 4);
    let after = begun.elapsed();
    let conflicts = run.agent.log_lines("agentID conflict").len();
    assert!(conflicts <= 1 && after < Duration::from_secs(60), "{conflicts} conflicts, {after:?} until all had come");
}
