//! Writes a record's frame straight into a batch: the length prefix and the protobuf message of `bridge.Record`.
//!
//! It walks the fields twice, first for the lengths that precede them and then to write them, so that it allocates
//! nothing and moves nothing afterwards. It always writes `data_type`, `timestamp` and `data`, even where protobuf would
//! leave out a zero, because the reference agent finds a record's parts by position and loses the stream otherwise.

use crate::MAX_RECORD_BYTES;

/// A record that has been measured and is short enough.
#[derive(Debug)]
pub(crate) struct Frame<I> {
    data_type: i32,
    timestamp: i64,
    fields: I,
    payload_len: usize,
    /// Without the length prefix.
    body_len: u32,
}

impl<'a, I: Iterator<Item = (&'a str, &'a str)> + Clone> Frame<I> {
    pub(crate) fn new(data_type: i32, timestamp: i64, fields: I) -> Result<Self, TooLong> {
        let payload_len =
            fields.clone().map(|(name, value)| delimited_len(entry_len(name, value))).fold(0, usize::saturating_add);
        let numbers_len = 2 + varint_len(wire(data_type.into())) + varint_len(wire(timestamp));
        let bytes = numbers_len.saturating_add(delimited_len(payload_len));
        match u32::try_from(bytes) {
            Ok(body_len) if bytes <= MAX_RECORD_BYTES => {
                Ok(Self { data_type, timestamp, fields, payload_len, body_len })
            }
            _ => Err(TooLong { bytes }),
        }
    }

    /// Length of what [`Frame::append_to`] appends, the length prefix included.
    pub(crate) fn len(&self) -> usize {
        // A u32 fits: the body is at most `MAX_RECORD_BYTES` long.
        PREFIX_LEN + self.body_len as usize
    }

    pub(crate) fn append_to(self, batch: &mut Vec<u8>) {
        batch.reserve(self.len());
        batch.extend_from_slice(&self.body_len.to_le_bytes());
        batch.push(DATA_TYPE_TAG);
        push_varint(batch, wire(self.data_type.into()));
        batch.push(TIMESTAMP_TAG);
        push_varint(batch, wire(self.timestamp));
        batch.push(DATA_TAG);
        push_varint(batch, self.payload_len as u64);
        for (name, value) in self.fields {
            batch.push(FIELDS_TAG);
            push_varint(batch, entry_len(name, value) as u64);
            push_text(batch, ENTRY_NAME_TAG, name);
            push_text(batch, ENTRY_VALUE_TAG, value);
        }
    }
}

/// The record would be `bytes` long, which is more than [`MAX_RECORD_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) bytes: usize,
}

const PREFIX_LEN: usize = 4;

// Field number and wire type of bridge.Record (1, 2: varint; 3: bytes), of grpc.Payload (1: a map, which is a repeated
// message) and of the map's entries (1: name; 2: value).
const DATA_TYPE_TAG: u8 = 0x08;
const TIMESTAMP_TAG: u8 = 0x10;
const DATA_TAG: u8 = 0x1a;
const FIELDS_TAG: u8 = 0x0a;
const ENTRY_NAME_TAG: u8 = 0x0a;
const ENTRY_VALUE_TAG: u8 = 0x12;

/// Protobuf's int32 and int64 on the wire: a negative number is sign-extended to 64 bits.
fn wire(number: i64) -> u64 {
    number.cast_unsigned()
}

/// A map entry leaves out an empty name or value.
fn entry_len(name: &str, value: &str) -> usize {
    let text_len = |text: &str| if text.is_empty() { 0 } else { delimited_len(text.len()) };
    text_len(name).saturating_add(text_len(value))
}

/// Length of a one-byte tag, a length and as many bytes.
fn delimited_len(len: usize) -> usize {
    (1 + varint_len(len as u64)).saturating_add(len)
}

fn varint_len(number: u64) -> usize {
    // A byte holds seven bits. Zero takes one byte as well.
    let bits = 64 - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

fn push_text(batch: &mut Vec<u8>, tag: u8, text: &str) {
    if !text.is_empty() {
        batch.push(tag);
        push_varint(batch, text.len() as u64);
        batch.extend_from_slice(text.as_bytes());
    }
}

fn push_varint(batch: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        let [low, ..] = number.to_le_bytes();
        batch.push(low | 0x80);
        number >>= 7;
    }
    let [last, ..] = number.to_le_bytes();
    batch.push(last);
}

#[cfg(test)]
mod tests {
    use super::*;
    use elklet_proto::{bridge::Record, grpc::Payload};
    use proptest::{collection::btree_map, prelude::*};
    use prost::Message;

    fn frame_of(record: &Record) -> Vec<u8> {
        let fields = record.data.as_ref().expect("a payload").fields.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let frame = Frame::new(record.data_type, record.timestamp, fields).expect("short enough");
        let announced = frame.len();
        let mut bytes = Vec::new();
        frame.append_to(&mut bytes);
        assert_eq!(bytes.len(), announced);
        bytes
    }

    proptest! {
        #[test]
        fn encodes_what_prost_decodes(
            data_type: i32,
            timestamp: i64,
            fields in btree_map(".{0,20}", ".{0,400}", 0..40),
        ) {
            let record = Record { data_type, timestamp, data: Some(Payload { fields }) };
            let bytes = frame_of(&record);
            let (prefix, body) = bytes.split_at(PREFIX_LEN);
            prop_assert_eq!(u32::from_le_bytes(prefix.try_into().unwrap()) as usize, body.len());
            prop_assert_eq!(&Record::decode(body).unwrap(), &record);
            // Only a zero is written differently: prost leaves it out.
            if data_type != 0 && timestamp != 0 {
                prop_assert_eq!(body, record.encode_to_vec());
            }
        }

        #[test]
        fn varints_have_the_announced_length(number: u64, shift in 0u32..64) {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, number >> shift);
            prop_assert_eq!(bytes.len(), varint_len(number >> shift));
        }
    }

    #[test]
    fn zeros_and_an_empty_payload_are_written_out() {
        let record = Record { data_type: 0, timestamp: 0, data: Some(Payload::default()) };
        assert_eq!(frame_of(&record), [6, 0, 0, 0, 0x08, 0, 0x10, 0, 0x1a, 0]);
    }

    #[test]
    fn the_longest_record_is_taken_and_one_byte_more_is_not() {
        let frame =
            |len: usize| Frame::new(1, 1, [("k", "x".repeat(len).as_str())].into_iter()).map(|frame| frame.len());
        let overhead = frame(1_000_000).unwrap() - PREFIX_LEN - 1_000_000;
        assert_eq!(frame(MAX_RECORD_BYTES - overhead), Ok(PREFIX_LEN + MAX_RECORD_BYTES));
        assert_eq!(frame(MAX_RECORD_BYTES - overhead + 1), Err(TooLong { bytes: MAX_RECORD_BYTES + 1 }));
    }
}
