//! Whatever lies in a spool's files, its store reads in order every whole batch that was written, between any damage, and
//! nothing else; what it says to be there when it opens is what is there, it appends behind it, and it drops a segment with
//! what was in it.
#![no_main]

use std::fs;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use elklet_agent::Store;
use elklet_core::delivery::spool::format::{SEGMENT_HEAD_BYTES, batch_head, segment_head};
use elklet_core::delivery::spool::{Done, Found, Op, Place, Write};
use elklet_core::record::manifest::{Row, Source, Sources};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// The first segment's head, if it is not to be right; else where its mark stands among the pieces.
    head: Result<u8, [u8; SEGMENT_HEAD_BYTES]>,
    pieces: Vec<Piece<'a>>,
    /// A batch of which not all was written, and how many bytes are missing: nothing is ever written behind one.
    torn: Option<(&'a [u8], u16, u16)>,
    /// Another file of the directory.
    other: Option<&'a [u8]>,
}

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Batch {
        payload: &'a [u8],
        records: u16,
    },
    /// A batch, and what is changed of it.
    Damaged {
        payload: &'a [u8],
        records: u16,
        at: u16,
        by: u8,
    },
    Bytes(&'a [u8]),
}

const FIRST: Place = Place { segment: 7, offset: SEGMENT_HEAD_BYTES as u64 };

fn row(records: u64) -> Row {
    Row { source: Source::AGENT, data_type: 59, records, first: 1, last: 2 }
}

fn written(payload: &[u8], first_record: u64, records: u16) -> Vec<u8> {
    let head = batch_head(payload, 9, first_record, &[row(records.into())], &Sources::default(), crc32c::crc32c);
    [&head, payload].concat()
}

/// All batches of a segment from a place on.
fn read_all(store: &mut Store, mut place: Place) -> Vec<(u64, Vec<u8>)> {
    let mut batches = Vec::new();
    loop {
        match store.carry_out(Op::Read(place)) {
            Done::Read(Some(batch)) => {
                assert!(batch.begin >= place.offset && batch.end > batch.begin, "{batch:?}");
                place.offset = batch.end;
                batches.push((batch.begin, batch.message.to_vec()));
            }
            Done::Read(None) => return batches,
            other => panic!("{other:?}"),
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let directory = std::env::temp_dir().join(format!("elklet-fuzz-spool-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("it is writable");
    let mut file = vec![0; SEGMENT_HEAD_BYTES];
    // Where each whole batch begins, and its payload; where a mark may stand.
    let (mut whole, mut edges) = (Vec::new(), vec![file.len()]);
    let mut number = 0;
    for piece in &input.pieces {
        let begin = file.len();
        match *piece {
            Piece::Batch { payload, records } => {
                whole.push((begin as u64, payload.to_vec()));
                file.extend(written(payload, number, records));
                number += u64::from(records);
            }
            Piece::Damaged { payload, records, at, by } => {
                let mut bytes = written(payload, number, records);
                let at = usize::from(at) % bytes.len();
                bytes[at] ^= by;
                if by == 0 {
                    whole.push((begin as u64, payload.to_vec()));
                }
                file.extend(bytes);
                number += u64::from(records);
            }
            Piece::Bytes(bytes) => file.extend_from_slice(bytes),
        }
        edges.push(file.len());
    }
    if let Some((payload, records, missing)) = input.torn {
        let mut bytes = written(payload, number, records);
        bytes.truncate(bytes.len() - 1 - usize::from(missing) % bytes.len());
        file.extend(bytes);
    }
    let mark = match input.head {
        Ok(edge) => {
            let mark = edges[usize::from(edge) % edges.len()] as u64;
            file[..SEGMENT_HEAD_BYTES].copy_from_slice(&segment_head(mark, crc32c::crc32c));
            Some(mark)
        }
        Err(head) => {
            file[..SEGMENT_HEAD_BYTES].copy_from_slice(&head);
            None
        }
    };
    fs::write(directory.join(format!("{:016x}.seg", FIRST.segment)), &file).expect("it is writable");
    if let Some(other) = input.other {
        fs::write(directory.join(format!("{:016x}.seg", u64::MAX)), other).expect("it is writable");
    }

    let mut store = Store::new(directory.clone(), Arc::new(Mutex::new(Sources::default())));
    let Done::Opened(found) = store.carry_out(Op::Open) else { panic!("it can be opened") };
    let first = found.iter().find(|found| found.number == FIRST.segment).copied();
    if let Some(mark) = mark {
        whole.retain(|(begin, _)| *begin >= mark);
        assert!(first.is_some() || whole.is_empty(), "{whole:?} are there");
    }
    if let Some(Found { number: segment, mark: begin, end, first_record, end_record }) = first {
        assert!(begin <= end && first_record <= end_record, "{first:?}");
        let place = Place { segment, offset: begin };
        let read = read_all(&mut store, place);
        assert!(mark.is_none() || read == whole, "{read:?} of {whole:?}");
        let batches = vec![Write {
            message: b"one more".to_vec().into(),
            content_bytes: 0,
            first_record: end_record,
            rows: [row(3)].into(),
        }];
        let appended = store.carry_out(Op::Append { place: Place { segment, offset: end }, batches });
        assert!(matches!(&appended, Done::Appended(ends) if ends.len() == 1), "{appended:?}");
        assert_eq!(read_all(&mut store, place).last(), Some(&(end, b"one more".to_vec())));
        let marked = store.carry_out(Op::Mark(Place { segment, offset: end }));
        assert_eq!(marked, Done::Marked);
        let Done::Dropped(rows) = store.carry_out(Op::Drop(Place { segment, offset: end })) else { panic!("it goes") };
        assert_eq!(rows, [row(3)]);
        assert!(!fs::exists(directory.join(format!("{segment:016x}.seg"))).expect("readable"));
    }
    drop(store);
    fs::remove_dir_all(&directory).expect("it is writable");
});
