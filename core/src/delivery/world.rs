//! A server, a disk and a clock around an [`Outbox`] that are not real, and as naive as can be; and what holds whatever
//! happens to them.
//!
//! The tests beside this file and the fuzz target `outbox_ops` both include it, and so it takes what is public only.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use elklet_core::delivery::spool::format::SEGMENT_HEAD_BYTES;
use elklet_core::delivery::spool::{Done, Failed, Found, Op, Place, Replay};
use elklet_core::delivery::{Batch, Bounds, Kind, Outbox, Outgoing};
use elklet_core::limits::SPOOL_RETRY_MS;
use elklet_core::record::manifest::{Row, Source};
use elklet_core::time::Millis;

/// A batch's contents in short.
pub(crate) fn rows(records: u64) -> Box<[Row]> {
    Box::new([Row { source: Source::AGENT, data_type: 59, records, first: 1, last: 2 }])
}

/// Milliseconds of what it has taken that a server loses when it is killed.
pub(crate) const FORGOTTEN_MS: u64 = 1_000;

/// Bytes in front of a message on the disk.
const OVERHEAD: u64 = 120;

/// Segments by number; in each, batches by where they begin, and where they end.
#[derive(Debug, Default, Clone)]
struct Disk {
    segments: BTreeMap<u64, BTreeMap<u64, Replay<u32>>>,
    marks: BTreeMap<u64, u64>,
    /// How long each file is.
    ends: BTreeMap<u64, u64>,
    /// Each operation fails like this.
    fault: Option<Failed>,
    /// Segments that can be neither read nor deleted any more.
    jammed: BTreeSet<u64>,
    /// Segments that were to be deleted and could not be.
    left: BTreeSet<u64>,
}

impl Disk {
    fn carry_out(&mut self, op: Op<u32>, sizes: &BTreeMap<u32, usize>) -> Done<u32> {
        let concerned = match op {
            Op::Read(place) | Op::Drop(place) => Some(place.segment),
            Op::Delete(number) => Some(number),
            Op::Open | Op::Append { .. } | Op::Mark(_) | Op::Sync => None,
        };
        let jam = concerned.filter(|number| self.jammed.contains(number)).map(|_| Failed::Broken);
        if let Some(fault) = self.fault.or(jam) {
            match op {
                _ if fault == Failed::Vanished => *self = Self { fault: self.fault, ..Self::default() },
                Op::Drop(Place { segment: number, .. }) | Op::Delete(number) => {
                    self.left.insert(number);
                }
                _ => {}
            }
            return Done::Failed(fault);
        }
        match op {
            Op::Open => {
                let found = self.found();
                // What is torn at the end of a file is cut off, and a file without a batch is deleted.
                self.ends = found.iter().map(|found| (found.number, found.end)).collect();
                self.segments.retain(|number, _| self.ends.contains_key(number));
                Done::Opened(found)
            }
            Op::Append { place, batches } => {
                let segment = self.segments.entry(place.segment).or_default();
                let file_end = self.ends.entry(place.segment).or_insert(SEGMENT_HEAD_BYTES as u64);
                assert_eq!(place.offset, *file_end, "it is written behind all others");
                let mut ends = vec![place.offset];
                for write in batches {
                    let begin = *ends.last().expect("not empty");
                    let bytes = sizes[&write.message];
                    let end = begin + OVERHEAD + bytes as u64;
                    let (content_bytes, first_record, rows) = (write.content_bytes, write.first_record, write.rows);
                    let (message, fingerprint) = (write.message, write.message);
                    let replay = Replay { message, bytes, fingerprint, content_bytes, begin, end, first_record, rows };
                    segment.insert(begin, replay);
                    ends.push(end);
                }
                *file_end = *ends.last().expect("not empty");
                Done::Appended(ends.split_off(1))
            }
            Op::Read(Place { segment, offset }) => {
                let batches = self.segments.get(&segment).into_iter().flatten();
                Done::Read(batches.map(|(_, batch)| batch.clone()).find(|batch| batch.begin >= offset))
            }
            Op::Drop(Place { segment, offset }) => {
                let batches = self.segments.remove(&segment).unwrap_or_default();
                self.ends.remove(&segment);
                let unsent = batches.into_values().filter(|batch| batch.begin >= offset);
                Done::Dropped(unsent.flat_map(|batch| batch.rows).collect())
            }
            Op::Delete(segment) => {
                self.segments.remove(&segment);
                self.ends.remove(&segment);
                Done::Deleted
            }
            Op::Sync => Done::Synced,
            Op::Mark(Place { segment, offset }) => {
                self.marks.insert(segment, offset);
                Done::Marked
            }
        }
    }

