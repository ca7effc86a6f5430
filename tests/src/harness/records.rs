//! What agents have sent, kept for tests to look at: numbered records as counts, all others as they came.
//!
//! An agent that lost its stream does not know what of the last messages has arrived, and sends them again on the next one.
//! Such repetitions are told from repetitions on one stream, which there must not be.

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
    /// Numbered records by their run.
    pub series: BTreeMap<String, Series>,
    /// The others, in the order in which they came, without repetitions on later streams.
    pub others: Vec<Taken>,
    /// Every message without its records: in the order in which they came.
    pub batches: Vec<Batch>,
    /// The stream on which a record came first.
    first: HashMap<Record, u64>,
}

/// A record and where it was.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The stream: another number for each.
    pub stream: u64,
    /// The message's number in its stream, from 0.
    pub message: u64,
    /// The record.
    pub record: Record,
}

/// Numbered records of one run, which are to come in order and, on one stream, once.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Series {
    /// Those that came in their order, whether some were missing before them or not.
    pub received: u64,
    /// Those that did not come before later ones did.
    pub missing: u64,
    /// Those that came after later ones, or once more, on the same stream.
    pub misplaced: u64,
    /// Those that came again on a later stream.
    pub repeated: u64,
    /// The stream of the latest, and how many had come when it began.
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

    /// Whether exactly the first `count` have come in order; repetitions on later streams are no fault.
    #[must_use]
    pub fn is_whole(&self, count: u64) -> bool {
        (self.received, self.missing, self.misplaced) == (count, 0, 0)
    }
}

impl AgentRecords {
    /// A run's numbered records.
    #[must_use]
    pub fn run(&self, name: &str) -> Series {
        self.series.get(name).copied().unwrap_or_default()
    }

    /// The other records of a data type, as fields.
    ///
    /// # Panics
    /// When a payload is none.
    pub fn of_type(&self, data_type: i32) -> impl Iterator<Item = BTreeMap<String, String>> {
        let these = self.others.iter().filter(move |taken| taken.record.data_type == data_type);
        these.map(|taken| taken.record.fields().expect("its payload is one"))
    }

    /// What the records of a data type have in a field.
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
    }

    pub(super) fn take_other(&mut self, stream: u64, message: u64, record: Record) {
        let is_heartbeat = matches!(record.data_type, AGENT_HEARTBEAT | PLUGIN_HEARTBEAT);
        if is_heartbeat || *self.first.entry(record.clone()).or_insert(stream) == stream {
            self.others.push(Taken { stream, message, record });
        }
    }
}

/// The run and the number of a numbered record.
pub(super) fn number(record: &Record) -> Option<(String, u64)> {
    if record.data_type != NUMBERED {
        return None;
    }
    let mut fields = record.fields().ok()?;
    Some((fields.remove("run")?, fields.get("seq")?.parse().ok()?))
}

impl Records {
    /// `center` tells a site's centers apart, each of which counts its streams from 1.
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
