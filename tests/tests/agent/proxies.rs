//! Proxies: the stream and service discovery go through them, by file and by environment, go around them, and meet
//! those that fail.

use crate::{PLUGIN, downloads};
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Setup, Site, all_at_once, skipped, types};
use elklet_tests::pki::{Set, Validity};
use elklet_tests::proxy::{Kind, Options, Proxy};
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::slice;

const KINDS: [(&str, Kind); 2] = [("HTTP", Kind::Http), ("SOCKS5", Kind::Socks5)];

/// The names of a server and of a service discovery host that only the proxy can resolve.
const SERVER: &str = "center.invalid:6751";
const DISCOVERY: &str = "discovery.invalid:8088";

fn knowing(site: &Site) -> Options {
    let leads_to = HashMap::from([
        (SERVER.to_owned(), site.center().grpc_addr()),
        (DISCOVERY.to_owned(), site.center().http_addr()),
    ]);
    Options { leads_to, ..Options::default() }
}

fn with_file(setup: Setup, text: &str) -> Setup {
    fs::write(setup.workdir().path().join("elklet.toml"), text).unwrap();
    setup
}

fn login() -> Option<(String, String)> {
    Some(("joe".to_owned(), "p@ss: word".to_owned()))
}

fn connected(site: &Site, setup: Setup) -> Agent {
    let agent = setup.start();
    site.wait_connected(&agent);
    agent
}

#[test]
fn records_go_through_a_proxy_that_resolves_the_name() {
    all_at_once(&KINDS, |name, kind| {
        let site = Site::new();
        let proxy = Proxy::with(*kind, Options { login: login(), ..knowing(&site) });
        let url = proxy.url("joe:p%40ss%3A%20word");
        let setup = with_file(site.setup().server(SERVER), &format!("[proxy]\nurl = \"{url}\"\n"));
        site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello run=a n=5000")]));
        let agent = connected(&site, setup);
        site.wait_records("records", &agent, |records| records.run("a").received >= 5000);
        site.records(&agent, |records| assert!(records.run("a").is_whole(5000), "{name}: {:?}", records.run("a")));
        assert_eq!(proxy.targets(), [SERVER], "{name}");
        assert!(!agent.log().contains("p@ss") && !agent.log().contains("p%40ss"), "{name}: {}", agent.log());
    });
}

#[test]
fn downloads_and_uploads_go_through_the_proxy() {
    all_at_once(&KINDS, |name, kind| {
        let (uploads, own) = (tempfile::tempdir().unwrap(), Set::new());
        let site = Site::with(|options| options.upload_dir = Some(uploads.path().to_owned()));
        own.write(&uploads.path().join("own")).unwrap();
        let mut trusted = fs::File::options().append(true).open(site.certs().join("ca.crt")).unwrap();
        trusted.write_all(&fs::read(uploads.path().join("own/ca.crt")).unwrap()).unwrap();
        let plain = Files::start();
        let tls = Files::start_tls(&own.ca.issue("files.invalid", Validity::Current), "files.invalid");
        let program = downloads::program();
        let host = |url: &str| url.split('/').nth(2).unwrap().to_owned();
        let [http, https] = [&plain, &tls].map(|files| files.serve("probe", program.clone(), How::Right));
        let mut options = knowing(&site);
        let direct = host(&https).replace("files.invalid", "127.0.0.1").parse().unwrap();
        options.leads_to.insert(host(&https), direct);
        let proxy = Proxy::with(*kind, options);

        let setup = with_file(site.setup().server(SERVER), &format!("[proxy]\nurl = \"{}\"\n", proxy.url("")));
        site.center().set_configs(Some(vec![
            downloads::plain("http", &program, slice::from_ref(&http), "hello"),
            downloads::plain("https", &program, slice::from_ref(&https), "hello"),
        ]));
        let agent = connected(&site, setup);
        site.wait_records("greetings", &agent, |records| records.of_type(types::HELLO).count() == 2);
        let file = agent.workdir().path().join("wanted");
        fs::write(&file, "content").unwrap();
        let data = format!("{{\"path\": \"{}\", \"buf_size\": 1024}}", file.display());
        site.task(&agent, "elkeid-agent", 1050, &data, "t");
        site.wait("upload", |state| state.uploads.iter().any(|upload| upload.token == "t"));

        let mut targets = proxy.targets();
        targets.sort();
        let mut expected = [host(&http), host(&https), SERVER.to_owned(), SERVER.to_owned()];
        expected.sort();
        assert_eq!(targets, expected, "{name}");
    });
}

