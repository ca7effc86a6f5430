//! Blocks: some thousand records of one host, or of a few small ones, compressed together.
//!
//! A *run* is what one transaction stored: records with consecutive sequence numbers. Within a run, records are sorted by host
//! and cut into blocks, so that a search for one host opens few of them. Merging makes one run of several that follow each other.
//!
//! The content of a block is six columns of base-128 numbers (host, sequence number, data type, timestamp, time of receipt,
//! length), then the payloads one after another. Columns compress better than rows, and a search looks through them without
//! touching a payload. The whole is one zstd frame with a checksum.

use super::filter;
use super::payload::{fields, put_varint, varint};
use bytes::Bytes;
use std::collections::HashSet;

/// A block is cut at so many records, or bytes before compression. A search opens a whole block to find one record, and a
/// filter and an index entry cost the same for few records as for many.
const MAX_ROWS: usize = 4096;
const MAX_BYTES: usize = 2 << 20;
/// From so many records on, a block ends where a host does.
const ENOUGH_ROWS: usize = 1024;
/// A block that says that it is larger than this before compression is corrupt.
pub(super) const MAX_RAW: usize = 128 << 20;
/// A block with more data types than this keeps no list of them.
const MAX_TYPES: usize = 64;

/// A record as it lies in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The host's number in its file.
    pub(super) host: u32,
    pub(super) seq: u64,
    pub(super) data_type: i32,
    pub(super) timestamp: i64,
    pub(super) received_ms: i64,
    pub(super) payload: Bytes,
}

/// What the index holds of a block, so that a search can pass over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) rows: usize,
    pub(super) raw_len: usize,
    pub(super) seq: (u64, u64),
    pub(super) host: (u32, u32),
    pub(super) received_ms: (i64, i64),
    pub(super) timestamp: (i64, i64),
    /// The data types in it, sorted, or nothing if there are too many.
    pub(super) types: Option<Vec<i32>>,
}

/// A block ready to be written.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) summary: Summary,
    pub(super) filter: Vec<u8>,
    pub(super) data: Vec<u8>,
}

/// A block's content is not what was written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// Sorts the records of a run by host and makes blocks of them. `level` is zstd's.
pub(super) fn encode_run(rows: &mut [Row], level: i32) -> Vec<Encoded> {
    rows.sort_unstable_by_key(|row| (row.host, row.seq));
    let mut blocks = Vec::new();
    let mut rest: &[Row] = rows;
    while let Some(first) = rest.first() {
        let mut bytes = first.payload.len();
        let mut end = 1;
        while let Some(next) = rest.get(end) {
            bytes += next.payload.len();
            let host_ends = end >= ENOUGH_ROWS && next.host != rest[end - 1].host;
            if end == MAX_ROWS || bytes > MAX_BYTES || host_ends {
                break;
            }
            end += 1;
        }
        let (block, after) = rest.split_at(end);
        blocks.push(encode(block, level));
        rest = after;
    }
    blocks
}

fn encode(rows: &[Row], level: i32) -> Encoded {
    let mut types: Vec<i32> = rows.iter().map(|row| row.data_type).collect();
    types.sort_unstable();
    types.dedup();
    let mut keys = HashSet::with_hasher(Hashed);
    let mut raw = Vec::with_capacity(rows.iter().map(|row| row.payload.len() + 12).sum());
    let mut column = |value: &dyn Fn(&Row) -> u64| {
        let mut last = 0;
        for row in rows {
            let value = value(row);
            put_varint(&mut raw, zigzag(value.wrapping_sub(last).cast_signed()));
            last = value;
        }
    };
    column(&|row| u64::from(row.host));
    column(&|row| row.seq);
    column(&|row| i64::from(row.data_type).cast_unsigned());
    column(&|row| row.timestamp.cast_unsigned());
    column(&|row| row.received_ms.cast_unsigned());
    column(&|row| row.payload.len() as u64);
    for row in rows {
        raw.extend_from_slice(&row.payload);
        keys.extend(fields(&row.payload).map(|(name, value)| filter::key(row.data_type, name, value)));
    }
    let summary = Summary {
        rows: rows.len(),
        raw_len: raw.len(),
        seq: span(rows, |row| row.seq),
        host: span(rows, |row| row.host),
        received_ms: span(rows, |row| row.received_ms),
        timestamp: span(rows, |row| row.timestamp),
        types: (types.len() <= MAX_TYPES).then_some(types),
    };
    Encoded { summary, filter: filter::build(&keys), data: compress(&raw, level) }
}

/// The least and the greatest of a column of at least one row.
fn span<T: Ord + Copy + Default>(rows: &[Row], value: impl Fn(&Row) -> T) -> (T, T) {
    let least = rows.iter().map(&value).min().unwrap_or_default();
    let greatest = rows.iter().map(&value).max().unwrap_or_default();
    (least, greatest)
}

fn compress(raw: &[u8], level: i32) -> Vec<u8> {
    let compress = || {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        compressor.include_checksum(true)?;
        compressor.compress(raw)
    };
    compress().expect("zstd takes any bytes, and its levels are constants here")
}

/// A block's columns and payloads, decompressed.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) hosts: Vec<u64>,
    pub(super) seqs: Vec<u64>,
    types: Vec<u64>,
    timestamps: Vec<u64>,
    received: Vec<u64>,
    /// Where each payload ends in `payloads`.
    ends: Vec<usize>,
    payloads: Bytes,
}

