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

    /// Returns true when everything before this place is confirmed.
    pub(in crate::delivery) fn is_settled_up_to(&self, place: Place) -> bool {
        self.settled >= place
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

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const LIMIT: u64 = 8 << 20;
    const SEGMENT: u64 = segment_bytes(LIMIT);

    fn at(segment: u64, offset: u64) -> Place {
        Place { segment, offset }
    }

    fn empty() -> Plan {
        Plan::new(LIMIT, vec![])
    }

    /// Writes a batch of so many bytes and records, and returns where it ends.
    fn write(plan: &mut Plan, bytes: u64, records: u64) -> Place {
        let place = plan.write_place();
        let end = place.offset + bytes;
        plan.handle_written(place, end, records);
        at(place.segment, end)
    }

    /// Fills three segments with one batch each, of 10, 20 and 30 records.
    fn three_segments() -> Plan {
        let mut plan = empty();
        [10, 20, 30].into_iter().for_each(|records| {
            write(&mut plan, SEGMENT, records);
        });
        plan
    }

    #[test]
    fn an_empty_spool_has_nothing_to_send_or_drop() {
        let mut plan = empty();
        assert_eq!((plan.records(), plan.bytes(), plan.segments(), plan.next_record()), (0, 0, 0, 0));
        assert_eq!((plan.backlog(), plan.finished(), plan.oldest(), plan.unmarked()), (None, None, None, None));
        assert_eq!(plan.write_place(), at(0, HEAD));
        assert!(plan.is_settled() && !plan.is_used_up());
        assert_eq!(plan.handle_dropped(), 0);
    }

    #[test]
    fn batches_follow_one_another_until_a_segment_is_long_enough() {
        let mut plan = empty();
        assert_eq!(write(&mut plan, SEGMENT - HEAD - 1, 1), at(0, SEGMENT - 1));
        assert_eq!(plan.write_place(), at(0, SEGMENT - 1), "a byte is missing");
        write(&mut plan, 1, 2);
        assert_eq!(plan.write_place(), at(1, HEAD));
        write(&mut plan, 5, 4);
        assert_eq!((plan.segments(), plan.bytes(), plan.kept_bytes()), (2, SEGMENT + HEAD + 5, SEGMENT + HEAD + 5));
        assert_eq!((plan.records(), plan.next_record()), (7, 7));
    }

    #[test]
    fn what_is_sent_and_confirmed_moves_through_the_segments() {
        let mut plan = three_segments();
        assert_eq!(plan.backlog(), Some(at(0, HEAD)));
        assert_eq!(plan.handle_sent(at(0, SEGMENT + HEAD), 0, 10), 0);
        assert_eq!((plan.backlog(), plan.is_settled()), (Some(at(1, HEAD)), false));
        assert_eq!((plan.finished(), plan.unmarked()), (None, None), "it is on its way");
        plan.handle_confirmed(at(0, SEGMENT + HEAD), 10);
        assert_eq!((plan.records(), plan.is_settled(), plan.finished()), (50, true, Some(0)));
        assert_eq!((plan.handle_dropped(), plan.segments(), plan.records()), (0, 2, 50));
        assert_eq!((plan.finished(), plan.backlog()), (None, Some(at(1, HEAD))));

        assert_eq!(plan.handle_sent(at(2, SEGMENT + HEAD), 10, 50), 0);
        assert_eq!(plan.backlog(), None);
        plan.handle_all_confirmed();
        assert_eq!((plan.is_settled(), plan.finished()), (true, Some(1)));
        assert_eq!((plan.handle_dropped(), plan.finished(), plan.handle_dropped()), (0, Some(2), 0));
        assert_eq!((plan.segments(), plan.write_place()), (0, at(3, HEAD)), "numbers go on");
    }

    #[test]
    fn the_mark_is_written_when_it_has_moved_within_the_oldest_segment() {
        let mut plan = empty();
        let first = write(&mut plan, 100, 10);
        let second = write(&mut plan, 100, 10);
        plan.handle_sent(first, 0, 10);
        plan.handle_confirmed(first, 10);
        assert_eq!(plan.unmarked(), Some(first));
        plan.handle_marked();
        assert_eq!(plan.unmarked(), None);
        plan.handle_sent(second, 10, 10);
        plan.handle_confirmed(second, 10);
        plan.handle_confirmed(first, 0);
        assert_eq!(plan.unmarked(), Some(second), "what comes late does not move it back");

        let mut later = three_segments();
        later.handle_sent(at(1, SEGMENT + HEAD), 0, 30);
        later.handle_confirmed(at(1, SEGMENT + HEAD), 30);
        assert_eq!(later.unmarked(), None, "it lies in another segment");
    }

    #[test]
    fn a_gap_in_the_numbers_is_told_as_missing_records() {
        let mut plan = empty();
        let first = write(&mut plan, 100, 10);
        let second = write(&mut plan, 100, 10);
        assert_eq!(plan.handle_sent(first, 4, 6), 4);
        assert_eq!(plan.records(), 16);
        assert_eq!(plan.handle_sent(second, 10, 10), 0);
        plan.forget(6);
        assert_eq!(plan.records(), 10);
        plan.forget(100);
        assert_eq!(plan.records(), 0);
    }

    #[test]
    fn no_more_records_are_missing_than_there_were() {
        let mut plan = empty();
        let end = write(&mut plan, 100, 10);
        assert_eq!((plan.handle_sent(end, 1_000_000, 1), plan.records()), (10, 0));
    }

    #[test]
    fn what_cannot_be_read_is_missing_to_the_end_of_its_segment() {
        let mut plan = empty();
        let first = write(&mut plan, 100, 10);
        write(&mut plan, SEGMENT, 20);
        write(&mut plan, 100, 30);
        plan.handle_sent(first, 0, 10);
        assert_eq!(plan.handle_unreadable(at(0, HEAD)), 0, "that was read already");
        assert_eq!(plan.handle_unreadable(at(7, HEAD)), 0, "there is no such segment");
        assert_eq!(plan.handle_unreadable(first), 20);
        assert_eq!((plan.records(), plan.backlog()), (40, Some(at(1, HEAD))));
        assert_eq!(plan.handle_sent(at(1, HEAD + 100), 30, 30), 0, "they are not missing twice");
    }

    #[test]
    fn what_was_sent_in_vain_is_sent_again() {
        let mut plan = three_segments();
        plan.handle_sent(at(0, SEGMENT + HEAD), 0, 10);
        plan.handle_sent(at(1, SEGMENT + HEAD), 10, 20);
        plan.rewind(at(2, HEAD), 30);
        assert_eq!(plan.backlog(), Some(at(2, HEAD)), "what was not sent is not skipped");
        plan.rewind(at(1, HEAD), 10);
        assert_eq!(plan.backlog(), Some(at(1, HEAD)));
        assert_eq!(plan.handle_sent(at(1, SEGMENT + HEAD), 10, 20), 0, "nothing is missing before it");
        plan.rewind(at(1, SEGMENT + HEAD), 7);
        assert_eq!(plan.handle_sent(at(2, SEGMENT + HEAD), 30, 30), 0, "it is there already");
    }

    #[test]
    fn the_oldest_segment_makes_room_and_its_unsent_records_are_counted() {
        let mut plan = three_segments();
        assert_eq!(plan.oldest(), Some(at(0, HEAD)));
        assert_eq!((plan.handle_dropped(), plan.records()), (10, 50));
        assert_eq!((plan.backlog(), plan.oldest()), (Some(at(1, HEAD)), Some(at(1, HEAD))));
        assert_eq!(plan.handle_sent(at(1, SEGMENT + HEAD), 10, 20), 0, "those that were dropped are not missing twice");
        assert_eq!(plan.oldest(), Some(at(1, SEGMENT + HEAD)), "nothing of it is unsent");
        assert_eq!((plan.handle_dropped(), plan.records()), (0, 50), "its records are in flight");
        assert_eq!(plan.handle_sent(at(2, 500), 30, 12), 0);
        assert_eq!(plan.oldest(), Some(at(2, 500)), "the rest of it is");
        assert_eq!((plan.handle_dropped(), plan.records()), (18, 32));
        assert_eq!((plan.segments(), plan.write_place(), plan.is_settled()), (0, at(3, HEAD), true));
    }

    #[test]
    fn a_sent_segment_that_is_not_the_oldest_any_more_is_dropped_from_its_end() {
        let mut plan = three_segments();
        plan.handle_sent(at(0, SEGMENT + HEAD), 0, 10);
        plan.handle_sent(at(1, 500), 10, 5);
        assert_eq!(plan.oldest(), Some(at(0, SEGMENT + HEAD)));
    }

    #[test]
    fn numbers_go_on_when_a_spool_has_been_empty() {
        let mut plan = empty();
        let end = write(&mut plan, SEGMENT, 10);
        plan.handle_sent(end, 0, 10);
        plan.handle_confirmed(end, 10);
        assert_eq!(plan.handle_dropped(), 0);
        let end = write(&mut plan, 100, 5);
        assert_eq!((end, plan.backlog(), plan.is_settled()), (at(1, HEAD + 100), Some(at(1, HEAD)), true));
        assert_eq!((plan.unmarked(), plan.next_record()), (None, 15));
        assert_eq!(plan.handle_sent(end, 10, 5), 0, "none is missing before it");
    }

    #[test]
    fn room_is_counted_with_the_head_of_another_segment() {
        let mut plan = three_segments();
        let free = usize::try_from(LIMIT - 3 * (SEGMENT + HEAD) - HEAD).expect("it is small");
        assert!(plan.has_room_for(free) && !plan.has_room_for(free + 1));
        plan.set_limit(LIMIT + 1);
        assert!(plan.has_room_for(free + 1) && !plan.has_room_for(free + 2));
    }

    #[test]
    fn files_that_cannot_be_deleted_take_room_until_there_is_none_to_write_in() {
        let mut plan = three_segments();
        plan.handle_left();
        assert_eq!(plan.handle_dropped(), 10);
        assert_eq!((plan.bytes(), plan.kept_bytes()), (3 * (SEGMENT + HEAD), 2 * (SEGMENT + HEAD)));
        let needed = SEGMENT + HEAD + SPOOL_WRITE_BYTES as u64;
        plan.set_limit(needed);
        assert!(!plan.is_used_up());
        plan.set_limit(needed - 1);
        assert!(plan.is_used_up());
        let mut other = three_segments();
        other.set_limit(1);
        assert!(!other.is_used_up(), "its files can be deleted");
    }

    #[test]
    fn a_spool_that_is_found_goes_on_where_it_was() {
        let found = vec![
            Found { number: 7, mark: 300, end: 900, first_record: 40, end_record: 50 },
            Found { number: 9, mark: HEAD, end: 600, first_record: 52, end_record: 60 },
        ];
        let mut plan = Plan::new(LIMIT, found);
        assert_eq!((plan.records(), plan.next_record(), plan.segments(), plan.bytes()), (20, 60, 2, 1_500));
        assert_eq!((plan.backlog(), plan.unmarked(), plan.is_settled()), (Some(at(7, 300)), None, true));
        assert_eq!(plan.write_place(), at(9, 600));
        assert_eq!(plan.handle_sent(at(7, 900), 40, 10), 0);
        assert_eq!(plan.backlog(), Some(at(9, HEAD)), "there need not be every number");
        assert_eq!((plan.handle_sent(at(9, 600), 52, 8), plan.records()), (2, 18));
    }
}
