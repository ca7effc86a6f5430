//! Batches that a server does not take, made smaller: the records of a message, in as many parts as a limit asks for.
//!
//! This looks into a message's content, which is a `PackagedData` (Elkeid's `grpc.proto`): its records (field 1) first, and behind
//! them the envelope. The caller decompresses the message, and compresses each part with the envelope behind it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::record::manifest::{Manifest, Row, Source};
use crate::record::wire::{Value, take_field};
use crate::record::{Record, Refusal};

/// The number of `PackagedData.records`.
const RECORDS: u32 = 1;

/// What a message's content was cut into.
#[derive(Debug, Default)]
pub struct Cuttings<'a> {
    /// At least one, unless all records are refused.
    pub parts: Vec<Part<'a>>,
    /// The fields that are no records, which follow each part.
    pub envelope: &'a [u8],
    /// Records that plugins may not send; no part holds them. Earlier versions of the agent took them.
    pub refused: Box<[Row]>,
}

/// Some of the records, in order.
#[derive(Debug)]
pub struct Part<'a> {
    /// Each record as a field of the `PackagedData`.
    pub fields: Vec<&'a [u8]>,
    /// What they are.
    pub rows: Box<[Row]>,
}

/// Cuts `content` into parts of about `limit` bytes at most, envelope included; each record stays whole. `rows` says what the whole
/// holds. `None` when the content is no `PackagedData`.
#[must_use]
pub fn cut<'a>(content: &'a [u8], rows: &[Row], limit: usize) -> Option<Cuttings<'a>> {
    let mut cuttings = Cuttings::default();
    let mut refused = Manifest::default();
    let mut records = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let field = rest;
        match take_field(&mut rest).ok()? {
            (RECORDS, Value::Bytes(body)) if is_refused(body) => refused.add(row(rows, body)),
            (RECORDS, Value::Bytes(body)) => records.push((&field[..field.len() - rest.len()], body)),
            _ => {
                cuttings.envelope = field;
                break;
            }
        }
    }
    let mut next = &*records;
    while let Some((first, others)) = next.split_first() {
        let mut bytes = first.0.len() + cuttings.envelope.len();
        let more = others.iter().take_while(|(field, _)| {
            bytes += field.len();
            bytes <= limit
        });
        let (part, others) = next.split_at(1 + more.count());
        next = others;
        let mut manifest = Manifest::default();
        part.iter().for_each(|(_, body)| manifest.add(row(rows, body)));
        cuttings.parts.push(Part { fields: part.iter().map(|(field, _)| *field).collect(), rows: manifest.to_rows() });
    }
    cuttings.refused = refused.to_rows();
    Some(cuttings)
}

/// Returns true when the server would die of a record. The agent's own reports are among the records of a batch; those of its types that
/// a plugin has forged are harmless.
fn is_refused(body: &[u8]) -> bool {
    Record::parse(body).is_ok_and(|record| matches!(record.refusal(), Some(Refusal::NoFields { .. })))
}

