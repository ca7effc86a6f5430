//! The framing of a plugin's pipes, in both directions: a `u32` little-endian length, then that many bytes of protobuf.
//!
//! The pump feeds a [`FrameDecoder`] whatever the pipe gives, in pieces of any size, and gets checked records back. The
//! decoder trusts a length only for framing: it skips, counts and reports once a frame that is too long or is no
//! record. It never allocates memory for bytes that have not arrived.

use alloc::vec::Vec;
use core::ops::AddAssign;

use elklet_proto::grpc::Task;
use prost::Message;

use crate::limits::MAX_TASK_BYTES;
use crate::record::{InvalidRecord, Record, Refusal};

/// Bytes of the length in front of every frame.
const HEAD: usize = 4;

/// Capacity that the buffer for cut frames keeps between frames, so that a plugin's rare long record does not stay in memory.
const KEPT_CAPACITY: usize = 16 << 10;

/// Splits a plugin's byte stream into records.
///
/// ```text
///            4 bytes of length              all bytes
///   Head ------------------------> Body ---------------> (record) --take--> Head
///     |  longer than the limit
///     +--------------------------> Skip ---------------> Head
/// ```
/// The decoder parses a frame that lies whole in the input in place. It copies only frames that the end of a read has cut.
#[derive(Debug)]
pub struct FrameDecoder {
    state: State,
    /// What has arrived of a cut frame: its head, then its body.
    cut: Vec<u8>,
    /// The record that `peek` showed last, for `take`.
    shown: Shown,
    limit: usize,
    tally: Tally,
}

#[derive(Debug, Clone, Copy, Default)]
struct Shown {
    length: usize,
    has_payload: bool,
    has_timestamp: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// `cut` holds 0 to 3 bytes of a length.
    Head,
    /// `cut` holds the first bytes of a body of this length.
    Body(usize),
    /// This many bytes of a refused frame are still to come.
    Skip(usize),
}

/// What a decoder has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that were taken.
    pub records: u64,
    /// Bytes of their bodies.
    pub record_bytes: u64,
    /// Of these records, those without a payload.
    pub without_payload: u64,
    /// Of these records, those whose timestamp is 0 or absent.
    pub without_timestamp: u64,
    /// Frames longer than the limit.
    pub too_long: u64,
    /// Frames whose body was no record.
    pub invalid: u64,
    /// Records of a data type that only the agent sends.
    pub reserved_type: u64,
    /// Records without fields, of a type for which the server needs some.
    pub no_fields: u64,
    /// Streams that ended inside a frame: 0 or 1.
    pub truncated: u64,
    /// Bytes of refused and truncated frames.
    pub skipped_bytes: u64,
}

impl AddAssign for Tally {
    /// Adds the other's counts.
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.record_bytes += other.record_bytes;
        self.without_payload += other.without_payload;
        self.without_timestamp += other.without_timestamp;
        self.too_long += other.too_long;
        self.invalid += other.invalid;
        self.reserved_type += other.reserved_type;
        self.no_fields += other.no_fields;
        self.truncated += other.truncated;
        self.skipped_bytes += other.skipped_bytes;
    }
}

