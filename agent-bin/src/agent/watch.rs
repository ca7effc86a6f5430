//! The agent as others on its host see it: the answers to `elklet status`, curl and Prometheus.

use std::path::Path;

use elklet_core::dispatch::PluginState;
use elklet_core::time::Millis;
use tokio::sync::mpsc;

use super::{Agent, counts};
use crate::host::{Footprint, HostRoot};
use crate::status::{
    Certificate, Certificates, Connection, Count, Identity, Inquiry, LastError, Logs, Meter, Plugin, Process, Rates,
    Server, Snapshot,
};
use crate::{clock, logging, version};

/// What is kept only to be shown.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) inquiries: mpsc::Receiver<Inquiry>,
    /// `None` where there can be no socket.
    _server: Option<Server>,
    workdir: String,
    /// Of records that plugins have sent, their bytes, and bytes that were handed to the stream.
    meter: Meter<3>,
    /// The last thing that went wrong between agent and server.
    last_error: Option<(Millis, String)>,
    /// What was said last of sections that no plugin has.
    unknown_sections: Vec<String>,
}

impl Watch {
    /// Begins to answer. An agent that cannot be asked is an agent all the same.
    pub(super) fn start(workdir: &Path, now: Millis) -> Self {
        let (server, inquiries) = match Server::start(workdir) {
            Ok((server, inquiries)) => (Some(server), inquiries),
            Err(error) => {
                log::warn!("`elklet status` cannot ask this agent: {error}");
                (None, mpsc::channel(1).1)
            }
        };
        let workdir = workdir.display().to_string();
        Self {
            inquiries,
            _server: server,
            workdir,
            meter: Meter::new(now),
            last_error: None,
            unknown_sections: Vec::new(),
        }
    }
}

impl Agent {
    /// Something went wrong on the way to the server, and was logged.
    pub(super) fn note_failure(&mut self, what: String) {
        self.watch.last_error = Some((self.clock.now(), what));
    }

    /// Warns of each `[plugin.NAME]` of the file that belongs to no plugin, once until that changes. Only a configuration tells
    /// which plugins there are.
    pub(super) fn warn_of_sections(&mut self) {
        let plugins: Vec<_> = self.dispatch.plugins().map(|plugin| plugin.name.as_str()).collect();
        let unknown = self.settings.unknown_sections(&plugins).into_iter().map(|(name, meant)| match meant {
            Some(meant) => format!("[plugin.{name}]: there is no such plugin, did you mean [plugin.{meant}]?"),
            None => format!("[plugin.{name}]: there is no such plugin, expected one of: {}", plugins.join(", ")),
        });
        let unknown: Vec<_> = unknown.collect();
        if unknown != self.watch.unknown_sections {
            unknown.iter().for_each(|what| log::warn!("{what}"));
            self.watch.unknown_sections = unknown;
        }
    }

    pub(super) fn handle_inquiry(&mut self, inquiry: Inquiry) {
        let now = self.clock.now();
        self.sample_rates(now);
        inquiry.answer(&self.snapshot(now));
    }

    /// Remembers the counters, so that rates can be told later.
    pub(super) fn sample_rates(&mut self, now: Millis) {
        self.watch.meter.sample(now, self.moved());
        self.plugins.sample_rates(now);
    }

    /// Records that plugins have sent, their bytes, and bytes that were handed to the stream.
    fn moved(&self) -> [u64; 3] {
        let tally = self.plugins.tally();
        [tally.records, tally.record_bytes, self.delivery.counters().sent_bytes]
    }

    fn snapshot(&self, now: Millis) -> Snapshot<'_> {
        let host = HostRoot::live();
        let pid = std::process::id();
        let details = self.dispatch.state_details(now);
        let connected = self.session.streaming_to().is_some();
        let (over_ms, [records_per_second, bytes_per_second, sent_bytes_per_second]) =
            self.watch.meter.rates(now, self.moved());
        let (buffer, ledger) = self.delivery.fill();
        let log = logging::look_after();
        Snapshot {
            agent: Identity {
                id: self.beat.agent_id(),
                version: version(),
                pid,
                workdir: &self.watch.workdir,
                // The clock begins with the agent.
                uptime_seconds: now.0 / 1000,
                state: if details.is_empty() { "running" } else { "abnormal" },
                state_detail: details,
                footprint: Footprint::of(&host, pid),
            },
            connection: Connection {
                connected,
                state: self.session.phase(),
                for_seconds: now.since(self.session.since()) / 1000,
                address: &self.address,
                net_mode: self.net_mode,
                next_attempt_ms: self.session.waits_until().map(|until| until.since(now)),
                last_error: self
                    .watch
                    .last_error
                    .as_ref()
                    .map(|(at, text)| LastError { text, seconds_ago: now.since(*at) / 1000 }),
            },
            rates: Rates { over_ms, records_per_second, bytes_per_second, sent_bytes_per_second },
            buffer,
            ledger,
            spool: self.delivery.spool(),
            certificates: self.certificate_ends(),
            counters: counts::of_agent(
                &self.net,
                &self.plugins,
                &self.delivery.counters(),
                self.delivery.losses(),
                &log,
            ),
            logs: Logs { error: log.error, audit_error: log.audit_error },
            plugins: self.dispatch.plugins().map(|plugin| self.plugin(&plugin, &host, now)).collect(),
        }
    }

    fn certificate_ends(&self) -> Certificates {
        let now = clock::unix_seconds();
        let [client, authority] = self.certificates.ends();
        let [client_days, authority_days] = self.certificates.days_left(now);
        let end = |until, days: Option<i64>| Some(Certificate::new(until?, days?));
        Certificates { client: end(client, client_days), authority: end(authority, authority_days) }
    }

    fn plugin<'a>(&'a self, plugin: &PluginState<'a>, host: &HostRoot, now: Millis) -> Plugin<'a> {
        let process = self.plugins.get(plugin.name);
        let config = plugin.config.map(|config| config.version.as_str());
        Plugin {
            name: plugin.name.as_str(),
            version: process.map(|process| process.version.as_str()).or(config).unwrap_or_default(),
            state: plugin.phase,
            restarts: plugin.restarts,
            retry_ms: plugin.retry_at.map(|moment| moment.since(now)),
            process: process.map(|process| {
                let (_, [records_per_second, bytes_per_second]) = process.meter.rates(now, process.sent());
                let (tally, tasks) = (process.stats.tally(), process.stats.tasks());
                let mut counters = vec![
                    Count { name: "records", help: "records that the plugin has sent", value: tally.records },
                    Count { name: "record_bytes", help: "bytes of these", value: tally.record_bytes },
                    Count { name: "tasks", help: "tasks that the plugin has taken", value: tasks.count },
                ];
                counters.extend(counts::of_frames(&tally));
                counters.push(counts::stderr_left_out(process.stats.stderr_left_out()));
                Process {
                    pid: process.pid,
                    uptime_seconds: now.since(process.since) / 1000,
                    footprint: Footprint::of(host, process.pid),
                    records_per_second,
                    bytes_per_second,
                    limits: process.limits.iter().map(ToString::to_string).collect(),
                    counters,
                }
            }),
        }
    }
}
