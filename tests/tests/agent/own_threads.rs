//! What the agent's own threads may not do, and what that does not take from plugins.

use std::fs;

use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Site, types, wait_until};

use crate::PLUGIN;
use crate::downloads::{plain, program, wait_hellos};
use crate::status::printed;

/// Returns the name of each thread of a process, whether it is the first, and what the kernel says of its filter.
fn threads(pid: u32) -> Vec<(String, bool, String)> {
    let all = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of_thread = |entry: fs::DirEntry| {
        // It may end meanwhile.
        let text = fs::read_to_string(entry.path().join("status")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        Some((field("Name:"), field("Pid:") == pid.to_string(), field("Seccomp:")))
    };
    all.filter_map(of_thread).collect()
}

fn hello_pid(site: &Site, agent: &Agent) -> u32 {
    site.records(agent, |records| records.values(types::HELLO, "pid")[0].parse().unwrap())
}

#[test]
fn every_thread_is_filtered_but_the_one_that_starts_plugins() {
    let site = Site::new();
    let files = Files::start();
    // A download takes a thread of its own for as long as it lasts.
    let slow = files.serve("slow", program(), How::Slow(1000));
    let setup = site.eager();
    let probe = setup.workdir().install("probe", PLUGIN, "hello");
    site.center().set_configs(Some(vec![probe, plain("slow", &program(), &[slow], "")]));
    let agent = setup.start();
    wait_hellos(&site, &agent, 1);
    // A thread has its name a moment before its filter.
    wait_until("threads and their filters", || {
        let all = threads(agent.pid());
        let is_there = |name: &&str| all.iter().any(|(found, ..)| found == name);
        let is_right = |(_, is_first, filter): &(String, bool, String)| filter == if *is_first { "0" } else { "2" };
        ["net", "pump", "work"].iter().all(is_there) && all.iter().all(is_right)
    });
    // A trusted plugin has what the host has given the agent.
    for (name, _, filter) in threads(hello_pid(&site, &agent)) {
        assert_eq!(filter, "0", "the plugin's {name}");
    }
    let status = printed(agent.workdir().path(), &[], 0);
    assert!(status.contains("limits      system calls (seccomp)\n"), "{status}");
}

#[test]
fn a_sandboxed_plugin_gets_nothing_of_the_agents_environment() {
    let site = Site::new();
    let foreign = [
        ("LD_LIBRARY_PATH", "/no/such/libraries"),
        ("HTTPS_PROXY", "http://host:correct-horse@127.0.0.1:9"),
        ("NO_PROXY", "*"),
        ("SPECIFIED_IDC", "cellar"),
    ];
    let setup = foreign.iter().fold(site.eager(), |setup, (name, value)| setup.variable(name, value));
    let setup = setup.setting("plugin.confined", "profile = \"confined\"");
    let plugins = ["confined", "trusted"].map(|name| {
        let config = setup.workdir().install(name, PLUGIN, "");
        fs::write(setup.workdir().plugin_dir(name).join("script"), "hello").unwrap();
        config
    });
    site.center().set_configs(Some(plugins.into()));
    let agent = setup.start();
    wait_hellos(&site, &agent, 2);
    for hello in site.records(&agent, |records| records.of_type(types::HELLO).collect::<Vec<_>>()) {
        let mut names: Vec<_> = hello["environment"].lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        names.sort_unstable();
        if hello["cwd"].ends_with("/confined") {
            assert_eq!(names, ["ELKEID_PLUGIN_HIGH_PRIORITY_PIPE", "ELKLET_PLUGIN", "PATH"]);
        } else {
            // As with Elkeid's agent, a plugin without a detail has it whole.
            assert!(foreign.iter().all(|(name, _)| names.contains(name)), "{names:?}");
        }
    }
}

#[test]
fn the_agent_listens_on_no_port() {
    let site = Site::new();
    let agent = site.agent();
    site.wait_connected(&agent);
    let own: Vec<_> = fs::read_dir(format!("/proc/{}/fd", agent.pid()))
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            fs::read_link(entry.path()).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
        })
        .collect();
    let mut streams = 0;
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        // A host without IPv6 lacks some.
        let text = fs::read_to_string(format!("/proc/{}/net/{table}", agent.pid())).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if own.iter().any(|inode| inode == fields[9]) {
                // 01 is a connection.
                assert_eq!((fields[3], table.starts_with("tcp")), ("01", true), "{table}: {line}");
                streams += 1;
            }
        }
    }
    assert!(streams > 0, "its stream is among them");
}