impl Content {
    /// Decompresses and checks a block of so many records and bytes.
    pub(super) fn decode(data: &[u8], rows: usize, raw_len: usize) -> Result<Self, Damaged> {
        // Every record takes six bytes at least, which bounds what a corrupt count can make the store allocate.
        if raw_len > MAX_RAW || rows > raw_len / 6 {
            return Err(Damaged);
        }
        let raw = Bytes::from(zstd::bulk::decompress(data, raw_len).map_err(|_| Damaged)?);
        if raw.len() != raw_len {
            return Err(Damaged);
        }
        let mut rest: &[u8] = &raw;
        let mut column = || -> Result<Vec<u64>, Damaged> {
            let mut last = 0u64;
            let mut values = Vec::with_capacity(rows);
            for _ in 0..rows {
                last = last.wrapping_add(unzigzag(varint(&mut rest).ok_or(Damaged)?).cast_unsigned());
                values.push(last);
            }
            Ok(values)
        };
        let (hosts, seqs, types, timestamps, received, lens) =
            (column()?, column()?, column()?, column()?, column()?, column()?);
        let payloads = raw.slice(raw.len() - rest.len()..);
        let mut end = 0usize;
        let ends = lens.iter().map(|&len| {
            end =
                usize::try_from(len).ok().and_then(|len| end.checked_add(len)).filter(|&end| end <= payloads.len())?;
            Some(end)
        });
        let ends: Vec<usize> = ends.collect::<Option<_>>().ok_or(Damaged)?;
        if end != payloads.len() || hosts.iter().any(|&host| host > u64::from(u32::MAX)) {
            return Err(Damaged);
        }
        Ok(Self { hosts, seqs, types, timestamps, received, ends, payloads })
    }

    pub(super) fn len(&self) -> usize {
        self.seqs.len()
    }

    /// All payloads, one after another.
    pub(super) fn payloads(&self) -> &[u8] {
        &self.payloads
    }

    /// Which record a byte of the payloads belongs to.
    pub(super) fn row_at(&self, byte: usize) -> usize {
        self.ends.partition_point(|&end| end <= byte)
    }

    pub(super) fn data_type(&self, row: usize) -> i32 {
        // It was an `i32` before it was written.
        i32::try_from(self.types[row].cast_signed()).unwrap_or_default()
    }

    pub(super) fn timestamp(&self, row: usize) -> i64 {
        self.timestamps[row].cast_signed()
    }

    pub(super) fn received_ms(&self, row: usize) -> i64 {
        self.received[row].cast_signed()
    }

    pub(super) fn host(&self, row: usize) -> u32 {
        u32::try_from(self.hosts[row]).expect("decoding checks it")
    }

    /// A record's payload, which keeps the whole block in memory for as long as it lives.
    pub(super) fn payload(&self, row: usize) -> Bytes {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.payloads.slice(start..self.ends[row])
    }

    /// The record at a place.
    pub(super) fn row(&self, row: usize) -> Row {
        Row {
            host: self.host(row),
            seq: self.seqs[row],
            data_type: self.data_type(row),
            timestamp: self.timestamp(row),
            received_ms: self.received_ms(row),
            payload: self.payload(row),
        }
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Keys are hashes already, so that the set need not hash them again.
#[derive(Clone, Copy, Debug, Default)]
struct Hashed;

impl std::hash::BuildHasher for Hashed {
    type Hasher = Same;
    fn build_hasher(&self) -> Same {
        Same(0)
    }
}

#[derive(Debug)]
struct Same(u64);

impl std::hash::Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::payload::tests::payload;
    use proptest::prelude::*;

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row = (0..4u32, any::<i32>(), any::<i64>(), any::<i64>(), prop::collection::vec(any::<u8>(), 0..40));
        prop::collection::vec(row, 1..60).prop_map(|rows| {
            let row =
                |(seq, (host, data_type, timestamp, received_ms, payload)): (usize, (u32, i32, i64, i64, Vec<u8>))| {
                    Row { host, seq: seq as u64 + 5, data_type, timestamp, received_ms, payload: payload.into() }
                };
            rows.into_iter().enumerate().map(row).collect()
        })
    }

    fn decode(block: &Encoded) -> Result<Vec<Row>, Damaged> {
        let content = Content::decode(&block.data, block.summary.rows, block.summary.raw_len)?;
        Ok((0..content.len()).map(|row| content.row(row)).collect())
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(mut rows in rows()) {
            let blocks = encode_run(&mut rows, 1);
            let read: Vec<Row> = blocks.iter().flat_map(|block| decode(block).unwrap()).collect();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn a_changed_byte_is_noticed(mut rows in rows(), place in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut block = encode_run(&mut rows, 1).remove(0);
            let before = decode(&block);
            let place = place.index(block.data.len());
            block.data[place] ^= 1u8 << bit;
            // Some bits of a frame's header mean nothing, so that the content may be the same; it is never another.
            let after = decode(&block);
            prop_assert!(after == Err(Damaged) || after == before);
        }

        #[test]
        fn any_bytes_are_refused_or_read(data in prop::collection::vec(any::<u8>(), 0..99), rows in 0..999usize, len in 0..9999usize) {
            let _ = Content::decode(&data, rows, len);
        }
    }

    #[test]
    fn a_large_host_has_blocks_of_its_own_and_small_ones_share() {
        let row = |seq: u64| Row {
            host: if seq.is_multiple_of(2) { 7 } else { u32::try_from(seq % 100).unwrap() + 100 },
            seq,
            data_type: 59,
            timestamp: 1,
            received_ms: 2,
            payload: payload(&[("exe", "/bin/true")]).into(),
        };
        let mut rows: Vec<Row> = (0..20_000).map(row).collect();
        let blocks = encode_run(&mut rows, 1);
        let of_large = blocks.iter().filter(|block| block.summary.host.0 <= 7 && 7 <= block.summary.host.1).count();
        assert_eq!((of_large, blocks.len()), (3, 12));
        assert!(blocks.iter().all(|block| block.summary.rows <= MAX_ROWS));
    }
}
