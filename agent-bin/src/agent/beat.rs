//! Heartbeats: what the agent says of itself and its plugins once a minute, and first on every stream.

use elklet_core::dispatch::Dispatch;
use elklet_core::record::envelope::Sender;
use elklet_core::record::{AGENT_HEARTBEAT, PLUGIN_HEARTBEAT};
use elklet_core::time::Millis;

use super::counts;
use super::delivery::Delivery;
use super::plugins::Plugins;
use crate::config::Settings;
use crate::host::{Addresses, AgentFacts, Fields, Heartbeat, HostRoot, PluginFacts, Traffic, hostname};
use crate::status::Count;
use crate::{logging, version};

/// The reference's interval.
pub(super) const INTERVAL_MS: u64 = 60_000;

/// The product name that AgentCenter knows.
const PRODUCT: &str = elklet_core::command::AGENT_NAME;

/// What went wrong on the network side, counted since the start.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct NetCounters {
    /// Bytes of messages that were received, gRPC prefixes included.
    pub(super) received_bytes: u64,
    /// Commands that were received.
    pub(super) commands: u64,
    /// Messages that were no commands.
    pub(super) bad_commands: u64,
    /// Attempts that did not come to a stream for want of a TCP connection, by timeout, or by a failed discovery.
    pub(super) connect_failures: u64,
    /// Attempts that failed at TLS, by either side's judgement.
    pub(super) tls_failures: u64,
    /// Streams that were opened.
    pub(super) streams: u64,
    /// Streams that ended because the server sent what cannot be understood.
    pub(super) protocol_errors: u64,
    /// Bytes of messages that uploads have sent, gRPC prefixes included.
    pub(super) uploaded_bytes: u64,
    /// Tasks that were answered with a failure.
    pub(super) refused_tasks: u64,
}

#[derive(Debug)]
pub(super) struct Beat {
    agent_id: String,
    idc: String,
    region: String,
    /// Of the client's certificate and of the authorities'.
    days_left: [Option<i64>; 2],
    heartbeat: Heartbeat,
    fields: Fields,
}

impl Beat {
    pub(super) fn new(agent_id: String, settings: &Settings) -> Self {
        Self {
            agent_id,
            idc: settings.idc.clone(),
            region: settings.region.clone(),
            days_left: [None; 2],
            heartbeat: Heartbeat::new(HostRoot::live(), settings.workdir.clone()),
            fields: Fields::new(),
        }
    }

    /// The host's idc and region have changed.
    pub(super) fn set_place(&mut self, settings: &Settings) {
        self.idc.clone_from(&settings.idc);
        self.region.clone_from(&settings.region);
    }

    /// Who sends, as of now: addresses and host name may change while the agent runs.
    pub(super) fn sender(&self) -> Sender {
        let addresses = Addresses::current().unwrap_or_else(|error| {
            log::warn!("the host's addresses cannot be read: {error}");
            Addresses::default()
        });
        let Addresses { intranet_ipv4, extranet_ipv4, intranet_ipv6, extranet_ipv6 } = addresses;
        Sender {
            agent_id: self.agent_id.clone(),
            intranet_ipv4,
            extranet_ipv4,
            intranet_ipv6,
            extranet_ipv6,
            hostname: hostname(),
            version: version().to_owned(),
            product: PRODUCT.to_owned(),
        }
    }

    /// Days that the client's certificate and the authorities' are good for.
    pub(super) fn set_days_left(&mut self, days: [Option<i64>; 2]) {
        self.days_left = days;
    }

    pub(super) fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// Puts a round of heartbeats into the delivery.
    pub(super) fn beat(
        &mut self,
        now: Millis,
        net_mode: &str,
        net: &NetCounters,
        dispatch: &Dispatch,
        plugins: &Plugins,
        delivery: &mut Delivery,
    ) {
        delivery.set_sender(self.sender());
        let delivered = delivery.counters();
        let details = dispatch.state_details(now);
        let facts = AgentFacts {
            state: if details.is_empty() { "running" } else { "abnormal" },
            state_detail: &serde_json::to_string(&details).unwrap_or_default(),
            idc: &self.idc,
            region: &self.region,
            net_mode,
            traffic: Traffic {
                rx_bytes: net.received_bytes,
                tx_bytes: delivered.sent_bytes + net.uploaded_bytes,
                rx_messages: net.commands,
                tx_messages: delivered.sent,
            },
        };
        self.heartbeat.agent_fields(now.0, &facts, &mut self.fields);
        // Elklet's own fields beside the reference's.
        let log = logging::look_after();
        put(&mut self.fields, &counts::of_agent(net, plugins, &delivered, delivery.losses(), &log));
        let unconfirmed = delivery.unconfirmed();
        self.fields.put("records_unconfirmed", unconfirmed.memory_records + unconfirmed.disk_records);
        self.fields.put("records_in_spool", unconfirmed.disk_records);
        self.fields.put("spool_bytes", unconfirmed.disk_bytes);
        for (name, days) in ["cert_days_left", "ca_days_left"].into_iter().zip(self.days_left) {
            days.into_iter().for_each(|days| self.fields.put(name, days));
        }
        delivery.push_heartbeat(AGENT_HEARTBEAT, self.fields.iter());

        for (name, running) in plugins.running() {
            let tally = running.stats.tally();
            let tasks = running.stats.tasks();
            let facts = PluginFacts {
                name: name.as_str(),
                version: &running.version,
                pid: running.pid,
                began_ms: running.since.0,
                dir: &plugins.directory(name),
                traffic: Traffic {
                    rx_bytes: tasks.bytes,
                    tx_bytes: tally.record_bytes,
                    rx_messages: tasks.count,
                    tx_messages: tally.records,
                },
            };
            if self.heartbeat.plugin_fields(now.0, &facts, &mut self.fields) {
                put(&mut self.fields, &counts::of_frames(&tally));
                put(&mut self.fields, &[counts::stderr_left_out(running.stats.stderr_left_out())]);
                if let Some(plugin) = dispatch.plugins().find(|plugin| plugin.name == name) {
                    self.fields.put("restarts", plugin.restarts);
                }
                delivery.push_heartbeat(PLUGIN_HEARTBEAT, self.fields.iter());
            }
        }
        self.heartbeat.measure_directories(plugins.running().map(|(name, _)| plugins.directory(name)));
    }

    /// A plugin's process has ended: there is nothing more to measure.
    pub(super) fn handle_plugin_ended(&mut self, name: &str) {
        self.heartbeat.forget(name);
    }
}

fn put(fields: &mut Fields, counts: &[Count]) {
    counts.iter().for_each(|count| fields.put(count.name, count.value));
}
