//! Which certificates get a client in.

use crate::Site;
use crate::support::client::Client;
use elklet_tests::center::{Center, Options};
use elklet_tests::harness::skipped;
use elklet_tests::pki::{self, Ca, Set, Validity};

#[tokio::test]
async fn only_agents_with_the_right_certificate_come_in() {
    let site = Site::new();
    let (dir, address) = (site.dir.path(), site.center.grpc_addr());
    assert!(Client::connect_anonymously(address, dir).await.is_err());
    let good = Set::new();
    let ca = std::fs::read_to_string(dir.join("ca.crt")).unwrap();
    for (what, client) in [
        ("a stranger's", Ca::new("stranger").issue(pki::SERVER_NAME, Validity::Current)),
        ("one by another authority of the same name", good.client),
    ] {
        let wrong = tempfile::tempdir().unwrap();
        std::fs::write(wrong.path().join("ca.crt"), &ca).unwrap();
        client.write(wrong.path(), "client").unwrap();
        assert!(Client::connect(address, wrong.path()).await.is_err(), "{what}");
    }
    site.until("failed handshakes", |state| state.totals.failed_handshakes == 3).await;
    assert_eq!(site.center.read(|state| state.totals.streams), 0);
}

#[tokio::test]
async fn certificates_of_every_kind() {
    let set = Set::new();
    for (what, set, accepted) in [
        ("sec1", Set { client: set.client.with_sec1_key(), server: set.server.with_sec1_key(), ..set.clone() }, true),
        ("expired client", Set { client: set.ca.issue(pki::SERVER_NAME, Validity::Expired), ..set.clone() }, false),
        ("future client", Set { client: set.ca.issue(pki::SERVER_NAME, Validity::Future), ..set.clone() }, false),
        ("expired server", Set { server: set.ca.issue(pki::SERVER_NAME, Validity::Expired), ..set.clone() }, false),
        ("other server", Set { server: set.ca.issue("example.org", Validity::Current), ..set.clone() }, false),
        // The client's name means nothing to AgentCenter.
        ("other client", Set { client: set.ca.issue("example.org", Validity::Current), ..set.clone() }, true),
    ] {
        let site = Site::with(|options| set.write(&options.certs).unwrap());
        let connected = Client::connect(site.center.grpc_addr(), site.dir.path()).await;
        assert_eq!(connected.is_ok(), accepted, "{what}: {:?}", connected.err());
    }
}

#[tokio::test]
async fn certificates_as_the_reference_has_them() {
    let dir = tempfile::tempdir().unwrap();
    if !pki::write_like_reference(dir.path()).unwrap() {
        return skipped("certificates_as_the_reference_has_them", "there is no openssl to make them");
    }
    let key = std::fs::read_to_string(dir.path().join("client.key")).unwrap();
    assert!(key.starts_with("-----BEGIN RSA PRIVATE KEY-----"), "{key}");
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["x509", "-noout", "-text", "-in"]).arg(dir.path().join("ca.crt"));
    let text = String::from_utf8(openssl.output().unwrap().stdout).unwrap();
    assert!(text.contains("Version: 1 "), "{text}");
    let center = Center::start(Options::new(dir.path())).unwrap();
    Client::connect(center.grpc_addr(), dir.path()).await.unwrap();
}
