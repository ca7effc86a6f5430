//! Lost records by cause, plugin and data type: counted for the heartbeat and reported in the stream itself.

use alloc::vec::Vec;
use core::mem;

use crate::limits::{LOSS_REPORT_INTERVAL_MS, LOSS_ROWS};
use crate::record::manifest::{Row, Source};
use crate::time::Millis;

/// Why records were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The spool was full and dropped them for newer ones.
    SpoolFull,
    /// Memory was full, without a usable spool, and dropped them for newer ones.
    MemoryFull,
    /// The stream broke before the server had taken them, and nothing had kept them.
    Unconfirmed,
    /// The spool's files no longer hold what was written.
    SpoolDamaged,
    /// The server refuses a message with only this record in it.
    Refused,
    /// The server ends each stream over this record and no other.
    Poison,
    /// A plugin's frame was longer than a record may be.
    FrameTooLong,
    /// A plugin's frame was no record.
    FrameInvalid,
    /// A plugin's record was of a type that only the agent sends.
    ReservedType,
    /// A plugin's record had no fields, although the server needs some in records of its type.
    NoFields,
    /// A plugin ended in the middle of a frame.
    FrameTruncated,
    /// The agent's own reports found the buffer full.
    OwnNoRoom,
}

impl Cause {
    /// All causes, in the order of their counters.
    pub const ALL: [Self; 12] = [
        Self::SpoolFull,
        Self::MemoryFull,
        Self::Unconfirmed,
        Self::SpoolDamaged,
        Self::Refused,
        Self::Poison,
        Self::FrameTooLong,
        Self::FrameInvalid,
        Self::ReservedType,
        Self::NoFields,
        Self::FrameTruncated,
        Self::OwnNoRoom,
    ];

    /// The cause's name where a loss is told (data type 1012). The counters of heartbeats and metrics have names of their own.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SpoolFull => "spool_full",
            Self::MemoryFull => "memory_full",
            Self::Unconfirmed => "unconfirmed",
            Self::SpoolDamaged => "spool_damaged",
            Self::Refused => "refused",
            Self::Poison => "poison",
            Self::FrameTooLong => "frame_too_long",
            Self::FrameInvalid => "frame_invalid",
            Self::ReservedType => "reserved_type",
            Self::NoFields => "no_fields",
            Self::FrameTruncated => "frame_truncated",
            Self::OwnNoRoom => "own_no_room",
        }
    }
}

/// Records that were lost for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// The reason.
    pub cause: Cause,
    /// The records. Their source is [`Source::OTHER`] and their data type 0 if these are not known.
    pub row: Row,
}

/// All losses since the start, and those that are still to be reported.
#[derive(Debug, Default)]
pub struct Losses {
    waiting: Vec<Loss>,
    totals: [u64; Cause::ALL.len()],
    told_at: Option<Millis>,
}

impl Losses {
    /// Counts lost records.
    pub fn add(&mut self, cause: Cause, row: Row) {
        if row.records == 0 {
            return;
        }
        if let Some(total) = self.totals.get_mut(cause as usize) {
            *total += row.records;
        }
        let kind = |loss: &Loss, row: &Row| loss.cause == cause && loss.row.is_like(row);
        let rest = Row { source: Source::OTHER, data_type: 0, ..row };
        if let Some(known) = self.waiting.iter_mut().find(|loss| kind(loss, &row)) {
            known.row.merge(&row);
        } else if self.waiting.len() < LOSS_ROWS {
            self.waiting.push(Loss { cause, row });
        } else if let Some(known) = self.waiting.iter_mut().find(|loss| kind(loss, &rest)) {
            known.row.merge(&rest);
        } else if let Some(last) = self.waiting.last_mut() {
            // The last row no longer tells these causes apart; the totals still do.
            *last = Loss { cause: last.cause, row: Row { source: Source::OTHER, data_type: 0, ..last.row } };
            last.row.merge(&rest);
        }
    }

    /// Records lost for a reason since the start.
    #[must_use]
    pub fn total(&self, cause: Cause) -> u64 {
        self.totals.get(cause as usize).copied().unwrap_or(0)
    }

