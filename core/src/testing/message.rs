//! Records and messages of the simulation. A record says in its own bytes which one it is, so that a server that reads a message knows
//! what it has got.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::delivery::{Batch, Kind};
use crate::record::manifest::{Manifest, Row, Source};
use crate::record::wire::{Value, take_field};
use crate::record::{OwnRecord, Record};

/// `PackagedData.records`, and what stands behind the records: an agent id of three letters.
const RECORDS: u32 = 1;
pub(super) const ENVELOPE: &[u8] = b"\x12\x03sim";

/// Which record it is: its series, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) series: u32,
    pub(super) number: u32,
}

/// Calls `with` for a record that says that it is `id`.
pub(super) fn own_record<T>(
    id: Id,
    data_type: i32,
    padding: &str,
    with: impl FnOnce(&OwnRecord<core::array::IntoIter<(&str, &str), 2>>) -> T,
) -> T {
    let name = format!("{}.{}", id.series, id.number);
    let fields = [("n", &*name), ("x", padding)];
    with(&OwnRecord { data_type, timestamp: 1, fields: fields.into_iter() })
}

/// Which record a payload says that it is.
fn id_of(mut payload: &[u8]) -> Option<Id> {
    let Ok((1, Value::Bytes(mut entry))) = take_field(&mut payload) else { return None };
    let Ok((1, Value::Bytes(b"n"))) = take_field(&mut entry) else { return None };
    let Ok((2, Value::Bytes(value))) = take_field(&mut entry) else { return None };
    let (series, number) = core::str::from_utf8(value).ok()?.split_once('.')?;
    Some(Id { series: series.parse().ok()?, number: number.parse().ok()? })
}

/// A message as it travels. It is not compressed, and says how long it pretends to be, so that few bytes fill memory and disk.
#[derive(Clone)]
pub(super) struct Message(Rc<Content>);

struct Content {
    bytes: Box<[u8]>,
    length: usize,
    fingerprint: u32,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {:08x} of {} bytes", self.0.fingerprint, self.0.length)
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.0.bytes == other.0.bytes
    }
}

impl Eq for Message {}

/// A record as it is found in a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundRecord<'a> {
    field: &'a [u8],
    body: &'a [u8],
    pub(super) data_type: i32,
    pub(super) id: Option<Id>,
}

impl Message {
    /// Bytes that it pretends to take, wherever it is.
    pub(super) fn length(&self) -> usize {
        self.0.length
    }

    pub(super) fn fingerprint(&self) -> u32 {
        self.0.fingerprint
    }

    /// Which records are in it, as the first and the last of each series.
    pub(super) fn summary(&self) -> String {
        let mut series = BTreeMap::<u32, (u32, u32)>::new();
        for Id { series: of, number } in self.records().filter_map(|record| record.id) {
            series.entry(of).or_insert((number, number)).1 = number;
        }
        series.iter().map(|(of, (first, last))| format!(" {of}.{first}-{last}")).collect()
    }

    /// The records in it.
    pub(super) fn records(&self) -> impl Iterator<Item = FoundRecord<'_>> {
        let mut rest = &self.0.bytes[..];
        core::iter::from_fn(move || {
            let begin = rest;
            match take_field(&mut rest) {
                Ok((RECORDS, Value::Bytes(body))) => {
                    let record = Record::parse(body).ok()?;
                    let field = &begin[..begin.len() - rest.len()];
                    let id = record.payload().and_then(id_of);
                    Some(FoundRecord { field, body, data_type: record.data_type(), id })
                }
                _ => None,
            }
        })
    }
}

/// Makes a batch of records that stand one after another in `parts`. Each byte counts as `scale` bytes.
pub(super) fn batch(kind: Kind, parts: &[&[u8]], rows: Box<[Row]>, scale: usize) -> Batch<Message> {
    let bytes = [parts.concat().as_slice(), ENVELOPE].concat().into_boxed_slice();
    let mut fingerprint = 0x811c_9dc5_u32;
    bytes.iter().for_each(|byte| fingerprint = (fingerprint ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let length = bytes.len() * scale;
    let content = u32::try_from(length).unwrap_or(u32::MAX);
    Batch::new(kind, Message(Rc::new(Content { bytes, length, fingerprint })), length, content, rows)
        .with_fingerprint(fingerprint)
}

/// Cuts a batch into parts of about `limit` pretended bytes, each record whole, as the shell does.
pub(super) fn cut(whole: &Batch<Message>, limit: usize, scale: usize) -> Vec<Batch<Message>> {
    let Some(message) = whole.message() else { return Vec::new() };
    let records: Vec<_> = message.records().collect();
    let mut parts = Vec::new();
    let mut next = &*records;
    while let Some(first) = next.first() {
        let mut bytes = first.field.len() + ENVELOPE.len();
        let more = next[1..].iter().take_while(|record| {
            bytes += record.field.len();
            bytes * scale <= limit
        });
        let (part, others) = next.split_at(1 + more.count());
        next = others;
        let mut manifest = Manifest::default();
        part.iter().for_each(|record| manifest.add(row(whole, record)));
        let fields: Vec<&[u8]> = part.iter().map(|record| record.field).collect();
        parts.push(batch(Kind::Bulk, &[&fields.concat()], manifest.to_rows(), scale));
    }
    parts
}

fn row(whole: &Batch<Message>, record: &FoundRecord<'_>) -> Row {
    let at = Record::parse(record.body).map_or(0, |record| record.timestamp());
    let known = whole.rows().iter().find(|row| row.data_type == record.data_type);
    let source = known.map_or(Source::OTHER, |row| row.source);
    Row { source, data_type: record.data_type, records: 1, first: at, last: at }
}
