//! Writes the request for a certificate: the host's public key, signed with its private one. It signs nothing itself.
//!
//! The request has no subject and no attributes, because whoever signs it decides about both. Source: RFC 2986, section 4, and RFC 5480,
//! section 2.1, for keys on P-256.

use alloc::vec::Vec;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const ATTRIBUTES: u8 = 0xa0;

/// The AlgorithmIdentifier of a key on P-256: id-ecPublicKey, prime256v1.
const P256_KEY: [u8; 21] =
    [SEQUENCE, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];

/// The AlgorithmIdentifier of its signatures: ecdsa-with-SHA256.
const ECDSA_WITH_SHA256: [u8; 12] = [SEQUENCE, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// Returns the `SubjectPublicKeyInfo` of a key on P-256. `point` is the key, uncompressed (SEC 1, section 2.3.3).
#[must_use]
pub fn public_key_info(point: &[u8; 65]) -> Vec<u8> {
    element(SEQUENCE, &[&P256_KEY, &bits(point)])
}

/// Returns what is to be signed: the `CertificationRequestInfo` of such a key.
#[must_use]
pub fn info(point: &[u8; 65]) -> Vec<u8> {
    let subject = element(SEQUENCE, &[]);
    element(SEQUENCE, &[&element(INTEGER, &[&[0]]), &subject, &public_key_info(point), &element(ATTRIBUTES, &[])])
}

/// Returns the whole request. `signature` is that of `info` by ECDSA with SHA-256, in DER (RFC 3279, section 2.2.3).
#[must_use]
pub fn request(info: &[u8], signature: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[info, &ECDSA_WITH_SHA256, &bits(signature)])
}

/// A BIT STRING of whole bytes.
fn bits(bytes: &[u8]) -> Vec<u8> {
    element(BIT_STRING, &[&[0], bytes])
}

/// An element with these parts, of 255 bytes together at most.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(length + 3);
    bytes.push(tag);
    if length >= 0x80 {
        bytes.push(0x81);
    }
    // A key has 65 bytes and a signature 72 at most.
    bytes.push(u8::try_from(length).unwrap_or(u8::MAX));
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_key_no_name_and_the_signature() {
        let point = [4; 65];
        let info = info(&point);
        assert_eq!(info[..8], [SEQUENCE, 98, INTEGER, 1, 0, SEQUENCE, 0, SEQUENCE]);
        assert_eq!(info[7..], [&public_key_info(&point)[..], &[ATTRIBUTES, 0]].concat());
        let signature = [7; 72];
        let request = request(&info, &signature);
        assert_eq!(request[..3], [SEQUENCE, 0x81, u8::try_from(request.len() - 3).expect("short")]);
        assert_eq!(request[3..3 + info.len()], info);
        assert_eq!(request[request.len() - 75..request.len() - 72], [BIT_STRING, 73, 0]);
        assert!(request.ends_with(&signature));
    }
}
