//! A record's wire form: a checked view of one that a plugin wrote, and the writing of the agent's own.
//!
//! A plugin's `bridge.Record` and the server's `grpc.EncodedRecord` are the same bytes: data type (field 1, int32), timestamp
//! (field 2, int64, seconds), payload (field 3, a serialized `Payload`). The agent therefore checks a body and passes it on
//! as it is.

use crate::wire::{Malformed, Value, Writer, bytes_field_len, take_field, varint_len};

const DATA_TYPE: u8 = 1;
const TIMESTAMP: u8 = 2;
const DATA: u8 = 3;
/// `Payload.fields`, and key and value of each of its map entries.
const FIELDS: u8 = 1;
const KEY: u8 = 1;
const VALUE: u8 = 2;

/// A record whose bytes were checked.
///
/// Its fields were found in any order, each at most once; unknown ones are well-formed and stay in [`Record::body`]. The
/// payload's inside is the server's business and was not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    body: &'a [u8],
    data_type: i32,
    timestamp: i64,
    payload: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// Checks `body`, a frame's bytes without the length.
    ///
    /// # Errors
    /// When `body` is not a protobuf message, or a known field has the wrong type or comes twice.
    pub fn parse(body: &'a [u8]) -> Result<Self, InvalidRecord> {
        let (mut data_type, mut timestamp, mut payload) = (None, None, None);
        let mut rest = body;
        while !rest.is_empty() {
            let twice = match take_field(&mut rest)? {
                (1, Value::Varint(value)) => data_type.replace(value).is_some(),
                (2, Value::Varint(value)) => timestamp.replace(value).is_some(),
                (3, Value::Bytes(bytes)) => payload.replace(bytes).is_some(),
                (field @ 1..=3, _) => return Err(InvalidRecord::WrongType { field }),
                _ => false,
            };
            if twice {
                return Err(InvalidRecord::Twice);
            }
        }
        // int32 and int64 travel as 64-bit two's complement; a receiver takes the low bits.
        #[allow(clippy::cast_possible_truncation, reason = "what protobuf prescribes for an int32")]
        let data_type = data_type.unwrap_or(0) as i32;
        Ok(Self { body, data_type, timestamp: timestamp.unwrap_or(0).cast_signed(), payload })
    }

    /// The whole record as it came, fit to be an `EncodedRecord`.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// What the record is about; 0 when absent.
    #[must_use]
    pub fn data_type(&self) -> i32 {
        self.data_type
    }

    /// Seconds since 1970, UTC; 0 when absent.
    #[must_use]
    pub fn timestamp(&self) -> i64 {
        self.timestamp
    }

    /// The serialized `Payload`, if there is one.
    #[must_use]
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.payload
    }
}

/// Why a frame's body is not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidRecord {
    /// Not a protobuf message.
    Malformed(Malformed),
    /// A known field has a wire type that is not its own.
    WrongType {
        /// The field's number, 1 to 3.
        field: u32,
    },
    /// A known field comes more than once.
    Twice,
}

impl From<Malformed> for InvalidRecord {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl core::fmt::Display for InvalidRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Malformed(why) => why.fmt(f),
            Self::WrongType { field } => write!(f, "its field {field} has the wrong type"),
            Self::Twice => f.write_str("it has a field twice"),
        }
    }
}

impl core::error::Error for InvalidRecord {}

/// A record of the agent's own, ready to be written: a data type, a timestamp, and fields that are text.
#[derive(Debug, Clone, Copy)]
pub struct OwnRecord<I> {
    /// What the record is about.
    pub data_type: i32,
    /// Seconds since 1970, UTC.
    pub timestamp: i64,
    /// Names and values; walked twice.
    pub fields: I,
}

impl<'f, I> OwnRecord<I>
where
    I: Iterator<Item = (&'f str, &'f str)> + Clone,
{
    /// Bytes that [`OwnRecord::write`] writes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let payload = self.payload_len();
        1 + varint_len(self.data_type_bits())
            + 1
            + varint_len(self.timestamp.cast_unsigned())
            + bytes_field_len(payload)
    }

    /// Writes the record into the first [`OwnRecord::encoded_len`] bytes of `out`.
    ///
    /// # Panics
    /// When `out` is shorter than that.
    pub fn write(&self, out: &mut [u8]) {
        let mut w = Writer::new(out);
        w.varint_field(DATA_TYPE, self.data_type_bits());
        w.varint_field(TIMESTAMP, self.timestamp.cast_unsigned());
        w.bytes_head(DATA, self.payload_len());
        for (key, value) in self.fields.clone() {
            w.bytes_head(FIELDS, entry_len(key, value));
            w.bytes_field(KEY, key.as_bytes());
            w.bytes_field(VALUE, value.as_bytes());
        }
    }

    fn payload_len(&self) -> usize {
        self.fields.clone().map(|(key, value)| bytes_field_len(entry_len(key, value))).sum()
    }

    fn data_type_bits(&self) -> u64 {
        i64::from(self.data_type).cast_unsigned()
    }
}

