//! How the commands write: what hosts say without what could steer a terminal, figures that people read, and tables.

use rustix::termios::tcgetwinsize;
use serde_json::Value;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

/// Columns where nobody says how many there are: no terminal, or one that does not know.
const WIDTH: usize = 80;

/// Returns text without what a terminal would obey, or what would show it in another order: control characters and marks of direction
/// are written as Rust writes them.
pub(super) fn printable(text: &str) -> String {
    if !text.contains(steers) {
        return text.to_owned();
    }
    let mut printable = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if steers(c) {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

/// Returns JSON of the same meaning in which no character steers a terminal. JSON itself escapes only some of them, and has them nowhere
/// but in its strings.
pub(super) fn printable_json(json: &str) -> Cow<'_, str> {
    if !json.contains(|c| steers(c) && c != '\n') {
        return Cow::Borrowed(json);
    }
    let mut printable = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if steers(c) && c != '\n' {
            write!(printable, "\\u{:04x}", u32::from(c)).expect("strings grow");
        } else {
            printable.push(c);
        }
    }
    Cow::Owned(printable)
}

fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns how wide the terminal of standard output is.
pub(super) fn width() -> usize {
    let columns = tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { WIDTH } else { columns }
}

/// Returns text that has at most so many characters.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Returns a number of bytes as people read it.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut rest, mut unit) = (bytes, 0, 0);
    while whole >= 1024 && unit + 1 < UNITS.len() {
        (rest, whole, unit) = (whole % 1024, whole / 1024, unit + 1);
    }
    if unit > 0 && whole < 10 {
        return format!("{whole}.{} {}", rest * 10 / 1024, UNITS[unit]);
    }
    format!("{whole} {}", UNITS[unit])
}

/// Returns a number with a comma behind each thousand.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a length of time in its largest unit: `40s`, `5m`, `3h`, `12d`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Returns a time as RFC 3339 has it, in whole seconds.
pub(super) fn time(ms: u64) -> String {
    // The last second that can be written so.
    let ms = ms.min(253_402_300_799_000);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

/// Returns a field of an answer as text that a terminal may have: nothing if it is not there.
pub(super) fn field(value: &Value, name: &str) -> String {
    match &value[name] {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

/// Returns text as a part of a path or of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("strings grow");
        }
    }
    encoded
}

/// Returns rows as lines in columns, each as wide as its widest cell. The last column is cut where the line would be longer than `width`.
pub(super) fn table(head: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let head: Vec<String> = head.iter().map(|&name| name.to_owned()).collect();
    let len = |cell: &String| cell.chars().count();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().chain([&head]).map(|row| len(&row[column])).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for row in [&head].into_iter().chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(line, "{cell:<width$}  ").expect("strings grow");
        }
        writeln!(text, "{}", cut(line.trim_end(), width)).expect("strings grow");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_host_says_steers_the_terminal() {
        assert_eq!(printable("ls -l\n\u{1b}[31mred\u{9b}1m\u{202e}"), "ls -l\\n\\u{1b}[31mred\\u{9b}1m\\u{202e}");
        assert_eq!(printable("grün 日本"), "grün 日本");
        let json = "{\"a\":\"\u{9b}1m\u{7f}\u{202e}ü\"}\n";
        let safe = printable_json(json);
        assert_eq!(safe, "{\"a\":\"\\u009b1m\\u007f\\u202eü\"}\n");
        assert_eq!(serde_json::from_str::<Value>(&safe).unwrap(), serde_json::from_str::<Value>(json).unwrap());
    }

    #[test]
    fn figures_are_short() {
        assert_eq!((bytes(1023), bytes(1536), bytes(20 << 30)), ("1023 B".into(), "1.5 KiB".into(), "20 GiB".into()));
        assert_eq!((count(0), count(999), count(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((span(59), span(7300), span(200_000)), ("59s".into(), "2h".into(), "2d".into()));
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(encoded("a b/ü"), "a%20b%2F%C3%BC");
    }

    #[test]
    fn a_table_is_no_wider_than_the_terminal() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let rows = [row(["gateway", "a long text"]), row(["b", "c"])];
        assert_eq!(table(&["HOST", "TEXT"], &rows, 16), "HOST     TEXT\ngateway  a long…\nb        c\n");
    }
}
