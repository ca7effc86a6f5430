//! Starts without a server: the agent starts what ran last, and its records arrive when a server comes.

use crate::PLUGIN;
use elklet_tests::harness::{Agent, Signal, Site, types, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

fn kept(agent: &Agent) -> PathBuf {
    agent.workdir().path().join("plugins.kept")
}

fn wait_kept(agent: &Agent) {
    wait_until("list of plugins", || kept(agent).exists());
}

#[test]
fn plugins_are_started_without_a_server_and_their_records_arrive_later() {
    let mut site = Site::new();
    let setup = site.eager();
    let probe = setup.workdir().install("probe", PLUGIN, "hello run=a n=100");
    let gone = setup.workdir().install("gone", PLUGIN, "");
    site.center().set_configs(Some(vec![probe.clone(), gone]));
    let agent = setup.start();
    site.wait_records("first run", &agent, |records| records.run("a").received == 100);
    wait_kept(&agent);
    assert_eq!(fs::metadata(kept(&agent)).unwrap().permissions().mode() & 0o777, 0o600);
    // The agent keeps the newest list.
    site.center().set_configs(Some(vec![probe.clone()]));
    site.configure(&agent, &[probe]);
    agent.wait_for_log("plugin gone is removed");

    let setup = agent.into_setup();
    let options = site.stop();
    let agent = setup.start();
    agent.wait_for_log("1 plugins of the last configuration are started");
    wait_until("plugin", || agent.workdir().processes().len() == 1);
    // The log still holds the lines of the first life.
    let configured = || agent.log_lines("configuration of 1 plugins").len();
    let before = configured();
    site.start(options);
    site.wait_records("second greeting", &agent, |records| records.of_type(types::HELLO).count() == 2);
    // The server's configuration is the same: nothing is started again.
    site.wait_connected(&agent);
    wait_until("configuration", || configured() > before);
    assert_eq!(agent.log_lines("plugin probe version 1.0 started").len(), 2, "once for each start of the agent");
}

#[test]
fn a_list_survives_a_sudden_end() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello")]));
    let agent = setup.start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
    wait_kept(&agent);
    fs::create_dir_all(agent.workdir().path().join("tmp/left-behind")).unwrap();
    let agent = agent.kill().start();
    agent.wait_for_log("1 plugins of the last configuration are started");
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 2);
    wait_until("end of what was left behind", || !agent.workdir().path().join("tmp/left-behind").exists());
}

#[test]
fn a_damaged_list_is_said_ignored_and_replaced() {
    let site = Site::new();
    let setup = site.eager();
    let config = setup.workdir().install("probe", PLUGIN, "hello");
    site.center().set_configs(Some(vec![config]));
    let agent = setup.start();
    wait_kept(&agent);
    let good = fs::read(kept(&agent)).unwrap();
    let mut setup = agent.into_setup();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let path = setup.workdir().path().join("plugins.kept");
    for (bytes, why) in [
        (&good[..good.len() / 2], "it is damaged: its checksum is another"),
        (&flipped, "it is damaged: its checksum is another"),
        (b"", "it is no list of plugins"),
        (&[0xff; 100], "it is no list of plugins"),
    ] {
        fs::write(&path, bytes).unwrap();
        let agent = setup.start();
        wait_until("line in the log", || {
            agent.log_lines("plugins.kept: ").last().is_some_and(|line| line.contains(" ERROR ") && line.contains(why))
        });
        // The server knows better.
        wait_until("another list", || fs::read(&path).is_ok_and(|bytes| bytes == good));
        setup = agent.into_setup();
    }
}

#[test]
fn a_list_that_cannot_be_written_stops_nobody() {
    let site = Site::new();
    let setup = site.eager();
    fs::create_dir(setup.workdir().path().join("plugins.kept")).unwrap();
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello")]));
    let mut agent = setup.start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent.wait_for_log("the list of plugins cannot be kept for a start without a server: ");
    agent.signal(Signal::TERM);
    assert!(agent.wait_for_exit().success());
}
