//! Which record has become of what: the simulation's books, against which the agent's own counts are held.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::message::Id;
use crate::delivery::losses::{Cause, Loss, Losses};
use crate::record::intake::Lane;

/// Causes that concern records which the intake had taken.
const OF_RECORDS: [Cause; 7] = [
    Cause::SpoolFull,
    Cause::MemoryFull,
    Cause::Unconfirmed,
    Cause::SpoolDamaged,
    Cause::Refused,
    Cause::Poison,
    Cause::NoFields,
];

/// Records that one maker has written into one lane, in order.
#[derive(Debug)]
struct Series {
    lane: Lane,
    data_type: i32,
    fates: Vec<Fate>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    /// Servers that have it, or one that has it several times.
    kept: u8,
    /// A server has had it.
    is_seen: bool,
    /// It is not expected any more.
    is_excused: bool,
    /// When it was last found on the disk, as a number of looks.
    look: u32,
}

impl Fate {
    fn is_missing(self) -> bool {
        self.kept == 0 && !self.is_excused
    }
}

/// What was made, and what has come.
#[derive(Debug, Default)]
pub(super) struct Account {
    series: Vec<Series>,
    /// Records that the intake has taken, that no server has, and that are expected.
    missing: u64,
    /// Records that servers had and have lost, since the agent has looked last.
    forgotten: u64,
    /// The records that servers have lost so far.
    ever_forgotten: Vec<Id>,
    /// Losses that agents before the one that runs have counted.
    told_before: u64,
    /// Losses up to which everything is settled.
    settled: u64,
    told_by_type: BTreeMap<i32, u64>,
    told_in_stream: u64,
    looks: u32,
    pub(super) accepted: u64,
    pub(super) taken: u64,
    pub(super) doubles: u64,
    pub(super) excused: u64,
    pub(super) poison: u64,
}

impl Account {
    /// Begins a series.
    pub(super) fn open(&mut self, lane: Lane, data_type: i32) -> u32 {
        self.series.push(Series { lane, data_type, fates: Vec::new() });
        u32::try_from(self.series.len() - 1).unwrap_or(u32::MAX)
    }

    /// The record that is next in a series.
    pub(super) fn next(&self, series: u32) -> Id {
        let number = self.series.get(series as usize).map_or(0, |series| series.fates.len());
        Id { series, number: u32::try_from(number).unwrap_or(u32::MAX) }
    }

    pub(super) fn data_type(&self, series: u32) -> i32 {
        self.series.get(series as usize).map_or(0, |series| series.data_type)
    }

    /// The intake has taken the next record of a series.
    pub(super) fn accept(&mut self, series: u32) {
        if let Some(series) = self.series.get_mut(series as usize) {
            series.fates.push(Fate::default());
            self.missing += 1;
            self.accepted += 1;
        }
    }

    /// A server has taken a record, behind `last` of the same series on the same connection, if there was one. Says what is wrong
    /// with that, unless records `may_overtake` each other.
    pub(super) fn keep(&mut self, id: Id, last: &mut Option<u32>, may_overtake: bool) -> Result<(), String> {
        let Some(series) = self.series.get_mut(id.series as usize) else {
            return Err(format!("a record of series {} arrived, which nobody has written", id.series));
        };
        let Some(fate) = series.fates.get_mut(id.number as usize) else {
            return Err(format!("record {} of series {} arrived, which nobody has written", id.number, id.series));
        };
        self.missing -= u64::from(fate.is_missing());
        self.taken += u64::from(!fate.is_seen);
        self.doubles += u64::from(fate.is_seen);
        fate.kept = fate.kept.saturating_add(1);
        if core::mem::replace(&mut fate.is_seen, true) || series.lane == Lane::Urgent {
            return Ok(());
        }
        let before = last.replace(id.number);
        match before {
            Some(before) if before > id.number && !may_overtake => {
                Err(format!("record {} of series {} arrived behind record {before}", id.number, id.series))
            }
            _ => Ok(()),
        }
    }

    /// A server has lost a record that it had taken.
    pub(super) fn forget(&mut self, id: Id) {
        let fate = self.series.get_mut(id.series as usize).and_then(|series| series.fates.get_mut(id.number as usize));
        if let Some(fate) = fate.filter(|fate| fate.kept > 0) {
            fate.kept -= 1;
            let is_missing = fate.is_missing();
            self.missing += u64::from(is_missing);
            self.forgotten += u64::from(is_missing);
            self.ever_forgotten.push(id);
        }
    }

    /// A server had a record for longer than the protocol lets an agent wait for it, and has lost it.
    pub(super) fn excuse(&mut self, id: Id) {
        let fate = self.series.get_mut(id.series as usize).and_then(|series| series.fates.get_mut(id.number as usize));
        if let Some(fate) = fate.filter(|fate| fate.is_missing()) {
            fate.is_excused = true;
            self.missing -= 1;
            self.excused += 1;
        }
    }

