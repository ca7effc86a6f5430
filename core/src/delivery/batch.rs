//! A batch: records on their way to the server.

use alloc::boxed::Box;

use super::spool::Place;
use super::spool::format::{BATCH_HEAD_BYTES, MAX_ROW_BYTES};
use crate::limits::MANIFEST_ROWS;
use crate::record::manifest::Row;

/// What a batch is, which decides how it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Heartbeats, which are worth nothing later and are not kept once they are written.
    Heartbeat,
    /// Records that go before all that wait.
    Urgent,
    /// All others.
    Bulk,
}

/// A message `M` of records; while the spool has it, only where it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<M> {
    /// Tells batches apart; 0 until the outbox gives it one.
    pub(super) id: u64,
    /// The message, while it is in memory.
    pub(super) message: Option<M>,
    /// Where the message lies in the spool, once it does.
    pub(super) stored: Option<Stored>,
    /// The message's checksum.
    fingerprint: u32,
    /// It comes from the spool of another version, and may hold records that plugins may not send.
    pub(super) is_unchecked: bool,
    /// The server had taken it once, and may have lost it: its loss is none.
    pub(super) is_double: bool,
    /// It cannot be made smaller.
    pub(super) is_smallest: bool,
    kind: Kind,
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
    /// The number of its first record there.
    pub(super) first_record: u64,
}

/// Tells a batch from others; see [`Batch::identity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    bytes: usize,
    fingerprint: u32,
}

impl<M> Batch<M> {
    /// A batch in memory: `message` is `bytes` long as it travels, and decompresses to `content_bytes`. `rows` counts its
    /// records.
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
            kind,
            bytes,
            content_bytes,
            records,
            rows,
        }
    }

    /// The same, with a checksum of its message, which tells it from others.
    #[must_use]
    pub fn with_fingerprint(self, fingerprint: u32) -> Self {
        Self { fingerprint, ..self }
    }

    /// The message, unless it is on disk only.
    #[must_use]
    pub fn message(&self) -> Option<&M> {
        self.message.as_ref()
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of its message as it travels.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of its message's content, decompressed.
    #[must_use]
    pub fn content_bytes(&self) -> u32 {
        self.content_bytes
    }

    /// Records in it.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Its records by plugin and data type.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What the same batch has again when it is sent again, whatever its way through the disk.
    pub(super) fn identity(&self) -> Identity {
        Identity { bytes: self.bytes, fingerprint: self.fingerprint }
    }

    /// Bytes of memory that its message takes.
    pub(super) fn memory(&self) -> usize {
        if self.message.is_some() { self.bytes } else { 0 }
    }

    /// Bytes that it takes in a segment at most.
    pub(super) fn stored_bytes(&self) -> usize {
        BATCH_HEAD_BYTES + self.rows.len().min(MANIFEST_ROWS) * MAX_ROW_BYTES + self.bytes
    }

    /// Whether it is in memory and nowhere else, and worth keeping.
    pub(super) fn is_only_in_memory(&self) -> bool {
        self.message.is_some() && self.stored.is_none() && self.kind != Kind::Heartbeat
    }

    /// Whether nothing keeps it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.message.is_none() && self.stored.is_none()
    }
}
