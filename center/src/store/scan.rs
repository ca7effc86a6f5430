//! Looking through files: which blocks may match, and which records of them do.

use super::block::{Content, Summary};
use super::catalog::Name;
use super::day::{Indexed, Reader};
use super::error::{FailureKind, SearchError};
use super::files::Files;
use super::filter;
use super::merge::Run;
use super::payload::fields;
use super::search::{Best, Found, Page, Query, Test};
use bytes::Bytes;
use memchr::memmem::Finder;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A query, prepared.
#[derive(Debug)]
pub(super) struct Matcher<'a> {
    query: &'a Query,
    seqs: RangeInclusive<u64>,
    /// Finds each condition's value.
    finders: Vec<Finder<'a>>,
}

impl<'a> Matcher<'a> {
    pub(super) fn new(query: &'a Query, seqs: RangeInclusive<u64>) -> Self {
        let finders = query.conditions.iter().map(|condition| Finder::new(condition.value.as_bytes())).collect();
        Self { query, seqs, finders }
    }

    /// Returns false only if nothing in a block can match, as far as its summary tells.
    fn may_match(&self, block: &Summary, hosts: Option<&[u32]>) -> bool {
        let overlap = |range: &RangeInclusive<i64>, (low, high)| *range.start() <= high && low <= *range.end();
        let Query { received_ms, timestamp, data_types, .. } = self.query;
        let host = |hosts: &[u32]| hosts.iter().any(|host| (block.host.0..=block.host.1).contains(host));
        let typed = |types: &Vec<i32>| {
            data_types.is_empty() || data_types.iter().any(|wanted| types.binary_search(wanted).is_ok())
        };
        *self.seqs.start() <= block.seq.1
            && block.seq.0 <= *self.seqs.end()
            && overlap(received_ms, block.received_ms)
            && overlap(timestamp, block.timestamp)
            && hosts.is_none_or(host)
            && block.types.as_ref().is_none_or(typed)
    }

    /// Returns true if the filter has something to say about the query.
    fn filters(&self) -> bool {
        self.query.conditions.iter().any(|condition| condition.test == Test::Is)
    }

    /// Returns false only if the filter says that nothing in the block matches.
    fn may_hold(&self, block: &Summary, bits: &[u8]) -> bool {
        let wanted = &self.query.data_types;
        let of_type = |data_type: i32| {
            let mut conditions = self.query.conditions.iter().filter(|condition| condition.test == Test::Is);
            conditions.all(|condition| {
                filter::may_hold(bits, filter::key(data_type, condition.field.as_bytes(), condition.value.as_bytes()))
            })
        };
        match &block.types {
            Some(types) => {
                types.iter().any(|data_type| (wanted.is_empty() || wanted.contains(data_type)) && of_type(*data_type))
            }
            None => wanted.is_empty() || wanted.iter().any(|data_type| of_type(*data_type)),
        }
    }

    /// The records of a block that may match, by place: those in which the longest of the conditions' values stands somewhere. Finding
    /// that is faster by far than reading the fields of every record.
    fn candidates(&self, content: &Content) -> Vec<usize> {
        let longest = self.finders.iter().max_by_key(|finder| finder.needle().len());
        let Some(finder) = longest.filter(|finder| !finder.needle().is_empty()) else {
            return (0..content.len()).collect();
        };
        let mut rows: Vec<usize> = Vec::new();
        for start in finder.find_iter(content.payloads()) {
            // What stands across two records hides what stands in the second, so that both are candidates.
            let first = content.row_at(start).max(rows.last().map_or(0, |last| last + 1));
            rows.extend(first..=content.row_at(start + finder.needle().len() - 1));
        }
        rows
    }

    fn matches(&self, content: &Content, row: usize, hosts: Option<&[u32]>) -> bool {
        let Query { received_ms, timestamp, data_types, conditions, .. } = self.query;
        self.seqs.contains(&content.seqs[row])
            && hosts.is_none_or(|hosts| hosts.contains(&content.host(row)))
            && (data_types.is_empty() || data_types.contains(&content.data_type(row)))
            && received_ms.contains(&content.received_ms(row))
            && timestamp.contains(&content.timestamp(row))
            && (conditions.is_empty() || self.says(&content.payload(row)))
    }

    fn says(&self, payload: &[u8]) -> bool {
        self.query.conditions.iter().zip(&self.finders).all(|(condition, finder)| {
            fields(payload).any(|(name, value)| {
                name == condition.field.as_bytes()
                    && match condition.test {
                        Test::Is => value == condition.value.as_bytes(),
                        Test::Contains => finder.find(value).is_some(),
                    }
            })
        })
    }
}

/// A file that is being read.
#[derive(Debug)]
struct Open {
    name: Name,
    path: PathBuf,
    reader: Reader,
    runs: Vec<Run>,
    /// The numbers of the hosts in question, or nothing if all are.
    hosts: Option<Vec<u32>>,
    names: HashMap<u32, (Arc<str>, Arc<str>)>,
}

/// A run of one of the files of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    file: usize,
    run: usize,
}

/// Files whose sequence numbers overlap, which are read side by side. Nearly always it is one file.
#[derive(Debug)]
pub(super) struct Group<'a> {
    files: &'a Files,
    matcher: &'a Matcher<'a>,
    open: Vec<Open>,
}