impl FrameDecoder {
    /// A decoder at the start of a stream. It refuses bodies of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { state: State::Head, cut: Vec::new(), shown: Shown::default(), limit, tally: Tally::default() }
    }

    /// Shows the next record without taking it, and moves `input` past what the decoder keeps or skips.
    ///
    /// `None` means that `input` is used up and the decoder needs more. A record stays the next one until
    /// [`FrameDecoder::take`]. A caller without room for it keeps the rest of `input` and calls again with that later.
    ///
    /// # Errors
    /// When the decoder refuses the next frame. It has then skipped that frame, and the next call goes on after it.
    pub fn peek<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Option<Result<Record<'s>, BadFrame>> {
        loop {
            match self.state {
                State::Head => {
                    if self.cut.is_empty()
                        && let Some((head, rest)) = input.split_first_chunk::<HEAD>()
                    {
                        let length = u32::from_le_bytes(*head) as usize;
                        if length <= self.limit && length <= rest.len() {
                            return Some(match check(&rest[..length]) {
                                Ok(record) => {
                                    self.shown = Shown::of(&record);
                                    Ok(record)
                                }
                                Err(bad) => {
                                    *input = &rest[length..];
                                    self.tally.count(bad, length);
                                    Err(bad)
                                }
                            });
                        }
                    }
                    self.gather(input, HEAD);
                    let head = self.cut.first_chunk::<HEAD>()?;
                    let length = u32::from_le_bytes(*head) as usize;
                    self.cut.clear();
                    if length > self.limit {
                        self.state = State::Skip(length);
                        let bad = BadFrame::TooLong { length, limit: self.limit };
                        self.tally.count(bad, length);
                        return Some(Err(bad));
                    }
                    self.state = State::Body(length);
                }
                State::Body(length) => {
                    self.gather(input, length);
                    if self.cut.len() < length {
                        return None;
                    }
                    return Some(match check(&self.cut) {
                        Ok(record) => {
                            self.shown = Shown::of(&record);
                            Ok(record)
                        }
                        Err(bad) => {
                            // `cut` is still borrowed for the other arm. Skipping 0 bytes makes the next call clear it.
                            self.state = State::Skip(0);
                            self.tally.count(bad, length);
                            Err(bad)
                        }
                    });
                }
                State::Skip(left) => {
                    let skipped = left.min(input.len());
                    *input = &input[skipped..];
                    if skipped < left {
                        self.state = State::Skip(left - skipped);
                        return None;
                    }
                    self.forget_cut();
                }
            }
        }
    }

    /// Takes the record that [`FrameDecoder::peek`] has just shown, and moves `input` past it.
    ///
    /// # Panics
    /// When the last call was not a `peek` with the same input that showed a record.
    pub fn take(&mut self, input: &mut &[u8]) {
        let Shown { length, has_payload, has_timestamp } = self.shown;
        if matches!(self.state, State::Head) {
            *input = &input[HEAD + length..];
        } else {
            self.forget_cut();
        }
        self.tally.records += 1;
        self.tally.record_bytes += length as u64;
        self.tally.without_payload += u64::from(!has_payload);
        self.tally.without_timestamp += u64::from(!has_timestamp);
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// When the stream ended inside a frame.
    pub fn finish(&mut self) -> Result<(), BadFrame> {
        let (arrived, length) = match self.state {
            State::Head if self.cut.is_empty() => return Ok(()),
            State::Head => (self.cut.len(), None),
            State::Body(length) => (self.cut.len(), Some(length)),
            // The refused frame has been counted already.
            State::Skip(_) => return Ok(()),
        };
        self.forget_cut();
        let bad = BadFrame::Truncated { arrived, length };
        self.tally.count(bad, arrived);
        Err(bad)
    }

    /// The counts so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Moves bytes from `input` to `cut` until `cut` holds `wanted` or `input` is used up.
    fn gather(&mut self, input: &mut &[u8], wanted: usize) {
        let missing = wanted.saturating_sub(self.cut.len()).min(input.len());
        let (more, rest) = input.split_at(missing);
        self.cut.extend_from_slice(more);
        *input = rest;
    }

    fn forget_cut(&mut self) {
        self.state = State::Head;
        self.cut.clear();
        self.cut.shrink_to(KEPT_CAPACITY);
    }
}

/// Parses a frame's body, and refuses records that plugins may not send.
#[inline]
fn check(body: &[u8]) -> Result<Record<'_>, BadFrame> {
    match Record::parse(body) {
        Ok(record) => match record.refusal() {
            None => Ok(record),
            Some(why) => Err(BadFrame::Refused(why)),
        },
        Err(why) => Err(BadFrame::Invalid { length: body.len(), why }),
    }
}

impl Tally {
    /// Counts a refused frame, of which `skipped` bytes are skipped.
    fn count(&mut self, bad: BadFrame, skipped: usize) {
        let cause = match bad {
            BadFrame::TooLong { .. } => &mut self.too_long,
            BadFrame::Invalid { .. } => &mut self.invalid,
            BadFrame::Refused(Refusal::ReservedType { .. }) => &mut self.reserved_type,
            BadFrame::Refused(Refusal::NoFields { .. }) => &mut self.no_fields,
            BadFrame::Truncated { .. } => &mut self.truncated,
        };
        *cause += 1;
        self.skipped_bytes += skipped as u64;
    }
}