/// A record's count. Whose it is shows in the whole batch, as far as data types do not meet there.
fn row(rows: &[Row], body: &[u8]) -> Row {
    let (data_type, at) = Record::parse(body).map_or((0, 0), |record| (record.data_type(), record.timestamp()));
    let known = rows.iter().find(|row| row.data_type == data_type);
    Row { source: known.map_or(Source::OTHER, |row| row.source), data_type, records: 1, first: at, last: at }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use elklet_proto::grpc::PackagedData;
    use prost::Message;

    use super::*;
    use crate::record::OwnRecord;
    use crate::record::buffer::RecordBuffer;

    #[test]
    fn the_parts_are_the_whole() {
        let record = |number: i32| {
            let text = "x".repeat(100 * number.unsigned_abs() as usize);
            let own = OwnRecord { data_type: number, timestamp: number.into(), fields: [("n", &*text)].into_iter() };
            let mut body = vec![0; own.encoded_len()];
            own.write(&mut body);
            elklet_proto::grpc::EncodedRecord::decode(&*body).expect("a record")
        };
        let records: Vec<_> = (0..20).map(record).collect();
        let data =
            PackagedData { records: records.clone(), agent_id: "me".into(), version: "1".into(), ..Default::default() };
        let content = data.encode_to_vec();
        let row = |n| Row { source: Source::AGENT, data_type: n, records: 1, first: 0, last: 0 };
        let rows: Vec<_> = (0..20).map(row).collect();
        let Cuttings { parts, envelope, refused } = cut(&content, &rows, 1_000).expect("it is a message");
        assert!(refused.is_empty());
        assert!(parts.len() > 10);
        let mut seen = Vec::new();
        for part in &parts {
            let content = [part.fields.concat(), envelope.to_vec()].concat();
            let data = PackagedData::decode(&*content).expect("a message");
            assert!(content.len() <= 1_000 || data.records.len() == 1);
            let counted: u64 = part.rows.iter().map(|row| row.records).sum();
            assert_eq!((&*data.agent_id, &*data.version, data.records.len() as u64), ("me", "1", counted));
            assert!(part.rows.iter().all(|row| row.source == Source::AGENT));
            seen.extend(data.records);
        }
        assert_eq!(seen, records);
    }

    #[test]
    fn records_that_the_server_would_die_of_are_taken_out() {
        let fields = [("token", "t")];
        let good = OwnRecord { data_type: 5100, timestamp: 1, fields: fields.into_iter() };
        let bare = OwnRecord { data_type: 5100, timestamp: 2, fields: fields.into_iter().take(0) };
        let mut buffer = RecordBuffer::<_, 8>::new(vec![0; 1_000]);
        buffer.push_own(&good).expect("room");
        buffer.push_own(&bare).expect("room");
        buffer.push_own(&good).expect("room");
        let row = Row { source: Source::OTHER, data_type: 5100, records: 3, first: 1, last: 2 };
        let Cuttings { parts, refused, .. } = cut(buffer.bytes(), &[row], usize::MAX).expect("it is a message");
        assert_eq!((parts.len(), parts[0].fields.len()), (1, 2));
        assert_eq!(*refused, [Row { records: 1, first: 2, ..row }]);
    }

    #[test]
    fn what_is_no_message_is_not_cut() {
        assert!(cut(b"\x0a\xff", &[], 100).is_none());
        assert!(cut("".to_string().as_bytes(), &[], 100).is_some_and(|cuttings| cuttings.parts.is_empty()));
    }

    #[test]
    fn a_part_may_be_as_long_as_the_limit_envelope_included() {
        // Each record takes seven bytes as a field, and the envelope four.
        let record = |number: u8| [0x0a, 5, 0x08, number, 0x12, 1, b'x'];
        let content = [&[1, 2, 3, 4, 5].map(record).concat()[..], b"\x12\x02me"].concat();
        let lengths = |limit| {
            let cuttings = cut(&content, &[], limit).expect("it is a message");
            assert_eq!(cuttings.envelope, b"\x12\x02me");
            cuttings.parts.iter().map(|part| part.fields.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(39), [5]);
        assert_eq!(lengths(38), [4, 1]);
        assert_eq!(lengths(18), [2, 2, 1]);
        assert_eq!((lengths(17), lengths(0)), (vec![1; 5], vec![1; 5]));
    }

    #[test]
    fn a_record_is_counted_for_the_plugin_that_sends_its_data_type() {
        let of = |number: u16, data_type: i32| {
            let mut sources = crate::record::manifest::Sources::default();
            let numbers = ["a", "b"].map(|name| sources.source(&name.parse().expect("a name")));
            Row { source: numbers[usize::from(number)], data_type, records: 1, first: 0, last: 0 }
        };
        let rows = [of(0, 1), of(1, 2)];
        let content = b"\x0a\x02\x08\x02\x0a\x02\x08\x01\x0a\x02\x08\x03";
        let cuttings = cut(content, &rows, usize::MAX).expect("it is a message");
        let unknown = Row { source: Source::OTHER, ..of(0, 3) };
        assert_eq!(*cuttings.parts[0].rows, [of(1, 2), of(0, 1), unknown]);
    }
}
