//! The agent or its plugin is killed or ends.

use crate::PLUGIN;
use crate::load::{RATE, assert_whole_at, script};
use elklet_tests::harness::{Signal, Site, types};
use rustix::process::{Pid, kill_process};

#[test]
fn a_plugin_that_is_killed_in_the_middle_of_a_frame() {
    let site = Site::new();
    let setup = site.eager();
    let configs = [
        ("load", script(5)),
        // The plugin writes half of what the length says, and then nothing.
        ("torn", format!("run=torn execve rate={RATE} hello n=10000 raw=200000000801 deaf")),
        // The plugin writes frames in many pieces, so that any moment is the middle of one.
        ("pieces", "run=pieces execve rate=200 chunk=100 hello endless".to_owned()),
    ]
    .map(|(name, script)| setup.workdir().install(name, PLUGIN, &script));
    site.center().set_configs(Some(configs.to_vec()));
    let agent = setup.start();
    site.wait_records("records of all", &agent, |records| {
        records.run("torn").received == 10_000 && records.run("pieces").received > 200
    });
    let pids = site.records(&agent, |records| records.values(types::HELLO, "pid"));
    assert_eq!(pids.len(), 2);
    for pid in pids {
        kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    }
    let line = agent.wait_for_log("plugin torn sent ");
    assert!(line.contains(" of a frame of 32, then its end"), "{line}");
    site.wait_records("the next life", &agent, |records| records.of_type(types::HELLO).count() == 4);
    site.records(&agent, |records| {
        let (torn, pieces) = (records.run("torn"), records.run("pieces"));
        assert_eq!((torn.missing, pieces.missing), (0, 0), "{torn:?} {pieces:?}");
    });
    assert_whole_at(&site, &agent, "another plugin was killed", 5, 0);
}
