//! Reads one segment, whatever its bytes are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use elklet_core::delivery::spool::format::{
    BATCH_HEAD_BYTES, BatchHead, SEGMENT_HEAD_BYTES, find_batch, read_segment_head,
};

/// Bytes that one step searches for the next batch.
const WINDOW_BYTES: usize = 64 << 10;

/// A segment's file, open for reading.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    bytes: u64,
    /// The offset up to which its batches are confirmed.
    pub(super) mark: u64,
    /// True when its head is intact. Its batches have checksums of their own.
    pub(super) is_headed: bool,
}

/// A batch with an intact head.
#[derive(Debug)]
pub(super) struct BatchAt {
    pub(super) head: BatchHead,
    /// Its manifest's bytes.
    pub(super) manifest: Vec<u8>,
    pub(super) begin: u64,
    pub(super) end: u64,
    /// Bytes between where the search began and this batch. They are no batch.
    pub(super) skipped: u64,
}

impl Segment {
    /// Opens a file as a segment, or returns `None` if it is too short. If the head is damaged, nothing counts as confirmed.
    pub(super) fn new(file: File) -> io::Result<Option<Self>> {
        let bytes = file.metadata()?.len();
        let mut head = [0; SEGMENT_HEAD_BYTES];
        match file.read_exact_at(&mut head, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let mark = read_segment_head(&head, crc32c::crc32c);
        let is_headed = mark.is_some();
        let mark = mark.unwrap_or(SEGMENT_HEAD_BYTES as u64).min(bytes);
        Ok(Some(Self { file, bytes, mark, is_headed }))
    }

    /// Length of the file in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the file's length again, because the agent may be writing to it.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.bytes = self.file.metadata()?.len();
        Ok(())
    }

    /// Returns the first batch at or after `from` that has an intact head and a complete payload.
    pub(super) fn batch_from(&self, from: u64) -> io::Result<Option<BatchAt>> {
        let mut begin = from;
        loop {
            match self.batch_at(begin)? {
                Some((head, manifest)) => {
                    let end = begin + head.total_bytes();
                    return Ok(Some(BatchAt { head, manifest, begin, end, skipped: begin - from }));
                }
                None => match self.find_batch(begin)? {
                    Some(next) => begin = next,
                    None => return Ok(None),
                },
            }
        }
    }

    /// Reads a batch's payload, or returns `None` if it is damaged.
    pub(super) fn payload(&self, batch: &BatchAt) -> io::Result<Option<Vec<u8>>> {
        let bytes = batch.head.payload_bytes;
        let mut payload = vec![0; bytes as usize];
        self.file.read_exact_at(&mut payload, batch.end - u64::from(bytes))?;
        Ok((crc32c::crc32c(&payload) == batch.head.payload_sum).then_some(payload))
    }

    fn batch_at(&self, at: u64) -> io::Result<Option<(BatchHead, Vec<u8>)>> {
        let mut fixed = [0; BATCH_HEAD_BYTES];
        if self.bytes < at.saturating_add(BATCH_HEAD_BYTES as u64) {
            return Ok(None);
        }
        self.file.read_exact_at(&mut fixed, at)?;
        let Some(head) = BatchHead::read(&fixed).filter(|head| at + head.total_bytes() <= self.bytes) else {
            return Ok(None);
        };
        let mut bytes = fixed.to_vec();
        bytes.resize(BATCH_HEAD_BYTES + usize::from(head.manifest_bytes), 0);
        self.file.read_exact_at(&mut bytes[BATCH_HEAD_BYTES..], at + BATCH_HEAD_BYTES as u64)?;
        let is_whole = BatchHead::check(&bytes, crc32c::crc32c);
        Ok(is_whole.then(|| (head, bytes.split_off(BATCH_HEAD_BYTES))))
    }

    /// Finds where a batch may begin after `from`.
    fn find_batch(&self, from: u64) -> io::Result<Option<u64>> {
        let mut window = vec![0; WINDOW_BYTES];
        let mut at = from;
        while at < self.bytes {
            let bytes = window.len().min(usize::try_from(self.bytes - at).unwrap_or(usize::MAX));
            self.file.read_exact_at(&mut window[..bytes], at)?;
            match find_batch(&window[..bytes]) {
                Some(found) => return Ok(Some(at + found as u64)),
                // A batch may begin across the window's end, so windows overlap.
                None if bytes < window.len() => return Ok(None),
                None => at += (bytes - 4) as u64,
            }
        }
        Ok(None)
    }
}
