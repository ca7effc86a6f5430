//! `[policy]`: what a host's owner does not let servers do. Each refusal is answered, noted for the owner, and does not happen.

use crate::PLUGIN;
use elklet_tests::harness::{Agent, Signal, Site, wait_until, whole_lines};
use serde_json::Value;
use std::fs;

/// Returns what `audit.log` says was refused: what, its token, and why.
fn refused(agent: &Agent) -> Vec<[String; 3]> {
    let text = whole_lines(&agent.workdir().path().join("log/audit.log"));
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let refused = events.filter(|event| event["kind"] == "refused");
    refused
        .map(|event| ["what", "token", "result"].map(|key| event[key].as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// Waits until a task has failed, and returns why.
fn failure(site: &Site, agent: &Agent, token: &str) -> String {
    let find = || {
        let answers = site.records(agent, |records| records.of_type(5100).collect::<Vec<_>>());
        answers.into_iter().find(|fields| fields["token"] == token && fields["status"] == "failed")
    };
    wait_until("answer", || find().is_some());
    find().unwrap()["msg"].clone()
}

#[test]
fn what_a_hosts_owner_does_not_allow_does_not_happen() {
    let site = Site::new();
    let setup = site.eager().setting("policy", "plugins = [\"wanted\"]");
    let setup = setup.setting("policy", "tasks = [\"wanted/1\", \"elkeid-agent/1051\"]");
    let agent = setup.start();
    site.wait_connected(&agent);
    let configs = ["wanted", "other"].map(|name| agent.install(name, PLUGIN, "run=x n=0 read"));
    site.configure(&agent, &configs);
    agent.wait_for_log("plugin wanted version 1.0 started");
    let why = "this host's owner does not allow it: policy.plugins does not have it";
    agent.wait_for_log(&format!("plugin other: {why}"));
    assert!(agent.log_lines("plugin other version").is_empty(), "{}", agent.log());
    let detail = &site.fresh_heartbeats(&agent).agent["state_detail"];
    assert!(detail.contains(&format!("plugin other: {why}")), "{detail}");

    let why = "this host's owner does not allow it: policy.tasks does not have it";
    for (object, data_type, token) in
        [("wanted", 2, "t-type"), ("other", 1, "t-other"), ("elkeid-agent", 1060, "t-end")]
    {
        site.task(&agent, object, data_type, "", token);
        assert_eq!(failure(&site, &agent, token), why, "{token}");
    }
    // What is allowed works, and the agent is still there after it was told to end.
    site.task(&agent, "elkeid-agent", 1051, r#"{"idc": "dc-9"}"#, "t-metadata");
    agent.wait_for_log("dc-9");
    let refused = refused(&agent);
    for token in ["t-type", "t-other", "t-end"] {
        let event = ["task", token, why].map(str::to_owned);
        assert!(refused.contains(&event), "{token}: {refused:?}");
    }
    assert!(refused.iter().any(|[what, ..]| what == "plugin other"), "{refused:?}");
}

#[test]
fn a_stricter_policy_ends_what_runs_and_counts_tasks() {
    let site = Site::new();
    let agent = site.eager().start();
    site.wait_connected(&agent);
    let configs = ["a", "b"].map(|name| agent.install(name, PLUGIN, "run=x n=0 read"));
    site.configure(&agent, &configs);
    agent.wait_for_log("plugin a version 1.0 started");
    agent.wait_for_log("plugin b version 1.0 started");
    let file = agent.workdir().path().join("elklet.toml");
    let settings = fs::read_to_string(&file).unwrap_or_default();
    fs::write(&file, format!("{settings}\n[policy]\nplugins = [\"a\"]\ntasks_per_minute = 1\n")).unwrap();
    agent.signal(Signal::HUP);
    agent.wait_for_log("SIGHUP: changed: policy");
    wait_until("b ends and its files go", || !agent.workdir().plugin_dir("b").exists());
    assert!(agent.workdir().plugin_dir("a").exists());
    site.task(&agent, "nobody", 1, "", "first");
    assert_eq!(failure(&site, &agent, "first"), "no plugin nobody is configured");
    // A minute may end between two tasks, so that the second one is the first of the next.
    let mut more = 0;
    wait_until("task beyond one a minute", || {
        more += 1;
        let token = format!("more-{more}");
        site.task(&agent, "nobody", 1, "", &token);
        failure(&site, &agent, &token) == "policy.tasks_per_minute = 1 is used up for this minute"
    });
    assert!(more < 3, "{more} tasks");
}
