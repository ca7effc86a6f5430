//! `/api/v1/audit`: who did what.

use super::{Answer, Ask, bad, failed, no_route, ok, refuse};
use crate::http::caller::Role;
use crate::store::site::AuditEntry;
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// `?before=ID`, `?limit=N`: entries, newest first. `next` goes on.
pub(super) fn answer(ask: &Ask<'_>) -> Answer {
    if (ask.method, ask.rest) != (&Method::GET, "") {
        return no_route(ask);
    }
    ask.must(Role::Admin)?;
    let Some(store) = ask.shared.options.store.as_deref() else {
        return refuse(StatusCode::NOT_FOUND, "this center has no store");
    };
    let limit = ask.query.limit()?;
    let before = ask.query.get("before").map(|text| text.parse().map_err(|_| bad(&format!("before={text} is no id"))));
    let before = before.transpose()?;
    let entries =
        tokio::task::block_in_place(|| store.site().audit().list(before, limit)).map_err(|error| failed(&error))?;
    let next = entries.last().filter(|_| entries.len() == limit).map(|last| last.id);
    ok(&json!({ "entries": entries.iter().map(json).collect::<Vec<_>>(), "next": next }))
}

fn json(entry: &AuditEntry) -> Value {
    json!({
        "id": entry.id,
        "at_ms": entry.at_ms,
        "who": entry.who,
        "origin": entry.origin,
        "action": entry.action,
        "object": entry.object,
        "detail": entry.detail,
        "outcome": entry.outcome,
    })
}
