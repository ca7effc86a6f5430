//! A record's wire form: a checked view of a plugin's record, and a writer for the agent's own.
//!
//! A plugin's `bridge.Record` and the server's `grpc.EncodedRecord` are the same bytes: data type (field 1, int32),
//! timestamp (field 2, int64, seconds), payload (field 3, a serialized `Payload`). The agent therefore checks a body
//! and passes it on as it is.
//!
//! The modules follow a record through the agent. [`frame`] finds records in a plugin's bytes, and [`intake`] takes
//! them in. A [`buffer`] holds them as they will travel, while a [`manifest`] counts them by plugin and data type. The
//! [`envelope`] says who sends them. All of them share the protobuf encoding in [`wire`].

pub mod buffer;
pub mod envelope;
pub mod frame;
pub mod intake;
pub mod manifest;
pub mod wire;

use elklet_proto::data_type::{AGENT_HEARTBEAT, LOSS, PLUGIN_HEARTBEAT, needs_fields};

use self::wire::{Malformed, Value, Writer, bytes_field_len, take_field, take_field_here, varint_len};

const DATA_TYPE: u8 = 1;
const TIMESTAMP: u8 = 2;
const DATA: u8 = 3;
/// `Payload.fields`, and the key and value of each of its map entries.
const FIELDS: u8 = 1;
const KEY: u8 = 1;
const VALUE: u8 = 2;

/// A record whose bytes were checked.
///
/// Known fields may come in any order, each at most once. Unknown ones are well-formed and stay in [`Record::body`].
/// The inside of the payload is the server's business and is not checked.
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
            let twice = match take_field_here(&mut rest)? {
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

    /// Says why a plugin may not send this record, or `None` if it may. The data type alone decides for most records.
    #[must_use]
    #[inline]
    pub fn refusal(&self) -> Option<Refusal> {
        let data_type = self.data_type;
        match data_type {
            AGENT_HEARTBEAT | PLUGIN_HEARTBEAT | LOSS => Some(Refusal::ReservedType { data_type }),
            _ if needs_fields(data_type) && !has_fields(self.payload.unwrap_or_default()) => {
                Some(Refusal::NoFields { data_type })
            }
            _ => None,
        }
    }
}

