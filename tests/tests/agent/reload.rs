//! Settings and certificates that change while the agent runs: what takes effect, what does not, and that nothing is lost.

use crate::PLUGIN;
use elklet_tests::binaries::Binaries;
use elklet_tests::center::{Fault, Status};
use elklet_tests::harness::{Agent, Setup, Signal, Site, types, wait_until};
use elklet_tests::pki::{Ca, SERVER_NAME, Set, Validity};
use elklet_tests::proxy::{Kind, Options, Proxy};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Prepares an agent whose settings are all in its file. It belongs to no fleet.
struct Filed {
    agent: Agent,
    certs: String,
}

impl Filed {
    fn start(site: &Site, setup: Setup, certs: &Path, text: &str) -> Self {
        let workdir = setup.workdir().path().display().to_string();
        let certs = certs.display().to_string();
        write(setup.workdir().path(), &certs, text);
        let agent = setup.only(&["run", "--workdir", &workdir]).start();
        site.wait_connected(&agent);
        Self { agent, certs }
    }

    /// Writes another file, has the agent read it, and returns the log's line about it.
    fn reload(&self, text: &str) -> String {
        write(self.agent.workdir().path(), &self.certs, text);
        self.hang_up()
    }

    fn hang_up(&self) -> String {
        let before = self.agent.log_lines("SIGHUP: ").len();
        self.agent.signal(Signal::HUP);
        let mut lines = Vec::new();
        wait_until("answer to SIGHUP", || {
            lines = self.agent.log_lines("SIGHUP: ");
            lines.len() > before
        });
        lines.split_off(before).join("\n")
    }
}

fn write(workdir: &Path, certs: &str, text: &str) {
    let text = text.replace("[server]", "[server]\nreconnect_spread_s = 1");
    fs::write(workdir.join("elklet.toml"), format!("certs = \"{certs}\"\n{text}")).unwrap();
}

fn streams(site: &Site, agent: &Agent) -> u64 {
    site.center().read(|state| state.agent(agent.id()).streams)
}

fn wait_streams(site: &Site, agent: &Agent, count: u64) {
    site.wait("next stream", |state| state.agent(agent.id()).streams >= count);
    site.wait_connected(agent);
    assert_eq!(streams(site, agent), count, "{}", agent.log());
}

/// Has the plugin end its run, and checks that everything has arrived once, or again on another stream.
fn assert_nothing_lost(site: &Site, agent: &Agent) {
    site.center().set_configs(Some(Vec::new()));
    agent.signal(Signal::TERM);
    site.wait_records("goodbye", agent, |records| records.of_type(types::GOODBYE).count() == 1);
    site.records(agent, |records| {
        let goodbye = records.of_type(types::GOODBYE).next().unwrap();
        let sent = goodbye["sent"].parse().unwrap();
        assert!(sent > 1000 && records.run("flow").is_whole(sent), "{sent} sent: {:?}", records.run("flow"));
    });
    agent.wait_for_log("the server has taken all ");
}

/// Returns the options of a proxy that connects these names to the site's center, which thereby poses as several
/// servers.
fn names(site: &Site, names: &[&str]) -> Options {
    let to = site.center().grpc_addr();
    let leads_to = names.iter().map(|name| ((*name).to_owned(), to)).collect::<HashMap<_, _>>();
    Options { leads_to, ..Options::default() }
}

