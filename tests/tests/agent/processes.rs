//! The processes of plugins and of the agent itself: none is left behind, and none inherits anything harmful.

use std::fs;
use std::process::{Command, Stdio};

use crate::PLUGIN;
use elklet_tests::harness::{Agent, Signal, Site, is_alive, skipped, types, wait_until};

/// Returns the processes that plugins have left behind, by the plugin's run.
fn orphans(site: &Site, agent: &Agent, run: &str) -> Vec<u32> {
    site.records(agent, |records| {
        let of_run = records.of_type(types::CHILD).filter(|child| child["run"] == run);
        of_run.map(|child| child["pid"].parse().unwrap()).collect()
    })
}

#[test]
fn what_a_plugin_leaves_behind_ends_with_it_and_nothing_else_does() {
    let site = Site::new();
    let setup = site.eager();
    let goes = setup.workdir().install("goes", PLUGIN, "run=goes orphan orphan=bare child");
    let stays = setup.workdir().install("stays", PLUGIN, "run=stays orphan child");
    site.center().set_configs(Some(vec![goes, stays.clone()]));
    let agent = setup.start();
    site.wait_records("processes left behind", &agent, |records| records.of_type(types::CHILD).count() == 5);
    let (gone, kept) = (orphans(&site, &agent, "goes"), orphans(&site, &agent, "stays"));
    assert!(gone.iter().chain(&kept).all(|pid| is_alive(*pid)), "they ignore the end of their parents");

    site.configure(&agent, &[stays]);
    agent.wait_for_log("plugin goes is removed");
    wait_until("end of what it has left", || !gone.iter().any(|pid| is_alive(*pid)));
    let line = agent.wait_for_log("plugin goes has left");
    assert!(line.contains("processes behind, which are killed"), "{line}");
    assert!(kept.iter().all(|pid| is_alive(*pid)), "those of the other plugin go on");
    let zombies = || fs::read_dir("/proc").unwrap().flatten().filter(|entry| is_zombie_of(entry, agent.pid())).count();
    wait_until("state in which none is a zombie", || zombies() == 0);

    // The agent's end ends them as well.
    let setup = agent.into_setup();
    assert!(setup.workdir().processes().is_empty());
}

fn is_zombie_of(entry: &fs::DirEntry, parent: u32) -> bool {
    let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, columns)| columns.starts_with(&format!("Z {parent} ")))
}

#[test]
fn what_a_killed_agent_left_behind_ends_before_plugins_start_again() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "run=first orphan")]));
    let agent = setup.start();
    site.wait_records("orphan", &agent, |records| records.of_type(types::CHILD).count() == 1);
    let orphan = orphans(&site, &agent, "first")[0];
    let setup = agent.kill();
    assert!(is_alive(orphan), "nobody has ended it");
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "run=second orphan")]));
    let agent = setup.start();
    let line = agent.wait_for_log("were left by an agent that had no time to end them");
    assert!(line.contains(" 1 processes of plugins"), "{line}");
    assert!(!is_alive(orphan));
    site.wait_records("second orphan", &agent, |records| {
        records.of_type(types::CHILD).any(|child| child["run"] == "second")
    });
    assert!(is_alive(orphans(&site, &agent, "second")[0]));
}

#[test]
fn a_plugin_whose_daemon_holds_the_pipes_is_started_again() {
    let site = Site::new();
    let setup = site.eager();
    // The child is in the plugin's group and inherits its pipes; the orphan lives on without them.
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello child orphan exit=0")]));
    let agent = setup.start();
    site.wait_records("three lives", &agent, |records| {
        records.of_type(types::HELLO).count() >= 3 && records.of_type(types::CHILD).count() >= 4
    });
    let left = orphans(&site, &agent, "r");
    wait_until("end of the first lives' processes", || !left[..4].iter().any(|pid| is_alive(*pid)));
}

#[test]
fn the_agent_has_no_huge_pages_and_its_plugins_have_what_they_had() {
    let allowed = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("THP_enabled:\t")).map(str::to_owned)
    };
    let Some(own) = allowed(std::process::id()) else {
        let name = "the_agent_has_no_huge_pages_and_its_plugins_have_what_they_had";
        return skipped(name, "kernels before 5.0 do not say");
    };
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let plugin = children(agent.pid())[0];
    assert_eq!((allowed(agent.pid()).as_deref(), allowed(plugin)), (Some("0"), Some(own)));
}

