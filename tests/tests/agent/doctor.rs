//! `elklet doctor`: each hop on the way to a server fails in turn, and the doctor names it and says what helps.

use elklet_tests::binaries::Binaries;
use elklet_tests::center::{Fault, Options, Pace, Status};
use elklet_tests::harness::{Site, Workdir, all_at_once};
use elklet_tests::pki::{Ca, SERVER_NAME, Set, Validity};
use elklet_tests::proxy::{self, Kind, Proxy};
use h2::Reason;
use http::StatusCode;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An address at which nobody listens: a privileged port that has no service.
const NOBODY: &str = "127.0.0.1:1";

const HOPS: [&str; 7] = ["DNS", "TCP", "proxy", "TLS", "ALPN", "gRPC", "AgentCenter"];

/// The settings of a doctor: as an agent would get them, in a directory of its own.
struct Visit {
    workdir: Workdir,
    id: String,
    arguments: Vec<String>,
}

impl Visit {
    fn new(certs: &Path, server: &str) -> Self {
        let workdir = Workdir::new();
        let id = format!("visitor-{}", workdir.path().display());
        Self { workdir, id, arguments: Vec::new() }.with("--certs", certs.to_str().unwrap()).with("--server", server)
    }

    fn with(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    fn file(self, text: &str) -> Self {
        fs::write(self.workdir.path().join("elklet.toml"), text).unwrap();
        self
    }

    fn run(&self, flags: &[&str]) -> Output {
        let place = [OsStr::new("doctor"), OsStr::new("--workdir"), self.workdir.path().as_os_str()];
        let mut command = Command::new(&Binaries::for_tests().elklet);
        command.env_clear().env("SPECIFIED_AGENT_ID", &self.id);
        command.args(place).args(flags).args(&self.arguments).output().unwrap()
    }

    /// Runs the doctor, which has to end with this code, and returns its findings as JSON.
    fn finds(&self, code: i32) -> Value {
        let output = self.run(&["--json"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!((output.status.code(), &*output.stderr), (Some(code), &b""[..]), "{said}");
        serde_json::from_str(&said).unwrap()
    }

    /// Expects it to end at one hop: it passes those before, and does not try those behind. As text it says this and
    /// what helps.
    fn fails_at(&self, hop: &str, says: &str, advises: &str) {
        let found = self.finds(1);
        assert!(found["server"].is_null(), "{hop}: {found}");
        let findings = findings(&found);
        let at = findings.iter().position(|finding| finding["verdict"] == "FAILED");
        let at = at.unwrap_or_else(|| panic!("{hop}: {found}"));
        let part = |name: &str| findings[at][name].as_str().unwrap_or_default();
        assert_eq!(part("hop"), hop, "{found}");
        assert!(part("detail").contains(says), "{hop} with {says:?}: {found}");
        assert!(part("advice").contains(advises), "{hop} with {advises:?}: {found}");
        for (i, finding) in findings.iter().enumerate().filter(|(i, _)| *i != at) {
            let verdict = &finding["verdict"];
            let is_passed = verdict == "ok" || verdict == "warning";
            assert!(verdict == "skipped" || (i < at && is_passed), "{hop}: {found}");
        }
    }
}

fn findings(found: &Value) -> Vec<&Value> {
    found["findings"].as_array().unwrap().iter().collect()
}

fn verdicts<'f>(found: &'f Value, server: &str) -> Vec<(&'f str, &'f str)> {
    let of_server = findings(found).into_iter().filter(|finding| finding["server"] == server);
    of_server.map(|finding| (finding["hop"].as_str().unwrap(), finding["verdict"].as_str().unwrap())).collect()
}

const PASSED: [(&str, &str); 7] = [
    ("DNS", "skipped"),
    ("TCP", "ok"),
    ("proxy", "skipped"),
    ("TLS", "ok"),
    ("ALPN", "ok"),
    ("gRPC", "ok"),
    ("AgentCenter", "ok"),
];

#[test]
fn all_is_well_and_nothing_is_left_behind() {
    let site = Site::new();
    let visit = Visit::new(site.certs(), &site.address());
    let found = visit.finds(0);
    let server = format!("{} (private)", site.address());
    assert_eq!(found["server"], *server);
    assert_eq!(verdicts(&found, &server), PASSED);
    assert!(findings(&found).iter().all(|finding| finding["verdict"] != "FAILED"), "{found}");
    // The doctor sent no record, and the id is free again.
    site.center().read(|state| {
        let seen = state.agent(&visit.id);
        assert_eq!((seen.streams, seen.connected, seen.heartbeat.is_some(), seen.counts.len()), (1, false, false, 0));
    });
    assert_eq!(fs::read_dir(visit.workdir.path()).unwrap().count(), 0, "it looks and touches nothing");

    let output = visit.run(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains(&format!("\n{server}\n  DNS             skipped  it is an address\n")), "{text}");
    assert!(text.ends_with(&format!("\nthe way to {server} is open\n")), "{text}");
}

#[test]
fn one_server_that_works_is_enough() {
    let site = Site::new();
    let visit = Visit::new(site.certs(), NOBODY).with("--server", &site.address());
    let found = visit.finds(0);
    assert_eq!(found["server"], format!("{} (private)", site.address()));
    assert_eq!(verdicts(&found, &format!("{NOBODY} (private)"))[1], ("TCP", "FAILED"));
    let text = String::from_utf8(visit.run(&[]).stdout).unwrap();
    let says = "  TCP             FAILED   Connection refused (os error 111)\n                           -> nothing listens there";
    assert!(text.contains(says), "{text}");
}

#[test]
fn a_running_agent_is_not_disturbed() {
    let site = Site::new();
    let agent = site.agent();
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = agent.id().to_owned();
    let directory = agent.workdir().path().to_str().unwrap();
    let found = visit.with("--workdir", directory).finds(0);
    let verdicts = verdicts(&found, &format!("{} (private)", site.address()));
    assert_eq!(verdicts[..6], PASSED[..6], "{found}");
    assert_eq!(verdicts[6], ("AgentCenter", "ok"), "{found}");
    assert!(found.to_string().contains("the running agent is connected to it by this id"), "{found}");
    let says = format!("it runs as process {}, connected to {} for ", agent.pid(), site.address());
    assert!(found.to_string().contains(&says), "{found}");
    let conflicts = site.center().read(|state| state.totals.conflicts);
    assert_eq!((conflicts, site.fresh_heartbeats(&agent).count("streams")), (0, 2), "its own, and the one just opened");
}

#[test]
fn a_wrong_file_is_named_with_line_and_key() {
    let site = Site::new();
    let visit = || Visit::new(site.certs(), &site.address());
    visit().file("[server]\nprivat = []\n").fails_at("configuration", "elklet.toml:2: ", "mend");
    visit().file("\n\nbuffer = 3\n").fails_at("configuration", "elklet.toml:3: buffer", "mend");
    visit().with("--config", "/no/such.toml").fails_at("configuration", "/no/such.toml: No such file", "mend");
    visit().with("--server", "nowhere").fails_at("configuration", "--server: \"nowhere\" is no address", "mend");
}

#[test]
fn wrong_flags_are_no_finding() {
    let workdir = Workdir::new();
    for words in [&["doctor", "--metrics"][..], &["doctor", "extra"], &["status", "--server", "a:1"]] {
        let output =
            Command::new(&Binaries::for_tests().elklet).current_dir(workdir.path()).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn a_wrong_id_is_named() {
    let site = Site::new();
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = "x".repeat(300);
    visit.fails_at("agent id", "300 bytes, the limit is 256", "SPECIFIED_AGENT_ID");
}

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
fn a_name_a_port_and_silence_are_told_apart() {
    let site = Site::new();
    // While the listener lives, the kernel accepts connections for it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    // No label may be this long, so the resolver fails without asking anybody.
    let nowhere = format!("{}:6751", "x".repeat(64));
    let cases = [
        ("DNS", (&*nowhere, "no address for this name", "/etc/resolv.conf")),
        ("TCP", (NOBODY, "Connection refused", "is the port right")),
        ("TLS", (&*silent, "no answer within 15 s", "load balancer")),
    ];
    all_at_once(&cases, |hop, (server, says, advises)| {
        Visit::new(site.certs(), server).fails_at(hop, says, advises);
    });
}

#[test]
fn a_proxy_that_is_no_way_is_named() {
    let site = Site::new();
    let login = Some(("joe".to_owned(), "secret".to_owned()));
    let wanting = Proxy::with(Kind::Http, proxy::Options { login, ..proxy::Options::default() });
    let refusing = Proxy::with(
        Kind::Http,
        proxy::Options { instead: Some(b"HTTP/1.1 403 Forbidden\r\n\r\n".to_vec()), ..proxy::Options::default() },
    );
    let through = |url: &str| Visit::new(site.certs(), &site.address()).file(&format!("[proxy]\nurl = \"{url}\"\n"));
    let advises = "no_proxy";
    through("http://127.0.0.1:1").fails_at("proxy", "proxy 127.0.0.1:1 cannot be reached: ", advises);
    through(&wanting.url("")).fails_at("proxy", &format!("proxy {} ", wanting.address()), advises);
    through(&wanting.url("joe:wrong")).fails_at("proxy", &format!("proxy {} ", wanting.address()), advises);
    through(&refusing.url("")).fails_at("proxy", "403", advises);

    let found = through(&wanting.url("joe:secret")).finds(0);
    let verdicts = verdicts(&found, &format!("{} (private)", site.address()));
    assert_eq!(verdicts[..3], [("DNS", "skipped"), ("TCP", "skipped"), ("proxy", "ok")], "{found}");
}

/// Makes the server wrong, given the right certificates, which the directory has already.
type Spoil = fn(&Set, &mut Options);

/// The hop, what the doctor says about it, and what helps.
type Expected = (&'static str, &'static str, &'static str);

#[test]
fn what_is_wrong_with_tls_is_told_apart() {
    fn serve(set: &Set, leaf: elklet_tests::pki::Leaf, options: &Options) {
        Set { server: leaf, ..set.clone() }.write(&options.certs).unwrap();
    }
    let cases: [(&str, (Spoil, Expected)); 7] = [
        (
            "unknown CA",
            (
                |set, options| serve(set, Ca::new("stranger").issue(SERVER_NAME, Validity::Current), options),
                ("TLS", "UnknownIssuer", "ca.crt is not the authority"),
            ),
        ),
        (
            "wrong name",
            (
                |set, options| serve(set, set.ca.issue("example.org", Validity::Current), options),
                ("TLS", "not valid for name \"elkeid.com\"", "is it AgentCenter that listens there?"),
            ),
        ),
        (
            "expired",
            (
                |set, options| serve(set, set.ca.issue(SERVER_NAME, Validity::Expired), options),
                ("TLS", "certificate expired at 2020-01-01T00:00:00Z", "this host's clock says 2"),
            ),
        ),
        (
            "not yet valid",
            (
                |set, options| serve(set, set.ca.issue(SERVER_NAME, Validity::Future), options),
                ("TLS", "certificate not valid yet, only from 2", "this host's clock says 2"),
            ),
        ),
        (
            "client certificate refused",
            (
                |_, options| fs::write(options.certs.join("ca.crt"), Ca::new("stranger").certificate()).unwrap(),
                ("TLS", "received fatal alert: ", "the server refuses this agent's certificate"),
            ),
        ),
        ("no ALPN", (|_, options| options.alpn.clear(), ("ALPN", "did not choose HTTP/2", "does not offer h2"))),
        (
            "other ALPN",
            (
                |_, options| options.alpn = vec![b"http/1.1".to_vec()],
                ("ALPN", "NoApplicationProtocol", "does not offer h2"),
            ),
        ),
    ];
    all_at_once(&cases, |_, (spoil, (hop, says, advises))| {
        let set = Set::new();
        let certs = tempfile::tempdir().unwrap();
        set.write(certs.path()).unwrap();
        let site = Site::with(|options| {
            set.write(&options.certs).unwrap();
            spoil(&set, options);
        });
        Visit::new(certs.path(), &site.address()).fails_at(hop, says, advises);
    });
}

#[test]
fn no_client_certificate_is_refused_by_the_server() {
    let site = Site::new();
    let certs = tempfile::tempdir().unwrap();
    fs::copy(site.certs().join("ca.crt"), certs.path().join("ca.crt")).unwrap();
    let found = Visit::new(certs.path(), &site.address()).finds(1);
    let failed: Vec<_> = findings(&found).into_iter().filter(|finding| finding["verdict"] == "FAILED").collect();
    let [here, there] = failed[..] else { panic!("{found}") };
    let (detail, advice) = (here["detail"].as_str().unwrap(), here["advice"].as_str().unwrap());
    assert!(here["hop"] == "certificates" && detail.starts_with("no client certificate: neither "), "{found}");
    assert!(advice.contains("AgentCenter refuses agents without one"), "{found}");
    assert!(there["hop"] == "TLS" && there["detail"].as_str().unwrap().contains("CertificateRequired"), "{found}");
}

/// Returns the warnings of one kind: what the doctor says, and what helps.
fn warnings(found: &Value, hop: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_hop = findings(found).into_iter().filter(|finding| finding["hop"] == hop && finding["verdict"] == "warning");
    of_hop.map(|finding| (text(&finding["detail"]), text(&finding["advice"]))).collect()
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
fn an_agent_that_is_not_connected_says_so_to_the_doctor() {
    let site = Site::new();
    let agent = site.setup().server(NOBODY).start();
    agent.wait_for_log("the next attempt is in ");
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = agent.id().to_owned();
    let found = visit.with("--workdir", agent.workdir().path().to_str().unwrap()).finds(0);
    let warned = warnings(&found, "agent");
    assert!(
        warned.len() == 1 && warned[0].0.contains("is not connected (waiting); its last error: 127.0.0.1:1: "),
        "{found}"
    );
    let verdicts = verdicts(&found, &format!("{} (private)", site.address()));
    assert_eq!(verdicts[6], ("AgentCenter", "skipped"), "its id is its own: {found}");
}

#[test]
fn what_is_no_agent_center_is_said() {
    let site = Site::new();
    let visit = Visit::new(site.certs(), &site.address());
    for (fault, says) in [
        (Fault::Status(Status::new(12, "unknown method Transfer")), "gRPC status 12 (unknown method Transfer)"),
        (Fault::HttpStatus(StatusCode::BAD_GATEWAY), "HTTP status 502"),
        (Fault::Reset(Reason::INTERNAL_ERROR), "the connection broke"),
    ] {
        site.center().on_next_stream(fault);
        visit.fails_at("gRPC", says, "TLS is answered, but not by AgentCenter");
    }
    site.center().set_pace(Pace::Stopped);
    visit.fails_at("gRPC", "no answer within 10 s", "TLS is answered, but not by AgentCenter");
}

#[test]
fn a_taken_id_is_agent_centers_refusal() {
    let site = Site::new();
    let agent = site.agent();
    let mut visit = Visit::new(site.certs(), &site.address());
    visit.id = agent.id().to_owned();
    visit.fails_at("AgentCenter", "agentID conflict", "another host has the same id");
    assert_eq!(site.fresh_heartbeats(&agent).count("streams"), 2, "its own, and the one just opened");
}

#[test]
fn a_full_agent_center_is_its_refusal() {
    let site = Site::with(|options| options.conn_limit = 0);
    let visit = Visit::new(site.certs(), &site.address());
    visit.fails_at("AgentCenter", "out of max connection limit", "connlimit");
}

#[test]
fn service_discovery_is_a_hop_as_well() {
    let site = Site::new();
    let http = site.center().http_addr().to_string();
    let ask = |host: &str| {
        let mut visit = Visit::new(site.certs(), NOBODY).with("--discovery", host);
        visit.arguments.drain(2..4);
        visit
    };
    let found = ask(&http).finds(0);
    assert_eq!(verdicts(&found, &format!("{http} (discovery)")), [("discovery", "ok")]);
    assert_eq!(verdicts(&found, &format!("{} (by discovery)", site.address())), PASSED);
    ask(NOBODY).fails_at("discovery", "Connection refused", "is the address right");
    site.center().set_registry("hids_svr_grpc", Vec::new());
    ask(&http).fails_at("discovery", "it names no AgentCenter", "hids_svr_grpc");
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
