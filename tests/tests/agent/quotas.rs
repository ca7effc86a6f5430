//! Quotas of plugins' directories: who holds too much ends, is told, and starts again when there is room.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Agent, DEADLINE, Site, holds_within, types, wait_until};
use serde_json::Value;

use crate::PLUGIN;

const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-plugin");

/// How long the agent may take until it looks at a plugin that is held back, which it does once a minute.
const LOOK: Duration = DEADLINE.saturating_mul(3);

fn status(agent: &Agent) -> Value {
    let mut command = Command::new(&Binaries::for_tests().elklet);
    let output = command.args(["status", "--json", "--workdir"]).arg(agent.workdir().path()).output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

fn of_plugin(status: &Value, name: &str) -> Value {
    let plugins = status["plugins"].as_array().unwrap();
    plugins.iter().find(|plugin| plugin["name"] == name).unwrap().clone()
}

/// How many lines of the audit have this text.
fn audited(agent: &Agent, text: &str) -> usize {
    let audit = fs::read_to_string(agent.workdir().path().join("log/audit.log")).unwrap_or_default();
    audit.lines().filter(|line| line.contains(text)).count()
}

/// How often a plugin has started in its directory.
fn starts(site: &Site, agent: &Agent, name: &str) -> usize {
    let directory = format!("/plugin/{name}");
    site.records(agent, |records| {
        records.of_type(types::HELLO).filter(|hello| hello["cwd"].ends_with(&directory)).count()
    })
}

#[test]
fn a_plugin_that_fills_its_directory_is_ended_and_starts_again_when_there_is_room() {
    let site = Site::new();
    let setup = site.eager().setting("plugin.eater", "disk_mib = 32");
    let eater = setup.workdir().install("eater", PLUGIN, "hello");
    // It holds as much, and nobody has set it a quota.
    let free = setup.workdir().install("free", PLUGIN, "fill=40 hello");
    site.center().set_configs(Some(vec![eater.clone(), free.clone()]));
    let agent = setup.start();
    wait_until("plugins", || starts(&site, &agent, "eater") == 1 && starts(&site, &agent, "free") == 1);
    let shown = status(&agent);
    let limits = |name: &str| of_plugin(&shown, name)["process"]["limits"].to_string();
    assert!(limits("eater").contains("disk 32 MiB (agent)") && !limits("free").contains("disk"), "{shown}");
    agent.wait_for_log("plugin eater: disk 32 MiB (agent)");
    let free_pid = of_plugin(&shown, "free")["process"]["pid"].clone();

    site.tell(&agent, "eater", "fill=40");
    let line = agent.wait_for_log("plugin eater was killed by signal 9 (its directory holds ");
    assert!(line.contains(" WARN ") && line.contains("disk_mib = 32 is its quota) unexpectedly"), "{line}");
    agent.wait_for_log("plugin eater cannot be started: its directory holds ");
    wait_until("state", || of_plugin(&status(&agent), "eater")["state"] == "held back");
    let shown = status(&agent);
    let held_back = of_plugin(&shown, "eater");
    assert!(held_back["process"].is_null() && held_back["restarts"] == 1, "{held_back}");
    assert!((1..=60_000).contains(&held_back["retry_ms"].as_u64().unwrap()), "{held_back}");
    assert_eq!((&shown["counters"]["plugin_deaths"], &shown["counters"]["plugin_quota_kills"]), (&1.into(), &1.into()));
    assert_eq!(of_plugin(&shown, "free")["process"]["pid"], free_pid, "others go on");
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.count("plugin_quota_kills"), 1);
    assert!(heartbeats.agent["state_detail"].contains("disk_mib = 32 is its quota"), "{:?}", heartbeats.agent);
    wait_until("audit", || audited(&agent, "killed: its directory holds ") == 1);

    // Another entry has it looked at once more. Nothing is started, and the audit does not have the same again.
    let entry = elklet_proto::grpc::Config { detail: "hello run=again".to_owned(), ..eater };
    site.configure(&agent, &[entry, free]);
    wait_until("second refusal", || agent.log_lines("plugin eater cannot be started: ").len() == 2);
    assert_eq!((starts(&site, &agent, "eater"), audited(&agent, "\"refused\"")), (1, 1));

    fs::remove_file(agent.workdir().plugin_dir("eater").join("filled")).unwrap();
    assert!(holds_within(LOOK, || starts(&site, &agent, "eater") == 2), "{}", agent.log());
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!((&*heartbeats.agent["state"], heartbeats.count("plugin_deaths")), ("running", 1));
    assert_eq!(agent.log_lines("plugin eater cannot be started: ").len(), 2, "it is said once for each entry");
}

