//! Decides whom the agent takes for a server. A server has a certificate of one of the authorities for the right name,
//! has one of the pinned keys if there are any, and is not this agent itself.
//!
//! In Elkeid's deployments all agents share one certificate, from the authority that also signs the servers'
//! certificates, for the same name. Whoever holds it, which is every host, could otherwise pass for a server.

use std::fmt;
use std::sync::Arc;

use elklet_core::link::x509;
use ring::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, OtherError, SignatureScheme};

/// The SHA-256 of a `SubjectPublicKeyInfo`.
pub(crate) type KeyHash = [u8; 32];

/// Returns the hash of a certificate's key, or `None` if the key cannot be found.
pub(super) fn key_hash(certificate: &CertificateDer<'_>) -> Option<KeyHash> {
    let key = x509::public_key_info(certificate)?;
    digest::digest(&digest::SHA256, key).as_ref().try_into().ok()
}

/// Why the agent refuses a server with an otherwise valid certificate.
#[derive(Debug)]
enum Refusal {
    Own,
    Unpinned(Option<KeyHash>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("the server presents this agent's own key, expected one that no agent has"),
            Self::Unpinned(hash) => {
                f.write_str("the server's key has the SHA-256 ")?;
                hash.iter().flatten().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str(", which server.pin_sha256 does not have")
            }
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Other(OtherError(Arc::new(refusal)))
    }
}

/// None of the authorities that a server has shown has the key that was pinned. The hash is that of the last one's key.
#[derive(Debug)]
pub(super) struct Unpinned(pub(super) Option<KeyHash>);

impl fmt::Display for Unpinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(hash) = &self.0 else { return f.write_str("the server shows no authority, and so none with the pin") };
        f.write_str("the server's authority has a key with the SHA-256 ")?;
        hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(", which is not the pin")
    }
}

impl std::error::Error for Unpinned {}

impl From<Unpinned> for Error {
    fn from(unpinned: Unpinned) -> Self {
        Self::Other(OtherError(Arc::new(unpinned)))
    }
}

/// Verifies servers by all of these rules.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) web: Arc<WebPkiServerVerifier>,
    /// This agent's key, if it has one.
    pub(super) own: Option<KeyHash>,
    /// The keys that servers may have. If there are none, any key is good.
    pub(super) pins: Vec<KeyHash>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let hash = key_hash(end_entity);
        if hash.is_some() && hash == self.own {
            return Err(Refusal::Own.into());
        }
        let verified = self.web.verify_server_cert(end_entity, intermediates, name, ocsp, now)?;
        if self.pins.is_empty() || hash.is_some_and(|hash| self.pins.contains(&hash)) {
            Ok(verified)
        } else {
            Err(Refusal::Unpinned(hash).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web.supported_verify_schemes()
    }
}
