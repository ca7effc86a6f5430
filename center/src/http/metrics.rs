//! `/metrics`, for Prometheus.

use crate::serve::Shared;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

/// Returns everything that is counted.
pub(super) fn text(shared: &Shared) -> String {
    let mut text = String::new();
    shared.read(|state| {
        let totals = &state.totals;
        for (name, kind, value) in [
            ("connected_agents", "gauge", state.live.len() as u64),
            ("known_agents", "gauge", state.agents.len() as u64),
            ("storing", "gauge", u64::from(state.sink_refuses.is_none())),
            ("refused_by_store_total", "counter", totals.sink_refusals),
            ("connections_total", "counter", totals.connections),
            ("failed_handshakes_total", "counter", totals.failed_handshakes),
            ("streams_total", "counter", totals.streams),
            ("refused_out_of_tokens_total", "counter", totals.out_of_tokens),
            ("refused_conflicts_total", "counter", totals.conflicts),
            ("bad_messages_total", "counter", totals.bad_messages),
            ("too_many_pings_total", "counter", totals.too_many_pings),
            ("messages_total", "counter", totals.messages),
            ("wire_bytes_total", "counter", totals.wire_bytes),
            ("decoded_bytes_total", "counter", totals.decoded_bytes),
        ] {
            writeln!(text, "# TYPE center_{name} {kind}\ncenter_{name} {value}").expect("strings grow");
        }
        let mut by_type = BTreeMap::<i32, u64>::new();
        for (data_type, count) in state.agents.values().flat_map(|agent| &agent.counts) {
            *by_type.entry(*data_type).or_default() += count.records;
        }
        text.push_str("# TYPE center_records_total counter\n");
        for (data_type, records) in by_type {
            writeln!(text, "center_records_total{{data_type=\"{data_type}\"}} {records}").expect("strings grow");
        }
    });
    of_the_port(&mut text, shared);
    text
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
