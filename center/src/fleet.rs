//! What the center knows of its agents. The HTTP port reports it.
//!
//! Agents decide how much there is to know: ids, data types, names of plugins, fields. Everything is therefore bounded.

mod heartbeat;
mod keep;
mod task;

pub(crate) use heartbeat::bounded_fields;
pub use heartbeat::{Heartbeat, Host};
pub(crate) use keep::Unwritten;
pub(crate) use task::Progress;
pub use task::{Task, TaskState};

use crate::message::{AGENT_HEARTBEAT, Batch, PLUGIN_HEARTBEAT, Record, TASK_REPORT};
use crate::serve::Live;
use heartbeat::{TEXT_OF_AGENT, TEXT_OF_PLUGIN};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
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

/// The latest connections and ends of them that are kept for an agent.
const HISTORY: usize = 16;

/// Tasks that are kept in memory, the latest ones.
pub(crate) const TASKS: usize = 1_000;

/// Everything that the center has seen since it started, and the hosts, tasks and uploads of before if it has a store.
#[derive(Debug)]
pub struct Fleet {
    /// Every agent that ever sent a first message, by the id in that message, connected or not. At most as many as the
    /// center's settings say.
    pub agents: BTreeMap<String, Agent>,
    /// The latest uploaded files, in the order in which the uploads ended, at most 1,000.
    pub uploads: Vec<Upload>,
    /// The latest tasks that came with a token, in the order of their numbers, at most 1,000.
    pub tasks: VecDeque<Task>,
    /// Records taken since the center started, by data type. Whatever is beyond 256 types counts as [`OTHER_TYPES`].
    pub by_type: BTreeMap<i32, u64>,
    /// Why the sink takes no records, while it takes none.
    pub sink_refuses: Option<String>,
    /// Counts over all agents.
    pub totals: Totals,
    /// The center's latest log lines, at most 200.
    pub log: VecDeque<String>,
    pub(crate) live: BTreeMap<String, Live>,
    /// What the database is still to be told, if there is one.
    pub(crate) unwritten: Option<Unwritten>,
    /// Why the database cannot be told, while it cannot.
    pub unwritable: Option<String>,
    max_hosts: usize,
    last_task: i64,
    last_upload: i64,
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
    /// Certificates issued to hosts that came with a token.
    pub enrolled: u64,
    /// Certificates issued to agents in place of earlier ones.
    pub renewed: u64,
    /// Requests for a certificate that were refused.
    pub refused_enrolments: u64,
    /// Transfer streams refused because their agent's id was not that of its certificate.
    pub id_mismatches: u64,
    /// Calls refused because the certificate was revoked.
    pub revoked_calls: u64,
    /// Calls other than for a certificate from clients without one.
    pub anonymous_calls: u64,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agent {
    /// True while it has an open stream.
    pub connected: bool,
    /// The host's name, by its latest heartbeat.
    pub hostname: String,
    /// When it was first seen, in seconds since 1970.
    pub first_seen: u64,
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
    /// What a record 1000 of an earlier stream said of the host, until the latest stream has one.
    pub former: Option<Host>,
    /// Seconds by which the host's clock is ahead of this one's, by that record.
    pub ahead_s: i64,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// In seconds since 1970.
    pub at: u64,
    /// True for a beginning.
    pub connected: bool,
    /// Where the agent dialled from.
    pub peer: Option<SocketAddr>,
}

/// Records of one data type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub records: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// An uploaded file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upload {
    /// Its number, in the order in which the uploads ended.
    pub id: i64,
    /// The token of its first message.
    pub token: String,
    /// The agent that a task with this token is for; empty if there is none.
    pub agent_id: String,
    /// Where the file lies on its host, by that task; empty if it does not say.
    pub host_path: String,
    /// The path at which the center has stored it; empty if it failed.
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
            by_type: BTreeMap::new(),
            sink_refuses: None,
            totals: Totals::default(),
            log: VecDeque::new(),
            live: BTreeMap::new(),
            unwritten: None,
            unwritable: None,
            max_hosts,
            last_task: 0,
            last_upload: 0,
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
        for record in &batch.data.records {
            let known = self.by_type.contains_key(&record.data_type) || self.by_type.len() < DATA_TYPES;
            *self.by_type.entry(if known { record.data_type } else { OTHER_TYPES }).or_default() += 1;
        }
        let Some(agent) = self.agents.get_mut(agent_id) else { return };
        agent.messages += 1;
        agent.wire_bytes += batch.wire_len as u64;
        agent.decoded_bytes += batch.decoded_len as u64;
        agent.last_seen = batch.svr_time;
        for record in &batch.data.records {
            agent.count(record);
            match record.data_type {
                AGENT_HEARTBEAT | PLUGIN_HEARTBEAT => {
                    let first = agent.heartbeat.is_none();
                    agent.take_heartbeat(agent_id, batch, record);
                    match &mut self.unwritten {
                        Some(unwritten) if first => _ = unwritten.hosts.insert(agent_id.to_owned()),
                        Some(unwritten) => _ = unwritten.beats.insert(agent_id.to_owned()),
                        None => {}
                    }
                }
                TASK_REPORT => take_answer(&mut self.tasks, agent_id, record, batch.svr_time),
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
                self.forget(&id);
                self.note(format!("there are {} hosts, so that {id:?}, which is gone, is forgotten", self.max_hosts));
            }
        }
        let agent =
            self.agents.entry(agent_id.to_owned()).or_insert_with(|| Agent { first_seen: now, ..Default::default() });
        agent.connected = true;
        agent.streams += 1;
        agent.peer = Some(peer);
        agent.create_at = now;
        agent.last_seen = now;
        if let Some(heartbeat) = agent.heartbeat.take() {
            agent.former = Some(heartbeat.host);
        }
        agent.plugins.clear();
        agent.remember(Event { at: now, connected: true, peer: Some(peer) });
        self.is_to_be_written(agent_id);
    }

    /// Forgets a host. Returns false if it is connected, or not known.
    pub(crate) fn forget(&mut self, agent_id: &str) -> bool {
        if self.agents.get(agent_id).is_none_or(|agent| agent.connected) {
            return false;
        }
        self.agents.remove(agent_id);
        if let Some(unwritten) = &mut self.unwritten {
            unwritten.hosts.remove(agent_id);
            unwritten.beats.remove(agent_id);
            // While nothing can be written, ever new hosts may come and go. The next start forgets those that are left out here.
            if unwritten.forgotten.len() < self.max_hosts {
                unwritten.forgotten.insert(agent_id.to_owned());
            }
        }
        true
    }

    fn is_to_be_written(&mut self, agent_id: &str) {
        if let Some(unwritten) = &mut self.unwritten {
            unwritten.forgotten.remove(agent_id);
            unwritten.beats.remove(agent_id);
            unwritten.hosts.insert(agent_id.to_owned());
        }
    }

    /// Notes that an agent has no stream any more. Returns the tokens of the tasks that were to be sent on it.
    pub(crate) fn disconnect(&mut self, agent_id: &str, now: u64) -> Vec<String> {
        if let Some(agent) = self.agents.get_mut(agent_id) {
            agent.connected = false;
            agent.last_seen = now;
            agent.remember(Event { at: now, connected: false, peer: agent.peer });
            self.is_to_be_written(agent_id);
        }
        let waiting = |task: &&Task| task.agent_id == agent_id && task.state == TaskState::Waiting;
        let tokens: Vec<String> = self.tasks.iter().filter(waiting).map(|task| task.token.clone()).collect();
        for token in tokens.clone() {
            let error = Some("the stream ended before the task was sent".to_owned());
            let at_ms = i64::try_from(now).unwrap_or_default().saturating_mul(1000);
            self.progress(Progress { token, agent_id: agent_id.to_owned(), error, at_ms });
        }
        tokens
    }

    pub(crate) fn count_command(&mut self, agent_id: &str) {
        if let Some(agent) = self.agents.get_mut(agent_id) {
            agent.commands += 1;
        }
    }

    /// Remembers a task, so that its answers are kept. A task without a number gets one.
    pub(crate) fn add_task(&mut self, mut task: Task) {
        if task.id == 0 {
            task.id = self.last_task + 1;
        }
        self.last_task = self.last_task.max(task.id);
        if self.tasks.len() == TASKS {
            self.tasks.pop_front();
        }
        // Two that are given at the same time may come the other way round.
        let place = self.tasks.partition_point(|before| before.id < task.id);
        self.tasks.insert(place, task);
    }

    /// Notes that a task was sent, or will not be.
    pub(crate) fn progress(&mut self, progress: Progress) {
        if let Some(task) = self.tasks.iter_mut().rev().find(|task| task.token == progress.token) {
            task.progress(&progress);
        }
        if let Some(unwritten) = &mut self.unwritten {
            unwritten.tasks.push(progress);
        }
    }

    /// Keeps what came back for a task in another way than from its agent.
    pub(crate) fn answer_task(&mut self, token: &str, fields: &BTreeMap<String, String>, now_ms: i64) {
        if let Some(task) = self.tasks.iter_mut().rev().find(|task| task.token == token) {
            task.answer(fields, now_ms);
        }
    }

    /// Remembers an upload. One without a number gets one.
    pub(crate) fn add_upload(&mut self, mut upload: Upload) {
        if upload.id == 0 {
            upload.id = self.last_upload + 1;
        }
        self.last_upload = self.last_upload.max(upload.id);
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

    /// Returns what the latest record 1000 says of the host, be it of this stream or of an earlier one.
    pub(crate) fn host(&self) -> Option<&Host> {
        self.heartbeat.as_ref().map(|heartbeat| &heartbeat.host).or(self.former.as_ref())
    }

    fn remember(&mut self, event: Event) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(event);
    }

    fn take_heartbeat(&mut self, agent_id: &str, batch: &Batch, record: &Record) {
        let Some(fields) = bounded_fields(record) else { return };
        if record.data_type == AGENT_HEARTBEAT {
            self.hostname.clone_from(&batch.data.hostname);
            self.former = None;
            // A certificate that is for one agent alone holds only the first message of a stream to its id.
            let host = Host { agent_id: agent_id.to_owned(), ..Host::from(&batch.data) };
            self.heartbeat = Some(Heartbeat::new(fields, batch.svr_time, host));
            self.ahead_s = record.timestamp.saturating_sub_unsigned(batch.svr_time);
        } else if let Some(name) = fields.get("name").cloned()
            && (self.plugins.len() < PLUGINS || self.plugins.contains_key(&name))
        {
            self.plugins.insert(name, Heartbeat::new(fields, batch.svr_time, Host::default()));
        }
    }

    /// Returns the agent as `/conn/stat` reports it.
    pub fn stat(&self) -> Value {
        let agent_info = self.heartbeat.as_ref().map_or_else(Map::new, |heartbeat| {
            let mut info = heartbeat.info(&TEXT_OF_AGENT);
            if let Value::Object(host) = json!(heartbeat.host) {
                info.extend(host);
            }
            info.insert("agent_addr".into(), json!(self.peer.map(|peer| peer.to_string())));
            info.insert("create_at".into(), json!(self.create_at));
            info
        });
        let plugins_info: Vec<_> = self.plugins.values().map(|plugin| plugin.info(&TEXT_OF_PLUGIN)).collect();
        json!({ "agent_info": agent_info, "plugins_info": plugins_info })
    }
}