impl Shown {
    fn of(record: &Record<'_>) -> Self {
        Self {
            length: record.body().len(),
            has_payload: record.payload().is_some(),
            has_timestamp: record.timestamp() != 0,
        }
    }
}

/// What a misbehaving plugin sent instead of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadFrame {
    /// A frame longer than the limit. The decoder is skipping its bytes.
    TooLong {
        /// Bytes that the frame announces.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A frame whose body is not a record.
    Invalid {
        /// Bytes of the body.
        length: usize,
        /// What is wrong with it.
        why: InvalidRecord,
    },
    /// A record that plugins may not send.
    Refused(Refusal),
    /// The stream ended inside a frame.
    Truncated {
        /// Bytes of the body that arrived, or of the length if that is incomplete.
        arrived: usize,
        /// Length of the body, if it is known.
        length: Option<usize>,
    },
}

impl core::fmt::Display for BadFrame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::TooLong { length, limit } => write!(f, "a frame of {length} bytes, the limit is {limit}"),
            Self::Invalid { length, why } => write!(f, "a frame of {length} bytes that is no record: {why}"),
            Self::Refused(why) => why.fmt(f),
            Self::Truncated { arrived, length: Some(length) } => {
                write!(f, "{arrived} bytes of a frame of {length}, then its end")
            }
            Self::Truncated { arrived, length: None } => write!(f, "{arrived} bytes of a frame's length, then its end"),
        }
    }
}

impl core::error::Error for BadFrame {}

