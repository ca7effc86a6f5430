//! What the agent reports to the server of its own warnings and errors: enough to know, never a flood.

use crate::PLUGIN;
use elklet_tests::harness::{Agent, Site, types, wait_until};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most reports that one place in the source makes in a minute.
const PER_PLACE: usize = 5;

/// Returns the reports whose text contains this.
fn reports(site: &Site, agent: &Agent, text: &str) -> Vec<BTreeMap<String, String>> {
    site.records(agent, |records| records.of_type(1010).filter(|fields| fields["msg"].contains(text)).collect())
}

#[test]
fn a_warning_is_reported_with_its_source() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("mortal", PLUGIN, "hello exit=3")]));
    let agent = setup.start();
    let text = "plugin mortal exited with code 3 unexpectedly";
    wait_until("report", || !reports(&site, &agent, text).is_empty());
    let report = reports(&site, &agent, text).swap_remove(0);
    let (file, line) = report["source"].split_once(':').unwrap();
    assert!(file.ends_with(".rs") && !file.starts_with('/') && line.parse::<u32>().is_ok(), "{report:?}");
    assert_eq!((&*report["level"], report.len()), ("warn", 3), "{report:?}");
    assert!(agent.wait_for_log(text).contains(" WARN "));
    // The agent does not report what is in order.
    assert!(reports(&site, &agent, "started as process").is_empty());
}

#[test]
fn a_failed_task_is_answered_and_not_reported_twice() {
    let site = Site::new();
    let agent = site.agent();
    site.task(&agent, "nobody", 5, "", "a");
    site.wait_records("answer", &agent, |records| records.of_type(5100).count() == 1);
    agent.wait_for_log("a task failed: ");
    site.command(&agent, elklet_proto::grpc::Command::default());
    agent.wait_for_log("a command with nothing in it");
    assert!(reports(&site, &agent, "task").is_empty());
}

#[test]
fn a_flood_is_cut_and_counted() {
    let site = Site::new();
    let setup = site.eager();
    // Three complaints about each, all from one place in the source.
    let names: Vec<String> = (0..30).map(|i| format!("bad-{i}")).collect();
    let install = |name: &String| setup.workdir().install(name, PLUGIN, "frame=ff n=1 hello");
    site.center().set_configs(Some(names.iter().map(install).collect()));
    let agent = setup.start();
    site.wait_records("plugins", &agent, |records| records.of_type(types::HELLO).count() == names.len());
    wait_until("complaints", || agent.log_lines("that is no record").len() == names.len());
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(reports(&site, &agent, "that is no record").len(), PER_PLACE);
    assert!(heartbeats.count("reports_suppressed") >= (names.len() - PER_PLACE) as u64, "{heartbeats:?}");
}

#[test]
fn what_went_wrong_without_a_server_is_told_later_as_of_then() {
    let mut site = Site::new();
    let agent = site.agent();
    let options = site.stop();
    wait_until("failures", || agent.log_lines("no TCP connection").len() > 2 * PER_PLACE);
    std::thread::sleep(Duration::from_millis(1100));
    let back = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    site.start(options);
    // The first ones arrive, because they tell how it began.
    let ends = || reports(&site, &agent, &site.address());
    wait_until("reports", || ends().len() >= PER_PLACE);
    assert_eq!(ends().len(), PER_PLACE, "{:?}", ends());
    let told = ends();
    let (first, last) = (&told[0]["msg"], &told[PER_PLACE - 1]["msg"]);
    // Between them, a server that is about to end may have taken a connection and reset it.
    assert!(first.contains("the connection broke") && last.contains("no TCP connection"), "{told:?}");
    let late = site.records(&agent, |records| {
        let these = records.others.iter().filter(|taken| taken.record.data_type == 1010);
        these.filter(|taken| u64::try_from(taken.record.timestamp).unwrap() >= back).count()
    });
    assert_eq!(late, 0, "a report has the time of what it tells of");
}