#[test]
fn the_first_process_of_a_container_reaps_orphans_and_ends_on_sigterm() {
    const TEST: &str = "the_first_process_of_a_container_reaps_orphans_and_ends_on_sigterm";
    let namespace = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child=SIGTERM"];
    let mut tried = Command::new(namespace[0]);
    tried.args(&namespace[1..]).arg("true").stderr(Stdio::null());
    if !tried.status().is_ok_and(|status| status.success()) {
        return skipped(TEST, "a PID namespace takes root and unshare");
    }
    let site = Site::new();
    let setup = site.eager().started_by(&namespace);
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello brief=20")]));
    let mut agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let init = children(agent.pid())[0];
    // An orphan of somebody else's, as `docker exec` may leave one, lives on and ends by itself.
    let enter = format!("--target={init}");
    let stranger = ["sh", "-c", "sleep 1 >/dev/null 2>&1 & sleep 600 >/dev/null 2>&1 & echo"];
    let entered = Command::new("nsenter").args([&enter, "--pid", "--mount"]).args(stranger).status();
    assert!(entered.is_ok_and(|status| status.success()), "nsenter comes with unshare");
    let adopted = || children(init);
    wait_until("adopted stranger", || adopted().len() >= 2);
    wait_until("end of the brief ones", || adopted().len() == 2);
    let zombies = || fs::read_dir("/proc").unwrap().flatten().filter(|entry| is_zombie_of(entry, init)).count();
    wait_until("state in which none is a zombie", || zombies() == 0);

    // The end of a plugin does not touch the stranger.
    site.configure(&agent, &[agent.install("other", PLUGIN, "")]);
    agent.wait_for_log("plugin probe is removed");
    assert!(adopted().iter().any(|pid| command_line(*pid).contains("sleep")), "it still runs");
    let signalled = Command::new("kill").args(["-TERM", &init.to_string()]).status();
    assert!(signalled.is_ok_and(|status| status.success()));
    _ = agent.wait_for_exit();
    assert!(agent.log_lines("SIGTERM: the agent ends in order").len() == 1, "{}", agent.log());
}

fn children(parent: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).unwrap().flatten();
    let listed = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let mut all: Vec<u32> = listed.collect::<String>().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    all.retain(|pid| is_alive(*pid));
    all
}

fn command_line(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

#[test]
fn signals_and_descriptors_that_the_agent_was_started_with_stop_at_the_agent() {
    const TEST: &str = "signals_and_descriptors_that_the_agent_was_started_with_stop_at_the_agent";
    let signals = ["--block-signal=TERM,HUP,INT,CHLD,USR1", "--ignore-signal=HUP,INT,CHLD,USR2,XFSZ"];
    let tried = Command::new("env").args(signals).arg("true").stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        return skipped(TEST, "env cannot block signals here");
    }
    let site = Site::new();
    let lock = "exec 9</dev/zero; exec \"$@\"";
    let setup = site.eager().started_by(&["sh", "-c", lock, "sh", "env", signals[0], signals[1]]);
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello deaf=die abort")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let hello = site.records(&agent, |records| records.of_type(types::HELLO).next().unwrap());
    assert_eq!(hello["blocked"], "0000000000000000");
    // A Rust program ignores SIGPIPE, whatever it was started with. Signals 32 and 33 belong to the C library.
    let ignored = u64::from_str_radix(&hello["ignored"], 16).unwrap() & !(1 << 12 | 3 << 31);
    assert_eq!(ignored, 0, "{ignored:x}");
    assert_eq!(hello["descriptors"], "[0, 1, 2, 3, 4, 5]");

    fs::write(agent.workdir().plugin_dir("probe").join("die"), "").unwrap();
    agent.wait_for_log("plugin probe was killed by signal 6 unexpectedly");
    agent.signal(Signal::HUP);
    agent.wait_for_log("SIGHUP");
    let setup = agent.into_setup();
    assert!(setup.workdir().processes().is_empty(), "SIGTERM ends it");
}

#[test]
fn a_reload_in_the_first_moments_is_taken_when_the_agent_can() {
    let site = Site::new();
    let mut setup = site.eager();
    for _ in 0..10 {
        let mut agent = setup.start();
        let begun = format!("/proc/{}/fd", agent.pid());
        let lock = agent.workdir().path().canonicalize().unwrap().join("lock");
        // Nobody can act before the program itself has begun. It has begun when it has its work directory's lock open.
        wait_until("beginning", || {
            let open = fs::read_dir(&begun).into_iter().flatten().flatten();
            open.flat_map(|entry| fs::read_link(entry.path())).any(|target| target == lock)
        });
        agent.signal(Signal::HUP);
        agent.wait_for_log("SIGHUP");
        assert!(agent.is_running());
        setup = agent.into_setup();
        fs::remove_file(setup.workdir().path().join("log/elklet.log")).unwrap();
    }
}
