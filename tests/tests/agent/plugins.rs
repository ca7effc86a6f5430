//! Plugins as they should be: from the configuration to the process, from the process to the server, and their end.

use crate::PLUGIN;
use elklet_proto::grpc::Config;
use elklet_tests::harness::{self, Agent, DEADLINE, Site, is_alive, types, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

#[test]
fn a_plugin_finds_what_the_contract_says() {
    let site = Site::new();
    let setup = site.eager().variable("ELKLET_TEST_MARK", "inherited");
    let with_detail = setup.workdir().install("with-detail", PLUGIN, "hello stderr=words");
    // Without a detail, the plugin takes its words from a file.
    let without = setup.workdir().install("without", PLUGIN, "");
    fs::write(setup.workdir().plugin_dir("without").join("script"), "hello").unwrap();
    site.center().set_configs(Some(vec![with_detail, without]));
    let agent = setup.start();
    site.wait_records("greetings", &agent, |records| records.of_type(types::HELLO).count() == 2);
    let greetings: Vec<_> = site.records(&agent, |records| records.of_type(types::HELLO).collect());

    for hello in &greetings {
        let inherits = hello["environment"].contains("ELKLET_TEST_MARK=inherited");
        let name = if inherits { "without" } else { "with-detail" };
        let dir = agent.workdir().path().canonicalize().unwrap().join("plugin").join(name);
        let executable = dir.join(name).display().to_string();
        assert_eq!(hello["cwd"], dir.display().to_string());
        assert_eq!(hello["argv"], executable);
        assert_eq!(hello["pgid"], hello["pid"], "a group of its own");
        assert_eq!(hello["ppid"], agent.pid().to_string());
        assert_eq!(hello["descriptors"], "[0, 1, 2, 3, 4, 5]", "nothing else is open");
        assert_eq!((&hello["stdin"][..], &hello["stdout"][..]), ("/dev/null", "/dev/null"));
        assert!(hello["stderr"].starts_with("pipe:"), "{}", hello["stderr"]);

        let mut names: Vec<_> = hello["environment"].lines().filter_map(|line| line.split_once('=')).collect();
        names.sort_unstable();
        assert!(names.iter().any(|(name, value)| *name == "PATH" && !value.is_empty()), "{names:?}");
        if !inherits {
            let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["DETAIL", "ELKEID_PLUGIN_HIGH_PRIORITY_PIPE", "ELKLET_PLUGIN", "PATH"]);
        }
    }
    assert!(greetings[0]["environment"].contains("DETAIL=") != greetings[1]["environment"].contains("DETAIL="));
    let said = agent.workdir().plugin_dir("with-detail").join("with-detail.stderr");
    wait_until("line on standard error", || fs::read_to_string(&said).is_ok_and(|text| text == "words\n"));
    assert_eq!(fs::metadata(&said).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(agent.wait_for_log("plugin with-detail version 1.0 started as process").contains(" INFO "));
}

#[test]
fn records_arrive_once_and_in_order() {
    let site = Site::new();
    let setup = site.eager();
    let paced = setup.workdir().install("paced", PLUGIN, "run=paced rate=2000 n=4000");
    let cut = setup.workdir().install("cut", PLUGIN, "run=cut chunk=7 n=2000");
    let urgent = setup.workdir().install("urgent", PLUGIN, "urgent run=urgent n=3000");
    site.center().set_configs(Some(vec![paced, cut, urgent]));
    let agent = setup.start();
    let expected = [("paced", 4000), ("cut", 2000), ("urgent", 3000)];
    site.wait_records("records", &agent, |records| expected.iter().all(|(run, n)| records.run(run).received >= *n));
    site.records(&agent, |records| {
        for (run, count) in expected {
            assert!(records.run(run).is_whole(count), "{run}: {:?}", records.run(run));
        }
    });
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.count("records"), 9000);
    assert_clean(&heartbeats);
}

#[test]
fn a_flood_is_held_back_and_arrives_whole() {
    const RECORDS: u64 = 300_000;
    let site = Site::new();
    let setup = site.eager();
    let flood = setup.workdir().install("flood", PLUGIN, &format!("run=flood n={RECORDS}"));
    site.center().set_configs(Some(vec![flood]));
    let agent = setup.start();
    site.wait_records("flood", &agent, |records| records.run("flood").received >= RECORDS);
    site.records(&agent, |records| {
        assert!(records.run("flood").is_whole(RECORDS), "{:?}", records.run("flood"));
        let longest = records.batches.iter().map(|batch| batch.decoded_len).max().unwrap();
        assert!(longest <= (2 << 20) + (256 << 10) + 1024, "a batch of {longest} bytes is more than an arena");
    });
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.count("records"), RECORDS);
    assert_eq!(heartbeats.plugins["flood"]["restarts"], "0");
    assert_clean(&heartbeats);
}

