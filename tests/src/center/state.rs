//! What the center knows. Tests look at it, and the HTTP port reports it.

use super::records::{AGENT_HEARTBEAT, Batch, PLUGIN_HEARTBEAT, Record};
use super::transfer::Live;
use serde_json::{Map, Number, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Log lines kept.
const LOG_LINES: usize = 200;

/// Everything that the center has seen since it started.
#[derive(Debug, Default)]
pub struct State {
    /// Every agent that ever sent a first message, by the id in that message, connected or not.
    pub agents: BTreeMap<String, Agent>,
    /// Every uploaded file, in the order in which the uploads ended.
    pub uploads: Vec<Upload>,
    /// Counts over all agents.
    pub totals: Totals,
    /// The center's latest log lines, at most 200.
    pub log: VecDeque<String>,
    pub(crate) live: BTreeMap<String, Live>,
}

/// Counts over all agents since the center started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// TCP connections accepted.
    pub connections: u64,
    /// Connections that failed in TLS or the HTTP/2 preface.
    pub failed_handshakes: u64,
    /// Transfer streams opened, including those that were refused.
    pub streams: u64,
    /// Transfer streams refused because the connection limit was reached.
    pub out_of_tokens: u64,
    /// Transfer streams refused because their agent was connected already.
    pub conflicts: u64,
    /// Transfer streams ended because of a message that could not be taken.
    pub bad_messages: u64,
    /// Connections ended for too many pings.
    pub too_many_pings: u64,
}

/// What is known of one agent.
#[derive(Debug, Clone, Default)]
pub struct Agent {
    /// True while it has an open stream.
    pub connected: bool,
    /// The peer address of its latest stream.
    pub peer: Option<SocketAddr>,
    /// Streams accepted.
    pub streams: u64,
    /// Messages taken, over all streams.
    pub messages: u64,
    /// Bytes of these messages on the wire, with their prefixes.
    pub wire_bytes: u64,
    /// Bytes of these messages after decompression.
    pub decoded_bytes: u64,
    /// Commands sent to it: configuration, tasks, and commands that a test injected.
    pub commands: u64,
    /// Records by data type.
    pub counts: BTreeMap<i32, Count>,
    /// The latest record 1000 of the latest stream.
    pub heartbeat: Option<Heartbeat>,
    /// The latest record 1001 of each plugin in the latest stream.
    pub plugins: BTreeMap<String, Heartbeat>,
    /// When the latest stream was opened, in seconds since 1970.
    pub create_at: u64,
}

/// Records of one data type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub records: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// A heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// The payload's fields.
    pub fields: BTreeMap<String, String>,
    /// When it came, in seconds since 1970.
    pub at: u64,
    /// The addresses, name and product in the same message, under AgentCenter's names.
    pub host: BTreeMap<&'static str, Value>,
}

/// An uploaded file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The token of its first message.
    pub token: String,
    /// The path at which the center has stored it.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// What went wrong, if anything.
    pub error: Option<String>,
    /// When the upload ended, in seconds since 1970.
    pub svr_time: u64,
}

impl State {
    /// Returns what is known of an agent: all zeros if it was never seen.
    pub fn agent(&self, id: &str) -> Agent {
        self.agents.get(id).cloned().unwrap_or_default()
    }

    /// Returns how many records of a data type an agent has sent.
    pub fn records(&self, agent_id: &str, data_type: i32) -> u64 {
        self.agents.get(agent_id).map_or(0, |agent| agent.records(data_type))
    }

    /// Returns the ids of the connected agents.
    pub fn connected(&self) -> impl Iterator<Item = &str> {
        self.live.keys().map(String::as_str)
    }

    /// Counts a message under the id that its stream goes by.
    pub(crate) fn take(&mut self, agent_id: &str, batch: &Batch) {
        let agent = self.agents.entry(agent_id.to_owned()).or_default();
        agent.messages += 1;
        agent.wire_bytes += batch.wire_len as u64;
        agent.decoded_bytes += batch.decoded_len as u64;
        for record in &batch.data.records {
            let count = agent.counts.entry(record.data_type).or_default();
            count.records += 1;
            count.bytes += record.data.len() as u64;
            if let AGENT_HEARTBEAT | PLUGIN_HEARTBEAT = record.data_type {
                agent.take_heartbeat(batch, record);
            }
        }
    }

