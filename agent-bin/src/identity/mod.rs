//! The host's own key and certificate, when a center gives it one: the key is made here, and never leaves the host.
//!
//! [`NewKey`] makes the request, and checks what comes back. [`Identity`] is what is then written; `files` does that.

mod files;

use std::fmt;

use elklet_core::link::{pkcs10, x509};
use elklet_proto::agent_uri;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::net;

pub(crate) use self::files::{NEXT, Pending, pending, settle};

/// A key for which there is no certificate yet.
pub(crate) struct NewKey {
    pkcs8: Zeroizing<Vec<u8>>,
    point: [u8; 65],
    request: Vec<u8>,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").finish_non_exhaustive()
    }
}

/// Why there is no key: the host has no random numbers.
#[derive(Debug)]
pub(crate) struct NoKey;

impl fmt::Display for NoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no key can be made: the system gives no random numbers")
    }
}

impl std::error::Error for NoKey {}

/// What is wrong with a certificate that a center has given, by the center's fault or by this host's clock.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadCertificate {
    /// It is none, or one of another form.
    Damaged,
    /// It is for another key than the one that was sent.
    AnotherKey,
    /// It is for another agent, or for none.
    AnotherAgent,
    /// By this host's clock, it is over already. When, in seconds since 1970.
    Over(i64),
}

impl fmt::Display for BadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged => f.write_str("what the center sent is no X.509 certificate"),
            Self::AnotherKey => f.write_str("the center sent a certificate for another key than this host's"),
            Self::AnotherAgent => f.write_str("the center sent a certificate that is not for this agent"),
            Self::Over(until) => write!(
                f,
                "the center sent a certificate that ended at {}, and this host's clock says {}",
                crate::clock::date(*until),
                crate::clock::date(crate::clock::unix_seconds()),
            ),
        }
    }
}

impl std::error::Error for BadCertificate {}

impl NewKey {
    /// Makes a key on P-256.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(crate) fn make() -> Result<Self, NoKey> {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| NoKey)?;
        let pkcs8 = Zeroizing::new(made.as_ref().to_vec());
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8, &random).map_err(|_| NoKey)?;
        let point = pair.public_key().as_ref().try_into().map_err(|_| NoKey)?;
        let info = pkcs10::info(&point);
        let signature = pair.sign(&random, &info).map_err(|_| NoKey)?;
        let request = pkcs10::request(&info, signature.as_ref());
        Ok(Self { pkcs8, point, request })
    }

    /// The request for a certificate, in DER.
    pub(crate) fn request(&self) -> &[u8] {
        &self.request
    }

    /// Takes the certificate that a center has given for this key, if it is one for this key and agent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn certified(
        self,
        certificate: Vec<u8>,
        agent_id: &str,
        unix_seconds: i64,
    ) -> Result<Identity, BadCertificate> {
        let Some((_, until)) = x509::times(&certificate) else { return Err(BadCertificate::Damaged) };
        if x509::public_key_info(&certificate) != Some(&pkcs10::public_key_info(&self.point)) {
            return Err(BadCertificate::AnotherKey);
        }
        if x509::uri(&certificate) != Some(&agent_uri::of(agent_id)) {
            return Err(BadCertificate::AnotherAgent);
        }
        if until <= unix_seconds {
            return Err(BadCertificate::Over(until));
        }
        // TLS reads more of it than this does.
        let chain = vec![CertificateDer::from(certificate.clone())];
        let key = PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into();
        CertifiedKey::from_der(chain, key, &net::provider()).map_err(|_| BadCertificate::Damaged)?;
        Ok(Identity { pkcs8: self.pkcs8, certificate, authority: None })
    }
}

/// A key with its certificate.
pub(crate) struct Identity {
    pkcs8: Zeroizing<Vec<u8>>,
    certificate: Vec<u8>,
    /// Whom the host is to trust from now on, if that changes.
    authority: Option<Vec<u8>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Trusts this authority as well, whose certificate is in DER.
    pub(crate) fn with_authority(self, authority: Vec<u8>) -> Self {
        Self { authority: Some(authority), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_for_this_key_and_agent_is_refused() {
        let key = || NewKey::make().expect("there are random numbers");
        assert_ne!(key().request(), key().request());
        for garbage in [Vec::new(), b"garbage".to_vec(), vec![0x30; 5000]] {
            assert_eq!(key().certified(garbage, "a", 0).expect_err("no certificate"), BadCertificate::Damaged);
        }
    }
}
