//! `/api/v1/forward`: where records are passed on to, and how far that is.

use super::{Answer, Ask, no_route, ok};
use crate::clock::now_ms;
use crate::forward::{Snapshot, Status};
use http::Method;
use serde_json::{Value, json};

pub(super) fn answer(ask: &Ask<'_>) -> Answer {
    if (ask.method, ask.rest) != (&Method::GET, "") {
        return no_route(ask);
    }
    let next_seq = ask.shared.options.store.as_ref().map_or(0, |store| *store.next_seq().borrow());
    let outputs = ask.shared.forwards.get().map(Vec::as_slice).unwrap_or_default();
    let outputs: Vec<_> = outputs.iter().map(|status| output(status, next_seq)).collect();
    ok(&json!({ "outputs": outputs }))
}

fn output(status: &Status, next_seq: u64) -> Value {
    let now = status.snapshot();
    let (lag_records, lag_seconds) = lag(&now, next_seq);
    let Snapshot { position, sent, bytes, retries, refused, missed, error, .. } = now;
    json!({
        "name": status.name,
        "kind": status.kind,
        "state": now.state.name(),
        "since_ms": now.since_ms,
        "position": position,
        "lag_records": lag_records,
        "lag_seconds": lag_seconds,
        "sent": sent,
        "bytes": bytes,
        "retries": retries,
        "refused": refused,
        "missed": missed.records,
        "damaged_blocks": missed.blocks,
        "error": error.as_ref().map(|(error, _)| error),
        "error_ms": error.as_ref().map(|(_, at_ms)| at_ms),
    })
}

/// Returns how many records are not passed on yet, which is an upper bound, and for how many seconds the oldest of them has waited.
pub(in crate::http) fn lag(now: &Snapshot, next_seq: u64) -> (u64, u64) {
    let waited_ms = now.oldest_received_ms.map_or(0, |oldest| now_ms().saturating_sub(oldest));
    (next_seq.saturating_sub(now.position), u64::try_from(waited_ms / 1000).unwrap_or(0))
}