    /// Records lost for any reason since the start.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.totals.iter().sum()
    }

    /// When to call [`Losses::take`]. It waits some seconds, so that losses are reported together.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Millis> {
        let due = self.told_at.map_or(Millis(0), |at| at + LOSS_REPORT_INTERVAL_MS);
        (!self.waiting.is_empty()).then_some(due)
    }

    /// Takes the losses that are to be reported now.
    pub fn take(&mut self, now: Millis) -> Vec<Loss> {
        self.told_at = Some(now);
        mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(data_type: i32, records: u64) -> Row {
        Row { source: Source::AGENT, data_type, records, first: 5, last: 6 }
    }

    #[test]
    fn losses_of_a_kind_are_told_together_and_not_too_often() {
        let mut losses = Losses::default();
        assert_eq!(losses.poll_timeout(), None);
        losses.add(Cause::SpoolFull, row(59, 2));
        losses.add(Cause::SpoolFull, Row { first: 1, ..row(59, 3) });
        losses.add(Cause::Refused, row(59, 1));
        losses.add(Cause::Refused, row(59, 0));
        assert_eq!(losses.poll_timeout(), Some(Millis(0)));
        let told = losses.take(Millis(100));
        assert_eq!(told[0], Loss { cause: Cause::SpoolFull, row: Row { first: 1, ..row(59, 5) } });
        assert_eq!((told.len(), losses.total(Cause::SpoolFull), losses.sum()), (2, 5, 6));
        losses.add(Cause::Refused, row(1, 1));
        assert_eq!(losses.poll_timeout(), Some(Millis(100 + LOSS_REPORT_INTERVAL_MS)));
    }

    #[test]
    fn too_many_kinds_are_still_counted_to_the_record() {
        let mut losses = Losses::default();
        for kind in 0..3 * LOSS_ROWS {
            losses.add(Cause::ALL[kind % 9], row(i32::try_from(kind).expect("small"), 2));
        }
        assert_eq!(losses.sum(), 6 * LOSS_ROWS as u64);
        let told = losses.take(Millis(0));
        assert_eq!(told.len(), LOSS_ROWS);
        assert_eq!(told.iter().map(|loss| loss.row.records).sum::<u64>(), losses.sum());
    }

    #[test]
    fn causes_are_named_as_users_know_them() {
        let names = Cause::ALL.map(Cause::name);
        let expected = [
            "spool_full",
            "memory_full",
            "unconfirmed",
            "spool_damaged",
            "refused",
            "poison",
            "frame_too_long",
            "frame_invalid",
            "reserved_type",
            "no_fields",
            "frame_truncated",
            "own_no_room",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn every_cause_is_counted_for_itself() {
        let mut losses = Losses::default();
        for (cause, records) in Cause::ALL.into_iter().zip(1..) {
            losses.add(cause, row(1, records));
            losses.add(cause, row(2, 10));
        }
        assert_eq!(Cause::ALL.map(|cause| losses.total(cause)), [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]);
        let told = losses.take(Millis(7));
        assert_eq!((told.len(), losses.poll_timeout()), (24, None));
        assert!(losses.take(Millis(8)).is_empty() && losses.sum() == 198, "the totals stay");
    }

    #[test]
    fn kinds_without_a_row_of_their_own_share_the_last() {
        let mut losses = Losses::default();
        let kinds = i32::try_from(LOSS_ROWS).expect("few");
        (1..=kinds).for_each(|kind| losses.add(Cause::Refused, row(kind, 1)));
        losses.add(Cause::SpoolFull, row(1, 10));
        losses.add(Cause::Refused, Row { first: 2, last: 9, ..row(kinds + 1, 20) });
        losses.add(Cause::Refused, row(1, 40));
        let told = losses.take(Millis(0));
        assert_eq!(told.len(), LOSS_ROWS);
        assert_eq!(told[0], Loss { cause: Cause::Refused, row: row(1, 41) });
        assert_eq!(told[1], Loss { cause: Cause::Refused, row: row(2, 1) });
        let rest = Row { source: Source::OTHER, data_type: 0, records: 31, first: 2, last: 9 };
        assert_eq!(told[LOSS_ROWS - 1], Loss { cause: Cause::Refused, row: rest });
    }

    #[test]
    fn records_of_unknown_kind_take_in_those_without_a_row_of_their_own() {
        let mut losses = Losses::default();
        let unknown = Row { source: Source::OTHER, ..row(0, 1) };
        losses.add(Cause::Refused, unknown);
        let kinds = i32::try_from(LOSS_ROWS).expect("few");
        (1..=kinds).for_each(|kind| losses.add(Cause::Refused, row(kind, 10)));
        let told = losses.take(Millis(0));
        assert_eq!(told[0].row, Row { records: 11, ..unknown });
        assert_eq!(told[LOSS_ROWS - 1].row, row(kinds - 1, 10));
    }
}
