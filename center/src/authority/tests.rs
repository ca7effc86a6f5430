use super::own::{ensure, renew_server};
use super::*;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

const NOW: i64 = 1_800_000_000;
const YEAR: i64 = 365 * 86_400;

fn made() -> (tempfile::TempDir, std::path::PathBuf, Authority) {
    let data = tempfile::tempdir().unwrap();
    let (dir, is_new) = ensure(data.path(), NOW).unwrap();
    assert!(is_new);
    let authority = Authority::load(&dir, Duration::from_secs(90 * 86_400)).unwrap();
    (data, dir, authority)
}

fn request() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::new(["ignored.example".to_owned()]).unwrap().serialize_request(&key).unwrap();
    (key, request.der().to_vec())
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).unwrap();
    Arc::new(roots)
}

fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(after_1970(seconds))
}

#[test]
fn the_first_start_makes_what_only_the_owner_reads_and_later_ones_find_it() {
    let (data, dir, authority) = made();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!((mode(&dir.join("ca.key")), mode(&dir.join("server.key"))), (0o600, 0o600));
    // A center that was killed while it made its first one has left this.
    fs::create_dir(data.path().join("authority.new")).unwrap();
    assert!(!ensure(data.path(), NOW).unwrap().1);
    assert_eq!(Authority::load(&dir, BACKDATED).unwrap().pin(), authority.pin());
    fs::remove_dir_all(&dir).unwrap();
    assert!(ensure(data.path(), NOW).unwrap().1);
    assert_ne!(Authority::load(&dir, BACKDATED).unwrap().pin(), authority.pin());
}

#[test]
fn a_servers_certificate_has_the_protocols_name_and_is_made_anew_in_its_last_third() {
    let (_data, dir, authority) = made();
    let verify = |name: &str, now_s: i64| {
        let certificate = CertificateDer::from_pem_file(dir.join("server.crt")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots(&authority), provider).build().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&certificate, &[], &name, &[], at(now_s)).map(drop)
    };
    assert_eq!(verify("elkeid.com", NOW), Ok(()));
    assert_eq!(verify("localhost", NOW), Ok(()));
    assert!(verify("example.org", NOW).is_err());
    let key = fs::read(dir.join("server.key")).unwrap();
    assert!(!renew_server(&dir, NOW + YEAR / 2).unwrap());
    assert!(renew_server(&dir, NOW + YEAR * 3 / 4).unwrap());
    assert_eq!(verify("elkeid.com", NOW + YEAR * 3 / 2), Ok(()));
    assert_eq!(fs::read(dir.join("server.key")).unwrap(), key, "a key that changed apart might not fit");
    assert!(renew_server(&dir, NOW).unwrap(), "a clock that was ahead is no reason to keep what is not valid yet");
}

#[test]
fn a_hosts_certificate_names_its_agent_and_is_good_for_a_client_only() {
    let (_data, _dir, authority) = made();
    let (key, request) = request();
    let id = "gateway 1/ü".repeat(20);
    let terms = authority.terms([0xff; SERIAL_LEN], NOW);
    let issued = authority.issue(&HostKey::of(&request).unwrap(), &id, &terms).unwrap();
    let certificate = CertificateDer::from(issued);
    assert_eq!(key_info(&certificate), Some(&key.subject_public_key_info()[..]));
    let bound = Bound { agent_id: id, serial: terms.serial.clone() };
    assert_eq!((terms.serial.len(), Peer::of(Some(&certificate))), (32, Peer::Agent(bound)));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(roots(&authority), Arc::clone(&provider)).build().unwrap();
    assert!(clients.verify_client_cert(&certificate, &[], at(NOW)).is_ok());
    assert!(clients.verify_client_cert(&certificate, &[], at(NOW + 91 * 86_400)).is_err());
    let servers = WebPkiServerVerifier::builder_with_provider(roots(&authority), provider).build().unwrap();
    let name = ServerName::try_from("elkeid.com").unwrap();
    let refused = servers.verify_server_cert(&certificate, &[], &name, &[], at(NOW));
    assert!(
        matches!(refused, Err(rustls::Error::InvalidCertificate(error)) if error != CertificateError::UnknownIssuer)
    );
    assert_eq!(Peer::of(None), Peer::Anonymous);
    assert_eq!(Peer::of(Some(authority.certificate())), Peer::Anyone);
}

#[test]
fn no_certificate_outlives_its_authority() {
    let (_data, _dir, authority) = made();
    let terms = authority.terms([1; SERIAL_LEN], authority.until - 10);
    assert_eq!(terms.until, authority.until);
}

#[test]
fn who_has_no_proof_of_the_key_gets_nothing() {
    let (_, request) = request();
    assert!(HostKey::of(&request).is_ok());
    for wrong in [&[][..], &request[..request.len() - 1], b"not a request"] {
        assert!(HostKey::of(wrong).is_err());
    }
    let mut forged = request.clone();
    // The last byte of the signature.
    *forged.last_mut().unwrap() ^= 1;
    assert!(HostKey::of(&forged).is_err());
}

#[test]
fn an_authority_without_its_key_says_why_it_cannot_sign() {
    let (data, dir, _) = made();
    let why = |dir: &Path| Authority::load(dir, BACKDATED).unwrap_err();
    let other = ensure(&data.path().join("other"), NOW).unwrap().0;
    fs::copy(other.join("ca.key"), dir.join("ca.key")).unwrap();
    assert!(why(&dir).contains("has this key"), "{}", why(&dir));
    fs::write(dir.join("ca.key"), "nothing").unwrap();
    assert!(why(&dir).contains("ca.key"), "{}", why(&dir));
    fs::remove_file(dir.join("ca.key")).unwrap();
    assert!(why(&dir).contains("there is no"), "{}", why(&dir));
}
