//! A record as a line.

use crate::cli::text::{field, printable, time};
use crate::kinds;
use serde_json::Value as Json;
use std::fmt::Write as _;

/// Fields that are shown of a record of a type that has no sentence of its own, and characters of the line.
const FIELDS: usize = 8;
const LENGTH: usize = 400;

/// What Elkeid's plugins write for what they do not know.
const MISSING: [&str; 4] = ["", "-1", "-3", "-4"];

/// Returns a line with when, where and what.
pub(super) fn of(record: &Json) -> String {
    let data_type = record["data_type"].as_i64().unwrap_or_default();
    let kind = i32::try_from(data_type).ok().and_then(kinds::name).map_or_else(|| data_type.to_string(), str::to_owned);
    let host = match field(record, "hostname") {
        name if name.is_empty() => field(record, "agent_id"),
        name => name,
    };
    let at = time(record["received_ms"].as_u64().unwrap_or_default());
    let mut line = format!("{at} {host} {kind}: {}", summary(data_type, record));
    line.truncate(line.trim_end_matches([' ', ':']).len());
    line.push('\n');
    line
}

/// Says in a few words what happened.
fn summary(data_type: i64, record: &Json) -> String {
    let fields = &record["fields"];
    if !fields.is_object() {
        return format!("{} bytes that are no record: {}", record["raw_len"], field(record, "error"));
    }
    let get = |name: &str| Some(field(fields, name)).filter(|value| !MISSING.contains(&value.as_str()));
    let or = |names: &[&str]| names.iter().find_map(|name| get(name)).unwrap_or_default();
    let peer = |ip: &str, port: &str| get(ip).map_or_else(String::new, |ip| format!("{ip} port {}", or(&[port])));
    let program = or(&["exe", "comm"]);
    let text = match data_type {
        59 => or(&["argv", "exe", "comm"]),
        60 | 231 => format!("{} ({})", or(&["argv", "exe", "comm"]), or(&["pid"])),
        42 => format!("{program} to {}", peer("dip", "dport")),
        43 => format!("{program} from {}", peer("dip", "dport")),
        49 => format!("{program} on {}", peer("sip", "sport")),
        62 | 200 => format!("{program} sends {} to {}", or(&["sig"]), or(&["target_pid"])),
        82 | 86 => format!("{program} {} to {}", or(&["old_name"]), or(&["new_name"])),
        601 => format!("{program} asks for {}", or(&["query"])),
        602 => format!("{program} creates {}", or(&["file_path"])),
        1010 | 1011 => [get("level"), get("plugin"), get("msg")].into_iter().flatten().collect::<Vec<_>>().join(": "),
        5100 => [get("status"), get("msg")].into_iter().flatten().collect::<Vec<_>>().join(": "),
        _ => others(fields),
    };
    shortened(text)
}

fn others(fields: &Json) -> String {
    let mut text = String::new();
    let known = fields.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name, value.as_str()?)));
    for (name, value) in known.filter(|(_, value)| !MISSING.contains(value)).take(FIELDS) {
        write!(text, "{}={} ", printable(name), printable(value)).expect("strings grow");
    }
    text
}

fn shortened(mut text: String) -> String {
    if text.len() > LENGTH {
        text.truncate(text.floor_char_boundary(LENGTH));
        text.push('…');
    }
    text
}

/// Returns a line of a table as a terminal may have it.
pub(super) fn table_line(line: &str) -> String {
    printable(line.trim_end_matches(['\r', '\n'])) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(data_type: i32, fields: &Json) -> String {
        let at = 1_700_000_000_000_u64;
        of(
            &json!({ "hostname": "gw\n1", "agent_id": "a", "received_ms": at, "data_type": data_type, "fields": fields }),
        )
    }

    #[test]
    fn a_record_is_one_line_that_steers_nothing() {
        let exec = json!({ "exe": "/bin/sh", "argv": "sh -c \u{1b}]0;x\u{7}\nrm" });
        assert_eq!(line(59, &exec), "2023-11-14T22:13:20Z gw\\n1 exec: sh -c \\u{1b}]0;x\\u{7}\\nrm\n");
        let connect = json!({ "exe": "/usr/bin/curl", "dip": "10.0.0.1", "dport": "443" });
        assert!(line(42, &connect).ends_with("connect: /usr/bin/curl to 10.0.0.1 port 443\n"));
        assert!(line(7, &json!({ "a": "-1", "b\u{9b}": "c" })).ends_with(" 7: b\\u{9b}=c\n"));
        assert!(line(112, &json!({})).ends_with(" setsid\n"));
        let long = line(59, &json!({ "argv": "ä".repeat(1000) }));
        assert!(long.len() < 500 && long.ends_with("…\n"));
        let none = json!({ "agent_id": "a", "data_type": 59, "received_ms": 0, "raw_len": 3, "error": "bad" });
        assert_eq!(of(&none), "1970-01-01T00:00:00Z a exec: 3 bytes that are no record: bad\n");
    }

    #[test]
    fn a_table_on_a_terminal_steers_nothing() {
        assert_eq!(table_line("1,\u{1b}[2J\u{85}x\r\n"), "1,\\u{1b}[2J\\u{85}x\n");
    }
}
