//! The server's process is killed, or stopped for a while.

use crate::load::Run;
use std::thread::sleep;
use std::time::Duration;

#[test]
fn a_server_that_is_killed_and_back_at_once() {
    let mut run = Run::start(8);
    for _ in 0..3 {
        run.server.kill();
        run.server.start();
        run.wait_received(run.received() + 1);
    }
    run.assert_whole("killed three times", 3);
}

#[test]
fn a_server_that_is_killed_and_back_after_ten_seconds() {
    let mut run = Run::start(16);
    run.server.kill();
    sleep(Duration::from_secs(10));
    run.server.start();
    run.assert_whole("away for 10 s", 1);
}

fn stopped_for(seconds: u64) {
    let run = Run::start(seconds + 6);
    run.server.stop();
    sleep(Duration::from_secs(seconds));
    run.server.go_on();
    run.assert_whole(&format!("stopped for {seconds} s"), 2);
}

#[test]
fn a_server_that_is_stopped_for_8_s() {
    stopped_for(8);
}

#[test]
#[ignore = "long: takes more than a minute"]
fn a_server_that_is_stopped_for_60_s() {
    stopped_for(60);
}
