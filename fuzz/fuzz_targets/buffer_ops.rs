//! Sequences of operations on the intake and its buffers against two plain lists, each bounded in records and in bytes:
//! the same records are taken and refused, the same lane is chosen, the sender is woken just when there is news for it, a
//! swap tells whether somebody waits, and what was taken is, with the envelope behind it, the message that prost would
//! write.
#![no_main]

use std::mem;

use arbitrary::Arbitrary;
use elklet_core::limits::{SLOTS, URGENT_SLOTS};
use elklet_core::record::buffer::{Full, RecordBuffer};
use elklet_core::record::envelope::{Envelope, Sender};
use elklet_core::record::intake::{Buffers, Due, Intake, Lane, Origin, Wake};
use elklet_core::record::manifest::Source;
use elklet_core::record::{OwnRecord, Record};
use elklet_proto::grpc::{EncodedRecord, PackagedData};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// Records of one input at most, so that no input is slow.
const RECORDS: usize = 10_000;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    urgent_bytes: u16,
    bulk_bytes: u16,
    host: &'a str,
    addresses: Vec<&'a str>,
    operations: Vec<Operation<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Operation<'a> {
    Push { urgent: bool, length: u16 },
    PushMany { urgent: bool, times: u16, length: u8 },
    PushOwn { data_type: i32, fields: Vec<(&'a str, &'a str)> },
    Swap,
}

/// One lane of the model: records as fields of a message, one after another.
#[derive(Debug)]
struct List {
    fields: Vec<u8>,
    records: usize,
    slots: usize,
    bytes: usize,
}

/// The model.
#[derive(Debug)]
struct Lists {
    urgent: List,
    bulk: List,
    /// The record that is longer than the bulk arena.
    outsized: Option<Vec<u8>>,
    longest: usize,
    refused: bool,
}

fuzz_target!(|input: Input<'_>| {
    let (urgent, bulk) = (usize::from(input.urgent_bytes), usize::from(input.bulk_bytes).max(2));
    let new = || Box::new(Buffers::new(vec![0xaa; urgent], vec![0xaa; bulk]));
    check_longest(bulk, new().longest_record());
    let sender = Sender {
        agent_id: "agent".to_owned(),
        hostname: input.host.to_owned(),
        intranet_ipv4: input.addresses.iter().map(|&address| address.to_owned()).collect(),
        ..Sender::default()
    };
    let envelope = Envelope::new(sender.clone());

    let (mut intake, mut spare) = (Intake::new(new()), new());
    let mut lists = Lists {
        urgent: List::new(URGENT_SLOTS, urgent),
        bulk: List::new(SLOTS, bulk),
        outsized: None,
        longest: new().longest_record(),
        refused: false,
    };
    let mut pushed = 0;
    for operation in input.operations {
        let (times, length, urgent) = match operation {
            Operation::Push { urgent, length } => (1, length, urgent),
            Operation::PushMany { urgent, times, length } => (times % 4096, u16::from(length), urgent),
            Operation::PushOwn { data_type, fields } => {
                push_own(&mut intake, &mut lists, data_type, &fields);
                continue;
            }
            Operation::Swap => {
                swap(&mut intake, &mut spare, &mut lists, &sender, &envelope);
                continue;
            }
        };
        let lane = if urgent { Lane::Urgent } else { Lane::Bulk };
        let mut record = EncodedRecord { data_type: 0, timestamp: 0, data: vec![0x55; usize::from(length)] };
        let mut body = Vec::new();
        for _ in 0..times {
            record.data_type += 1;
            body.clear();
            record.encode(&mut body).expect("a vector grows");
            let checked = Record::parse(&body).expect("prost writes records");
            let taken = intake.push(lane, ORIGIN, &checked);
            assert_eq!(taken, lists.push(lane, &body));
            lists.refused |= taken.is_err();
            check(&intake, &lists);
        }
        pushed += usize::from(times);
        if pushed > RECORDS {
            break;
        }
    }
    swap(&mut intake, &mut spare, &mut lists, &sender, &envelope);
});

const ORIGIN: Origin = Origin { source: Source::OTHER, may_drop: false };

fn push_own(intake: &mut Intake<Vec<u8>>, lists: &mut Lists, data_type: i32, fields: &[(&str, &str)]) {
    let own = OwnRecord { data_type, timestamp: 1, fields: fields.iter().copied() };
    let mut body = vec![0; own.encoded_len()];
    own.write(&mut body);
    assert_eq!(intake.push_own(&own), lists.push_own(&body));
    check(intake, lists);
}

