//! The plan of the spool: its segments, how far they are confirmed and read, and where to write next.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::format::SEGMENT_HEAD_BYTES;
use super::{Found, Place};
use crate::limits::{SPOOL_WRITE_BYTES, segment_bytes};

const HEAD: u64 = SEGMENT_HEAD_BYTES as u64;

/// What is known about the spool's files.
///
/// ```text
///   | confirmed, deleted with its segment | in flight | not sent yet | <- appended
///                                      settled       cursor         end
/// ```
#[derive(Debug)]
pub(in crate::delivery) struct Plan {
    limit: u64,
    segments: VecDeque<Segment>,
    /// Everything before it is confirmed.
    settled: Place,
    /// Where the next batch to send lies.
    cursor: Place,
    /// The number of the first record at the cursor, if none is missing there.
    cursor_record: u64,
    /// Where the segment's head says that confirmation ends.
    marked: Place,
    next_record: u64,
    /// Number of records that are not confirmed.
    records: u64,
    /// Bytes of finished files that could not be deleted.
    left_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    number: u64,
    /// The offset at which its last batch ends.
    end: u64,
    first_record: u64,
    end_record: u64,
}

impl Plan {
    pub(in crate::delivery) fn new(limit: u64, found: Vec<Found>) -> Self {
        let place = |found: &Found| Place { segment: found.number, offset: found.mark };
        let start = found.first().map_or(Place { segment: 0, offset: HEAD }, place);
        Self {
            limit,
            settled: start,
            cursor: start,
            cursor_record: found.first().map_or(0, |found| found.first_record),
            marked: start,
            next_record: found.last().map_or(0, |found| found.end_record),
            records: match (found.first(), found.last()) {
                (Some(first), Some(last)) => last.end_record.saturating_sub(first.first_record),
                _ => 0,
            },
            left_bytes: 0,
            segments: found
                .into_iter()
                .map(|Found { number, end, first_record, end_record, .. }| Segment {
                    number,
                    end,
                    first_record,
                    end_record,
                })
                .collect(),
        }
    }

    pub(in crate::delivery) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Number of records that are not confirmed.
    pub(in crate::delivery) fn records(&self) -> u64 {
        self.records
    }

    /// Bytes of all files.
    pub(in crate::delivery) fn bytes(&self) -> u64 {
        self.left_bytes + self.kept_bytes()
    }

    /// The same without files that could not be deleted.
    pub(in crate::delivery) fn kept_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    /// Returns true when files that could not be deleted leave no room for others.
    pub(in crate::delivery) fn is_used_up(&self) -> bool {
        self.left_bytes > 0 && self.left_bytes + SPOOL_WRITE_BYTES as u64 > self.limit
    }

    pub(in crate::delivery) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Returns true when batches of `bytes` bytes fit without dropping anything.
    pub(in crate::delivery) fn has_room_for(&self, bytes: usize) -> bool {
        // They may start another segment.
        self.bytes() + HEAD + bytes as u64 <= self.limit
    }

    /// Where to write the next batch.
    pub(in crate::delivery) fn write_place(&self) -> Place {
        match self.segments.back() {
            Some(last) if last.end < segment_bytes(self.limit) => Place { segment: last.number, offset: last.end },
            Some(last) => Place { segment: last.number + 1, offset: HEAD },
            None => Place { segment: self.cursor.segment, offset: HEAD },
        }
    }

    /// The number of the next record to be written.
    pub(in crate::delivery) fn next_record(&self) -> u64 {
        self.next_record
    }

    /// A batch was written after all others.
    pub(in crate::delivery) fn handle_written(&mut self, at: Place, end: u64, records: u64) {
        if self.segments.back().is_none_or(|last| last.number != at.segment) {
            if self.segments.is_empty() {
                (self.settled, self.cursor, self.marked) = (at, at, at);
                self.cursor_record = self.next_record;
            }
            let first_record = self.next_record;
            self.segments.push_back(Segment { number: at.segment, end, first_record, end_record: first_record });
        }
        self.next_record += records;
        self.records += records;
        if let Some(last) = self.segments.back_mut() {
            last.end = end;
            last.end_record = self.next_record;
        }
    }

