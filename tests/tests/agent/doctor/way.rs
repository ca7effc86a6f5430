//! What is wrong on the way to a server, hop by hop.

use super::{NOBODY, PASSED, Visit, findings, verdicts};
use elklet_tests::center::{Fault, Options, Pace, Status};
use elklet_tests::harness::{Site, all_at_once};
use elklet_tests::pki::{Ca, SERVER_NAME, Set, Validity};
use elklet_tests::proxy::{self, Kind, Proxy};
use h2::Reason;
use http::StatusCode;
use std::fs;
use std::net::TcpListener;

/// Makes the server wrong, given the right certificates, which the directory has already.
type Spoil = fn(&Set, &mut Options);

/// The hop, what the doctor says about it, and what helps.
type Expected = (&'static str, &'static str, &'static str);

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
fn a_certificate_that_is_refused_sends_the_host_to_its_enrolment() {
    let site = Site::new();
    let visit = Visit::new(site.certs(), &site.address());
    for (code, says) in
        [(16, "the certificate of this agent is revoked"), (7, "the certificate is for agent a, and not for b")]
    {
        site.center().on_next_stream(Fault::Status(Status::new(code, says)));
        visit.fails_at("AgentCenter", says, "enrol the host again");
    }
    visit.finds(0);
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
