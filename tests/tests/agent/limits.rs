//! Limits of plugins: what holds if the host can enforce them, and what the agent says if it cannot.

use crate::PLUGIN;
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Agent, Signal, Site, holds_within, is_alive, skipped, types, wait_until};
use rustix::process::{Pid, getuid};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Returns a plugin's pid, from the last greeting that names its directory.
fn pid(site: &Site, agent: &Agent, name: &str) -> u32 {
    let found = || {
        site.records(agent, |records| {
            let hello =
                records.of_type(types::HELLO).filter(|hello| hello["cwd"].ends_with(&format!("/plugin/{name}"))).last();
            hello.map(|hello| hello["pid"].parse().unwrap())
        })
    };
    wait_until(&format!("greeting of {name}"), || found().is_some());
    found().unwrap()
}

/// Returns a line of a file of a process under /proc.
fn line(pid: u32, file: &str, begins: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("no {begins}: {text}"));
    line[begins.len()..].trim().to_owned()
}

/// Returns the directories of a process's control groups that the agent has made.
fn groups(pid: u32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut points = BTreeMap::new();
    for mount in mounts.lines() {
        let (Some((head, tail)), mut found) = (mount.split_once(" - "), Vec::new()) else { continue };
        let point = head.split(' ').nth(4).unwrap().to_owned();
        match tail.split(' ').next() {
            Some("cgroup2") => found.push(String::new()),
            Some("cgroup") => found.extend(tail.rsplit(' ').next().unwrap().split(',').map(str::to_owned)),
            _ => {}
        }
        points.extend(found.into_iter().map(|name| (name, point.clone())));
    }
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let parsed = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let made = parsed.filter(|(_, path)| path.contains("/elklet-") && !path.ends_with("/elklet-agent"));
    made.filter_map(|(name, path)| Some(Path::new(points.get(name.split(',').next()?)?).join(&path[1..]))).collect()
}