fn entry_len(key: &str, value: &str) -> usize {
    bytes_field_len(key.len()) + bytes_field_len(value.len())
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec;
    use alloc::vec::Vec;

    use elklet_proto::grpc::{EncodedRecord, Payload};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    proptest! {
        #[test]
        fn what_prost_writes_is_read(data_type: i32, timestamp: i64, data in prop::collection::vec(any::<u8>(), 0..300)) {
            let body = EncodedRecord { data_type, timestamp, data: data.clone() }.encode_to_vec();
            let record = Record::parse(&body).expect("prost writes valid records");
            prop_assert_eq!(record.data_type(), data_type);
            prop_assert_eq!(record.timestamp(), timestamp);
            prop_assert_eq!(record.payload().unwrap_or_default(), &data[..]);
            prop_assert_eq!(record.body(), &body[..]);
        }

        #[test]
        fn what_is_accepted_prost_reads_alike(body in fields_in_any_order()) {
            match (Record::parse(&body), EncodedRecord::decode(&body[..])) {
                (Ok(ours), Ok(theirs)) => {
                    prop_assert_eq!(ours.data_type(), theirs.data_type);
                    prop_assert_eq!(ours.timestamp(), theirs.timestamp);
                    prop_assert_eq!(ours.payload().unwrap_or_default(), &theirs.data[..]);
                }
                (Ok(_), Err(error)) => prop_assert!(false, "accepted what prost refuses: {}", error),
                (Err(_), _) => {}
            }
        }

        #[test]
        fn own_records_are_what_prost_reads(data_type: i32, timestamp: i64, fields in prop::collection::btree_map(".{0,20}", ".{0,200}", 0..40)) {
            let record = OwnRecord { data_type, timestamp, fields: fields.iter().map(|(k, v): (&String, &String)| (&**k, &**v)) };
            let mut bytes = vec![0; record.encoded_len()];
            record.write(&mut bytes);
            let read = EncodedRecord::decode(&bytes[..]).expect("a valid record");
            prop_assert_eq!((read.data_type, read.timestamp), (data_type, timestamp));
            prop_assert_eq!(Payload::decode(&read.data[..]).expect("a valid payload").fields, fields);
        }
    }

    /// Bodies that are near enough to records to reach every branch: known and unknown fields, shuffled, doubled, cut, spoilt.
    fn fields_in_any_order() -> impl Strategy<Value = Vec<u8>> {
        let field = prop_oneof![
            any::<u64>().prop_map(|v| encoded(|w| w.varint_field(1, v))),
            any::<u64>().prop_map(|v| encoded(|w| w.varint_field(2, v))),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(|b| encoded(|w| w.bytes_field(3, &b))),
            (4..15u8, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(n, b)| encoded(|w| w.bytes_field(n, &b))),
            prop::collection::vec(any::<u8>(), 1..6),
        ];
        (prop::collection::vec(field, 0..5), 0..4usize).prop_map(|(fields, cut)| {
            let mut body = fields.concat();
            body.truncate(body.len().saturating_sub(cut / 3));
            body
        })
    }

    fn encoded(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut out = [0; 64];
        let mut writer = Writer::new(&mut out);
        write(&mut writer);
        let n = writer.written();
        out[..n].to_vec()
    }

    #[test]
    fn an_empty_body_is_a_record_of_defaults() {
        let record = Record::parse(&[]).expect("every field may be absent");
        assert_eq!((record.data_type(), record.timestamp(), record.payload()), (0, 0, None));
    }

    #[test]
    fn doubled_and_mistyped_fields_are_refused() {
        assert_eq!(Record::parse(&[0x08, 1, 0x08, 1]), Err(InvalidRecord::Twice));
        assert_eq!(Record::parse(&[0x0a, 1, 0]), Err(InvalidRecord::WrongType { field: 1 }));
        assert_eq!(Record::parse(&[0x18, 1]), Err(InvalidRecord::WrongType { field: 3 }));
    }

    #[test]
    fn unknown_fields_stay_in_the_body() {
        let body = [0x08, 59, 0x10, 1, 0x22, 2, 9, 9, 0x1a, 0];
        let record = Record::parse(&body).expect("field 4 is unknown, not wrong");
        assert_eq!((record.data_type(), record.payload()), (59, Some(&[][..])));
        assert_eq!(record.body(), &body);
    }
}