#[test]
fn a_plugin_that_is_over_its_quota_when_the_agent_starts_comes_again_when_it_is_sent_anew() {
    let site = Site::new();
    let setup = site.eager().setting("plugins", "disk_mib = 32");
    let [eater, other] = ["eater", "other"].map(|name| setup.workdir().install(name, PLUGIN, "hello"));
    fs::write(setup.workdir().plugin_dir("eater").join("kept"), vec![b'x'; 40 << 20]).unwrap();
    // A download would not help, and nobody tries one.
    let eater = elklet_proto::grpc::Config { download_urls: vec!["http://127.0.0.1:9/eater".to_owned()], ..eater };
    site.center().set_configs(Some(vec![eater.clone(), other.clone()]));
    let agent = setup.start();
    agent.wait_for_log("plugin eater cannot be started: its directory holds ");
    wait_until("the other one", || starts(&site, &agent, "other") == 1);
    assert_eq!((starts(&site, &agent, "eater"), agent.log_lines("127.0.0.1:9").len()), (0, 0));

    site.configure(&agent, std::slice::from_ref(&other));
    agent.wait_for_log("plugin eater is removed");
    let _ = agent.install("eater", PLUGIN, "hello");
    site.configure(&agent, &[eater, other]);
    wait_until("start", || starts(&site, &agent, "eater") == 1);
}

/// Returns the table of ways to fill a directory: whether who does it is ended, by the way's name.
fn expected() -> BTreeMap<String, bool> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md")).unwrap();
    let section =
        page.split("\n## ").find(|section| section.starts_with("What a plugin can do to its quota\n")).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        (cells[0].trim_end_matches('`').to_owned(), cells[2] == "yes")
    })
    .collect()
}

#[test]
fn whichever_way_a_hostile_plugin_fills_its_directory_the_agent_finds_it_or_the_page_says_so() {
    let site = Site::new();
    let setup = site.eager().setting("plugins", "disk_mib = 32\nprofile = \"confined\"");
    let expected = expected();
    assert!(expected.len() >= 8, "{expected:?}");
    let mut configs: Vec<_> =
        expected.keys().map(|way| setup.workdir().install(way, HOSTILE, &format!("fill={way}"))).collect();
    configs.push(setup.workdir().install("late", PLUGIN, "hello"));
    site.center().set_configs(Some(configs));
    let agent = setup.start();
    let of_each = |expected_end: bool, holds: &dyn Fn(&str) -> bool| {
        expected.iter().filter(|(_, ends)| **ends == expected_end).all(|(way, _)| holds(way))
    };
    let is_killed = |way: &str| !agent.log_lines(&format!("plugin {way} was killed by signal 9 (its dir")).is_empty();
    let is_done = |way: &str| agent.workdir().plugin_dir(way).join("done").exists();
    assert!(holds_within(LOOK, || of_each(true, &is_killed) && of_each(false, &is_done)), "{}", agent.log());

    // When this one is found, the others have been looked at since they were done.
    wait_until("the last one", || starts(&site, &agent, "late") == 1);
    site.tell(&agent, "late", "fill=40");
    wait_until("its end", || is_killed("late"));
    assert!(of_each(false, &|way| !is_killed(way)
        && agent.log_lines(&format!("plugin {way} version 1.0 started as")).len() == 1));
    let ends = expected.values().filter(|ends| **ends).count() as u64 + 1;
    assert_eq!(status(&agent)["counters"]["plugin_quota_kills"], ends, "nobody was started again to be killed again");
}
