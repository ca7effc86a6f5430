//! TLS as it should be and as it should not: whom the agent trusts, who trusts the agent, and what it says where either fails.

use crate::PLUGIN;
use elklet_tests::center::Options;
use elklet_tests::harness::{RawServer, Setup, Site, all_at_once, skipped, types};
use elklet_tests::pki::{self, Ca, SERVER_NAME, Set, Validity};
use rustls::SupportedProtocolVersion;
use std::fs;
use std::path::Path;

/// What is wrong with the server, given what would be right; the directory has it right already.
type Spoil = fn(&Set, &mut Options);

static TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
static TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[test]
fn a_wrong_server_is_refused_until_it_is_mended() {
    fn spoil_server(set: &Set, leaf: pki::Leaf, options: &Options) {
        Set { server: leaf, ..set.clone() }.write(&options.certs).unwrap();
    }
    let cases: [(&str, (Spoil, &str)); 8] = [
        (
            "wrong CA",
            (
                |set, options| spoil_server(set, Ca::new("stranger").issue(SERVER_NAME, Validity::Current), options),
                "invalid peer certificate: UnknownIssuer",
            ),
        ),
        (
            "wrong name",
            (
                |set, options| spoil_server(set, set.ca.issue("example.org", Validity::Current), options),
                "invalid peer certificate: certificate not valid for name \"elkeid.com\"",
            ),
        ),
        (
            "expired",
            (
                |set, options| spoil_server(set, set.ca.issue(SERVER_NAME, Validity::Expired), options),
                "invalid peer certificate: certificate expired",
            ),
        ),
        (
            "from the future",
            (
                |set, options| spoil_server(set, set.ca.issue(SERVER_NAME, Validity::Future), options),
                "invalid peer certificate: certificate not valid yet",
            ),
        ),
        (
            "refuses the agent's certificate",
            (
                |_, options| fs::write(options.certs.join("ca.crt"), Ca::new("stranger").certificate()).unwrap(),
                "received fatal alert: ",
            ),
        ),
        (
            "refuses it in TLS 1.2",
            (
                |_, options| {
                    options.tls_versions = TLS12;
                    fs::write(options.certs.join("ca.crt"), Ca::new("stranger").certificate()).unwrap();
                },
                "no TLS session: received fatal alert: ",
            ),
        ),
        ("no ALPN", (|_, options| options.alpn.clear(), "the server did not choose HTTP/2 (ALPN h2)")),
        ("other ALPN", (|_, options| options.alpn = vec![b"http/1.1".to_vec()], "NoApplicationProtocol")),
    ];
    all_at_once(&cases, |name, (spoil, says)| {
        let set = Set::new();
        let certs = tempfile::tempdir().unwrap();
        set.write(certs.path()).unwrap();
        let mut site = Site::with(|options| {
            set.write(&options.certs).unwrap();
            spoil(&set, options);
        });
        let mut agent = Setup::new(certs.path()).server(&site.address()).start();
        let line = agent.wait_for_log(says);
        assert!(line.contains(" WARN ") && line.contains(&site.address()), "{name}: {line}");
        agent.wait_for_log("the next attempt is in ");
        site.center().read(|state| assert!(state.agents.is_empty(), "{name}: {:?}", state.log));
        assert!(agent.is_running(), "{name}");

        let mut options = site.stop();
        options.alpn = vec![b"h2".to_vec()];
        set.write(&options.certs).unwrap();
        site.start(options);
        site.wait_connected(&agent);
        let failures = agent.log_lines(says).len() as u64;
        assert_eq!(site.heartbeats(&agent).count("tls_failures"), failures, "{name}:\n{}", agent.log());
        assert_eq!(site.heartbeats(&agent).count("protocol_errors"), 0, "{name}");
    });
}

#[test]
fn no_client_certificate_is_said_at_the_start_and_refused_by_the_server() {
    let site = Site::new();
    let certs = tempfile::tempdir().unwrap();
    fs::copy(site.certs().join("ca.crt"), certs.path().join("ca.crt")).unwrap();
    let mut agent = Setup::new(certs.path()).server(&site.address()).start();
    let line = agent.wait_for_log("no client certificate: neither ");
    assert!(line.contains(" WARN ") && line.contains("client.crt") && line.contains("client.key"), "{line}");
    agent.wait_for_log("received fatal alert: CertificateRequired");
    agent.wait_for_log("the next attempt is in ");
    assert!(agent.is_running());
    site.center().read(|state| assert!(state.agents.is_empty(), "{:?}", state.log));

    let setup = agent.into_setup();
    for name in ["client.crt", "client.key"] {
        fs::copy(site.certs().join(name), certs.path().join(name)).unwrap();
    }
    site.wait_connected(&setup.start());
}

#[test]
fn what_is_no_tls_is_refused() {
    let site = Site::new();
    for (what, answer, says) in [
        ("another protocol", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "no TLS session: received corrupt message"),
        ("silence and an end", &b""[..], "no TLS session: "),
    ] {
        let server = RawServer::start(answer);
        let agent = site.setup().server(&server.address()).server(&site.address()).start();
        site.wait_connected(&agent);
        let line = agent.wait_for_log(says);
        assert!(line.contains(" WARN ") && line.contains(&server.address()), "{what}: {line}");
        assert_eq!(site.heartbeats(&agent).count("tls_failures"), 1, "{what}");
    }
}

#[test]
fn either_version_of_tls_will_do() {
    all_at_once(&[("TLS 1.2", TLS12), ("TLS 1.3", TLS13)], |_, versions| {
        let site = Site::with(|options| options.tls_versions = versions);
        assert_records_arrive(&site, site.certs());
    });
}

#[test]
fn keys_of_every_form_will_do() {
    let set = Set::new();
    for (form, label) in [("PKCS#8", "BEGIN PRIVATE KEY"), ("SEC1", "BEGIN EC PRIVATE KEY")] {
        let site = Site::with(|options| {
            let client = if form == "SEC1" { set.client.with_sec1_key() } else { set.client.clone() };
            Set { client, ..set.clone() }.write(&options.certs).unwrap();
        });
        let key = fs::read_to_string(site.certs().join("client.key")).unwrap();
        assert!(key.contains(label), "{form}: {key}");
        assert_records_arrive(&site, site.certs());
    }
}

#[test]
fn the_references_certificates_will_do() {
    let certs = tempfile::tempdir().unwrap();
    if !pki::write_like_reference(certs.path()).unwrap() {
        return skipped("the_references_certificates_will_do", "there is no openssl to make them");
    }
    let key = fs::read_to_string(certs.path().join("client.key")).unwrap();
    assert!(key.contains("BEGIN RSA PRIVATE KEY"), "PKCS#1: {key}");
    let site = Site::with(|options| options.certs = certs.path().to_owned());
    assert_records_arrive(&site, certs.path());
}

fn assert_records_arrive(site: &Site, certs: &Path) {
    let setup = Setup::new(certs).server(&site.address());
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello run=a n=2000")]));
    let agent = setup.start();
    site.wait_records("records", &agent, |records| records.run("a").received >= 2000);
    site.records(&agent, |records| {
        assert!(records.run("a").is_whole(2000), "{:?}", records.run("a"));
        assert_eq!(records.of_type(types::HELLO).count(), 1);
    });
    assert_eq!(agent.log_lines(" WARN "), [""; 0]);
}
