//! Answering queries: what can be asked, and how a page is put together.

use super::Shared;
use super::error::SearchError;
use super::scan::{Group, Matcher};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// A page has so many records at most.
pub(super) const MAX_LIMIT: usize = 10_000;
/// A page ends early when its payloads have so many bytes.
const MAX_PAGE_BYTES: usize = 16 << 20;
/// A query has so many conditions at most.
const MAX_CONDITIONS: usize = 32;

/// What is searched for. A record is found if everything holds.
#[derive(Clone, Debug)]
pub struct Query {
    /// When the record was received, in milliseconds since 1970. Whole files are passed over by this.
    pub received_ms: RangeInclusive<i64>,
    /// When it was made by the host's clock, in seconds since 1970.
    pub timestamp: RangeInclusive<i64>,
    /// The host's name or its agent id.
    pub host: Option<String>,
    /// Any of these data types, or any at all if there are none.
    pub data_types: Vec<i32>,
    /// What its fields say.
    pub conditions: Vec<Condition>,
    /// Which records come first.
    pub order: Order,
    /// At most so many, up to 10,000.
    pub limit: usize,
    /// Goes on after a page: its [`Page::next`].
    pub cursor: Option<u64>,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            received_ms: i64::MIN..=i64::MAX,
            timestamp: i64::MIN..=i64::MAX,
            host: None,
            data_types: Vec::new(),
            conditions: Vec::new(),
            order: Order::Newest,
            limit: 100,
            cursor: None,
        }
    }
}

/// What a field says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The field's name.
    pub field: String,
    /// How its value is compared.
    pub test: Test,
    /// With what.
    pub value: String,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// It is the same. Filters tell which blocks cannot hold it.
    Is,
    /// It contains the text. Every block in question has to be read.
    Contains,
}

/// Which records come first. Records are in the order in which they were stored, which is that in which they were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The newest.
    Newest,
    /// The oldest.
    Oldest,
}

/// How long a search may take, and how far it is.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// When the search ends with what it has found. It reads one run, of some ten thousand records, in any case, so that page after
    /// page gets to the end.
    pub deadline: Option<Instant>,
    /// Ends the search at once when it becomes true.
    pub cancelled: Arc<AtomicBool>,
    /// How many records were looked at or passed over so far.
    pub passed: Arc<AtomicU64>,
    /// How many records there are to look at.
    pub total: Arc<AtomicU64>,
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its sequence number, which no other record of the store has.
    pub seq: u64,
    /// Which agent sent it.
    pub agent_id: Arc<str>,
    /// The host's name.
    pub hostname: Arc<str>,
    /// When it came, in milliseconds since 1970.
    pub received_ms: i64,
    /// What it is about.
    pub data_type: i32,
    /// Seconds since 1970, by the host's clock.
    pub timestamp: i64,
    /// A serialized `grpc.Payload`; [`super::fields`] reads it.
    pub payload: Bytes,
}

/// A part of an answer.
#[derive(Clone, Debug)]
pub struct Page {
    /// What was found, in the order that was asked for.
    pub records: Vec<Found>,
    /// Where the next page goes on, unless the search is complete.
    pub next: Option<u64>,
    /// Why the page ends.
    pub end: End,
    /// Blocks that were opened.
    pub opened: u64,
    /// Blocks that could not be read, whose records are missing.
    pub damaged: u64,
}

/// Why a page ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There is no more.
    Complete,
    /// The page is full. There may be more.
    Limit,
    /// The time is up.
    Deadline,
    /// The search was cancelled.
    Cancelled,
}

/// Answers a query.
pub(super) fn search(shared: &Shared, query: &Query, limits: &Limits) -> Result<Page, SearchError> {
    if query.conditions.len() > MAX_CONDITIONS {
        return Err(SearchError::Query("a query has at most 32 conditions"));
    }
    if query.limit == 0 || query.limit > MAX_LIMIT {
        return Err(SearchError::Query("a page has from 1 to 10000 records"));
    }
    // What is stored from now on is not seen, in any file, so that no cursor passes over it.
    let next_seq = *shared.next_seq.borrow();
    let seqs = match (query.order, query.cursor) {
        (Order::Newest, cursor) => 0..=cursor.unwrap_or(next_seq).min(next_seq).saturating_sub(1),
        (Order::Oldest, None) => 0..=next_seq.saturating_sub(1),
        (Order::Oldest, Some(cursor)) => cursor.saturating_add(1)..=next_seq.saturating_sub(1),
    };
    let mut page = Page { records: Vec::new(), next: query.cursor, end: End::Complete, opened: 0, damaged: 0 };
    if seqs.is_empty() {
        page.next = None;
    } else {
        fill(shared, query, limits, seqs, &mut page)?;
    }
    shared.damaged_blocks.fetch_add(page.damaged, Relaxed);
    Ok(page)
}

