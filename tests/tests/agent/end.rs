//! The agent's end: in order, with everything sent and no process left behind, or at once when somebody insists.

use crate::PLUGIN;
use elklet_tests::harness::{Agent, DEADLINE, Signal, Site, all_at_once, types, wait_until};
use std::fs;
use std::time::{Duration, Instant};

/// How a test asks for the end.
type Ask = fn(&Site, &Agent);

#[test]
fn an_end_under_load_loses_nothing() {
    let cases: [(&str, (Ask, &str)); 3] = [
        ("SIGTERM", (|_, agent| agent.signal(Signal::TERM), "SIGTERM: the agent ends in order")),
        ("SIGINT", (|_, agent| agent.signal(Signal::INT), "SIGINT: the agent ends in order")),
        (
            "task 1060",
            (|site, agent| site.task(agent, "elkeid-agent", 1060, "{}", "end"), "the server asks the agent to end"),
        ),
    ];
    all_at_once(&cases, |name, (ask, says)| {
        let site = Site::new();
        let setup = site.setup().server(&site.address());
        let configs = [
            ("flood", "run=flood size=100 last=1000 endless"),
            ("paced", "run=paced rate=500 last=1000 endless"),
            ("quiet", "run=quiet last=100 hello"),
        ]
        .map(|(plugin, script)| {
            let config = setup.workdir().install(plugin, PLUGIN, "");
            fs::write(setup.workdir().plugin_dir(plugin).join("script"), script).unwrap();
            config
        });
        site.center().set_configs(Some(configs.to_vec()));
        let mut agent = setup.start();
        site.wait_records("records of all", &agent, |records| {
            let (flood, paced) = (records.run("flood").received, records.run("paced").received);
            flood > 20_000 && paced > 200 && records.of_type(types::HELLO).count() == 1
        });
        ask(&site, &agent);
        let status = agent.wait_for_exit();
        assert_eq!(status.code(), Some(0), "{name}: {status}");
        assert_eq!(agent.workdir().processes(), [0; 0], "{name}");
        site.wait("end of the stream", |state| state.connected().next().is_none());
        let line = agent.wait_for_log(says);
        assert!(line.contains(" INFO "), "{name}: {line}");
        for config in &configs {
            assert!(agent.workdir().plugin_dir(&config.name).exists(), "{name}: an end is no removal");
        }
        assert_eq!(agent.log_lines("unexpectedly"), [""; 0], "{name}");
        let line = agent.wait_for_log("the agent ends; ");
        assert!(line.contains(" INFO "), "{name}: {line}");
        if !line.contains("the server has taken all ") {
            // What a busy machine cannot send in the time that an end may take waits on the disk for the next life, in which the plugins
            // do nothing.
            assert!(line.contains("wait on the disk for the next start"), "{name}: {line}");
            for config in &configs {
                fs::write(agent.workdir().plugin_dir(&config.name).join("script"), "").unwrap();
            }
            agent = agent.kill().start();
            site.wait_records("last words", &agent, |records| records.of_type(types::GOODBYE).count() == 3);
        }
        site.records(&agent, |records| {
            let goodbyes: Vec<_> = records.of_type(types::GOODBYE).collect();
            assert_eq!(goodbyes.len(), 3, "{name}: {goodbyes:?}");
            for goodbye in goodbyes {
                let sent = goodbye["sent"].parse().unwrap();
                let series = records.run(&goodbye["run"]);
                assert!(series.is_whole(sent), "{name}: {sent} of {} were sent: {series:?}", goodbye["run"]);
            }
            assert_eq!(records.run("quiet").received, 100);
        });
    });
}

#[test]
fn an_end_without_a_server_and_without_a_spool_is_prompt_and_says_what_is_lost() {
    let mut site = Site::new();
    let setup = site.setup().server(&site.address()).setting("spool", "mib = 0");
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello last=300")]));
    let mut agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    drop(site.stop());
    agent.wait_for_log("no TCP connection: ");
    let begun = Instant::now();
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    assert!(begun.elapsed() < DEADLINE / 2, "{:?}", begun.elapsed());
    assert_eq!(agent.log_lines("did not end within"), [""; 0]);
    assert_eq!(agent.workdir().processes(), [0; 0]);
    // The 300 records and the goodbye, and perhaps a replay of earlier ones that were not confirmed.
    let line = agent.wait_for_log("the agent ends; ");
    let lost = line.split_once("ends; ").and_then(|(_, rest)| rest.split_once(' '));
    let lost: u64 = lost.and_then(|(number, _)| number.parse().ok()).unwrap_or_else(|| panic!("no number: {line}"));
    assert!(line.contains("are not known to have arrived"), "{line}");
    assert!(line.contains(" WARN ") && (301..310).contains(&lost), "{line}");
}

#[test]
fn an_end_before_any_connection_is_an_end() {
    let site = Site::new();
    let mut agent = site.setup().server("127.0.0.1:1").start();
    agent.wait_for_log("the next attempt is in ");
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    assert_all_taken(&agent);
    assert!(!agent.workdir().path().join("tmp").exists());
}

#[test]
fn whoever_insists_is_obeyed_at_once() {
    let site = Site::new();
    let setup = site.setup().server(&site.address());
    // The agent kills it after ten seconds. Its child would hold its pipes for ever.
    site.center().set_configs(Some(vec![setup.workdir().install("stubborn", PLUGIN, "hello child deaf")]));
    let mut agent = setup.start();
    site.wait_records("plugin and child", &agent, |records| records.of_type(types::CHILD).count() == 1);
    assert_eq!(agent.workdir().processes().len(), 2);
    agent.signal(Signal::TERM);
    agent.wait_for_log("SIGTERM: the agent ends in order");
    agent.signal(Signal::TERM);
    let status = agent.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{status}");
    agent.wait_for_log("SIGTERM again: the agent ends at once");
    assert_eq!(agent.log_lines("did not end within"), [""; 0], "nobody has waited for the plugin");
    wait_until("end of the plugin and its child", || agent.workdir().processes().is_empty());
}

#[test]
fn an_end_waits_for_a_stubborn_plugin_and_no_longer() {
    let site = Site::new();
    let setup = site.setup().server(&site.address());
    let stubborn = setup.workdir().install("stubborn", PLUGIN, "hello child deaf");
    site.center()
        .set_configs(Some(vec![stubborn, setup.workdir().install("quiet", PLUGIN, "run=quiet hello last=100")]));
    let mut agent = setup.start();
    site.wait_records("plugins", &agent, |records| records.of_type(types::HELLO).count() == 2);
    let begun = Instant::now();
    agent.signal(Signal::TERM);
    // The agent sends the other plugin's last records meanwhile.
    site.wait_records("last words", &agent, |records| records.of_type(types::GOODBYE).count() == 1);
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(9_900), "{:?}", begun.elapsed());
    agent.wait_for_log("did not end within 10 s and is killed");
    assert_all_taken(&agent);
    assert_eq!(agent.workdir().processes(), [0; 0]);
}

/// Expects the agent to say that it leaves nothing behind.
fn assert_all_taken(agent: &Agent) {
    let line = agent.wait_for_log("the agent ends; ");
    assert!(line.contains(" INFO ") && line.contains("the server has taken all "), "{line}");
}
