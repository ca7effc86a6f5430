//! What is wrong on the host: certificates, files and their permissions.

use super::{HOPS, NOBODY, PASSED, Visit, findings, verdicts, warnings};
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::Site;
use elklet_tests::pki::{SERVER_NAME, Set, Validity};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn wrong_certificates_are_named() {
    let site = Site::new();
    let certs = tempfile::tempdir().unwrap();
    let set = Set::new();
    let spoilt = |name: &str, text: Option<&str>, says: &str| {
        set.write(certs.path()).unwrap();
        match text {
            Some(text) => fs::write(certs.path().join(name), text).unwrap(),
            None => fs::remove_file(certs.path().join(name)).unwrap(),
        }
        let visit = Visit::new(certs.path(), &site.address());
        visit.fails_at("certificates", &format!("{name}: {says}"), "--certs");
        assert_eq!(
            verdicts(&visit.finds(1), &format!("{} (private)", site.address())),
            HOPS.map(|hop| (hop, "skipped"))
        );
    };
    spoilt("ca.crt", None, "no such file");
    spoilt("client.crt", None, "no such file");
    spoilt("client.key", None, "no such file");
    spoilt("ca.crt", Some("nonsense"), "expected a PEM file with a certificate");
    spoilt("client.key", Some(&Set::new().client.key), "the key does not belong to the certificate in ");
}