fn swap(
    intake: &mut Intake<Vec<u8>>,
    spare: &mut Box<Buffers<Vec<u8>>>,
    lists: &mut Lists,
    sender: &Sender,
    envelope: &Envelope,
) {
    assert_eq!(intake.swap(spare), mem::take(&mut lists.refused), "whoever was refused is told");
    let records = lists.urgent.records + lists.bulk.records;
    assert_eq!(spare.len(), records + usize::from(lists.outsized.is_some()));
    let outsized = spare.outsized().map(|outsized| PackagedData::decode(outsized.bytes()).expect("a message").records);
    let expected = lists.outsized.take().map(|body| vec![EncodedRecord::decode(&body[..]).expect("a record")]);
    assert_eq!(outsized, expected, "the long one goes alone");
    assert_eq!(
        spare.parts(),
        [&lists.urgent.fields[..], &lists.bulk.fields[..]],
        "urgent ones first, each lane in order"
    );

    let message = [spare.parts().concat(), envelope.bytes().to_vec()].concat();
    let read = PackagedData::decode(&message[..]).expect("a batch is a message");
    assert_eq!(read.records.len(), records);
    let sent = (&read.agent_id, &read.hostname, &read.intranet_ipv4, &read.product);
    assert_eq!(sent, (&sender.agent_id, &sender.hostname, &sender.intranet_ipv4, &sender.product));
    spare.clear();
    lists.urgent.clear();
    lists.bulk.clear();
    check(intake, lists);
}

fn check(intake: &Intake<Vec<u8>>, lists: &Lists) {
    let held = lists.urgent.records + lists.bulk.records + usize::from(lists.outsized.is_some());
    assert_eq!((intake.len(), intake.is_empty()), (held, held == 0));
    assert_eq!(intake.due(), lists.due());
}

/// The longest record fits an empty buffer, and one that is longer by more than a length's rounding does not.
fn check_longest(bytes: usize, longest: usize) {
    let mut buffer = RecordBuffer::<_, 4>::new(vec![0; bytes]);
    // Behind the key and a length of one byte nothing fits an arena of 2 but the empty record.
    buffer.push(&vec![1; longest]).unwrap_or_else(|full| panic!("{longest} bytes find no room in {bytes}: {full:?}"));
    buffer.clear();
    assert_eq!(buffer.push(&vec![1; longest + 2]), Err(Full::Bytes));
}

impl List {
    fn new(slots: usize, bytes: usize) -> Self {
        Self { fields: Vec::new(), records: 0, slots, bytes }
    }

    fn push(&mut self, body: &[u8]) -> Result<(), Full> {
        let field = 1 + prost::length_delimiter_len(body.len()) + body.len();
        if self.records == self.slots {
            return Err(Full::Slots);
        }
        if self.fields.len() + field > self.bytes {
            return Err(Full::Bytes);
        }
        self.records += 1;
        self.fields.push(1 << 3 | 2);
        prost::encode_length_delimiter(body.len(), &mut self.fields).expect("a vector grows");
        self.fields.extend_from_slice(body);
        Ok(())
    }

    fn clear(&mut self) {
        self.records = 0;
        self.fields.clear();
    }
}

impl Lists {
    fn push(&mut self, lane: Lane, body: &[u8]) -> Result<Wake, Full> {
        let before = self.due();
        let is_waiting = self.outsized.is_some();
        if body.len() > self.longest {
            if is_waiting {
                return Err(Full::Bytes);
            }
            self.outsized = Some(body.to_vec());
        } else if lane == Lane::Bulk || self.urgent.push(body).is_err() {
            if is_waiting {
                return Err(Full::Bytes);
            }
            self.bulk.push(body)?;
        }
        Ok(self.wake(before))
    }

    fn push_own(&mut self, body: &[u8]) -> Result<Wake, Full> {
        let before = self.due();
        self.urgent.push(body).or_else(|_| self.bulk.push(body))?;
        Ok(self.wake(before))
    }

    fn wake(&self, before: Due) -> Wake {
        // The sender knows what was due before; it is woken when that has become more pressing.
        match self.due() {
            Due::Now if before != Due::Now => Wake::Now,
            Due::Later if before == Due::Nothing => Wake::First,
            _ => Wake::Unneeded,
        }
    }

    fn due(&self) -> Due {
        let List { fields, records, slots, bytes } = &self.bulk;
        if self.urgent.records > 0 || self.outsized.is_some() || *records >= slots / 2 || fields.len() >= bytes / 2 {
            Due::Now
        } else if *records == 0 {
            Due::Nothing
        } else {
            Due::Later
        }
    }
}
