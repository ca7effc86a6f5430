//! The spool: batches on disk, in segment files, oldest first.
//!
//! [`format`] defines the files. `Plan` knows which segments there are and what happens to them next. The shell reads
//! and writes: it is told an [`Op`] and answers with a [`Done`].

pub mod format;
mod plan;

use alloc::boxed::Box;
use alloc::vec::Vec;

pub(super) use self::plan::Plan;
use crate::record::manifest::Row;

/// A position in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// The segment's number, which is its file's name.
    pub segment: u64,
    /// An offset in the segment.
    pub offset: u64,
}

/// What the shell is to do with the spool's files. It does one operation at a time, and answers each with a [`Done`] of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<M> {
    /// Find the segments on the disk.
    Open,
    /// Write batches at `place`, the end of what was written.
    Append {
        /// Where to write. It is a new file if the offset is that of its head's end.
        place: Place,
        /// What to write, oldest first.
        batches: Vec<Write<M>>,
    },
    /// Read the batch at a place, or the next readable one after it.
    Read(Place),
    /// Report the records at and after a place in its segment, and delete the segment.
    Drop(Place),
    /// Delete a segment.
    Delete(u64),
    /// Write into the segment that everything before this place is confirmed.
    Mark(Place),
    /// Sync, so that what was written survives a power loss.
    Sync,
}

/// A batch to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write<M> {
    /// The message.
    pub message: M,
    /// Length of its content once decompressed, in bytes.
    pub content_bytes: u32,
    /// The number of its first record.
    pub first_record: u64,
    /// Its records by plugin and data type.
    pub rows: Box<[Row]>,
}

/// The result of an [`Op`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done<M> {
    /// These segments exist, oldest first, each with at least one batch.
    Opened(Vec<Found>),
    /// The batches were written. These are the offsets at which each ends.
    Appended(Vec<u64>),
    /// A batch was read, or the segment holds no further one (`None`).
    Read(Option<Replay<M>>),
    /// The segment is deleted. These records were in it.
    Dropped(Vec<Row>),
    /// The segment is deleted.
    Deleted,
    /// The mark is written.
    Marked,
    /// The files are synced.
    Synced,
    /// The operation failed.
    Failed(Failed),
}

/// A segment on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub number: u64,
    /// The offset up to which its batches are confirmed.
    pub mark: u64,
    /// The offset at which its last whole batch ends.
    pub end: u64,
    /// The number of its first unconfirmed record.
    pub first_record: u64,
    /// One more than the number of its last record.
    pub end_record: u64,
}

/// A batch that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay<M> {
    /// The message.
    pub message: M,
    /// Length of the message in bytes.
    pub bytes: usize,
    /// Its checksum.
    pub fingerprint: u32,
    /// Length of its content once decompressed, in bytes.
    pub content_bytes: u32,
    /// The offset at which it begins in its segment.
    pub begin: u64,
    /// The offset at which it ends.
    pub end: u64,
    /// The number of its first record.
    pub first_record: u64,
    /// Its records by plugin and data type.
    pub rows: Box<[Row]>,
}

/// Why an [`Op`] failed. The shell logs the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// The disk, or the spool's share of it, is full. The files are unchanged.
    Full,
    /// The files are gone.
    Vanished,
    /// Any other reason.
    Broken,
}
