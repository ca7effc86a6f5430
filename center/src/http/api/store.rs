//! `/api/v1/store`: how much the store holds, and whether it can write.

use super::{Answer, Ask, Refusal, no_route, ok, refuse};
use crate::serve::Shared;
use crate::store::{Stats, Store};
use http::{Method, StatusCode};
use serde_json::{Value, json};

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    if (ask.method, ask.rest) != (&Method::GET, "") {
        return no_route(ask);
    }
    match told(ask.shared).await? {
        Some(told) => ok(&told),
        None => refuse(StatusCode::NOT_FOUND, "this center has no store"),
    }
}

/// Returns what is told of the store, if there is one.
pub(super) async fn told(shared: &Shared) -> Result<Option<Value>, Refusal> {
    let Some(store) = shared.options.store.clone() else { return Ok(None) };
    // Somebody may be writing to the disk meanwhile, which holds this up.
    let looked = tokio::task::spawn_blocking(move || {
        let (stats, free) = (store.stats(), disk_free(&store));
        (stats, free, store.settings().keep.as_secs(), store.settings().max_bytes)
    });
    let Ok((stats, free, keep_s, max_bytes)) = looked.await else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the store cannot be asked");
    };
    let Stats { records, bytes, files, oldest_received_ms, queued_bytes, dropped_files, corrupt_files, .. } = stats;
    Ok(Some(json!({
        "records": records,
        "stored": stats.stored,
        "bytes": bytes,
        "files": files,
        "oldest_ms": oldest_received_ms,
        "keep_s": keep_s,
        "max_bytes": max_bytes,
        "queued_bytes": queued_bytes,
        "failure": stats.failure.map(|failure| format!("{}: {}", failure.kind, failure.error)),
        "site_failure": shared.read(|fleet| fleet.unwritable.clone()),
        "disk_free_bytes": free,
        "dropped_files": dropped_files,
        "corrupt_files": corrupt_files,
        "damaged_blocks": stats.damaged_blocks,
    })))
}

/// Returns what is left for this process on the store's disk, if the system says.
pub(in crate::http) fn disk_free(store: &Store) -> Option<u64> {
    store.disk_free().inspect_err(|error| log::warn!("how much room the disk has: {error}")).ok()
}
