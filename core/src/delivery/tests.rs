//! The outbox with a server, a disk and a clock that are not real, under random schedules of faults.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::spool::format::SEGMENT_HEAD_BYTES;
use super::spool::{Done, Failed, Found, Op, Place, Replay};
use super::{Batch, Bounds, Kind, Outbox};
use crate::limits::{SPOOL_AFTER_MS, SPOOL_RETRY_MS};
use crate::losses::Cause;
use crate::manifest::{Row, Source};
use crate::time::Millis;

pub(super) fn rows(records: u64) -> Box<[Row]> {
    Box::new([Row { source: Source::AGENT, data_type: 59, records, first: 1, last: 2 }])
}

/// A batch of one record.
pub(super) fn batch(kind: Kind, message: u32, bytes: usize) -> Batch<u32> {
    Batch::new(kind, message, bytes, 0, rows(1))
}

/// Bytes in front of a message on the disk.
const OVERHEAD: u64 = 40;

/// Segments by number; in each, batches by where they begin, and where they end.
#[derive(Debug, Default, Clone)]
struct Disk {
    segments: BTreeMap<u64, BTreeMap<u64, Replay<u32>>>,
    marks: BTreeMap<u64, u64>,
    /// How long each file is.
    ends: BTreeMap<u64, u64>,
    /// Each operation fails like this.
    fault: Option<Failed>,
}

