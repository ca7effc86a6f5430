//! The intake, where the records of all plugins and of the agent come together. One buffer fills while the other is sent.
//!
//! There are two lanes. Urgent records (answers to tasks, reports, a plugin's high-priority lane) have a small
//! buffer of their own and leave at once. Bulk records wait to be batched. The shell keeps an [`Intake`] behind a lock.
//! The pump appends; the net thread swaps in a pair of empty buffers and takes everything.

use alloc::boxed::Box;
use alloc::vec;
use core::mem;

use crate::limits::{SLOTS, URGENT_SLOTS};
use crate::record::buffer::{Full, RECORDS, RecordBuffer};
use crate::record::manifest::{Manifest, Row, Source};
use crate::record::wire::{Writer, bytes_field_len};
use crate::record::{OwnRecord, Record};

/// The lane of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The record leaves at once, before everything else.
    Urgent,
    /// The record waits to be batched with others.
    Bulk,
}

/// Who made a record, and whether it may displace older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Who makes the records.
    pub source: Source,
    /// With everything full and no server, drops the oldest records of all plugins to make room for these. If false,
    /// their maker waits.
    pub may_drop: bool,
}

/// The buffers of both lanes. Together they hold the records of one batch.
#[derive(Debug)]
pub struct Buffers<B> {
    urgent: RecordBuffer<B, URGENT_SLOTS>,
    bulk: RecordBuffer<B, SLOTS>,
    manifests: [Manifest; 2],
    outsized: Option<Outsized>,
    may_drop: bool,
}

/// A record that is longer than an arena. It is a batch of its own and follows the others.
#[derive(Debug)]
pub struct Outsized {
    field: Box<[u8]>,
    row: Row,
}

impl Outsized {
    fn new(body: &[u8], row: Row) -> Self {
        let mut field = vec![0; bytes_field_len(body.len())].into_boxed_slice();
        Writer::new(&mut field).bytes_field(RECORDS, body);
        Self { field, row }
    }

    /// The record as a field of a `PackagedData`.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.field
    }

    /// Its plugin, data type and timestamp.
    #[must_use]
    pub fn row(&self) -> Row {
        self.row
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Buffers<B> {
    /// Empty buffers over two arenas.
    #[must_use]
    pub fn new(urgent: B, bulk: B) -> Self {
        Self {
            urgent: RecordBuffer::new(urgent),
            bulk: RecordBuffer::new(bulk),
            manifests: [Manifest::default(), Manifest::default()],
            outsized: None,
            may_drop: false,
        }
    }

    /// Length of the longest record that a bulk arena takes, in bytes. A longer one is [`Outsized`].
    #[must_use]
    pub fn longest_record(&self) -> usize {
        self.bulk.longest_record()
    }

    /// Number of records in both lanes, plus the outsized one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.urgent.len() + self.bulk.len() + usize::from(self.outsized.is_some())
    }

    /// Returns true when there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let outsized = self.outsized.as_ref().map_or(0, |outsized| outsized.bytes().len());
        self.parts().map(<[u8]>::len).iter().sum::<usize>() + outsized
    }

    /// The most records and bytes that both lanes hold together.
    #[must_use]
    pub fn capacity(&self) -> (usize, usize) {
        (URGENT_SLOTS + SLOTS, self.urgent.capacity() + self.bulk.capacity())
    }

    /// The record that is too long for an arena. It is sent after the others.
    #[must_use]
    pub fn outsized(&self) -> Option<&Outsized> {
        self.outsized.as_ref()
    }

    /// The records of both lanes as fields of a `PackagedData`, in sending order.
    #[must_use]
    pub fn parts(&self) -> [&[u8]; 2] {
        [self.urgent.bytes(), self.bulk.bytes()]
    }

    /// The counts of each lane, in the same order.
    #[must_use]
    pub fn manifests(&self) -> [&Manifest; 2] {
        self.manifests.each_ref()
    }

    /// Drops all records.
    pub fn clear(&mut self) {
        self.urgent.clear();
        self.bulk.clear();
        self.manifests.iter_mut().for_each(Manifest::clear);
        self.outsized = None;
        self.may_drop = false;
    }
}

