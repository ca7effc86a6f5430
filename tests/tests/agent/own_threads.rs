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
    wait_until("threads", || {
        let names: Vec<_> = threads(agent.pid()).into_iter().map(|(name, ..)| name).collect();
        ["net", "pump", "work"].iter().all(|name| names.iter().any(|found| found == name))
    });
    for (name, is_first, filter) in threads(agent.pid()) {
        assert_eq!(filter, if is_first { "0" } else { "2" }, "{name}");
    }
    // A trusted plugin has what the host has given the agent.
    for (name, _, filter) in threads(hello_pid(&site, &agent)) {
        assert_eq!(filter, "0", "the plugin's {name}");
    }
    let status = printed(agent.workdir().path(), &[], 0);
    assert!(status.contains("limits      system calls (seccomp)\n"), "{status}");
}
