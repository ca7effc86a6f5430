//! The spool's disk, with what can be wrong with it.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::World;
use super::agenda::Happening;
use crate::delivery::spool::format::SEGMENT_HEAD_BYTES;
use crate::delivery::spool::{Done, Failed, Found, Op, Place, Replay, Write};
use crate::testing::message::{Id, Message};
use crate::testing::random::Draw;
use crate::time::Millis;

const HEAD: u64 = SEGMENT_HEAD_BYTES as u64;

/// Bytes in front of a message on the disk.
const OVERHEAD: u64 = 120;

/// Segments by number; in each, batches by where they begin.
#[derive(Debug, Default)]
pub(super) struct Disk {
    segments: BTreeMap<u64, BTreeMap<u64, Replay<Message>>>,
    marks: BTreeMap<u64, u64>,
    /// How long each file is.
    ends: BTreeMap<u64, u64>,
    /// Segments that can be neither read nor deleted any more.
    jammed: BTreeSet<u64>,
    /// The directory is not there any more, and nobody has noticed.
    is_gone: bool,
    pub(super) full_until: Millis,
    pub(super) read_only_until: Millis,
    pub(super) no_thread_until: Millis,
    pub(super) slow_until: Millis,
    pub(super) slow_ms: u64,
    /// Something was wrong with it at this moment or later.
    pub(super) bad_until: Millis,
    /// Files were damaged, or cannot be deleted.
    pub(super) is_damaged: bool,
}

impl Disk {
    fn carry_out(&mut self, op: Op<Message>, now: Millis) -> Done<Message> {
        if core::mem::take(&mut self.is_gone) {
            (self.segments, self.marks, self.ends) = Default::default();
            if !matches!(op, Op::Open) {
                return Done::Failed(Failed::Vanished);
            }
        }
        let (concerned, writes) = match &op {
            Op::Read(place) => (Some(place.segment), false),
            Op::Drop(place) => (Some(place.segment), true),
            Op::Delete(number) => (Some(*number), true),
            Op::Open | Op::Append { .. } | Op::Mark(_) | Op::Sync => (None, true),
        };
        if concerned.is_some_and(|number| self.jammed.contains(&number)) || (writes && now < self.read_only_until) {
            return Done::Failed(Failed::Broken);
        }
        if now < self.full_until && matches!(op, Op::Append { .. }) {
            return Done::Failed(Failed::Full);
        }
        match op {
            Op::Open => Done::Opened(self.open()),
            Op::Append { place, batches } => Done::Appended(self.append(place, batches)),
            Op::Read(Place { segment, offset }) => {
                let batches = self.segments.get(&segment).into_iter().flatten();
                Done::Read(batches.map(|(_, batch)| batch.clone()).find(|batch| batch.begin >= offset))
            }
            Op::Drop(Place { segment, offset }) => {
                let batches = self.segments.remove(&segment).unwrap_or_default();
                self.ends.remove(&segment);
                self.marks.remove(&segment);
                let unsent = batches.into_values().filter(|batch| batch.begin >= offset);
                Done::Dropped(unsent.flat_map(|batch| batch.rows).collect())
            }
            Op::Delete(segment) => {
                self.segments.remove(&segment);
                self.ends.remove(&segment);
                self.marks.remove(&segment);
                Done::Deleted
            }
            Op::Sync => Done::Synced,
            Op::Mark(Place { segment, offset }) => {
                self.marks.insert(segment, offset);
                Done::Marked
            }
        }
    }

    fn open(&mut self) -> Vec<Found> {
        let segment = |(&number, batches): (&u64, &BTreeMap<u64, Replay<Message>>)| {
            let mark = self.marks.get(&number).copied().unwrap_or(HEAD);
            let first = batches.values().find(|batch| batch.begin >= mark)?;
            let last = batches.values().last()?;
            let end_record = last.first_record + last.rows.iter().map(|row| row.records).sum::<u64>();
            Some(Found { number, mark, end: last.end, first_record: first.first_record, end_record })
        };
        let found: Vec<_> = self.segments.iter().filter_map(segment).collect();
        // What is torn at the end of a file is cut off, and a file without a batch is deleted.
        self.ends = found.iter().map(|found| (found.number, found.end)).collect();
        self.segments.retain(|number, _| self.ends.contains_key(number));
        self.marks.retain(|number, _| self.ends.contains_key(number));
        found
    }