fn status(agent: &Agent) -> String {
    let program = &Binaries::for_tests().elklet;
    let output = Command::new(program).args(["status", "--workdir"]).arg(agent.workdir().path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_plugin_gets_no_new_rights_and_does_not_outlive_its_agent() {
    let site = Site::new();
    let setup = site.eager().setting("plugin.free", "no_new_privs = false\nend_with_agent = false");
    let configs = ["bound", "free"].map(|name| setup.workdir().install(name, PLUGIN, "hello deaf"));
    site.center().set_configs(Some(configs.to_vec()));
    let agent = setup.start();
    let [bound, free] = ["bound", "free"].map(|name| pid(&site, &agent, name));
    assert_eq!((line(bound, "status", "NoNewPrivs:"), line(free, "status", "NoNewPrivs:")), ("1".into(), "0".into()));
    let setup = agent.kill();
    wait_until("end of the bound one", || !is_alive(bound));
    assert!(!holds_within(Duration::from_millis(500), || !is_alive(free)), "the free one goes on");
    _ = rustix::process::kill_process(Pid::from_raw(i32::try_from(free).unwrap()).unwrap(), Signal::KILL);
    drop(setup);
}

#[test]
fn open_files_are_limited_everywhere() {
    let site = Site::new();
    let setup = site.eager().setting("plugins", "open_files = 64").setting("plugin.more", "open_files = 128");
    let configs = ["less", "more"].map(|name| setup.workdir().install(name, PLUGIN, "hello"));
    site.center().set_configs(Some(configs.to_vec()));
    let agent = setup.start();
    for (name, limit) in [("less", "64"), ("more", "128")] {
        let limits = line(pid(&site, &agent, name), "limits", "Max open files");
        assert_eq!(limits.split_whitespace().take(2).collect::<Vec<_>>(), [limit, limit]);
        agent.wait_for_log(&format!("plugin {name}: {limit} open files (rlimit)"));
    }
    let status = status(&agent);
    assert!(status.contains("limits of less 64 open files (rlimit)"), "{status}");
}

#[test]
fn groups_limit_memory_processor_and_processes_and_go_with_the_plugin() {
    let name = "groups_limit_memory_processor_and_processes_and_go_with_the_plugin";
    if !getuid().is_root() {
        return skipped(name, "control groups need root");
    }
    let site = Site::new();
    let setup = site
        .eager()
        .setting("plugin.probe", "memory_mib = 48\ncpu_percent = 50\nprocesses = 20")
        .setting("plugin.other", "processes = 30");
    let probe = setup.workdir().install("probe", PLUGIN, "hello child");
    let other = setup.workdir().install("other", PLUGIN, "hello");
    site.center().set_configs(Some(vec![probe, other.clone()]));
    let agent = setup.start();
    let pid = pid(&site, &agent, "probe");
    wait_until("limits", || agent.log_lines("plugin probe: ").len() >= 3);
    let applied = agent.log_lines("plugin probe: ").into_iter().filter(|line| line.contains("(cgroup v")).count();
    if applied < 3 {
        return skipped(name, &agent.log_lines("not applied").join("; "));
    }
    let groups = groups(pid);
    let read = |names: [&str; 2]| {
        let file = groups.iter().flat_map(|group| names.map(|name| group.join(name))).find(|file| file.exists());
        fs::read_to_string(file.unwrap_or_else(|| panic!("{names:?} in {groups:?}"))).unwrap().trim().to_owned()
    };
    assert_eq!(read(["memory.max", "memory.limit_in_bytes"]), (48 << 20).to_string());
    assert_eq!(read(["pids.max", "pids.max"]), "20");
    assert!(["50000 100000", "50000"].contains(&&*read(["cpu.max", "cpu.cfs_quota_us"])));
    let status = status(&agent);
    assert!(status.contains("limits of probe memory 48 MiB (cgroup v"), "{status}");

    // A plugin that takes more memory than its limit dies, and no other process does.
    site.tell(&agent, "probe", "eat=200");
    agent.wait_for_log("plugin probe was killed by signal ");
    assert!(is_alive(self::pid(&site, &agent, "other")));
    wait_until("end of its groups", || groups.iter().all(|group| !group.exists()));

    // Its next process gets other groups, and the agent removes them when the plugin leaves the configuration.
    wait_until("another process", || self::pid(&site, &agent, "probe") != pid);
    let next = self::groups(self::pid(&site, &agent, "probe"));
    assert!(!next.is_empty() && next.iter().all(|group| group.exists() && !groups.contains(group)));
    site.configure(&agent, &[other]);
    agent.wait_for_log("plugin probe is removed");
    wait_until("end of its groups", || next.iter().all(|group| !group.exists()));
}

#[test]
fn a_sandbox_has_a_group_and_limits_that_nobody_configured() {
    let name = "a_sandbox_has_a_group_and_limits_that_nobody_configured";
    if !getuid().is_root() {
        return skipped(name, "control groups need root");
    }
    let site = Site::new();
    let setup = site.eager().setting("plugin.probe", "profile = \"inspector\"\nprocesses = 30");
    let probe = setup.workdir().install("probe", PLUGIN, "hello child");
    let other = setup.workdir().install("other", PLUGIN, "hello");
    site.center().set_configs(Some(vec![probe, other]));
    let agent = setup.start();
    let probe = pid(&site, &agent, "probe");
    wait_until("limits", || agent.log_lines("plugin probe: ").len() >= 3);
    let status = status(&agent);
    if !status.contains("memory 512 MiB (cgroup v") {
        return skipped(name, &agent.log_lines("not applied").join("; "));
    }
    for limit in ["processor 100 % (cgroup v", "30 processes (cgroup v"] {
        assert!(status.contains(limit), "{limit}: {status}");
    }
    assert!(!groups(probe).is_empty());
    assert!(groups(pid(&site, &agent, "other")).is_empty(), "who is trusted has the limits that are configured");
    let data = line(probe, "limits", "Max data size");
    assert!(data.starts_with("unlimited"), "a limit that nobody asked for stays with the group: {data}");
}

#[test]
fn where_no_group_can_be_made_resource_limits_are_set_and_the_rest_is_said() {
    let name = "where_no_group_can_be_made_resource_limits_are_set_and_the_rest_is_said";
    if getuid().is_root()
        && !Command::new("setpriv").arg("--version").output().is_ok_and(|output| output.status.success())
    {
        return skipped(name, "there is no setpriv");
    }
    let site = Site::new();
    let mut setup = site.eager().setting("plugins", "memory_mib = 64\ncpu_percent = 50\nprocesses = 10");
    let config = setup.workdir().install("probe", PLUGIN, "hello");
    if getuid().is_root() {
        // This user may make no control groups.
        let nobody = Some(65534);
        // This user may have no access to the directory in which the agent was built.
        let program = setup.workdir().path().join("elklet");
        assert!(Command::new("cp").arg(&Binaries::for_tests().elklet).arg(&program).status().unwrap().success());
        setup = setup.program(&program);
        for path in [
            setup.workdir().path(),
            &program,
            &setup.workdir().plugin_dir(""),
            &setup.workdir().plugin_dir("probe"),
            &setup.workdir().plugin_dir("probe").join("probe"),
        ] {
            std::os::unix::fs::chown(path, nobody, nobody).unwrap();
        }
        for file in ["client.key", "client.crt", "ca.crt"] {
            std::os::unix::fs::chown(site.certs().join(file), nobody, nobody).unwrap();
        }
        std::os::unix::fs::chown(site.certs(), nobody, nobody).unwrap();
        setup = setup.started_by(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    }
    site.center().set_configs(Some(vec![config]));
    let agent = setup.start();
    let limits = line(pid(&site, &agent, "probe"), "limits", "Max data size");
    let bytes = (64 << 20).to_string();
    assert_eq!(limits.split_whitespace().take(2).collect::<Vec<_>>(), [&bytes, &bytes]);
    agent.wait_for_log("plugin probe: memory 64 MiB (rlimit)");
    for limit in ["processor 50 %", "10 processes"] {
        let line = agent.wait_for_log(&format!("plugin probe: {limit} not applied: "));
        assert!(line.contains(" WARN "), "{line}");
    }
}