/// Keeps an answer with its task. Another agent's is none.
fn take_answer(tasks: &mut VecDeque<Task>, agent_id: &str, record: &Record, now: u64) {
    let Some(fields) = bounded_fields(record) else { return };
    let Some(token) = fields.get("token") else { return };
    let task = tasks.iter_mut().rev().find(|task| task.token == *token && task.agent_id == agent_id);
    if let Some(task) = task {
        task.answer(&fields, i64::try_from(now).unwrap_or_default().saturating_mul(1000));
    }
}

#[cfg(test)]
mod tests {
    use super::heartbeat::FIELD_LEN;
    use super::task::ANSWERS;
    use super::*;

    #[test]
    fn some_fields_stay_text() {
        let fields = [("version", "1"), ("cpu_name", "7"), ("rss", "7")];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let heartbeat = Heartbeat::new(fields, 0, Host { version: "1".to_owned(), ..Host::default() });
        let agent = Agent { heartbeat: Some(heartbeat), ..Default::default() };
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
        let fields = heartbeat.fields();
        assert_eq!((fields.len(), fields.values().next().unwrap().len()), (1, FIELD_LEN));
        assert_eq!(fleet.totals.records, 11_001);
        assert_eq!((fleet.by_type.len(), fleet.by_type.values().sum::<u64>()), (DATA_TYPES + 1, 11_001));
    }