/// The filling buffers, and what the two threads have to tell each other.
#[derive(Debug)]
pub struct Intake<B> {
    filling: Box<Buffers<B>>,
    full: bool,
    ripe: bool,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Intake<B> {
    /// An intake that fills `buffers` first.
    #[must_use]
    pub fn new(buffers: Box<Buffers<B>>) -> Self {
        Self { filling: buffers, full: false, ripe: false }
    }

    /// Appends a plugin's record. An urgent record that finds no room in its lane travels with the bulk, where later
    /// urgent ones may overtake it.
    ///
    /// # Errors
    /// When there is no room. The caller has to wait until [`Intake::swap`] returns true.
    pub fn push(&mut self, lane: Lane, origin: Origin, record: &Record<'_>) -> Result<Wake, Full> {
        let at = record.timestamp();
        let row = Row { source: origin.source, data_type: record.data_type(), records: 1, first: at, last: at };
        let pushed = if record.body().len() > self.filling.longest_record() {
            self.put_aside(record.body(), row)
        } else {
            self.append(lane, row, |filling, lane| match lane {
                Lane::Urgent => filling.urgent.push(record.body()),
                // Later records must not overtake it.
                Lane::Bulk if filling.outsized.is_some() => Err(Full::Bytes),
                Lane::Bulk => filling.bulk.push(record.body()),
            })
        };
        match &pushed {
            Ok(_) => self.filling.may_drop |= origin.may_drop,
            Err(_) => self.full = true,
        }
        pushed
    }

    /// Takes a record that is too long for an arena. There is one at a time.
    fn put_aside(&mut self, body: &[u8], row: Row) -> Result<Wake, Full> {
        if self.filling.outsized.is_some() {
            return Err(Full::Bytes);
        }
        let before = self.due();
        self.filling.outsized = Some(Outsized::new(body, row));
        Ok(if before == Due::Now { Wake::Unneeded } else { Wake::Now })
    }

    /// Appends an urgent record of the agent's own.
    ///
    /// # Errors
    /// When neither lane has room. The agent does not wait for itself, so the caller counts the record as lost.
    pub fn push_own<'f, I>(&mut self, record: &OwnRecord<I>) -> Result<Wake, Full>
    where
        I: Iterator<Item = (&'f str, &'f str)> + Clone,
    {
        let (data_type, at) = (record.data_type, record.timestamp);
        let row = Row { source: Source::AGENT, data_type, records: 1, first: at, last: at };
        self.append(Lane::Urgent, row, |filling, lane| match lane {
            Lane::Urgent => filling.urgent.push_own(record),
            Lane::Bulk => filling.bulk.push_own(record),
        })
    }

    fn append(
        &mut self,
        mut lane: Lane,
        row: Row,
        mut push: impl FnMut(&mut Buffers<B>, Lane) -> Result<(), Full>,
    ) -> Result<Wake, Full> {
        let before = self.due();
        match push(&mut self.filling, lane) {
            Err(_) if lane == Lane::Urgent => {
                lane = Lane::Bulk;
                push(&mut self.filling, lane)?;
            }
            pushed => pushed?,
        }
        let [urgent, bulk] = &mut self.filling.manifests;
        match lane {
            Lane::Urgent => urgent.add(row),
            Lane::Bulk => bulk.add(row),
        }
        Ok(match (before, self.due()) {
            (Due::Nothing, Due::Later) => Wake::First,
            (Due::Nothing | Due::Later, Due::Now) => Wake::Now,
            _ => Wake::Unneeded,
        })
    }

    /// Makes the held records due: they have waited long enough, here or on their way here.
    pub fn ripen(&mut self) -> Wake {
        let before = self.due();
        self.ripe = before != Due::Nothing;
        if before == Due::Later { Wake::Now } else { Wake::Unneeded }
    }

    /// Takes all records and leaves `empty` in their place.
    ///
    /// Returns true when a plugin's record has found no room since the last swap. The pump should then try again.
    ///
    /// # Panics
    /// When `empty` is not empty, because its records would be sent twice.
    #[must_use = "a pump that waits for room stays waiting unless it is woken"]
    pub fn swap(&mut self, empty: &mut Box<Buffers<B>>) -> bool {
        assert!(empty.is_empty(), "buffers are cleared before they fill again");
        mem::swap(&mut self.filling, empty);
        self.ripe = false;
        mem::take(&mut self.full)
    }

    /// When to send the held records.
    #[must_use]
    pub fn due(&self) -> Due {
        if self.ripe || !self.filling.urgent.is_empty() || self.is_half_full() {
            Due::Now
        } else if self.filling.bulk.is_empty() {
            Due::Nothing
        } else {
            Due::Later
        }
    }

    /// Returns what the agent decides by: how much is held, and when it should leave.
    #[must_use]
    pub fn level(&self) -> Level {
        Level { due: self.due(), records: self.len(), is_half_full: self.is_half_full(), may_drop: self.may_drop() }
    }

    /// The filling buffers, for reading.
    #[must_use]
    pub fn buffers(&self) -> &Buffers<B> {
        &self.filling
    }

    /// Returns true when the bulk has reached its high-water mark, or a record waits that is longer than an arena.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.filling.outsized.is_some() || self.filling.bulk.above_high_water()
    }

