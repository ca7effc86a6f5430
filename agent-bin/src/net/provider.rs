//! The algorithms of TLS: ring's, in rustls' order, which prefers AES.
//!
//! Processors of x86_64 have AES, so that no server chooses ChaCha20-Poly1305 there. The agent does without it there, which makes it 40 KB
//! smaller. Processors of ARM, MIPS and RISC-V often have no AES, and there it is several times as fast.
//!
//! rustls' own list of all this cannot be shortened: whatever is named once is linked.

use rustls::crypto::ring::{cipher_suite as suite, kx_group, sign};
use rustls::crypto::{CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use rustls::{Error, SignatureScheme, SupportedCipherSuite};
use std::sync::Arc;

use ring::rand::SystemRandom;
use webpki::ring as verify;
use zeroize::Zeroize;

static CIPHER_SUITES: &[SupportedCipherSuite] = &[
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_AES_128_GCM_SHA256,
    #[cfg(not(target_arch = "x86_64"))]
    suite::TLS13_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    #[cfg(not(target_arch = "x86_64"))]
    suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    #[cfg(not(target_arch = "x86_64"))]
    suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// What signatures of servers and authorities are verified by. Before TLS 1.3, a scheme does not say which curve it is for.
static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        verify::ECDSA_P256_SHA256,
        verify::ECDSA_P256_SHA384,
        verify::ECDSA_P384_SHA256,
        verify::ECDSA_P384_SHA384,
        verify::ED25519,
        verify::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        verify::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        verify::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        verify::RSA_PKCS1_2048_8192_SHA256,
        verify::RSA_PKCS1_2048_8192_SHA384,
        verify::RSA_PKCS1_2048_8192_SHA512,
        verify::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
        verify::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
        verify::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    ],
    mapping: &[
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[verify::ECDSA_P384_SHA384, verify::ECDSA_P256_SHA384]),
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[verify::ECDSA_P256_SHA256, verify::ECDSA_P384_SHA256]),
        (SignatureScheme::ED25519, &[verify::ED25519]),
        (SignatureScheme::RSA_PSS_SHA512, &[verify::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[verify::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA256, &[verify::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (SignatureScheme::RSA_PKCS1_SHA512, &[verify::RSA_PKCS1_2048_8192_SHA512]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[verify::RSA_PKCS1_2048_8192_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA256, &[verify::RSA_PKCS1_2048_8192_SHA256]),
    ],
};

/// Returns what every connection of the agent is made by.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: CIPHER_SUITES.to_vec(),
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &Ring,
        key_provider: &Ring,
    }
}

#[derive(Debug)]
struct Ring;

impl SecureRandom for Ring {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        ring::rand::SecureRandom::fill(&SystemRandom::new(), bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for Ring {
    /// Signs by this key from now on, and wipes the text that it was given as.
    fn load_private_key(&self, mut key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let loaded = sign::any_supported_type(&key);
        key.zeroize();
        loaded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_rustls_has_but_for_chacha20_on_x86_64() {
        let (ours, theirs) = (provider(), rustls::crypto::ring::default_provider());
        let is_left_out = |suite: &SupportedCipherSuite| {
            cfg!(target_arch = "x86_64") && format!("{:?}", suite.suite()).contains("CHACHA20")
        };
        let expected: Vec<_> = theirs.cipher_suites.into_iter().filter(|suite| !is_left_out(suite)).collect();
        assert_eq!(ours.cipher_suites, expected);
        let names = |groups: &[&'static dyn rustls::crypto::SupportedKxGroup]| -> Vec<_> {
            groups.iter().map(|group| group.name()).collect()
        };
        assert_eq!(names(&ours.kx_groups), names(&theirs.kx_groups));
        let schemes = |algorithms: WebPkiSupportedAlgorithms| algorithms.supported_schemes();
        assert_eq!(schemes(ours.signature_verification_algorithms), schemes(theirs.signature_verification_algorithms));
        let ids = |algorithms: WebPkiSupportedAlgorithms| -> Vec<_> {
            let ids = algorithms.all.iter().map(|one| (one.public_key_alg_id(), one.signature_alg_id()));
            ids.map(|ids| format!("{ids:?}")).collect()
        };
        assert_eq!(ids(ours.signature_verification_algorithms), ids(theirs.signature_verification_algorithms));
    }
}