    /// Where the next unsent batch lies.
    pub(in crate::delivery) fn backlog(&self) -> Option<Place> {
        let here = self.segments.iter().find(|segment| segment.number == self.cursor.segment);
        match here {
            Some(segment) if self.cursor.offset < segment.end => Some(self.cursor),
            _ => {
                let next = self.segments.iter().find(|segment| segment.number > self.cursor.segment)?;
                Some(Place { segment: next.number, offset: HEAD })
            }
        }
    }

    /// The batch from the cursor to `end` is in flight. Returns how many records are missing before it.
    pub(in crate::delivery) fn handle_sent(&mut self, end: Place, first_record: u64, records: u64) -> u64 {
        let missing = first_record.saturating_sub(self.cursor_record).min(self.records);
        self.cursor = end;
        self.cursor_record = first_record.saturating_add(records);
        self.records -= missing;
        missing
    }

    /// Nothing at or after this place in its segment can be read. Returns how many records are missing.
    pub(in crate::delivery) fn handle_unreadable(&mut self, place: Place) -> u64 {
        let known = self.segments.iter().find(|segment| segment.number == place.segment);
        match known.copied() {
            Some(Segment { number, end, end_record, .. }) if self.backlog() == Some(place) => {
                self.handle_sent(Place { segment: number, offset: end }, end_record.max(self.cursor_record), 0)
            }
            _ => 0,
        }
    }

    /// What was sent from this place on has to be sent again.
    pub(in crate::delivery) fn rewind(&mut self, place: Place, first_record: u64) {
        if place < self.cursor {
            self.cursor = place;
            self.cursor_record = first_record;
        }
    }

    /// Everything before `end` is confirmed, `records` of them newly.
    pub(in crate::delivery) fn handle_confirmed(&mut self, end: Place, records: u64) {
        self.settled = self.settled.max(end);
        self.records = self.records.saturating_sub(records);
    }

    /// Returns true when everything that was sent is confirmed.
    pub(in crate::delivery) fn is_settled(&self) -> bool {
        self.settled >= self.cursor
    }

    /// Everything that was sent is confirmed.
    pub(in crate::delivery) fn handle_all_confirmed(&mut self) {
        self.settled = self.settled.max(self.cursor);
    }

    /// Stops counting `records` that are in flight.
    pub(in crate::delivery) fn forget(&mut self, records: u64) {
        self.records = self.records.saturating_sub(records);
    }

    /// The oldest segment, if everything in it is confirmed.
    pub(in crate::delivery) fn finished(&self) -> Option<u64> {
        let first = self.segments.front()?;
        (self.settled >= Place { segment: first.number, offset: first.end }).then_some(first.number)
    }

    /// Where the unsent part of the oldest segment begins, if there is a segment to drop for room.
    pub(in crate::delivery) fn oldest(&self) -> Option<Place> {
        let first = self.segments.front()?;
        let offset = if self.cursor.segment == first.number { self.cursor.offset } else { HEAD };
        let is_sent = self.cursor.segment > first.number;
        Some(Place { segment: first.number, offset: if is_sent { first.end } else { offset } })
    }

    /// The oldest segment could not be deleted. It is finished all the same.
    pub(in crate::delivery) fn handle_left(&mut self) {
        self.left_bytes += self.segments.front().map_or(0, |first| first.end);
    }

    /// The oldest segment is gone. Returns how many of its records had not been sent.
    pub(in crate::delivery) fn handle_dropped(&mut self) -> u64 {
        let Some(first) = self.segments.pop_front() else { return 0 };
        let next = self.segments.front();
        let place = next.map_or(Place { segment: first.number + 1, offset: HEAD }, |next| Place {
            segment: next.number,
            offset: HEAD,
        });
        let mut unsent = 0;
        if self.cursor < place {
            let from = self.cursor_record.max(first.first_record);
            unsent = first.end_record.saturating_sub(from).min(self.records);
            self.cursor = place;
            self.cursor_record = next.map_or(first.end_record, |next| next.first_record);
        }
        self.settled = self.settled.max(place);
        self.marked = self.marked.max(place);
        self.records -= unsent;
        unsent
    }

    /// The mark to write, if it has moved within the oldest segment.
    pub(in crate::delivery) fn unmarked(&self) -> Option<Place> {
        let first = self.segments.front()?;
        (self.settled > self.marked && self.settled.segment == first.number).then_some(self.settled)
    }

    pub(in crate::delivery) fn handle_marked(&mut self) {
        self.marked = self.settled;
    }
}