#[test]
fn what_leaves_the_configuration_is_stopped_and_removed() {
    let site = Site::new();
    let setup = site.eager();
    let stays = setup.workdir().install("stays", PLUGIN, "hello run=stays n=10");
    let goes = setup.workdir().install("goes", PLUGIN, "hello run=goes n=10 last=500");
    site.center().set_configs(Some(vec![stays.clone(), goes]));
    let agent = setup.start();
    site.wait_records("two plugins", &agent, |records| {
        records.run("stays").received == 10 && records.run("goes").received == 10
    });
    // An entry that cannot be carried out does not affect the plugin that it names.
    let mut refused = stays.clone();
    refused.sha256 = "nonsense".into();
    site.configure(&agent, &[refused]);
    let line = agent.wait_for_log("plugin \"stays\": sha256 \"nonsense\" is not 64 hexadecimal digits");
    assert!(line.contains(" WARN "), "{line}");

    agent.wait_for_log("plugin goes is removed");
    site.wait_records("goodbye", &agent, |records| records.of_type(types::GOODBYE).count() == 1);
    site.records(&agent, |records| {
        assert!(records.run("goes").is_whole(510), "what it wrote at its end came too: {:?}", records.run("goes"));
    });
    assert!(!agent.workdir().plugin_dir("goes").exists());
    assert_eq!(agent.workdir().processes().len(), 1, "the other one runs");
    assert_eq!(agent.log_lines("exited with code 0").len(), 1);
    assert!(agent.log_lines("unexpectedly").is_empty(), "this end was asked for");

    site.center().set_configs(Some(vec![stays]));
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.plugins.keys().collect::<Vec<_>>(), ["stays"]);
    assert_eq!(heartbeats.agent["state"], "abnormal");
    assert!(details(&heartbeats)[0].contains("nonsense"));
    wait_until_running(&site, &agent);
    assert_eq!(pids(&site, &agent).len(), 2, "the one that stays was never started again");
}

#[test]
fn one_bad_entry_leaves_the_others_and_its_own_plugin_as_they_are() {
    let site = Site::new();
    let setup = site.eager();
    let stays = setup.workdir().install("stays", PLUGIN, "hello");
    let comes = setup.workdir().install("comes", PLUGIN, "hello");
    site.center().set_configs(Some(vec![stays.clone()]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let addresses = |count| vec!["http://127.0.0.1:1/x".to_owned(); count];
    let bad = [
        Config { download_urls: addresses(17), ..stays.clone() },
        Config { name: "../other".into(), ..comes.clone() },
        Config { name: "long".into(), version: "v".repeat(1000), ..comes.clone() },
        // The entry of the agent's own version needs no hash.
        Config { name: "elkeid-agent".into(), version: env!("CARGO_PKG_VERSION").into(), ..Config::default() },
    ];
    let entries: Vec<_> = bad.into_iter().chain([comes]).collect();
    site.configure(&agent, &entries);
    site.wait_records("the other one", &agent, |records| records.of_type(types::HELLO).count() == 2);
    for says in [
        "plugin \"stays\": it has 17 download addresses, the limit is 16",
        "plugin \"../other\": a name has only letters, digits, _ and -",
        "plugin \"long\": version of 1000 bytes, the limit is 128",
    ] {
        assert!(agent.wait_for_log(says).contains(" WARN "));
    }
    assert!(agent.log_lines("elkeid-agent").is_empty(), "{}", agent.log());
    assert!(pids(&site, &agent).iter().all(|pid| is_alive(*pid)), "the one that the bad entry names runs on");
}

#[test]
fn an_empty_configuration_is_none_and_changes_nothing() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("stays", PLUGIN, "hello")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    site.configure(&agent, &[]);
    agent.wait_for_log("the server sent a command with nothing in it: nothing changes");
    site.tell(&agent, "stays", "run=after n=1");
    site.wait_records("record", &agent, |records| records.run("after").is_whole(1));
    assert_eq!(pids(&site, &agent).len(), 1);
    assert!(agent.workdir().plugin_dir("stays").exists());
}

#[test]
fn only_the_configured_bytes_are_executed() {
    let site = Site::new();
    let setup = site.eager();
    let right = setup.workdir().install("probe", PLUGIN, "hello");
    // The configured file is not there yet. The file that is there would run if the agent started it.
    let executable = setup.workdir().plugin_dir("probe").join("probe");
    fs::write(setup.workdir().path().join("right"), fs::read(&executable).unwrap()).unwrap();
    let [wrong, ran] = ["wrong", "ran"].map(|name| setup.workdir().path().join(name));
    fs::write(&wrong, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o755)).unwrap();
    _ = setup.workdir().install("probe", wrong.to_str().unwrap(), "");
    site.center().set_configs(Some(vec![right.clone()]));
    let agent = setup.start();
    let line = agent.wait_for_log("plugin probe cannot be started");
    assert!(line.contains("is not what was configured") && line.contains(&right.signature), "{line}");
    site.wait_connected(&agent);
    // The server pushed the configuration again on this stream, so the agent says so again.
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.agent["state"], "abnormal");
    assert!(details(&heartbeats)[0].starts_with("plugin probe cannot be started: "), "{:?}", details(&heartbeats));
    assert!(heartbeats.plugins.is_empty() && !ran.exists(), "nothing was started");
    assert_eq!(agent.log_lines("plugin probe version 1.0 started"), [""; 0]);

    fs::rename(agent.workdir().path().join("right"), &executable).unwrap();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent.wait_for_log("plugin probe version 1.0 started as process");
    // A configuration lets the plugin start afresh.
    site.configure(&agent, &[right]);
    wait_until_running(&site, &agent);
}

