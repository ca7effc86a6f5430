//! Renders the snapshot for Prometheus (text format 0.0.4).

use std::fmt::{Display, Write};

use elklet_core::printable::Printable;

use super::{PluginView, Process, Snapshot};
use crate::host::Footprint;

/// The page for an agent that does not run.
pub(super) fn down() -> String {
    let mut page = Page::default();
    page.up(0);
    page.text
}

pub(super) fn render(snapshot: &Snapshot<'_>) -> String {
    let Snapshot { agent, connection, buffer, ledger, spool, certificates, logs, counters, plugins, .. } = snapshot;
    let mut page = Page::default();
    page.up(1);
    page.family("elklet_info", "gauge", "the agent's id and version");
    page.sample(&[("id", agent.id), ("version", agent.version)], 1);
    page.gauge("elklet_connected", "whether there is a stream to the server", u64::from(connection.connected));
    page.family("elklet_connection_info", "gauge", "what the connection is doing, and where");
    let labels = [("state", connection.state), ("address", connection.address), ("net_mode", connection.net_mode)];
    page.sample(&labels, 1);
    page.gauge("elklet_connection_seconds", "how long there has been a stream, or none", connection.for_seconds);
    page.gauge("elklet_uptime_seconds", "how long the agent has been running", agent.uptime_seconds);
    page.gauge("elklet_state_details", "things that went wrong since the last configuration", agent.state_detail.len());
    page.gauge("elklet_resident_bytes", "memory of the agent's process", agent.footprint.rss_bytes);
    page.family("elklet_cpu_seconds_total", "counter", "CPU time of the agent's process");
    page.sample(&[], seconds(agent.footprint));
    page.gauge("elklet_buffer_records", "records that wait to be sent", buffer.records);
    page.gauge("elklet_buffer_bytes", "bytes that wait to be sent", buffer.bytes);
    page.gauge("elklet_buffer_capacity_records", "records that may wait", buffer.capacity_records);
    page.gauge("elklet_buffer_capacity_bytes", "bytes that may wait", buffer.capacity_bytes);
    page.gauge(
        "elklet_buffer_high_water_records",
        "the most records that have left at once",
        buffer.high_water_records,
    );
    page.gauge("elklet_buffer_high_water_bytes", "the most bytes that have left at once", buffer.high_water_bytes);
    page.gauge("elklet_ledger_batches", "batches that are kept until the server has taken them", ledger.batches);
    page.gauge("elklet_ledger_bytes", "bytes of these, compressed", ledger.bytes);
    page.gauge("elklet_ledger_capacity_bytes", "bytes that are kept at most", ledger.capacity_bytes);
    page.gauge("elklet_unconfirmed_records", "records not known to have arrived", ledger.unconfirmed_records);
    if let Some(spool) = spool {
        page.gauge("elklet_spool_files", "files on the disk that hold records", spool.files);
        page.gauge("elklet_spool_records", "records in these", spool.records);
        page.gauge("elklet_spool_bytes", "bytes of these", spool.bytes);
        page.gauge("elklet_spool_capacity_bytes", "bytes on the disk at most", spool.capacity_bytes);
    }
    for (name, help, end) in [
        ("elklet_certificate_days_left", "whole days until the client's certificate expires", &certificates.client),
        ("elklet_ca_days_left", "whole days until the last authority's certificate expires", &certificates.authority),
    ] {
        end.iter().for_each(|end| page.gauge(name, help, end.days_left));
    }
    page.gauge("elklet_log_writable", "whether the log can be written", u8::from(logs.error.is_none()));
    page.gauge("elklet_audit_writable", "whether the audit can be written", u8::from(logs.audit_error.is_none()));
    for count in counters {
        page.family(&format!("elklet_{}_total", count.name), "counter", count.help);
        page.sample(&[], count.value);
    }
    page.plugins(plugins);
    page.text
}

/// The text so far, and the family of the next samples.
#[derive(Default)]
struct Page {
    text: String,
    family: String,
}

impl Page {
    fn up(&mut self, up: u8) {
        self.family("elklet_up", "gauge", "whether the agent answers");
        self.sample(&[], up);
    }

    fn plugins(&mut self, plugins: &[PluginView<'_>]) {
        if plugins.is_empty() {
            return;
        }
        self.family("elklet_plugin_info", "gauge", "a plugin's version and state");
        for plugin in plugins {
            self.sample(&[("plugin", plugin.name), ("version", plugin.version), ("state", plugin.state)], 1);
        }
        self.family("elklet_plugin_running", "gauge", "whether the plugin runs");
        for plugin in plugins {
            self.sample(&[("plugin", plugin.name)], u8::from(plugin.state == "running"));
        }
        self.family("elklet_plugin_restarts_total", "counter", "how often the plugin died and was to be started again");
        for plugin in plugins {
            self.sample(&[("plugin", plugin.name)], plugin.restarts);
        }
        let processes = || plugins.iter().filter_map(|plugin| Some((plugin.name, plugin.process.as_ref()?)));
        let mut of_processes = |name: &str, kind, help, value: &dyn Fn(&Process) -> String| {
            self.family(&format!("elklet_plugin_{name}"), kind, help);
            processes().for_each(|(plugin, process)| self.sample(&[("plugin", plugin)], value(process)));
        };
        // All processes have the same counters.
        let Some((_, one)) = processes().next() else { return };
        of_processes("resident_bytes", "gauge", "memory of the plugin's process", &|process| {
            process.footprint.rss_bytes.to_string()
        });
        of_processes("cpu_seconds_total", "counter", "CPU time of the plugin's process", &|process| {
            seconds(process.footprint)
        });
        for (i, count) in one.counters.iter().enumerate() {
            let name = format!("{}_total", count.name);
            of_processes(&name, "counter", count.help, &|process| process.counters[i].value.to_string());
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(&[], value);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.family = name.to_owned();
        // Writing to a string cannot fail, here and below.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.text += &self.family;
        let mut before = '{';
        for (name, value) in labels {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(self.text, "{before}{name}=\"{}\"", Printable(value));
            before = ',';
        }
        self.text += if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, " {value}");
    }
}

fn seconds(footprint: Footprint) -> String {
    format!("{}.{:03}", footprint.cpu_ms / 1000, footprint.cpu_ms % 1000)
}
