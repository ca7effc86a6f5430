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
    for (name, count) in [
        ("downloads_total", &downloads.sent),
        ("downloads_refused_total", &downloads.refused),
        ("download_bytes_total", &downloads.bytes),
    ] {
        let value = count.load(Relaxed);
        writeln!(text, "# TYPE center_{name} counter\ncenter_{name} {value}").expect("strings grow");
    }
    shared.read(|state| {
        let totals = &state.totals;
        for (name, kind, value) in [
            ("connected_agents", "gauge", state.live.len() as u64),
            ("known_agents", "gauge", state.agents.len() as u64),
            ("storing", "gauge", u64::from(state.sink_refuses.is_none())),
            ("hosts_written", "gauge", u64::from(state.unwritable.is_none())),
            ("refused_by_store_total", "counter", totals.sink_refusals),
            ("connections_total", "counter", totals.connections),
            ("failed_handshakes_total", "counter", totals.failed_handshakes),
            ("streams_total", "counter", totals.streams),
            ("refused_out_of_tokens_total", "counter", totals.out_of_tokens),
            ("refused_conflicts_total", "counter", totals.conflicts),
            ("bad_messages_total", "counter", totals.bad_messages),
            ("too_many_pings_total", "counter", totals.too_many_pings),
            ("enrolled_total", "counter", totals.enrolled),
            ("renewed_certificates_total", "counter", totals.renewed),
            ("refused_enrolments_total", "counter", totals.refused_enrolments),
            ("refused_id_mismatches_total", "counter", totals.id_mismatches),
            ("refused_revoked_total", "counter", totals.revoked_calls),
            ("refused_anonymous_total", "counter", totals.anonymous_calls),
            ("messages_total", "counter", totals.messages),
            ("wire_bytes_total", "counter", totals.wire_bytes),
            ("decoded_bytes_total", "counter", totals.decoded_bytes),
        ] {
            writeln!(text, "# TYPE center_{name} {kind}\ncenter_{name} {value}").expect("strings grow");
        }
        text.push_str("# TYPE center_records_total counter\n");
        for (data_type, records) in &state.by_type {
            writeln!(text, "center_records_total{{data_type=\"{data_type}\"}} {records}").expect("strings grow");
        }
    });
    of_outputs(&mut text, shared);
    of_the_port(&mut text, shared);
    text
}

/// Adds what is known of the outputs that records are passed on to.
fn of_outputs(text: &mut String, shared: &Shared) {
    let Some(outputs) = shared.forwards.get() else { return };
    let next_seq = shared.options.store.as_ref().map_or(0, |store| *store.next_seq().borrow());
    let all: Vec<_> = outputs.iter().map(|status| (&status.name, status.snapshot())).collect();
    type Figure = fn(&Snapshot, u64) -> u64;
    let figures: [(&str, &str, Figure); 9] = [
        ("sent_total", "counter", |now, _| now.sent),
        ("bytes_total", "counter", |now, _| now.bytes),
        ("retries_total", "counter", |now, _| now.retries),
        ("refused_total", "counter", |now, _| now.refused),
        ("missed_total", "counter", |now, _| now.missed.records),
        ("damaged_blocks_total", "counter", |now, _| now.missed.blocks),
        ("failing", "gauge", |now, _| u64::from(now.state == State::Failing)),
        ("lag_records", "gauge", |now, next_seq| lag(now, next_seq).0),
        ("lag_seconds", "gauge", |now, next_seq| lag(now, next_seq).1),
    ];
    for (figure, kind, value) in figures {
        writeln!(text, "# TYPE center_forward_{figure} {kind}").expect("strings grow");
        for (name, now) in &all {
            let value = value(now, next_seq);
            writeln!(text, "center_forward_{figure}{{output=\"{name}\"}} {value}").expect("strings grow");
        }
    }
}

/// Adds what is counted of the HTTP port itself.
fn of_the_port(text: &mut String, shared: &Shared) {
    let counts = &shared.access.counts;
    for (name, kind, value) in [
        ("event_streams", "gauge", shared.watched.lookers() as u64),
        ("sign_ins_total", "counter", counts.sign_ins.load(Relaxed)),
        ("wrong_sign_ins_total", "counter", counts.wrong_sign_ins.load(Relaxed)),
        ("hasty_sign_ins_total", "counter", counts.hasty_sign_ins.load(Relaxed)),
    ] {
        writeln!(text, "# TYPE center_{name} {kind}\ncenter_{name} {value}").expect("strings grow");
    }
    text.push_str("# TYPE center_http_answers_total counter\n");
    for (status, answers) in counts.answers() {
        writeln!(text, "center_http_answers_total{{status=\"{status}\"}} {answers}").expect("strings grow");
    }
}

/// Returns what the store holds and does.
fn of_store(store: &Arc<Store>) -> String {
    let (stats, settings) = (store.stats(), store.settings());
    let oldest = stats.oldest_received_ms.map_or(0, |oldest| oldest / 1000);
    let mut text = String::new();
    for (name, kind, value) in [
        ("records", "gauge", stats.records),
        ("files", "gauge", stats.files as u64),
        ("bytes", "gauge", stats.bytes),
        ("max_bytes", "gauge", settings.max_bytes),
        ("oldest_record_timestamp_seconds", "gauge", u64::try_from(oldest).unwrap_or_default()),
        ("queued_bytes", "gauge", stats.queued_bytes as u64),
        ("failing", "gauge", u64::from(stats.failure.is_some())),
        ("failures_total", "counter", stats.failures),
        ("stored_total", "counter", stats.stored),
        ("commits_total", "counter", stats.commits),
        ("merged_total", "counter", stats.merged),
        ("dropped_files_total", "counter", stats.dropped_files),
        ("corrupt_files", "gauge", stats.corrupt_files as u64),
        ("damaged_blocks_total", "counter", stats.damaged_blocks),
    ] {
        writeln!(text, "# TYPE center_store_{name} {kind}\ncenter_store_{name} {value}").expect("strings grow");
    }
    if let Some(free) = disk_free(store) {
        writeln!(text, "# TYPE center_store_disk_free_bytes gauge\ncenter_store_disk_free_bytes {free}")
            .expect("strings grow");
    }
    text
}