    fn found(&self) -> Vec<Found> {
        let segment = |(&number, batches): (&u64, &BTreeMap<u64, Replay<u32>>)| {
            let mark = self.marks.get(&number).copied().unwrap_or(SEGMENT_HEAD_BYTES as u64);
            let first = batches.values().find(|batch| batch.begin >= mark)?;
            let last = batches.values().last()?;
            let (first_record, end_record) = (first.first_record, last.first_record + last.rows[0].records);
            Some(Found { number, mark, end: last.end, first_record, end_record })
        };
        self.segments.iter().filter_map(segment).collect()
    }

    /// From now on one segment can be neither read nor deleted.
    fn jam(&mut self, which: usize) {
        self.jammed.extend(self.segments.keys().nth(which % self.segments.len().max(1)));
    }

    /// Makes one batch unreadable.
    fn spoil(&mut self, which: usize) {
        let all: Vec<_> = self.segments.iter().flat_map(|(n, batches)| batches.keys().map(|at| (*n, *at))).collect();
        if let Some((segment, at)) = all.get(which % all.len().max(1)) {
            self.segments.get_mut(segment).expect("it is there").remove(at);
        }
    }
}

/// What can happen.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    New {
        bytes: usize,
        records: u64,
        kind: Kind,
    },
    Hand,
    Write,
    /// The server's application takes what has arrived, up to so many messages.
    Take(usize),
    /// The server returns credit, as far as it may: this share of it.
    Credit(u8),
    Wait(u64),
    /// The shell begins an operation on the disk, or ends one.
    Disk,
    /// Everything on the connection that was not taken is gone.
    Break,
    /// The same, and the server gives no reason: it may have been for a batch.
    Die,
    /// The server is killed, and what it took within the last second dies with it.
    Forget,
    Open,
    Fault(Option<Failed>),
    Spoil(usize),
    /// One file can be neither read nor deleted, and stays like that.
    Jam(usize),
    /// The agent is killed and starts again.
    Crash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) kind: Kind,
    pub(crate) records: u64,
}

/// The agent's shell, the server and the disk, as naive as can be.
pub(crate) struct World {
    pub(crate) outbox: Outbox<u32>,
    pub(crate) bounds: Bounds,
    may_drop: bool,
    pub(crate) now: Millis,
    disk: Disk,
    pub(crate) op: Option<Op<u32>>,
    is_up: bool,
    is_pinged: bool,
    sizes: BTreeMap<u32, usize>,
    pub(crate) made: BTreeMap<u32, Made>,
    /// What was handed over on this connection: the batch, where it ends, and whether it has left.
    stream: Vec<(u32, u64, bool)>,
    /// How many of these the application has taken.
    taken: usize,
    /// What the server has taken and keeps, and when.
    ever_taken: Vec<(u32, Millis)>,
    /// What it took and has lost.
    forgotten: Vec<u32>,
    /// Batches that were cut, and into what.
    parts: BTreeMap<u32, Vec<u32>>,
    /// Batches that were only in memory when the agent was killed.
    killed: BTreeSet<u32>,
}

impl World {
    pub(crate) fn new(bounds: Bounds, may_drop: bool) -> Self {
        Self {
            outbox: Outbox::new(bounds, Millis(0)),
            bounds,
            may_drop,
            now: Millis(0),
            disk: Disk::default(),
            op: None,
            is_up: false,
            is_pinged: false,
            sizes: BTreeMap::new(),
            made: BTreeMap::new(),
            stream: Vec::new(),
            taken: 0,
            ever_taken: Vec::new(),
            forgotten: Vec::new(),
            parts: BTreeMap::new(),
            killed: BTreeSet::new(),
        }
    }