#[test]
fn a_stream_moves_to_other_servers_and_ways_without_losing_a_record() {
    let site = Site::new();
    let all = ["a.invalid:1", "b.invalid:2"];
    let (http, socks) = (Proxy::with(Kind::Http, names(&site, &all)), Proxy::with(Kind::Socks5, names(&site, &all)));
    let file = |servers: &str, proxy: &Proxy| format!("[server]\n{servers}\n[proxy]\nurl = \"{}\"\n", proxy.url(""));
    let setup = site.setup();
    site.center().set_configs(Some(vec![setup.workdir().install("flow", PLUGIN, "run=flow rate=2000 endless")]));
    let filed = Filed::start(&site, setup, site.certs(), &file("private = [\"a.invalid:1\"]", &http));
    let agent = &filed.agent;
    let flows = |least: u64| site.wait_records("records", agent, |records| records.run("flow").received > least);
    flows(500);
    // The agent stays with its server, whatever else is configured now.
    let line = filed.reload(&file("private = [\"b.invalid:2\", \"a.invalid:1\"]\npublic = [\"c.invalid:3\"]", &http));
    assert!(line.contains("changed: servers"), "{line}");
    flows(1500);
    assert_eq!(streams(&site, agent), 1, "{}", agent.log());
    // Another server.
    filed.reload(&file("private = [\"b.invalid:2\"]", &http));
    wait_streams(&site, agent, 2);
    agent.wait_for_log("connected to b.invalid:2 (private)");
    flows(2500);
    // The same server from another list.
    filed.reload(&file("public = [\"b.invalid:2\"]", &http));
    wait_streams(&site, agent, 3);
    agent.wait_for_log("connected to b.invalid:2 (public)");
    // Another way to it.
    let line = filed.reload(&file("public = [\"b.invalid:2\"]", &socks));
    assert!(line.contains("changed: proxies"), "{line}");
    wait_streams(&site, agent, 4);
    assert_eq!(
        (http.targets(), socks.targets()),
        (["a.invalid:1", "b.invalid:2", "b.invalid:2"].map(str::to_owned).to_vec(), vec!["b.invalid:2".to_owned()])
    );
    // Nothing else has happened.
    assert!(filed.hang_up().contains("changed: nothing"));
    flows(3500);
    assert_eq!(streams(&site, agent), 4);
    assert_eq!(site.heartbeats(agent).count("connect_failures"), 0, "{}", agent.log());
    // The agent ended every stream in order, so nothing arrived twice.
    site.records(agent, |records| assert_eq!(records.run("flow").repeated, 0));
    assert_nothing_lost(&site, agent);
}

#[test]
fn who_waits_for_a_server_goes_to_the_new_one_at_once() {
    let site = Site::new();
    let setup = site.setup();
    let (workdir, certs) = (setup.workdir().path().to_owned(), site.certs().display().to_string());
    // After a lost stream the agent may wait up to an hour. The test does not wait for that.
    let file =
        |server: &str| format!("certs = \"{certs}\"\n[server]\nreconnect_spread_s = 3600\nprivate = [\"{server}\"]\n");
    fs::write(workdir.join("elklet.toml"), file(&site.address())).unwrap();
    let agent = setup.only(&["run", "--workdir", &workdir.display().to_string()]).start();
    site.wait_connected(&agent);
    std::thread::sleep(std::time::Duration::from_secs(6));
    let name = "other.invalid:1";
    let proxy = Proxy::with(Kind::Http, names(&site, &[name]));
    assert!(site.center().inject(agent.id(), Fault::Status(Status::ok())));
    agent.wait_for_log("the next attempt is in ");
    fs::write(workdir.join("elklet.toml"), format!("{}[proxy]\nurl = \"{}\"\n", file(name), proxy.url(""))).unwrap();
    agent.signal(Signal::HUP);
    wait_streams(&site, &agent, 2);
}

#[test]
fn a_wrong_file_changes_nothing_and_is_told_with_its_place() {
    let site = Site::new();
    let good = format!("[server]\nprivate = [\"{}\"]\n", site.address());
    let filed = Filed::start(&site, site.setup(), site.certs(), &good);
    let agent = &filed.agent;
    for (text, says) in [
        (format!("{good}[log]\nloud = true\n"), "elklet.toml:6: log.loud: unknown key `loud`"),
        (format!("{good}[buffer]\narena_kib = 7\n"), "elklet.toml:6: buffer.arena_kib: 7 is out of bounds"),
        ("[server]\nprivate = []\n".to_owned(), "no server: name one"),
        ("[server\n".to_owned(), "elklet.toml:2: "),
        (
            format!("{good}[proxy]\nurl = \"http://joe:secret@x:y\"\n"),
            "elklet.toml:6: proxy.url: http://x:y is no proxy",
        ),
    ] {
        let line = filed.reload(&text);
        assert!(line.contains(" WARN ") && line.contains("the settings stay as they were: "), "{line}");
        assert!(line.contains(says) && !line.contains("secret"), "{says}: {line}");
    }
    fs::remove_file(agent.workdir().path().join("elklet.toml")).unwrap();
    assert!(filed.hang_up().contains("elklet.toml: No such file"));
    assert_eq!(streams(&site, agent), 1);
    // What was read at the start still holds.
    assert!(site.center().inject(agent.id(), Fault::Status(Status::ok())));
    wait_streams(&site, agent, 2);
}