    pub(crate) fn note(&mut self, line: String) {
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }
}

impl Agent {
    /// Returns how many records of a data type it has sent.
    pub fn records(&self, data_type: i32) -> u64 {
        self.counts.get(&data_type).map_or(0, |count| count.records)
    }

    /// Returns how many records it has sent.
    pub fn all_records(&self) -> u64 {
        self.counts.values().map(|count| count.records).sum()
    }

    fn take_heartbeat(&mut self, batch: &Batch, record: &Record) {
        let Ok(fields) = record.fields() else { return };
        let data = &batch.data;
        let host = BTreeMap::from([
            ("agent_id", json!(data.agent_id)),
            ("intranet_ipv4", json!(data.intranet_ipv4)),
            ("extranet_ipv4", json!(data.extranet_ipv4)),
            ("intranet_ipv6", json!(data.intranet_ipv6)),
            ("extranet_ipv6", json!(data.extranet_ipv6)),
            ("hostname", json!(data.hostname)),
            ("version", json!(data.version)),
            ("product", json!(data.product)),
        ]);
        if record.data_type == AGENT_HEARTBEAT {
            self.heartbeat = Some(Heartbeat { fields, at: batch.svr_time, host });
        } else if let Some(name) = fields.get("name").cloned() {
            self.plugins.insert(name, Heartbeat { fields, at: batch.svr_time, host: BTreeMap::new() });
        }
    }

    /// Returns the agent as `/conn/stat` reports it.
    pub fn stat(&self) -> Value {
        let agent_info = self.heartbeat.as_ref().map_or_else(Map::new, |heartbeat| {
            let mut info = heartbeat.info(&TEXT_OF_AGENT);
            info.insert("agent_addr".into(), json!(self.peer.map(|peer| peer.to_string())));
            info.insert("create_at".into(), json!(self.create_at));
            info
        });
        let plugins_info: Vec<_> = self.plugins.values().map(|plugin| plugin.info(&TEXT_OF_PLUGIN)).collect();
        json!({ "agent_info": agent_info, "plugins_info": plugins_info })
    }
}

/// Fields that stay text even where they look like numbers.
const TEXT_OF_AGENT: [&str; 7] =
    ["platform_version", "version", "host_serial", "host_id", "host_model", "host_vendor", "cpu_name"];
const TEXT_OF_PLUGIN: [&str; 1] = ["pversion"];

impl Heartbeat {
    fn info(&self, text: &[&str]) -> Map<String, Value> {
        let fields = self.fields.iter().map(|(name, value)| {
            let number = if text.contains(&name.as_str()) { None } else { number(value) };
            (name.clone(), number.map_or_else(|| Value::from(value.as_str()), Value::Number))
        });
        let host = self.host.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        fields.chain(host).chain([("last_heartbeat_time".to_owned(), json!(self.at))]).collect()
    }
}

/// Returns the finite number that a text holds, as Go writes a float64: without a fraction if it has none.
fn number(text: &str) -> Option<Number> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let value: f64 = text.parse().ok()?;
    if value.fract() == 0.0 && value.abs() < EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of less than 54 bits")]
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_go_writes_them() {
        let written = |text| number(text).map(|number| number.to_string());
        assert_eq!(written("1024").as_deref(), Some("1024"));
        assert_eq!(written("0.50000000").as_deref(), Some("0.5"));
        assert_eq!(written("3.00000000").as_deref(), Some("3"));
        assert_eq!(written("-1").as_deref(), Some("-1"));
        assert_eq!(written("NaN"), None);
        assert_eq!(written("+Inf"), None);
        assert_eq!(written(""), None);
        assert_eq!(written("5.15.0-91-generic"), None);
        assert_eq!(written("6.1").as_deref(), Some("6.1"));
    }

    #[test]
    fn some_fields_stay_text() {
        let fields = [("version", "1"), ("cpu_name", "7"), ("rss", "7")];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let agent = Agent { heartbeat: Some(Heartbeat { fields, ..Default::default() }), ..Default::default() };
        let info = &agent.stat()["agent_info"];
        assert_eq!((&info["version"], &info["cpu_name"], &info["rss"]), (&json!("1"), &json!("7"), &json!(7)));
    }
}
