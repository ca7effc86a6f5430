//! The spool: batches on disk, in segment files, oldest first.
//!
//! What the files look like is [`format`]'s, which segments there are and what happens to them next is `Plan`'s; reading and
//! writing is the shell's, told by [`Op`] and answered with [`Done`].

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
    /// An offset in it.
    pub offset: u64,
}

/// What the shell is to do with the spool's files. One at a time; each is answered with a [`Done`] of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<M> {
    /// Find what there is.
    Open,
    /// Write batches at `place`, which is the end of what was written.
    Append {
        /// Where; a new file if that is its head.
        place: Place,
        /// What, oldest first.
        batches: Vec<Write<M>>,
    },
    /// Read the batch at a place, or the next behind it that can be read.
    Read(Place),
    /// Say what records lie at and behind a place in its segment, and delete the segment.
    Drop(Place),
    /// Delete a segment.
    Delete(u64),
    /// Note in the segment that everything before this place is confirmed.
    Mark(Place),
    /// Have what was written survive a loss of power.
    Sync,
}

/// A batch to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write<M> {
    /// The message.
    pub message: M,
    /// Bytes of its content, decompressed.
    pub content_bytes: u32,
    /// The number of its first record.
    pub first_record: u64,
    /// Its records by plugin and data type.
    pub rows: Box<[Row]>,
}

/// What came of an [`Op`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done<M> {
    /// These segments are there, oldest first, each with at least one batch.
    Opened(Vec<Found>),
    /// The batches were written; where each ends.
    Appended(Vec<u64>),
    /// A batch was read; `None` when the segment holds no further one.
    Read(Option<Replay<M>>),
    /// The segment is deleted; what it held.
    Dropped(Vec<Row>),
    /// The segment is deleted.
    Deleted,
    /// The mark is written.
    Marked,
    /// What was written survives a loss of power.
    Synced,
    /// It could not be done.
    Failed(Failed),
}

/// A segment that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub number: u64,
    /// Up to where its batches are confirmed.
    pub mark: u64,
    /// Where its last whole batch ends.
    pub end: u64,
    /// The number of the first record that is not confirmed.
    pub first_record: u64,
    /// The number behind that of its last record.
    pub end_record: u64,
}

/// A batch that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay<M> {
    /// The message.
    pub message: M,
    /// Bytes of it.
    pub bytes: usize,
    /// Its checksum.
    pub fingerprint: u32,
    /// Bytes of its content, decompressed.
    pub content_bytes: u32,
    /// Where it begins and ends in its segment.
    pub begin: u64,
    /// See `begin`.
    pub end: u64,
    /// The number of its first record.
    pub first_record: u64,
    /// Its records by plugin and data type.
    pub rows: Box<[Row]>,
}

/// Why an [`Op`] could not be done; the shell logs the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// The disk, or what may be used of it, is full; what was there is as it was.
    Full,
    /// The files are not there any more.
    Vanished,
    /// Any other reason.
    Broken,
}
