//! Batches that are too large for the server, made smaller.

use bytes::Bytes;
use elklet_core::delivery::{Batch, Kind};
use elklet_core::limits::MAX_BATCH_BYTES;
use elklet_core::link::grpc::PREFIX;
use elklet_core::record::manifest::{Manifest, Row, Source};
use elklet_core::record::wire::{Value, take_field};
use elklet_core::record::{Record, Refusal};

use super::delivery::batch;
use crate::net::{Compressor, decompress};

/// The number of `PackagedData.records`.
const RECORDS: u32 = 1;

/// What a batch was cut into.
#[derive(Debug, Default)]
pub(super) struct Cut {
    pub(super) parts: Vec<Batch<Bytes>>,
    /// Records that plugins may not send; they are in none of the parts. Earlier versions took them.
    pub(super) refused: Box<[Row]>,
}

/// The same records in batches of about `limit` bytes of content at most; each record stays whole. Nothing when the message
/// cannot be read.
pub(super) fn cut(compressor: &mut Compressor, whole: &Batch<Bytes>, limit: usize) -> Cut {
    let message = whole.message().and_then(|message| message.get(PREFIX..)).unwrap_or_default();
    match decompress(message, MAX_BATCH_BYTES) {
        Ok(content) => parts(compressor, whole, &content, limit),
        Err(error) => {
            log::error!("a batch of {} records cannot be read again: {error}", whole.records());
            Cut::default()
        }
    }
}

fn parts(compressor: &mut Compressor, whole: &Batch<Bytes>, content: &[u8], limit: usize) -> Cut {
    // What is no record says who sends them, and stands behind them.
    let mut envelope = &content[content.len()..];
    let mut records = Vec::new();
    let mut refused = Manifest::default();
    let mut rest = content;
    while !rest.is_empty() {
        let field = rest;
        let Ok((number, value)) = take_field(&mut rest) else { return Cut::default() };
        match value {
            Value::Bytes(body) if number == RECORDS && is_refused(body) => refused.add(row(whole, body)),
            Value::Bytes(body) if number == RECORDS => records.push((&field[..field.len() - rest.len()], body)),
            _ => {
                envelope = field;
                break;
            }
        }
    }
    let mut parts = Vec::new();
    let mut next = &*records;
    while let Some((first, _)) = next.first() {
        let mut bytes = first.len() + envelope.len();
        let more = next[1..].iter().take_while(|(field, _)| {
            bytes += field.len();
            bytes <= limit
        });
        let (part, others) = next.split_at(1 + more.count());
        next = others;
        let mut manifest = Manifest::default();
        part.iter().for_each(|(_, body)| manifest.add(row(whole, body)));
        let fields: Vec<&[u8]> = part.iter().map(|(field, _)| *field).collect();
        let fields = fields.concat();
        parts.push(batch(compressor, Kind::Bulk, &[&fields, envelope], manifest.to_rows()));
    }
    Cut { parts, refused: refused.to_rows() }
}

/// Whether the server would die of a record. The agent's own reports are among the records of a batch; those of its types that a
/// plugin has forged are harmless.
fn is_refused(body: &[u8]) -> bool {
    Record::parse(body).is_ok_and(|record| matches!(record.refusal(), Some(Refusal::NoFields { .. })))
}

/// A record's count; whose it is shows in the whole batch, as far as data types do not meet there.
fn row(whole: &Batch<Bytes>, body: &[u8]) -> Row {
    let (data_type, at) = Record::parse(body).map_or((0, 0), |record| (record.data_type(), record.timestamp()));
    let known = whole.rows().iter().find(|row| row.data_type == data_type);
    Row { source: known.map_or(Source::OTHER, |row| row.source), data_type, records: 1, first: at, last: at }
}

#[cfg(test)]
mod tests {
    use elklet_core::record::OwnRecord;
    use elklet_core::record::buffer::RecordBuffer;
    use elklet_proto::grpc::PackagedData;
    use prost::Message;

    use super::*;

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
        let rows = (0..20).map(|n| Row { source: Source::AGENT, data_type: n, records: 1, first: 0, last: 0 });
        let mut compressor = Compressor::new();
        let whole = batch(&mut compressor, Kind::Bulk, &[&content], rows.collect());
        let Cut { parts, refused } = cut(&mut compressor, &whole, 1_000);
        assert!(refused.is_empty());
        assert!(parts.len() > 10);
        let mut seen = Vec::new();
        for part in &parts {
            let content = decompress(&part.message().expect("in memory")[PREFIX..], 1 << 20).expect("whole");
            let data = PackagedData::decode(&*content).expect("a message");
            assert!(content.len() <= 1_000 || data.records.len() == 1);
            assert_eq!((&*data.agent_id, &*data.version, data.records.len() as u64), ("me", "1", part.records()));
            assert!(part.rows().iter().all(|row| row.source == Source::AGENT));
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
        let mut compressor = Compressor::new();
        let whole = batch(&mut compressor, Kind::Bulk, &[buffer.bytes()], Box::new([row]));
        let Cut { parts, refused } = cut(&mut compressor, &whole, usize::MAX);
        assert_eq!((parts.len(), parts[0].records()), (1, 2));
        assert_eq!(*refused, [Row { records: 1, first: 2, ..row }]);
    }
}
