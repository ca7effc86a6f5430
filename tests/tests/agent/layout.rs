//! Where things lie: as a package puts them, in one directory, under the names of Elkeid's programs, and moved one by one.

use crate::PLUGIN;
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Site, Workdir, skipped, wait_until};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// What a program prints, and its exit code.
fn said(program: &Path, directory: &Path, words: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(program).current_dir(directory).args(words).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (text, output.status.code())
}

#[test]
fn every_command_finds_things_in_the_same_places_by_default() {
    // If an agent is installed on this host, the test leaves it alone.
    if Path::new("/var/lib/elklet").exists() || Path::new("/etc/elklet").exists() {
        return skipped("every_command_finds_things_in_the_same_places_by_default", "an agent is installed here");
    }
    let elsewhere = Workdir::new();
    let said = |words: &[&str]| said(&Binaries::for_tests().elklet, elsewhere.path(), words);
    for (words, place) in [
        (&["check", "--server", "127.0.0.1:1"][..], "/etc/elklet/certs"),
        (&["doctor", "--server", "127.0.0.1:1"], "/var/lib/elklet, which the agent makes when it starts"),
        (&["status"], "no agent listens at /run/elklet/elklet.sock"),
        (&["spool", "ls"], "/var/lib/elklet"),
        (&["ctl", "set", "--id", "x"], "/var/lib/elklet/specified_env"),
    ] {
        let (text, code) = said(words);
        assert!(text.contains(place) && code != Some(0), "{words:?} ({code:?}): {text}");
    }
    let (help, _) = said(&["--help"]);
    for place in ["/etc/elklet/elklet.toml", "/var/lib/elklet", "/var/log/elklet", "/run/elklet/elklet.sock"] {
        assert!(help.contains(place), "{help}");
    }
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn under_the_names_of_elkeids_programs_everything_is_in_its_directory() {
    if Path::new("/etc/elkeid").exists() {
        return skipped(
            "under_the_names_of_elkeids_programs_everything_is_in_its_directory",
            "an agent is installed here",
        );
    }
    let directory = Workdir::new();
    let named = |name: &str| {
        let path = directory.path().join(name);
        symlink(&Binaries::for_tests().elklet, &path).unwrap();
        path
    };
    let agent = named("elkeid-agent");
    for words in [&[][..], &["run"], &["check"], &["--server", "127.0.0.1:1"]] {
        let (text, code) = said(&agent, directory.path(), words);
        assert!(text.contains("work directory /etc/elkeid: ") && code == Some(2), "{words:?} ({code:?}): {text}");
    }
    let (text, code) = said(&named("elkeidctl"), directory.path(), &["set", "--id", "x"]);
    assert!(text.contains("/etc/elkeid/specified_env") && code == Some(2), "{text}");
}

/// Starts the agent as a package does, on a host whose /etc, /var and /run are its own.
#[test]
fn an_agent_of_a_package_makes_what_it_needs_and_is_found_by_every_command() {
    const TEST: &str = "an_agent_of_a_package_makes_what_it_needs_and_is_found_by_every_command";
    if !Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
        return skipped(TEST, "a mount namespace takes root and unshare");
    }
    let site = Site::new();
    let setup = site.setup();
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello")]));
    let script = "for place in /etc /var/lib /var/log /run; do mount -t tmpfs -o mode=755 tmpfs $place || exit 9; done
        mkdir -p /etc/elklet /var/lib/elklet/plugin
        cp -r \"$1\" /etc/elklet/certs && cp -r \"$2\" /var/lib/elklet/plugin/ && shift 2 && exec \"$@\"";
    let (certs, plugin) =
        (site.certs().display().to_string(), setup.workdir().plugin_dir("probe").display().to_string());
    let mut agent = setup
        .only(&["run", "--server", &site.address()])
        .started_by(&["unshare", "--mount", "sh", "-c", script, "sh", &certs, &plugin])
        .start();
    site.wait_connected(&agent);
    site.wait_records("plugin", &agent, |records| records.of_type(elklet_tests::harness::types::HELLO).count() > 0);

    let root = format!("/proc/{}/root", agent.pid());
    let mode =
        |path: &str| fs::symlink_metadata(format!("{root}{path}")).map(|found| found.permissions().mode() & 0o777);
    let expected = [
        ("/var/lib/elklet/plugins.kept", 0o600),
        ("/var/log/elklet", 0o700),
        ("/var/log/elklet/elklet.log", 0o600),
        ("/run/elklet", 0o755),
        ("/run/elklet/elklet.sock", 0o600),
    ];
    for (path, expected) in expected {
        wait_until(path, || mode(path).is_ok());
        assert_eq!(mode(path).unwrap(), expected, "{path}");
    }
    let target = format!("--target={}", agent.pid());
    let inside = |words: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args([&target, "--mount"]).arg(&Binaries::for_tests().elklet).args(words);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(inside(&["status"]).contains("/var/lib/elklet"));
    assert!(inside(&["spool", "ls"]).contains("nothing is to be sent"));
    assert!(inside(&["check", "--server", "127.0.0.1:1"]).contains("the certificates in /etc/elklet/certs are usable"));
    inside(&["ctl", "set", "--idc", "north"]);
    assert!(mode("/var/lib/elklet/specified_env").is_ok());
    agent.signal(elklet_tests::harness::Signal::TERM);
    assert!(agent.wait_for_exit().success());
}

