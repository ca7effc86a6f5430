//! The format of the spool's files, byte for byte. Numbers are little-endian.
//!
//! A segment is a file. Its first [`SEGMENT_HEAD_BYTES`] say up to where its batches are confirmed. Batches follow one
//! after another.
//!
//! ```text
//!   segment head:  magic "ELKSPL01" | mark u64 | checksum of the mark u32 | 0 u32
//!   batch:         magic u32 | checksum of the rest of head and manifest u32
//!                  | payload length u32 | payload checksum u32 | content length u32 | manifest length u16 | 0 u16
//!                  | number of the first record u64 | records u32
//!                  then the manifest, then the payload (a gRPC message as it travels)
//!   manifest row:  name length u8 | name | data type i32 | records u32 | first timestamp i64 | last timestamp i64
//! ```
//!
//! Records are numbered through the life of a spool, so that a gap tells how many are missing. Checksums are CRC-32C;
//! the caller provides the function.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::limits::{MANIFEST_ROWS, MAX_BATCH_BYTES, MAX_PLUGIN_NAME_BYTES};
use crate::record::manifest::{Row, Sources};

/// Computes a CRC-32C.
pub type Checksum = fn(&[u8]) -> u32;

/// Length of a segment's head, in bytes.
pub const SEGMENT_HEAD_BYTES: usize = 24;

/// Length of a batch's head without its manifest, in bytes.
pub const BATCH_HEAD_BYTES: usize = 36;

/// The longest manifest that a reader accepts, in bytes.
pub const MAX_MANIFEST_BYTES: usize = MANIFEST_ROWS * (1 + 255 + 24);

/// The longest row that the agent writes, in bytes. Its name is a plugin's or the agent's own.
pub(in crate::delivery) const MAX_ROW_BYTES: usize = 1 + MAX_PLUGIN_NAME_BYTES + 24;

const SEGMENT_MAGIC: &[u8; 8] = b"ELKSPL01";
const BATCH_MAGIC: [u8; 4] = *b"\xe1kb\x01";

/// The head of a segment whose batches are confirmed up to `mark`, an offset in the file.
#[must_use]
pub fn segment_head(mark: u64, checksum: Checksum) -> [u8; SEGMENT_HEAD_BYTES] {
    let mut head = [0; SEGMENT_HEAD_BYTES];
    head[..8].copy_from_slice(SEGMENT_MAGIC);
    head[8..16].copy_from_slice(&mark.to_le_bytes());
    head[16..20].copy_from_slice(&checksum(&mark.to_le_bytes()).to_le_bytes());
    head
}

/// Returns the offset up to which a segment's batches are confirmed, or `None` if this is no segment. A torn mark counts as none.
#[must_use]
pub fn read_segment_head(head: &[u8; SEGMENT_HEAD_BYTES], checksum: Checksum) -> Option<u64> {
    if &head[..8] != SEGMENT_MAGIC {
        return None;
    }
    let mark = u64_at(head, 8);
    let is_whole = checksum(&head[8..16]) == u32_at(head, 16) && mark >= SEGMENT_HEAD_BYTES as u64;
    Some(if is_whole { mark } else { SEGMENT_HEAD_BYTES as u64 })
}

/// The head of a batch, which precedes its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHead {
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// The payload's checksum.
    pub payload_sum: u32,
    /// Length of the payload's content once decompressed, in bytes.
    pub content_bytes: u32,
    /// Bytes of the manifest.
    pub manifest_bytes: u16,
    /// The number of the batch's first record.
    pub first_record: u64,
    /// Number of its records.
    pub records: u32,
}

/// The highest record number that a reader believes. An agent that writes 50,000 records a second to its disk reaches
/// it after 178 years. The bound keeps sums over all files, and further counting, from overflowing.
pub const MAX_RECORD_NUMBER: u64 = 1 << 48;

