//! Certificates for mutual TLS between an agent and a center: right ones, and the wrong ones that tests need.
//!
//! A [`Set`] is what a working pair has: one authority, and a certificate for each end under the name `elkeid.com`. A
//! test that needs a wrong certificate replaces one part of it:
//!
//! ```
//! use elklet_tests::pki::{Ca, Set, Validity};
//!
//! let good = Set::new();
//! let wrong_name = Set { server: good.ca.issue("example.org", Validity::Current), ..good.clone() };
//! let strangers_client = Set { client: Ca::new("stranger").issue("elkeid.com", Validity::Current), ..good };
//! # let dir = std::env::temp_dir().join(format!("elklet-pki-{}", std::process::id()));
//! wrong_name.write(&dir)?;
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Keys are ECDSA P-256, which is fast to make. [`write_like_reference`] makes RSA keys instead, with the help of `openssl`.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivateSec1KeyDer};
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The name in every certificate of an Elkeid installation, whatever address the agent dials.
pub const SERVER_NAME: &str = "elkeid.com";

/// Everything that a center and its agents need to trust each other.
#[derive(Debug, Clone)]
pub struct Set {
    /// The authority that both ends trust.
    pub ca: Ca,
    /// The center's certificate.
    pub server: Leaf,
    /// The agents' certificate. All of them share it, as with Elkeid.
    pub client: Leaf,
}

impl Default for Set {
    fn default() -> Self {
        Self::new()
    }
}

impl Set {
    /// Makes a fresh authority and fresh certificates for [`SERVER_NAME`]. Each is for its own end only, so that an
    /// agent's host cannot pose as a server.
    pub fn new() -> Self {
        let ca = Ca::new("elklet test authority");
        let server = ca.issue_for(SERVER_NAME, Validity::Current, &[ExtendedKeyUsagePurpose::ServerAuth]);
        let client = ca.issue_for(SERVER_NAME, Validity::Current, &[ExtendedKeyUsagePurpose::ClientAuth]);
        Self { ca, server, client }
    }

    /// Writes `ca.crt`, `server.crt`, `server.key`, `client.crt` and `client.key` into `dir`, which it creates if need
    /// be.
    ///
    /// # Errors
    /// When the directory or a file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("ca.crt"), &self.ca.inner.certificate)?;
        self.server.write(dir, "server")?;
        self.client.write(dir, "client")
    }
}

/// A certificate authority.
#[derive(Debug, Clone)]
pub struct Ca {
    inner: Arc<CaInner>,
}

#[derive(Debug)]
struct CaInner {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Ca {
    /// Makes a self-signed authority with this common name.
    pub fn new(name: &str) -> Self {
        Self::with(name, Validity::Current)
    }

    /// Makes one that is valid at another time.
    pub fn with(name: &str, validity: Validity) -> Self {
        let mut params = CertificateParams::default();
        validity.set(&mut params);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("P-256 keys can always be made");
        let certificate = params.self_signed(&key).expect("the parameters are complete").pem();
        Self { inner: Arc::new(CaInner { issuer: Issuer::new(params, key), certificate }) }
    }

    /// Returns the authority's certificate in PEM.
    pub fn certificate(&self) -> &str {
        &self.inner.certificate
    }

    /// Issues a certificate for the DNS name `name`, for either end. Like Elkeid's, it has no extended key usage.
    ///
    /// # Panics
    /// When `name` is not ASCII.
    pub fn issue(&self, name: &str, validity: Validity) -> Leaf {
        self.issue_for(name, validity, &[])
    }

    fn issue_for(&self, name: &str, validity: Validity, usages: &[ExtendedKeyUsagePurpose]) -> Leaf {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a DNS name is ASCII");
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        validity.set(&mut params);
        let key = KeyPair::generate().expect("P-256 keys can always be made");
        let certificate = params.signed_by(&key, &self.inner.issuer).expect("the parameters are complete");
        Leaf { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Current,
    /// Until some years ago.
    Expired,
    /// From some decades ahead.
    Future,
    /// For this many days and twelve hours yet.
    Days(u32),
}

impl Validity {
    fn set(self, params: &mut CertificateParams) {
        let (from, until) = match self {
            Self::Current | Self::Days(_) => (2020, 2120),
            Self::Expired => (2010, 2020),
            Self::Future => (2110, 2120),
        };
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        if let Self::Days(days) = self {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
            let left = Duration::from_secs(86_400 * u64::from(days) + 43_200);
            params.not_after = date_time_ymd(1970, 1, 1) + now + left;
        }
    }
}

/// A certificate with its key, both in PEM.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// `CERTIFICATE`.
    pub certificate: String,
    /// `PRIVATE KEY` (PKCS#8), or `EC PRIVATE KEY` after [`Leaf::with_sec1_key`].
    pub key: String,
}

impl Leaf {
    /// Returns the same certificate with its key as SEC1, `EC PRIVATE KEY`.
    ///
    /// # Panics
    /// When the key is not one of [`Ca::issue`]'s.
    #[must_use]
    pub fn with_sec1_key(&self) -> Self {
        let pkcs8 = pem::parse(&self.key).expect("the key is PEM");
        let sec1 = sec1_in_pkcs8(pkcs8.contents()).expect("the key is an elliptic curve's in PKCS#8");
        let checked = PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(sec1));
        rustls::crypto::ring::sign::any_ecdsa_type(&checked).expect("the inner key stands on its own");
        let key = pem::encode(&pem::Pem::new("EC PRIVATE KEY", sec1));
        Self { certificate: self.certificate.clone(), key }
    }

