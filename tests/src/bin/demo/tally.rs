//! Counts of what the center has received.

use elklet_center::message::{AGENT_HEARTBEAT, Batch, PLUGIN_HEARTBEAT, TASK_REPORT};
use prost::Message;
use std::collections::BTreeMap;

use crate::event::{EXEC, EXIT};

/// Bytes before each record in a plugin's pipe.
const FRAME_PREFIX: u64 = 4;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    records: BTreeMap<i32, u64>,
    pub(crate) messages: u64,
    /// Bytes on the wire: compressed, with the messages' prefixes.
    pub(crate) wire_bytes: u64,
    pub(crate) decoded_bytes: u64,
    /// Bytes that the plugin's records took in its pipe. The agent passes their bytes on as they are, so that they can
    /// be counted here.
    pub(crate) frame_bytes: u64,
}

impl Tally {
    pub(crate) fn take(&mut self, batch: &Batch) {
        self.messages += 1;
        self.wire_bytes += batch.wire_len as u64;
        self.decoded_bytes += batch.decoded_len as u64;
        for record in &batch.data.records {
            *self.records.entry(record.data_type).or_default() += 1;
            if !is_agents_own(record.data_type) {
                self.frame_bytes += FRAME_PREFIX + record.encoded_len() as u64;
            }
        }
    }

    pub(crate) fn all_records(&self) -> u64 {
        self.records.values().sum()
    }

    /// Returns the number of records that come from the plugin.
    pub(crate) fn plugin_records(&self) -> u64 {
        self.records.iter().filter(|(data_type, _)| !is_agents_own(**data_type)).map(|(_, count)| count).sum()
    }

    /// Lists the counts as `exec 12, exit 13, ...`.
    pub(crate) fn by_type(&self) -> String {
        let parts = self.records.iter().map(|(data_type, count)| match *data_type {
            EXEC => format!("exec {count}"),
            EXIT => format!("exit {count}"),
            AGENT_HEARTBEAT => format!("agent's heartbeats {count}"),
            PLUGIN_HEARTBEAT => format!("plugin's heartbeats {count}"),
            TASK_REPORT => format!("reports {count}"),
            other => format!("type {other}: {count}"),
        });
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// Returns true for the data types that the agent writes itself. procwatch would answer tasks with the last one, but
/// gets none here.
fn is_agents_own(data_type: i32) -> bool {
    matches!(data_type, AGENT_HEARTBEAT | PLUGIN_HEARTBEAT | TASK_REPORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elklet_center::message::{PackagedData, Record};

    #[test]
    fn frames_of_the_plugin_are_counted_as_they_lay_in_its_pipe() {
        let record = |data_type| Record { data_type, timestamp: 1, data: vec![0; 10].into() };
        let data =
            PackagedData { records: [EXEC, EXIT, EXIT, AGENT_HEARTBEAT].map(record).into(), ..Default::default() };
        let batch = Batch { stream: 1, index: 0, svr_time: 1, wire_len: 50, decoded_len: 100, data };
        let mut tally = Tally::default();
        tally.take(&batch);
        tally.take(&batch);
        // A prefix, two bytes each for a small type and a small time, and two before ten bytes of payload.
        assert_eq!(tally.frame_bytes, 6 * (4 + 2 + 2 + 2 + 10));
        assert_eq!((tally.plugin_records(), tally.all_records()), (6, 8));
        assert_eq!((tally.messages, tally.wire_bytes, tally.decoded_bytes), (2, 100, 200));
        assert_eq!(tally.by_type(), "exec 2, exit 4, agent's heartbeats 2");
    }
}
