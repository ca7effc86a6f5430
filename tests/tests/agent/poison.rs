//! Servers that crash on what they are sent: the rest arrives, and the agent gives up only the poisonous record and
//! says so.

use crate::PLUGIN;
use elklet_tests::center::Batch;
use elklet_tests::harness::{Agent, AgentRecords, Setup, Signal, Site, holds_within, types, wait_until};
use std::fs;
use std::time::Duration;

/// The data type of the record that reports losses.
const LOSS: i32 = 1012;

/// Longer than the agent takes to give a record up: a dozen streams, most of which have to hold for some seconds.
const UNTIL_GIVEN_UP: Duration = Duration::from_secs(400);

/// The data type of the record that the server dies of.
const DEADLY: i32 = 7300;

/// Returns the records of a run that have arrived, including those that others overtook.
fn arrived(records: &AgentRecords, run: &str) -> u64 {
    let series = records.run(run);
    series.received + series.misplaced
}

fn is_deadly(batch: &Batch) -> bool {
    batch.data.records.iter().any(|record| record.data_type == DEADLY)
}

/// Starts an agent with a plugin that is about to write numbered records around a deadly one.
fn poisoned(site: &Site, setup: Setup, behind: &str) -> Agent {
    let deadly = format!("frame=08{:02x}{:02x}1007", 0x80 | (DEADLY & 0x7f), DEADLY >> 7);
    let script = format!("hello deaf=go run=before n=100 {deadly} run=behind {behind}");
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, &script)]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent
}

/// Lets the plugin write.
fn go(agent: &Agent) {
    let sign = agent.workdir().plugin_dir("probe").join("go");
    fs::write(&sign, "").unwrap();
    wait_until("a plugin that writes", || !sign.exists());
}

#[test]
fn the_record_that_a_server_dies_of_is_given_up_alone() {
    let site = Site::new();
    site.center().die_of(is_deadly);
    let agent = poisoned(&site, site.eager(), "rate=2 n=100000");
    go(&agent);
    let given_up = || site.records(&agent, |records| records.of_type(LOSS).any(|loss| loss["cause"] == "poison"));
    assert!(holds_within(UNTIL_GIVEN_UP, given_up), "{}", agent.log());
    site.records(&agent, |records| {
        let loss = records.of_type(LOSS).next().unwrap();
        let said = ["plugin", "lost_data_type", "records"].map(|name| loss[name].clone());
        assert_eq!(said, ["probe", "7300", "1"]);
    });
    site.wait_records("all others", &agent, |records| arrived(records, "before") >= 100);
    let last = site.records(&agent, |records| records.run("behind").received);
    site.wait_records("what comes later", &agent, |records| records.run("behind").received > last + 3);
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!((heartbeats.count("lost_poison"), heartbeats.count("records_lost")), (1, 1));
}

/// The record lies in the spool, and the agent that reads it knows nothing of the streams that ended over it. In the
/// core, `whatever_servers_die_of_nothing_is_lost` tests the same in virtual time.
#[test]
#[ignore = "long: takes a minute and a half of streams that have to hold for seconds"]
fn a_deadly_record_from_the_spool_lets_others_go_first() {
    let mut site = Site::new();
    let mut agent = poisoned(&site, site.eager(), "n=50");
    let options = site.stop();
    go(&agent);
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    let setup = agent.into_setup();
    fs::remove_file(setup.workdir().path().join("plugins.kept")).unwrap();
    site.start(options);
    site.center().die_of(is_deadly);
    site.center().set_configs(Some(vec![setup.workdir().install("other", PLUGIN, "hello run=new n=200")]));
    let agent = setup.start();
    site.wait_records("records of another plugin", &agent, |records| records.run("new").received >= 200);
    let all = |run: &str, n| site.records(&agent, |records| arrived(records, run) >= n);
    assert!(holds_within(UNTIL_GIVEN_UP, || all("before", 100) && all("behind", 50)), "{}", agent.log());
    site.records(&agent, |records| assert!(records.run("new").is_whole(200), "{:?}", records.series));
}

#[test]
fn a_large_record_is_not_refused_for_its_size_because_streams_end() {
    let site = Site::new();
    let mut left = 5;
    site.center().die_of(move |batch| {
        let dies = left > 0 && batch.data.records.iter().any(|record| record.data.len() > 300_000);
        left -= i32::from(dies);
        dies
    });
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install(
        "probe",
        PLUGIN,
        "hello run=large size=400000 n=3 size=10 run=small rate=2 n=100000",
    )]));
    let agent = setup.start();
    assert!(
        holds_within(UNTIL_GIVEN_UP, || site.records(&agent, |records| arrived(records, "large") >= 3)),
        "{}",
        agent.log()
    );
    assert_eq!(site.fresh_heartbeats(&agent).count("records_lost"), 0);
}
