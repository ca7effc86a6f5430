//! TLS, right and wrong: whom the agent trusts, who trusts the agent, and what it says when either fails.

use crate::PLUGIN;
use elklet_core::link::x509;
use elklet_tests::center::Options;
use elklet_tests::harness::{RawServer, Setup, Signal, Site, all_at_once, skipped, types};
use elklet_tests::pki::{self, Ca, SERVER_NAME, Set, Validity};
use ring::digest::{SHA256, digest};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Makes the server wrong, given the right certificates, which the directory has already.
type Spoil = fn(&Set, &mut Options);

static TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
static TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[test]
fn a_wrong_server_is_refused_until_it_is_mended() {
    fn spoil_server(set: &Set, leaf: pki::Leaf, options: &Options) {
        Set { server: leaf, ..set.clone() }.write(&options.certs).unwrap();
    }
    let cases: [(&str, (Spoil, &str)); 9] = [
        (
            "the agent's own",
            (
                |set, options| spoil_server(set, set.client.clone(), options),
                "no TLS session: the server presents this agent's own key, expected one that no agent has",
            ),
        ),
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
                "invalid peer certificate: certificate expired at 2020-01-01T00:00:00Z, and this host's clock says 2",
            ),
        ),
        (
            "from the future",
            (
                |set, options| spoil_server(set, set.ca.issue(SERVER_NAME, Validity::Future), options),
                "invalid peer certificate: certificate not valid yet, only from 2110-01-01T00:00:00Z, and this host's clock says 2",
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

/// Returns the SHA-256 of a certificate's key, computed by openssl.
fn pin(leaf: &pki::Leaf) -> [u8; 32] {
    let der = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
    let key = x509::public_key_info(&der).unwrap();
    digest(&SHA256, key).as_ref().try_into().unwrap()
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_authority_for_both_ends_does_not_make_an_agent_a_server() {
    // Like Elkeid's, these certificates are for neither end in particular. An attacker takes this one from a host.
    let set = Set::new();
    let shared = set.ca.issue(SERVER_NAME, Validity::Current);
    let set = Set { client: shared.clone(), ..set };
    let site = Site::with(|options| Set { server: shared.clone(), ..set.clone() }.write(&options.certs).unwrap());
    let right = Site::with(|options| set.write(&options.certs).unwrap());
    let agent = Setup::new(site.certs()).server(&site.address()).server(&right.address()).start();
    let line = agent.wait_for_log("the server presents this agent's own key");
    assert!(line.contains(&site.address()), "{line}");
    right.wait_connected(&agent);
    site.center().read(|state| assert!(state.agents.is_empty()));
}

#[test]
fn servers_have_one_of_the_pinned_keys_and_the_name_that_was_set() {
    let set = Set::new();
    let [next, other] = [(); 2].map(|()| set.ca.issue("center.example", Validity::Current));
    let certs = tempfile::tempdir().unwrap();
    set.write(certs.path()).unwrap();
    let with = |server: &pki::Leaf| {
        let set = Set { server: server.clone(), ..set.clone() };
        Site::with(|options| set.write(&options.certs).unwrap())
    };
    let (pinned, unpinned) = (with(&next), with(&other));
    let pins = format!("pin_sha256 = [\"{}\", \"{}\"]", hex(&[7; 32]), hex(&pin(&next)));
    let setup = Setup::new(certs.path()).setting("server", "name = \"center.example\"").setting("server", &pins);
    let agent = setup.server(&unpinned.address()).server(&pinned.address()).start();
    let line = agent.wait_for_log("which server.pin_sha256 does not have");
    let got =
        format!("{}: no TLS session: the server's key has the SHA-256 {}, ", unpinned.address(), hex(&pin(&other)));
    assert!(line.contains(&got), "{line}");
    pinned.wait_connected(&agent);
    unpinned.center().read(|state| assert!(state.agents.is_empty()));

    // After SIGHUP the other key is the right one.
    let file = agent.workdir().path().join("elklet.toml");
    let text = fs::read_to_string(&file).unwrap().replace(&hex(&pin(&next)), &hex(&pin(&other)));
    fs::write(&file, text).unwrap();
    agent.signal(Signal::HUP);
    unpinned.wait_connected(&agent);

    // Here only the name is wrong.
    let agent = Setup::new(certs.path()).server(&pinned.address()).start();
    agent.wait_for_log("certificate not valid for name \"elkeid.com\"");
}

#[test]
fn the_centers_certificates_are_for_one_end_each() {
    let set = Set::new();
    let right = Site::with(|options| set.write(&options.certs).unwrap());
    // A server poses with another host's certificate, which this agent has never seen.
    let certs = tempfile::tempdir().unwrap();
    Set { client: set.ca.issue(SERVER_NAME, Validity::Current), ..set.clone() }.write(certs.path()).unwrap();
    let wrong = Site::with(|options| Set { server: set.client.clone(), ..set.clone() }.write(&options.certs).unwrap());
    let agent = Setup::new(certs.path()).server(&wrong.address()).server(&right.address()).start();
    let line =
        agent.wait_for_log("no TLS session: invalid peer certificate: certificate does not allow extended key usage");
    assert!(line.contains(&wrong.address()), "{line}");
    // The agent's own certificate has no usage at all, as in older installations.
    right.wait_connected(&agent);
    // An agent poses with a server's certificate.
    let certs = tempfile::tempdir().unwrap();
    Set { client: set.server.clone(), ..set.clone() }.write(certs.path()).unwrap();
    let other = Site::with(|options| {
        Set { server: set.ca.issue(SERVER_NAME, Validity::Current), ..set.clone() }.write(&options.certs).unwrap();
    });
    Setup::new(certs.path()).server(&other.address()).start().wait_for_log("received fatal alert: ");
}

/// Authorities, certificate and key, and what the log says about them.
type Texts = ([String; 3], Option<&'static str>);

#[test]
fn certificates_are_taken_as_tools_and_editors_leave_them() {
    let site = Site::new();
    let read = |name: &str| fs::read_to_string(site.certs().join(name)).unwrap();
    let [ca, crt, key] = ["ca.crt", "client.crt", "client.key"].map(read);
    let stranger = Ca::new("stranger").certificate().to_owned();
    let empty = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let damaged = stranger.replace("MII", "AII");
    let crl = "-----BEGIN X509 CRL-----\nMA==\n-----END X509 CRL-----\n";
    let torn = &stranger[..stranger.len() / 2];
    let expired = Ca::with("expired", Validity::Expired).certificate().to_owned();
    let bom = |text: &str| format!("\u{feff}{text}");
    let cases: [(&str, Texts); 9] = [
        ("byte order marks", ([bom(&ca), bom(&crt), bom(&key)], None)),
        ("CR alone", ([&ca, &crt, &key].map(|text| text.replace('\n', "\r")), None)),
        ("text around", ([format!("Bag: x\n\n{ca}\nend"), format!("# mine\n{crt}"), key.clone()], None)),
        ("key and certificate in one file", ([ca.clone(), format!("{key}{crt}"), format!("{crt}{key}")], None)),
        (
            "an empty one first",
            ([format!("{empty}{ca}"), crt.clone(), key.clone()], Some("section 1 (CERTIFICATE, line 1) is damaged")),
        ),
        (
            "a damaged one last",
            ([format!("{ca}{damaged}"), crt.clone(), key.clone()], Some("section 2 (CERTIFICATE, line ")),
        ),
        (
            "a revocation list",
            (
                [format!("{crl}{ca}"), crt.clone(), key.clone()],
                Some("section 1 (X509 CRL, line 1) is no certificate; it is passed over"),
            ),
        ),
        (
            "a torn one first",
            ([format!("{torn}\n{ca}"), crt.clone(), key.clone()], Some("section 1 (CERTIFICATE, line 1) is damaged")),
        ),
        (
            "an expired one",
            ([format!("{expired}{ca}"), crt.clone(), key.clone()], Some("section 1 (CERTIFICATE, line 1) has expired")),
        ),
    ];
    all_at_once(&cases, |name, (texts, says)| {
        let certs = tempfile::tempdir().unwrap();
        for (file, text) in ["ca.crt", "client.crt", "client.key"].into_iter().zip(texts) {
            fs::write(certs.path().join(file), text).unwrap();
        }
        let agent = Setup::new(certs.path()).server(&site.address()).start();
        site.wait_connected(&agent);
        match says {
            None => assert_eq!(agent.log_lines(" WARN "), [""; 0], "{name}"),
            Some(says) => {
                let line = agent.wait_for_log(says);
                assert!(line.contains(" WARN ") && line.contains("ca.crt: "), "{name}: {line}");
            }
        }
    });
}

#[test]
fn a_byte_order_mark_before_the_settings_is_passed_over() {
    let site = Site::new();
    let setup = site.setup();
    fs::write(
        setup.workdir().path().join("elklet.toml"),
        format!("\u{feff}[server]\nprivate = [\"{}\"]\n", site.address()),
    )
    .unwrap();
    site.wait_connected(&setup.start());
}

#[test]
fn what_is_no_good_is_called_by_its_name_and_file() {
    let set = Set::new();
    let start = |change: &dyn Fn(&Path)| {
        let certs = tempfile::tempdir().unwrap();
        set.write(certs.path()).unwrap();
        change(certs.path());
        let mut agent = Setup::new(certs.path()).server("127.0.0.1:1").start();
        assert_eq!(agent.wait_for_exit().code(), Some(2), "{}", agent.log());
        agent.stderr().trim_end().replace(&certs.path().display().to_string(), "DIR")
    };
    let write = |name: &'static str, text: &str| {
        let text = text.to_owned();
        move |certs: &Path| fs::write(certs.join(name), &text).unwrap()
    };
    let pkcs = "expected an unencrypted PKCS#8, PKCS#1 or SEC1 key";
    let head = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=";
    let section = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    for (name, text, says) in [
        (
            "client.key",
            section("ENCRYPTED PRIVATE KEY", "MAA="),
            format!("the key is encrypted (ENCRYPTED PRIVATE KEY), {pkcs}"),
        ),
        ("client.key", section("RSA PRIVATE KEY", head), format!("the key is encrypted (RSA PRIVATE KEY), {pkcs}")),
        ("client.key", set.client.certificate.clone(), format!("holds a section \"CERTIFICATE\", {pkcs}")),
        (
            "client.key",
            section("OPENSSH PRIVATE KEY", "MAA="),
            format!("holds a section \"OPENSSH PRIVATE KEY\", {pkcs}"),
        ),
        ("client.key", String::new(), format!("is empty, {pkcs} in PEM")),
        ("client.key", section("PRIVATE KEY", "*"), "the section \"PRIVATE KEY\" at line 1 is damaged".to_owned()),
        (
            "client.key",
            set.server.key.clone(),
            "the key does not belong to the certificate in DIR/client.crt".to_owned(),
        ),
        ("client.crt", set.client.key.clone(), "holds a section \"PRIVATE KEY\", expected a certificate".to_owned()),
        ("client.crt", section("CERTIFICATE", "MAA="), "is damaged: it holds no X.509 certificate".to_owned()),
        ("ca.crt", section("CERTIFICATE", "MAA="), "found none: section 1 (CERTIFICATE, line 1) is damaged".to_owned()),
        ("ca.crt", "\u{30}\u{0}".to_owned(), "expected a PEM file with a certificate, found none".to_owned()),
    ] {
        let said = start(&write(name, &text));
        assert!(said.contains(&format!("--certs: DIR/{name}: ")) && said.contains(&says), "{says}\n{said}");
    }
    let said = start(&|certs| fs::remove_file(certs.join("client.crt")).unwrap());
    assert!(said.contains("--certs: DIR/client.crt: no such file"), "{said}");

    // The source of the directory's name.
    let setup = Setup::in_directory(elklet_tests::harness::Workdir::new()).server("127.0.0.1:1");
    let file = setup.workdir().path().join("elklet.toml");
    fs::write(&file, "certs = \"/nowhere\"\n").unwrap();
    let mut agent = setup.start();
    assert_eq!(agent.wait_for_exit().code(), Some(2));
    let said = format!("certs in {}: /nowhere/ca.crt: no such file", file.display());
    assert!(agent.stderr().contains(&said), "{}", agent.stderr());
}

#[test]
fn keys_that_tls_cannot_sign_with_are_called_by_their_kind() {
    let certs = tempfile::tempdir().unwrap();
    if !pki::write_like_reference(certs.path()).unwrap() {
        return skipped("keys_that_tls_cannot_sign_with_are_called_by_their_kind", "there is no openssl to make them");
    }
    for (words, says) in [
        ("genrsa -out client.key 1024", "client.key: is an RSA key of 1024 bits, expected RSA of 2048 to 4096 bits"),
        ("genrsa -traditional -out client.key 1024", "client.key: is an RSA key of 1024 bits, expected"),
        ("ecparam -name secp521r1 -genkey -out client.key", "client.key: is a P-521 key, expected"),
        ("genpkey -algorithm ed448 -out client.key", "client.key: is an Ed448 key, expected"),
    ] {
        let made = Command::new("openssl").args(words.split(' ')).current_dir(certs.path()).output().unwrap();
        assert!(made.status.success(), "{words}");
        let mut agent = Setup::new(certs.path()).server("127.0.0.1:1").start();
        assert_eq!(agent.wait_for_exit().code(), Some(2));
        assert!(agent.stderr().contains(says), "{says}\n{}", agent.stderr());
    }
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
