//! The agent as others see it: gathered once, as a [`Snapshot`], for heartbeats, `elklet status` and the metrics alike.

use bytes::Bytes;
use elklet_core::agent::Agent;
use elklet_core::dispatch::PluginState;
use elklet_core::limits::LEDGER_BYTES;
use elklet_core::time::Millis;
use tokio::sync::mpsc;

use super::counts;
use super::link::Link;
use super::plugins::Plugins;
use super::records::Records;
use crate::config::Settings;
use crate::host::{Footprint, HostRoot, Traffic};
use crate::plugin::Applied;
use crate::status::{
    Certificate, Certificates, Connection, Count, Identity, Inquiry, LastError, Ledger, Logs, Meter, PluginView,
    Process, Rates, Server, Snapshot, SpoolFill,
};
use crate::upload::Uploads;
use crate::{clock, logging, version};

/// What is known of the agent beside what its rooms know, and what is kept only to be shown.
#[derive(Debug)]
pub(super) struct Facts {
    agent_id: String,
    workdir: String,
    /// What keeps its own threads from what only plugins need.
    limits: String,
    /// Of records that plugins have sent, their bytes, and bytes that were handed to the stream.
    meter: Meter<3>,
    /// What was said last of sections that no plugin has.
    unknown_sections: Vec<String>,
    /// `None` where there can be no socket.
    _server: Option<Server>,
}

/// The rooms that are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rooms<'a, 'r> {
    pub(super) agent: &'a Agent<Bytes>,
    pub(super) link: &'a Link,
    /// Nothing in a snapshot is borrowed from here, so that heartbeats can be written into it.
    pub(super) records: &'r Records,
    pub(super) plugins: &'a Plugins,
    pub(super) uploads: &'a Uploads,
    pub(super) settings: &'a Settings,
}

impl Facts {
    /// Begins to answer. An agent that cannot be asked is an agent all the same.
    pub(super) fn new(
        agent_id: String,
        settings: &Settings,
        own: Applied,
        now: Millis,
    ) -> (Self, mpsc::Receiver<Inquiry>) {
        let (server, inquiries) = match Server::start(&settings.layout.socket) {
            Ok((server, inquiries)) => (Some(server), inquiries),
            Err(error) => {
                log::warn!("`elklet status` cannot ask this agent: {error}");
                (None, mpsc::channel(1).1)
            }
        };
        let facts = Self {
            agent_id,
            workdir: settings.layout.workdir.display().to_string(),
            meter: Meter::new(now),
            unknown_sections: Vec::new(),
            limits: own.to_string(),
            _server: server,
        };
        (facts, inquiries)
    }

    pub(super) fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// Remembers the counters, so that rates can be told later.
    pub(super) fn sample_rates(&mut self, agent: &Agent<Bytes>, plugins: &Plugins, now: Millis) {
        self.meter.sample(now, moved(agent, plugins));
    }

    /// Warns of each `[plugin.NAME]` of the file that belongs to no plugin, once until that changes. Only a configuration tells
    /// which plugins there are.
    pub(super) fn warn_of_sections(&mut self, agent: &Agent<Bytes>, settings: &Settings) {
        let plugins: Vec<_> = agent.plugins().map(|plugin| plugin.name.as_str()).collect();
        let unknown = settings.unknown_sections(&plugins).into_iter().map(|(name, meant)| match meant {
            Some(meant) => format!("[plugin.{name}]: there is no such plugin, did you mean [plugin.{meant}]?"),
            None => format!("[plugin.{name}]: there is no such plugin, expected one of: {}", plugins.join(", ")),
        });
        let unknown: Vec<_> = unknown.collect();
        if unknown != self.unknown_sections {
            unknown.iter().for_each(|what| log::warn!("{what}"));
            self.unknown_sections = unknown;
        }
    }

