//! Renders the snapshot for people: short, aligned, with units.

use std::fmt::Write;

use elklet_core::printable::Printable;

use super::{Certificate, Connection, PluginView, Snapshot};
use crate::net::WARNED_DAYS;

/// Counters that have a line of their own.
const SHOWN: [&str; 4] = ["records", "records_confirmed", "records_sent_again", "records_lost"];

pub(super) fn render(snapshot: &Snapshot<'_>) -> String {
    let Snapshot { agent, connection, rates, buffer, ledger, spool, certificates, logs, counters, plugins } = snapshot;
    let mut page = Page(String::new());
    page.line("agent", &format!("{}, version {}", agent.id, agent.version));
    let (memory, cpu) = (bytes(agent.footprint.rss_bytes), span_ms(agent.footprint.cpu_ms));
    let up = span(agent.uptime_seconds);
    page.line("process", &format!("{}, up {up}, {memory} of memory, {cpu} of CPU", agent.pid));
    page.line("limits", agent.limits);
    page.line("directory", agent.workdir);
    page.line("connection", &of_connection(connection));
    if let Some(error) = &connection.last_error {
        page.line("last error", &format!("{} ago: {}", span(error.seconds_ago), error.text));
    }
    for (i, same) in agent.state_detail.chunk_by(|a, b| a == b).enumerate() {
        let times = if same.len() > 1 { format!("{} times: ", same.len()) } else { String::new() };
        page.line(if i == 0 { "abnormal" } else { "" }, &format!("{times}{}", same[0]));
    }
    let rate = |bytes_per_second: f64| bytes(whole(bytes_per_second)) + "/s";
    page.line(
        "rates",
        &format!(
            "{} records/s and {} from plugins, {} sent (in the last {})",
            decimal(rates.records_per_second),
            rate(rates.bytes_per_second),
            rate(rates.sent_bytes_per_second),
            span(rates.over_ms.div_ceil(1000)),
        ),
    );
    let count = |name| counters.iter().find(|count| count.name == name).map_or(0, |count| count.value);
    let [all, confirmed, again, lost] = SHOWN.map(|name| number(count(name)));
    let waiting = number(ledger.unconfirmed_records);
    page.line(
        "records",
        &format!("{all} from plugins; {confirmed} confirmed, {waiting} not yet, {again} sent again, {lost} lost"),
    );
    page.line(
        "buffer",
        &format!(
            "{} of {} records, {} of {}; at most {} and {} at once",
            number(buffer.records as u64),
            number(buffer.capacity_records as u64),
            bytes(buffer.bytes as u64),
            bytes(buffer.capacity_bytes as u64),
            number(buffer.high_water_records as u64),
            bytes(buffer.high_water_bytes as u64),
        ),
    );
    let kept = format!("{}, {}", plural(ledger.batches as u64, "batch", "batches"), bytes(ledger.bytes as u64));
    page.line("ledger", &format!("{kept} of {}", bytes(ledger.capacity_bytes as u64)));
    if let Some(spool) = spool {
        let kept = format!("{}, {}", plural(spool.records, "record", "records"), bytes(spool.bytes));
        page.line("spool", &format!("{kept} of {}", bytes(spool.capacity_bytes)));
    }
    let ends = [("client.crt", &certificates.client), ("ca.crt", &certificates.authority)];
    let ends: Vec<_> = ends.into_iter().filter_map(|(name, end)| Some(of_certificate(name, end.as_ref()?))).collect();
    page.list("expiry", &ends);
    for (name, error) in [("log", &logs.error), ("audit", &logs.audit_error)] {
        error.iter().for_each(|error| page.line(name, &format!("NOT WRITTEN: {error}")));
    }
    let counted = counters.iter().filter(|count| count.value > 0 && !SHOWN.contains(&count.name));
    let counted: Vec<_> = counted.map(|count| format!("{} {}", count.name, number(count.value))).collect();
    page.list("counts", &counted);
    page.0.push('\n');
    page.plugins(plugins);
    page.0
}

fn of_certificate(name: &str, end: &Certificate) -> String {
    match end.days_left {
        days if days < 0 => format!("{name} HAS EXPIRED ({})", end.expires),
        days => {
            let is_near = if days < WARNED_DAYS { ", renew it" } else { "" };
            format!("{name} in {}{is_near} ({})", plural(days.unsigned_abs(), "day", "days"), end.expires)
        }
    }
}

