//! A record's bytes against prost: what the agent's check accepts, prost reads to the same values; what prost reads and the
//! check refuses is a field that comes twice, or a group, and nothing else. Records of the agent's own read back as they
//! were meant.
#![no_main]

use arbitrary::Arbitrary;
use elklet_core::record::wire::Malformed;
use elklet_core::record::{InvalidRecord, OwnRecord, Record};
use elklet_proto::grpc::{EncodedRecord, Payload};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Bytes(&'a [u8]),
    Fields(Vec<(Field<'a>, bool)>),
    Own { data_type: i32, timestamp: i64, fields: Vec<(&'a str, &'a str)> },
}

#[derive(Arbitrary, Debug)]
enum Field<'a> {
    Known(u64),
    /// A known field whose value has about as many bits as a varint may have.
    Long {
        length: u8,
        last: u8,
    },
    Data(&'a [u8]),
    Varint {
        number: u32,
        value: u64,
    },
    Bytes {
        number: u32,
        bytes: &'a [u8],
    },
    Fixed32 {
        number: u32,
        value: u32,
    },
    Fixed64 {
        number: u32,
        value: u64,
    },
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Bytes(body) => check(body),
        Input::Fields(fields) => {
            let mut body = Vec::new();
            fields.iter().for_each(|(field, first)| write(field, *first, &mut body));
            check(&body);
        }
        Input::Own { data_type, timestamp, fields } => own(data_type, timestamp, &fields),
    }
});

fn check(body: &[u8]) {
    match (Record::parse(body), EncodedRecord::decode(body)) {
        (Ok(record), Ok(prosts)) => {
            assert_eq!(record.body(), body, "it is passed on as it came");
            let ours = (record.data_type(), record.timestamp(), record.payload().unwrap_or_default());
            assert_eq!(ours, (prosts.data_type, prosts.timestamp, &prosts.data[..]));
        }
        (Ok(record), Err(error)) => panic!("{record:?} is accepted, but a server would not: {error}"),
        (Err(InvalidRecord::Twice | InvalidRecord::Malformed(Malformed::Key)), Ok(_)) => {}
        (Err(error), Ok(prosts)) => panic!("{prosts:?} is refused: {error}"),
        (Err(_), Err(_)) => {}
    }
}

/// Writes a field; a known number is that of the data type if it is the `first`, else that of the timestamp.
fn write(field: &Field<'_>, first: bool, body: &mut Vec<u8>) {
    let number = |number: u32| number % ((1 << 29) - 1) + 1;
    match *field {
        Field::Known(value) => {
            encode_key(if first { 1 } else { 2 }, WireType::Varint, body);
            encode_varint(value, body);
        }
        Field::Long { length, last } => {
            encode_key(if first { 1 } else { 2 }, WireType::Varint, body);
            body.resize(body.len() + 7 + usize::from(length % 4), 0xff);
            body.push(last % 4);
        }
        Field::Data(bytes) => {
            encode_key(3, WireType::LengthDelimited, body);
            encode_varint(bytes.len() as u64, body);
            body.extend_from_slice(bytes);
        }
        Field::Varint { number: n, value } => {
            encode_key(number(n), WireType::Varint, body);
            encode_varint(value, body);
        }
        Field::Bytes { number: n, bytes } => {
            encode_key(number(n), WireType::LengthDelimited, body);
            encode_varint(bytes.len() as u64, body);
            body.extend_from_slice(bytes);
        }
        Field::Fixed32 { number: n, value } => {
            encode_key(number(n), WireType::ThirtyTwoBit, body);
            body.extend_from_slice(&value.to_le_bytes());
        }
        Field::Fixed64 { number: n, value } => {
            encode_key(number(n), WireType::SixtyFourBit, body);
            body.extend_from_slice(&value.to_le_bytes());
        }
    }
}

fn own(data_type: i32, timestamp: i64, fields: &[(&str, &str)]) {
    let record = OwnRecord { data_type, timestamp, fields: fields.iter().copied() };
    let mut body = vec![0xaa; record.encoded_len()];
    record.write(&mut body);
    check(&body);
    let read = EncodedRecord::decode(&body[..]).expect("a record");
    assert_eq!((read.data_type, read.timestamp), (data_type, timestamp));
    let payload = Payload::decode(&read.data[..]).expect("a payload");
    // Of a name that comes twice a map keeps the last value.
    let expected = fields.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    assert_eq!(payload.fields, expected);
}