#[test]
fn discovery_goes_through_the_proxy_and_so_does_what_it_names() {
    all_at_once(&KINDS, |name, kind| {
        let site = Site::new();
        let proxy = Proxy::with(*kind, knowing(&site));
        let setup = site.setup().argument("--discovery").argument(DISCOVERY);
        let agent = connected(&site, with_file(setup, &format!("[proxy]\nurl = \"{}\"\n", proxy.url(""))));
        assert_eq!(proxy.targets(), [DISCOVERY, &site.address()], "{name}");
        assert_eq!(site.heartbeats(&agent).agent["net_mode"], "sd", "{name}");
    });
}

#[test]
fn the_environment_names_proxies_and_exceptions() {
    let site = Site::new();
    let center = Proxy::with(Kind::Http, knowing(&site));
    let plain = Proxy::with(Kind::Socks5, knowing(&site));
    let setup = || site.setup().argument("--discovery").argument(DISCOVERY);
    // AgentCenter speaks TLS, service discovery plain HTTP.
    connected(&site, setup().variable("HTTPS_PROXY", &center.url("")).variable("http_proxy", &plain.url("")));
    assert_eq!((center.targets(), plain.targets()), (vec![site.address()], vec![DISCOVERY.to_owned()]));
    // One proxy for both.
    connected(&site, setup().variable("ALL_PROXY", &center.url("")));
    assert_eq!(center.targets()[1..], [DISCOVERY.to_owned(), site.address()]);
    // No proxy for this network.
    let before = center.targets().len();
    connected(&site, setup().variable("all_proxy", &center.url("")).variable("NO_PROXY", "x.example, 127.0.0.0/8"));
    assert_eq!(center.targets()[before..], [DISCOVERY.to_owned()]);
    let nobody =
        |setup: Setup| connected(&site, setup.server(&site.address()).variable("HTTPS_PROXY", "http://127.0.0.1:1"));
    nobody(site.setup().variable("no_proxy", "*"));
    // The file takes precedence over the environment.
    nobody(with_file(site.setup(), "[proxy]\nurl = \"none\"\n"));
    nobody(with_file(site.setup(), "[proxy]\nno_proxy = [\"127.0.0.0/8\"]\n"));
    let before = center.targets().len();
    nobody(with_file(site.setup(), &format!("[proxy]\nurl = \"{}\"\n", center.url(""))));
    assert_eq!(center.targets()[before..], [site.address()]);
}