fn of_connection(connection: &Connection<'_>) -> String {
    let Connection { state, address, net_mode, for_seconds, next_attempt_ms, .. } = connection;
    let long = span(*for_seconds);
    match (connection.connected, next_attempt_ms) {
        (true, _) => format!("connected to {address} ({net_mode}) for {long}"),
        (false, Some(ms)) => format!("not connected for {long}; the next attempt is in {}", span_ms(*ms)),
        (false, None) => format!("not connected for {long}; {state} {address}"),
    }
}

/// The table's columns. The first three are words, which are aligned on the left.
const COLUMNS: [&str; 10] =
    ["PLUGIN", "VERSION", "STATE", "PID", "UP", "MEMORY", "CPU", "RESTARTS", "RECORDS/S", "BYTES/S"];
const WORDS: usize = 3;

struct Page(String);

impl Page {
    fn line(&mut self, name: &str, text: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.0, "{}", Printable(format_args!("{name:<11} {text}")));
    }

    /// Adds a list, four items to a line.
    fn list(&mut self, name: &str, items: &[String]) {
        for (i, items) in items.chunks(4).enumerate() {
            self.line(if i == 0 { name } else { "" }, &items.join(", "));
        }
    }

    fn plugins(&mut self, plugins: &[PluginView<'_>]) {
        if plugins.is_empty() {
            self.0 += "no plugins\n";
            return;
        }
        let mut rows = vec![COLUMNS.map(str::to_owned)];
        rows.extend(plugins.iter().map(row));
        let widths: Vec<_> =
            (0..COLUMNS.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
        for row in rows {
            let mut line = String::new();
            for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let _ = if i < WORDS { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") };
            }
            let _ = writeln!(self.0, "{}", Printable(line.trim_end()));
        }
        for plugin in plugins {
            let Some(process) = &plugin.process else { continue };
            self.list(&format!("limits of {}", plugin.name), &process.limits);
            let refused: Vec<_> =
                process.refused.iter().map(|(call, count)| format!("{call} {}", number(*count))).collect();
            self.list(&format!("refused to {}", plugin.name), &refused);
        }
    }
}

fn row(plugin: &PluginView<'_>) -> [String; COLUMNS.len()] {
    let state = match plugin.retry_ms {
        Some(ms) => format!("{} {}", plugin.state, span_ms(ms)),
        None => plugin.state.to_owned(),
    };
    let [name, version] = [plugin.name, plugin.version].map(str::to_owned);
    let restarts = number(plugin.restarts);
    match &plugin.process {
        Some(process) => [
            name,
            version,
            state,
            process.pid.to_string(),
            span(process.uptime_seconds),
            bytes(process.footprint.rss_bytes),
            span_ms(process.footprint.cpu_ms),
            restarts,
            decimal(process.records_per_second),
            bytes(whole(process.bytes_per_second)),
        ],
        None => {
            let none = || "-".to_owned();
            [name, version, state, none(), none(), none(), none(), restarts, none(), none()]
        }
    }
}

/// Formats a number with commas between thousands.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a rate. Its tenths matter only while it is small.
fn decimal(rate: f64) -> String {
    if rate > 0.0 && rate < 100.0 { format!("{rate:.1}") } else { number(whole(rate)) }
}

#[expect(clippy::cast_possible_truncation, reason = "rates are neither negative nor anywhere near 2^64")]
fn whole(rate: f64) -> u64 {
    rate as u64
}

fn plural(n: u64, one: &str, more: &str) -> String {
    format!("{} {}", number(n), if n == 1 { one } else { more })
}

fn bytes(n: u64) -> String {
    match n {
        0..=9_999 => format!("{} B", number(n)),
        10_000..=1_048_575 => format!("{} KiB", number(n >> 10)),
        _ => format!("{}.{} MiB", number(n >> 20), (n % (1 << 20) * 10) >> 20),
    }
}

/// Formats a time span with at most two units.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn span_ms(ms: u64) -> String {
    if ms < 60_000 { format!("{}.{} s", ms / 1000, ms / 100 % 10) } else { span(ms / 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_have_units() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 9_999, 10_240, 2 << 20, 64 << 20].map(bytes),
            ["0 B", "9,999 B", "10 KiB", "2.0 MiB", "64.0 MiB"]
        );
        assert_eq!([0, 59, 61, 3_661, 90_000].map(span), ["0 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!([0, 1_290, 61_000].map(span_ms), ["0.0 s", "1.2 s", "1 min 1 s"]);
        assert_eq!([0.0, 0.25, 99.94, 1_234.5].map(decimal), ["0", "0.2", "99.9", "1,234"]);
    }
}
