//! Heartbeats: what a [`Snapshot`] says of the agent and its plugins, as records for the server.

use elklet_core::command::AGENT_NAME;
use elklet_core::record::envelope::Sender;
use elklet_core::record::manifest::Row;
use elklet_core::time::Millis;
use elklet_proto::data_type::{AGENT_HEARTBEAT, PLUGIN_HEARTBEAT};

use super::records::Records;
use crate::config::Settings;
use crate::host::{Addresses, AgentFacts, Fields, Heartbeat, HostRoot, PluginFacts, hostname};
use crate::status::{Count, Snapshot};
use crate::{clock, version};

/// What makes heartbeats, with the samples that rates are told from.
#[derive(Debug)]
pub(super) struct Beat {
    heartbeat: Heartbeat,
    fields: Fields,
}

impl Beat {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { heartbeat: Heartbeat::new(HostRoot::live(), settings.layout.workdir.clone()), fields: Fields::new() }
    }

    /// Puts a round of heartbeats into `records`: the agent's, and one for each plugin that runs. Gives what found no room.
    pub(super) fn write(&mut self, snapshot: &Snapshot<'_>, records: &mut Records, now: Millis) -> Vec<Row> {
        let timestamp = clock::unix_seconds();
        let mut lost = Vec::new();
        self.put_agent(snapshot, now);
        lost.extend(records.push_heartbeat(AGENT_HEARTBEAT, timestamp, self.fields.iter()).err());
        let running = || snapshot.plugins.iter().filter_map(|plugin| Some((plugin, plugin.process.as_ref()?)));
        for (plugin, process) in running() {
            let facts = PluginFacts {
                name: plugin.name,
                version: plugin.version,
                pid: process.pid,
                began_ms: process.began.0,
                dir: &process.directory,
                traffic: process.traffic,
            };
            if self.heartbeat.plugin_fields(now.0, &facts, &mut self.fields) {
                put(&mut self.fields, process.counters.get(process.troubles..).unwrap_or_default());
                self.fields.put("restarts", plugin.restarts);
                if !process.limits.is_empty() {
                    self.fields.put("limits", process.limits.join("; "));
                }
                if !process.refused.is_empty() {
                    let refused: Vec<_> =
                        process.refused.iter().map(|(call, count)| format!("{call} {count}")).collect();
                    self.fields.put("refused", refused.join("; "));
                }
                lost.extend(records.push_heartbeat(PLUGIN_HEARTBEAT, timestamp, self.fields.iter()).err());
            }
        }
        self.heartbeat.measure_directories(running().map(|(_, process)| process.directory.clone()));
        lost
    }

    /// The reference's fields, and Elklet's own beside them.
    fn put_agent(&mut self, snapshot: &Snapshot<'_>, now: Millis) {
        let agent = &snapshot.agent;
        let facts = AgentFacts {
            state: agent.state,
            state_detail: &serde_json::to_string(&agent.state_detail).unwrap_or_default(),
            idc: agent.idc,
            region: agent.region,
            net_mode: snapshot.connection.net_mode,
            traffic: agent.traffic,
        };
        self.heartbeat.agent_fields(now.0, &facts, &mut self.fields);
        put(&mut self.fields, &snapshot.counters);
        let (spooled, spool_bytes) = snapshot.spool.map_or((0, 0), |spool| (spool.records, spool.bytes));
        self.fields.put("records_unconfirmed", snapshot.ledger.unconfirmed_records + spooled);
        self.fields.put("records_in_spool", spooled);
        self.fields.put("spool_bytes", spool_bytes);
        let certificates = &snapshot.certificates;
        for (name, end) in [("cert_days_left", &certificates.client), ("ca_days_left", &certificates.authority)] {
            end.iter().for_each(|end| self.fields.put(name, end.days_left));
        }
    }

    /// A plugin's process has ended: there is nothing more to measure.
    pub(super) fn handle_plugin_ended(&mut self, name: &str) {
        self.heartbeat.forget(name);
    }
}

/// Who sends, as of now: addresses and host name may change while the agent runs.
pub(super) fn sender(agent_id: &str) -> Sender {
    let addresses = Addresses::current().unwrap_or_else(|error| {
        log::warn!("the host's addresses cannot be read: {error}");
        Addresses::default()
    });
    let Addresses { intranet_ipv4, extranet_ipv4, intranet_ipv6, extranet_ipv6 } = addresses;
    Sender {
        agent_id: agent_id.to_owned(),
        intranet_ipv4,
        extranet_ipv4,
        intranet_ipv6,
        extranet_ipv6,
        hostname: hostname(),
        version: version().to_owned(),
        // The product name that AgentCenter knows.
        product: AGENT_NAME.to_owned(),
    }
}

fn put(fields: &mut Fields, counts: &[Count]) {
    counts.iter().for_each(|count| fields.put(count.name, count.value));
}