#[test]
fn a_proxy_that_is_no_way_is_named_with_its_reason() {
    let nobody = || Proxy::with(Kind::Http, Options::default());
    let instead = |answer: &[u8]| Options { instead: Some(answer.to_vec()), ..Options::default() };
    let locked = Options { login: login(), ..Options::default() };
    let long = [b"HTTP/1.1 200 OK\r\n".to_vec(), vec![b'x'; 20_000]].concat();
    let cases = [
        ("407 without", (Kind::Http, locked.clone(), "", "refused: 407 Proxy Authentication Required")),
        ("407 wrong", (Kind::Http, locked.clone(), "joe:x", "refused: 407 Proxy Authentication Required")),
        ("socks without", (Kind::Socks5, locked.clone(), "", "refused: it wants a user and a password")),
        ("socks wrong", (Kind::Socks5, locked, "joe:x", "refused: it does not accept the user and the password")),
        ("http 502", (Kind::Http, Options::default(), "", "refused: 502 Bad Gateway")),
        ("socks 5", (Kind::Socks5, Options::default(), "", "refused: connection refused by the target (code 5)")),
        ("http 403", (Kind::Http, instead(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "", "refused: 403 Forbidden")),
        ("no proxy", (Kind::Http, instead(b"SSH-2.0-OpenSSH\r\n"), "", "answered \"SSH-2.0-OpenSSH\", expected")),
        ("http for socks", (Kind::Socks5, instead(b"HTTP/1.1 400 Bad\r\n\r\n"), "", "answered \"HTTP/1.1 400 Bad")),
        ("endless", (Kind::Http, instead(&long), "", "answered with more than 8192 bytes")),
        ("cut", (Kind::Http, instead(b"HTTP/1.1 200 O"), "", "closed the connection instead of answering")),
        ("surplus", (Kind::Http, instead(b"HTTP/1.1 200 OK\r\n\r\nmore"), "", "sent more than its answer")),
        ("silent", (Kind::Socks5, instead(b""), "", "did not answer within 10 s")),
    ];
    all_at_once(&cases, |name, (kind, options, login, says)| {
        let site = Site::new();
        let proxy = Proxy::with(*kind, options.clone());
        let text = format!(
            "[server]\ndiscovery = [\"127.0.0.1:1\"]\nprivate = [\"127.0.0.1:2\"]\npublic = [\"{}\"]\n\
            [proxy]\nurl = \"{}\"\nno_proxy = [\"{}\"]\n",
            site.address(),
            proxy.url(login),
            site.address()
        );
        let agent = connected(&site, with_file(site.setup(), &text));
        let expected = format!("proxy {} {says}", proxy.address());
        for hop in ["service discovery failed: http://127.0.0.1:1/", "127.0.0.1:2: "] {
            let line = agent.wait_for_log(hop);
            // Discovery's own limit is a little shorter.
            let is_late = name == "silent" && hop.starts_with("service") && line.contains("did not answer");
            assert!(line.contains(" WARN ") && (line.contains(&expected) || is_late), "{name}: {line}");
        }
        assert_eq!(site.heartbeats(&agent).count("connect_failures"), 2, "{name}: {}", agent.log());
    });
    // Proxies that are not there, by address and by name.
    let gone = nobody().address();
    // No label may be this long, so the resolver fails without asking anybody.
    let nowhere = format!("{}:1", "x".repeat(64));
    for (proxy, says) in [(&gone, "Connection refused"), (&nowhere, "no address for this name")] {
        let site = Site::new();
        let text = format!(
            "[server]\nprivate = [\"127.0.0.1:2\"]\npublic = [\"{0}\"]\n[proxy]\nurl = \"{proxy}\"\nno_proxy = [\"{0}\"]\n",
            site.address()
        );
        let agent = connected(&site, with_file(site.setup(), &text));
        let line = agent.wait_for_log(&format!("127.0.0.1:2: proxy {proxy} cannot be reached: "));
        assert!(line.contains(says), "{line}");
    }
}

#[test]
fn a_server_on_ipv6_is_reached_directly_and_through_proxies() {
    if TcpListener::bind("[::1]:0").is_err() {
        return skipped("a_server_on_ipv6_is_reached_directly_and_through_proxies", "there is no IPv6 here");
    }
    let loopback = "[::1]:0".parse().unwrap();
    let site = Site::with(|options| (options.listen, options.http) = (loopback, loopback));
    let discovery = site.center().http_addr().to_string();
    assert!(site.address().starts_with("[::1]:"));
    let setup = || site.setup().argument("--discovery").argument(&discovery);
    let agent = connected(&site, setup());
    agent.wait_for_log(&format!("connected to {} (sd)", site.address()));
    connected(&site, site.setup().server(&site.address()));
    for (name, kind) in KINDS {
        let proxy = Proxy::start(kind);
        connected(&site, setup().variable("ALL_PROXY", &proxy.url("")));
        assert_eq!(proxy.targets(), [discovery.clone(), site.address()], "{name}");
    }
}
