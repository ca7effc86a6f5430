//! Reads the client's private key, and names the kind of a key that is of no use.

use std::io;

use elklet_core::link::x509;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

use crate::pem::{self, Section};

/// What an error says was expected.
const EXPECTED: &str = "expected an unencrypted PKCS#8, PKCS#1 or SEC1 key";

/// The kinds of keys with which TLS can sign here.
const KINDS: &str = "expected RSA of 2048 to 4096 bits, P-256, P-384 or Ed25519";

/// Kinds with which TLS cannot sign here, by the object identifier in such a key.
const OTHER_KINDS: [(&[u8], &str); 6] = [
    (&[6, 5, 0x2b, 0x81, 4, 0, 0x23], "a P-521 key"),
    (&[6, 5, 0x2b, 0x81, 4, 0, 0x0a], "a secp256k1 key"),
    (&[6, 5, 0x2b, 0x81, 4, 0, 0x21], "a P-224 key"),
    (&[6, 3, 0x2b, 0x65, 0x71], "an Ed448 key"),
    (&[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1], "a DSA key"),
    (&[6, 8, 0x2a, 0x81, 0x1c, 0xcf, 0x55, 1, 0x82, 0x2d], "an SM2 key"),
];

/// The curves with which TLS can sign here.
const CURVES: [&[u8]; 2] = [&[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7], &[6, 5, 0x2b, 0x81, 4, 0, 0x22]];

/// The object identifier of RSA keys in PKCS#8.
const RSA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

/// Reads the key in a file.
///
/// # Errors
/// What is there instead.
pub(super) fn private_key(content: io::Result<Zeroizing<Vec<u8>>>) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = content.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => error.to_string(),
    })?;
    let mut sections = pem::sections(&bytes).map_err(|what| format!("{what}, {EXPECTED} in PEM"))?;
    let Some(at) = sections.iter().position(|section| section.label.ends_with("PRIVATE KEY")) else {
        return Err(match sections.first() {
            Some(other) => format!("holds a section {:?}, {EXPECTED}", other.label),
            None => format!("{EXPECTED} in PEM, found none"),
        });
    };
    let Section { label, der, is_encrypted, line } = sections.swap_remove(at);
    if is_encrypted || label == "ENCRYPTED PRIVATE KEY" {
        return Err(format!("the key is encrypted ({label}), {EXPECTED}"));
    }
    let Some(der) = der else {
        return Err(format!("the section {label:?} at line {line} is damaged, {EXPECTED}"));
    };
    match &*label {
        "PRIVATE KEY" => Ok(PrivatePkcs8KeyDer::from(der).into()),
        "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(der).into()),
        "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(der).into()),
        _ => Err(format!("holds a section {label:?}, {EXPECTED}")),
    }
}

/// Says what is wrong with a key with which TLS refuses to sign.
pub(super) fn fault(key: &PrivateKeyDer<'_>) -> String {
    let der = key.secret_der();
    let has = |identifier: &[u8]| der.windows(identifier.len()).any(|part| part == identifier);
    if let Some((_, name)) = OTHER_KINDS.iter().find(|(identifier, _)| has(identifier)) {
        return format!("is {name}, {KINDS}");
    }
    if matches!(key, PrivateKeyDer::Pkcs1(_)) || has(RSA) {
        return match x509::rsa_bits(der) {
            Some(bits) => format!("is an RSA key of {bits} bits, {KINDS}"),
            None => format!("is a damaged RSA key, {KINDS}"),
        };
    }
    if CURVES.iter().any(|curve| has(curve)) {
        return "is an elliptic curve's key that cannot be read, expected one with its public part".to_owned();
    }
    format!("is a key of an unknown kind or damaged, {KINDS}")
}
