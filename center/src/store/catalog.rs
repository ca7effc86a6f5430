//! Which files there are, what lies in them, and which of them retention drops: decisions without a file.

use super::date::Day;
use super::day::Extent;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

/// The store never has more files than this, whatever the clock does: three years of days. Beyond it, records go into the file
/// that is being written.
pub(super) const MAX_FILES: usize = 1100;
/// A batch that was received so shortly before the day of the file being written goes into that file, so that batches that
/// cross midnight out of order do not make the writer go back and forth.
const LATE_MS: i64 = 10 * 60 * 1000;

/// The name of a file: `records-2026-11-26.db`, and `records-2026-11-26.1.db` for the day's next part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) day: Day,
    pub(super) part: u32,
}

impl Name {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let middle = text.strip_prefix("records-")?.strip_suffix(".db")?;
        let (day, part) = match middle.split_once('.') {
            Some((day, part)) => (day, part.parse().ok()?),
            None => (middle, 0),
        };
        let name = Self { day: Day::parse(day)?, part };
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            0 => write!(f, "records-{}.db", self.day),
            part => write!(f, "records-{}.{part}.db", self.day),
        }
    }
}

/// A file of records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    /// What lies in it. Nothing in a file that was just made.
    pub(super) extent: Option<Extent>,
    /// Bytes on the disk, with its log.
    pub(super) bytes: u64,
}

/// All files of records.
#[derive(Clone, Debug, Default)]
pub(super) struct Catalog {
    pub(super) entries: Vec<Entry>,
    /// The first part of each day whose name was never used. The name of a file that was dropped is not used again, because a
    /// search may still have the file open, and SQLite removes the log of its name when the search is done.
    next_part: BTreeMap<Day, u32>,
}

impl Catalog {
    pub(super) fn add(&mut self, entry: Entry) {
        self.forbid(entry.name);
        self.entries.push(entry);
    }

    /// Makes sure that no file gets this name.
    pub(super) fn forbid(&mut self, name: Name) {
        let next = self.next_part.entry(name.day).or_default();
        *next = (*next).max(name.part.saturating_add(1));
    }

    pub(super) fn remove(&mut self, name: Name) {
        self.entries.retain(|entry| entry.name != name);
    }

