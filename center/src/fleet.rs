//! What the center knows of its agents. The HTTP port reports it.
//!
//! Agents decide how much there is to know: ids, data types, names of plugins, fields. Everything is therefore bounded.

use crate::message::{AGENT_HEARTBEAT, Batch, PLUGIN_HEARTBEAT, Record, TASK_REPORT};
use crate::serve::Live;
use serde::Serialize;
use serde_json::{Map, Number, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Log lines kept.
const LOG_LINES: usize = 200;

/// Uploads kept, the latest ones.
const UPLOADS: usize = 1_000;

/// Data types that are counted one by one for an agent. What Elkeid's plugins send has some sixty.
const DATA_TYPES: usize = 256;

/// The data type under which everything beyond `DATA_TYPES` is counted. No agent may send it.
pub const OTHER_TYPES: i32 = i32::MIN;

/// Plugins of an agent whose heartbeats are kept.
const PLUGINS: usize = 64;

/// Bytes of a heartbeat's fields that are kept, with their names, and the most of one field. An agent's have some fifty short ones, and
/// Elklet's a list of everything that has gone wrong with plugins.
const FIELDS_LEN: usize = 32 << 10;
const FIELD_LEN: usize = 16 << 10;

/// The latest connections and ends of them that are kept for an agent.
const HISTORY: usize = 16;

/// Tasks that are kept, the latest ones, and the most answers of each.
const TASKS: usize = 1_000;
const ANSWERS: usize = 16;

/// Everything that the center has seen since it started.
#[derive(Debug)]
pub struct Fleet {
    /// Every agent that ever sent a first message, by the id in that message, connected or not. At most as many as the
    /// center's settings say.
    pub agents: BTreeMap<String, Agent>,
    /// The latest uploaded files, in the order in which the uploads ended, at most 1,000.
    pub uploads: Vec<Upload>,
    /// The latest tasks that came with a token, oldest first, at most 1,000.
    pub tasks: VecDeque<Task>,
    /// Why the sink takes no records, while it takes none.
    pub sink_refuses: Option<String>,
    /// Counts over all agents.
    pub totals: Totals,
    /// The center's latest log lines, at most 200.
    pub log: VecDeque<String>,
    pub(crate) live: BTreeMap<String, Live>,
    max_hosts: usize,
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
    /// Times that the sink has refused a message.
    pub sink_refusals: u64,
    /// Messages taken.
    pub messages: u64,
    /// Records taken.
    pub records: u64,
    /// Bytes of the messages on the wire, with their prefixes.
    pub wire_bytes: u64,
    /// Bytes of the messages after decompression.
    pub decoded_bytes: u64,
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
    /// When it last sent a message or its stream ended, in seconds since 1970.
    pub last_seen: u64,
    /// The beginnings and ends of its latest streams, oldest first, at most 16.
    pub history: VecDeque<Event>,
}

/// The beginning or end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Event {
    /// In seconds since 1970.
    pub at: u64,
    /// True for a beginning.
    pub connected: bool,
    /// Where the agent dialled from.
    pub peer: Option<SocketAddr>,
}

/// A task with a token, and what came back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Task {
    /// The agent that it went to.
    pub agent_id: String,
    /// The token, which answers carry.
    pub token: String,
    /// The plugin that it was for, or `elkeid-agent`.
    pub name: String,
    /// The task's kind.
    pub data_type: i32,
    /// When it was sent, in seconds since 1970.
    pub sent_at: u64,
    /// The fields of the records 5100 with its token, oldest first, at most 16.
    pub answers: Vec<BTreeMap<String, String>>,
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