    /// A server has lost a record that the agent thinks it has, and sends again as long as it has room.
    pub(super) fn expect_again(&mut self, id: Id) {
        self.ever_forgotten.push(id);
        self.forgotten += u64::from(self.is_missing(id));
    }

    /// What servers have lost is not expected again.
    pub(super) fn excuse_forgotten(&mut self) {
        core::mem::take(&mut self.ever_forgotten).into_iter().for_each(|id| self.excuse(id));
    }

    /// The agent has heard of all ends of connections so far.
    pub(super) fn settle_forgotten(&mut self) {
        self.forgotten = 0;
    }

    /// The agent reports these losses in its stream.
    pub(super) fn tell(&mut self, losses: &[Loss]) {
        for Loss { cause, row } in losses.iter().filter(|loss| OF_RECORDS.contains(&loss.cause)) {
            let _ = cause;
            *self.told_by_type.entry(row.data_type).or_default() += row.records;
            self.told_in_stream += row.records;
        }
    }

    fn told(&self, losses: Option<&Losses>) -> u64 {
        let now = losses.map_or(0, |losses| OF_RECORDS.iter().map(|cause| losses.total(*cause)).sum());
        self.told_before + now
    }

    /// An agent is no more, and with it what only its memory held: at most so many records. `on_disk` are those that the spool
    /// keeps. Everything else has to be accounted for.
    pub(super) fn handle_agent_gone(
        &mut self,
        losses: &Losses,
        in_memory: u64,
        on_disk: impl Iterator<Item = Id>,
    ) -> Result<(), String> {
        self.looks += 1;
        let mut kept = 0;
        for id in on_disk {
            let series = self.series.get_mut(id.series as usize);
            if let Some(fate) = series.and_then(|series| series.fates.get_mut(id.number as usize)) {
                kept += u64::from(fate.is_missing() && fate.look != self.looks);
                fate.look = self.looks;
            }
        }
        let told = self.told(Some(losses));
        let known = told - self.settled + kept + in_memory + self.forgotten;
        let missing = self.missing;
        let which = if missing > known { self.missing() } else { String::new() };
        for series in &mut self.series {
            for fate in series.fates.iter_mut().filter(|fate| fate.is_missing() && fate.look != self.looks) {
                fate.is_excused = true;
                self.missing -= 1;
                self.excused += 1;
            }
        }
        self.poison += losses.total(Cause::Poison);
        (self.told_before, self.settled, self.forgotten) = (told, told, 0);
        if missing > known {
            return Err(format!(
                "{missing} records have not arrived, but {} were told to be lost, {kept} are on the disk and {in_memory} in memory; these:{which}",
                told - self.settled
            ));
        }
        Ok(())
    }

    /// Records that no server has, that are expected, and that were not told to be lost.
    pub(super) fn unexplained(&self, losses: Option<&Losses>) -> u64 {
        self.missing.saturating_sub(self.told(losses) - self.settled)
    }

    /// Which records are missing, as runs of numbers.
    pub(super) fn missing(&self) -> String {
        let mut text = String::new();
        for (at, series) in self.series.iter().enumerate() {
            let missing = |number: &usize| series.fates[*number].is_missing();
            let mut numbers = (0..series.fates.len()).filter(missing).peekable();
            while let Some(first) = numbers.next() {
                let mut last = first;
                while let Some(next) = numbers.next_if(|next| *next == last + 1) {
                    last = next;
                }
                text.push_str(&format!(" {at}.{first}-{last}"));
            }
        }
        text
    }

    /// Whether a record was written, is expected, and no server has it.
    pub(super) fn is_missing(&self, id: Id) -> bool {
        let series = self.series.get(id.series as usize);
        series.and_then(|series| series.fates.get(id.number as usize)).is_some_and(|fate| fate.is_missing())
    }

    /// Records that were told to be lost.
    pub(super) fn lost(&self, losses: Option<&Losses>) -> u64 {
        self.told(losses)
    }

    pub(super) fn poison(&self, losses: Option<&Losses>) -> u64 {
        self.poison + losses.map_or(0, |losses| losses.total(Cause::Poison))
    }

    /// Says what is missing of which kind, if it was not told of that kind.
    pub(super) fn check_kinds(&self, losses: Option<&Losses>) -> Result<(), String> {
        let mut by_type = BTreeMap::<i32, u64>::new();
        for series in &self.series {
            let missing = series.fates.iter().filter(|fate| fate.is_missing()).count() as u64;
            *by_type.entry(series.data_type).or_default() += missing;
        }
        let told = |data_type: &i32| self.told_by_type.get(data_type).copied().unwrap_or(0);
        let untold: u64 = by_type.iter().map(|(kind, missing)| missing.saturating_sub(told(kind))).sum();
        let blurred = told(&0) + (self.told(losses).saturating_sub(self.told_in_stream));
        if untold > blurred {
            let (told, missing) = (&self.told_by_type, self.missing());
            return Err(format!("missing are {by_type:?} by data type, told to be lost {told:?}; these:{missing}"));
        }
        Ok(())
    }
}