    pub(crate) fn act(&mut self, step: &Step) {
        match *step {
            Step::New { bytes, records, kind } => {
                let shed = self.outbox.make_room(self.may_drop, self.now);
                assert!(shed.lost == 0 || (self.may_drop && !self.is_up), "nobody allowed it to lose {shed:?}");
                if self.outbox.has_room() {
                    let id = self.make(bytes, Made { kind, records });
                    self.outbox.push(Batch::new(kind, id, bytes, 0, rows(records)).with_fingerprint(id));
                }
            }
            Step::Hand if self.is_up => {
                while let Some(next) = self.outbox.poll_send(self.now) {
                    match next {
                        Outgoing::Cut { whole, .. } => {
                            let parts = self.cut(*whole.message().expect("it waits"));
                            self.outbox.handle_cut(parts, &[]);
                        }
                        Outgoing::Send(id) => {
                            let start = self.stream.last().map_or(0, |(_, end, _)| *end);
                            self.stream.push((id, start + self.sizes[&id] as u64, false));
                            break;
                        }
                    }
                }
            }
            Step::Write => {
                if let Some(entry) = self.stream.iter_mut().find(|(_, _, left)| !left) {
                    entry.2 = true;
                    self.outbox.handle_written(self.now);
                }
            }
            Step::Take(most) => self.take(most),
            Step::Credit(share) if self.is_up => {
                self.outbox.handle_credit(self.credit() * u64::from(share) / 255, self.now)
            }
            Step::Wait(time) => {
                // A server takes within the grace time what it has read.
                self.take(usize::MAX);
                if core::mem::take(&mut self.is_pinged) {
                    self.outbox.handle_pong(self.now);
                }
                self.now = self.now + time;
                if self.is_up && self.outbox.wants_ping(self.now) {
                    self.outbox.handle_ping(self.now);
                    self.is_pinged = true;
                }
            }
            Step::Disk => match self.op.take() {
                Some(op) => {
                    let done = self.disk.carry_out(op, &self.sizes);
                    self.outbox.handle_done(done, self.now);
                }
                None => self.op = self.outbox.poll_op(self.now),
            },
            Step::Break => {
                self.outbox.handle_ended(self.now);
                self.disconnect();
            }
            Step::Die => {
                if self.is_up {
                    self.outbox.handle_broken(false, self.now);
                }
                self.outbox.handle_ended(self.now);
                self.disconnect();
            }
            Step::Forget => {
                let since = self.now.since(Millis(FORGOTTEN_MS));
                let is_kept = |(_, taken): &(u32, Millis)| taken.0 < since;
                let forgotten: Vec<_> =
                    self.ever_taken.iter().filter(|entry| !is_kept(entry)).map(|(id, _)| *id).collect();
                self.ever_taken.retain(is_kept);
                self.forgotten.extend(forgotten);
                self.outbox.handle_ended(self.now);
                self.disconnect();
            }
            Step::Open if !self.is_up => {
                self.outbox.handle_opened(self.now);
                self.is_up = true;
            }
            Step::Hand | Step::Credit(_) | Step::Open => {}
            Step::Fault(fault) => self.disk.fault = fault,
            Step::Spoil(which) => self.disk.spoil(which),
            Step::Jam(which) => self.disk.jam(which),
            Step::Crash => {
                let stored: BTreeSet<u32> = self
                    .disk
                    .segments
                    .values()
                    .flat_map(|batches| batches.values().map(|batch| batch.message))
                    .collect();
                self.killed.extend(self.made.keys().filter(|id| !stored.contains(id)));
                self.disconnect();
                self.op = None;
                self.outbox = Outbox::new(self.bounds, self.now);
                self.disk.left.clear();
            }
        }
        self.check();
    }

    /// A batch's records one by one, the same each time.
    fn cut(&mut self, whole: u32) -> Vec<Batch<u32>> {
        let Made { kind, records } = self.made[&whole];
        let bytes = self.sizes[&whole].div_ceil(2);
        if !self.parts.contains_key(&whole) {
            let ids: Vec<u32> = (0..records).map(|_| self.make(bytes, Made { kind, records: 1 })).collect();
            self.parts.insert(whole, ids);
        }
        let part = |id: &u32| Batch::new(kind, *id, bytes, 0, rows(1)).with_fingerprint(*id);
        self.parts[&whole].iter().map(part).collect()
    }

    fn make(&mut self, bytes: usize, made: Made) -> u32 {
        let id = u32::try_from(self.made.len()).expect("few");
        self.sizes.insert(id, bytes);
        self.made.insert(id, made);
        id
    }

    fn disconnect(&mut self) {
        (self.stream, self.taken, self.is_up, self.is_pinged) = (Vec::new(), 0, false, false);
    }

