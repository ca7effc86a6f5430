//! Days of the calendar (UTC), by which record files are named.

use std::fmt;

const MS_PER_DAY: i64 = 86_400_000;
/// 9999-12-31, the last day whose name has the length of all others.
const LAST: i64 = 2_932_896;

/// A day, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Day(i64);

impl Day {
    /// The day of a time in milliseconds since 1970. A time before 1970 or after 9999 is taken for the nearest day between.
    pub(super) fn of_ms(ms: i64) -> Self {
        Self(ms.div_euclid(MS_PER_DAY).clamp(0, LAST))
    }

    /// The first millisecond after the day.
    pub(super) fn end_ms(self) -> i64 {
        (self.0 + 1) * MS_PER_DAY
    }

    /// Reads `YYYY-MM-DD`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        let number = |range: std::ops::Range<usize>| -> Option<i64> {
            let digits = text.get(range)?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
        };
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        // Years begin in March here, so that the day that not every year has is the last.
        let years = year - i64::from(month <= 2);
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let parsed =
            Self(years * 365 + years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400) + of_year - 719_468);
        // A date that does not exist, such as February 30, is written differently from how it was read.
        ((0..=LAST).contains(&parsed.0) && parsed.to_string() == text).then_some(parsed)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.0 + 719_468;
        let era = days.div_euclid(146_097);
        let of_era = days.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_as_the_calendar_has_them() {
        for (ms, text) in [
            (0, "1970-01-01"),
            (951_782_399_999, "2000-02-28"),
            (951_782_400_000, "2000-02-29"),
            (1_795_730_400_000, "2026-11-26"),
            (i64::MIN, "1970-01-01"),
            (i64::MAX, "9999-12-31"),
        ] {
            assert_eq!(Day::of_ms(ms).to_string(), text);
        }
    }

    #[test]
    fn every_day_is_read_back_as_it_was_written() {
        for day in 0..=LAST {
            assert_eq!(Day::parse(&Day(day).to_string()), Some(Day(day)));
        }
        for wrong in ["2026-02-30", "2025-02-29", "2026-13-01", "2026-1-01", "+026-01-01", "2026-11-26x", "ä026-01-0"]
        {
            assert_eq!(Day::parse(wrong), None, "{wrong}");
        }
    }
}