#[test]
fn an_expired_certificate_is_named_before_the_server_refuses_it() {
    let set = Set::new();
    let site = Site::with(|options| set.write(&options.certs).unwrap());
    let certs = tempfile::tempdir().unwrap();
    Set { client: set.ca.issue(SERVER_NAME, Validity::Expired), ..set.clone() }.write(certs.path()).unwrap();
    let failed = |found: &Value, hop: &str| {
        let mut failures = findings(found).into_iter().filter(|finding| finding["verdict"] == "FAILED");
        let of_hop = failures.find(|finding| finding["hop"] == hop);
        of_hop.map(|finding| finding["detail"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    // The server closes the connection right after its alert. A reset may overtake the alert, and the doctor never sees
    // it then.
    let told = |says: &str| {
        let visits = (0..20).map(|_| Visit::new(certs.path(), &site.address()).finds(1));
        visits.into_iter().find(|found| failed(found, "TLS").contains(says)).unwrap_or_else(|| panic!("never {says:?}"))
    };
    let found = told("received fatal alert: CertificateExpired");
    let detail = failed(&found, "certificates");
    assert!(detail.contains("client.crt: the certificate expired at 2020-01-01T00:00:00Z"), "{found}");
    // The doctor leaves it to the server to judge a certificate that is not valid yet.
    Set { client: set.ca.issue(SERVER_NAME, Validity::Future), ..set.clone() }.write(certs.path()).unwrap();
    let found = told("received fatal alert: ");
    assert!(found.to_string().contains("client.crt has to be in force"), "{found}");
}

#[test]
fn a_work_directory_that_cannot_be_written_is_named() {
    let site = Site::new();
    // Not even root can write there, and it reports that no byte is free.
    let visit = Visit::new(site.certs(), &site.address()).with("--workdir", "/proc");
    let found = visit.finds(1);
    let failed: Vec<_> = findings(&found).into_iter().filter(|finding| finding["verdict"] == "FAILED").collect();
    assert!(failed.len() == 1 && failed[0]["hop"] == "work directory", "{found}");
    assert_eq!(verdicts(&found, &format!("{} (private)", site.address())), PASSED, "the rest is looked at as well");
}

#[test]
fn proxy_variables_that_are_not_understood_are_named_and_close_no_way() {
    let site = Site::new();
    let with = |name: &str, value: &str| Visit::new(site.certs(), &site.address()).variable(name, value);
    for (name, value, says) in [
        ("HTTPS_PROXY", "ftp://joe:secret@proxy:21", "HTTPS_PROXY in the environment: ftp://proxy:21 is no proxy"),
        ("NO_PROXY", "10.0.0.0/99", "NO_PROXY in the environment: "),
    ] {
        let visit = with(name, value);
        let found = visit.finds(0);
        let warned = warnings(&found, "configuration");
        assert!(warned.len() == 1 && warned[0].0.starts_with(says), "{found}");
        assert!(
            warned[0].0.ends_with("it is passed over") && warned[0].1.contains("mend it, or take it away"),
            "{found}"
        );
        assert!(!found.to_string().contains("secret"), "{found}");
        assert_eq!(verdicts(&found, &format!("{} (private)", site.address())), PASSED);
        let text = String::from_utf8(visit.run(&[]).stdout).unwrap();
        assert!(text.ends_with(" is open; there is a warning above\n"), "{text}");
    }
    let found = with("NO_PROXY", "10.0.0.0/8").finds(0);
    assert_eq!(warnings(&found, "configuration"), [], "{found}");
}

#[test]
fn what_others_could_read_or_change_is_named() {
    let site = Site::new();
    let top = tempfile::tempdir().unwrap();
    let certs = top.path().join("above/certs");
    fs::create_dir_all(&certs).unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        fs::copy(site.certs().join(name), certs.join(name)).unwrap();
    }
    let visit = Visit::new(&certs, &site.address()).file("[proxy]\nurl = \"http://joe:secret@127.0.0.1:1\"\n");
    let workdir = visit.workdir.path();
    let _ = visit.workdir.install("probe", crate::PLUGIN, "");
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let closed = [
        (certs.join("client.key"), 0o600),
        (workdir.join("elklet.toml"), 0o600),
        (workdir.join("plugin"), 0o700),
        (workdir.join("plugin/probe"), 0o700),
        (workdir.join("plugin/probe/probe"), 0o700),
    ];
    closed.iter().for_each(|(path, mode)| set(path, *mode));
    let found = visit.finds(1);
    assert_eq!(warnings(&found, "permissions"), [], "{found}");
    for (path, mode, says) in [
        (certs.join("client.key"), 0o604, "others can read it (mode 0604)"),
        (certs.join("ca.crt"), 0o602, "others can write it (mode 0602)"),
        (certs.clone(), 0o707, "others can write it"),
        (top.path().join("above"), 0o707, "others can write it"),
        (workdir.join("elklet.toml"), 0o604, "others can read it"),
        (workdir.to_owned(), 0o707, "others can write it"),
        (workdir.join("plugin"), 0o703, "others can write it"),
        (workdir.join("plugin/probe/probe"), 0o702, "others can write it"),
    ] {
        let before = fs::metadata(&path).unwrap().permissions();
        set(&path, mode);
        let found = visit.finds(1);
        let warned = warnings(&found, "permissions");
        let path = fs::canonicalize(path).unwrap();
        assert!(warned.len() == 1 && warned[0].0.starts_with(&format!("{}: {says}", path.display())), "{found}");
        assert!(warned[0].1.contains("chmod"), "{found}");
        fs::set_permissions(&path, before).unwrap();
    }
    // That is no failure on the way to a server.
    fs::remove_file(workdir.join("elklet.toml")).unwrap();
    set(&certs, 0o707);
    let text = String::from_utf8(visit.run(&[]).stdout).unwrap();
    assert!(
        text.contains("  permissions     warning  ") && text.contains(" is open; there is a warning above\n"),
        "{text}"
    );
}

#[test]
fn a_file_that_this_user_may_not_read_is_no_file_that_is_missing() {
    let site = Site::new();
    let visit = Visit::new(site.certs(), &site.address());
    let certs = tempfile::tempdir().unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        fs::copy(site.certs().join(name), certs.path().join(name)).unwrap();
    }
    fs::set_permissions(certs.path().join("client.key"), fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = Command::new(&Binaries::for_tests().elklet);
    command.args(["doctor", "--json", "--server", NOBODY, "--workdir"]).arg(visit.workdir.path());
    command.arg("--certs").arg(certs.path()).env("SPECIFIED_AGENT_ID", "x");
    if rustix::process::geteuid().is_root() {
        // Root may read everything. The user nobody may not.
        for directory in [certs.path(), visit.workdir.path()] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        command.uid(65_534).gid(65_534);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return elklet_tests::harness::skipped("a_file_that_this_user_may_not_read", &error.to_string()),
    };
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let certificates = findings(&found).into_iter().find(|finding| finding["hop"] == "certificates").unwrap();
    let (detail, advice) = (certificates["detail"].as_str().unwrap(), certificates["advice"].as_str().unwrap());
    assert!(detail.contains("client.key: Permission denied"), "{found}");
    assert!(advice.contains("may not do this") && !advice.contains("put the"), "{found}");
}

#[test]
fn sections_of_no_plugin_and_the_ends_of_certificates_are_named() {
    let site = Site::new();
    let setup = site.eager().setting("plugin.probee", "memory_mib = 64");
    site.center().set_configs(Some(vec![setup.workdir().install("probe", crate::PLUGIN, "")]));
    let agent = setup.start();
    agent.wait_for_log("plugin probe version 1.0 started");
    let visit = |directory: &Path| {
        let mut visit = Visit::new(site.certs(), &site.address());
        visit.id = agent.id().to_owned();
        visit.with("--workdir", directory.to_str().unwrap())
    };
    let directory = agent.workdir().path();
    let expected =
        ("[plugin.probee] in the file: no plugin has this name".to_owned(), "did you mean [plugin.probe]?".to_owned());
    let found = visit(directory).finds(0);
    assert_eq!(warnings(&found, "plugins"), std::slice::from_ref(&expected), "{found}");
    let certificates = findings(&found).into_iter().find(|finding| finding["hop"] == "certificates").unwrap();
    let detail = certificates["detail"].as_str().unwrap();
    assert!(detail.contains(" days (until 2"), "{found}");
    let status =
        Command::new(&Binaries::for_tests().elklet).args(["status", "--json", "--workdir"]).arg(directory).output();
    let status: Value = serde_json::from_slice(&status.unwrap().stdout).unwrap();
    for name in ["client", "authority"] {
        let end = &status["certificates"][name];
        assert!(
            end["days_left"].as_i64().unwrap() > 0 && end["expires"].as_str().unwrap().starts_with('2'),
            "{status}"
        );
    }
    // The doctor knows the agent that has ended by the files that it kept.
    let id = agent.id().to_owned();
    let setup = agent.into_setup();
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = id;
    let found = visit.with("--workdir", setup.workdir().path().to_str().unwrap()).finds(0);
    assert_eq!(warnings(&found, "plugins"), [expected], "{found}");
}

#[test]
fn the_certificates_directory_is_found_as_the_agent_finds_it() {
    let site = Site::new();
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.arguments.drain(..2);
    visit.fails_at("certificates", "certs/ca.crt: no such file", "--certs");
    let certs: PathBuf = visit.workdir.path().join("certs");
    fs::create_dir(&certs).unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        fs::copy(site.certs().join(name), certs.join(name)).unwrap();
    }
    assert_eq!(visit.finds(0)["server"], format!("{} (private)", site.address()));
}
