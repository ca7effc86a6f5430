//! A journal of what a center has received, which survives a `kill -9` of the center.
//!
//! It has a line for each run of consecutive numbers in a message, `STREAM n FIRST LAST RUN`, and for each other record
//! `STREAM r MESSAGE BYTES`, in hexadecimal digits. The center writes a message's lines in one write, before it reads
//! the next message.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::records::{AgentRecords, number};
use crate::center::{Batch, Record};

/// The writing end.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Tells the streams of this process from those of earlier ones.
    streams_from: u64,
    lines: String,
}

impl Journal {
    /// Opens the journal, and goes on where the last process stopped.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn append_to(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let streams_from = u64::try_from(now.as_millis()).unwrap_or(0) << 20;
        Ok(Self { file, streams_from, lines: String::new() })
    }

    /// Notes a message of the only agent.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&mut self, batch: &Arc<Batch>) -> io::Result<()> {
        let stream = self.streams_from + batch.stream;
        self.lines.clear();
        let mut numbers: Option<(String, u64, u64)> = None;
        for record in &batch.data.records {
            match (number(record), &mut numbers) {
                (Some((run, seq)), Some((name, _, last))) if *name == run && *last + 1 == seq => *last = seq,
                (Some((run, seq)), numbers) => {
                    self.numbers(stream, numbers.take());
                    *numbers = Some((run, seq, seq));
                }
                (None, numbers) => {
                    self.numbers(stream, numbers.take());
                    let hex: String = record.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
                    _ = writeln!(self.lines, "{stream} r {} {hex}", batch.index);
                }
            }
        }
        self.numbers(stream, numbers);
        self.file.write_all(self.lines.as_bytes())
    }

    fn numbers(&mut self, stream: u64, numbers: Option<(String, u64, u64)>) {
        if let Some((run, first, last)) = numbers {
            // Writing to a string cannot fail.
            _ = writeln!(self.lines, "{stream} n {first} {last} {run}");
        }
    }
}

/// The reading end.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    position: u64,
    records: AgentRecords,
}

impl Reader {
    pub(crate) fn of(path: PathBuf) -> Self {
        Self { path, position: 0, records: AgentRecords::default() }
    }

    /// Reads what was received so far.
    pub(crate) fn records(&mut self) -> &AgentRecords {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.position)).expect("a file can be positioned");
            file.read_to_end(&mut text).expect("it is readable");
        }
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.position += whole as u64;
        for line in text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let line = std::str::from_utf8(line).expect("it was a string");
            take(line, &mut self.records).unwrap_or_else(|| panic!("no line of a journal: {line:?}"));
        }
        &self.records
    }
}

fn take(line: &str, records: &mut AgentRecords) -> Option<()> {
    let mut words = line.splitn(5, ' ');
    let stream = words.next()?.parse().ok()?;
    match (words.next()?, words.next()?, words.next()?) {
        ("n", first, last) => {
            let run = words.next()?;
            for seq in first.parse::<u64>().ok()?..=last.parse().ok()? {
                records.take_number(stream, run, seq);
            }
        }
        ("r", message, hex) => {
            let digits: Option<Vec<_>> = hex.chars().map(|digit| digit.to_digit(16)).collect();
            let bytes =
                digits?.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).ok()).collect::<Option<Vec<_>>>()?;
            records.take_other(stream, message.parse().ok()?, Record::decode(&bytes[..]).ok()?);
        }
        _ => return None,
    }
    Some(())
}
