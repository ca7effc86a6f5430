//! What agents have sent, for tests to look at. It keeps numbered records as counts, and all others as they arrived.
//!
//! An agent that lost its stream does not know which of its last messages have arrived, and replays them on the next
//! one. The counts tell such repetitions from those within one stream, which must not happen.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use super::types::NUMBERED;
use crate::center::{AGENT_HEARTBEAT, Batch, PLUGIN_HEARTBEAT, Record};

/// The records of all agents.
#[derive(Debug, Default)]
pub struct Records {
    agents: Mutex<BTreeMap<String, AgentRecords>>,
}

/// The records of one agent.
#[derive(Debug, Default)]
pub struct AgentRecords {
    /// The numbered records, by their run.
    pub series: BTreeMap<String, Series>,
    /// Which numbers of each run have come at all, in whatever order, as runs of bits.
    seen: BTreeMap<String, Vec<u64>>,
    /// The other records, in the order in which they arrived, without repetitions on later streams.
    pub others: Vec<Taken>,
    /// Every message without its records, in the order in which they arrived.
    pub batches: Vec<Batch>,
    /// The stream on which each record arrived first.
    first: HashMap<Record, u64>,
}

/// A record and where it arrived.
#[derive(Debug, Clone)]
pub struct Taken {
    /// A number for the stream, different for each.
    pub stream: u64,
    /// The message's number in its stream, from 0.
    pub message: u64,
    /// The record.
    pub record: Record,
}

/// The numbered records of one run. They have to arrive in order, and on one stream only once.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Series {
    /// Those that arrived in order, whether or not some were missing before them.
    pub received: u64,
    /// Those that had not arrived when later ones did.
    pub missing: u64,
    /// Those that arrived after later ones, or a second time, on the same stream.
    pub misplaced: u64,
    /// Those that arrived again on a later stream.
    pub repeated: u64,
    /// The stream of the latest, and how many had arrived when it began.
    stream: (u64, u64),
}

impl Series {
    fn take(&mut self, stream: u64, seq: u64) {
        let next = self.received + self.missing;
        if stream != self.stream.0 {
            self.stream = (stream, next);
        }
        match seq.checked_sub(next) {
            Some(skipped) => {
                self.missing += skipped;
                self.received += 1;
            }
            None if seq < self.stream.1 => self.repeated += 1,
            None => self.misplaced += 1,
        }
    }

    /// Returns true if exactly the first `count` have arrived, in order. Repetitions on later streams are no fault.
    #[must_use]
    pub fn is_whole(&self, count: u64) -> bool {
        (self.received, self.missing, self.misplaced) == (count, 0, 0)
    }
}

impl AgentRecords {
    /// Returns a run's numbered records.
    #[must_use]
    pub fn run(&self, name: &str) -> Series {
        self.series.get(name).copied().unwrap_or_default()
    }

    /// Returns how many records of a run have come at all, however often and in whatever order.
    #[must_use]
    pub fn distinct(&self, name: &str) -> u64 {
        self.seen.get(name).map_or(0, |words| words.iter().map(|word| u64::from(word.count_ones())).sum())
    }

    /// Returns the other records of a data type, as fields.
    ///
    /// # Panics
    /// When a payload cannot be decoded.
    pub fn of_type(&self, data_type: i32) -> impl Iterator<Item = BTreeMap<String, String>> {
        let these = self.others.iter().filter(move |taken| taken.record.data_type == data_type);
        these.map(|taken| taken.record.fields().expect("its payload is one"))
    }

    /// Returns the values of a field in the records of a data type.
    pub fn values(&self, data_type: i32, field: &str) -> Vec<String> {
        self.of_type(data_type).map(|mut fields| fields.remove(field).unwrap_or_default()).collect()
    }

    fn take(&mut self, stream: u64, batch: &Batch) {
        for record in &batch.data.records {
            match number(record) {
                Some((run, seq)) => self.take_number(stream, &run, seq),
                None => self.take_other(stream, batch.index, record.clone()),
            }
        }
        let mut head = batch.clone();
        head.data.records = Vec::new();
        self.batches.push(head);
    }

    pub(super) fn take_number(&mut self, stream: u64, run: &str, seq: u64) {
        match self.series.get_mut(run) {
            Some(series) => series.take(stream, seq),
            None => self.series.entry(run.to_owned()).or_default().take(stream, seq),
        }
        let words = match self.seen.get_mut(run) {
            Some(words) => words,
            None => self.seen.entry(run.to_owned()).or_default(),
        };
        let word = usize::try_from(seq / 64).expect("a run's numbers are small");
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words[word] |= 1 << (seq % 64);
    }

    pub(super) fn take_other(&mut self, stream: u64, message: u64, record: Record) {
        let is_heartbeat = matches!(record.data_type, AGENT_HEARTBEAT | PLUGIN_HEARTBEAT);
        if is_heartbeat || *self.first.entry(record.clone()).or_insert(stream) == stream {
            self.others.push(Taken { stream, message, record });
        }
    }
}

/// Returns the run and the number of a numbered record.
pub(super) fn number(record: &Record) -> Option<(String, u64)> {
    if record.data_type != NUMBERED {
        return None;
    }
    let mut fields = record.fields().ok()?;
    Some((fields.remove("run")?, fields.get("seq")?.parse().ok()?))
}

impl Records {
    /// `center` tells a site's centers apart, because each counts its streams from 1.
    pub(super) fn take(&self, center: u64, batch: &Batch) {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.entry(batch.data.agent_id.clone()).or_default().take((center << 32) + batch.stream, batch);
    }

    pub(super) fn of<T>(&self, agent_id: &str, look: impl FnOnce(&AgentRecords) -> T) -> T {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        look(agents.entry(agent_id.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::Series;

    fn series(numbers: &[(u64, u64)]) -> Series {
        let mut series = Series::default();
        numbers.iter().for_each(|&(stream, seq)| series.take(stream, seq));
        series
    }

    #[test]
    fn a_series_knows_what_is_wrong_with_it() {
        assert!(series(&[]).is_whole(0) && series(&[(1, 0), (1, 1), (1, 2)]).is_whole(3));
        assert!(!series(&[(1, 0), (1, 1)]).is_whole(3));
        let gap = series(&[(1, 0), (1, 3), (1, 4)]);
        assert_eq!((gap.received, gap.missing, gap.misplaced), (3, 2, 0));
        let twice = series(&[(1, 0), (1, 1), (1, 1), (1, 2)]);
        assert_eq!((twice.received, twice.missing, twice.misplaced), (3, 0, 1));
        let late = series(&[(1, 1), (1, 0)]);
        assert_eq!((late.received, late.missing, late.misplaced), (1, 1, 1));
    }

    #[test]
    fn a_later_stream_may_repeat_what_earlier_ones_had() {
        let again = series(&[(1, 0), (1, 1), (1, 2), (3, 1), (3, 2), (3, 3)]);
        assert!(again.is_whole(4) && again.repeated == 2, "{again:?}");
        let twice = series(&[(1, 0), (2, 0), (2, 1), (2, 1)]);
        assert!(!twice.is_whole(2) && (twice.repeated, twice.misplaced) == (1, 1), "{twice:?}");
    }
}
