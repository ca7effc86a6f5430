//! `/metrics`, for Prometheus.

use super::api::{disk_free, lag};
use crate::forward::{Snapshot, State};
use crate::serve::Shared;
use crate::store::Store;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Returns everything that is counted.
pub(super) async fn text(shared: &Shared) -> String {
    let mut text = String::new();
    if let Some(store) = shared.options.store.clone() {
        // Somebody may be writing to the disk meanwhile, which holds this up.
        text = tokio::task::spawn_blocking(move || of_store(&store)).await.unwrap_or_default();
    }
    let downloads = &shared.downloads;
    for (name, help, count) in [
        ("downloads_total", "Files of plugins that agents have fetched.", &downloads.sent),
        ("downloads_refused_total", "Requests for files that were refused.", &downloads.refused),
        ("download_bytes_total", "Bytes of files that agents have fetched.", &downloads.bytes),
    ] {
        figure(&mut text, "", (name, "counter", help, count.load(Relaxed)));
    }
    shared.read(|state| {
        let totals = &state.totals;
        for of_agents in [
            ("connected_agents", "gauge", "Agents with an open stream.", state.live.len() as u64),
            ("known_agents", "gauge", "Hosts that are known, connected or not.", state.agents.len() as u64),
            (
                "storing",
                "gauge",
                "1 while records are taken, 0 while agents have to keep them.",
                u64::from(state.sink_refuses.is_none()),
            ),
            (
                "hosts_written",
                "gauge",
                "1 while what changes of hosts can be written, else 0.",
                u64::from(state.unwritable.is_none()),
            ),
            ("refused_by_store_total", "counter", "Messages that the store could not take.", totals.sink_refusals),
            ("connections_total", "counter", "Connections of agents.", totals.connections),
            (
                "failed_handshakes_total",
                "counter",
                "Connections that ended before TLS was agreed on.",
                totals.failed_handshakes,
            ),
            ("streams_total", "counter", "Transfer streams.", totals.streams),
            (
                "refused_out_of_tokens_total",
                "counter",
                "Streams refused because conn_limit was reached.",
                totals.out_of_tokens,
            ),
            (
                "refused_conflicts_total",
                "counter",
                "Streams refused because their id was connected already.",
                totals.conflicts,
            ),
            ("bad_messages_total", "counter", "Messages that could not be decoded.", totals.bad_messages),
            (
                "too_many_pings_total",
                "counter",
                "Connections ended because their pings came too close together.",
                totals.too_many_pings,
            ),
            ("enrolled_total", "counter", "Hosts that were given a certificate for a token.", totals.enrolled),
            ("renewed_certificates_total", "counter", "Certificates that were renewed.", totals.renewed),
            (
                "refused_enrolments_total",
                "counter",
                "Requests for a certificate that were refused.",
                totals.refused_enrolments,
            ),
            (
                "refused_id_mismatches_total",
                "counter",
                "Calls under an id that is not the one of the certificate.",
                totals.id_mismatches,
            ),
            ("refused_revoked_total", "counter", "Calls with a certificate that was revoked.", totals.revoked_calls),
            (
                "refused_anonymous_total",
                "counter",
                "Calls without a certificate for what needs one.",
                totals.anonymous_calls,
            ),
            ("messages_total", "counter", "Messages of agents.", totals.messages),
            ("wire_bytes_total", "counter", "Bytes of messages as they came.", totals.wire_bytes),
            ("decoded_bytes_total", "counter", "Bytes of messages after decompression.", totals.decoded_bytes),
        ] {
            figure(&mut text, "", of_agents);
        }
        describe(&mut text, "records_total", "counter", "Records by data type.");
        for (data_type, records) in &state.by_type {
            writeln!(text, "center_records_total{{data_type=\"{data_type}\"}} {records}").expect("strings grow");
        }
    });
    of_certificates(&mut text, shared);
    of_outputs(&mut text, shared);
    of_the_port(&mut text, shared);
    text
}

/// Adds when the certificates end that agents and the center know each other by.
fn of_certificates(text: &mut String, shared: &Shared) {
    let ends = shared.ends();
    for (name, help, end) in [
        ("certificate_end_timestamp_seconds", "When the certificate that the center shows ends.", ends.server_s),
        ("ca_end_timestamp_seconds", "When the last authority of agents' certificates ends.", ends.authorities_s),
    ] {
        if let Some(end) = end.and_then(|end| u64::try_from(end).ok()) {
            figure(text, "", (name, "gauge", help, end));
        }
    }
}