/// Frames a task for a plugin: the length, then the `Task`.
///
/// # Errors
/// When the framed task would be longer than [`MAX_TASK_BYTES`]; the error is its length.
pub fn task_frame(task: &Task) -> Result<Vec<u8>, usize> {
    let length = task.encoded_len();
    let framed = length + HEAD;
    let head = u32::try_from(length).ok().filter(|_| framed <= MAX_TASK_BYTES).ok_or(framed)?;
    let mut frame = Vec::with_capacity(framed);
    frame.extend_from_slice(&head.to_le_bytes());
    task.encode_raw(&mut frame);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};
    use alloc::vec;

    use elklet_proto::grpc::EncodedRecord;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 100;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(body.len()).expect("a short body").to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        frame
    }

    /// The model: the whole stream at once, frame by frame.
    fn model(mut stream: &[u8]) -> (Vec<Vec<u8>>, Tally, Vec<BadFrame>) {
        let (mut records, mut tally, mut errors) = (Vec::new(), Tally::default(), Vec::new());
        loop {
            let Some((head, rest)) = stream.split_first_chunk() else {
                if !stream.is_empty() {
                    tally.truncated = 1;
                    tally.skipped_bytes += stream.len() as u64;
                    errors.push(BadFrame::Truncated { arrived: stream.len(), length: None });
                }
                return (records, tally, errors);
            };
            let length = u32::from_le_bytes(*head) as usize;
            let body = &rest[..length.min(rest.len())];
            if length > LIMIT {
                tally.too_long += 1;
                tally.skipped_bytes += length as u64;
                errors.push(BadFrame::TooLong { length, limit: LIMIT });
            } else if body.len() < length {
                tally.truncated = 1;
                tally.skipped_bytes += body.len() as u64;
                errors.push(BadFrame::Truncated { arrived: body.len(), length: Some(length) });
            } else {
                match Record::parse(body).map(|record| (record, record.refusal())) {
                    Ok((_, Some(why))) => {
                        match why {
                            Refusal::ReservedType { .. } => tally.reserved_type += 1,
                            Refusal::NoFields { .. } => tally.no_fields += 1,
                        }
                        tally.skipped_bytes += length as u64;
                        errors.push(BadFrame::Refused(why));
                    }
                    Ok((record, None)) => {
                        records.push(body.to_vec());
                        tally.records += 1;
                        tally.record_bytes += length as u64;
                        tally.without_payload += u64::from(record.payload().is_none());
                        tally.without_timestamp += u64::from(record.timestamp() == 0);
                    }
                    Err(why) => {
                        tally.invalid += 1;
                        tally.skipped_bytes += length as u64;
                        errors.push(BadFrame::Invalid { length, why });
                    }
                }
            }
            stream = &rest[body.len()..];
        }
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let data_type = prop_oneof![4 => 0..5000i32, 1 => Just(1001), 1 => Just(5100)];
        let record = (data_type, 0..9i64, prop::collection::vec(any::<u8>(), 0..120)).prop_map(
            |(data_type, timestamp, data)| framed(&EncodedRecord { data_type, timestamp, data }.encode_to_vec()),
        );
        let piece = prop_oneof![
            6 => record,
            1 => prop::collection::vec(any::<u8>(), 0..30),
            1 => prop::collection::vec(any::<u8>(), 0..LIMIT + 50).prop_map(|b| framed(&b)),
        ];
        (prop::collection::vec(piece, 0..12), 0..8usize).prop_map(|(pieces, cut)| {
            let mut bytes = pieces.concat();
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_split_gives_what_the_whole_gives(stream in stream(), splits in prop::collection::vec(1..70usize, 1..30), refuse in any::<u64>()) {
            let mut decoder = FrameDecoder::new(LIMIT);
            let (mut records, mut errors) = (Vec::new(), Vec::new());
            let (mut rest, mut splits) = (&stream[..], splits.iter().cycle());
            let mut backlog: Vec<u8> = Vec::new();
            let mut refusals = refuse;
            while !rest.is_empty() || !backlog.is_empty() {
                let n = splits.next().copied().unwrap_or(1).min(rest.len());
                backlog.extend_from_slice(&rest[..n]);
                rest = &rest[n..];
                let mut input = &backlog[..];
                while let Some(next) = decoder.peek(&mut input) {
                    match next {
                        // Now and then there is no room. The same record must then come again with the rest of the input.
                        Ok(_) if { refusals = refusals.rotate_left(1); refusals & 1 == 1 && !rest.is_empty() } => break,
                        Ok(record) => { records.push(record.body().to_vec()); decoder.take(&mut input); }
                        Err(error) => errors.push(error),
                    }
                }
                backlog = input.to_vec();
            }
            errors.extend(decoder.finish().err());
            let expected = model(&stream);
            prop_assert_eq!((records, decoder.tally(), errors), expected);
        }

        #[test]
        fn a_task_is_framed_as_prost_reads_it(data_type: i32, object_name in ".{0,40}", data in ".{0,400}", token in ".{0,40}") {
            let task = Task { data_type, object_name, data, token };
            let frame = task_frame(&task).expect("a short task");
            let (head, body) = frame.split_first_chunk().expect("a length");
            prop_assert_eq!(u32::from_le_bytes(*head) as usize, body.len());
            prop_assert_eq!(Task::decode(body), Ok(task));
        }
    }

    #[test]
    fn a_frame_of_4_gib_costs_no_memory() {
        let mut decoder = FrameDecoder::new(1 << 20);
        let mut input = &[0xff, 0xff, 0xff, 0xff, 1, 2, 3][..];
        let error = decoder.peek(&mut input).expect("a frame").expect_err("too long");
        assert_eq!(error, BadFrame::TooLong { length: 0xffff_ffff, limit: 1 << 20 });
        assert!(decoder.peek(&mut input).is_none());
        assert!(input.is_empty() && decoder.cut.capacity() < 64);
    }

    #[test]
    fn memory_of_a_long_cut_frame_is_given_back() {
        let body = EncodedRecord { data_type: 1, timestamp: 1, data: vec![0; 500_000] }.encode_to_vec();
        let frame = framed(&body);
        let mut decoder = FrameDecoder::new(1 << 20);
        let (mut first, mut second) = frame.split_at(300_000);
        assert!(decoder.peek(&mut first).is_none());
        assert!(decoder.peek(&mut second).expect("whole now").is_ok());
        decoder.take(&mut second);
        assert!(decoder.cut.capacity() <= KEPT_CAPACITY);
    }

    #[test]
    fn memory_of_a_short_cut_frame_is_kept_for_the_next() {
        let body = EncodedRecord { data_type: 1, timestamp: 1, data: vec![0; 1_000] }.encode_to_vec();
        let frame = framed(&body);
        let mut decoder = FrameDecoder::new(1 << 20);
        let (mut first, mut second) = frame.split_at(500);
        assert!(decoder.peek(&mut first).is_none());
        assert!(decoder.peek(&mut second).expect("whole now").is_ok());
        decoder.take(&mut second);
        assert!(decoder.cut.capacity() >= body.len());
    }

    #[test]
    fn a_body_at_the_limit_is_a_record_whole_or_cut() {
        let body = EncodedRecord { data_type: 1, timestamp: 1, data: vec![0; 94] }.encode_to_vec();
        assert_eq!(body.len(), LIMIT);
        let frame = framed(&body);
        for cut in [frame.len(), 4, 50] {
            let mut decoder = FrameDecoder::new(LIMIT);
            let (mut first, mut second) = frame.split_at(cut);
            let is_whole = decoder.peek(&mut first).is_some_and(|record| record.is_ok());
            assert!(is_whole || decoder.peek(&mut second).is_some_and(|record| record.is_ok()), "cut at {cut}");
        }
    }

    #[test]
    fn a_stream_may_end_between_frames_and_nowhere_else() {
        let frame = framed(&[0x08, 1, 0x10, 1]);
        for arrived in 0..=frame.len() {
            let mut decoder = FrameDecoder::new(LIMIT);
            let mut input = &frame[..arrived];
            if decoder.peek(&mut input).is_some() {
                decoder.take(&mut input);
            }
            let expected = match arrived {
                0 | 8 => Ok(()),
                1..4 => Err(BadFrame::Truncated { arrived, length: None }),
                _ => Err(BadFrame::Truncated { arrived: arrived - 4, length: Some(4) }),
            };
            assert_eq!(decoder.finish(), expected, "{arrived} bytes");
            assert_eq!(decoder.tally().truncated, u64::from(expected.is_err()), "{arrived} bytes");
        }
    }

    #[test]
    fn what_two_decoders_have_seen_adds_up() {
        let tally = |n: u64| Tally {
            records: n,
            record_bytes: n + 1,
            without_payload: n + 2,
            without_timestamp: n + 3,
            too_long: n + 4,
            invalid: n + 5,
            reserved_type: n + 6,
            no_fields: n + 7,
            truncated: n + 8,
            skipped_bytes: n + 9,
        };
        let mut sum = tally(100);
        sum += tally(1_000);
        let expected = Tally {
            records: 1_100,
            record_bytes: 1_102,
            without_payload: 1_104,
            without_timestamp: 1_106,
            too_long: 1_108,
            invalid: 1_110,
            reserved_type: 1_112,
            no_fields: 1_114,
            truncated: 1_116,
            skipped_bytes: 1_118,
        };
        assert_eq!(sum, expected);
    }

    #[test]
    fn what_is_said_of_a_bad_frame_carries_its_numbers() {
        for (bad, words) in [
            (BadFrame::TooLong { length: 70, limit: 60 }, "a frame of 70 bytes, the limit is 60"),
            (
                BadFrame::Invalid { length: 7, why: InvalidRecord::Twice },
                "a frame of 7 bytes that is no record: it has a field twice",
            ),
            (
                BadFrame::Refused(Refusal::ReservedType { data_type: 1000 }),
                "a record of data type 1000, which only the agent sends",
            ),
            (BadFrame::Truncated { arrived: 3, length: Some(9) }, "3 bytes of a frame of 9, then its end"),
            (BadFrame::Truncated { arrived: 3, length: None }, "3 bytes of a frame's length, then its end"),
        ] {
            assert_eq!(bad.to_string(), words);
        }
    }

    #[test]
    fn a_task_over_the_limit_is_refused() {
        let task = Task { data: String::from("x").repeat(MAX_TASK_BYTES), ..Task::default() };
        assert!(task_frame(&task).is_err_and(|length| length > MAX_TASK_BYTES));
    }

    #[test]
    fn the_limit_of_a_task_counts_its_length_too() {
        let of_data = |bytes: usize| Task { data: "x".repeat(bytes), ..Task::default() };
        // Data of this size has a key and a length of four bytes in all.
        let longest = MAX_TASK_BYTES - HEAD - 4;
        assert_eq!(task_frame(&of_data(longest)).map(|frame| frame.len()), Ok(MAX_TASK_BYTES));
        assert_eq!(task_frame(&of_data(longest + 1)), Err(MAX_TASK_BYTES + 1));
    }
}
