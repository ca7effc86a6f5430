//! `elklet-center records`: what hosts have sent, as lines that people read, or as JSON or a table for programs.

mod line;

use super::client::Client;
use super::out::print;
use super::text::{encoded, printable_json};
use super::{Failure, Where, hosts};
use crate::clock::now_ms;
use crate::kinds;
use lexopt::prelude::*;
use serde_json::Value as Json;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::{Duration, UNIX_EPOCH};

const HELP: &str = "\
elklet-center records: search what hosts have sent, the newest first, or follow it

usage: elklet-center records [OPTIONS]

  --host H         those of a host: its id, the beginning of that, or its name
  --type T,T       those of these types: exec, connect, dns, login, .. or numbers
  --field N=V      those whose field N is V, as in exe=/usr/bin/curl
  --contains N=T   those whose field N contains T
  --since WHEN     those received since then: 1h, 2026-11-27T05:00:00Z, or seconds since 1970
  --until WHEN     those received before
  --limit N        at most so many (100; up to 1000000)
  --follow         print the latest 10 (or --limit), the oldest first, and then what comes, until it is ended
  --json           a JSON object a line, as GET /api/v1/records.ndjson has them
  --csv            a table, as GET /api/v1/records.csv has it
";

const HELP_END: &str = "
What hosts say is printed without what could steer the terminal. All conditions have to hold; --field and --contains may be given
several times.
";

/// Records unless somebody says how many, and when they are followed.
const LIMIT: usize = 100;
const LIMIT_BEFORE: usize = 10;

/// The most records before those that are followed: a page.
const MAX_BEFORE: usize = 1_000;

/// How often it is asked for what is new.
const POLL: Duration = Duration::from_millis(500);

/// What is new was received at most so long before it was asked for last. Blocks of before need no look.
const OVERLAP_MS: i64 = 60_000;

/// How records are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Lines,
    Json,
    Csv,
}

/// What is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    host: Option<String>,
    /// Parameters of the query, each behind a `&`.
    query: String,
    since: Option<i64>,
    limit: Option<usize>,
    follow: bool,
    form: Form,
}

pub(super) fn help() -> String {
    format!("{HELP}{}{HELP_END}", Where::HELP)
}

pub(super) fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let Some((mut wanted, at)) = parse(parser, now_ms())? else {
        return print(&help());
    };
    let center = at.center()?;
    if let Some(meant) = &wanted.host {
        let host = hosts::for_records(&center, meant)?;
        write!(wanted.query, "&host={}", encoded(&host)).expect("strings grow");
    }
    if wanted.follow { follow(&center, &wanted) } else { search(&center, &wanted) }
}

/// Returns `None` when help is wanted.
fn parse(mut parser: lexopt::Parser, now_ms: i64) -> Result<Option<(Wanted, Where)>, Failure> {
    let (mut at, mut wanted, mut types) = (Where::default(), Wanted::default(), Vec::new());
    let mut until = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("host") => wanted.host = Some(parser.value()?.string()?),
            Long("type") => {
                for word in parser.value()?.string()?.split(',') {
                    types.extend(kinds::parse(word).map_err(|error| Failure::Words(format!("--type {error}")))?);
                }
            }
            Long(test @ ("field" | "contains")) => {
                let test = test.to_owned();
                let value = parser.value()?.string()?;
                let Some((name, value)) = value.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                    return Err(Failure::Words(format!("--{test} {value:?}, expected NAME=TEXT")));
                };
                write!(wanted.query, "&{test}.{}={}", encoded(name), encoded(value)).expect("strings grow");
            }
            Long("since") => wanted.since = Some(when(&parser.value()?.string()?, now_ms, "since")?),
            Long("until") => until = Some(when(&parser.value()?.string()?, now_ms, "until")?),
            Long("limit") => wanted.limit = Some(parser.value()?.parse()?),
            Long("follow") => wanted.follow = true,
            Long("json") => wanted.form = Form::Json,
            Long("csv") => wanted.form = Form::Csv,
            Long(flag) => at.must_take(flag.to_owned(), &mut parser)?,
            _ => return Err(argument.unexpected().into()),
        }
    }
    if wanted.follow && (wanted.form == Form::Csv || until.is_some()) {
        return Err(Failure::Words("--follow goes with neither --csv nor --until".to_owned()));
    }
    if wanted.limit == Some(0) || (wanted.follow && wanted.limit.is_some_and(|limit| limit > MAX_BEFORE)) {
        return Err(Failure::Words(format!("--limit, expected 1 or more, and with --follow at most {MAX_BEFORE}")));
    }
    if !types.is_empty() {
        let types: Vec<String> = types.iter().map(ToString::to_string).collect();
        write!(wanted.query, "&type={}", types.join(",")).expect("strings grow");
    }
    if let Some(until) = until {
        write!(wanted.query, "&until={until}").expect("strings grow");
    }
    Ok(Some((wanted, at)))
}

/// Reads a time as seconds since 1970: so long ago, a date, or those seconds.
fn when(text: &str, now_ms: i64, flag: &str) -> Result<i64, Failure> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now_ms / 1000 - i64::try_from(ago.as_secs()).unwrap_or(i64::MAX / 2));
    }
    let at = humantime::parse_rfc3339_weak(text).ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    at.and_then(|at| i64::try_from(at.as_secs()).ok()).ok_or_else(|| {
        Failure::Words(format!("--{flag} {text:?}, expected 90s, 1h, 2026-11-27T05:00:00Z or seconds since 1970"))
    })
}