impl BatchHead {
    /// Reads the fixed part of a head. Only the manifest shows whether it is intact: see [`BatchHead::check`].
    #[must_use]
    pub fn read(bytes: &[u8; BATCH_HEAD_BYTES]) -> Option<Self> {
        let head = Self {
            payload_bytes: u32_at(bytes, 8),
            payload_sum: u32_at(bytes, 12),
            content_bytes: u32_at(bytes, 16),
            manifest_bytes: u16::from_le_bytes([bytes[20], bytes[21]]),
            first_record: u64_at(bytes, 24),
            records: u32_at(bytes, 32),
        };
        let plausible = bytes[..4] == BATCH_MAGIC
            && head.payload_bytes as usize <= MAX_BATCH_BYTES
            && usize::from(head.manifest_bytes) <= MAX_MANIFEST_BYTES
            && head.first_record <= MAX_RECORD_NUMBER;
        plausible.then_some(head)
    }

    /// Returns true when head and manifest are intact. `bytes` is both.
    #[must_use]
    pub fn check(bytes: &[u8], checksum: Checksum) -> bool {
        bytes.len() >= BATCH_HEAD_BYTES && checksum(&bytes[8..]) == u32_at(bytes, 4)
    }

    /// Length of the whole batch in its segment, in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        BATCH_HEAD_BYTES as u64 + u64::from(self.manifest_bytes) + u64::from(self.payload_bytes)
    }
}

/// Writes head and manifest of a batch with this payload.
#[must_use]
pub fn batch_head(
    payload: &[u8],
    content_bytes: u32,
    first_record: u64,
    rows: &[Row],
    sources: &Sources,
    checksum: Checksum,
) -> Vec<u8> {
    let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let mut out = vec![0; BATCH_HEAD_BYTES];
    for row in rows.iter().take(MANIFEST_ROWS) {
        let name = sources.name(row.source).as_bytes();
        let length = u8::try_from(name.len()).unwrap_or(0);
        out.push(length);
        out.extend_from_slice(name.get(..usize::from(length)).unwrap_or_default());
        out.extend_from_slice(&row.data_type.to_le_bytes());
        out.extend_from_slice(&narrow(row.records).to_le_bytes());
        out.extend_from_slice(&row.first.to_le_bytes());
        out.extend_from_slice(&row.last.to_le_bytes());
    }
    let manifest_bytes = u16::try_from(out.len() - BATCH_HEAD_BYTES).expect("32 rows take less than 64 KiB");
    out[..4].copy_from_slice(&BATCH_MAGIC);
    out[8..12].copy_from_slice(&narrow(payload.len() as u64).to_le_bytes());
    out[12..16].copy_from_slice(&checksum(payload).to_le_bytes());
    out[16..20].copy_from_slice(&content_bytes.to_le_bytes());
    out[20..22].copy_from_slice(&manifest_bytes.to_le_bytes());
    out[24..32].copy_from_slice(&first_record.to_le_bytes());
    out[32..36].copy_from_slice(&narrow(rows.iter().map(|row| row.records).sum()).to_le_bytes());
    let sum = checksum(&out[8..]);
    out[4..8].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Reads the rows of a manifest, and leaves out what is cut or does not parse.
#[must_use]
pub fn read_manifest(mut bytes: &[u8], sources: &mut Sources) -> Box<[Row]> {
    let mut rows = Vec::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let Some((name, rest)) = rest.split_at_checked(usize::from(length)) else { break };
        let Some((numbers, rest)) = rest.split_at_checked(24) else { break };
        rows.push(Row {
            source: sources.source_of(core::str::from_utf8(name).unwrap_or_default()),
            data_type: u32_at(numbers, 0).cast_signed(),
            records: u64::from(u32_at(numbers, 4)),
            first: u64_at(numbers, 8).cast_signed(),
            last: u64_at(numbers, 16).cast_signed(),
        });
        bytes = rest;
    }
    rows.into()
}

