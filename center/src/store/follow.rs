//! Reading records in the order in which they were stored, to pass them on.

use super::Shared;
use super::error::SearchError;
use super::search::{End, Found, Limits, MAX_LIMIT, Order, Query, search};
use std::collections::VecDeque;
use std::sync::Arc;

/// Hands out records in the order in which they were stored, each once.
///
/// Whoever passes records on keeps [`Follower::position`] once they have arrived, and begins there after a restart: every record
/// is passed on at least once, unless retention drops it before, which [`Follower::missed`] tells. [`super::Store::next_seq`] tells when
/// there is more to read.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    position: u64,
    /// Read ahead, up to 10,000 records or 16 MiB.
    buffer: VecDeque<Found>,
    /// Where reading goes on once the buffer is empty: behind what was read, or passed over because of its data type.
    read_to: u64,
    data_types: Vec<i32>,
    missed: Missed,
}

/// What could not be handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Records in files that were dropped or set aside. It is an upper bound, because some numbers belong to no record.
    pub records: u64,
    /// Blocks that could not be read. Each had up to some thousand records.
    pub blocks: u64,
}

impl Follower {
    pub(super) fn new(shared: &Arc<Shared>, position: u64) -> Result<Self, SearchError> {
        let next_seq = *shared.next_seq.borrow();
        if position > next_seq {
            return Err(SearchError::Ahead(position, next_seq));
        }
        Ok(Self {
            shared: Arc::clone(shared),
            position,
            buffer: VecDeque::new(),
            read_to: position,
            data_types: Vec::new(),
            missed: Missed::default(),
        })
    }

    /// Hands out only records of these data types, or all if there are none. Blocks without them are not opened.
    #[must_use]
    pub fn only(mut self, data_types: Vec<i32>) -> Self {
        self.data_types = data_types;
        self
    }

    /// The sequence number at which reading goes on: all records before it were handed out, or are of other data types.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many records were stored and not handed out yet. It is an upper bound, because some numbers belong to no record.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.shared.next_seq.borrow().saturating_sub(self.position)
    }

    /// What was dropped, set aside or damaged before it was handed out, since the follower began.
    #[must_use]
    pub fn missed(&self) -> Missed {
        self.missed
    }

    /// The next records, at most `max`. None means that all were handed out. Blocks like [`super::Store::search`].
    ///
    /// # Errors
    /// A file cannot be read. Reading may be tried again.
    pub fn next(&mut self, max: usize) -> Result<Vec<Found>, SearchError> {
        if self.buffer.is_empty() {
            self.read()?;
        }
        let count = max.min(self.buffer.len());
        let records: Vec<Found> = self.buffer.drain(..count).collect();
        if self.buffer.is_empty() {
            self.position = self.read_to;
        } else if let Some(last) = records.last() {
            self.position = last.seq + 1;
        }
        Ok(records)
    }

    fn read(&mut self) -> Result<(), SearchError> {
        let next_seq = *self.shared.next_seq.borrow();
        let oldest = self.shared.files.with_catalog(|catalog| {
            catalog.entries.iter().filter_map(|entry| entry.extent).map(|extent| extent.seq.0).min()
        });
        // Where no file is left, what is not written yet has the next number.
        let oldest = oldest.unwrap_or(next_seq);
        if self.position > 0 && self.position < oldest {
            self.missed.records += oldest - self.position;
            self.position = oldest;
        }
        let cursor = self.position.checked_sub(1);
        let data_types = self.data_types.clone();
        let query = Query { order: Order::Oldest, limit: MAX_LIMIT, cursor, data_types, ..Query::default() };
        let page = search(&self.shared, &query, &Limits::default())?;
        self.missed.blocks += page.damaged;
        let behind_last = page.records.last().map_or(self.position, |last| last.seq + 1);
        // A search that ends because there is no more has seen all that was stored when it began.
        self.read_to = if page.end == End::Limit { behind_last } else { behind_last.max(next_seq) };
        self.buffer.extend(page.records);
        Ok(())
    }
}