    fn append(&mut self, place: Place, batches: Vec<Write<Message>>) -> Vec<u64> {
        let segment = self.segments.entry(place.segment).or_default();
        let file_end = self.ends.entry(place.segment).or_insert(HEAD);
        assert_eq!(place.offset, *file_end, "it is written behind all others");
        let mut ends = vec![];
        for Write { message, content_bytes, first_record, rows } in batches {
            let begin = *file_end;
            let bytes = message.length();
            let end = begin + OVERHEAD + bytes as u64;
            let fingerprint = message.fingerprint();
            segment
                .insert(begin, Replay { message, bytes, fingerprint, content_bytes, begin, end, first_record, rows });
            *file_end = end;
            ends.push(end);
        }
        ends
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.ends.values().sum()
    }

    /// The records that an agent which starts now finds.
    pub(super) fn records(&self) -> impl Iterator<Item = Id> {
        let marked = |number: &u64| self.marks.get(number).copied().unwrap_or(HEAD);
        let segments = self.segments.iter().filter(|_| !self.is_gone);
        let batches = segments.flat_map(move |(number, batches)| batches.range(marked(number)..));
        batches.flat_map(|(_, batch)| batch.message.records().filter_map(|record| record.id))
    }

    /// Whether the directory is gone, and nobody has noticed.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// The directory is deleted.
    pub(super) fn vanish(&mut self) {
        self.is_gone = true;
        self.jammed.clear();
        self.is_damaged = true;
    }

    /// From now on one segment can be neither read nor deleted.
    pub(super) fn jam(&mut self, which: usize) {
        self.jammed.extend(self.segments.keys().nth(which % self.segments.len().max(1)));
        self.is_damaged = true;
    }

    /// Makes one batch unreadable, and gives it.
    pub(super) fn spoil(&mut self, which: usize) -> Option<Message> {
        let all: Vec<_> = self.segments.iter().flat_map(|(n, batches)| batches.keys().map(|at| (*n, *at))).collect();
        self.is_damaged = true;
        let (segment, at) = all.get(which % all.len().max(1))?;
        let batches = self.segments.get_mut(segment)?;
        batches.remove(at).map(|batch| batch.message)
    }

    /// Everything can be read and deleted again.
    pub(super) fn mend(&mut self, now: Millis) {
        self.jammed.clear();
        for until in [&mut self.full_until, &mut self.read_only_until, &mut self.no_thread_until, &mut self.slow_until]
        {
            *until = now.min(*until);
        }
    }
}

impl World {
    /// The agent wants something done with the spool's files.
    pub(super) fn work_on_spool(&mut self, op: Op<Message>, at_once: bool) {
        let now = self.agenda.now;
        if self.op.is_some() {
            return self.fail("one operation on the spool at a time", "another one was asked for");
        }
        if now < self.disk.no_thread_until && !at_once {
            return self.tell(|agent, now| agent.handle_no_thread(op, now));
        }
        // What is written is on the disk before the agent hears of it, whole or in part.
        let is_slow = now < self.disk.slow_until;
        let ms = if is_slow { self.random.between(1, self.disk.slow_ms) } else { self.random.between(0, 2) };
        if let Op::Append { place, batches } = &op {
            self.op = Some((*place, batches.clone().into_boxed_slice()));
        } else {
            self.op = Some((Place::default(), Box::default()));
        }
        let done = match op {
            // It is written when it is done; see `tear`.
            Op::Append { .. } if now >= self.disk.full_until && now >= self.disk.read_only_until => None,
            op => Some(self.disk.carry_out(op, now)),
        };
        if let (Some(Done::Opened(_)), Some(host)) = (&done, &mut self.host) {
            host.knows_disk = true;
        }
        if let Some(Done::Dropped(rows)) = &done {
            self.dropping = rows.iter().map(|row| row.records).sum();
        }
        let done = Box::new(done.unwrap_or(Done::Appended(Vec::new())));
        self.agenda.after(ms, Happening::DiskDone { life: self.life, done });
    }

    pub(super) fn handle_disk_done(&mut self, done: Done<Message>) {
        let Some((place, batches)) = self.op.take() else { return };
        self.dropping = 0;
        let now = self.agenda.now;
        let done = match done {
            Done::Appended(_) => self.disk.carry_out(Op::Append { place, batches: batches.into_vec() }, now),
            done => done,
        };
        if let Done::Failed(why) = &done {
            self.note(|| alloc::format!("an operation on the spool fails: {why:?}"));
        }
        self.tell(|agent, now| agent.handle_spool(done, now));
    }

    /// The agent is killed: of what was being written, some is on the disk.
    pub(super) fn tear(&mut self) {
        if let Some((place, batches)) = self.op.take()
            && !batches.is_empty()
        {
            let whole = self.random.index(batches.len() + 1);
            let batches: Vec<_> = batches.into_vec().into_iter().take(whole).collect();
            let _ = self.disk.carry_out(Op::Append { place, batches }, self.agenda.now);
        }
    }
}
