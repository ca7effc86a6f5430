//! Until when a certificate is good; nothing else of it is read here, and nothing is verified. Source: RFC 5280, section 4.1.

use core::str;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// The `notAfter` of a certificate in DER, in seconds since 1970; nothing when it cannot be found.
#[must_use]
pub fn not_after(certificate: &[u8]) -> Option<i64> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (tbs, _) = element(certificate, SEQUENCE)?;
    // Version 1 has no version.
    let rest = element(tbs, VERSION).map_or(tbs, |(_, rest)| rest);
    let (_serial, rest) = element(rest, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (_issuer, rest) = element(rest, SEQUENCE)?;
    let (validity, _) = element(rest, SEQUENCE)?;
    let (_not_before, rest) = time(validity)?;
    time(rest).map(|(not_after, _)| not_after)
}

/// The content of the element at the start of `bytes`, and what follows it; nothing when its tag is another.
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

/// A time (RFC 5280, section 4.1.2.5), and what follows it.
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
    // The year begins in March, so that the leap day is its last.
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

    /// A certificate with nothing in it but what is passed over, and these times; `None` for no version.
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
        let tbs = [version, wrap(INTEGER, &[9]), wrap(SEQUENCE, &[]), wrap(SEQUENCE, &[1; 130]), validity].concat();
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
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes: Vec<u8>, at in 0..160usize, value: u8) {
            let _ = not_after(&bytes);
            let mut whole = certificate(Some(2), b"210101000000Z", b"310413000000Z");
            if let Some(byte) = whole.get_mut(at) {
                *byte = value;
            }
            let _ = not_after(&whole);
        }
    }
}
