//! Reads the few facts about certificates and keys that the agent needs: validity, public key, a URI, key length. It verifies nothing.
//! Source: RFC 5280, section 4.1.

use core::str;

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const BOOLEAN: u8 = 0x01;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// A GeneralName that is a URI.
const URI: u8 = 0x86;

/// The object identifier of alternative names, 2.5.29.17.
const ALTERNATIVE_NAMES: [u8; 3] = [0x55, 0x1d, 0x11];

/// Returns the `notAfter` of a certificate in DER, in seconds since 1970, or `None` if it cannot be found.
#[must_use]
pub fn not_after(certificate: &[u8]) -> Option<i64> {
    times(certificate).map(|(_, not_after)| not_after)
}

/// Returns `notBefore` and `notAfter` of a certificate in DER, in seconds since 1970, or `None` if they cannot be found.
#[must_use]
pub fn times(certificate: &[u8]) -> Option<(i64, i64)> {
    let (validity, _) = element(validity(certificate)?, SEQUENCE)?;
    let (not_before, rest) = time(validity)?;
    time(rest).map(|(not_after, _)| (not_before, not_after))
}

/// Returns the first URI among the alternative names of a certificate in DER (RFC 5280, section 4.2.1.6), or `None` if it has none.
#[must_use]
pub fn uri(certificate: &[u8]) -> Option<&str> {
    let (_validity, rest) = element(validity(certificate)?, SEQUENCE)?;
    let (_subject, rest) = element(rest, SEQUENCE)?;
    let (_key, rest) = element(rest, SEQUENCE)?;
    let (extensions, _) = element(rest, EXTENSIONS)?;
    let (mut extensions, _) = element(extensions, SEQUENCE)?;
    while !extensions.is_empty() {
        let (extension, rest) = element(extensions, SEQUENCE)?;
        extensions = rest;
        let (identifier, value) = element(extension, OBJECT_IDENTIFIER)?;
        if identifier == ALTERNATIVE_NAMES {
            let value = element(value, BOOLEAN).map_or(value, |(_critical, value)| value);
            let (names, _) = element(value, OCTET_STRING)?;
            return uri_of(element(names, SEQUENCE)?.0);
        }
    }
    None
}

fn uri_of(mut names: &[u8]) -> Option<&str> {
    while let Some(&tag) = names.first() {
        let (name, rest) = element(names, tag)?;
        if tag == URI {
            return str::from_utf8(name).ok();
        }
        names = rest;
    }
    None
}

/// Returns the encoded `SubjectPublicKeyInfo` of a certificate in DER, or `None` if it cannot be found.
#[must_use]
pub fn public_key_info(certificate: &[u8]) -> Option<&[u8]> {
    let (_validity, rest) = element(validity(certificate)?, SEQUENCE)?;
    let (_subject, from) = element(rest, SEQUENCE)?;
    let (_key, rest) = element(from, SEQUENCE)?;
    from.get(..from.len() - rest.len())
}

/// Returns the bits of an RSA key's modulus, or `None` if it cannot be found. The key is DER, in PKCS#1 (RFC 8017,
/// appendix A.1.2) or in PKCS#8 (RFC 5208, section 5).
#[must_use]
pub fn rsa_bits(key: &[u8]) -> Option<usize> {
    let (key, _) = element(key, SEQUENCE)?;
    let (_version, rest) = element(key, INTEGER)?;
    if let Some((_algorithm, rest)) = element(rest, SEQUENCE) {
        let (inner, _) = element(rest, OCTET_STRING)?;
        // The key inside PKCS#8 is not PKCS#8 again.
        let (inner_key, _) = element(inner, SEQUENCE)?;
        let (_version, rest) = element(inner_key, INTEGER)?;
        return modulus_bits(rest);
    }
    modulus_bits(rest)
}

