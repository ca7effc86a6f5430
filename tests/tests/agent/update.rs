//! The agent's own update: the new version takes over in the same process and stays if it holds a stream. If it does
//! not, the previous version comes back.

use crate::PLUGIN;
use crate::signatures::{key_of, public, signed_agent};
use elklet_proto::grpc::Config;
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Agent, Setup, Signal, Site, config, types, wait_until};
use ring::digest::{SHA256, digest};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice;
use std::sync::{Arc, Mutex};
use std::thread;

/// The agent under a later version number.
const NEXT: &str = env!("CARGO_BIN_EXE_elklet-next");
const NEXT_VERSION: &str = "9.9.9";

/// Serves files over HTTP, and counts how often each was asked for.
struct Web {
    address: String,
    files: Arc<Files>,
}

/// The contents by path, and how often each was requested.
type Files = Mutex<BTreeMap<String, (Vec<u8>, usize)>>;

impl Web {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self { address: listener.local_addr().unwrap().to_string(), files: Arc::default() };
        let files = Arc::clone(&web.files);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let files = Arc::clone(&files);
                thread::spawn(move || serve(client, &files));
            }
        });
        web
    }

    /// Returns a server's entry for a version that can be fetched here.
    fn offer(&self, version: &str, bytes: Vec<u8>) -> Config {
        let sha256: String = digest(&SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("/{}", &sha256[..16]);
        self.files.lock().unwrap().insert(name.clone(), (bytes, 0));
        let urls = vec![format!("http://{}{name}", self.address)];
        Config { r#type: "agent".into(), download_urls: urls, ..config("elkeid-agent", version, &sha256, "") }
    }

    fn asked_for(&self, offer: &Config) -> usize {
        let name = offer.download_urls[0].rsplit_once('/').unwrap().1;
        self.files.lock().unwrap()[&format!("/{name}")].1
    }
}

fn serve(mut client: TcpStream, files: &Files) {
    let mut lines = BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok);
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let _ = lines.find(String::is_empty);
    let bytes = files.lock().unwrap().get_mut(&path).map(|(bytes, count)| {
        *count += 1;
        bytes.clone()
    });
    // The client may be gone.
    _ = match bytes {
        Some(bytes) => {
            write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len())
                .and_then(|()| client.write_all(&bytes))
        }
        None => write!(client, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    };
}

/// Returns the path of an agent's program.
fn program(workdir: &Path) -> PathBuf {
    workdir.join("bin/elklet")
}

/// Prepares an eager agent with its own copy of the program, which can be replaced.
fn own_program(site: &Site, from: &Path) -> Setup {
    let setup = site.eager();
    let place = program(setup.workdir().path());
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    // Another process copies it, so that no other test's process has it open for writing.
    assert!(Command::new("cp").arg(from).arg(&place).status().unwrap().success());
    fs::set_permissions(&place, fs::Permissions::from_mode(0o750)).unwrap();
    setup.program(&place)
}

fn elklet(site: &Site) -> Setup {
    own_program(site, &Binaries::for_tests().elklet)
}

fn script(text: &str) -> Vec<u8> {
    format!("#!/bin/sh\n{text}\n").into_bytes()
}

/// A new version that says what it should and then does something else.
fn version_that(does: &str) -> Vec<u8> {
    script(&format!("[ \"$1\" = --version ] && exec {NEXT} --version\n{does}"))
}

fn version(site: &Site, agent: &Agent) -> String {
    site.records(agent, |records| records.batches.last().map(|batch| batch.data.version.clone())).unwrap_or_default()
}

fn wait_for_version(site: &Site, agent: &Agent, wanted: &str) {
    wait_until(&format!("version {wanted}"), || version(site, agent) == wanted);
}

