//! The center as a certificate authority: it signs the keys of hosts, and of its own server.
//!
//! [`own`] makes the authority of a center that was given no certificates. [`Authority`] is one with its key, that or an operator's.
//! [`Peer`] is what a client's certificate says about the client. Who may have a certificate is decided elsewhere.

pub(crate) mod files;
pub(crate) mod own;
mod peer;

pub(crate) use peer::{Bound, Peer};

use crate::given;
use crate::hex::hex;
use elklet_proto::agent_uri;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use std::fmt;
use std::path::Path;
use std::time::Duration;
use x509_parser::parse_x509_certificate;

/// A certificate is valid from so long before it is made, or a tenth of its lifetime if that is less: the host's clock may be behind.
const BACKDATED: Duration = Duration::from_secs(300);

/// The longest common name, in bytes (RFC 5280, appendix A.1). The name is for people.
const MAX_COMMON_NAME: usize = 64;

/// Bytes of a serial number.
const SERIAL_LEN: usize = 16;

/// The file of an authority's key, beside `ca.crt`.
pub(crate) const KEY_FILE: &str = "ca.key";

/// An authority with its key.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// When its own certificate ends, in seconds since 1970.
    until: i64,
    lifetime: Duration,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("pin", &self.pin()).field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

/// What is decided about a certificate before it is signed.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Its serial number, in lower-case hexadecimal digits.
    pub(crate) serial: String,
    bytes: [u8; SERIAL_LEN],
    /// From when and until when it is valid, in seconds since 1970.
    from: i64,
    pub(crate) until: i64,
}

/// A host's key, which the host has proved to have.
#[derive(Debug)]
pub(crate) struct HostKey(CertificateSigningRequestParams);

impl HostKey {
    /// Reads a request, and checks that its sender has the private key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of(request: &[u8]) -> Result<Self, String> {
        let request = CertificateSigningRequestDer::from(request);
        CertificateSigningRequestParams::from_der(&request).map(Self).map_err(|error| error.to_string())
    }
}

impl Authority {
    /// Reads `ca.crt` and `ca.key` in a directory. `lifetime` is that of hosts' certificates.
    ///
    /// # Errors
    /// Why it cannot sign, in words that follow "because".
    pub(crate) fn load(dir: &Path, lifetime: Duration) -> Result<Self, String> {
        let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join(KEY_FILE));
        if !key_path.exists() {
            return Err(format!("it has no key of the authority: there is no {}", key_path.display()));
        }
        let at = |path: &Path, error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let key = given::private_key(&key_path).map_err(|error| error.to_string())?;
        let PrivateKeyDer::Pkcs8(key) = key else {
            let told = "expected a key in PKCS#8, as `openssl pkcs8 -topk8 -nocrypt` writes it";
            return Err(at(&key_path, &told));
        };
        let key = KeyPair::try_from(&key).map_err(|error| at(&key_path, &error))?;
        let wanted = key.subject_public_key_info();
        // The file may hold others, for clients of before.
        let certificates = given::certificates(&certificate_path).map_err(|error| error.to_string())?;
        let own = |certificate: &CertificateDer<'_>| key_info(certificate).is_some_and(|info| info == wanted);
        let Some(certificate) = certificates.into_iter().find(own) else {
            return Err(at(&key_path, &format!("no certificate in {} has this key", certificate_path.display())));
        };
        let until = parse_x509_certificate(&certificate).map_err(|error| at(&certificate_path, &error))?;
        let until = until.1.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| at(&certificate_path, &error))?;
        Ok(Self { issuer, certificate, until, lifetime })
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The SHA-256 of its `SubjectPublicKeyInfo`, in lower-case hexadecimal digits.
    pub(crate) fn pin(&self) -> String {
        hex(digest(&SHA256, &self.issuer.key().subject_public_key_info()).as_ref())
    }

    /// Decides about a certificate that is signed now.
    pub(crate) fn terms(&self, random: [u8; SERIAL_LEN], now_s: i64) -> Terms {
        let mut bytes = random;
        // A serial number is positive (RFC 5280, section 4.1.2.2), and with this bit it has as many digits as bytes.
        bytes[0] = bytes[0] & 0x7f | 0x40;
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 4);
        let from = now_s - seconds(BACKDATED.min(self.lifetime / 10));
        let until = now_s.saturating_add(seconds(self.lifetime)).min(self.until);
        Terms { serial: hex(&bytes), bytes, from, until }
    }

    /// Signs the key of an agent's host.
    ///
    /// # Errors
    /// The authority's key cannot sign, or a name cannot be written.
    pub(crate) fn issue(&self, key: &HostKey, agent_id: &str, terms: &Terms) -> Result<Vec<u8>, String> {
        let mut params = leaf(terms.from, terms.until, ExtendedKeyUsagePurpose::ClientAuth);
        params.serial_number = Some(SerialNumber::from_slice(&terms.bytes));
        params.distinguished_name.push(DnType::CommonName, &agent_id[..agent_id.floor_char_boundary(MAX_COMMON_NAME)]);
        let uri: Ia5String = agent_uri::of(agent_id).try_into().map_err(|error: rcgen::Error| error.to_string())?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let signed = params.signed_by(&key.0.public_key, &self.issuer).map_err(|error| error.to_string())?;
        Ok(signed.der().to_vec())
    }

    /// Signs a certificate for the center's own server, and returns it in PEM.
    fn issue_server(
        &self,
        key: &KeyPair,
        names: &[String],
        now_s: i64,
        lifetime: Duration,
    ) -> Result<String, rcgen::Error> {
        let until = now_s + i64::try_from(lifetime.as_secs()).unwrap_or(0);
        let mut params =
            leaf(now_s - BACKDATED.as_secs().cast_signed(), until.min(self.until), ExtendedKeyUsagePurpose::ServerAuth);
        params.distinguished_name.push(DnType::CommonName, "elklet-center");
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.signed_by(key, &self.issuer).map(|signed| signed.pem())
    }
}

/// What certificates of servers and hosts have in common.
fn leaf(from_s: i64, until_s: i64, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.not_before = date_time_ymd(1970, 1, 1) + after_1970(from_s);
    params.not_after = date_time_ymd(1970, 1, 1) + after_1970(until_s);
    params
}

/// So many seconds; a moment before 1970 counts as then.
fn after_1970(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Returns when a certificate ends, in seconds since 1970, if it can be read.
pub(crate) fn end_s(certificate: &CertificateDer<'_>) -> Option<i64> {
    parse_x509_certificate(certificate).ok().map(|(_, certificate)| certificate.validity().not_after.timestamp())
}

/// Returns the `SubjectPublicKeyInfo` of a certificate.
fn key_info<'a>(certificate: &'a CertificateDer<'_>) -> Option<&'a [u8]> {
    parse_x509_certificate(certificate).ok().map(|(_, certificate)| certificate.tbs_certificate.subject_pki.raw)
}

#[cfg(test)]
mod tests;
