//! The command line and the file: what the agent understands, and what it says about the rest.

use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{DEADLINE, Setup, Signal, Site, Workdir, holds_within, types, wait_until};
use elklet_tests::pki::Set;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the program and waits until it ends by itself.
fn elklet(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(&Binaries::for_tests().elklet);
    command.current_dir(directory).envs(environment.iter().copied());
    // Without --workdir an agent would run in the work directory of an installed one.
    match arguments.split_first() {
        Some((&"run", rest)) if !rest.contains(&"--workdir") => {
            command.args(["run", "--workdir", "."]).args(rest);
        }
        _ => {
            command.args(arguments);
        }
    }
    if environment.is_empty() {
        command.env_remove("SPECIFIED_AGENT_ID");
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if !holds_within(DEADLINE, || child.try_wait().unwrap().is_some()) {
        child.kill().unwrap();
    }
    child.wait_with_output().unwrap()
}

/// Expects exit code 2 and one line that contains all of these.
fn assert_refused(output: &Output, says: &[&str]) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{says:?}: {said:?}");
    assert_eq!(said.lines().count(), 1, "{says:?}: one line and no more: {said:?}");
    assert!(said.starts_with("elklet: ") && said.ends_with('\n'), "{said:?}");
    assert!(!said.trim_end().ends_with('.'), "no full stop: {said:?}");
    for part in says {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
}

#[test]
fn help_and_version_are_given() {
    let workdir = Workdir::new();
    for (arguments, says) in [
        (&["--help"][..], &["Usage:", "elklet COMMAND --help", "SPECIFIED_AGENT_ID", "/var/lib/elklet"][..]),
        (&["-h"], &["Usage:"]),
        (&["help"], &["Usage:"]),
        (&["run", "--help"], &["Usage: elklet run", "--server HOST:PORT", "Exit codes"]),
        (&["help", "status"], &["Usage: elklet status", "--metrics", "Exit codes"]),
        (&["ctl", "set", "-h"], &["Usage: elklet ctl set", "--region REGION"]),
        (&["--version"], &[concat!("elklet ", env!("CARGO_PKG_VERSION"), "\n")]),
        (&["-V"], &["elklet "]),
    ] {
        let output = elklet(workdir.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(says.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {:?}", output.stderr);
    }
    assert!(!workdir.path().join("log").exists(), "nothing was started");
}

#[test]
fn wrong_words_are_named() {
    let workdir = Workdir::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["expected run"]),
        (&["walk"], &["\"walk\"", "expected run"]),
        (&["stauts"], &["did you mean status?"]),
        (&["status", "--json", "--metrics"], &["--json and --metrics exclude each other"]),
        (&["--server", "a:1"], &["--server"]),
        (&["run", "run"], &["\"run\""]),
        (&["run", "--sever", "a:1"], &["--sever", "did you mean --server?"]),
        (&["run", "-x"], &["-x"]),
        (&["run", "extra"], &["\"extra\""]),
        (&["run", "--server"], &["--server"]),
        (&["run", "--workdir"], &["--workdir"]),
        (&["run", "--log-stderr=yes"], &["--log-stderr"]),
        (&["run", "--server", "nowhere"], &["--server", "\"nowhere\"", "HOST:PORT"]),
        (&["run", "--server", "host:0"], &["\"host:0\"", "HOST:PORT"]),
        (&["run", "--server", "host:65536"], &["\"host:65536\"", "HOST:PORT"]),
        (&["run", "--server", "::1:80"], &["\"::1:80\"", "[fd00::1]:6751"]),
        (&["run", "--server", "ok:1", "--server", "http://x:1"], &["\"http://x:1\"", "HOST:PORT"]),
        (&["run", "--discovery", "sd"], &["--discovery", "\"sd\"", "HOST:PORT"]),
        (&["run"], &["no server", "--server", "--discovery"]),
        (&["run", "--workdir", "/no/such", "--server", "a:1"], &["work directory /no/such"]),
        (&["run", "--workdir", "/etc/passwd", "--server", "a:1"], &["/etc/passwd"]),
        (&["run", "--config", "/no/such.toml", "--server", "a:1"], &["/no/such.toml", "No such file"]),
        (&["run", "--config", "/", "--server", "a:1"], &["/: ", "directory"]),
        (&["spool"], &["expected ls or verify"]),
        (&["spool", "mend"], &["\"mend\"", "expected ls or verify"]),
        (&["spool", "ls", "--config", "/no/such.toml"], &["/no/such.toml", "No such file"]),
        (&["status", "--config", "/no/such.toml"], &["/no/such.toml", "No such file"]),
    ];
    for (arguments, says) in cases {
        assert_refused(&elklet(workdir.path(), arguments, &[]), says);
    }
}

#[test]
fn a_wrong_file_is_named_with_its_line() {
    let workdir = Workdir::new();
    let cases: &[(&str, &[&str])] = &[
        ("[server]\nprivate = [\"a:1\"]\nthis is no TOML\n", &["elklet.toml:3: "]),
        ("\n\nsever = 1\n", &["elklet.toml:3: ", "unknown key `sever`, did you mean `server`?"]),
        ("[server]\nprivate = \"a:1\"\n", &["elklet.toml:2: "]),
        ("[server]\nprivate = [\"a\"]\n", &["elklet.toml:2: server.private", "\"a\"", "HOST:PORT"]),
        ("[server]\npublic = [\"b\"]\n", &["server.public", "\"b\"", "HOST:PORT"]),
        ("[server]\ndiscovery = [\"c\"]\n", &["server.discovery", "\"c\"", "HOST:PORT"]),
        ("[server]\nprivate = [\"a:1\"]\n[buffer]\narena_kib = 9\n", &["arena_kib", "9", "128 to 8192"]),
        ("[server]\nprivate = [\"a:1\"]\n[buffer]\narena_kib = -9\n", &["elklet.toml:4: "]),
        ("[log]\nstderr = \"yes\"\n", &["elklet.toml:2: "]),
    ];
    for (file, says) in cases {
        fs::write(workdir.path().join("elklet.toml"), file).unwrap();
        assert_refused(&elklet(workdir.path(), &["run"], &[]), says);
    }
    let named = workdir.path().join("named.toml");
    fs::write(&named, "workdir = \"/no/such\"\n[server]\nprivate = [\"a:1\"]\n").unwrap();
    let mut command = Command::new(&Binaries::for_tests().elklet);
    assert_refused(&command.args(["run", "--config"]).arg(&named).output().unwrap(), &["/no/such"]);
    fs::write(workdir.path().join("elklet.toml"), [0xff, 0xfe]).unwrap();
    assert_refused(&elklet(workdir.path(), &["run"], &[]), &["elklet.toml", "UTF-8"]);
}

#[test]
fn wrong_certificates_are_named() {
    let workdir = Workdir::new();
    let certs = workdir.path().join("certs");
    let run = |says: &[&str]| {
        let output = elklet(workdir.path(), &["run", "--server", "127.0.0.1:1"], &[("SPECIFIED_AGENT_ID", "x")]);
        assert_refused(&output, says);
        let log = fs::read_to_string(workdir.path().join("log/elklet.log")).unwrap();
        assert!(says.iter().all(|part| log.lines().last().is_some_and(|line| line.contains(part))), "{log}");
    };
    run(&["certs (the default, see --certs): ", "certs/ca.crt: no such file"]);
    fs::create_dir(&certs).unwrap();
    run(&["certs/ca.crt: no such file"]);

    let set = Set::new();
    let other = Set::new();
    let write = |name: &str, text: &str| fs::write(certs.join(name), text).unwrap();
    for (name, text, says) in [
        ("ca.crt", "", "expected a PEM file with a certificate"),
        ("ca.crt", "-----BEGIN CERTIFICATE-----\nnonsense", "expected a PEM file with a certificate"),
        (
            "ca.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "is damaged: it holds no X.509 certificate",
        ),
        ("ca.crt", &set.client.key, "expected a PEM file with a certificate"),
        ("client.crt", "", "expected a PEM file with a certificate"),
        (
            "client.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "is damaged: it holds no X.509 certificate",
        ),
        ("client.key", "nonsense", "expected an unencrypted PKCS#8, PKCS#1 or SEC1 key in PEM, found none"),
        (
            "client.key",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "is a key of an unknown kind or damaged",
        ),
        ("client.key", &other.client.key, "the key does not belong to the certificate in "),
    ] {
        set.write(&certs).unwrap();
        write(name, text);
        run(&[&format!("certs/{name}: "), says]);
    }
    for name in ["client.crt", "client.key"] {
        set.write(&certs).unwrap();
        fs::remove_file(certs.join(name)).unwrap();
        run(&[&format!("certs/{name}: no such file")]);
    }
}

#[test]
fn what_named_the_certificates_is_blamed_for_them() {
    let workdir = Workdir::new();
    let run = |file: &str, arguments: &[&str], says: &[&str]| {
        fs::write(workdir.path().join("elklet.toml"), file).unwrap();
        let arguments: Vec<_> = ["run", "--server", "127.0.0.1:1"].iter().chain(arguments).copied().collect();
        let output = elklet(workdir.path(), &arguments, &[("SPECIFIED_AGENT_ID", "x")]);
        assert_refused(&output, says);
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run("certs = \"/no/such\"\n", &[], &["certs in ", "elklet.toml: /no/such/ca.crt: no such file"]);
    assert!(!said.contains("--certs"), "{said}");
    run("certs = \"/no/such\"\n", &["--certs", "/none"], &["--certs: /none/ca.crt: no such file"]);
}

#[test]
fn a_section_of_no_plugin_is_told_with_the_plugin_that_is_meant() {
    let site = Site::new();
    let setup = site.eager().setting("plugin.probee", "memory_mib = 64").setting("plugin.other", "memory_mib = 64");
    site.center().set_configs(Some(vec![setup.workdir().install("probe", crate::PLUGIN, "")]));
    let agent = setup.start();
    agent.wait_for_log("[plugin.probee]: there is no such plugin, did you mean [plugin.probe]?");
    agent.wait_for_log("[plugin.other]: there is no such plugin, expected one of: probe");
    // The same configuration again changes nothing, so nothing is logged.
    site.configure(&agent, &[agent.install("probe", crate::PLUGIN, "")]);
    wait_until("second configuration", || agent.log_lines("configuration of 1 plugins").len() >= 2);
    assert_eq!(agent.log_lines("there is no such plugin").len(), 2, "{}", agent.log());
}

#[test]
fn a_wrong_id_is_named_before_the_start_and_at_it() {
    let workdir = Workdir::new();
    Set::new().write(&workdir.path().join("certs")).unwrap();
    let asked = |command: &str, id: &OsStr| {
        let words = [OsStr::new(command), OsStr::new("--server"), OsStr::new("127.0.0.1:1"), OsStr::new("--workdir")];
        let mut child = Command::new(&Binaries::for_tests().elklet);
        child.args(words).arg(workdir.path()).env("SPECIFIED_AGENT_ID", id).output().unwrap()
    };
    for command in ["check", "run"] {
        for (id, says) in [
            (OsStr::new("two\nlines"), "control character"),
            (OsStr::new(&"x".repeat(5_000)), "5000 bytes, the limit is 256"),
            (OsStr::from_bytes(b"a\xff"), "is not UTF-8"),
        ] {
            let output = asked(command, id);
            assert_refused(&output, &["SPECIFIED_AGENT_ID", says]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(said.matches("SPECIFIED_AGENT_ID").count(), 1, "once is enough: {said}");
        }
    }
    assert_eq!(asked("check", OsStr::new("gateway 1")).status.code(), Some(0));
}

#[test]
fn what_is_no_regular_file_is_refused_and_not_waited_for() {
    let workdir = Workdir::new();
    let at = |name: &str| workdir.path().join(name);
    let certs = at("certs");
    Set::new().write(&certs).unwrap();
    let check = |words: &[&str]| elklet(workdir.path(), &[&["check", "--server", "127.0.0.1:1"], words].concat(), &[]);
    let here = ["--workdir", "."];
    assert!(check(&here).status.success());
    let pipe = |path: &Path| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    pipe(&at("pipe"));
    fs::write(at("long"), vec![b'#'; (1 << 20) + 1]).unwrap();
    for (path, says) in [
        ("pipe", "pipe: it is a named pipe, expected a regular file"),
        ("/dev/zero", "/dev/zero: it is a device, expected a regular file"),
        (".", "it is a directory, expected a regular file"),
        ("long", "long: 1048577 bytes, the limit is 1048576"),
    ] {
        assert_refused(&check(&["--workdir", ".", "--config", path]), &[says]);
    }
    for (to, says) in [("/nonexistent/x", "it is a link that leads nowhere"), ("elklet.toml", "symbolic links")] {
        symlink(to, at("elklet.toml")).unwrap();
        for words in [&["check", "--server", "127.0.0.1:1", "--workdir", "."][..], &["run", "--server", "127.0.0.1:1"]]
        {
            assert_refused(&elklet(workdir.path(), words, &[]), &["elklet.toml: ", says]);
        }
        fs::remove_file(at("elklet.toml")).unwrap();
    }
    for (name, says) in
        [("certs/ca.crt", "ca.crt: "), ("certs/client.key", "client.key: "), ("specified_env", "specified_env: ")]
    {
        let (path, kept) = (at(name), at("kept"));
        let was_there = fs::rename(&path, &kept).is_ok();
        pipe(&path);
        assert_refused(&check(&here), &[says, "it is a named pipe, expected a regular file"]);
        fs::remove_file(&path).unwrap();
        if was_there {
            fs::rename(&kept, &path).unwrap();
        }
    }
    assert!(check(&here).status.success());
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_named() {
    let workdir = Workdir::new();
    Set::new().write(&workdir.path().join("certs")).unwrap();
    for limit in ["8", "12", "23"] {
        let script = format!("ulimit -n {limit} && exec \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(&Binaries::for_tests().elklet)
            .args(["run", "--server", "127.0.0.1:1", "--workdir"])
            .arg(workdir.path())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said, format!("elklet: the limit of open files (ulimit -n) is {limit}, expected 24 at least\n"));
    }
    assert!(!workdir.path().join("log").exists());
}

#[test]
fn an_agent_with_few_open_files_has_a_stream_and_a_plugin() {
    let site = Site::new();
    let setup = site.eager().started_by(&["sh", "-c", "ulimit -n 48 && exec \"$@\"", "sh"]);
    site.center().set_configs(Some(vec![setup.workdir().install("probe", crate::PLUGIN, "hello")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
}

#[test]
fn a_file_says_what_the_flags_do_not() {
    let site = Site::new();
    // The file is found in the work directory, where the certificates are as well.
    let found = |file: &str, words: &[&str]| {
        let workdir = Workdir::new();
        Set::write(&Set::new(), &workdir.path().join("wrong")).unwrap();
        copy_certs(&site, &workdir.path().join("certs"));
        let file = file.replace("SERVER", &site.address()).replace("WORKDIR", &workdir.path().display().to_string());
        fs::write(workdir.path().join("elklet.toml"), file).unwrap();
        let agent = words.iter().fold(Setup::in_directory(workdir), |setup, word| setup.argument(word)).start();
        site.wait_connected(&agent);
        agent
    };
    let agent = found("[server]\nprivate = [\"SERVER\"]\n[log]\nstderr = true\ndebug = true\n", &[]);
    assert_eq!(site.heartbeats(&agent).agent["net_mode"], "private");
    assert!(agent.log().contains(" DEBUG ") && agent.stderr().contains(" DEBUG "), "{}", agent.log());

    let agent = found("[server]\nprivate = [\"127.0.0.1:1\"]\npublic = [\"SERVER\"]\n[buffer]\narena_kib = 128\n", &[]);
    assert_eq!(site.heartbeats(&agent).agent["net_mode"], "public");
    assert!(agent.stderr().is_empty(), "{}", agent.stderr());
    assert!(!agent.log().contains(" DEBUG "), "{}", agent.log());

    // Flags take precedence over the file.
    let file = "certs = \"WORKDIR/wrong\"\n[server]\nprivate = [\"127.0.0.1:1\"]\n";
    let certs = site.certs().display().to_string();
    let agent = found(file, &["--server", &site.address(), "--certs", &certs]);
    assert_eq!(site.heartbeats(&agent).count("connect_failures"), 0, "the file's server was not tried");
}

#[test]
fn a_file_can_be_anywhere_and_name_the_work_directory() {
    let site = Site::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let workdir = Workdir::new();
    let file = elsewhere.path().join("settings");
    let (directory, certs) = (workdir.path().display(), site.certs().display());
    let text =
        format!("workdir = \"{directory}\"\ncerts = \"{certs}\"\n[server]\nprivate = [\"{}\"]\n", site.address());
    fs::write(&file, text).unwrap();
    let agent = Setup::new(site.certs()).only(&["run", "--config", &file.display().to_string()]).start();
    site.wait_connected(&agent);
    assert!(workdir.path().join("log/elklet.log").exists());
    assert!(!agent.workdir().path().join("log").exists());
}

#[test]
fn the_log_goes_to_standard_error_when_asked() {
    let site = Site::new();
    let mut agent = site.eager().argument("--log-stderr").start();
    site.wait_connected(&agent);
    agent.signal(Signal::TERM);
    assert!(agent.wait_for_exit().success());
    assert_eq!(agent.stderr(), agent.log(), "line by line the same");
    assert!(agent.stderr().contains("starts as") && agent.stderr().contains("the agent ends"), "{}", agent.stderr());
    for line in agent.stderr().lines() {
        let mut words = line.split_whitespace();
        let (time, level) = (words.next().unwrap(), words.next().unwrap());
        assert!(time.len() == 24 && time.ends_with('Z') && ["INFO", "WARN", "ERROR"].contains(&level), "{line}");
    }

    let agent = site.agent();
    assert_eq!(agent.stderr(), "", "not when nobody asked");
}

fn copy_certs(site: &Site, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        fs::copy(site.certs().join(name), to.join(name)).unwrap();
    }
}