impl<'a> Group<'a> {
    /// Opens files. One that retention drops meanwhile, or that is corrupt, is left out.
    pub(super) fn open(files: &'a Files, matcher: &'a Matcher<'a>, names: Vec<Name>) -> Result<Self, SearchError> {
        let mut open = Vec::new();
        for name in names {
            let path = files.path(name);
            let read = || {
                let reader = Reader::open(&path)?;
                let hosts = matcher.query.host.as_ref().map(|host| reader.hosts(host)).transpose()?;
                let mut runs = if hosts.as_ref().is_some_and(Vec::is_empty) { Vec::new() } else { reader.runs()? };
                runs.retain(|run| *matcher.seqs.start() <= run.seq.1 && run.seq.0 <= *matcher.seqs.end());
                Ok(Open { name, path: path.clone(), reader, runs, hosts, names: HashMap::new() })
            };
            match read() {
                Ok(file) => open.push(file),
                Err(error) => passable(files, name, path, error)?,
            }
        }
        Ok(Self { files, matcher, open })
    }

    /// All runs of the group, oldest first.
    pub(super) fn runs(&self) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        for (file, open) in self.open.iter().enumerate() {
            places.extend((0..open.runs.len()).map(|run| Place { file, run }));
        }
        places.sort_by_key(|&place| self.seqs(place));
        places
    }

    pub(super) fn seqs(&self, place: Place) -> (u64, u64) {
        self.open[place.file].runs[place.run].seq
    }

    pub(super) fn rows(&self, place: Place) -> u64 {
        self.open[place.file].runs[place.run].rows as u64
    }

    /// Adds the records of a run that match. Returns false if the search was cancelled.
    pub(super) fn scan(
        &mut self,
        place: Place,
        best: &mut Best,
        page: &mut Page,
        cancelled: &AtomicBool,
    ) -> Result<bool, SearchError> {
        let matcher = self.matcher;
        let file = &mut self.open[place.file];
        let first_seq = file.runs[place.run].seq.0;
        let blocks = match file.reader.blocks(first_seq) {
            Ok(blocks) => blocks,
            Err(error) => {
                page.damaged += 1;
                return passable(self.files, file.name, file.path.clone(), error).map(|()| true);
            }
        };
        for block in blocks {
            if cancelled.load(Relaxed) {
                return Ok(false);
            }
            if best.is_beyond(block.summary.seq) || !matcher.may_match(&block.summary, file.hosts.as_deref()) {
                continue;
            }
            match file.look(matcher, &block) {
                Ok(Looked::PassedOver) => {}
                Ok(Looked::Damaged) => {
                    log::error!(
                        "a block of {} is damaged, at sequence number {} or after it",
                        file.name,
                        block.summary.seq.0
                    );
                    page.damaged += 1;
                }
                Ok(Looked::Opened(content)) => {
                    page.opened += 1;
                    file.pick(matcher, &content, best);
                }
                Err(error) => {
                    page.damaged += 1;
                    passable(self.files, file.name, file.path.clone(), error)?;
                }
            }
        }
        Ok(true)
    }
}

/// What became of a block.
#[derive(Debug)]
enum Looked {
    PassedOver,
    Opened(Content),
    Damaged,
}

impl Open {
    fn look(&self, matcher: &Matcher<'_>, block: &Indexed) -> rusqlite::Result<Looked> {
        if matcher.filters() && !self.reader.with_filter(block.id, |bits| matcher.may_hold(&block.summary, bits))? {
            return Ok(Looked::PassedOver);
        }
        Ok(match self.reader.content(block)? {
            Ok(content) => Looked::Opened(content),
            Err(_) => Looked::Damaged,
        })
    }

    fn pick(&mut self, matcher: &Matcher<'_>, content: &Content, best: &mut Best) {
        for row in matcher.candidates(content) {
            let seq = content.seqs[row];
            if best.is_beyond((seq, seq)) || !matcher.matches(content, row, self.hosts.as_deref()) {
                continue;
            }
            let host = content.host(row);
            let reader = &self.reader;
            let (agent_id, hostname) = self.names.entry(host).or_insert_with(|| {
                // A host whose name cannot be read has records all the same.
                let (agent_id, hostname) = reader.host(host).unwrap_or_default();
                (agent_id.into(), hostname.into())
            });
            best.add(Found {
                seq,
                agent_id: Arc::clone(agent_id),
                hostname: Arc::clone(hostname),
                received_ms: content.received_ms(row),
                data_type: content.data_type(row),
                timestamp: content.timestamp(row),
                // A copy, so that a record does not keep its whole block in memory.
                payload: Bytes::copy_from_slice(&content.payload(row)),
            });
        }
    }
}

/// An error of a file that was dropped meanwhile is none, and a corrupt part is passed over.
fn passable(files: &Files, name: Name, path: PathBuf, error: rusqlite::Error) -> Result<(), SearchError> {
    let dropped = files.with_catalog(|catalog| catalog.entry(name).is_none());
    if dropped || FailureKind::of(&error) == FailureKind::Corrupt || error == rusqlite::Error::QueryReturnedNoRows {
        if !dropped {
            log::error!("a part of {} cannot be read: {error}", path.display());
        }
        return Ok(());
    }
    Err(SearchError::Sqlite(path, error))
}