#[test]
fn a_file_that_is_gone_or_no_file_any_more_takes_no_policy_with_it() {
    let site = Site::new();
    let setup = site.setup();
    let (workdir, certs) = (setup.workdir().path().to_owned(), site.certs().display().to_string());
    let file = workdir.join("elklet.toml");
    let strict = "[policy]\ntasks = []\nplugins = []\n[upload]\nallow = []\n";
    // With a server among the flags, an agent could do without the file.
    let (place, server) = (workdir.display().to_string(), site.address());
    let setup = setup.only(&["run", "--workdir", &place, "--server", &server, "--certs", &certs]);
    fs::write(&file, strict).unwrap();
    let agent = setup.start();
    site.wait_connected(&agent);
    let filed = Filed { agent, certs };
    let elsewhere = workdir.join("elsewhere");
    for (what, put, says) in [
        ("nothing", &(|| ()) as &dyn Fn(), "No such file or directory"),
        ("link to nothing", &|| symlink("/nonexistent/x", &file).unwrap(), "it is a link that leads nowhere"),
        ("link to itself", &|| symlink("elklet.toml", &file).unwrap(), "symbolic links"),
        ("directory", &|| fs::create_dir(&file).unwrap(), "it is a directory, expected a regular file"),
        ("device", &|| symlink("/dev/zero", &file).unwrap(), "it is a device, expected a regular file"),
        (
            "pipe",
            &|| mknodat(CWD, &file, FileType::Fifo, Mode::RWXU, 0).unwrap(),
            "it is a named pipe, expected a regular file",
        ),
        ("long file", &|| fs::write(&file, vec![b'\n'; (1 << 20) + 1]).unwrap(), "1048577 bytes, the limit is 1048576"),
    ] {
        fs::rename(&file, &elsewhere).unwrap();
        put();
        let line = filed.hang_up();
        assert!(line.contains("the settings stay as they were: ") && line.contains(says), "{what}: {line}");
        assert!(line.contains("elklet.toml: "), "{what}: {line}");
        _ = fs::remove_file(&file).or_else(|_| fs::remove_dir(&file));
        fs::rename(&elsewhere, &file).unwrap();
        // What holds is what the file says.
        let line = filed.hang_up();
        assert!(line.contains("SIGHUP: changed: nothing"), "{what}: {line}");
    }
    assert_eq!(streams(&site, &filed.agent), 1);
}

#[test]
fn a_file_that_comes_later_has_to_stay_as_well() {
    let site = Site::new();
    let filed = {
        let setup = site.setup();
        let (workdir, certs) = (setup.workdir().path().display().to_string(), site.certs().display().to_string());
        let server = site.address();
        fs::remove_file(setup.workdir().path().join("elklet.toml")).unwrap();
        let setup = setup.only(&["run", "--workdir", &workdir, "--server", &server, "--certs", &certs]);
        let agent = setup.start();
        site.wait_connected(&agent);
        Filed { agent, certs }
    };
    assert!(filed.hang_up().contains("SIGHUP: changed: nothing"), "there need not be one");
    let line = filed.reload("[policy]\ntasks = []\n");
    assert!(line.contains("changed: policy"), "{line}");
    fs::remove_file(filed.agent.workdir().path().join("elklet.toml")).unwrap();
    let line = filed.hang_up();
    assert!(line.contains("the settings stay as they were: ") && line.contains("No such file"), "{line}");
}

