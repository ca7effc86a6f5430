//! Which servers there are: by region, by service discovery. Discovery is asked first, believed when it makes sense, and passed over when it does not.

use elklet_tests::center::Instance;
use elklet_tests::harness::{Agent, RawServer, Site};
use std::fs;
use std::net::SocketAddr;

/// An address at which nobody listens: a privileged port that has no service.
const NOBODY: &str = "127.0.0.1:1";

fn connected(site: &Site, discovery: &[&str], servers: &[&str]) -> Agent {
    let setup = discovery.iter().fold(site.setup(), |setup, host| setup.argument("--discovery").argument(host));
    let agent = servers.iter().fold(setup, |setup, server| setup.server(server)).start();
    site.wait_connected(&agent);
    agent
}

fn assert_found(site: &Site, agent: &Agent, net_mode: &str, failures: u64) {
    let heartbeats = site.heartbeats(agent);
    assert_eq!(heartbeats.agent["net_mode"], net_mode, "{}", agent.log());
    assert_eq!(heartbeats.count("connect_failures"), failures, "{}", agent.log());
    agent.wait_for_log(&format!("connected to {} ({net_mode})", site.address()));
}

#[test]
fn a_server_is_found_by_discovery() {
    let site = Site::new();
    let http = site.center().http_addr().to_string();
    assert_found(&site, &connected(&site, &[&http], &[]), "sd", 0);
    // Discovery comes before any configured server.
    assert_found(&site, &connected(&site, &[&http], &[NOBODY]), "sd", 0);
    // The first discovery host is down, so the second one answers.
    let agent = connected(&site, &[NOBODY, &http], &[NOBODY]);
    assert_found(&site, &agent, "sd", 1);
    let line = agent.wait_for_log("service discovery failed: ");
    assert!(line.contains(" WARN ") && line.contains(NOBODY), "{line}");
}

#[test]
fn every_address_that_discovery_names_is_tried() {
    let site = Site::new();
    let addresses = [NOBODY.parse().unwrap(), site.center().grpc_addr()];
    let instances = addresses.map(|address: SocketAddr| Instance::new("hids_svr_grpc", address));
    site.center().set_registry("hids_svr_grpc", instances.to_vec());
    let http = site.center().http_addr().to_string();
    let agent = connected(&site, &[&http], &[NOBODY]);
    assert_found(&site, &agent, "sd", 1);
    agent.wait_for_log(&format!("{NOBODY}: no TCP connection: "));
}

#[test]
fn without_discovery_the_configured_server_is_found() {
    let site = Site::new();
    assert_found(&site, &connected(&site, &[NOBODY], &[&site.address()]), "private", 1);
    // The host answers, and knows no server.
    site.center().set_registry("hids_svr_grpc", Vec::new());
    let http = site.center().http_addr().to_string();
    assert_found(&site, &connected(&site, &[&http], &[&site.address()]), "private", 0);
    // It names a server that is gone.
    let gone = Instance::new("hids_svr_grpc", NOBODY.parse().unwrap());
    site.center().set_registry("hids_svr_grpc", vec![gone]);
    assert_found(&site, &connected(&site, &[&http], &[&site.address()]), "private", 1);
}

#[test]
fn an_answer_that_makes_no_sense_is_passed_over() {
    let site = Site::new();
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(3 << 20));
    for (answer, says) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", "the answer is not as expected"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 28\r\n\r\n{\"data\":[{\"ip\":1,\"port\":2}]}",
            "the answer is not as expected",
        ),
        ("HTTP/1.1 200 OK\r\n\r\n{\"data\":[", "the answer is not as expected"),
        (&long, "the answer is not as expected: it is longer than 262144 bytes"),
        (
            "HTTP/1.1 200 OK\r\n\r\n{\"data\":[{\"ip\":\"a b\",\"port\":6751}]}",
            "the answer is not as expected: \"a b:6751\" is no address",
        ),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", "500"),
        ("SSH-2.0-nonsense\r\n", ""),
        ("", ""),
    ] {
        let server = RawServer::start(answer.as_bytes());
        let agent = connected(&site, &[&server.address()], &[&site.address()]);
        assert_found(&site, &agent, "private", 1);
        let line = agent.wait_for_log("service discovery failed: ");
        assert!(line.contains(&server.address()) && line.contains(says), "{line}");
    }
    // The agent does not follow redirects, so nobody on the way can send it elsewhere.
    for location in
        ["https://127.0.0.1:1/x", "HTTPS://localhost:1/", "file:///etc/hostname", "/registry/detail", "", "\u{1b}[2J"]
    {
        let answer = format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let server = RawServer::start(answer.as_bytes());
        let agent = connected(&site, &[&server.address()], &[&site.address()]);
        assert_found(&site, &agent, "private", 1);
        let line = agent.wait_for_log("service discovery failed: ");
        assert!(
            location.contains('\u{1b}') || line.contains(&format!("redirects to {location:?} (status 302)")),
            "{line}"
        );
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}

