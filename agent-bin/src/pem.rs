//! Reads files of certificates and keys as people and their tools leave them: with a byte order mark, with any line
//! ends, with text around, with several sections of which some are useless. Writes sections as well.
//!
//! Source: RFC 7468, and RFC 1421 for the headers of encrypted keys.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

/// Padding is optional here. It is missing at times, and says nothing that the length does not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Characters in a line (RFC 7468, section 2).
const LINE: usize = 64;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// A section between `BEGIN` and `END`.
#[derive(Debug)]
pub(crate) struct Section {
    /// The words after `BEGIN`.
    pub(crate) label: String,
    /// The line of `BEGIN`, from 1.
    pub(crate) line: usize,
    /// Its content, or `None` if that is no Base64 or does not end.
    pub(crate) der: Option<Vec<u8>>,
    /// True if a header says that it is encrypted.
    pub(crate) is_encrypted: bool,
}

/// Returns the sections of a file in order.
///
/// # Errors
/// What the file is, if it cannot have any.
pub(crate) fn sections(bytes: &[u8]) -> Result<Vec<Section>, &'static str> {
    match bytes {
        [] => return Err("is empty"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err("is UTF-16"),
        // A SEQUENCE of more than 127 bytes: DER, or PKCS#12.
        [0x30, 0x81..=0x83, ..] => return Err("is binary (DER or PKCS#12)"),
        _ => {}
    }
    let text = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let mut sections = Vec::new();
    // It may be a key's.
    let mut open: Option<(Section, Zeroizing<Vec<u8>>)> = None;
    for (number, line) in lines(text) {
        let line = line.trim_ascii();
        if let Some(label) = line.strip_prefix(b"-----BEGIN ").and_then(|rest| rest.strip_suffix(b"-----")) {
            let label = String::from_utf8_lossy(label).into_owned();
            let section = Section { label, line: number, der: None, is_encrypted: false };
            // A section that has not ended has no content.
            sections.extend(
                open.replace((section, Zeroizing::new(Vec::with_capacity(text.len())))).map(|(section, _)| section),
            );
        } else if line.starts_with(b"-----END ") {
            if let Some((section, body)) = open.take() {
                sections.push(Section { der: BASE64.decode(&*body).ok(), ..section });
            }
        } else if let Some((section, body)) = &mut open {
            // These headers are OpenSSL's own format: `Proc-Type: 4,ENCRYPTED` and `DEK-Info: ...`.
            match line.contains(&b':') {
                true => section.is_encrypted |= line.ends_with(b"ENCRYPTED"),
                false => body.extend_from_slice(line),
            }
        }
    }
    sections.extend(open.map(|(section, _)| section));
    Ok(sections)
}

/// Splits into lines that end with LF, CR LF or, as on old Macs, CR alone. Lines are numbered from 1.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut number = 1;
    text.split_inclusive(|&byte| byte == b'\n' || byte == b'\r').scan(false, move |after_cr, line| {
        // The LF of a CR LF is no line of its own.
        let is_rest = *after_cr && line == b"\n";
        *after_cr = line.ends_with(b"\r");
        let this = number;
        number += usize::from(!is_rest);
        Some((this, line))
    })
}

/// A section of PEM. It may be a key's: it never grows, which would leave a part of it behind, and is wiped when it is dropped.
pub(crate) fn section(label: &str, der: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = Zeroizing::new(BASE64.encode(der));
    let (begin, end) = (format!("-----BEGIN {label}-----\n"), format!("-----END {label}-----\n"));
    let room = begin.len() + text.len() + text.len().div_ceil(LINE) + end.len();
    let mut section = Zeroizing::new(Vec::with_capacity(room));
    section.extend_from_slice(begin.as_bytes());
    for line in text.as_bytes().chunks(LINE) {
        section.extend_from_slice(line);
        section.push(b'\n');
    }
    section.extend_from_slice(end.as_bytes());
    section
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO: &str = "text: before\n-----BEGIN CERTIFICATE-----\nAQID\nBA==\n-----END CERTIFICATE-----\nbetween\n\
                       -----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nBQY\n-----END RSA PRIVATE KEY-----\n";

    fn read(bytes: &[u8]) -> Vec<(String, usize, Option<Vec<u8>>, bool)> {
        let read = sections(bytes).expect("it is text");
        read.into_iter().map(|section| (section.label, section.line, section.der, section.is_encrypted)).collect()
    }

    #[test]
    fn sections_are_found_whatever_the_lines_end_with() {
        let expected = [
            ("CERTIFICATE".to_owned(), 2, Some(vec![1, 2, 3, 4]), false),
            ("RSA PRIVATE KEY".to_owned(), 7, Some(vec![5, 6]), true),
        ];
        let bom = "\u{feff}".to_owned();
        for text in
            [TWO.to_owned(), bom + TWO, TWO.replace('\n', "\r\n"), TWO.replace('\n', "\r"), TWO.replace('\n', " \n")]
        {
            assert_eq!(read(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_damaged_has_its_place() {
        let text = "-----BEGIN A-----\n*\n-----END A-----\n-----BEGIN B-----\nAQID\n-----BEGIN C-----\nAQID\n-----END C-----\n-----BEGIN D-----";
        let found: Vec<_> =
            read(text.as_bytes()).into_iter().map(|(label, line, der, _)| (label, line, der.is_some())).collect();
        let of = |label: &str, line, is_good| (label.to_owned(), line, is_good);
        assert_eq!(found, [of("A", 1, false), of("B", 4, false), of("C", 6, true), of("D", 9, false)]);
        assert!(read(b"no section").is_empty());
        assert_eq!(sections(b"").err(), Some("is empty"));
        assert_eq!(sections(b"\xff\xfe-\0").err(), Some("is UTF-16"));
        assert_eq!(sections(b"\x30\x82\x01\x00").err(), Some("is binary (DER or PKCS#12)"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes: Vec<u8>, cut in 0..200usize) {
            let _ = sections(&bytes);
            let mut text = TWO.as_bytes().to_vec();
            text.splice(cut.min(text.len()).., bytes);
            let _ = sections(&text);
        }
    }
}