#[test]
fn log_idc_region_and_updates_change_live_and_buffers_do_not() {
    let site = Site::new();
    let (idle, private) = ("127.0.0.1:1", site.address());
    let regions = format!(
        "[server]\nprivate = [\"{private}\"]\n[regions.eu]\nreconnect_spread_s = 1\nprivate = [\"{idle}\"]\npublic = [\"{private}\"]\n"
    );
    let filed = Filed::start(&site, site.setup(), site.certs(), &regions);
    let agent = &filed.agent;
    assert!(agent.stderr().is_empty() && !agent.log().contains(" DEBUG "));
    let line = filed
        .reload(&format!("idc = \"north\"\n{regions}[log]\nstderr = true\ndebug = true\n[buffer]\narena_kib = 256\n[update]\nenabled = false\n"));
    assert!(
        line.contains("[buffer], and where all but the certificates lies, take effect at the next start only"),
        "{line}"
    );
    let line = agent.wait_for_log("SIGHUP: changed: ");
    assert!(line.ends_with("changed: update, log, idc and region"), "{line}");
    assert_eq!(streams(&site, agent), 1);
    let fields = site.fresh_heartbeats(agent).agent;
    assert_eq!((&fields["idc"][..], &fields["region"][..]), ("north", "default"));
    agent.wait_for_log(" DEBUG connecting to ");
    wait_until("the same on standard error", || agent.stderr().contains(" DEBUG connecting to "));

    // The region has servers of its own.
    filed.reload(&format!("region = \"eu\"\n{regions}"));
    agent.wait_for_log(&format!("connected to {private} (public)"));
    wait_streams(&site, agent, 3);
    let fields = site.heartbeats(agent).agent;
    assert_eq!((&fields["idc"][..], &fields["region"][..], &fields["net_mode"][..]), ("default", "eu", "public"));
}

#[test]
fn the_size_of_the_spool_changes_live_and_whether_there_is_one_does_not() {
    let site = Site::new();
    let file = |mib: u32| format!("[server]\nprivate = [\"{}\"]\n[spool]\nmib = {mib}\n", site.address());
    let capacity = |agent: &Agent| {
        let mut command = Command::new(&Binaries::for_tests().elklet);
        let output = command.args(["status", "--json", "--workdir"]).arg(agent.workdir().path()).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["spool"]["capacity_bytes"].as_u64()
    };
    let filed = Filed::start(&site, site.setup(), site.certs(), &file(32));
    let agent = &filed.agent;
    assert_eq!(capacity(agent), Some(32 << 20));
    let line = filed.reload(&file(16));
    assert!(line.ends_with("SIGHUP: changed: spool"), "{line}");
    assert_eq!(capacity(agent), Some(16 << 20));
    filed.reload(&file(0));
    let line = agent.wait_for_log("whether there is a spool takes effect at the next start only");
    assert!(line.contains(" WARN "), "{line}");
    agent.wait_for_log("SIGHUP: changed: nothing");
    assert_eq!((capacity(agent), streams(&site, agent)), (Some(16 << 20), 1));

    let without = Filed::start(&site, site.setup(), site.certs(), &file(0));
    assert_eq!(capacity(&without.agent), None);
    without.reload(&file(32));
    without.agent.wait_for_log("whether there is a spool takes effect at the next start only");
    assert_eq!(capacity(&without.agent), None);
}