    #[test]
    fn a_heartbeat_is_of_the_agent_whose_stream_it_comes_on() {
        let mut fleet = Fleet::new(3);
        fleet.connect("b", peer(), 0);
        // The message says that it is a's.
        fleet.take("b", &batch(vec![record(AGENT_HEARTBEAT, &[("cpu", "0")])]));
        assert_eq!(fleet.agents["b"].stat()["agent_info"]["agent_id"], "b");
    }

    #[test]
    fn an_answer_goes_to_the_task_of_its_agent() {
        let mut fleet = Fleet::new(3);
        fleet.connect("a", peer(), 0);
        for n in 0..TASKS + 5 {
            let agent_id = if n % 2 == 0 { "a" } else { "b" }.to_owned();
            let task = elklet_proto::grpc::Task { token: n.to_string(), ..Default::default() };
            fleet.add_task(Task::new(&task, &agent_id, "ann", 0));
        }
        assert_eq!((fleet.tasks.len(), fleet.tasks[0].token.as_str()), (TASKS, "5"));
        for token in ["6", "7", "none"] {
            fleet.take("a", &batch(vec![record(TASK_REPORT, &[("token", token), ("status", "succeed")])]));
        }
        let answered: Vec<_> = fleet.tasks.iter().filter(|task| !task.answers.is_empty()).collect();
        assert_eq!(answered.len(), 1);
        assert_eq!((answered[0].token.as_str(), answered[0].answers[0]["status"].as_str()), ("6", "succeed"));
        for n in 0..100 {
            fleet.take("a", &batch(vec![record(TASK_REPORT, &[("token", "6"), ("n", &n.to_string())])]));
        }
        assert_eq!(fleet.tasks[1].answers.len(), ANSWERS);
    }
}
