//! Counts a batch's records by plugin and data type, so that a loss can be reported precisely.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::command::PluginName;
use crate::limits::{MANIFEST_ROWS, MAX_SOURCES};

/// Who made a record: a number for a plugin's name, or the agent itself. See [`Sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Source(u16);

impl Source {
    /// The agent's own records.
    pub const AGENT: Self = Self(0);

    /// Plugins beyond those that [`Sources`] can tell apart, and those whose name is no longer known.
    pub const OTHER: Self = Self(1);
}

/// The names that [`Source`]s stand for.
#[derive(Debug, Default)]
pub struct Sources {
    names: Vec<PluginName>,
}

impl Sources {
    /// Returns the number of a plugin's name. It never changes.
    pub fn source(&mut self, name: &PluginName) -> Source {
        let known = self.names.iter().position(|other| other == name);
        let index = known.or_else(|| {
            (self.names.len() < MAX_SOURCES).then(|| {
                self.names.push(name.clone());
                self.names.len() - 1
            })
        });
        index.and_then(|index| u16::try_from(index + 2).ok()).map_or(Source::OTHER, Source)
    }

    /// Returns the number for a text from [`Sources::name`].
    pub fn source_of(&mut self, name: &str) -> Source {
        match name.parse() {
            _ if name == AGENT => Source::AGENT,
            Ok(name) => self.source(&name),
            Err(_) => Source::OTHER,
        }
    }

    /// Returns the plugin's name, `elkeid-agent` for the agent's own records, or "" if the name is not known.
    #[must_use]
    pub fn name(&self, Source(number): Source) -> &str {
        match number {
            0 => AGENT,
            1 => "",
            number => self.names.get(usize::from(number) - 2).map_or("", PluginName::as_str),
        }
    }
}

const AGENT: &str = crate::command::AGENT_NAME;

/// Records of one plugin and data type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Who made the records.
    pub source: Source,
    /// Their data type.
    pub data_type: i32,
    /// Their number.
    pub records: u64,
    /// Their earliest timestamp, in seconds since 1970.
    pub first: i64,
    /// Their latest timestamp.
    pub last: i64,
}

impl Row {
    /// Returns true when both rows count the same kind of record.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (self.source, self.data_type) == (other.source, other.data_type)
    }

    /// Adds the other row's records.
    pub fn merge(&mut self, other: &Self) {
        self.records += other.records;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

/// A count of records by plugin and data type. It tells at most [`MANIFEST_ROWS`] kinds apart and counts the rest together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Manifest {
    rows: heapless::Vec<Row, MANIFEST_ROWS>,
    /// The row that counted last. Records come in runs, so it is likely to count next.
    latest: usize,
}

impl Manifest {
    /// Counts records.
    pub fn add(&mut self, row: Row) {
        if let Some(latest) = self.rows.get_mut(self.latest).filter(|latest| latest.is_like(&row)) {
            return latest.merge(&row);
        }
        let known = self.rows.iter().position(|known| known.is_like(&row));
        self.latest = known.unwrap_or(self.rows.len());
        if known.is_none() && self.rows.len() + 1 >= MANIFEST_ROWS {
            let rest = Row { source: Source::OTHER, data_type: 0, ..row };
            self.latest = MANIFEST_ROWS - 1;
            match self.rows.get_mut(self.latest) {
                Some(last) => last.merge(&rest),
                None => self.rows.push(rest).expect("one row is left for the rest"),
            }
            return;
        }
        match self.rows.get_mut(self.latest) {
            Some(known) => known.merge(&row),
            None => self.rows.push(row).expect("there is a row left"),
        }
    }

    /// The counts.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The counts, in memory of their own.
    #[must_use]
    pub fn to_rows(&self) -> Box<[Row]> {
        self.rows.as_slice().into()
    }