fn own_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Returns the texts of `state_detail` on a fresh stream.
fn details(site: &Site, agent: &Agent) -> Vec<String> {
    serde_json::from_str(&site.fresh_heartbeats(agent).agent["state_detail"]).unwrap()
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

#[test]
fn a_new_program_takes_over_and_stays() {
    let (site, web) = (Site::new(), Web::new());
    let setup = elklet(&site).setting("update", "hold_s = 1");
    let plugin = setup.workdir().install("paced", PLUGIN, "run=paced rate=500 last=300 endless");
    site.center().set_configs(Some(vec![plugin.clone()]));
    let mut agent = setup.start();
    let workdir = agent.workdir().path().to_owned();
    site.wait_records("records", &agent, |records| records.run("paced").received > 100);
    let pid = agent.pid();
    let offer = web.offer(NEXT_VERSION, fs::read(NEXT).unwrap());
    site.center().set_configs(Some(vec![plugin.clone(), offer.clone()]));
    site.configure(&agent, &[plugin, offer.clone()]);
    wait_for_version(&site, &agent, NEXT_VERSION);
    agent.wait_for_log("version 9.9.9 has held a stream: it stays");
    assert!(agent.is_running() && agent.pid() == pid, "it is the same process");
    assert!(same(&program(&workdir), Path::new(NEXT)));
    assert!(same(&workdir.join("update/previous"), &Binaries::for_tests().elklet), "the previous one is kept");
    assert_eq!(fs::metadata(program(&workdir)).unwrap().permissions().mode() & 0o777, 0o750);
    assert!(!workdir.join("update/trial.json").exists() && !workdir.join("tmp").exists());
    // The agent ended in order, so everything that the plugin sent is there, up to its last record.
    site.wait_records("last word", &agent, |records| records.of_type(types::GOODBYE).count() == 1);
    site.records(&agent, |records| {
        let sent: u64 = records.values(types::GOODBYE, "sent")[0].parse().unwrap();
        let series = records.run("paced");
        assert!(series.received >= sent && series.missing == 0, "{sent} were sent: {series:?}");
    });
    // The version that runs already is no update.
    let fetched = web.asked_for(&offer);
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!((&*heartbeats.agent["state"], fetched), ("running", 1), "{heartbeats:?}");
    let streams = site.center().read(|state| state.agent(agent.id()).streams);
    let agent = agent.into_setup().start();
    site.wait("heartbeat of the next life", |state| {
        let known = state.agent(agent.id());
        known.streams > streams && known.heartbeat.is_some()
    });
    let heartbeat = site.center().read(|state| state.agent(agent.id()).heartbeat).unwrap();
    assert_eq!(heartbeat.host.version, NEXT_VERSION);
    assert_eq!(web.asked_for(&offer), 1);
}

#[test]
fn a_version_that_holds_no_stream_is_taken_back_and_not_tried_again() {
    let (mut site, web) = (Site::new(), Web::new());
    let setup = elklet(&site).setting("update", "hold_s = 30").setting("update", "trial_s = 3");
    let workdir = setup.workdir().path().to_owned();
    let agent = setup.start();
    site.wait_connected(&agent);
    let pid = agent.pid();
    let offer = web.offer(NEXT_VERSION, fs::read(NEXT).unwrap());
    site.center().set_configs(Some(vec![offer.clone()]));
    site.configure(&agent, slice::from_ref(&offer));
    agent.wait_for_log("elklet 9.9.9 starts as");
    let options = site.stop();
    agent.wait_for_log("version 9.9.9 is taken back, 0.1.0 comes again: it held no stream within 3 s");
    site.start(options);
    agent.wait_for_log("version 9.9.9 has failed here, and is not tried again until the server names another");
    site.wait_connected(&agent);
    assert_eq!((agent.pid(), &*version(&site, &agent)), (pid, own_version()));
    assert!(same(&program(&workdir), &Binaries::for_tests().elklet));
    let failed_log = fs::read_to_string(workdir.join("update/failed.log")).unwrap();
    assert!(failed_log.contains("elklet 9.9.9 starts as"), "what it logged is kept");
    assert!(!workdir.join("update/trial.json").exists());
    // The server sees it as well.
    assert!(details(&site, &agent).iter().any(|detail| detail.contains("has failed here")));
    wait_until("report", || {
        let told = site.records(&agent, |records| records.values(1010, "msg"));
        told.iter().any(|msg| msg.contains("version 9.9.9 has failed here: it held no stream within 3 s"))
    });
    assert_eq!(web.asked_for(&offer), 1);
    // Another file of that version counts as another attempt.
    let good = web.offer(NEXT_VERSION, version_that(&format!("exec {NEXT} \"$@\"")));
    site.center().set_configs(Some(vec![good.clone()]));
    site.configure(&agent, &[good]);
    wait_for_version(&site, &agent, NEXT_VERSION);
}

#[test]
fn a_version_that_cannot_be_taken_back_yet_is_not_forgotten() {
    let (mut site, web) = (Site::new(), Web::new());
    let setup = elklet(&site).setting("update", "hold_s = 30").setting("update", "trial_s = 3");
    let workdir = setup.workdir().path().to_owned();
    let agent = setup.start();
    site.wait_connected(&agent);
    let offer = web.offer(NEXT_VERSION, fs::read(NEXT).unwrap());
    site.configure(&agent, slice::from_ref(&offer));
    agent.wait_for_log("elklet 9.9.9 starts as");
    let options = site.stop();
    // A directory in the place of the new file stands for a disk without room.
    let full = workdir.join("bin/elklet.new");
    fs::create_dir_all(full.join("so that it stays")).unwrap();
    wait_until("failure", || agent.stderr().contains("it is tried again"));
    site.start(options);
    site.wait_connected(&agent);
    wait_for_version(&site, &agent, own_version());
    assert!(workdir.join("update/trial.json").exists() && same(&program(&workdir), Path::new(NEXT)));
    // The agent tries again at every heartbeat.
    fs::remove_dir_all(&full).unwrap();
    wait_until("return of the previous version", || {
        _ = site.fresh_heartbeats(&agent);
        same(&program(&workdir), &Binaries::for_tests().elklet)
    });
    agent.wait_for_log("version 9.9.9 is taken back at last");
    wait_until("end of the trial", || !workdir.join("update/trial.json").exists());
    assert!(fs::read_to_string(workdir.join("update/failed.json")).unwrap().contains("it held no stream within 3 s"));
}

#[test]
fn a_version_that_crashes_again_and_again_is_taken_back() {
    let (site, web) = (Site::new(), Web::new());
    let setup = elklet(&site).setting("update", "hold_s = 3600").setting("update", "trial_s = 3600");
    let workdir = setup.workdir().path().to_owned();
    let mut agent = setup.start();
    site.wait_connected(&agent);
    let offer = web.offer(NEXT_VERSION, fs::read(NEXT).unwrap());
    site.configure(&agent, &[offer]);
    // The test plays the service manager, and crashes the agent.
    for starts in 1..=5 {
        let counted = format!("\"starts\":{starts}");
        wait_until("start", || {
            fs::read_to_string(workdir.join("update/trial.json")).is_ok_and(|text| text.contains(&counted))
        });
        agent = agent.kill().start();
    }
    let text = "version 9.9.9 is taken back, 0.1.0 comes again: it started 5 times without holding a stream";
    wait_until("previous version", || agent.stderr().contains(text));
    agent.wait_for_log("version 9.9.9 has failed here: it started 5 times without holding a stream");
    site.wait_connected(&agent);
    wait_for_version(&site, &agent, own_version());
    assert!(agent.is_running() && same(&program(&workdir), &Binaries::for_tests().elklet));
}

#[test]
fn a_version_that_cannot_run_here_is_taken_back_at_once() {
    let (site, web) = (Site::new(), Web::new());
    let setup = elklet(&site);
    let workdir = setup.workdir().path().to_owned();
    fs::write(workdir.join("bad.toml"), "[later]\n").unwrap();
    // The new version does not understand its settings.
    let does = format!("exec {NEXT} run --workdir {0} --config {0}/bad.toml", workdir.display());
    let mut agent = setup.start();
    site.wait_connected(&agent);
    site.configure(&agent, &[web.offer(NEXT_VERSION, version_that(&does))]);
    wait_until("return", || agent.stderr().contains("version 9.9.9 is taken back, 0.1.0 comes again: it cannot run: "));
    assert!(agent.stderr().contains("bad.toml:1: later: unknown key"), "{}", agent.stderr());
    // This new version changed its arguments, and the previous one has the changed ones now as well. The service
    // manager knows the right ones.
    assert_eq!(agent.wait_for_exit().code(), Some(2));
    let agent = agent.kill().start();
    agent.wait_for_log("version 9.9.9 has failed here: it cannot run: ");
    wait_for_version(&site, &agent, own_version());
    assert!(same(&program(&workdir), &Binaries::for_tests().elklet));
}

#[test]
fn a_program_that_is_gone_when_it_is_to_be_executed_is_replaced_by_the_previous_one() {
    let (site, web) = (Site::new(), Web::new());
    let setup = elklet(&site);
    let workdir = setup.workdir().path().to_owned();
    // The plugin takes its time to end, and so does the agent.
    let stubborn = setup.workdir().install("stubborn", PLUGIN, "hello deaf");
    let mut agent = setup.start();
    site.wait_connected(&agent);
    site.configure(&agent, slice::from_ref(&stubborn));
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    site.configure(&agent, &[stubborn, web.offer(NEXT_VERSION, fs::read(NEXT).unwrap())]);
    agent.wait_for_log("is another version now: the agent ends in order and becomes it");
    fs::write(program(&workdir), "").unwrap_or_default();
    fs::remove_file(program(&workdir)).unwrap();
    let line = agent.wait_for_log("version 9.9.9 has failed here: it cannot be executed: ");
    assert!(line.contains("No such file"), "{line}");
    assert!(agent.is_running() && same(&program(&workdir), &Binaries::for_tests().elklet));
    site.wait_connected(&agent);
}

#[test]
fn what_is_not_the_version_is_never_put_in_place() {
    let (site, web) = (Site::new(), Web::new());
    let agent = elklet(&site).start();
    let workdir = agent.workdir().path().to_owned();
    site.wait_connected(&agent);
    let mut wrong_hash = web.offer(NEXT_VERSION, script("exit 0"));
    wrong_hash.sha256 = "0".repeat(64);
    let mut nowhere = web.offer(NEXT_VERSION, script("exit 1"));
    nowhere.download_urls = vec![format!("http://{}/nowhere", web.address)];
    let mut no_address = nowhere.clone();
    no_address.download_urls.clear();
    for (offer, says) in [
        (web.offer(NEXT_VERSION, script("echo elklet 9.9.8")), "it says that it is \"elklet 9.9.8\", expected"),
        (web.offer(NEXT_VERSION, b"\x7fELF, but not quite".to_vec()), "it cannot be executed: "),
        (web.offer(NEXT_VERSION, b"neither fish nor fowl".to_vec()), "neither a program nor a deb or rpm package"),
        (web.offer(NEXT_VERSION, b"!<arch>\n".to_vec()), "dpkg"),
        (wrong_hash, "sha-256"),
        (nowhere, "404"),
        (no_address, "no address to download it from"),
    ] {
        site.configure(&agent, &[offer]);
        wait_until(says, || {
            let lines = agent.log_lines("the update to version 9.9.9 failed: ");
            lines.iter().any(|line| line.to_lowercase().contains(says))
        });
    }
    assert!(same(&program(&workdir), &Binaries::for_tests().elklet));
    site.center().read(|state| assert_eq!(state.agent(agent.id()).streams, 1, "the agent has not ended"));
    // The agent does not fetch a file again that turned out to be another version.
    let liar = web.offer(NEXT_VERSION, script("echo elklet 1.0.0"));
    site.configure(&agent, slice::from_ref(&liar));
    agent.wait_for_log("it says that it is \"elklet 1.0.0\"");
    site.configure(&agent, slice::from_ref(&liar));
    agent.wait_for_log("version 9.9.9 has failed here, and is not tried again");
    assert_eq!(web.asked_for(&liar), 1);
    // The agent tries whatever the server names next. Its own version does not count.
    site.configure(&agent, &[web.offer(NEXT_VERSION, fs::read(NEXT).unwrap())]);
    wait_for_version(&site, &agent, NEXT_VERSION);
}

/// Makes a directory with a package manager that finds this file in every package and runs the script. It goes to the
/// front of PATH.
fn package_manager(dir: &Path, name: &str, file: &Path, does: &str) -> String {
    let path = dir.join(name);
    let lists = format!(
        "case \"$1\" in\n--contents) echo \"-rwxr-xr-x root/root 2494952 2026-01-01 00:00 .{0}\"; exit;;\n\
         -qpl) echo {0}; exit;;\nesac\n{does}",
        file.display()
    );
    fs::write(&path, script(&lists)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

#[test]
fn packages_are_installed_by_the_hosts_package_manager() {
    for (manager, options, head) in [("dpkg", "-i", &b"!<arch>\n"[..]), ("rpm", "-Uvh", b"\xed\xab\xee\xdb....")] {
        let (site, web) = (Site::new(), Web::new());
        let dir = tempfile::tempdir().unwrap();
        let setup = elklet(&site).setting("update", "hold_s = 1");
        let workdir = setup.workdir().path().to_owned();
        let does = format!(
            "echo \"called with $1\"; echo \"a warning\" >&2; cp {NEXT} {0}.dpkg-new && mv {0}.dpkg-new {0}",
            program(&workdir).display()
        );
        let path = package_manager(dir.path(), manager, &program(&workdir), &does);
        let agent = setup.variable("PATH", &path).start();
        site.wait_connected(&agent);
        site.configure(&agent, &[web.offer(NEXT_VERSION, head.to_vec())]);
        wait_for_version(&site, &agent, NEXT_VERSION);
        agent.wait_for_log(&format!("{manager}: called with {options}"));
        agent.wait_for_log(&format!("{manager}: a warning"));
        agent.wait_for_log("version 9.9.9 has held a stream: it stays");
        assert!(same(&workdir.join("update/previous"), &Binaries::for_tests().elklet));
    }
}

/// The way back, by the console that came the other way. The host allows it, as the version is an earlier one.
#[test]
fn elkeids_own_agent_takes_over_from_its_package_and_is_not_tried_first() {
    let (site, web) = (Site::new(), Web::new());
    let dir = tempfile::tempdir().unwrap();
    let setup = elklet(&site).setting("update", "allow_downgrade = true");
    let workdir = setup.workdir().path().to_owned();
    let (go, ran) = (dir.path().join("go"), dir.path().join("ran"));
    let text = format!("#!/bin/sh\ntouch {}\n# \u{1}", ran.display());
    let marks = [text.as_bytes(), b"\xff Go buildinf:\x08\x02 github.com/bytedance/Elkeid/agent\n"].concat();
    fs::write(&go, marks).unwrap();
    fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
    let does = format!("cp -p {0} {1}.dpkg-new && mv {1}.dpkg-new {1}", go.display(), program(&workdir).display());
    let path = package_manager(dir.path(), "dpkg", &program(&workdir), &does);
    site.center().set_configs(Some(vec![setup.workdir().install(
        "load",
        PLUGIN,
        "hello run=7 size=100 rate=500 endless",
    )]));
    let mut agent = setup.variable("PATH", &path).start();
    site.wait_records("records", &agent, |records| records.run("7").received > 500);
    let probe = agent.install("load", PLUGIN, "hello run=7 size=100 rate=500 endless");
    site.configure(&agent, &[probe, web.offer("0.0.1", b"!<arch>\n....".to_vec())]);
    agent.wait_for_log("Elkeid's own agent is in the place of this one");
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    assert!(same(&program(&workdir), &go) && same(&workdir.join("update/previous"), &Binaries::for_tests().elklet));
    assert!(!ran.exists(), "it is the service manager who starts it");
    assert!(!workdir.join("update/trial.json").exists() && !workdir.join("update/failed.json").exists());
    site.records(&agent, |records| {
        let sent: u64 = records.of_type(types::GOODBYE).next().unwrap()["sent"].parse().unwrap();
        assert!(records.run("7").is_whole(sent), "it has ended in order");
    });
}

#[test]
fn a_package_manager_that_fails_leaves_the_agent_as_it_is() {
    let (site, web) = (Site::new(), Web::new());
    let dir = tempfile::tempdir().unwrap();
    let setup = elklet(&site);
    let workdir = setup.workdir().path().to_owned();
    // The installation gets half way.
    let does = format!("echo \"no space left\" >&2; rm {}; exit 3", program(&workdir).display());
    let path = package_manager(dir.path(), "dpkg", &program(&workdir), &does);
    let agent = setup.variable("PATH", &path).start();
    site.wait_connected(&agent);
    let offer = web.offer(NEXT_VERSION, b"!<arch>\n....".to_vec());
    site.configure(&agent, slice::from_ref(&offer));
    agent.wait_for_log("dpkg: no space left");
    agent.wait_for_log("the update to version 9.9.9 failed: dpkg failed: exit status: 3");
    assert!(same(&program(&workdir), &Binaries::for_tests().elklet), "what it has spoilt is put back");
    assert!(!workdir.join("update/trial.json").exists());
    // The cause may have been temporary.
    site.configure(&agent, slice::from_ref(&offer));
    wait_until("second try", || agent.log_lines("dpkg failed").len() == 2);
    assert_eq!(web.asked_for(&offer), 2);
    // A package that installs something else is at fault itself.
    package_manager(dir.path(), "dpkg", &program(&workdir), "echo done");
    site.configure(&agent, slice::from_ref(&offer));
    agent.wait_for_log("failed: it says that it is \"elklet 0.1.0\", expected \"elklet 9.9.9\"");
    site.configure(&agent, &[offer]);
    agent.wait_for_log("version 9.9.9 has failed here, and is not tried again");
    site.center().read(|state| assert_eq!(state.agent(agent.id()).streams, 1));
}

/// The entry of Elkeid's own agent, which a server may name for the rest of its fleet.
#[test]
fn a_package_of_another_agent_is_not_installed() {
    let (site, web) = (Site::new(), Web::new());
    let dir = tempfile::tempdir().unwrap();
    let path = package_manager(dir.path(), "dpkg", Path::new("/etc/elkeid/elkeid-agent"), "echo installed");
    let agent = elklet(&site).variable("PATH", &path).start();
    site.wait_connected(&agent);
    let offer = web.offer(NEXT_VERSION, b"!<arch>\n....".to_vec());
    site.configure(&agent, slice::from_ref(&offer));
    agent.wait_for_log("the update to version 9.9.9 failed: the package does not bring ");
    site.configure(&agent, &[offer]);
    agent.wait_for_log("version 9.9.9 has failed here, and is not tried again");
    assert_eq!(agent.log_lines("installed").len(), 0);
}

#[test]
fn no_earlier_version_unless_the_host_allows_it() {
    let (site, web) = (Site::new(), Web::new());
    let earlier = fs::read(&Binaries::for_tests().elklet).unwrap();
    let agent = own_program(&site, Path::new(NEXT)).start();
    site.wait_connected(&agent);
    let offer = web.offer(own_version(), earlier);
    site.configure(&agent, slice::from_ref(&offer));
    agent.wait_for_log("version 0.1.0 is not later than 9.9.9, and update.allow_downgrade is off");
    let odd = Config { version: "nightly".into(), ..offer.clone() };
    site.configure(&agent, &[odd]);
    agent.wait_for_log("version nightly cannot be compared with 9.9.9");
    assert_eq!(web.asked_for(&offer), 0);
    let agent = agent.into_setup().setting("update", "allow_downgrade = true").start();
    site.wait_connected(&agent);
    site.configure(&agent, &[offer]);
    wait_for_version(&site, &agent, own_version());
}

#[test]
fn a_host_may_refuse_updates_or_want_them_signed() {
    let (site, web) = (Site::new(), Web::new());
    let offer = web.offer(NEXT_VERSION, fs::read(NEXT).unwrap());
    let agent = elklet(&site).setting("update", "enabled = false").start();
    site.wait_connected(&agent);
    site.configure(&agent, slice::from_ref(&offer));
    agent.wait_for_log("the server names version 9.9.9: update.enabled is off");
    assert_eq!(site.fresh_heartbeats(&agent).agent["state"], "running", "it is as the host wants it");

    // The public key of RFC 8032's first test.
    let key = "public_key = \"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\"";
    let agent = elklet(&site).setting("plugins", key).start();
    site.wait_connected(&agent);
    site.configure(&agent, slice::from_ref(&offer));
    agent.wait_for_log("version 9.9.9: it is not signed, and plugins.public_key demands it");
    let forged = Config { signature: format!("{}:{}==:1", offer.sha256, "A".repeat(86)), ..offer.clone() };
    site.configure(&agent, &[forged]);
    agent.wait_for_log("version 9.9.9: its signature is not one of plugins.public_key");
    assert_eq!(web.asked_for(&offer), 0);

    let owner = key_of(7);
    let key = format!("public_key = [{}, {}]", public(&key_of(8)), public(&owner));
    let setup = elklet(&site).setting("plugins", &format!("{key}\nsigned_after = \"2026-02-01\""));
    let agent = setup.start();
    site.wait_connected(&agent);
    site.configure(&agent, &[signed_agent(offer.clone(), &owner)]);
    agent.wait_for_log("version 9.9.9: it was signed at 2026-01-31T12:00:00Z, and plugins.signed_after is 2026-02-01");
    assert_eq!(web.asked_for(&offer), 0);

    let agent = elklet(&site).setting("plugins", &key).start();
    site.wait_connected(&agent);
    site.configure(&agent, &[signed_agent(offer.clone(), &owner)]);
    wait_for_version(&site, &agent, NEXT_VERSION);
}

#[test]
fn who_ends_the_agent_while_it_becomes_another_ends_it() {
    let (site, web) = (Site::new(), Web::new());
    let setup = elklet(&site);
    let stubborn = setup.workdir().install("stubborn", PLUGIN, "hello deaf");
    let mut agent = setup.start();
    site.wait_connected(&agent);
    site.configure(&agent, slice::from_ref(&stubborn));
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    site.configure(&agent, &[stubborn, web.offer(NEXT_VERSION, fs::read(NEXT).unwrap())]);
    agent.wait_for_log("the agent ends in order and becomes it");
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    assert!(agent.log_lines("elklet 9.9.9 starts").is_empty());
}
