//! A batch of records on its way to the server.

use alloc::boxed::Box;

use super::spool::Place;
use super::spool::format::{BATCH_HEAD_BYTES, MAX_ROW_BYTES};
use crate::limits::MANIFEST_ROWS;
use crate::record::manifest::Row;

/// The kind of a batch, which decides how it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Heartbeats. They are worth nothing later, so nobody keeps them once they are written.
    Heartbeat,
    /// Records that overtake everything that waits.
    Urgent,
    /// All other records.
    Bulk,
}

/// A message `M` of records. Once it lies in the spool, a batch may keep only its place there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<M> {
    /// Tells batches apart. It is 0 until the outbox assigns one.
    pub(super) id: u64,
    /// The message, while it is in memory.
    pub(super) message: Option<M>,
    /// Where the message lies in the spool, if it does.
    pub(super) stored: Option<Stored>,
    /// The message's checksum.
    fingerprint: u32,
    /// True when another version spooled it, so that it may hold records that plugins may not send.
    pub(super) is_unchecked: bool,
    /// True when the server had taken it once and may have lost it. Losing it is then no loss.
    pub(super) is_double: bool,
    /// True when it cannot be cut further.
    pub(super) is_smallest: bool,
    /// True for a part of a cut batch, whose place in the spool holds the whole.
    pub(super) is_part: bool,
    pub(super) kind: Kind,
    bytes: usize,
    content_bytes: u32,
    records: u64,
    rows: Box<[Row]>,
}

/// Where a batch lies in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) at: Place,
    pub(super) end: Place,
    /// Number of its first record in the spool.
    pub(super) first_record: u64,
}

/// Identifies a batch. See [`Batch::identity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    bytes: usize,
    fingerprint: u32,
}

impl<M> Batch<M> {
    /// A batch in memory. `message` is `bytes` long as it travels and decompresses to `content_bytes`; `rows` counts its records.
    #[must_use]
    pub fn new(kind: Kind, message: M, bytes: usize, content_bytes: u32, rows: Box<[Row]>) -> Self {
        let records = rows.iter().map(|row| row.records).sum();
        Self {
            id: 0,
            message: Some(message),
            stored: None,
            fingerprint: 0,
            is_unchecked: false,
            is_double: false,
            is_smallest: records <= 1,
            is_part: false,
            kind,
            bytes,
            content_bytes,
            records,
            rows,
        }
    }

    /// The same batch with a checksum of its message, which identifies it.
    #[must_use]
    pub fn with_fingerprint(self, fingerprint: u32) -> Self {
        Self { fingerprint, ..self }
    }

    /// The message, unless it is on disk only.
    #[must_use]
    pub fn message(&self) -> Option<&M> {
        self.message.as_ref()
    }

    /// The batch's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Length of its message as it travels, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Length of its message's content once decompressed, in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u32 {
        self.content_bytes
    }

    /// Number of its records.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Its records by plugin and data type.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// An identity that a batch keeps when it is sent again, even if it has been on the disk in between.
    pub(super) fn identity(&self) -> Identity {
        Identity { bytes: self.bytes, fingerprint: self.fingerprint }
    }

    /// Bytes of memory that its message takes.
    pub(super) fn memory(&self) -> usize {
        if self.message.is_some() { self.bytes } else { 0 }
    }

    /// The most bytes that it takes in a segment.
    pub(super) fn stored_bytes(&self) -> usize {
        BATCH_HEAD_BYTES + self.rows.len().min(MANIFEST_ROWS) * MAX_ROW_BYTES + self.bytes
    }

    /// Returns true when it is in memory only and worth keeping.
    pub(super) fn is_only_in_memory(&self) -> bool {
        self.message.is_some() && self.stored.is_none() && self.kind != Kind::Heartbeat
    }

    /// Returns true when it is neither in memory nor on the disk.
    pub(super) fn is_gone(&self) -> bool {
        self.message.is_none() && self.stored.is_none()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::record::manifest::Source;

    fn row(records: u64) -> Row {
        Row { source: Source::AGENT, data_type: 1, records, first: 2, last: 3 }
    }

    fn batch(kind: Kind, records: u64) -> Batch<&'static str> {
        Batch::new(kind, "message", 70, 700, vec![row(records), row(1)].into())
    }

    const STORED: Stored =
        Stored { at: Place { segment: 1, offset: 24 }, end: Place { segment: 1, offset: 100 }, first_record: 9 };

    #[test]
    fn a_batch_tells_what_it_was_made_of() {
        let batch = batch(Kind::Urgent, 4);
        assert_eq!((batch.kind(), batch.message(), batch.records()), (Kind::Urgent, Some(&"message"), 5));
        assert_eq!((batch.bytes(), batch.content_bytes(), batch.rows()), (70, 700, &[row(4), row(1)][..]));
    }

    #[test]
    fn a_single_record_cannot_be_made_smaller() {
        assert!(!batch(Kind::Bulk, 1).is_smallest, "it has two");
        assert!(batch(Kind::Bulk, 0).is_smallest);
    }

    #[test]
    fn batches_are_told_apart_by_length_and_checksum() {
        let batch = batch(Kind::Bulk, 1).with_fingerprint(5);
        let stored = Batch { stored: Some(STORED), message: None, ..batch.clone() };
        assert_eq!(stored.identity(), batch.identity(), "wherever it lies");
        assert_ne!(batch.clone().with_fingerprint(6).identity(), batch.identity());
        assert_ne!(Batch { bytes: 71, ..batch.clone() }.identity(), batch.identity());
    }

    #[test]
    fn a_message_takes_memory_while_it_is_there() {
        let batch = batch(Kind::Bulk, 1);
        assert_eq!((batch.memory(), Batch { message: None, ..batch }.memory()), (70, 0));
    }

    #[test]
    fn room_on_the_disk_is_reckoned_for_the_longest_rows_that_are_written() {
        assert_eq!(batch(Kind::Bulk, 1).stored_bytes(), BATCH_HEAD_BYTES + 2 * MAX_ROW_BYTES + 70);
        let many = Batch::new(Kind::Bulk, "message", 70, 700, vec![row(1); MANIFEST_ROWS + 1].into());
        assert_eq!(many.stored_bytes(), BATCH_HEAD_BYTES + MANIFEST_ROWS * MAX_ROW_BYTES + 70);
    }

    #[test]
    fn where_a_batch_is_kept_decides_what_it_is_worth() {
        let in_memory = batch(Kind::Bulk, 1);
        let on_both = Batch { stored: Some(STORED), ..in_memory.clone() };
        let on_disk = Batch { message: None, ..on_both.clone() };
        let nowhere = Batch { stored: None, ..on_disk.clone() };
        let all = [in_memory, on_both, on_disk, nowhere];
        assert_eq!(all.each_ref().map(Batch::is_only_in_memory), [true, false, false, false]);
        assert_eq!(all.each_ref().map(Batch::is_gone), [false, false, false, true]);
        assert!(batch(Kind::Urgent, 1).is_only_in_memory());
        assert!(!batch(Kind::Heartbeat, 1).is_only_in_memory(), "nobody keeps it");
    }
}
