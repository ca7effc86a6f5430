//! Reading records in the order in which they were stored, to pass them on.

use super::Shared;
use super::error::SearchError;
use super::search::{Found, Limits, MAX_LIMIT, Order, Query, search};
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
    missed: bool,
}

impl Follower {
    pub(super) fn new(shared: &Arc<Shared>, position: u64) -> Result<Self, SearchError> {
        let next_seq = *shared.next_seq.borrow();
        if position > next_seq {
            return Err(SearchError::Ahead(position, next_seq));
        }
        Ok(Self { shared: Arc::clone(shared), position, buffer: VecDeque::new(), missed: false })
    }

    /// The sequence number at which reading goes on: all records before it were handed out.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many records were stored and not handed out yet. It is an upper bound, because some numbers belong to no record.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.shared.next_seq.borrow().saturating_sub(self.position)
    }

    /// True if files were dropped or set aside before all of their records were handed out.
    #[must_use]
    pub fn missed(&self) -> bool {
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
        if let Some(last) = records.last() {
            self.position = last.seq + 1;
        }
        Ok(records)
    }

    fn read(&mut self) -> Result<(), SearchError> {
        let oldest = self.shared.files.with_catalog(|catalog| {
            catalog.entries.iter().filter_map(|entry| entry.extent).map(|extent| extent.seq.0).min()
        });
        self.missed |= self.position > 0 && oldest.is_some_and(|oldest| self.position < oldest);
        let cursor = self.position.checked_sub(1);
        let query = Query { order: Order::Oldest, limit: MAX_LIMIT, cursor, ..Query::default() };
        let page = search(&self.shared, &query, &Limits::default())?;
        self.missed |= page.damaged > 0;
        self.buffer.extend(page.records);
        Ok(())
    }
}