#[test]
fn a_new_detail_of_the_same_version_takes_effect() {
    let site = Site::new();
    let setup = site.eager();
    let mut config = setup.workdir().install("probe", PLUGIN, "hello run=first n=5");
    site.center().set_configs(Some(vec![config.clone()]));
    let agent = setup.start();
    site.wait_records("first run", &agent, |records| records.run("first").received == 5);
    // The same configuration once more changes nothing.
    site.configure(&agent, std::slice::from_ref(&config));
    config.detail = "hello run=second n=5".into();
    site.configure(&agent, &[config]);
    site.wait_records("second run", &agent, |records| records.run("second").received == 5);
    let pids = pids(&site, &agent);
    assert_eq!(pids.len(), 2);
    assert!(!is_alive(pids[0]) && is_alive(pids[1]), "one after the other");
    site.records(&agent, |records| assert_eq!(records.values(types::GOODBYE, "run"), ["first"]));
    assert!(agent.log_lines("unexpectedly").is_empty());
}

#[test]
fn a_plugin_that_dies_is_started_again_later_each_time() {
    let site = Site::new();
    let setup = site.eager();
    // The plugin lives for half a second each time, and the waits are one second and two.
    let config = setup.workdir().install("mortal", PLUGIN, "hello exit=3");
    let killed = setup.workdir().install("aborted", PLUGIN, "abort");
    site.center().set_configs(Some(vec![config, killed]));
    let agent = setup.start();
    site.wait_records("greetings", &agent, |records| records.of_type(types::HELLO).count() >= 3);
    let started = site.records(&agent, |records| records.values(types::HELLO, "started"));
    let starts: Vec<u64> = started.iter().map(|ticks| ticks.parse().unwrap()).collect();
    let (waits, second) = ([starts[1] - starts[0], starts[2] - starts[1]], rustix::param::clock_ticks_per_second());
    assert!(waits[0] * 10 >= 9 * second && waits[1] * 10 >= 19 * second, "{waits:?} ticks, {second} are a second");
    let line = agent.wait_for_log("plugin mortal exited with code 3 unexpectedly");
    assert!(line.contains(" WARN "), "{line}");
    agent.wait_for_log("plugin aborted was killed by signal 6 unexpectedly");
    let details = details(&site.fresh_heartbeats(&agent));
    assert!(
        details.iter().any(|detail| detail.starts_with("plugin mortal exited with code 3 unexpectedly")),
        "{details:?}"
    );
    assert!(
        details.iter().any(|detail| detail.starts_with("plugin aborted was killed by signal 6 unexpectedly")),
        "{details:?}"
    );
}