/// Adds what is known of the outputs that records are passed on to.
fn of_outputs(text: &mut String, shared: &Shared) {
    let Some(outputs) = shared.forwards.get() else { return };
    let next_seq = shared.options.store.as_ref().map_or(0, |store| *store.next_seq().borrow());
    let all: Vec<_> = outputs.iter().map(|status| (&status.name, status.snapshot())).collect();
    type Figure = fn(&Snapshot, u64) -> u64;
    let figures: [(&str, &str, &str, Figure); 9] = [
        ("sent_total", "counter", "Records that the output has confirmed.", |now, _| now.sent),
        ("bytes_total", "counter", "Bytes that the output has confirmed.", |now, _| now.bytes),
        ("retries_total", "counter", "Batches that were sent again.", |now, _| now.retries),
        ("refused_total", "counter", "Records that the receiver refuses for what they are.", |now, _| now.refused),
        ("missed_total", "counter", "Records that the store dropped before they were passed on.", |now, _| {
            now.missed.records
        }),
        (
            "damaged_blocks_total",
            "counter",
            "Blocks of the store that could not be passed on because they are damaged.",
            |now, _| now.missed.blocks,
        ),
        ("failing", "gauge", "1 while the output takes nothing, else 0.", |now, _| {
            u64::from(now.state == State::Failing)
        }),
        ("lag_records", "gauge", "Records that wait for the output.", |now, next_seq| lag(now, next_seq).0),
        ("lag_seconds", "gauge", "Age of the oldest record that waits for the output.", |now, next_seq| {
            lag(now, next_seq).1
        }),
    ];
    for (figure, kind, help, value) in figures {
        describe(text, &format!("forward_{figure}"), kind, help);
        for (name, now) in &all {
            let value = value(now, next_seq);
            writeln!(text, "center_forward_{figure}{{output=\"{name}\"}} {value}").expect("strings grow");
        }
    }
}

/// Adds what is counted of the HTTP port itself.
fn of_the_port(text: &mut String, shared: &Shared) {
    let counts = &shared.access.counts;
    for of_port in [
        ("event_streams", "gauge", "Open streams of live events.", shared.watched.lookers() as u64),
        ("sign_ins_total", "counter", "Sign-ins that succeeded.", counts.sign_ins.load(Relaxed)),
        (
            "wrong_sign_ins_total",
            "counter",
            "Sign-ins with a wrong name or password.",
            counts.wrong_sign_ins.load(Relaxed),
        ),
        (
            "hasty_sign_ins_total",
            "counter",
            "Sign-ins refused because there were too many.",
            counts.hasty_sign_ins.load(Relaxed),
        ),
    ] {
        figure(text, "", of_port);
    }
    describe(text, "http_answers_total", "counter", "Answers of the HTTP port by status.");
    for (status, answers) in counts.answers() {
        writeln!(text, "center_http_answers_total{{status=\"{status}\"}} {answers}").expect("strings grow");
    }
}

/// Returns what the store holds and does.
fn of_store(store: &Arc<Store>) -> String {
    let (stats, settings) = (store.stats(), store.settings());
    let oldest = stats.oldest_received_ms.map_or(0, |oldest| oldest / 1000);
    let mut text = String::new();
    for of_store in [
        ("records", "gauge", "Records in the store.", stats.records),
        ("files", "gauge", "Files of the store.", stats.files as u64),
        ("bytes", "gauge", "Bytes of the store.", stats.bytes),
        ("max_bytes", "gauge", "Bytes that the store may have.", settings.max_bytes),
        (
            "oldest_record_timestamp_seconds",
            "gauge",
            "When the oldest record was received.",
            u64::try_from(oldest).unwrap_or_default(),
        ),
        ("queued_bytes", "gauge", "Bytes that wait to be written.", stats.queued_bytes as u64),
        ("failing", "gauge", "1 while the store cannot write, else 0.", u64::from(stats.failure.is_some())),
        ("failures_total", "counter", "Writes that failed.", stats.failures),
        ("stored_total", "counter", "Records that were stored.", stats.stored),
        ("commits_total", "counter", "Transactions that stored them.", stats.commits),
        ("merged_total", "counter", "Records that were merged into larger runs.", stats.merged),
        ("dropped_files_total", "counter", "Files that retention has dropped.", stats.dropped_files),
        ("corrupt_files", "gauge", "Files that cannot be read and were set aside.", stats.corrupt_files as u64),
        ("damaged_blocks_total", "counter", "Damaged blocks that were found.", stats.damaged_blocks),
    ] {
        figure(&mut text, "store_", of_store);
    }
    if let Some(free) = disk_free(store) {
        figure(&mut text, "store_", ("disk_free_bytes", "gauge", "Bytes that are free on the store's disk.", free));
    }
    text
}

/// Adds one figure without labels: its name behind a prefix, its kind, what it is, and its value.
fn figure(text: &mut String, prefix: &str, (name, kind, help, value): (&str, &str, &str, u64)) {
    let name = format!("{prefix}{name}");
    describe(text, &name, kind, help);
    writeln!(text, "center_{name} {value}").expect("strings grow");
}

/// Adds what the values below it are.
fn describe(text: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(text, "# HELP center_{name} {help}\n# TYPE center_{name} {kind}").expect("strings grow");
}