#[test]
fn certificates_are_read_again_when_they_have_changed() {
    let mut site = Site::new();
    let certs = tempfile::tempdir().unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        fs::copy(site.certs().join(name), certs.path().join(name)).unwrap();
    }
    let setup = site.setup();
    site.center().set_configs(Some(vec![setup.workdir().install("flow", PLUGIN, "run=flow rate=2000 endless")]));
    let filed = Filed::start(&site, setup, certs.path(), &format!("[server]\nprivate = [\"{}\"]\n", site.address()));
    let agent = &filed.agent;
    site.wait_records("records", agent, |records| records.run("flow").received > 500);

    // The agent names a file that is no certificate, once, and changes nothing.
    let good = fs::read(certs.path().join("client.crt")).unwrap();
    fs::write(certs.path().join("client.crt"), "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
    assert!(filed.hang_up().contains("changed: nothing"));
    let line = agent.wait_for_log("the certificates stay as they were: ");
    assert!(line.contains(" WARN ") && line.contains("client.crt: the certificate at line 1 is damaged"), "{line}");
    assert!(site.center().inject(agent.id(), Fault::Status(Status::ok())));
    wait_streams(&site, agent, 2);
    assert_eq!(agent.log_lines("the certificates stay as they were: ").len(), 1);
    // The old certificate again counts as a change of the file.
    fs::write(certs.path().join("client.crt"), good).unwrap();
    assert!(filed.hang_up().contains("changed: certificates"));
    wait_streams(&site, agent, 3);

    // Both ends get certificates of another authority. Nobody tells the agent, and yet its first attempt succeeds.
    let options = site.stop();
    let other = Set::new();
    other.write(&options.certs).unwrap();
    other.write(certs.path()).unwrap();
    site.start(options);
    site.center().set_configs(None);
    agent.wait_for_log("new certificates in ");
    site.wait_connected(agent);
    let failures = site.heartbeats(agent).count("tls_failures");
    assert_eq!(failures, 0, "{}", agent.log());
    // An end does not wait for what is on the disk. This server has received more than was made while there was none.
    let before = site.records(agent, |records| records.run("flow").received);
    site.wait_records("backlog", agent, |records| records.run("flow").received > before + 20_000);
    assert_nothing_lost(&site, agent);
}

#[test]
fn a_certificate_near_its_end_shows_in_log_and_heartbeat() {
    let set = Set { ca: Ca::with("near its end", Validity::Days(20)), ..Set::new() };
    let until = |validity| Set { client: set.ca.issue(SERVER_NAME, validity), ..set.clone() };
    let set = Set { server: set.ca.issue(SERVER_NAME, Validity::Days(20)), ..until(Validity::Days(29)) };
    let site = Site::with(|options| set.write(&options.certs).unwrap());
    let certs = tempfile::tempdir().unwrap();
    set.write(certs.path()).unwrap();
    let file = format!("[server]\nprivate = [\"{}\"]\n", site.address());
    let filed = Filed::start(&site, site.setup(), certs.path(), &file);
    let agent = &filed.agent;
    let days_left = || {
        let fields = site.heartbeats(agent).agent;
        (fields["cert_days_left"].clone(), fields["ca_days_left"].clone())
    };
    assert_eq!(days_left(), ("29".to_owned(), "20".to_owned()));
    let line = agent.wait_for_log("client.crt: the certificate expires in 29 days, at 20");
    assert!(line.contains(" WARN "), "{line}");
    agent.wait_for_log("ca.crt: the certificate expires in 20 days, at 20");

    // The agent uses a certificate that is valid for longer, and says nothing about it.
    until(Validity::Days(31)).client.write(certs.path(), "client").unwrap();
    assert!(filed.hang_up().contains("changed: certificates"));
    wait_streams(&site, agent, 2);
    assert_eq!(days_left(), ("31".to_owned(), "20".to_owned()));
    assert_eq!(agent.log_lines("client.crt: ").len(), 1, "{}", agent.log());
    assert_eq!(agent.log_lines("ca.crt: ").len(), 2, "{}", agent.log());

    // The agent does not replace a valid certificate by an expired one.
    until(Validity::Expired).client.write(certs.path(), "client").unwrap();
    assert!(filed.hang_up().contains("changed: nothing"));
    agent.wait_for_log("the certificates stay as they were: ");
    agent.wait_for_log("client.crt: the certificate has expired");
    assert_eq!(streams(&site, agent), 2);

    // At its start the agent has nothing better.
    let agent = Setup::new(certs.path()).server(&site.address()).start();
    let line = agent.wait_for_log("client.crt: the certificate expired at 2020-01-01T00:00:00Z");
    assert!(line.contains(" WARN "), "{line}");
    agent.wait_for_log("received fatal alert: CertificateExpired");
}
