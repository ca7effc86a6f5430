//! The audit trail, as the HTTP port writes it: every change by anyone is one line.

use super::caller::Caller;
use crate::clock::now_ms;
use crate::serve::Shared;
use crate::store::site::AuditEntry;

/// The longest text in an entry, in bytes. What a change was made with may be megabytes.
const TEXT_LEN: usize = 2048;

/// Appends an entry about something that a caller did, which is on the disk when this returns. A center without a store has no trail.
///
/// What was done is done: when the entry cannot be written, the log has it.
pub(super) fn note(shared: &Shared, caller: &Caller, action: &str, object: &str, detail: &str, outcome: &str) {
    write(shared, &caller.name, &caller.origin, action, object, detail, outcome);
}

/// The same for whoever is no caller.
pub(crate) fn write(shared: &Shared, who: &str, origin: &str, action: &str, object: &str, detail: &str, outcome: &str) {
    let Some(store) = shared.options.store.as_deref() else { return };
    let cut = |text: &str| text[..text.floor_char_boundary(TEXT_LEN)].to_owned();
    let entry = AuditEntry {
        id: 0,
        at_ms: now_ms(),
        who: cut(who),
        origin: origin.to_owned(),
        action: action.to_owned(),
        object: cut(object),
        detail: cut(detail),
        outcome: cut(outcome),
    };
    if let Err(error) = tokio::task::block_in_place(|| store.site().audit().append(&entry)) {
        log::error!("the audit trail lacks {entry:?}: {error}");
    }
}