impl Disk {
    fn carry_out(&mut self, op: Op<u32>, sizes: &BTreeMap<u32, usize>) -> Done<u32> {
        if let Some(fault) = self.fault {
            if fault == Failed::Vanished {
                *self = Self::default();
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
                    let replay =
                        Replay { message: write.message, bytes, content_bytes, begin, end, first_record, rows };
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

    /// Makes one batch unreadable.
    fn spoil(&mut self, which: usize) {
        let all: Vec<_> = self.segments.iter().flat_map(|(n, batches)| batches.keys().map(|at| (*n, *at))).collect();
        if let Some((segment, at)) = all.get(which % all.len().max(1)) {
            self.segments.get_mut(segment).expect("it is there").remove(at);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
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
    Open,
    Fault(Option<Failed>),
    Spoil(usize),
    /// The agent is killed and starts again.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![8 => Just(Kind::Bulk), 1 => Just(Kind::Urgent), 1 => Just(Kind::Heartbeat)];
    prop_oneof![
        6 => (1..400usize, 1..5u64, kind).prop_map(|(bytes, records, kind)| Step::New { bytes, records, kind }),
        4 => Just(Step::Hand),
        4 => Just(Step::Write),
        3 => (0..4usize).prop_map(Step::Take),
        3 => any::<u8>().prop_map(Step::Credit),
        3 => (0..1_500u64).prop_map(Step::Wait),
        6 => Just(Step::Disk),
        1 => Just(Step::Break),
        2 => Just(Step::Open),
    ]
}

fn fault() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Fault(Some(Failed::Full))),
        2 => Just(Step::Fault(Some(Failed::Broken))),
        1 => Just(Step::Fault(Some(Failed::Vanished))),
        5 => Just(Step::Fault(None)),
        2 => any::<usize>().prop_map(Step::Spoil),
        1 => Just(Step::Crash),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Made {
    kind: Kind,
    records: u64,
}

/// The agent's shell, the server and the disk, as naive as can be.
struct World {
    outbox: Outbox<u32>,
    bounds: Bounds,
    may_drop: bool,
    now: Millis,
    disk: Disk,
    op: Option<Op<u32>>,
    is_up: bool,
    is_pinged: bool,
    sizes: BTreeMap<u32, usize>,
    made: BTreeMap<u32, Made>,
    /// What was handed over on this connection: the batch, where it ends, and whether it has left.
    stream: Vec<(u32, u64, bool)>,
    /// How many of these the application has taken.
    taken: usize,
    ever_taken: Vec<u32>,
    /// Batches that were only in memory when the agent was killed.
    killed: BTreeSet<u32>,
}

impl World {
    fn new(bounds: Bounds, may_drop: bool) -> Self {
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
            killed: BTreeSet::new(),
        }
    }

    fn act(&mut self, step: &Step) {
        match *step {
            Step::New { bytes, records, kind } => {
                if self.outbox.has_room(self.may_drop, self.now) {
                    let id = u32::try_from(self.made.len()).expect("few");
                    self.sizes.insert(id, bytes);
                    self.made.insert(id, Made { kind, records });
                    self.outbox.push(Batch::new(kind, id, bytes, 0, rows(records)));
                }
            }
            Step::Hand if self.is_up => {
                if let Some(batch) = self.outbox.waiting() {
                    let id = *batch.message().expect("what waits is in memory");
                    let start = self.stream.last().map_or(0, |(_, end, _)| *end);
                    self.stream.push((id, start + batch.bytes() as u64, false));
                    self.outbox.handle_handed();
                }
            }
            Step::Write => {
                if let Some(entry) = self.stream.iter_mut().find(|(_, _, left)| !left) {
                    entry.2 = true;
                    self.outbox.handle_written(self.now);
                }
            }
            Step::Take(most) => self.take(most),
            Step::Credit(share) if self.is_up => self.outbox.handle_credit(self.credit() * u64::from(share) / 255),
            Step::Wait(time) => {
                // A server takes within the grace time what it has read.
                self.take(usize::MAX);
                if core::mem::take(&mut self.is_pinged) {
                    self.outbox.handle_pong();
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
            Step::Open if !self.is_up => {
                self.outbox.handle_opened();
                self.is_up = true;
            }
            Step::Hand | Step::Credit(_) | Step::Open => {}
            Step::Fault(fault) => self.disk.fault = fault,
            Step::Spoil(which) => self.disk.spoil(which),
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
            }
        }
        self.check();
    }

    fn disconnect(&mut self) {
        (self.stream, self.taken, self.is_up, self.is_pinged) = (Vec::new(), 0, false, false);
    }

    fn take(&mut self, most: usize) {
        for _ in 0..most {
            match self.stream.get(self.taken) {
                Some(&(id, _, true)) => {
                    self.ever_taken.push(id);
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
        assert!(unconfirmed.disk_bytes <= self.bounds.spool.max(1) + 4096, "{unconfirmed:?}");
        if let Some(moment) = self.outbox.poll_timeout(self.now) {
            assert!(moment > self.now, "waking up at once again and again");
        }
    }

    /// Records that the server has taken, as often as it has.
    fn taken_records(&self) -> u64 {
        self.ever_taken
            .iter()
            .map(|id| self.made[id])
            .filter(|made| made.kind != Kind::Heartbeat)
            .map(|made| made.records)
            .sum()
    }

    /// Some rounds in which all goes well, after which nothing is left.
    fn calm(&mut self) {
        self.act(&Step::Fault(None));
        self.act(&Step::Wait(SPOOL_RETRY_MS));
        for _ in 0..300 {
            for step in [Step::Open, Step::Disk, Step::Disk, Step::Hand, Step::Write, Step::Take(9), Step::Credit(255)]
            {
                self.act(&step);
            }
        }
        for _ in 0..4 {
            self.act(&Step::Wait(10_000));
            (0..20).for_each(|_| self.act(&Step::Disk));
        }
        let left = self.outbox.unconfirmed();
        assert_eq!((left.memory_records, left.disk_records, left.memory_bytes), (0, 0, 0), "all is confirmed");
        assert_eq!(self.disk.segments.len(), 0, "no file is left: {:?}", self.disk.segments);
    }

    /// The records of batches that were to arrive and did not.
    fn not_taken(&self) -> u64 {
        let missing =
            self.made.iter().filter(|(id, made)| made.kind != Kind::Heartbeat && !self.ever_taken.contains(id));
        missing.filter(|(id, _)| !self.killed.contains(id)).map(|(_, made)| made.records).sum()
    }

    /// Bulk batches in the order in which they first arrived.
    fn first_arrivals(&self) -> Vec<u32> {
        let mut seen = BTreeSet::new();
        let bulk = self.ever_taken.iter().filter(|id| self.made[id].kind == Kind::Bulk);
        bulk.copied().filter(|id| seen.insert(*id)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_breaks_nothing_is_lost_and_the_order_stays(
        memory in prop_oneof![Just(500usize), Just(100_000)],
        has_spool: bool,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        // Without a spool there is memory enough, so that nothing has to go.
        let bounds = if has_spool { Bounds { memory, spool: 1 << 20 } } else { Bounds { memory: 1 << 20, spool: 0 } };
        let mut world = World::new(bounds, true);
        steps.iter().for_each(|step| world.act(step));
        world.calm();
        prop_assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
        let arrivals = world.first_arrivals();
        prop_assert!(arrivals.is_sorted(), "{:?}", arrivals);
    }

    #[test]
    fn whatever_is_lost_is_counted(
        spool in prop_oneof![Just(0u64), Just(2_000), Just(1 << 20)],
        may_drop: bool,
        steps in prop::collection::vec(prop_oneof![8 => step(), 1 => fault()], 0..200),
    ) {
        let mut world = World::new(Bounds { memory: 1_000, spool }, may_drop);
        steps.iter().for_each(|step| world.act(step));
        world.calm();
        // A crash takes the counts with it; what is lost after a break may have arrived before.
        let is_counted = !steps.iter().any(|step| matches!(step, Step::Crash));
        let is_exact = !steps.iter().any(|step| matches!(step, Step::Spoil(_) | Step::Break));
        if is_counted {
            let lost = world.outbox.losses().sum();
            prop_assert!(world.not_taken() <= lost, "{} did not arrive, {} were counted", world.not_taken(), lost);
            if is_exact && world.outbox.losses().total(Cause::Unconfirmed) == 0 && world.outbox.counters().spool_errors == 0 {
                prop_assert_eq!(world.not_taken(), lost);
            }
        }
    }

    #[test]
    fn a_killed_agent_loses_only_what_the_disk_had_not(steps in prop::collection::vec(prop_oneof![20 => step(), 1 => Just(Step::Crash)], 0..200)) {
        let mut world = World::new(Bounds { memory: 1_000, spool: 1 << 20 }, true);
        steps.iter().for_each(|step| world.act(step));
        world.calm();
        prop_assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
    }
}

fn new(records: u64) -> Step {
    Step::New { bytes: 300, records, kind: Kind::Bulk }
}

#[test]
fn memory_is_enough_for_a_server_that_is_back_at_once() {
    let mut world = World::new(Bounds { memory: 10_000, spool: 1 << 20 }, true);
    [Step::Disk, Step::Disk, Step::Open, new(1), Step::Hand, Step::Break].iter().for_each(|step| world.act(step));
    [Step::Wait(SPOOL_AFTER_MS - 1), Step::Disk, Step::Disk].iter().for_each(|step| world.act(step));
    assert_eq!(world.outbox.counters().spooled, 0);
    assert_eq!(world.outbox.poll_timeout(world.now), Some(Millis(SPOOL_AFTER_MS)));
    [Step::Wait(1), Step::Disk, Step::Disk].iter().for_each(|step| world.act(step));
    let left = world.outbox.unconfirmed();
    assert_eq!((world.outbox.counters().spooled, left.memory_bytes, left.disk_records), (1, 0, 1));
}

#[test]
fn files_that_vanish_before_they_are_marked_are_not_written_on() {
    let mut world = World::new(Bounds { memory: 10_000, spool: 1 << 20 }, true);
    let spooled = [Step::Disk, Step::Disk, new(1), new(1), new(1), Step::Wait(SPOOL_AFTER_MS), Step::Disk, Step::Disk];
    spooled.iter().for_each(|step| world.act(step));
    world.act(&Step::Open);
    for _ in 0..3 {
        [Step::Disk, Step::Disk, Step::Hand, Step::Write].iter().for_each(|step| world.act(step));
    }
    [Step::Take(2), Step::Credit(255)].iter().for_each(|step| world.act(step));
    assert_eq!(world.outbox.counters().confirmed, 1);
    [Step::Fault(Some(Failed::Vanished)), Step::Disk].iter().for_each(|step| world.act(step));
    assert!(matches!(world.op, Some(Op::Mark(_))), "{:?}", world.op);
    [Step::Disk, Step::Fault(None), Step::Break, new(1), Step::Wait(SPOOL_AFTER_MS)]
        .iter()
        .for_each(|step| world.act(step));
    // Looked for again, they are not there, and a new file is begun.
    (0..4).for_each(|_| world.act(&Step::Disk));
    world.calm();
    let told = world.outbox.losses().total(Cause::Unconfirmed);
    assert_eq!((world.not_taken(), told), (1, 2), "one of the two had not been taken, which the agent cannot know");
}

#[test]
fn without_a_server_the_oldest_go_file_by_file_and_are_counted_to_the_record() {
    let mut world = World::new(Bounds { memory: 500, spool: 300_000 }, true);
    for _ in 0..5_000 {
        [new(3), Step::Disk, Step::Disk, Step::Wait(100)].iter().for_each(|step| world.act(step));
    }
    let dropped = world.outbox.losses().total(Cause::SpoolFull);
    assert!(dropped > 0 && world.outbox.losses().sum() == dropped);
    world.bounds.memory = 500;
    for _ in 0..20 {
        world.calm_a_little();
    }
    world.calm();
    assert_eq!((world.not_taken(), dropped % 3), (dropped, 0));
}

#[test]
fn nothing_goes_from_a_full_disk_while_there_is_memory() {
    let mut world = World::new(Bounds { memory: 10_000, spool: 2_000 }, true);
    for _ in 0..30 {
        [new(3), Step::Disk, Step::Disk, Step::Wait(1_000)].iter().for_each(|step| world.act(step));
    }
    assert_eq!((world.made.len(), world.outbox.losses().sum()), (30, 0));
    world.calm();
    assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
}

#[test]
fn a_plugin_that_is_to_wait_waits() {
    let mut world = World::new(Bounds { memory: 500, spool: 300_000 }, false);
    for _ in 0..3_000 {
        [new(1), Step::Disk, Step::Disk, Step::Wait(100)].iter().for_each(|step| world.act(step));
    }
    assert!(world.made.len() < 1_500 && world.outbox.is_full(world.now));
    assert_eq!(world.outbox.losses().sum(), 0);
}

impl World {
    fn calm_a_little(&mut self) {
        for _ in 0..300 {
            for step in [Step::Open, Step::Disk, Step::Disk, Step::Hand, Step::Write, Step::Take(9), Step::Credit(255)]
            {
                self.act(&step);
            }
        }
    }
}

/// A batch of records with these sizes.
fn sized(records: &[usize]) -> Batch<Vec<usize>> {
    let bytes = records.iter().sum();
    let content = u32::try_from(bytes).expect("small");
    let fingerprint = u32::try_from(records[0]).expect("small");
    Batch::new(Kind::Bulk, records.to_vec(), bytes, content, rows(records.len() as u64)).with_fingerprint(fingerprint)
}

/// Cuts as the shell does: as many records as fit, at least one.
fn cut(records: &[usize], limit: usize) -> Vec<Batch<Vec<usize>>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for &record in records {
        match parts.last_mut() {
            Some(part) if part.iter().sum::<usize>() + record <= limit => part.push(record),
            _ => parts.push(vec![record]),
        }
    }
    parts.iter().map(|part| sized(part)).collect()
}

/// A server that takes messages of at most `limit` bytes and ends the stream over any other. What it has taken, in order of
/// size.
fn serve(outbox: &mut Outbox<Vec<usize>>, limit: usize) -> BTreeSet<usize> {
    let mut taken = BTreeSet::new();
    for _ in 0..100 {
        outbox.handle_opened();
        let mut end = 0;
        loop {
            outbox.drop_refused();
            if let Some(batch) = outbox.oversized() {
                let parts = cut(batch.message().expect("it waits"), outbox.content_limit() as usize);
                outbox.handle_cut(parts);
            }
            let Some(batch) = outbox.waiting() else { return taken };
            let (records, bytes) = (batch.message().expect("it waits").clone(), batch.bytes());
            outbox.handle_handed();
            outbox.handle_written(Millis(0));
            if bytes > limit {
                outbox.handle_refused();
                outbox.handle_ended(Millis(0));
                break;
            }
            end += bytes as u64;
            outbox.handle_credit(end);
            taken.extend(records);
        }
    }
    panic!("it never ends: {taken:?}");
}

#[test]
fn what_is_too_large_for_the_server_is_cut_until_it_fits() {
    let mut outbox = Outbox::new(Bounds { memory: 1 << 20, spool: 0 }, Millis(0));
    outbox.push(sized(&[100]));
    outbox.push(sized(&(101..130).collect::<Vec<_>>()));
    outbox.push(sized(&[130, 131]));
    assert_eq!((serve(&mut outbox, 400), outbox.losses().sum()), ((100..132).collect(), 0));
}

#[test]
fn a_record_that_is_too_large_for_the_server_is_given_up_and_counted() {
    let mut outbox = Outbox::new(Bounds { memory: 1 << 20, spool: 0 }, Millis(0));
    outbox.push(sized(&[100, 101, 102, 900, 103, 104]));
    outbox.push(sized(&[105, 901]));
    assert_eq!(serve(&mut outbox, 500), (100..106).collect());
    assert_eq!((outbox.losses().total(Cause::Refused), outbox.losses().sum()), (2, 2));
}