#[test]
fn log_and_socket_can_be_moved_one_by_one() {
    let site = Site::new();
    let setup = site.setup().server(&site.address());
    let elsewhere = Workdir::new();
    let (log, socket) = (elsewhere.path().join("deep/log"), elsewhere.path().join("run/s"));
    let text = format!("socket = {socket:?}\n[log]\ndirectory = {log:?}\n");
    fs::write(setup.workdir().path().join("elklet.toml"), text).unwrap();
    let agent = setup.start();
    site.wait("connection", |state| state.agents.contains_key(agent.id()));
    wait_until("log", || log.join("elklet.log").exists() && socket.exists());
    assert!(!agent.workdir().path().join("log").exists() && !agent.workdir().path().join("elklet.sock").exists());
    let workdir = agent.workdir().path().display().to_string();
    let status = || said(&Binaries::for_tests().elklet, elsewhere.path(), &["status", "--workdir", &workdir]);
    wait_until("status by the file's key", || status().1 == Some(0));
}

#[test]
fn a_new_host_is_set_up_by_one_command_that_changes_nothing_that_is_there() {
    let site = Site::new();
    let workdir = Workdir::new();
    let directory = workdir.path().join("deep/elklet");
    let (path, certs) = (directory.display().to_string(), site.certs().display().to_string());
    let elklet = |words: &[&str]| said(&Binaries::for_tests().elklet, workdir.path(), words);
    let address = site.address();
    let init = ["init", "--workdir", &path, "--server", &address, "--certs"];
    let init_with = |certs: &str| elklet(&[&init[..], &[certs]].concat());
    let (text, code) = init_with(&path);
    assert!(text.contains("ca.crt") && code == Some(2), "{text}");
    assert!(!directory.exists(), "nothing was made");

    let (text, code) = init_with(&certs);
    assert!(text.contains("elklet.toml names the servers") && code == Some(0), "{text}");
    assert!(text.contains(&format!("the way to {address} (private) is open")), "the doctor has looked: {text}");
    let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    let modes = ["elklet.toml", "certs", "certs/ca.crt", "certs/client.crt", "certs/client.key"].map(mode);
    assert_eq!(modes, [0o600, 0o700, 0o644, 0o644, 0o600]);

    let before = fs::read(directory.join("elklet.toml")).unwrap();
    let (text, code) = init_with(&certs);
    assert!(text.contains("is there already, and stays as it is") && code == Some(2), "{text}");
    assert_eq!(fs::read(directory.join("elklet.toml")).unwrap(), before);
    assert_eq!(elklet(&["check", "--workdir", &path]).1, Some(0));

    // The example that a package has put there says nothing that could be lost.
    let example = include_str!("../../../agent-bin/elklet.example.toml");
    fs::write(directory.join("elklet.toml"), format!("{example}\n")).unwrap();
    assert_eq!(init_with(&certs).1, Some(2));
    fs::write(directory.join("elklet.toml"), example).unwrap();
    assert_eq!(init_with(&certs).1, Some(0));
    assert_eq!(fs::read(directory.join("elklet.toml")).unwrap(), before);
}

