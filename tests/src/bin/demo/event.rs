//! A record, shown as a line.

use elklet_center::message::{AGENT_HEARTBEAT, PLUGIN_HEARTBEAT, Record, TASK_REPORT};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::board::Start;
use crate::screen::{Line, Style, bytes, cut_front, harmless};

/// Data type of "a process has executed a program".
pub(crate) const EXEC: i32 = 59;
/// Data type of "a process has ended".
pub(crate) const EXIT: i32 = 60;

/// The width of the column for the path of an executable.
const EXE_WIDTH: usize = 22;

/// A record with its fields.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    record: &'a Record,
    fields: BTreeMap<String, String>,
}

impl<'a> Event<'a> {
    pub(crate) fn new(record: &'a Record) -> Self {
        // If the payload cannot be decoded there are no fields to show. The record is counted all the same.
        Self { record, fields: record.fields().unwrap_or_default() }
    }

    pub(crate) fn data_type(&self) -> i32 {
        self.record.data_type
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.field("pid").parse().ok()
    }

    /// Returns true if the process descends from `ancestor`, as far back as the record tells.
    pub(crate) fn descends_from(&self, ancestor: u32) -> bool {
        self.field("pid_tree").contains(&format!("<{ancestor}."))
    }

    /// Returns the start of a program, for the board.
    pub(crate) fn start(&self, demo: u32) -> Option<Start> {
        let known = |name| Some(harmless(self.field(name))).filter(|value| !is_nothing(value));
        Some(Start {
            tree: harmless(self.field("pid_tree")),
            pid: self.pid()?,
            exe: known("exe").or_else(|| known("comm")).unwrap_or_else(|| "?".to_owned()),
            argv: known("argv").unwrap_or_default(),
            own: self.descends_from(demo),
        })
    }

    /// Returns true if the text is in the process's path or arguments. What is no process has neither.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.field("exe").contains(text) || self.field("argv").contains(text)
    }

    /// Returns the line. Processes that the demo has made itself get a mark.
    pub(crate) fn line(&self, demo: u32) -> Line {
        let (style, word, text) = match self.record.data_type {
            EXEC => (Style::Exec, "exec", self.process(demo)),
            EXIT => (Style::Exit, "exit", self.process(demo)),
            AGENT_HEARTBEAT => (Style::Beat, "beat", self.agents_heartbeat()),
            PLUGIN_HEARTBEAT => (Style::Beat, "beat", self.plugins_heartbeat()),
            TASK_REPORT => (Style::Note, "told", harmless(self.field("msg"))),
            other => (Style::Plain, "data", format!("of type {other}, {} bytes", self.record.data.len())),
        };
        Line { style, time: time_of_day(self.record.timestamp), word, text }
    }

    fn process(&self, demo: u32) -> String {
        let known = |name| Some(harmless(self.field(name))).filter(|value| !is_nothing(value));
        // If a process was gone before procwatch could look at it, the record has its name at best.
        let exe = known("exe").or_else(|| Some(format!("({})", known("comm")?))).unwrap_or_else(|| "?".to_owned());
        let mark = if self.descends_from(demo) { '*' } else { ' ' };
        let (pid, exe) = (harmless(self.field("pid")), cut_front(&exe, EXE_WIDTH));
        format!("{pid:>7}{mark} {exe:<EXE_WIDTH$} {}", known("argv").unwrap_or_default()).trim_end().to_owned()
    }

    fn agents_heartbeat(&self) -> String {
        let field = |name| harmless(self.field(name));
        format!(
            "agent {}: {}, {}, {} files open, {} records from plugins so far",
            field("state"),
            self.rss(),
            self.cpu(),
            field("nfd"),
            field("records")
        )
    }

    fn plugins_heartbeat(&self) -> String {
        let rate: f64 = self.field("tx_tps").parse().unwrap_or_default();
        format!("{}: {}, {}, {rate:.1} records/s", harmless(self.field("name")), self.rss(), self.cpu())
    }

    fn rss(&self) -> String {
        format!("RSS {}", bytes(self.field("rss").parse().unwrap_or_default()))
    }

    fn cpu(&self) -> String {
        format!("CPU {:.1} %", 100.0 * self.field("cpu").parse().unwrap_or(0.0))
    }

    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// Returns true for what the reference's driver writes for a value that does not exist, could not be read, or was not
/// looked up.
fn is_nothing(value: &str) -> bool {
    matches!(value, "" | "-1" | "-3" | "-4")
}

/// Formats a time as `hh:mm:ss` in UTC.
pub(crate) fn time_of_day(unix_seconds: i64) -> String {
    let second = unix_seconds.rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Returns the time of day now.
pub(crate) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    time_of_day(since.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use elklet_proto::grpc::Payload;
    use prost::Message;

    fn record(data_type: i32, fields: &[(&str, &str)]) -> Record {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Record { data_type, timestamp: 86_400 + 3_661, data: Payload { fields }.encode_to_vec().into() }
    }

    #[test]
    fn a_process_is_a_line() {
        let tree = "12.ls<9.demo<1.init";
        let record = record(EXEC, &[("pid", "12"), ("exe", "/usr/bin/ls"), ("argv", "ls\x1b /"), ("pid_tree", tree)]);
        let event = Event::new(&record);
        let line = event.line(9);
        assert_eq!((line.style, line.time.as_str(), line.word), (Style::Exec, "01:01:01", "exec"));
        assert_eq!(line.text, "     12* /usr/bin/ls            ls? /");
        assert!(event.line(12).text.starts_with("     12  "), "a process is not its own ancestor");
        assert_eq!(event.pid(), Some(12));
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        let record = record(EXIT, &[("pid", "12"), ("exe", "-3"), ("argv", "-3"), ("comm", "ls")]);
        assert_eq!(Event::new(&record).line(9).text, "     12  (ls)");
        let broken = Record { data_type: EXIT, timestamp: -1, data: vec![0xff].into() };
        let line = Event::new(&broken).line(9);
        assert_eq!((line.time.as_str(), line.text.trim_start()), ("23:59:59", "?"));
    }
}