#[test]
fn a_restart_is_counted_in_the_plugins_heartbeat() {
    let site = Site::new();
    let setup = site.eager();
    // It dies once, and removes the file on the way, so it lives from then on.
    let config = setup.workdir().install("mortal", PLUGIN, "hello deaf=die abort");
    site.center().set_configs(Some(vec![config]));
    let agent = setup.start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
    fs::write(agent.workdir().plugin_dir("mortal").join("die"), "").unwrap();
    agent.wait_for_log("plugin mortal was killed by signal 6 unexpectedly");
    site.wait_records("second greeting", &agent, |records| records.of_type(types::HELLO).count() == 2);
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.plugin_count("mortal", "restarts"), 1);
    assert_eq!(heartbeats.count("plugin_deaths"), 1);
    assert_eq!(heartbeats.agent["state"], "abnormal");
    assert_eq!(heartbeats.count("records"), 2, "those of the dead one are counted still");
}

#[test]
fn who_ignores_the_end_is_killed_with_the_whole_group() {
    let site = Site::new();
    let setup = site.eager();
    let stubborn = setup.workdir().install("stubborn", PLUGIN, "hello child deaf");
    // This plugin ends when it is asked to, and leaves a child behind that holds its pipes.
    let careless = setup.workdir().install("careless", PLUGIN, "hello child");
    let busy = setup.workdir().install("busy", PLUGIN, "hello");
    site.center().set_configs(Some(vec![stubborn, careless, busy.clone()]));
    let agent = setup.start();
    site.wait_records("plugins and children", &agent, |records| {
        records.of_type(types::HELLO).count() == 3 && records.of_type(types::CHILD).count() == 2
    });
    assert_eq!(agent.workdir().processes().len(), 5);
    let begun = Instant::now();
    site.configure(&agent, &[busy]);
    agent.wait_for_log("plugin careless is removed");

    // While the agent waits for the stubborn one, it goes on with everything else.
    site.tell(&agent, "busy", "run=meanwhile n=100");
    site.wait_records("records meanwhile", &agent, |records| records.run("meanwhile").is_whole(100));
    site.task(&agent, "stubborn", 1, "", "too late");
    site.wait_records("refusal", &agent, |records| records.values(5100, "token") == ["too late"]);
    wait_until("end of the stubborn one and its child", || agent.workdir().processes().len() == 1);
    assert!(begun.elapsed() >= Duration::from_millis(9_900), "{:?}", begun.elapsed());
    let line = agent.wait_for_log("plugin stubborn (process");
    assert!(line.contains("did not end within 10 s and is killed"), "{line}");
    agent.wait_for_log("plugin stubborn is removed");
    assert_eq!(agent.log_lines("is killed").len(), 1);
    let log = agent.log();
    let order = ["plugin careless is removed", "(token \"too late\")", "is killed"].map(|text| log.find(text).unwrap());
    assert!(order.is_sorted(), "nobody waits for those who have gone, nor for the stubborn one before its time: {log}");
}

#[test]
fn traffic_is_measured_both_ways() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    site.tell(&agent, "probe", "run=a rate=1000 n=2000 size=100");
    site.wait_records("records", &agent, |records| records.run("a").received == 2000);
    let heartbeats = site.fresh_heartbeats(&agent);
    for (whose, fields) in [("the agent's", &heartbeats.agent), ("the plugin's", &heartbeats.plugins["probe"])] {
        for name in ["rx_tps", "tx_tps", "rx_speed", "tx_speed"] {
            assert!(fields[name].parse::<f64>().is_ok_and(|rate| rate > 0.0), "{whose} {name} is {}", fields[name]);
        }
    }
}

/// Returns the texts of `state_detail`.
fn details(heartbeats: &harness::Heartbeats) -> Vec<String> {
    serde_json::from_str(&heartbeats.agent["state_detail"]).unwrap()
}

/// Waits until the agent says that nothing is wrong any more.
fn wait_until_running(site: &Site, agent: &Agent) {
    let deadline = Instant::now() + DEADLINE;
    while site.fresh_heartbeats(agent).agent["state"] != "running" {
        assert!(Instant::now() < deadline, "the agent stays abnormal");
    }
}

/// Returns the processes that have said hello.
fn pids(site: &Site, agent: &Agent) -> Vec<u32> {
    site.records(agent, |records| records.values(types::HELLO, "pid").iter().map(|pid| pid.parse().unwrap()).collect())
}

/// Expects that no plugin has done anything wrong.
fn assert_clean(heartbeats: &harness::Heartbeats) {
    let counters = ["frames_too_long", "frames_invalid", "frames_truncated", "frame_bytes_skipped", "own_records_lost"];
    for name in counters {
        assert_eq!(heartbeats.count(name), 0, "{name}");
    }
}