/// The directory of Elkeid's agent, and an agent that goes on as that host.
#[test]
fn a_host_goes_on_as_it_was_when_its_agent_moves_and_can_go_back() {
    let site = Site::new();
    let old = site.setup().without_id().server(&site.address());
    let from = old.workdir().path().to_owned();
    fs::write(from.join("machine-id"), "4f6c8f0a-2d4e-4b5a-9c0d-6f1e2a3b4c5d").unwrap();
    fs::write(from.join("specified_env"), "specified_id = host-9\nspecified_idc = north\n").unwrap();
    site.center().set_configs(Some(vec![old.workdir().install("probe", PLUGIN, "hello")]));
    let mut agent = old.start();
    agent.set_id("host-9");
    site.wait_connected(&agent);
    wait_until("list of plugins", || from.join("plugins.kept").exists());

    let to = Workdir::new();
    fs::create_dir(to.path().join("plugin")).unwrap();
    let (from_path, path) = (from.display().to_string(), to.path().display().to_string());
    let adopt = |words: &[&str]| {
        let words = [&["adopt", "--from", &from_path, "--workdir", &path], words].concat();
        said(&Binaries::for_tests().elklet, to.path(), &words)
    };
    let (text, code) = adopt(&["--yes"]);
    assert!(text.contains("stop it first") && code == Some(2), "{text}");
    let setup = agent.into_setup();
    let names = || {
        let names = fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let (text, code) = adopt(&[]);
    assert!(
        text.contains("plugin would be copied to ") && text.contains("nothing was done") && code == Some(0),
        "{text}"
    );
    assert_eq!(names(), ["plugin"]);
    let (text, code) = adopt(&["--yes"]);
    assert!(text.contains("machine-id is copied to ") && code == Some(0), "{text}");
    assert_eq!(
        fs::read(from.join("plugin/probe/probe")).unwrap(),
        fs::read(to.path().join("plugin/probe/probe")).unwrap()
    );
    let kept = ["adopted", "elklet.toml", "machine-id", "plugin", "plugins.kept", "specified_env"];
    assert_eq!(names().into_iter().filter(|name| name != "spool" && name != "log").collect::<Vec<_>>(), kept);

    // The id is the same, and the plugin starts before any server is there.
    let moved = elklet_tests::harness::Setup::in_directory(to).without_id();
    let certs = site.certs().display().to_string();
    let mut agent = moved.argument("--certs").argument(&certs).server("127.0.0.1:1").start();
    agent.wait_for_log("starts as host-9");
    agent.wait_for_log("plugin probe ");
    agent.signal(elklet_tests::harness::Signal::TERM);
    assert!(agent.wait_for_exit().success());
    let moved = agent.into_setup();
    let path = moved.workdir().path().display().to_string();
    let undo = ["adopt", "--from", &from_path, "--workdir", &path, "--undo", "--yes"];
    let (text, code) = said(&Binaries::for_tests().elklet, moved.workdir().path(), &undo);
    assert!(text.contains("machine-id is removed") && code == Some(0), "{text}");
    assert!(!moved.workdir().path().join("machine-id").exists() && !moved.workdir().path().join("plugin").exists());
    assert!(setup.workdir().path().join("machine-id").exists(), "what was there is as it was");
}

#[test]
fn check_says_what_run_would_and_starts_nothing() {
    let site = Site::new();
    let workdir = Workdir::new();
    let path = workdir.path().display().to_string();
    let certs = site.certs().display().to_string();
    let check = |words: &[&str]| {
        let words = [&["check", "--workdir", &path], words].concat();
        said(&Binaries::for_tests().elklet, workdir.path(), &words)
    };
    let usable = ["--certs", &certs, "--server", "127.0.0.1:1"];
    let (text, code) = check(&usable);
    assert!(text.contains("are usable") && code == Some(0), "{text}");
    let (text, code) = check(&["--server", "127.0.0.1:1"]);
    assert!(text.contains("certs (the default, see --certs): ") && code == Some(2), "{text}");
    fs::write(workdir.path().join("elklet.toml"), "[server]\nprivat = []\n").unwrap();
    let (text, code) = check(&usable);
    assert!(text.contains("elklet.toml:2: server.privat: unknown key") && code == Some(2), "{text}");
    fs::write(workdir.path().join("elklet.toml"), "[proxy]\n").unwrap();
    assert_eq!(check(&usable).1, Some(0));
    assert_eq!(fs::read_dir(workdir.path()).unwrap().count(), 1, "nothing was made");

    let (version, _) = said(&Binaries::for_tests().elklet, workdir.path(), &["version", "--json"]);
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    let (plain, _) = said(&Binaries::for_tests().elklet, workdir.path(), &["version"]);
    assert_eq!(plain, format!("elklet {}\n", version["version"].as_str().unwrap()));
}