    /// Drops all counts.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.latest = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_record_is_counted_once(kinds in prop::collection::vec((0..60u16, 0..3i32, 0..1000i64), 0..300)) {
            let mut manifest = Manifest::default();
            for &(source, data_type, at) in &kinds {
                manifest.add(Row { source: Source(source), data_type, records: 1, first: at, last: at });
            }
            let rows = manifest.rows();
            prop_assert_eq!(rows.iter().map(|row| row.records).sum::<u64>(), kinds.len() as u64);
            prop_assert_eq!(rows.iter().map(|row| row.first).min(), kinds.iter().map(|kind| kind.2).min());
            prop_assert_eq!(rows.iter().map(|row| row.last).max(), kinds.iter().map(|kind| kind.2).max());
            let kinds_known: alloc::collections::BTreeSet<_> = kinds.iter().map(|kind| (kind.0, kind.1)).collect();
            if kinds_known.len() < MANIFEST_ROWS {
                prop_assert_eq!(rows.len(), kinds_known.len());
                for row in rows {
                    let same = kinds.iter().filter(|kind| (Source(kind.0), kind.1) == (row.source, row.data_type));
                    prop_assert_eq!(same.count() as u64, row.records);
                }
            }
        }
    }

    #[test]
    fn names_keep_their_numbers_and_the_rest_has_none() {
        let mut sources = Sources::default();
        let name = |n: usize| alloc::format!("p{n}").parse().expect("a name");
        let first = sources.source(&name(0));
        for n in 1..MAX_SOURCES {
            sources.source(&name(n));
        }
        assert_eq!((sources.source(&name(0)), sources.name(first)), (first, "p0"));
        assert_eq!(sources.source(&name(MAX_SOURCES)), Source::OTHER);
        assert_eq!((sources.name(Source::OTHER), sources.name(Source::AGENT)), ("", "elkeid-agent"));
        assert_eq!((sources.source_of("p0"), sources.source_of("elkeid-agent")), (first, Source::AGENT));
        assert_eq!(sources.source_of("no/name"), Source::OTHER);
    }

    #[test]
    fn every_plugin_has_a_number_of_its_own() {
        let mut sources = Sources::default();
        let names: [PluginName; 3] = ["a", "b", "c"].map(|name| name.parse().expect("a name"));
        let numbers = names.each_ref().map(|name| sources.source(name));
        assert_eq!(numbers.map(|source| sources.name(source)), ["a", "b", "c"]);
        assert_eq!(sources.source_of("c"), numbers[2]);
        assert!(!numbers.contains(&Source::AGENT) && !numbers.contains(&Source::OTHER));
        assert_eq!(Sources::default().name(numbers[0]), "", "another process's number stands for nothing");
    }

    fn row(source: u16, records: u64, at: i64) -> Row {
        Row { source: Source(source), data_type: 7, records, first: at, last: at }
    }

    #[test]
    fn kinds_beyond_the_limit_are_counted_together_in_the_last_row() {
        let mut manifest = Manifest::default();
        let own = u16::try_from(MANIFEST_ROWS - 1).expect("few rows");
        for source in 2..2 + own {
            manifest.add(row(source, 1, 100));
        }
        assert_eq!(manifest.rows().len(), MANIFEST_ROWS - 1, "as many kinds have rows of their own");
        for (source, at) in [(1_000, 50), (1_001, 70), (1_001, 60), (2, 90), (1_002, 80)] {
            manifest.add(row(source, 10, at));
        }
        assert_eq!(manifest.rows().len(), MANIFEST_ROWS);
        assert_eq!(manifest.rows()[0], Row { first: 90, ..row(2, 11, 100) });
        let rest = Row { source: Source::OTHER, data_type: 0, records: 40, first: 50, last: 80 };
        assert_eq!(manifest.rows()[MANIFEST_ROWS - 1], rest);
        assert_eq!(&*manifest.to_rows(), manifest.rows());
    }

    #[test]
    fn records_are_of_one_kind_when_plugin_and_data_type_agree() {
        let like = |source, data_type| row(2, 1, 0).is_like(&Row { source: Source(source), data_type, ..row(0, 5, 9) });
        assert_eq!([like(2, 7), like(3, 7), like(2, 8)], [true, false, false]);
    }

    #[test]
    fn a_cleared_manifest_counts_from_nothing() {
        let mut manifest = Manifest::default();
        [2, 3, 4].into_iter().for_each(|source| manifest.add(row(source, 1, 1)));
        manifest.clear();
        assert_eq!(manifest, Manifest::default());
        manifest.add(row(4, 1, 1));
        assert_eq!(manifest.rows(), [row(4, 1, 1)]);
    }
}
