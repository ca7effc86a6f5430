//! Where records of all plugins and of the agent itself come together: the buffer that fills while the other is sent.
//!
//! There are two lanes. What is urgent (heartbeats, answers to tasks, a plugin's high-priority lane) has a small buffer of
//! its own and leaves at once; the bulk waits for company. The shell keeps an [`Intake`] behind a lock: the pump appends, the
//! net thread takes everything by swapping in an empty pair of buffers.

use alloc::boxed::Box;
use alloc::vec;
use core::mem;

use crate::limits::{SLOTS, URGENT_SLOTS};
use crate::record::buffer::{Full, RECORDS, RecordBuffer};
use crate::record::manifest::{Manifest, Row, Source};
use crate::record::wire::{Writer, bytes_field_len};
use crate::record::{OwnRecord, Record};

/// Which of the two buffers a record goes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Leaves at once, before everything else.
    Urgent,
    /// Leaves with others.
    Bulk,
}

/// Whose records they are, and what may become of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Who makes them.
    pub source: Source,
    /// When everything is full while there is no server, the oldest records of all go for these. Else their maker waits.
    pub may_drop: bool,
}

/// The buffers of both lanes; together the records of one batch.
#[derive(Debug)]
pub struct Buffers<B> {
    urgent: RecordBuffer<B, URGENT_SLOTS>,
    bulk: RecordBuffer<B, SLOTS>,
    manifests: [Manifest; 2],
    outsized: Option<Outsized>,
    may_drop: bool,
}

/// A record that is longer than an arena. It is a batch of its own, behind the others.
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

    /// What it is.
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

    /// Bytes of the longest record that a bulk arena takes; a longer one is [`Outsized`].
    #[must_use]
    pub fn longest_record(&self) -> usize {
        self.bulk.longest_record()
    }

    /// Records of both lanes, and the one that is too long for them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.urgent.len() + self.bulk.len() + usize::from(self.outsized.is_some())
    }

    /// Whether no record is held.
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

    /// Records and bytes that both lanes hold at most.
    #[must_use]
    pub fn capacity(&self) -> (usize, usize) {
        (URGENT_SLOTS + SLOTS, self.urgent.capacity() + self.bulk.capacity())
    }

    /// The record that no arena takes, which is sent behind the others.
    #[must_use]
    pub fn outsized(&self) -> Option<&Outsized> {
        self.outsized.as_ref()
    }

    /// The records of both lanes as fields of a `PackagedData`, in the order in which they are sent.
    #[must_use]
    pub fn parts(&self) -> [&[u8]; 2] {
        [self.urgent.bytes(), self.bulk.bytes()]
    }

    /// What each lane holds, in the same order.
    #[must_use]
    pub fn manifests(&self) -> [&Manifest; 2] {
        self.manifests.each_ref()
    }

    /// Forgets all records.
    pub fn clear(&mut self) {
        self.urgent.clear();
        self.bulk.clear();
        self.manifests.iter_mut().for_each(Manifest::clear);
        self.outsized = None;
        self.may_drop = false;
    }
}

/// The filling buffers, and who waits for them.
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

    /// Appends a plugin's record. An urgent one that finds no room in its lane travels with the bulk, where later urgent ones may
    /// overtake it.
    ///
    /// # Errors
    /// When there is no room: whoever wrote the record is to wait until [`Intake::swap`] says that there is.
    pub fn push(&mut self, lane: Lane, origin: Origin, record: &Record<'_>) -> Result<Wake, Full> {
        let at = record.timestamp();
        let row = Row { source: origin.source, data_type: record.data_type(), records: 1, first: at, last: at };
        let pushed = if record.body().len() > self.filling.longest_record() {
            self.put_aside(record.body(), row)
        } else {
            self.append(lane, row, |filling, lane| match lane {
                Lane::Urgent => filling.urgent.push(record.body()),
                // What comes behind it is not to overtake it.
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

    /// Takes a record that no arena can hold, one at a time.
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
    /// When neither lane has room; the agent does not wait for itself, so the caller counts the record as lost.
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

    /// What it holds has waited long enough, in here or on its way here: it is due.
    pub fn ripen(&mut self) -> Wake {
        let before = self.due();
        self.ripe = before != Due::Nothing;
        if before == Due::Later { Wake::Now } else { Wake::Unneeded }
    }

    /// Takes all records by putting `empty` in their place.
    ///
    /// Says whether a plugin's record found no room since the last time: the pump is to try again then.
    ///
    /// # Panics
    /// When `empty` is not empty: its records would be sent twice.
    #[must_use = "a pump that waits for room stays waiting unless it is woken"]
    pub fn swap(&mut self, empty: &mut Box<Buffers<B>>) -> bool {
        assert!(empty.is_empty(), "buffers are cleared before they fill again");
        mem::swap(&mut self.filling, empty);
        self.ripe = false;
        mem::take(&mut self.full)
    }

    /// When what is held should be sent.
    #[must_use]
    pub fn due(&self) -> Due {
        match () {
            () if self.ripe || !self.filling.urgent.is_empty() || self.is_half_full() => Due::Now,
            () if self.filling.bulk.is_empty() => Due::Nothing,
            () => Due::Later,
        }
    }

    /// What the agent decides by: how much is held, and when it should leave.
    #[must_use]
    pub fn level(&self) -> Level {
        Level { due: self.due(), records: self.len(), is_half_full: self.is_half_full(), may_drop: self.may_drop() }
    }

    /// The buffers that are filling, to look at.
    #[must_use]
    pub fn buffers(&self) -> &Buffers<B> {
        &self.filling
    }

    /// Whether the bulk is half full, or a record waits that is longer than all of it.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.filling.outsized.is_some() || self.filling.bulk.above_high_water()
    }

    /// Whether it holds a record for which the oldest may go. See [`Origin`].
    #[must_use]
    pub fn may_drop(&self) -> bool {
        self.filling.may_drop
    }

    /// Records held, which nobody has taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filling.len()
    }

    /// Whether no record is held.
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

/// When what an [`Intake`] holds should be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It holds nothing.
    Nothing,
    /// One flush interval after its first record.
    Later,
    /// Something is urgent, a buffer is half full, or the records have waited already.
    Now,
}

/// Whether the thread that sends is to be woken for what was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// It knows already.
    Unneeded,
    /// A first record has entered the empty buffer: the flush interval starts.
    First,
    /// There is something to send at once.
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
}
