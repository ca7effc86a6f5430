//! Where a host is, as the server (task 1051) or an operator (`elkeidctl`) sets it.

use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Agent, Signal, Site, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn set(site: &Site, agent: &Agent, data: &str, token: &str) {
    site.task(agent, "elkeid-agent", 1051, data, token);
}

fn place(site: &Site, agent: &Agent) -> (String, String) {
    let fields = site.fresh_heartbeats(agent).agent;
    (fields["idc"].clone(), fields["region"].clone())
}

fn place_of(idc: &str, region: &str) -> (String, String) {
    (idc.to_owned(), region.to_owned())
}

/// Waits for the failure with this token, and returns its reason.
fn refusal(site: &Site, agent: &Agent, token: &str) -> String {
    let find = || {
        site.records(agent, |records| {
            records.of_type(5100).find(|fields| fields["token"] == token).map(|f| f["msg"].clone())
        })
    };
    wait_until("answer", || find().is_some());
    find().unwrap()
}

#[test]
fn the_server_says_where_a_host_is() {
    let site = Site::new();
    // The file takes precedence over what the service manager has read from it earlier.
    let agent = site.eager().variable("specified_idc", "stale").start();
    site.wait_connected(&agent);
    assert_eq!(place(&site, &agent), place_of("stale", "default"));
    set(&site, &agent, r#"{"idc": "dc-1", "region": "eu/west"}"#, "a");
    let file = agent.workdir().path().join("specified_env");
    wait_until("file", || file.exists());
    assert_eq!(place(&site, &agent), place_of("dc-1", "eu/west"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "specified_idc = dc-1\nspecified_region = eu/west\n");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    set(&site, &agent, r#"{"idc": "dc-2"}"#, "b");
    wait_until("change", || fs::read_to_string(&file).unwrap().contains("dc-2"));
    assert_eq!(place(&site, &agent), place_of("dc-2", "eu/west"));
    assert_eq!(site.records(&agent, |records| records.of_type(5100).count()), 0, "nothing has failed");

    let agent = agent.into_setup().start();
    site.wait_connected(&agent);
    assert_eq!(place(&site, &agent), place_of("dc-2", "eu/west"));
}

#[test]
fn what_cannot_be_is_answered_and_changes_nothing() {
    let site = Site::new();
    let setup = site.setup();
    // In this configuration only hosts in Europe have a server.
    let text = format!(
        "region = \"eu\"\n[server]\nreconnect_spread_s = 1\n[regions.eu]\nprivate = [{:?}, {0:?}, {0:?}, {0:?}]\n",
        site.address()
    );
    fs::write(setup.workdir().path().join("elklet.toml"), text).unwrap();
    let agent = setup.start();
    site.wait_connected(&agent);
    for (token, data, reason) in [
        ("region", r#"{"idc": "dc", "region": "us"}"#, "no server is configured for region \"us\""),
        ("line", r#"{"idc": "a\nLD_PRELOAD=/tmp/x.so"}"#, "idc has '\\n' in it"),
        ("empty", r#"{"idc": ""}"#, "idc has 0 bytes, expected 1 to 128"),
        ("long", &format!(r#"{{"idc": "{}"}}"#, "x".repeat(129)), "idc has 129 bytes"),
        ("json", "idc=1", "data of task 1051 is not as expected"),
    ] {
        set(&site, &agent, data, token);
        let msg = refusal(&site, &agent, token);
        assert!(msg.contains(reason), "{msg}");
    }
    assert!(!agent.workdir().path().join("specified_env").exists());
    assert_eq!(place(&site, &agent), place_of("default", "eu"));
    // The file cannot be written, because a directory is in its place.
    fs::create_dir_all(agent.workdir().path().join("specified_env/x")).unwrap();
    set(&site, &agent, r#"{"idc": "dc"}"#, "directory");
    assert!(refusal(&site, &agent, "directory").contains("specified_env: "));
    assert_eq!(site.fresh_heartbeats(&agent).count("refused_tasks"), 6);
}

/// Runs the program under the name of the reference's. Returns its exit code and standard error.
fn elkeidctl(workdir: &Path, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(&Binaries::for_tests().elklet);
    let output = command.arg0("/etc/elkeid/elkeidctl").arg("--workdir").arg(workdir).args(words).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn an_operator_says_who_and_where_a_host_is() {
    let site = Site::new();
    let setup = site.eager().without_id();
    let workdir = setup.workdir().path().to_owned();
    fs::write(workdir.join("specified_env"), "service_type = systemd\nother = thing\n").unwrap();
    let words = ["set", "--id=host-7", "--idc", "dc-1", "--region", "eu"];
    assert_eq!(elkeidctl(&workdir, &words), (Some(0), String::new()));
    let mut agent = setup.start();
    // The reference writes this id and then does not look at it.
    agent.set_id("host-7");
    site.wait_connected(&agent);
    assert_eq!(place(&site, &agent), place_of("dc-1", "eu"));

    assert_eq!(elkeidctl(&workdir, &["unset", "--idc", "--service_type"]), (Some(0), String::new()));
    let text = fs::read_to_string(workdir.join("specified_env")).unwrap();
    assert_eq!(text, "other = thing\nspecified_id = host-7\nspecified_region = eu\n");
    let mut agent = agent.into_setup().start();
    agent.set_id("host-7");
    site.wait_connected(&agent);
    assert_eq!(place(&site, &agent), place_of("default", "eu"));
    // What the reference reads itself takes precedence.
    let agent = agent.into_setup().variable("SPECIFIED_AGENT_ID", "host-8").start();
    agent.wait_for_log("starts as host-8 (environment)");
}

#[test]
fn elkeidctl_hands_services_over_to_the_service_manager() {
    let workdir = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    let tool = tools.path().join("systemctl");
    fs::write(&tool, "#!/bin/sh\necho systemctl \"$@\"\nexit 3\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let ctl = |words: &[&str]| {
        let mut command = Command::new(&Binaries::for_tests().elklet);
        command.arg0("elkeidctl").arg("--workdir").arg(workdir.path()).args(words);
        let path = format!("{}:/usr/bin:/bin", tools.path().display());
        let output = command.env("PATH", path).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    assert_eq!(ctl(&["set", "--service_type", "systemd"]), (String::new(), Some(0)));
    for word in ["start", "stop", "restart", "status", "enable", "disable"] {
        assert_eq!(ctl(&[word]), (format!("systemctl {word} elkeid-agent\n"), Some(3)));
    }
    assert_eq!(ctl(&["service-reload"]), ("systemctl daemon-reload\n".to_owned(), Some(3)));
    for word in ["check", "cleanup"] {
        assert_eq!(ctl(&[word]), (String::new(), Some(0)));
    }
    let unit = workdir.path().join("elkeid-agent.service");
    fs::write(&unit, "").unwrap();
    assert_eq!(ctl(&["enable"]), (format!("systemctl enable {}\n", unit.display()), Some(3)));
    assert_eq!(ctl(&["start", "now"]), (String::new(), Some(2)));

    ctl(&["set", "--service_type", "sysvinit"]);
    if !Path::new("/etc/init.d/elkeid-agent").exists() {
        let (_, stderr) = elkeidctl(workdir.path(), &["start"]);
        assert!(stderr.contains("/etc/init.d/elkeid-agent: ") && stderr.contains("without systemd"), "{stderr}");
    }
    assert_eq!(ctl(&["service-reload"]), (String::new(), Some(0)));
}

#[test]
fn a_file_that_is_longer_than_anybody_specifies_is_refused_and_stays_as_it_is() {
    let site = Site::new();
    let mut agent = site.agent();
    let workdir = agent.workdir().path().to_owned();
    let (file, says) = (workdir.join("specified_env"), "specified_env: 65537 bytes, the limit is 65536");
    let text = format!("specified_idc = dc-1\n{}", "x".repeat((64 << 10) - 20));
    fs::write(&file, &text).unwrap();
    set(&site, &agent, r#"{"idc": "dc-2"}"#, "long");
    let msg = refusal(&site, &agent, "long");
    assert!(msg.contains(says), "{msg}");
    let (code, stderr) = elkeidctl(&workdir, &["set", "--idc", "dc-3"]);
    assert!(code != Some(0) && stderr.contains(says), "{code:?}: {stderr}");
    agent.signal(Signal::HUP);
    let line = agent.wait_for_log("SIGHUP: the settings stay as they were: ");
    assert!(line.contains(" WARN ") && line.contains(says), "{line}");
    assert_eq!(place(&site, &agent), place_of("default", "default"));
    assert!(agent.is_running() && fs::read_to_string(&file).unwrap() == text);

    // With a byte less it is read.
    fs::write(&file, &text[..64 << 10]).unwrap();
    agent.signal(Signal::HUP);
    agent.wait_for_log("SIGHUP: changed: idc and region");
    assert_eq!(place(&site, &agent), place_of("dc-1", "default"));
}

#[test]
fn elkeidctl_says_what_it_does_not_do() {
    let workdir = tempfile::tempdir().unwrap();
    for (words, says) in [
        (&["frobnicate"][..], "unknown command \"frobnicate\", expected set, unset, start, "),
        (&["set"], "nothing to do, expected --id, --idc, --region or --service_type"),
        (&[], "no command given, expected set, unset, start, "),
        (&["set", "--idc", "a b"], "idc has ' ' in it"),
        (&["set", "--colour", "red"], "--colour"),
        (&["set", "--service_type", "upstart"], "expected systemd or sysvinit"),
    ] {
        let (code, stderr) = elkeidctl(workdir.path(), words);
        assert_eq!(code, Some(2), "{words:?}: {stderr}");
        assert!(stderr.contains(says), "{words:?}: {stderr}");
    }
    assert!(!workdir.path().join("specified_env").exists());
    let mut command = Command::new(&Binaries::for_tests().elklet);
    let output = command.args(["ctl", "--help"]).output().unwrap();
    assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("unset"));
}