    /// Writes `NAME.crt`, and `NAME.key` readable by its owner only, into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> io::Result<()> {
        fs::write(dir.join(format!("{name}.crt")), &self.certificate)?;
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(dir.join(format!("{name}.key")))?;
        io::Write::write_all(&mut file, self.key.as_bytes())
    }
}

/// Writes a set like the one Elkeid ships: RSA keys in PKCS#1 (`RSA PRIVATE KEY`), an X.509 v1 authority without extensions,
/// and leaves whose subject is the authority's.
///
/// Returns false, and writes nothing, if there is no `openssl` to make it with.
///
/// # Errors
/// When the directory cannot be written, or `openssl` fails; the message is the end of what it printed.
pub fn write_like_reference(dir: &Path) -> io::Result<bool> {
    let present = Command::new("openssl").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !present.is_ok_and(|status| status.success()) {
        return Ok(false);
    }
    fs::create_dir_all(dir)?;
    fs::write(dir.join("leaf.ext"), "subjectAltName=DNS:elkeid.com\nkeyUsage=digitalSignature,keyEncipherment\n")?;
    for name in ["ca", "server", "client"] {
        openssl(dir, &format!("genrsa -traditional -out {name}.key 2048"))?;
        openssl(dir, &format!("req -new -sha256 -key {name}.key -subj /O=elkeid/CN={SERVER_NAME} -out {name}.csr"))?;
    }
    // Without an extension file, `x509 -req` makes a version 1 certificate.
    openssl(dir, "x509 -req -sha256 -days 3650 -in ca.csr -signkey ca.key -out ca.crt")?;
    for name in ["server", "client"] {
        let authority = "-CA ca.crt -CAkey ca.key -CAcreateserial";
        openssl(
            dir,
            &format!("x509 -req -sha256 -days 3650 -in {name}.csr {authority} -extfile leaf.ext -out {name}.crt"),
        )?;
    }
    Ok(true)
}

fn openssl(dir: &Path, arguments: &str) -> io::Result<()> {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "openssl {arguments} failed: {}",
        said.trim_end().lines().last().unwrap_or("no reason")
    )))
}

/// Returns the ECPrivateKey (RFC 5915) that a PrivateKeyInfo (RFC 5208) carries as its third element.
fn sec1_in_pkcs8(pkcs8: &[u8]) -> Option<&[u8]> {
    const INTEGER: u8 = 0x02;
    const OCTET_STRING: u8 = 0x04;
    const SEQUENCE: u8 = 0x30;
    let (info, _) = der_element(pkcs8, SEQUENCE)?;
    let (_version, rest) = der_element(info, INTEGER)?;
    let (_algorithm, rest) = der_element(rest, SEQUENCE)?;
    Some(der_element(rest, OCTET_STRING)?.0)
}

/// Returns the contents of the DER element at the start of `bytes`, and what follows it, or `None` if its tag is
/// another.
fn der_element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    (found == tag).then_some(())?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec1_key_is_the_same_key() {
        let leaf = Set::new().client;
        let sec1 = leaf.with_sec1_key();
        assert!(sec1.key.starts_with("-----BEGIN EC PRIVATE KEY-----"));
        let inner = pem::parse(sec1.key).unwrap();
        let outer = pem::parse(leaf.key).unwrap();
        assert!(outer.contents().windows(inner.contents().len()).any(|part| part == inner.contents()));
    }

    #[test]
    fn der_lengths_are_bounded() {
        assert_eq!(der_element(&[0x04, 3, 1, 2], 0x04), None);
        assert_eq!(der_element(&[0x04, 0x82, 1], 0x04), None);
        assert_eq!(der_element(&[0x04, 0x81, 1, 9, 8], 0x04), Some((&[9][..], &[8][..])));
        assert_eq!(der_element(&[0x02, 0], 0x04), None);
    }
}
