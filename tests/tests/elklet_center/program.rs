//! The program with real agents, and what it keeps.

use crate::support::client::{Client, TRANSFER};
use crate::support::http;
use crate::{batch, record};
use elklet_tests::binaries::{Binaries, center_for_tests};
use elklet_tests::harness::wait_until;
use elklet_tests::pki::Set;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    /// Where agents fetch files, unless that is off.
    pub(crate) downloads: Option<SocketAddr>,
    /// What it said before it listened.
    pub(crate) said: String,
}

impl Program {
    /// Starts it on any free ports, with certificates and data in `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_at(dir, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts it where agents are told to connect.
    pub(crate) fn start_at(dir: &Path, listen: SocketAddr) -> Self {
        // Nobody reads on, so that it must not wait for a reader.
        Self::start_by(&["env"], dir, listen)
    }

    /// Starts it with a command that becomes the program whose words it gets.
    pub(crate) fn start_by(words: &[&str], dir: &Path, listen: SocketAddr) -> Self {
        Self::start_heard(words, dir, listen).0
    }

    /// Also returns what it says from then on, which has to be read.
    fn start_heard(words: &[&str], dir: &Path, listen: SocketAddr) -> (Self, BufReader<ChildStderr>) {
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .arg(center_for_tests())
            .args(["serve", "--quiet", "--listen", &listen.to_string(), "--config"])
            .arg(dir.join("center.toml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut said, mut line) = (String::new(), String::new());
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        while stderr.read_line(&mut line).unwrap() > 0 && !line.starts_with("listening ") {
            said.push_str(&std::mem::take(&mut line));
        }
        let at = |port: &str| line.split_whitespace().find_map(|word| word.strip_prefix(port)?.parse().ok());
        let (Some(grpc), Some(http), downloads) = (at("grpc="), at("http="), at("downloads=")) else {
            panic!("{said}{line}")
        };
        http::know(http, &dir.join("data"));
        (Self { child, grpc, http, downloads, said }, stderr)
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        http::get(self.http, path).json()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

pub(crate) fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    Set::new().write(&dir.path().join("certs")).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let settings = format!("http = \"127.0.0.1:0\"\ncerts = {:?}\ndata = {:?}\n", at("certs"), at("data"));
    std::fs::write(dir.path().join("center.toml"), settings).unwrap();
    dir
}

#[test]
fn certificates_are_read_again_at_a_sighup_and_streams_stay() {
    let dir = site();
    let certs = dir.path().join("certs");
    let (old, new) = (Set::new(), Set::new());
    old.write(&certs).unwrap();
    // Where agents have theirs.
    let hosts = |set: &Set, name: &str| {
        let dir = dir.path().join(name);
        set.write(&dir).unwrap();
        dir
    };
    let (of_old, of_new) = (hosts(&old, "old"), hosts(&new, "new"));
    let (mut program, mut stderr) = Program::start_heard(&["env"], dir.path(), SocketAddr::from(([127, 0, 0, 1], 0)));
    let center = rustix::process::Pid::from_child(&program.child);
    let hang_up = || rustix::process::kill_process(center, rustix::process::Signal::HUP).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let connects = |certs: &Path| runtime.block_on(Client::connect(program.grpc, certs)).is_ok();
    let mut before = runtime.block_on(Client::connect(program.grpc, &of_old)).unwrap();
    assert!(!connects(&of_new));

    // The key is not yet that of the certificate. Then the pair is whole, but the authority is none.
    let said = |said: &mut BufReader<ChildStderr>, expected: &str| {
        let mut line = String::new();
        while !line.contains(expected) {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ends without {expected:?}");
            assert!(!line.contains("the certificates ") || line.contains(expected), "{line:?}, and not {expected:?}");
        }
    };
    std::fs::copy(of_new.join("server.crt"), certs.join("server.crt")).unwrap();
    hang_up();
    said(&mut stderr, "the certificates stay as they are: server.crt and server.key: ");
    std::fs::copy(of_new.join("server.key"), certs.join("server.key")).unwrap();
    std::fs::write(certs.join("ca.crt"), "").unwrap();
    hang_up();
    said(&mut stderr, "/certs/ca.crt: there is no certificate in it");
    assert!(connects(&of_old) && !connects(&of_new), "nothing has changed");

    // While a fleet changes, both authorities count, and the server has the new certificate.
    std::fs::write(certs.join("ca.crt"), [old.ca.certificate(), new.ca.certificate()].concat()).unwrap();
    hang_up();
    said(&mut stderr, "the certificates were read again");
    assert!(connects(&of_new) && !connects(&of_old), "whoever knows the old authority alone knows no such server");
    std::fs::write(of_old.join("ca.crt"), new.ca.certificate()).unwrap();
    assert!(connects(&of_old));

    // In the end only the new one does.
    std::fs::write(certs.join("ca.crt"), new.ca.certificate()).unwrap();
    hang_up();
    said(&mut stderr, "the certificates were read again");
    assert!(connects(&of_new) && !connects(&of_old));
    runtime.block_on(before.ping()).expect("this connection has been there all the time");
    assert_eq!(program.child.try_wait().unwrap(), None);
}

#[test]
fn what_was_confirmed_is_found_after_kill_and_restart() {
    let dir = site();
    let mut program = Program::start(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let connected = runtime.block_on(async {
        let mut client = Client::connect(program.grpc, &dir.path().join("certs")).await.unwrap();
        let mut call = client.call(TRANSFER, Some("snappy")).await;
        let exec = |exe: &str| record(59, &[("exe", exe)]);
        call.send(&batch("a", vec![exec("/usr/bin/curl"), exec("/bin/true"), record(60, &[])])).await;
        (client, call)
    });
    // They are counted when they are stored, and before the agent hears of it.
    wait_until("stored records", || program.get("/api/v1/hosts/a")["records"] == 3);
    program.child.kill().unwrap();
    drop((program, connected));
    let program = Program::start(dir.path());
    let found = program.get("/api/v1/records?host=gw1&type=59&field.exe=%2Fusr%2Fbin%2Fcurl");
    assert_eq!(found["records"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found["records"][0]["fields"], json!({"exe": "/usr/bin/curl"}));
    assert_eq!(program.get("/api/v1/records?host=a")["records"].as_array().map(Vec::len), Some(3));
    assert_eq!(http::get(program.http, "/api/v1/records?hots=a").status, 400);
}

#[test]
fn a_real_agent_is_served_configured_and_asked() {
    let dir = site();
    let mut program = Program::start(dir.path());
    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let mut agent = Command::new(&Binaries::for_tests().elklet)
        .args(["run", "--server", &program.grpc.to_string(), "--certs"])
        .arg(dir.path().join("certs"))
        .arg("--workdir")
        .arg(&work)
        .env("SPECIFIED_AGENT_ID", "gateway 1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("host with a heartbeat", || program.get("/api/v1/hosts")["hosts"][0]["hostname"].is_string());
    let host = program.get("/api/v1/hosts/gateway%201");
    assert_eq!((&host["id"], &host["connected"]), (&json!("gateway 1"), &json!(true)), "{host}");
    assert!(host["agent_info"]["cpu"].is_number() && host["history"][0]["connected"] == true, "{host}");
    wait_until("stored heartbeat", || {
        program.get("/api/v1/records?type=1000")["records"][0]["agent_id"] == "gateway 1"
    });

    let put = |body: &Value| http::request(program.http, "PUT", "/api/v1/plugins", &[], body.to_string());
    let plugin = json!({ "name": "nowhere", "version": "1", "sha256": "00", "download_url": ["http://127.0.0.1:1/x"] });
    assert_eq!(put(&json!({ "host": "gateway 1", "plugins": [plugin] })).status, 200);
    assert_eq!(put(&json!({ "host": "a", "group": "b", "plugins": [] })).status, 400);
    wait_until("configuration", || program.get("/api/v1/hosts/gateway%201")["commands"] == 1);

    let task = json!({ "agent_id": "gateway 1", "task": { "data_type": 7, "name": "nobody", "data": "{}" } });
    let sent = http::post(program.http, "/api/v1/tasks", &task.to_string());
    assert_eq!(sent.status, 201, "{}", sent.body);
    let token = sent.json()["token"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/tasks?token={token}");
    wait_until("answer", || program.get(&path)["tasks"][0]["answers"][0]["status"] == "failed");
    let elsewhere = http::request(program.http, "POST", "/api/v1/tasks", &[("origin", "http://evil.example")], "{}");
    assert_eq!(elsewhere.status, 403);

    let killed = Command::new("kill").arg(program.child.id().to_string()).status().unwrap();
    assert!(killed.success() && program.child.wait().unwrap().success());
    drop(program);
    let again = Program::start(dir.path());
    assert_eq!(again.get("/api/v1/plugins")["hosts"]["gateway 1"][0]["name"], "nowhere", "it outlives the center");
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
fn what_is_wrong_with_the_settings_is_seen_without_starting_a_center() {
    let dir = site();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let checked = |file: &str| {
        let mut check = Command::new(center_for_tests());
        let output = check.current_dir(dir.path()).args(["check", "--config", file]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let file = at("center.toml");
    assert_eq!(checked(&file), (Some(0), String::new()));
    let good = std::fs::read_to_string(&file).unwrap();
    let without = |key: &str| {
        good.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect::<String>()
    };
    std::fs::write(at("file"), "").unwrap();
    let output = |path: &str| format!("{good}[[forward]]\nname = \"disk\"\nkind = \"file\"\npath = {path:?}\n");
    let tls = "[[forward]]\nname = \"siem\"\nkind = \"syslog\"\naddress = \"localhost:1\"\nca = \"/nowhere.pem\"\n";
    for (text, told) in [
        (without("certs") + "certs = \"/nowhere\"\n", "certs: /nowhere/server.crt: No such file"),
        (without("certs") + "certs = \"\"\n", "certs is empty"),
        (without("data") + "data = \"\"\n", "data is empty"),
        (without("data") + &format!("data = {:?}\n", at("file")), "is no directory"),
        (format!("{good}plugins = \"/nowhere.json\"\n"), "/nowhere.json"),
        (format!("{good}plugins = \"/dev/zero\"\n"), "/dev/zero: it is no regular file"),
        (output("/nowhere/out.ndjson"), "forward disk: /nowhere/out.ndjson: there is no such directory"),
        (output("/tmp"), "forward disk: /tmp: it is no regular file"),
        (format!("{good}{tls}"), "forward siem: /nowhere.pem"),
        (format!("{good}{}", tls.replace("/nowhere.pem", "/dev/zero")), "siem: /dev/zero: it is no regular file"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let (code, said) = checked(&file);
        assert!(code == Some(2) && said.contains(told), "{text}: {code:?} {said}");
        if text.contains("data = \"\"") {
            let serve =
                Command::new(center_for_tests()).current_dir(dir.path()).args(["serve", "--config", &file]).output();
            assert_eq!(serve.unwrap().status.code(), Some(2), "and nothing is started");
        }
    }
    std::fs::write(&file, output(&at("data/out.ndjson"))).unwrap();
    assert_eq!(checked(&file), (Some(0), String::new()), "the center makes this directory");
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["center.toml", "certs", "file"], "nothing was made");

    // These have no end.
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    for endless in [&at("fifo"), "/dev/zero", "/dev/tty"] {
        let (code, said) = checked(endless);
        assert!(code == Some(2) && said.contains(endless), "{endless}: {code:?} {said}");
    }
}

#[test]
fn wrong_words_and_settings_are_told() {
    let dir = site();
    let run = |arguments: &[&str]| Command::new(center_for_tests()).args(arguments).output().unwrap();
    let file = dir.path().join("wrong.toml");
    std::fs::write(&file, "lisen = \"x\"\n").unwrap();
    let file = file.display().to_string();
    for (arguments, message) in [
        (&[][..], "a command is missing"),
        (&["dance"], "there is no command \"dance\""),
        (&["serve", "--config", &file], "unknown field `lisen`"),
        (&["serve", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (&["serve", "--http", "0.0.0.0:1"], "http 0.0.0.0:1 is not a loopback address"),
        (&["serve", "--http", "0.0.0.0:1", "--allow-non-loopback"], "takes an access key"),
        (&["serve", "--frobnicate"], "--frobnicate"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(message), "{said}");
    }
    for arguments in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        assert!(run(arguments).status.success(), "{arguments:?}");
    }
}