    fn take(&mut self, most: usize) {
        for _ in 0..most {
            match self.stream.get(self.taken) {
                Some(&(id, _, true)) => {
                    self.ever_taken.push((id, self.now));
                    self.taken += 1;
                }
                _ => break,
            }
        }
    }

    /// The message that is being read may have been granted whole; the last one that was taken is still worked on, if no
    /// further one has begun to arrive.
    fn credit(&self) -> u64 {
        match self.stream.get(self.taken) {
            Some((_, end, true)) => *end,
            _ => self.taken.checked_sub(1).map_or(0, |last| self.stream[last].1),
        }
    }

    /// What holds at all times.
    fn check(&self) {
        let unconfirmed = self.outbox.unconfirmed();
        let counters = self.outbox.counters();
        assert!(counters.confirmed <= self.taken_records(), "{} confirmed", counters.confirmed);
        let largest = 400;
        assert!(unconfirmed.memory_bytes <= self.bounds.memory + 4 * largest, "{unconfirmed:?}");
        assert!(unconfirmed.disk_bytes <= self.bounds.spool, "{unconfirmed:?}");
        if let Some(moment) = self.outbox.poll_timeout(self.now) {
            assert!(moment > self.now, "waking up at once again and again");
        }
    }

    /// Records that the server has taken, as often as it has.
    fn taken_records(&self) -> u64 {
        let taken = self.ever_taken.iter().map(|(id, _)| id);
        taken
            .chain(&self.forgotten)
            .map(|id| self.made[id])
            .filter(|made| made.kind != Kind::Heartbeat)
            .map(|made| made.records)
            .sum()
    }

    /// Some rounds in which all goes well, after which nothing is left.
    pub(crate) fn calm(&mut self) {
        self.act(&Step::Fault(None));
        // A file that cannot be read is tried twice.
        for _ in 0..=2 * self.disk.jammed.len() {
            self.act(&Step::Wait(SPOOL_RETRY_MS));
            self.flow();
        }
        // What is suspected goes alone, with time before and after it.
        for _ in 0..1_000 {
            let left = self.outbox.unconfirmed();
            if (left.batches, left.disk_records) == (0, 0) {
                break;
            }
            [Step::Open, Step::Disk, Step::Disk, Step::Hand, Step::Write, Step::Wait(700)]
                .iter()
                .for_each(|step| self.act(step));
        }
        for _ in 0..4 {
            self.act(&Step::Wait(10_000));
            (0..20).for_each(|_| self.act(&Step::Disk));
        }
        let left = self.outbox.unconfirmed();
        assert_eq!((left.memory_records, left.disk_records, left.memory_bytes), (0, 0, 0), "all is confirmed");
        let is_known = |number: &u64| self.disk.left.contains(number);
        assert!(self.disk.segments.keys().all(is_known), "no file is left: {:?}", self.disk.segments);
    }

    /// Records move on, as many as three hundred batches have.
    pub(crate) fn flow(&mut self) {
        for _ in 0..300 {
            for step in [Step::Open, Step::Disk, Step::Disk, Step::Hand, Step::Write, Step::Take(9), Step::Credit(255)]
            {
                self.act(&step);
            }
        }
    }

    fn has_taken(&self, id: &u32) -> bool {
        self.ever_taken.iter().any(|(taken, _)| taken == id)
    }

    /// The records of batches that were to arrive and did not.
    pub(crate) fn not_taken(&self) -> u64 {
        let parts: BTreeSet<&u32> = self.parts.values().flatten().collect();
        let whole = self.made.iter().filter(|(id, made)| made.kind != Kind::Heartbeat && !parts.contains(id));
        let missing = whole.filter(|(id, _)| !self.killed.contains(id) && !self.has_taken(id));
        let not_taken = |id: &u32| self.parts.get(id).map(|parts| parts.iter().filter(|part| !self.has_taken(part)));
        missing.map(|(id, made)| not_taken(id).map_or(made.records, |left| left.count() as u64)).sum()
    }

    /// Bulk batches in the order in which they first arrived.
    pub(crate) fn first_arrivals(&self) -> Vec<u32> {
        let mut seen = BTreeSet::new();
        let bulk = self.ever_taken.iter().map(|(id, _)| *id).filter(|id| self.made[id].kind == Kind::Bulk);
        bulk.filter(|id| seen.insert(*id)).collect()
    }
}