#[test]
fn a_region_has_servers_of_its_own() {
    let (center, other) = (Site::new(), Site::new());
    let http = center.center().http_addr();
    let file = format!(
        "certs = \"{}\"\n[server]\nprivate = [\"{}\"]\n[regions.eu]\ndiscovery = [\"{http}\"]\nprivate = [\"{NOBODY}\"]\n\
         [regions.asia]\npublic = [\"{}\"]\n",
        center.certs().display(),
        other.address(),
        center.address()
    );
    let run = |region: &str, site: &Site, words: &[&str]| {
        let setup = site.setup();
        fs::write(setup.workdir().path().join("elklet.toml"), &file).unwrap();
        let workdir = setup.workdir().path().display().to_string();
        let certs = site.certs().display().to_string();
        let words = [&["run", "--workdir", &workdir, "--certs", &certs][..], words].concat();
        let agent = setup.only(&words).variable("specified_region", region).start();
        site.wait_connected(&agent);
        let fields = site.heartbeats(&agent).agent;
        (fields["region"].clone(), fields["net_mode"].clone(), agent)
    };
    for (region, site, net_mode) in [
        ("eu", &center, "sd"),
        ("asia", &center, "public"),
        ("default", &other, "private"),
        ("mars", &other, "private"),
    ] {
        let (reported, mode, agent) = run(region, site, &[]);
        assert_eq!((&*reported, &*mode), (region, net_mode), "{}", agent.log());
        assert_eq!(site.heartbeats(&agent).count("connect_failures"), 0, "{region}: {}", agent.log());
    }
    // Flags take precedence over any region's settings, kind by kind.
    let (_, mode, agent) = run("asia", &other, &["--public", &other.address()]);
    assert_eq!(mode, "public", "{}", agent.log());
}

#[test]
fn order_is_discovery_then_private_then_public() {
    let site = Site::new();
    let gone = Instance::new("hids_svr_grpc", "127.0.0.1:2".parse().unwrap());
    site.center().set_registry("hids_svr_grpc", vec![gone]);
    let http = site.center().http_addr().to_string();
    let setup = site.setup().argument("--public").argument(&site.address());
    let setup =
        setup.server("127.0.0.1:3").argument("--discovery").argument(NOBODY).argument("--discovery").argument(&http);
    let agent = setup.start();
    site.wait_connected(&agent);
    assert_found(&site, &agent, "public", 3);
    let log = agent.log();
    let places: Vec<_> = [&format!("http://{NOBODY}/")[..], "127.0.0.1:2: ", "127.0.0.1:3: ", "connected to "]
        .iter()
        .map(|text| log.find(text).unwrap_or_else(|| panic!("no {text}: {log}")))
        .collect();
    assert!(places.is_sorted(), "{places:?}: {log}");
}

#[test]
fn a_name_with_several_addresses_is_tried_at_each() {
    // `localhost` may have an IPv6 address, which comes first. Nobody listens there.
    let site = Site::with(|options| options.listen = "127.0.0.1:0".parse().unwrap());
    let port = site.center().grpc_addr().port();
    let agent = connected(&site, &[], &[&format!("localhost:{port}")]);
    assert_eq!(site.heartbeats(&agent).count("connect_failures"), 0, "{}", agent.log());
}

#[test]
fn a_name_that_nobody_knows_is_told() {
    let site = Site::new();
    // No label may be this long, so the resolver fails without asking anybody.
    let nowhere = "x".repeat(64);
    let (discovery, server) = (format!("{nowhere}:1"), format!("{nowhere}:2"));
    let agent = connected(&site, &[&discovery], &[&server, &site.address()]);
    let line = agent.wait_for_log(&format!("{server}: no address for this name: "));
    assert!(line.contains(" WARN "), "{line}");
    let line = agent.wait_for_log(&format!("service discovery failed: http://{discovery}/"));
    assert!(line.contains(" WARN "), "{line}");
}

#[test]
fn a_host_that_says_nothing_is_passed_over() {
    let site = Site::new();
    // While the listener lives, the kernel accepts connections for it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let agent = connected(&site, &[&host], &[&site.address()]);
    assert_found(&site, &agent, "private", 1);
    let line = agent.wait_for_log("service discovery failed: ");
    assert!(line.contains(&host) && line.contains("timeout"), "{line}");
}