    /// The agent as it is now.
    pub(super) fn gather<'a>(&'a self, rooms: Rooms<'a, '_>, now: Millis) -> Snapshot<'a> {
        let Rooms { agent, link, records, plugins, uploads, settings } = rooms;
        let host = HostRoot::live();
        let pid = std::process::id();
        let details = agent.state_details(now);
        let (over_ms, [records_per_second, bytes_per_second, sent_bytes_per_second]) =
            self.meter.rates(now, moved(agent, plugins));
        let (counters, delivered) = (agent.counters(), agent.delivery_counters());
        let unconfirmed = agent.unconfirmed(records.level());
        let spool_bytes = settings.spool.bytes();
        let log = logging::look_after();
        Snapshot {
            agent: Identity {
                id: &self.agent_id,
                version: version(),
                pid,
                workdir: &self.workdir,
                limits: &self.limits,
                // The clock begins with the agent.
                uptime_seconds: now.0 / 1000,
                state: if details.is_empty() { "running" } else { "abnormal" },
                state_detail: details,
                footprint: Footprint::of(&host, pid),
                idc: &settings.idc,
                region: &settings.region,
                traffic: Traffic {
                    rx_bytes: counters.received_bytes,
                    tx_bytes: delivered.sent_bytes + uploads.sent_bytes(),
                    rx_messages: counters.commands,
                    tx_messages: delivered.sent,
                },
            },
            connection: Connection {
                connected: agent.is_streaming(),
                state: agent.session().phase(),
                for_seconds: now.since(agent.session().since()) / 1000,
                address: link.address(),
                net_mode: link.net_mode(),
                next_attempt_ms: agent.session().waits_until().map(|until| until.since(now)),
                last_error: link.last_error().map(|failed| LastError {
                    text: &failed.what,
                    seconds_ago: now.since(failed.at) / 1000,
                    refused: failed.is_refusal,
                }),
            },
            rates: Rates { over_ms, records_per_second, bytes_per_second, sent_bytes_per_second },
            buffer: records.fill(),
            ledger: Ledger {
                batches: unconfirmed.batches,
                bytes: unconfirmed.memory_bytes,
                capacity_bytes: LEDGER_BYTES,
                unconfirmed_records: unconfirmed.memory_records,
            },
            spool: (spool_bytes > 0).then_some(SpoolFill {
                files: unconfirmed.disk_files,
                records: unconfirmed.disk_records,
                bytes: unconfirmed.disk_bytes,
                capacity_bytes: spool_bytes,
            }),
            certificates: certificates(link),
            counters: counts::of_agent(agent, plugins, &log),
            logs: Logs { error: log.error, audit_error: log.audit_error },
            plugins: agent.plugins().map(|state| plugin(&state, plugins, &host, now)).collect(),
        }
    }
}

/// Records that plugins have sent, their bytes, and bytes that were handed to the stream.
fn moved(agent: &Agent<Bytes>, plugins: &Plugins) -> [u64; 3] {
    let tally = plugins.tally();
    [tally.records, tally.record_bytes, agent.delivery_counters().sent_bytes]
}

fn certificates(link: &Link) -> Certificates {
    let [client, authority] = link.certificates().ends();
    let [client_days, authority_days] = link.certificates().days_left(clock::unix_seconds());
    let end = |until, days: Option<i64>| Some(Certificate::new(until?, days?));
    Certificates { client: end(client, client_days), authority: end(authority, authority_days) }
}

fn plugin<'a>(state: &PluginState<'a>, plugins: &'a Plugins, host: &HostRoot, now: Millis) -> PluginView<'a> {
    let process = plugins.get(state.name);
    let config = state.config.map(|config| config.version.as_str());
    PluginView {
        name: state.name.as_str(),
        version: process.map(|process| process.version.as_str()).or(config).unwrap_or_default(),
        state: state.phase,
        restarts: state.restarts,
        retry_ms: state.retry_at.map(|moment| moment.since(now)),
        process: process.map(|process| {
            let (_, [records_per_second, bytes_per_second]) = process.meter.rates(now, process.sent());
            let (tally, tasks) = (process.stats.tally(), process.stats.tasks());
            let mut counters = vec![
                Count { name: "records", help: "records that the plugin has sent", value: tally.records },
                Count { name: "record_bytes", help: "bytes of these", value: tally.record_bytes },
                Count { name: "tasks", help: "tasks that the plugin has taken", value: tasks.count },
            ];
            let troubles = counters.len();
            counters.extend(counts::of_frames(&tally));
            counters.push(counts::stderr_left_out(process.stats.stderr_left_out()));
            let refused = process.stats.refusals();
            counters.push(counts::calls_refused(refused.iter().map(|(_, count)| count).sum()));
            Process {
                pid: process.pid,
                uptime_seconds: now.since(process.since) / 1000,
                footprint: Footprint::of(host, process.pid),
                records_per_second,
                bytes_per_second,
                limits: process.limits.iter().map(ToString::to_string).collect(),
                refused,
                counters,
                troubles,
                began: process.since,
                directory: plugins.directory(state.name),
                traffic: Traffic {
                    rx_bytes: tasks.bytes,
                    tx_bytes: tally.record_bytes,
                    rx_messages: tasks.count,
                    tx_messages: tally.records,
                },
            }
        }),
    }
}