    pub(super) fn entry(&self, name: Name) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Tells how large a file is now.
    pub(super) fn resized(&mut self, name: Name, bytes: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) {
            entry.bytes = bytes;
        }
    }

    /// The file that was written to last.
    pub(super) fn newest(&self) -> Option<Name> {
        self.by_age().last().map(|entry| entry.name)
    }

    /// Tells of a run that was stored in a file.
    pub(super) fn stored(&mut self, name: Name, run: Extent, bytes: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) {
            entry.bytes = bytes;
            entry.extent = Some(match entry.extent {
                None => run,
                Some(old) => Extent {
                    seq: (old.seq.0.min(run.seq.0), old.seq.1.max(run.seq.1)),
                    received_ms: (old.received_ms.0.min(run.received_ms.0), old.received_ms.1.max(run.received_ms.1)),
                    rows: old.rows + run.rows,
                },
            });
        }
    }

    /// The file that records received at this time go into, which may have to be made.
    pub(super) fn target(&self, received_ms: i64, current: Option<Name>, part_bytes: u64) -> Name {
        let day = Day::of_ms(received_ms);
        let has_room = |name: Name| self.entry(name).is_some_and(|entry| entry.bytes < part_bytes);
        if let Some(current) = current {
            let late = day < current.day && Day::of_ms(received_ms.saturating_add(LATE_MS)) == current.day;
            if (day == current.day || late) && has_room(current) {
                return current;
            }
        }
        // A clock that goes back goes on in the last part of its day.
        let last = self.entries.iter().map(|entry| entry.name).filter(|name| name.day == day).max();
        match (last, current) {
            (Some(last), _) if has_room(last) => last,
            (_, Some(current)) if self.entries.len() >= MAX_FILES && self.entry(current).is_some() => current,
            _ => Name { day, part: self.next_part.get(&day).copied().unwrap_or(0) },
        }
    }

    /// The files in the order in which they were last written to.
    fn by_age(&self) -> Vec<Entry> {
        let mut entries = self.entries.clone();
        entries.sort_by_key(|entry| (entry.extent.map_or(u64::MAX, |extent| extent.seq.1), entry.name));
        entries
    }

    /// The files to drop so that the others have `max` bytes at most, the ones that were written to longest ago first. The file
    /// being written stays.
    pub(super) fn beyond(&self, max: u64, current: Option<Name>) -> Vec<Name> {
        let mut total: u64 = self.entries.iter().map(|entry| entry.bytes).sum();
        let mut dropped = Vec::new();
        for entry in self.by_age() {
            if total <= max {
                break;
            }
            if Some(entry.name) != current {
                total -= entry.bytes;
                dropped.push(entry.name);
            }
        }
        dropped
    }

    /// The files whose day ended more than `keep_ms` before now.
    ///
    /// The clock may have been wrong, so that a file is at least as new as those that were written to before it, and at least as old
    /// as those that were written to after it if its day has not come yet.
    pub(super) fn older(&self, keep_ms: i64, now_ms: i64, current: Option<Name>) -> Vec<Name> {
        let today = Day::of_ms(now_ms);
        let mut newest = Day::of_ms(0);
        let mut dropped = Vec::new();
        let mut of_days_to_come = Vec::new();
        for entry in self.by_age() {
            if entry.name.day > today {
                of_days_to_come.push(entry.name);
                continue;
            }
            newest = newest.max(entry.name.day);
            if newest.end_ms() >= now_ms.saturating_sub(keep_ms) {
                break;
            }
            dropped.append(&mut of_days_to_come);
            dropped.push(entry.name);
        }
        dropped.retain(|name| Some(*name) != current);
        dropped
    }

    /// The files that may hold records of these sequence numbers and times of receipt, in groups whose sequence numbers do not
    /// overlap, oldest first. Only a clock that went back makes files overlap.
    pub(super) fn groups(&self, seq: RangeInclusive<u64>, received_ms: RangeInclusive<i64>) -> Vec<Vec<Name>> {
        let mut found: Vec<(Extent, Name)> = self
            .entries
            .iter()
            .filter_map(|entry| Some((entry.extent?, entry.name)))
            .filter(|(extent, _)| extent.seq.0 <= *seq.end() && extent.seq.1 >= *seq.start())
            .filter(|(extent, _)| {
                extent.received_ms.0 <= *received_ms.end() && extent.received_ms.1 >= *received_ms.start()
            })
            .collect();
        found.sort_by_key(|(extent, _)| extent.seq);
        let mut groups: Vec<Vec<Name>> = Vec::new();
        let mut end = None;
        for (extent, name) in found {
            match groups.last_mut() {
                Some(group) if end > Some(extent.seq.0) => group.push(name),
                _ => groups.push(vec![name]),
            }
            end = end.max(Some(extent.seq.1));
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn name(day: i64, part: u32) -> Name {
        Name { day: Day::of_ms(day * DAY_MS), part }
    }

    fn catalog(files: &[(i64, u64, u64)]) -> Catalog {
        let mut catalog = Catalog::default();
        for &(day, first, last) in files {
            let extent =
                Extent { seq: (first, last), received_ms: (day * DAY_MS, day * DAY_MS + 5), rows: last - first + 1 };
            catalog.add(Entry { name: name(day, 0), extent: Some(extent), bytes: 100 });
        }
        catalog
    }

    #[test]
    fn names_are_read_as_they_are_written_and_no_others() {
        for text in ["records-2026-11-26.db", "records-2026-11-26.7.db"] {
            assert_eq!(Name::parse(text).unwrap().to_string(), text);
        }
        for other in
            ["records-2026-11-26.0.db", "records-2026-11-26.db-wal", "records-2026-11-26.db.corrupt", "center.db"]
        {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_oldest_files_are_dropped_until_the_rest_fits_and_never_the_one_being_written() {
        let catalog = catalog(&[(10, 0, 9), (11, 10, 19), (12, 20, 29)]);
        let current = Some(name(12, 0));
        assert_eq!(catalog.beyond(300, current), []);
        assert_eq!(catalog.beyond(299, current), [name(10, 0)]);
        assert_eq!(catalog.beyond(0, current), [name(10, 0), name(11, 0)]);
    }

    #[test]
    fn files_older_than_what_is_kept_are_dropped() {
        let catalog = catalog(&[(10, 0, 9), (11, 10, 19), (12, 20, 29)]);
        let now = 12 * DAY_MS + 5;
        assert_eq!(catalog.older(2 * DAY_MS, now, Some(name(12, 0))), []);
        assert_eq!(catalog.older(DAY_MS, now, Some(name(12, 0))), [name(10, 0)]);
        assert_eq!(catalog.older(0, now + 9 * DAY_MS, Some(name(12, 0))), [name(10, 0), name(11, 0)]);
    }

    #[test]
    fn a_file_of_a_day_far_ahead_is_as_old_as_what_was_written_after_it() {
        let catalog = catalog(&[(10, 0, 9), (99_999, 10, 19), (11, 20, 29), (14, 30, 39)]);
        let now = 14 * DAY_MS + 5;
        assert_eq!(catalog.older(2 * DAY_MS, now, Some(name(14, 0))), [name(10, 0), name(99_999, 0), name(11, 0)]);
        assert_eq!(catalog.beyond(300, Some(name(14, 0))), [name(10, 0)]);
    }

    #[test]
    fn a_file_of_a_day_long_ago_is_as_new_as_what_was_written_before_it() {
        let catalog = catalog(&[(10, 0, 9), (0, 10, 19), (11, 20, 29)]);
        let now = 12 * DAY_MS + 5;
        assert_eq!(catalog.older(2 * DAY_MS, now, Some(name(11, 0))), []);
        assert_eq!(catalog.older(DAY_MS, now, Some(name(11, 0))), [name(10, 0), name(0, 0)]);
    }

    #[test]
    fn a_clock_that_goes_back_goes_on_in_the_file_of_its_day_and_one_just_past_midnight_does_not() {
        let catalog = catalog(&[(10, 0, 9), (11, 10, 19)]);
        let current = Some(name(11, 0));
        assert_eq!(catalog.target(11 * DAY_MS + 9, current, 1000), name(11, 0));
        assert_eq!(catalog.target(11 * DAY_MS - 1, current, 1000), name(11, 0));
        assert_eq!(catalog.target(11 * DAY_MS - LATE_MS - 1, current, 1000), name(10, 0));
        assert_eq!(catalog.target(5 * DAY_MS, current, 1000), name(5, 0));
        assert_eq!(catalog.target(11 * DAY_MS + 9, current, 100), name(11, 1), "the part is full");
    }

    #[test]
    fn a_clock_gone_mad_makes_a_bounded_number_of_files() {
        let mut catalog = Catalog::default();
        let mut current = None;
        for jump in 0..10_000 {
            let target = catalog.target(jump * 7 * DAY_MS, current, 1000);
            if catalog.entry(target).is_none() {
                catalog.add(Entry { name: target, extent: None, bytes: 1 });
            }
            current = Some(target);
        }
        assert_eq!(catalog.entries.len(), MAX_FILES);
    }

    #[test]
    fn a_name_is_not_used_again() {
        let mut catalog = catalog(&[(10, 0, 9)]);
        catalog.remove(name(10, 0));
        assert_eq!(catalog.target(10 * DAY_MS, None, 1000), name(10, 1));
    }

    #[test]
    fn files_that_overlap_are_read_together() {
        let catalog = catalog(&[(10, 0, 30), (11, 10, 19), (12, 31, 40)]);
        let all = catalog.groups(0..=u64::MAX, i64::MIN..=i64::MAX);
        assert_eq!(all, [vec![name(10, 0), name(11, 0)], vec![name(12, 0)]]);
        assert_eq!(catalog.groups(35..=u64::MAX, i64::MIN..=i64::MAX), [vec![name(12, 0)]]);
        assert_eq!(catalog.groups(0..=u64::MAX, 11 * DAY_MS..=11 * DAY_MS), [vec![name(11, 0)]]);
    }
}
