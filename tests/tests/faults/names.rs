//! Names that get bad answers, and addresses that lead nowhere.

use crate::path::namespace;
use crate::{CENTER, PLUGIN};
use elklet_tests::binaries::Binaries;
use elklet_tests::faults::{NameServer, Namespace, PATIENCE_S, Reply, Server};
use elklet_tests::harness::{Agent, config};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const V4: Reply = Reply::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
const V6: Reply = Reply::Address(IpAddr::V6(Ipv6Addr::LOCALHOST));

/// A resolver waits for thirty seconds before it gives up. If this takes less, nobody has waited for it.
const SOON: Duration = Duration::from_secs(PATIENCE_S - 5);

/// A server, service discovery and a plugin's download that all go by names, and the name server.
struct Site {
    namespace: Namespace,
    names: NameServer,
    server: Server,
}

impl Site {
    fn new(test: &str) -> Option<Self> {
        let namespace = namespace(test)?;
        let mut server = Server::new(CENTER).within(&namespace.prefix()).on_all_addresses();
        let names = NameServer::start(&namespace, server.dir());
        let web = namespace.inside(|| TcpListener::bind("[::]:8088")).expect("the port is free");
        thread::spawn(move || web.incoming().flatten().for_each(|stream| drop(serve(stream))));
        let sha256 = Command::new("sha256sum").arg(PLUGIN).output().unwrap().stdout;
        let mut entry = config("load", "1.0", str::from_utf8(&sha256[..64]).unwrap(), "run=load execve rate=100 n=100");
        entry.download_urls = vec!["http://files.test:8088/plugin".to_owned()];
        server.configure(&[entry]);
        server.start();
        Some(Self { namespace, names, server })
    }

    /// Starts an agent that finds its server by discovery.
    fn agent(&self) -> Agent {
        let prefix = self.namespace.prefix();
        let words: Vec<_> = prefix.iter().map(String::as_str).collect();
        let by_names = self.names.prefix();
        let words: Vec<_> = words.into_iter().chain(by_names.iter().map(String::as_str)).collect();
        self.server.setup().started_by(&words).argument("--discovery").argument("sd.test:8088").start()
    }
}

/// Answers a request to service discovery or for a file.
fn serve(mut stream: std::net::TcpStream) -> std::io::Result<()> {
    let mut request = [0; 2048];
    let length = stream.read(&mut request)?;
    let body = if request[..length].starts_with(b"GET /registry/detail?") {
        br#"{"data":[{"ip":"center.test","port":6751}]}"#.to_vec()
    } else {
        fs::read(PLUGIN)?
    };
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

/// Expects that an agent connects soon, and that its plugin's download arrives.
fn assert_connects(site: &Site, what: &str) {
    // This builds the agent if need be, before the time counts.
    let _ = Binaries::for_tests();
    let begun = Instant::now();
    let agent = site.agent();
    agent.wait_for_log("connected to center.test:6751 (sd)");
    let connected = begun.elapsed();
    agent.wait_for_log("plugin load version 1.0 started");
    eprintln!("{what}: connected after {:.2} s", connected.as_secs_f64());
    assert!(connected < SOON, "{what}: connected after {connected:?}");
}

#[test]
fn a_question_that_fails_does_not_spoil_the_other_ones_answer() {
    let Some(site) = Site::new("a_question_that_fails_does_not_spoil_the_other_ones_answer") else { return };
    use Reply::{Empty, Malformed, NxDomain, Refused, ServFail, Silence};
    for reply in [Empty, NxDomain, ServFail, Refused, Malformed, Silence] {
        site.names.set(V4, reply);
        assert_connects(&site, &format!("IPv4, and {reply:?} for IPv6"));
        site.names.set(reply, V6);
        assert_connects(&site, &format!("IPv6, and {reply:?} for IPv4"));
    }
}

#[test]
fn a_kind_of_addresses_that_leads_nowhere_costs_little() {
    let Some(site) = Site::new("a_kind_of_addresses_that_leads_nowhere_costs_little") else { return };
    site.names.set(V4, V6);
    for (family, hook) in [("IPv6", "ipv6"), ("IPv4", "ipv4")] {
        site.namespace.drop_packets(&format!("meta nfproto {hook} tcp dport {{ 6751, 8088 }} drop"));
        assert_connects(&site, &format!("{family} leads nowhere"));
        site.namespace.restore();
    }
}
