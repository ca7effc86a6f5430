//! A plugin's byte stream, cut anywhere, with records refused now and then for want of room: the decoder gives the same
//! records, errors and counts as a model that looks at the whole stream frame by frame, shows a refused record again, and
//! holds no more memory than the bytes of one frame that have arrived.
#![no_main]

use arbitrary::Arbitrary;
use elklet_core::record::frame::{BadFrame, FrameDecoder, Tally};
use elklet_core::record::{Record, Refusal};
use elklet_fuzz::{heap, stream::pieces};
use elklet_proto::grpc::EncodedRecord;
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// More than the decoder keeps of its memory between frames, so that giving it back is reached.
const LIMIT: usize = 40_000;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    parts: Vec<Part<'a>>,
    lengths: &'a [u8],
    refusals: Vec<bool>,
}

#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Record { data_type: i32, timestamp: i64, data: &'a [u8] },
    LongRecord { data: u16 },
    Body(&'a [u8]),
    TooLong { by: u8 },
    Head(u32),
    Raw(&'a [u8]),
}

/// What is seen of a stream: the records' bodies, and the errors, in order.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    frames: Vec<Result<Vec<u8>, BadFrame>>,
    tally: Tally,
}

fuzz_target!(|input: Input<'_>| {
    let mut stream = Vec::new();
    for part in &input.parts {
        write(part, &mut stream);
        if stream.len() > 3 * LIMIT {
            break;
        }
    }

    let expected = model(&stream);
    assert_eq!(decode(&[&stream], &[]), expected, "fed the whole at once");
    let cut: Vec<_> = pieces(&stream, input.lengths).collect();
    assert_eq!(decode(&cut, &input.refusals), expected, "fed in pieces");

    let mut decoder = FrameDecoder::new(LIMIT);
    let ((), peak) = heap::peak(|| {
        for mut piece in cut {
            while let Some(next) = decoder.peek(&mut piece) {
                if next.is_ok() {
                    decoder.take(&mut piece);
                }
            }
        }
    });
    assert!(peak <= 2 * stream.len().min(LIMIT) + 8, "{peak} bytes were held for a stream of {}", stream.len());
});

fn write(part: &Part<'_>, stream: &mut Vec<u8>) {
    let frame = |body: &[u8], stream: &mut Vec<u8>| {
        stream.extend_from_slice(&u32::try_from(body.len()).expect("a short body").to_le_bytes());
        stream.extend_from_slice(body);
    };
    match *part {
        Part::Record { data_type, timestamp, data } => {
            frame(&EncodedRecord { data_type, timestamp, data: data.to_vec() }.encode_to_vec(), stream);
        }
        Part::LongRecord { data } => {
            let data = vec![7; usize::from(data)];
            frame(&EncodedRecord { data_type: 59, timestamp: 1, data }.encode_to_vec(), stream);
        }
        Part::Body(body) => frame(body, stream),
        Part::TooLong { by } => frame(&vec![0; LIMIT + 1 + usize::from(by)], stream),
        Part::Head(length) => stream.extend_from_slice(&length.to_le_bytes()),
        Part::Raw(bytes) => stream.extend_from_slice(bytes),
    }
}

/// Looks at one frame after another with the whole stream in hand.
fn model(mut stream: &[u8]) -> Seen {
    let mut seen = Seen::default();
    let tally = &mut seen.tally;
    while !stream.is_empty() {
        let Some((head, rest)) = stream.split_first_chunk() else {
            tally.truncated += 1;
            tally.skipped_bytes += stream.len() as u64;
            seen.frames.push(Err(BadFrame::Truncated { arrived: stream.len(), length: None }));
            break;
        };
        let length = u32::from_le_bytes(*head) as usize;
        let (body, rest) = rest.split_at(length.min(rest.len()));
        stream = rest;
        seen.frames.push(match Record::parse(body) {
            _ if length > LIMIT => {
                tally.too_long += 1;
                tally.skipped_bytes += length as u64;
                Err(BadFrame::TooLong { length, limit: LIMIT })
            }
            _ if body.len() < length => {
                tally.truncated += 1;
                tally.skipped_bytes += body.len() as u64;
                Err(BadFrame::Truncated { arrived: body.len(), length: Some(length) })
            }
            Ok(record) if record.refusal().is_some() => {
                let why = record.refusal().expect("it was just looked at");
                match why {
                    Refusal::ReservedType { .. } => tally.reserved_type += 1,
                    Refusal::NoFields { .. } => tally.no_fields += 1,
                }
                tally.skipped_bytes += length as u64;
                Err(BadFrame::Refused(why))
            }
            Ok(record) => {
                tally.records += 1;
                tally.record_bytes += length as u64;
                tally.without_payload += u64::from(record.payload().is_none());
                tally.without_timestamp += u64::from(record.timestamp() == 0);
                Ok(body.to_vec())
            }
            Err(why) => {
                tally.invalid += 1;
                tally.skipped_bytes += length as u64;
                Err(BadFrame::Invalid { length, why })
            }
        });
    }
    seen
}

/// Feeds the pieces as the pump does: what is left behind a refused record is kept and fed again, before what comes next.
fn decode(pieces: &[&[u8]], refusals: &[bool]) -> Seen {
    let mut decoder = FrameDecoder::new(LIMIT);
    let mut seen = Seen::default();
    let mut refusals = refusals.iter().copied();
    let mut refused: Option<Vec<u8>> = None;
    let mut backlog = Vec::new();
    // The empty piece at the end gives the last refused record its second chance.
    for (i, piece) in pieces.iter().copied().chain([&[][..]]).enumerate() {
        backlog.extend_from_slice(piece);
        let mut input = &backlog[..];
        let ended = i == pieces.len();
        loop {
            match decoder.peek(&mut input) {
                None => {
                    assert!(input.is_empty(), "more is asked for only when everything is used up");
                    break;
                }
                Some(Ok(record)) => {
                    if let Some(before) = refused.take() {
                        assert_eq!(before, record.body(), "a refused record stays the next one");
                    }
                    let body = record.body().to_vec();
                    if !ended && refusals.next() == Some(true) {
                        refused = Some(body);
                        break;
                    }
                    decoder.take(&mut input);
                    seen.frames.push(Ok(body));
                }
                Some(Err(bad)) => seen.frames.push(Err(bad)),
            }
        }
        backlog = input.to_vec();
    }
    assert_eq!(refused, None, "no record is lost by being refused");
    seen.frames.extend(decoder.finish().map_err(Err).err());
    seen.tally = decoder.tally();
    seen
}