fn modulus_bits(rest: &[u8]) -> Option<usize> {
    let (modulus, _) = element(rest, INTEGER)?;
    let zeros = modulus.iter().take_while(|&&byte| byte == 0).count();
    let first = modulus.get(zeros)?;
    Some(8 * (modulus.len() - zeros) - first.leading_zeros() as usize)
}

/// The part of a certificate that begins with its validity.
fn validity(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (tbs, _) = element(certificate, SEQUENCE)?;
    // A certificate of version 1 has no version field.
    let rest = element(tbs, VERSION).map_or(tbs, |(_, rest)| rest);
    let (_serial, rest) = element(rest, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (_issuer, rest) = element(rest, SEQUENCE)?;
    Some(rest)
}

/// Returns the content of the element at the start of `bytes` and what follows it, or `None` if its tag differs.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    (found == tag).then_some(())?;
    rest.split_at_checked(length)
}

/// Parses a time (RFC 5280, section 4.1.2.5), and returns what follows it.
fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (digits, rest, year_digits) = match element(bytes, UTC_TIME) {
        Some((digits, rest)) => (digits, rest, 2),
        None => element(bytes, GENERALIZED_TIME).map(|(digits, rest)| (digits, rest, 4))?,
    };
    let digits = digits.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let (year, moment) = str::from_utf8(digits).ok()?.split_at_checked(year_digits)?;
    let two = |i: usize| moment.get(2 * i..2 * i + 2)?.parse::<i64>().ok();
    let year = match (year.parse::<i64>().ok()?, year_digits) {
        (year @ 50.., 2) => 1900 + year,
        (year, 2) => 2000 + year,
        (year, _) => year,
    };
    let [month, day, hour, minute, second] = [two(0)?, two(1)?, two(2)?, two(3)?, two(4)?];
    let is_sound = moment.len() == 10 && (1..=12).contains(&month) && (1..=31).contains(&day);
    is_sound.then(|| (((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second, rest))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Source: Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March here, so that the leap day is the last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// A certificate with these times and only empty fields besides. `None` leaves the version out.
    fn certificate(version: Option<u8>, not_before: &[u8], not_after: &[u8]) -> Vec<u8> {
        let wrap = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).expect("short");
            let mut bytes = if length < 0x80 { [tag, length].to_vec() } else { [tag, 0x81, length].to_vec() };
            bytes.extend_from_slice(content);
            bytes
        };
        let time = |text: &[u8]| wrap(if text.len() == 13 { UTC_TIME } else { GENERALIZED_TIME }, text);
        let version = version.map(|version| wrap(VERSION, &wrap(INTEGER, &[version]))).unwrap_or_default();
        let validity = wrap(SEQUENCE, &[time(not_before), time(not_after)].concat());
        let names = [
            wrap(SEQUENCE, &[1; 130]),
            validity,
            wrap(SEQUENCE, &[2; 9]),
            wrap(SEQUENCE, &[3; 7]),
            wrap(0xa3, &[4; 5]),
        ]
        .concat();
        let tbs = [version, wrap(INTEGER, &[9]), wrap(SEQUENCE, &[]), names].concat();
        wrap(SEQUENCE, &wrap(SEQUENCE, &tbs))
    }

    #[test]
    fn the_end_is_read_in_either_form_and_version() {
        for (text, seconds) in [
            (&b"310413000000Z"[..], 1_933_804_800),
            (b"491231235959Z", 2_524_607_999),
            (b"500101000000Z", -631_152_000),
            (b"700101000001Z", 1),
            (b"20500101000000Z", 2_524_608_000),
            (b"20000229120000Z", 951_825_600),
            (b"99991231235959Z", 253_402_300_799),
        ] {
            for version in [None, Some(2)] {
                assert_eq!(not_after(&certificate(version, b"210101000000Z", text)), Some(seconds));
            }
        }
    }

    #[test]
    fn what_is_no_time_is_nothing() {
        for text in
            [&b"310413000000+"[..], b"311313000000Z", b"310400000000Z", b"3104130000Z", b"31041300000aZ", b"Z", b""]
        {
            assert_eq!(not_after(&certificate(Some(2), b"210101000000Z", text)), None, "{text:?}");
        }
        let whole = certificate(Some(2), b"210101000000Z", b"310413000000Z");
        for end in 0..whole.len() {
            assert_eq!(not_after(&whole[..end]), None, "{end} bytes of {}", whole.len());
            assert_eq!(public_key_info(&whole[..end]), None, "{end} bytes of {}", whole.len());
        }
    }

    #[test]
    fn the_key_is_taken_with_its_head() {
        for version in [None, Some(2)] {
            let certificate = certificate(version, b"210101000000Z", b"310413000000Z");
            assert_eq!(public_key_info(&certificate), Some(&[SEQUENCE, 7, 3, 3, 3, 3, 3, 3, 3][..]));
        }
    }

    #[test]
    fn the_bits_of_rsa_keys_are_counted_in_either_form() {
        let pkcs1 = [&[SEQUENCE, 0x0c, INTEGER, 1, 0, INTEGER, 3, 0, 0x40, 1, INTEGER, 2, 1, 1][..]].concat();
        assert_eq!(rsa_bits(&pkcs1), Some(15));
        let mut pkcs8 = [SEQUENCE, 0x16, INTEGER, 1, 0, SEQUENCE, 0, OCTET_STRING, 0x0e].to_vec();
        pkcs8.extend_from_slice(&pkcs1);
        assert_eq!(rsa_bits(&pkcs8), None, "it ends early");
        pkcs8[1] = u8::try_from(pkcs8.len() - 2).expect("short");
        assert_eq!(rsa_bits(&pkcs8), Some(15));
        assert_eq!(rsa_bits(&[SEQUENCE, 3, INTEGER, 1, 0]), None);
    }

    #[test]
    fn the_uri_is_found_among_other_names_and_extensions() {
        let wrap =
            |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).expect("short")][..], content].concat();
        let extension = |identifier: &[u8], value: &[u8]| {
            wrap(SEQUENCE, &[wrap(OBJECT_IDENTIFIER, identifier), wrap(OCTET_STRING, value)].concat())
        };
        let with = |extensions: &[u8]| {
            let fields = [
                wrap(INTEGER, &[9]),
                wrap(SEQUENCE, &[]),
                wrap(SEQUENCE, &[]),
                wrap(SEQUENCE, &[]),
                wrap(SEQUENCE, &[]),
                wrap(SEQUENCE, &[]),
                wrap(EXTENSIONS, &wrap(SEQUENCE, extensions)),
            ];
            wrap(SEQUENCE, &wrap(SEQUENCE, &fields.concat()))
        };
        let names = wrap(SEQUENCE, &[wrap(0x82, b"a.b"), wrap(URI, b"urn:a"), wrap(URI, b"urn:b")].concat());
        let others = extension(&[0x55, 0x1d, 0x0f], &[3, 2, 7, 0x80]);
        let certificate = with(&[others.clone(), extension(&ALTERNATIVE_NAMES, &names)].concat());
        assert_eq!(uri(&certificate), Some("urn:a"));
        let critical =
            [wrap(OBJECT_IDENTIFIER, &ALTERNATIVE_NAMES), wrap(BOOLEAN, &[0xff]), wrap(OCTET_STRING, &names)];
        assert_eq!(uri(&with(&wrap(SEQUENCE, &critical.concat()))), Some("urn:a"));
        assert_eq!(uri(&with(&others)), None);
        assert_eq!(uri(&with(&extension(&ALTERNATIVE_NAMES, &wrap(SEQUENCE, &wrap(0x82, b"a.b"))))), None);
        for end in 0..certificate.len() {
            assert_eq!(uri(&certificate[..end]), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes: Vec<u8>, at in 0..160usize, value: u8) {
            let _ = (not_after(&bytes), public_key_info(&bytes), rsa_bits(&bytes), uri(&bytes));
            let mut whole = certificate(Some(2), b"210101000000Z", b"310413000000Z");
            if let Some(byte) = whole.get_mut(at) {
                *byte = value;
            }
            let _ = (not_after(&whole), public_key_info(&whole), rsa_bits(&whole), uri(&whole));
        }
    }

    #[test]
    fn lengths_of_up_to_three_bytes_are_read_and_others_are_refused() {
        let content = [7; 300];
        for head in [&[SEQUENCE, 0x82, 1, 44][..], &[SEQUENCE, 0x83, 0, 1, 44]] {
            let bytes = [head, &content, b"rest"].concat();
            assert_eq!(element(&bytes, SEQUENCE), Some((&content[..], &b"rest"[..])));
        }
        let content = [7; 0x01_02_03];
        let bytes = [&[SEQUENCE, 0x83, 1, 2, 3][..], &content].concat();
        assert_eq!(element(&bytes, SEQUENCE), Some((&content[..], &[][..])));
        for length in [0x80, 0x84, 0xff] {
            assert_eq!(element(&[SEQUENCE, length, 0, 0, 0, 0, 0], SEQUENCE), None, "{length:#x}");
        }
        assert_eq!(element(&[SEQUENCE, 0], INTEGER), None, "another tag");
    }

    #[test]
    fn zeros_before_a_modulus_are_none_of_its_bits() {
        let bits = |modulus: &[u8]| {
            let length = u8::try_from(modulus.len()).expect("short");
            modulus_bits(&[&[INTEGER, length], modulus].concat())
        };
        assert_eq!(
            [bits(&[1]), bits(&[0x80]), bits(&[0, 0x80]), bits(&[0, 0, 1, 0])].map(Option::unwrap),
            [1, 8, 8, 9]
        );
        assert_eq!((bits(&[0, 0]), bits(&[])), (None, None));
    }

    #[test]
    fn a_moment_is_read_to_the_second() {
        for (text, seconds) in [
            ("20010203040506Z", 981_173_106),
            ("20011231235958Z", 1_009_843_198),
            ("00000101000000Z", -62_167_219_200),
            ("00000301000000Z", -62_162_035_200),
            ("19000301000000Z", -2_203_891_200),
            ("21000301000000Z", 4_107_542_400),
            ("24000229000000Z", 13_574_563_200),
        ] {
            let bytes = [&[GENERALIZED_TIME, 15], text.as_bytes(), b"rest"].concat();
            assert_eq!(time(&bytes), Some((seconds, &b"rest"[..])), "{text}");
        }
    }

    #[test]
    fn months_and_days_outside_the_calendar_are_no_time() {
        for (text, is_time) in [
            ("20010101000000Z", true),
            ("20011231000000Z", true),
            ("20010001000000Z", false),
            ("20011301000000Z", false),
            ("20010100000000Z", false),
            ("20010132000000Z", false),
            ("2001010100000Z", false),
            ("200101010000001Z", false),
        ] {
            let length = u8::try_from(text.len()).expect("short");
            let bytes = [&[GENERALIZED_TIME, length], text.as_bytes()].concat();
            assert_eq!(time(&bytes).is_some(), is_time, "{text}");
        }
    }

    #[test]
    fn days_follow_one_another_through_the_centuries() {
        assert_eq!(days(1599, 12, 31), -135_141);
        // For an interpreter, the turn of one century has to do.
        let years = if cfg!(miri) { 1999..2002 } else { 1600..2401 };
        let mut expected = days(years.start - 1, 12, 31);
        for year in years {
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let february = if is_leap { 29 } else { 28 };
            for (month, length) in (1..).zip([31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
                for day in 1..=length {
                    expected += 1;
                    assert_eq!(days(year, month, day), expected, "{year}-{month}-{day}");
                }
            }
        }
    }
}
