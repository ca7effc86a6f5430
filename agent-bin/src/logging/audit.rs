//! The audit: who asked this agent for what, and with what result, in `log/audit.log`, one JSON object a line.
//!
//! It is separate from the log and bounds each kind of event on its own, so that a server that has a file uploaded
//! cannot wash out the trace of that with thousands of other tasks. docs/operations.md explains each field.

use elklet_core::limits::MAX_AUDIT_CHARS;
use elklet_core::printable::PrintableJson;
use serde::Serialize;

/// The kind of an event. Each kind has a bound of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A file is sent to the server.
    Upload,
    /// The host's idc or region.
    Metadata,
    /// The agent has to end.
    Shutdown,
    /// A plugin's files.
    Plugin,
    /// The agent's own version.
    Update,
    /// The agent refused something.
    Refused,
}

/// Number of kinds.
pub(super) const KINDS: usize = 6;

/// One event. Empty texts are not written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event<'a> {
    pub(crate) kind: Kind,
    /// What the event concerns: a path, a plugin with its version, or something else.
    pub(crate) what: &'a str,
    /// The task's token.
    pub(crate) token: &'a str,
    pub(crate) sha256: &'a str,
    pub(crate) result: &'a str,
}

impl<'a> Event<'a> {
    pub(crate) fn new(kind: Kind, what: &'a str, result: &'a str) -> Self {
        Self { kind, what, token: "", sha256: "", result }
    }

    /// Formats the event, with who asked for it and how many of its kind were left out before it.
    pub(super) fn line(&self, time: &str, server: &str, left_out: u64) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            time: &'a str,
            kind: Kind,
            #[serde(skip_serializing_if = "str::is_empty")]
            server: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            what: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            token: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            sha256: &'a str,
            result: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            left_out: Option<u64>,
        }
        let Self { kind, what, token, sha256, result } = *self;
        let [what, token, sha256, result] = [what, token, sha256, result].map(cut);
        let left_out = (left_out > 0).then_some(left_out);
        let line = Line { time, kind, server, what, token, sha256, result, left_out };
        // This cannot fail: there are no maps with odd keys, and the writer does not fail.
        format!("{}\n", PrintableJson(serde_json::to_string(&line).unwrap_or_default()))
    }
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(MAX_AUDIT_CHARS).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_that_speaks_to_no_terminal_and_is_bounded() {
        let long = "x".repeat(2 * MAX_AUDIT_CHARS);
        let event = Event { token: "\x1b[2J\u{9b}\n", ..Event::new(Kind::Upload, &long, "done") };
        let line = event.line("2026-01-01T00:00:00Z", "10.0.0.2:6751", 3);
        assert!(line.ends_with("\"left_out\":3}\n") && line.matches('\n').count() == 1, "{line}");
        assert!(!line.trim_end().contains(elklet_core::printable::is_unprintable), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&read["token"], &read["kind"]), (&"\x1b[2J\u{9b}\n".into(), &"upload".into()));
        assert_eq!(read["what"].as_str().map(str::len), Some(MAX_AUDIT_CHARS));
        assert!(read.get("sha256").is_none());
    }
}