impl Fleet {
    /// Knows nobody, and at most `max_hosts` of those who will come.
    pub(crate) fn new(max_hosts: usize) -> Self {
        Self {
            agents: BTreeMap::new(),
            uploads: Vec::new(),
            tasks: VecDeque::new(),
            sink_refuses: None,
            totals: Totals::default(),
            log: VecDeque::new(),
            live: BTreeMap::new(),
            max_hosts,
        }
    }

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
        self.totals.messages += 1;
        self.totals.records += batch.data.records.len() as u64;
        self.totals.wire_bytes += batch.wire_len as u64;
        self.totals.decoded_bytes += batch.decoded_len as u64;
        let Some(agent) = self.agents.get_mut(agent_id) else { return };
        agent.messages += 1;
        agent.wire_bytes += batch.wire_len as u64;
        agent.decoded_bytes += batch.decoded_len as u64;
        agent.last_seen = batch.svr_time;
        for record in &batch.data.records {
            agent.count(record);
            match record.data_type {
                AGENT_HEARTBEAT | PLUGIN_HEARTBEAT => agent.take_heartbeat(batch, record),
                TASK_REPORT => take_answer(&mut self.tasks, agent_id, record),
                _ => {}
            }
        }
    }

    /// Notes that an agent has a stream. If there are too many hosts, it forgets one that is gone.
    pub(crate) fn connect(&mut self, agent_id: &str, peer: SocketAddr, now: u64) {
        if !self.agents.contains_key(agent_id) && self.agents.len() >= self.max_hosts {
            let gone =
                self.agents.iter().filter(|(_, agent)| !agent.connected).min_by_key(|(_, agent)| agent.last_seen);
            if let Some(id) = gone.map(|(id, _)| id.clone()) {
                self.agents.remove(&id);
                self.note(format!("there are {} hosts, so that {id:?}, which is gone, is forgotten", self.max_hosts));
            }
        }
        let agent = self.agents.entry(agent_id.to_owned()).or_default();
        agent.connected = true;
        agent.streams += 1;
        agent.peer = Some(peer);
        agent.create_at = now;
        agent.last_seen = now;
        agent.heartbeat = None;
        agent.plugins.clear();
        agent.remember(Event { at: now, connected: true, peer: Some(peer) });
    }

    pub(crate) fn disconnect(&mut self, agent_id: &str, now: u64) {
        if let Some(agent) = self.agents.get_mut(agent_id) {
            agent.connected = false;
            agent.last_seen = now;
            agent.remember(Event { at: now, connected: false, peer: agent.peer });
        }
    }

    pub(crate) fn count_command(&mut self, agent_id: &str) {
        if let Some(agent) = self.agents.get_mut(agent_id) {
            agent.commands += 1;
        }
    }

    /// Remembers a task, so that its answers are kept.
    pub(crate) fn add_task(&mut self, task: Task) {
        if self.tasks.len() == TASKS {
            self.tasks.pop_front();
        }
        self.tasks.push_back(task);
    }

    /// Remembers an upload.
    pub(crate) fn add_upload(&mut self, upload: Upload) {
        if self.uploads.len() == UPLOADS {
            self.uploads.remove(0);
        }
        self.uploads.push(upload);
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

    fn count(&mut self, record: &Record) {
        let known = self.counts.contains_key(&record.data_type) || self.counts.len() < DATA_TYPES;
        let count = self.counts.entry(if known { record.data_type } else { OTHER_TYPES }).or_default();
        count.records += 1;
        count.bytes += record.data.len() as u64;
    }

    fn remember(&mut self, event: Event) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(event);
    }

    fn take_heartbeat(&mut self, batch: &Batch, record: &Record) {
        let Some(fields) = bounded_fields(record) else { return };
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
        } else if let Some(name) = fields.get("name").cloned()
            && (self.plugins.len() < PLUGINS || self.plugins.contains_key(&name))
        {
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

/// Keeps an answer with its task. Another agent's is none.
fn take_answer(tasks: &mut VecDeque<Task>, agent_id: &str, record: &Record) {
    let Some(fields) = bounded_fields(record) else { return };
    let Some(token) = fields.get("token") else { return };
    let task = tasks.iter_mut().rev().find(|task| task.token == *token && task.agent_id == agent_id);
    if let Some(task) = task
        && task.answers.len() < ANSWERS
    {
        task.answers.push(fields);
    }
}

/// Returns a record's fields, as many and as much of each as is kept.
fn bounded_fields(record: &Record) -> Option<BTreeMap<String, String>> {
    let cut = |mut text: String| {
        text.truncate(text.floor_char_boundary(FIELD_LEN));
        text
    };
    let mut left = FIELDS_LEN;
    let fields = record.fields().ok()?.into_iter().map(|(name, value)| (cut(name), cut(value)));
    let fits = |(name, value): &(String, String)| {
        let len = name.len() + value.len();
        let fits = len <= left;
        left -= if fits { len } else { 0 };
        fits
    };
    Some(fields.filter(fits).collect())
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

    fn batch(records: Vec<Record>) -> Batch {
        let data = crate::message::PackagedData { records, agent_id: "a".to_owned(), ..Default::default() };
        Batch { stream: 1, index: 0, svr_time: 7, wire_len: 10, decoded_len: 20, data }
    }

    fn record(data_type: i32, fields: &[(&str, &str)]) -> Record {
        use prost::Message;
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Record { data_type, timestamp: 0, data: elklet_proto::grpc::Payload { fields }.encode_to_vec().into() }
    }

    fn peer() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    #[test]
    fn who_has_been_gone_for_longest_is_forgotten_first() {
        let mut fleet = Fleet::new(3);
        for (now, id) in (1..).zip(["a", "b", "c"]) {
            fleet.connect(id, peer(), now);
        }
        fleet.disconnect("b", 10);
        fleet.disconnect("c", 9);
        fleet.connect("d", peer(), 11);
        assert_eq!(fleet.agents.keys().collect::<Vec<_>>(), ["a", "b", "d"]);
        assert!(!fleet.agents["b"].connected && fleet.agents["b"].last_seen == 10);
    }

    #[test]
    fn an_agent_cannot_make_the_center_know_ever_more() {
        let mut fleet = Fleet::new(3);
        for now in 0..100 {
            fleet.connect("a", peer(), now);
            fleet.disconnect("a", now);
        }
        fleet.take("a", &batch((0..10_000).map(|n| record(n, &[])).collect()));
        let names: Vec<_> = (0..1000).map(|n| n.to_string()).collect();
        fleet.take("a", &batch(names.iter().map(|name| record(1001, &[("name", name)])).collect()));
        let long = "x".repeat(FIELD_LEN + 1);
        let fields: Vec<_> = names.iter().map(|name| (name.as_str(), long.as_str())).collect();
        fleet.take("a", &batch(vec![record(1000, &fields)]));
        let agent = &fleet.agents["a"];
        assert_eq!(agent.history.len(), HISTORY);
        assert_eq!((agent.counts.len(), agent.all_records()), (DATA_TYPES + 1, 11_001));
        assert_eq!(agent.plugins.len(), PLUGINS);
        let heartbeat = agent.heartbeat.as_ref().unwrap();
        assert_eq!((heartbeat.fields.len(), heartbeat.fields.values().next().unwrap().len()), (1, FIELD_LEN));
        assert_eq!(fleet.totals.records, 11_001);
    }

    #[test]
    fn an_answer_goes_to_the_task_of_its_agent() {
        let mut fleet = Fleet::new(3);
        fleet.connect("a", peer(), 0);
        for n in 0..TASKS + 5 {
            let agent_id = if n % 2 == 0 { "a" } else { "b" }.to_owned();
            fleet.add_task(Task { agent_id, token: n.to_string(), ..Default::default() });
        }
        assert_eq!((fleet.tasks.len(), fleet.tasks[0].token.as_str()), (TASKS, "5"));
        for token in ["6", "7", "none"] {
            fleet.take("a", &batch(vec![record(TASK_REPORT, &[("token", token), ("status", "succeed")])]));
        }
        let answered: Vec<_> = fleet.tasks.iter().filter(|task| !task.answers.is_empty()).collect();
        assert_eq!(answered.len(), 1);
        assert_eq!((answered[0].token.as_str(), answered[0].answers[0]["status"].as_str()), ("6", "succeed"));
        for _ in 0..100 {
            fleet.take("a", &batch(vec![record(TASK_REPORT, &[("token", "6")])]));
        }
        assert_eq!(fleet.tasks[1].answers.len(), ANSWERS);
    }
}