/// Finds where the next batch may begin in `bytes`, after its first byte. The caller has to check that batch like any other.
#[must_use]
pub fn find_batch(bytes: &[u8]) -> Option<usize> {
    let found = bytes.get(1..)?.windows(BATCH_MAGIC.len()).position(|window| window == BATCH_MAGIC)?;
    Some(found + 1)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::manifest::Source;

    fn sum(bytes: &[u8]) -> u32 {
        bytes.iter().fold(7, |sum: u32, &byte| sum.rotate_left(5) ^ u32::from(byte))
    }

    proptest! {
        #[test]
        fn a_batch_reads_back(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            (content, first) in (any::<u32>(), 0..=MAX_RECORD_NUMBER),
            kinds in prop::collection::vec((any::<i32>(), any::<u32>().prop_map(|n| n >> 8), any::<i64>(), any::<i64>()), 0..MANIFEST_ROWS),
        ) {
            let mut sources = Sources::default();
            let plugin = sources.source(&"driver".parse().expect("a name"));
            let sorts = [plugin, Source::AGENT, Source::OTHER].into_iter().cycle();
            let rows: Vec<Row> = kinds.iter().zip(sorts)
                .map(|(&(data_type, records, first, last), source)| Row { source, data_type, records: records.into(), first, last })
                .collect();
            let bytes = batch_head(&payload, content, first, &rows, &sources, sum);
            let fixed = bytes[..BATCH_HEAD_BYTES].try_into().expect("as long");
            let head = BatchHead::read(fixed).expect("a head");
            prop_assert!(BatchHead::check(&bytes, sum));
            prop_assert_eq!(usize::from(head.manifest_bytes), bytes.len() - BATCH_HEAD_BYTES);
            prop_assert_eq!((head.content_bytes, head.first_record), (content, first));
            prop_assert_eq!((head.payload_bytes as usize, head.payload_sum), (payload.len(), sum(&payload)));
            prop_assert_eq!(u64::from(head.records), rows.iter().map(|row| row.records).sum::<u64>());
            prop_assert_eq!(&*read_manifest(&bytes[BATCH_HEAD_BYTES..], &mut sources), &rows[..]);
            // For an interpreter, some of the bytes have to do.
            let step = if cfg!(miri) { 61 } else { 1 };
            for at in (4..bytes.len()).step_by(step) {
                let mut spoilt = bytes.clone();
                spoilt[at] ^= 4;
                prop_assert!(!BatchHead::check(&spoilt, sum), "byte {} may be spoilt", at);
            }
        }

        #[test]
        fn a_number_that_no_agent_reaches_is_no_head(first in MAX_RECORD_NUMBER + 1..) {
            let bytes = batch_head(b"payload", 7, first, &[], &Sources::default(), sum);
            prop_assert_eq!(BatchHead::read(bytes[..BATCH_HEAD_BYTES].try_into().expect("as long")), None);
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), BATCH_HEAD_BYTES..200)) {
            let _ = BatchHead::read(bytes[..BATCH_HEAD_BYTES].try_into().expect("as long"));
            let _ = BatchHead::check(&bytes, sum);
            let _ = read_manifest(&bytes, &mut Sources::default());
            let _ = find_batch(&bytes);
        }
    }

    #[test]
    fn a_mark_that_was_not_written_whole_counts_as_none() {
        let mut head = segment_head(4711, sum);
        assert_eq!(read_segment_head(&head, sum), Some(4711));
        head[9] ^= 1;
        assert_eq!(read_segment_head(&head, sum), Some(SEGMENT_HEAD_BYTES as u64));
        head[0] ^= 1;
        assert_eq!(read_segment_head(&head, sum), None);
    }

    #[test]
    fn the_next_batch_is_found_behind_garbage() {
        let batch = batch_head(b"", 0, 0, &[], &Sources::default(), sum);
        let bytes = [vec![0; 5], batch.clone(), batch].concat();
        assert_eq!(find_batch(&bytes), Some(5));
        assert_eq!(find_batch(&bytes[5..]), Some(BATCH_HEAD_BYTES));
        assert_eq!(find_batch(&[]), None);
    }

    #[test]
    fn a_mark_is_believed_from_the_end_of_the_head_on() {
        let least = SEGMENT_HEAD_BYTES as u64;
        let read = |mark| read_segment_head(&segment_head(mark, sum), sum);
        assert_eq!([read(least - 1), read(least), read(least + 1)], [Some(least), Some(least), Some(least + 1)]);
    }

    #[test]
    fn lengths_that_no_agent_writes_are_no_head() {
        let head = |payload: usize, manifest: usize| {
            let mut bytes = [0; BATCH_HEAD_BYTES];
            bytes[..4].copy_from_slice(&BATCH_MAGIC);
            bytes[8..12].copy_from_slice(&u32::try_from(payload).expect("short").to_le_bytes());
            bytes[20..22].copy_from_slice(&u16::try_from(manifest).expect("short").to_le_bytes());
            BatchHead::read(&bytes)
        };
        let longest = head(MAX_BATCH_BYTES, MAX_MANIFEST_BYTES).expect("it is not longer");
        assert_eq!(longest.total_bytes(), (BATCH_HEAD_BYTES + MAX_MANIFEST_BYTES + MAX_BATCH_BYTES) as u64);
        assert_eq!(head(MAX_BATCH_BYTES + 1, 0), None);
        assert_eq!(head(0, MAX_MANIFEST_BYTES + 1), None);
        assert_eq!(BatchHead::read(&[0; BATCH_HEAD_BYTES]), None, "without the magic");
    }

    #[test]
    fn part_of_a_head_is_not_intact() {
        let bytes = batch_head(b"payload", 7, 0, &[], &Sources::default(), sum);
        assert!(BatchHead::check(&bytes, sum));
        (0..bytes.len()).for_each(|end| assert!(!BatchHead::check(&bytes[..end], sum), "{end} bytes"));
        // An empty rest whose checksum happens to fit is no head either.
        let mut short = [0; 8];
        short[4..].copy_from_slice(&sum(&[]).to_le_bytes());
        assert!(!BatchHead::check(&short, sum));
    }

    #[test]
    fn a_row_is_as_long_as_the_longest_name_makes_it() {
        let mut sources = Sources::default();
        let name = "x".repeat(MAX_PLUGIN_NAME_BYTES);
        let source = sources.source(&name.parse().expect("a name"));
        let row = Row { source, data_type: 1, records: 2, first: 3, last: 4 };
        let bytes = batch_head(b"", 0, 0, &[row; MANIFEST_ROWS + 1], &sources, sum);
        assert_eq!(bytes.len(), BATCH_HEAD_BYTES + MANIFEST_ROWS * MAX_ROW_BYTES);
        const { assert!(MANIFEST_ROWS * MAX_ROW_BYTES <= MAX_MANIFEST_BYTES, "a reader accepts what the agent writes") };
    }

    #[test]
    fn rows_before_a_cut_are_read() {
        let mut sources = Sources::default();
        let row = Row { source: Source::AGENT, data_type: -1, records: 2, first: -3, last: 4 };
        let bytes = batch_head(b"", 0, 0, &[row; 2], &sources, sum).split_off(BATCH_HEAD_BYTES);
        for end in 0..=bytes.len() {
            let whole = end / (bytes.len() / 2);
            assert_eq!(&*read_manifest(&bytes[..end], &mut sources), &[row; 2][..whole], "{end} bytes");
        }
    }

    #[test]
    fn the_longest_manifest_is_one_of_the_longest_rows() {
        let row = [&[255][..], &[b'x'; 255], &[0; 24]].concat();
        let manifest = row.repeat(MANIFEST_ROWS);
        assert_eq!(manifest.len(), MAX_MANIFEST_BYTES);
        assert_eq!(read_manifest(&manifest, &mut Sources::default()).len(), MANIFEST_ROWS);
    }

    #[test]
    fn an_agent_that_has_written_for_a_hundred_years_is_believed() {
        let first = 50_000 * 86_400 * 365 * 100;
        let bytes = batch_head(b"payload", 7, first, &[], &Sources::default(), sum);
        let head = BatchHead::read(bytes[..BATCH_HEAD_BYTES].try_into().expect("as long"));
        assert_eq!(head.map(|head| head.first_record), Some(first));
    }
}