    /// Returns true when it holds a record for which older ones may be dropped. See [`Origin`].
    #[must_use]
    pub fn may_drop(&self) -> bool {
        self.filling.may_drop
    }

    /// Number of records that nobody has taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filling.len()
    }

    /// Returns true when it holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filling.is_empty()
    }
}

/// What an [`Intake`] holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// When it should be sent.
    pub due: Due,
    /// Records of both lanes.
    pub records: usize,
    /// See [`Intake::is_half_full`].
    pub is_half_full: bool,
    /// See [`Intake::may_drop`].
    pub may_drop: bool,
}

impl Level {
    /// Returns true when no record is held.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.due == Due::Nothing
    }
}

/// When to send what an [`Intake`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// There is nothing to send.
    Nothing,
    /// Send one flush interval after the first record.
    Later,
    /// Send now: a record is urgent, a buffer is half full, or the records have waited long enough.
    Now,
}

/// Whether to wake the sending thread after appending a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// The thread knows already.
    Unneeded,
    /// The first record has entered the empty buffer: start the flush interval.
    First,
    /// Send at once.
    Now,
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    const ORIGIN: Origin = Origin { source: Source::OTHER, may_drop: false };

    /// A record's body: an unknown field of so many bytes in all.
    fn body<const N: usize>(fill: u8) -> [u8; N] {
        let mut body = [fill; N];
        (body[0], body[1]) = (0x22, u8::try_from(N - 2).expect("short"));
        body
    }

    fn push(intake: &mut Intake<Vec<u8>>, lane: Lane, body: &[u8]) -> Result<Wake, Full> {
        intake.push(lane, ORIGIN, &Record::parse(body).expect("a record"))
    }

    fn buffers(bulk: usize) -> Box<Buffers<Vec<u8>>> {
        Box::new(Buffers::new(vec![0; 64], vec![0; bulk]))
    }

    #[test]
    fn wakes_once_for_the_first_record_and_once_at_high_water() {
        let mut intake = Intake::new(buffers(100));
        let wakes: Vec<_> = (0..9).map(|_| push(&mut intake, Lane::Bulk, &body::<8>(7)).expect("room")).collect();
        let (u, mut expected) = (Wake::Unneeded, [Wake::Unneeded; 9]);
        (expected[0], expected[4]) = (Wake::First, Wake::Now);
        assert_eq!((wakes, u), (expected.to_vec(), Wake::Unneeded));
    }

    #[test]
    fn what_has_waited_is_due_until_it_is_taken() {
        let mut intake = Intake::new(buffers(100));
        assert_eq!((intake.ripen(), intake.due()), (Wake::Unneeded, Due::Nothing), "nothing has waited");
        assert_eq!(push(&mut intake, Lane::Bulk, b"\x22\x02bk"), Ok(Wake::First));
        assert_eq!((intake.ripen(), intake.ripen()), (Wake::Now, Wake::Unneeded), "one wake-up does");
        assert_eq!(push(&mut intake, Lane::Bulk, b"\x22\x02bk"), Ok(Wake::Unneeded));
        assert_eq!(intake.due(), Due::Now);
        let mut taken = buffers(100);
        assert!(!intake.swap(&mut taken));
        assert_eq!(push(&mut intake, Lane::Bulk, b"\x22\x02bk"), Ok(Wake::First), "those that follow have not");
    }

    #[test]
    fn an_urgent_record_is_due_at_once_and_goes_first() {
        let mut intake = Intake::new(buffers(100));
        assert_eq!(push(&mut intake, Lane::Bulk, b"\x22\x02bk"), Ok(Wake::First));
        assert_eq!(push(&mut intake, Lane::Urgent, b"\x22\x04urgt"), Ok(Wake::Now));
        assert_eq!(push(&mut intake, Lane::Urgent, b"\x22\x04urgt"), Ok(Wake::Unneeded));
        let mut taken = buffers(100);
        assert!(!intake.swap(&mut taken));
        assert_eq!(taken.parts().concat(), b"\x0a\x06\x22\x04urgt\x0a\x06\x22\x04urgt\x0a\x04\x22\x02bk");
        assert_eq!(intake.due(), Due::Nothing);
    }

    #[test]
    fn urgent_records_without_room_travel_with_the_bulk() {
        let mut intake = Intake::new(buffers(200));
        for _ in 0..3 {
            push(&mut intake, Lane::Urgent, &body::<40>(1)).expect("room in one of the lanes");
        }
        let mut taken = buffers(200);
        assert!(!intake.swap(&mut taken));
        assert_eq!((taken.urgent.len(), taken.bulk.len()), (1, 2));
        let counts = taken.manifests().map(|manifest| manifest.rows()[0].records);
        assert_eq!(counts, [1, 2], "each lane's manifest counts what lies in it");
    }

    #[test]
    fn a_record_that_is_longer_than_the_arena_goes_alone_and_what_follows_waits() {
        let mut intake = Intake::new(buffers(60));
        push(&mut intake, Lane::Bulk, &body::<16>(1)).expect("room");
        assert_eq!(push(&mut intake, Lane::Urgent, &body::<100>(2)), Ok(Wake::Now));
        assert_eq!(intake.due(), Due::Now);
        assert_eq!(push(&mut intake, Lane::Bulk, &body::<100>(3)), Err(Full::Bytes), "one at a time");
        assert_eq!(push(&mut intake, Lane::Bulk, &body::<16>(4)), Err(Full::Bytes), "the order stays");
        assert_eq!(push(&mut intake, Lane::Urgent, &body::<16>(5)), Ok(Wake::Unneeded), "but for what is urgent");
        let mut taken = buffers(60);
        assert!(intake.swap(&mut taken));
        let outsized = taken.outsized().expect("it is there");
        assert_eq!(
            (outsized.bytes()[..2].to_vec(), outsized.bytes()[2..].to_vec()),
            (vec![0x0a, 100], body::<100>(2).to_vec())
        );
        assert_eq!((outsized.row().records, taken.len()), (1, 3));
        taken.clear();
        assert!(taken.is_empty() && taken.outsized().is_none(), "its memory is given back");
        assert_eq!(push(&mut intake, Lane::Bulk, &body::<100>(3)), Ok(Wake::Now));
    }

    #[test]
    fn a_full_intake_says_at_the_swap_that_somebody_waits() {
        let mut intake = Intake::new(buffers(20));
        push(&mut intake, Lane::Bulk, &body::<16>(1)).expect("room");
        assert_eq!(push(&mut intake, Lane::Bulk, &body::<16>(1)), Err(Full::Bytes));
        let mut taken = buffers(20);
        assert!(intake.swap(&mut taken));
        taken.clear();
        assert!(!intake.swap(&mut taken));
    }

    fn own(data_type: i32) -> OwnRecord<core::iter::Empty<(&'static str, &'static str)>> {
        OwnRecord { data_type, timestamp: 9, fields: core::iter::empty() }
    }

    #[test]
    fn what_is_held_is_counted_over_both_lanes_and_the_record_beside_them() {
        let mut intake = Intake::new(buffers(60));
        assert!(intake.is_empty() && intake.buffers().is_empty());
        assert_eq!(intake.buffers().capacity(), (URGENT_SLOTS + SLOTS, 64 + 60));
        assert_eq!(intake.buffers().longest_record(), 58);
        for (lane, length) in [(Lane::Bulk, 16), (Lane::Urgent, 8), (Lane::Bulk, 58)] {
            let body = [&[0x22, length - 2][..], &[0; 56][..usize::from(length) - 2]].concat();
            let fits = length < 58;
            assert_eq!(
                push(&mut intake, lane, &body).is_ok(),
                fits,
                "what fits an empty arena is no record for beside it"
            );
        }
        assert_eq!((intake.len(), intake.buffers().bytes()), (2, 18 + 10));
        push(&mut intake, Lane::Bulk, &body::<59>(2)).expect("it is put aside");
        assert_eq!((intake.len(), intake.buffers().bytes()), (3, 18 + 10 + 61));
        assert!(!intake.is_empty());
    }

    #[test]
    fn a_record_that_is_put_aside_wakes_unless_something_is_due_already() {
        let mut intake = Intake::new(buffers(60));
        assert_eq!(push(&mut intake, Lane::Urgent, &body::<8>(1)), Ok(Wake::Now));
        assert_eq!(push(&mut intake, Lane::Bulk, &body::<100>(2)), Ok(Wake::Unneeded));
    }

    #[test]
    fn own_records_are_urgent_and_are_counted_as_the_agents() {
        let mut intake = Intake::new(buffers(60));
        assert_eq!(intake.push_own(&own(1010)), Ok(Wake::Now));
        let mut wakes = core::iter::from_fn(|| intake.push_own(&own(1010)).ok());
        assert!(wakes.all(|wake| wake == Wake::Unneeded));
        let counts = intake.buffers().manifests().map(|manifest| manifest.to_rows());
        // Such a record takes nine bytes.
        let row = |records| Row { source: Source::AGENT, data_type: 1010, records, first: 9, last: 9 };
        assert_eq!(counts.map(Vec::from), [vec![row(7)], vec![row(6)]], "both lanes are full of them");
        assert_eq!(intake.push_own(&own(1010)), Err(Full::Bytes));
        assert!(!intake.swap(&mut buffers(60)), "the agent does not wait for itself");
    }

    #[test]
    fn that_older_records_may_go_for_one_is_known_while_it_is_held() {
        let mut intake = Intake::new(buffers(60));
        let record = Record::parse(b"\x22\x02bk").expect("a record");
        let patient = Origin { source: Source::OTHER, may_drop: false };
        let urging = Origin { may_drop: true, ..patient };
        intake.push(Lane::Bulk, patient, &record).expect("room");
        assert!(!intake.may_drop());
        intake.push(Lane::Bulk, urging, &record).expect("room");
        intake.push(Lane::Bulk, patient, &record).expect("room");
        assert!(intake.may_drop(), "another's record does not change that");
        let mut taken = buffers(60);
        assert!(!intake.swap(&mut taken));
        assert!(!intake.may_drop() && taken.may_drop);
        taken.clear();
        assert!(!taken.may_drop);
    }

    #[test]
    fn a_record_without_room_does_not_speak_for_those_that_are_held() {
        let mut intake = Intake::new(buffers(60));
        push(&mut intake, Lane::Bulk, &body::<50>(1)).expect("room");
        let record = body::<50>(2);
        let urging = Origin { source: Source::OTHER, may_drop: true };
        let refused = intake.push(Lane::Bulk, urging, &Record::parse(&record).expect("a record"));
        assert_eq!((refused, intake.may_drop()), (Err(Full::Bytes), false));
    }

    #[test]
    fn the_bulk_is_half_full_by_bytes_or_by_a_record_beside_it() {
        let mut intake = Intake::new(buffers(60));
        push(&mut intake, Lane::Bulk, &body::<24>(1)).expect("room");
        assert!(!intake.is_half_full());
        push(&mut intake, Lane::Bulk, &body::<8>(1)).expect("room");
        assert!(intake.is_half_full());
        let mut other = Intake::new(buffers(60));
        push(&mut other, Lane::Bulk, &body::<100>(1)).expect("it is put aside");
        assert!(other.is_half_full());
    }

    #[test]
    #[should_panic(expected = "buffers are cleared before they fill again")]
    fn buffers_that_hold_records_are_not_filled_again() {
        let mut intake = Intake::new(buffers(60));
        push(&mut intake, Lane::Bulk, &body::<8>(1)).expect("room");
        let mut taken = buffers(60);
        let _ = intake.swap(&mut taken);
        let _ = intake.swap(&mut taken);
    }
}