/// Why the agent does not pass on a well-formed record of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Only the agent itself sends records of this type; the server would take a plugin's for the agent's.
    ReservedType {
        /// The record's data type.
        data_type: i32,
    },
    /// AgentCenter writes into the field map of a record of this type, and panics when the payload does not bring a map.
    NoFields {
        /// The record's data type.
        data_type: i32,
    },
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::ReservedType { data_type } => {
                write!(f, "a record of data type {data_type}, which only the agent sends")
            }
            Self::NoFields { data_type } => {
                write!(f, "a record of data type {data_type} whose payload has no fields, expected at least one")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// Returns true when a `Payload` decodes to a map with at least one entry.
fn has_fields(mut payload: &[u8]) -> bool {
    let mut entries = 0;
    while !payload.is_empty() {
        match take_field(&mut payload) {
            Ok((number, Value::Bytes(entry))) if number == u32::from(FIELDS) && is_message(entry) => entries += 1,
            Ok((number, _)) if number != u32::from(FIELDS) => {}
            _ => return false,
        }
    }
    entries > 0
}

fn is_message(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        if take_field(&mut bytes).is_err() {
            return false;
        }
    }
    true
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

/// A record of the agent's own, ready to be written: a data type, a timestamp, and text fields.
#[derive(Debug, Clone, Copy)]
pub struct OwnRecord<I> {
    /// What the record is about.
    pub data_type: i32,
    /// Seconds since 1970, UTC.
    pub timestamp: i64,
    /// Names and values. [`OwnRecord::write`] walks them twice.
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
    use alloc::string::{String, ToString};
    use alloc::vec;
    use alloc::vec::Vec;

    use elklet_proto::grpc::{EncodedRecord, Payload};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    /// The most fields of a record that is tried. An interpreter takes minutes to make up the text of many.
    const MOST_FIELDS: usize = if cfg!(miri) { 4 } else { 40 };

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
        fn own_records_are_what_prost_reads(data_type: i32, timestamp: i64, fields in prop::collection::btree_map(".{0,20}", ".{0,200}", 0..MOST_FIELDS)) {
            let record = OwnRecord { data_type, timestamp, fields: fields.iter().map(|(k, v): (&String, &String)| (&**k, &**v)) };
            let mut bytes = vec![0; record.encoded_len()];
            record.write(&mut bytes);
            let read = EncodedRecord::decode(&bytes[..]).expect("a valid record");
            prop_assert_eq!((read.data_type, read.timestamp), (data_type, timestamp));
            prop_assert_eq!(Payload::decode(&read.data[..]).expect("a valid payload").fields, fields);
        }
    }

    /// Bodies close enough to records to reach every branch: known and unknown fields, shuffled, doubled, cut, corrupted.
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
    fn what_is_wrong_with_a_record_is_said_in_words() {
        assert_eq!(InvalidRecord::from(Malformed::Ends).to_string(), "it ends inside a field");
        assert_eq!(InvalidRecord::WrongType { field: 3 }.to_string(), "its field 3 has the wrong type");
        assert_eq!(InvalidRecord::Twice.to_string(), "it has a field twice");
        let reserved = Refusal::ReservedType { data_type: 1001 };
        assert_eq!(reserved.to_string(), "a record of data type 1001, which only the agent sends");
        let empty = Refusal::NoFields { data_type: 5100 };
        assert_eq!(empty.to_string(), "a record of data type 5100 whose payload has no fields, expected at least one");
    }

    fn refusal_of(data_type: u64, payload: Option<&[u8]>) -> Option<Refusal> {
        let body = encoded(|w| {
            w.bytes_field(7, b"unknown");
            w.varint_field(DATA_TYPE, data_type);
            if let Some(payload) = payload {
                w.bytes_field(DATA, payload);
            }
        });
        Record::parse(&body).expect("a record").refusal()
    }

    #[test]
    fn the_agents_own_types_are_refused_however_they_are_written() {
        let entry = b"\x0a\x06\x0a\x01k\x12\x01v";
        for data_type in [AGENT_HEARTBEAT, PLUGIN_HEARTBEAT, LOSS] {
            let reserved = Some(Refusal::ReservedType { data_type });
            // A receiver takes the low 32 bits of the number.
            for high in [0, 1 << 32, 0xffff_ffff << 32] {
                assert_eq!(refusal_of(high | u64::from(data_type.unsigned_abs()), Some(entry)), reserved);
            }
        }
        for data_type in [0, 59, 999, 1002, 1010, 1011, 1013, 3001, u64::MAX] {
            assert_eq!(refusal_of(data_type, Some(entry)), None, "{data_type}");
            assert_eq!(refusal_of(data_type, None), None, "{data_type}");
        }
    }

    #[test]
    fn results_of_tasks_need_a_payload_that_brings_a_map() {
        let without: [&[u8]; 9] = [
            b"",
            // Unknown fields only.
            b"\x12\x01x",
            b"\x10\x07",
            // A map entry of the wrong wire type, alone and behind a good one.
            b"\x08\x01",
            b"\x0a\x00\x08\x01",
            // A length that points past the end, alone and after a good entry.
            b"\x0a\x09\x0a\x01k",
            b"\x0a\x03\x0a\x01k\x0a\x09\x0a",
            // An entry that is not a message, and a group.
            b"\x0a\x02\x0a\x09",
            b"\x0b\x0c",
        ];
        let with: [&[u8]; 3] = [b"\x0a\x00", b"\x0a\x06\x0a\x01k\x12\x01v", b"\x12\x01x\x0a\x03\x0a\x01k\x10\x07"];
        for data_type in [2001, 2003, 5100, 5101, 6000, 8010] {
            let refusal = Some(Refusal::NoFields { data_type });
            let bits = u64::from(data_type.unsigned_abs());
            assert_eq!(refusal_of(bits, None), refusal);
            without.iter().for_each(|payload| assert_eq!(refusal_of(bits, Some(payload)), refusal, "{payload:?}"));
            with.iter().for_each(|payload| assert_eq!(refusal_of(bits, Some(payload)), None, "{payload:?}"));
        }
    }

    proptest! {
        /// AgentCenter panics over an empty map, so no payload that is let through may decode to one.
        #[test]
        fn no_empty_map_is_let_through(payload in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..12),
            prop::collection::vec(prop_oneof![Just(0x0a), Just(0x12), Just(0x00), Just(0x02), Just(0x01)], 0..12),
        ]) {
            if refusal_of(5100, Some(&payload)).is_none()
                && let Ok(read) = Payload::decode(&payload[..])
            {
                prop_assert!(!read.fields.is_empty());
            }
        }
    }

    #[test]
    fn unknown_fields_stay_in_the_body() {
        let body = [0x08, 59, 0x10, 1, 0x22, 2, 9, 9, 0x1a, 0];
        let record = Record::parse(&body).expect("field 4 is unknown, not wrong");
        assert_eq!((record.data_type(), record.payload()), (59, Some(&[][..])));
        assert_eq!(record.body(), &body);
    }
}