/// Prints what is found, as it comes.
fn search(center: &Client, wanted: &Wanted) -> Result<(), Failure> {
    let file = if wanted.form == Form::Csv { "csv" } else { "ndjson" };
    let limit = wanted.limit.unwrap_or(LIMIT);
    let since = wanted.since.map_or_else(String::new, |since| format!("&since={since}"));
    let path = format!("/records.{file}?limit={limit}{since}{}", wanted.query);
    let mut lines = Lines::default();
    let is_terminal = io::stdout().is_terminal();
    let mut print_line = |line: &str| match wanted.form {
        Form::Csv if is_terminal => print(&line::table_line(line)),
        Form::Csv => print(line),
        Form::Json => print(&printable_json(line)),
        Form::Lines => match serde_json::from_str(line) {
            Ok(record) => print(&line::of(&record)),
            Err(error) => Err(Failure::Work(format!("the center sent a line that is no JSON: {error}").into())),
        },
    };
    let mut failed = None;
    let read = center.read(&path, |piece| {
        lines.take(piece, &mut print_line).map_err(|failure| {
            failed = Some(failure);
            io::Error::other("it cannot be printed")
        })
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    Ok(read?)
}

/// Takes pieces of text apart into lines, each with its end.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take<E>(&mut self, piece: &[u8], mut line: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        self.0.extend_from_slice(piece);
        let mut done = 0;
        while let Some(end) = memchr::memchr(b'\n', &self.0[done..]) {
            line(&String::from_utf8_lossy(&self.0[done..=done + end]))?;
            done += end + 1;
        }
        self.0.drain(..done);
        Ok(())
    }
}

/// Prints the latest records and then, for ever, those that come.
fn follow(center: &Client, wanted: &Wanted) -> Result<(), Failure> {
    let print_one = |record: &Json| match wanted.form {
        Form::Lines => print(&line::of(record)),
        Form::Json | Form::Csv => print(&format!("{}\n", printable_json(&record.to_string()))),
    };
    let seq = |record: &Json| record["seq"].as_u64().unwrap_or_default();
    // Whatever is behind this is in the first page or new.
    let newest = center.get("/records?limit=1")?;
    let mut cursor = newest["records"].get(0).map_or(0, seq);
    let since = wanted.since.map_or_else(String::new, |since| format!("&since={since}"));
    let limit = wanted.limit.unwrap_or(LIMIT_BEFORE);
    let before = center.get(&format!("/records?limit={limit}{since}{}", wanted.query))?;
    for record in before["records"].as_array().into_iter().flatten().rev() {
        print_one(record)?;
        cursor = cursor.max(seq(record));
    }
    let mut looked = now_ms();
    loop {
        let from = (looked - OVERLAP_MS) / 1000;
        let began = now_ms();
        loop {
            let page = center
                .get(&format!("/records?order=oldest&cursor={cursor}&since={from}&limit=1000{}", wanted.query))?;
            for record in page["records"].as_array().into_iter().flatten() {
                print_one(record)?;
                cursor = cursor.max(seq(record));
            }
            match page["next"].as_u64() {
                Some(next) => cursor = cursor.max(next),
                None => break,
            }
        }
        looked = began;
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Wanted, String> {
        match parse(lexopt::Parser::from_args(words), 10_000_000) {
            Ok(Some((wanted, _))) => Ok(wanted),
            Ok(None) => Err("help".to_owned()),
            Err(Failure::Words(error)) => Err(error),
            Err(failure) => panic!("{failure:?}"),
        }
    }

    #[test]
    fn flags_are_a_query() {
        let wanted = parsed(&[
            "--type",
            "exec,4000",
            "--field",
            "exe=/bin/a b",
            "--contains",
            "argv=a=b",
            "--since",
            "1h",
            "--until",
            "1970-01-01T02:00:00Z",
            "--limit",
            "7",
            "--json",
        ])
        .unwrap();
        assert_eq!(wanted.query, "&field.exe=%2Fbin%2Fa%20b&contains.argv=a%3Db&type=59,4000&until=7200");
        assert_eq!((wanted.since, wanted.limit, wanted.form), (Some(6400), Some(7), Form::Json));
        assert_eq!(parsed(&["--since", "123"]).unwrap().since, Some(123));
    }

    #[test]
    fn a_mistake_is_told() {
        for (words, told) in [
            (&["--type", "exce"][..], "--type \"exce\", expected a number or one of"),
            (&["--field", "exe"], "--field \"exe\", expected NAME=TEXT"),
            (&["--since", "noon"], "--since \"noon\", expected 90s"),
            (&["--follow", "--csv"], "--follow goes with neither"),
            (&["--follow", "--limit", "2000"], "at most 1000"),
            (&["--limit", "0"], "expected 1 or more"),
            (&["--frobnicate"], "--frobnicate"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(told), "{words:?}: {error}");
        }
    }

    #[test]
    fn pieces_are_lines() {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        for piece in ["ab", "c\nd\n\u{fc}".as_bytes().iter().map(|byte| char::from(*byte)).collect::<String>().as_str()]
        {
            lines
                .take(piece.as_bytes(), |line| {
                    got.push(line.to_owned());
                    Ok::<_, ()>(())
                })
                .unwrap();
        }
        assert_eq!(got, ["abc\n", "d\n"]);
    }
}