fn fill(
    shared: &Shared,
    query: &Query,
    limits: &Limits,
    seqs: RangeInclusive<u64>,
    page: &mut Page,
) -> Result<(), SearchError> {
    let (mut groups, total) = shared.files.with_catalog(|catalog| {
        let groups = catalog.groups(seqs.clone(), query.received_ms.clone());
        let names = groups.iter().flatten();
        let total: u64 = names.filter_map(|name| catalog.entry(*name)?.extent).map(|extent| extent.rows).sum();
        (groups, total)
    });
    limits.total.store(total, Relaxed);
    if query.order == Order::Newest {
        groups.reverse();
    }
    let matcher = Matcher::new(query, seqs);
    let mut bytes = MAX_PAGE_BYTES;
    let mut looked = false;
    for names in groups {
        let mut group = Group::open(&shared.files, &matcher, names)?;
        let mut runs = group.runs();
        if query.order == Order::Newest {
            runs.reverse();
        }
        for run in runs {
            if looked && limits.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                page.end = End::Deadline;
                return Ok(());
            }
            let mut best = Best::new(query.order, query.limit - page.records.len(), bytes);
            if !group.scan(run, &mut best, page, &limits.cancelled)? {
                // What was found of this run may not be the first of it.
                page.end = End::Cancelled;
                return Ok(());
            }
            looked = true;
            limits.passed.fetch_add(group.rows(run), Relaxed);
            bytes = bytes.saturating_sub(best.bytes);
            let full = best.is_full() || bytes == 0;
            page.records.extend(best.into_records());
            if full {
                page.end = End::Limit;
                page.next = page.records.last().map(|record| record.seq);
                return Ok(());
            }
            page.next = Some(match query.order {
                Order::Newest => group.seqs(run).0,
                Order::Oldest => group.seqs(run).1,
            });
        }
    }
    page.next = None;
    Ok(())
}

/// The first records of a run, in the order of the query, as many as the page has room for.
#[derive(Debug)]
pub(super) struct Best {
    order: Order,
    limit: usize,
    max_bytes: usize,
    bytes: usize,
    found: BTreeMap<u64, Found>,
    /// There was no room for this one. Nothing behind it is taken either, or a page would have a hole.
    bound: Option<u64>,
}

impl Best {
    fn new(order: Order, limit: usize, max_bytes: usize) -> Self {
        Self { order, limit, max_bytes, bytes: 0, found: BTreeMap::new(), bound: None }
    }

    /// True if no record between these sequence numbers would be taken.
    pub(super) fn is_beyond(&self, seqs: (u64, u64)) -> bool {
        match self.order {
            Order::Newest => self.bound.is_some_and(|bound| seqs.1 <= bound),
            Order::Oldest => self.bound.is_some_and(|bound| seqs.0 >= bound),
        }
    }

    pub(super) fn add(&mut self, record: Found) {
        if self.is_beyond((record.seq, record.seq)) {
            return;
        }
        self.bytes += record.payload.len();
        self.found.insert(record.seq, record);
        while self.found.len() > self.limit || (self.bytes > self.max_bytes && self.found.len() > 1) {
            let last = match self.order {
                Order::Newest => self.found.pop_first(),
                Order::Oldest => self.found.pop_last(),
            };
            let Some((seq, record)) = last else { break };
            self.bytes -= record.payload.len();
            self.bound = Some(seq);
        }
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.limit || self.bound.is_some()
    }

    fn into_records(self) -> Vec<Found> {
        let mut records: Vec<Found> = self.found.into_values().collect();
        if self.order == Order::Newest {
            records.reverse();
        }
        records
    }
}
