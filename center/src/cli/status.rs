//! `elklet-center status`: how the center is.

use super::out::{print, write};
use super::text::{bytes, count, cut, field, printable, printable_json, span, time, width};
use super::{Failure, Where};
use lexopt::prelude::*;
use serde_json::{Value as Json, json};
use std::fmt::Write as _;
use std::time::Duration;

const HELP: &str = "\
elklet-center status: say how the center is, and what somebody should look into

usage: elklet-center status [OPTIONS]

  --json           the answer of GET /api/v1/status, and records_per_s
";

const HELP_END: &str = "
It looks twice, a second apart, to see how many records come. Exit codes: 0 all is well, 1 no center runs or it cannot be asked,
3 it runs and is unwell: it cannot store records, or a host's certificate has ended.
";

/// The two looks are so far apart. Agents send what they have every 100 ms.
const BETWEEN: Duration = Duration::from_secs(1);

pub(super) fn help() -> String {
    format!("{HELP}{}{HELP_END}", Where::HELP)
}

pub(super) fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let (mut at, mut as_json) = (Where::default(), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => {
                return print(&help());
            }
            Long("json") => as_json = true,
            Long(flag) => at.must_take(flag.to_owned(), &mut parser)?,
            _ => return Err(argument.unexpected().into()),
        }
    }
    let center = at.center()?;
    let first = center.get("/status")?;
    std::thread::sleep(BETWEEN);
    let mut status = center.get("/status")?;
    status["records_per_s"] = json!(per_second(&first, &status));
    if as_json {
        write(&format!("{}\n", printable_json(&status.to_string())))?;
    } else {
        write(&page(&status, width()))?;
    }
    if status["well"] == true { Ok(()) } else { Err(Failure::Outcome("the center is unwell".to_owned())) }
}

/// Returns how many records came in a second between two looks.
fn per_second(first: &Json, second: &Json) -> u64 {
    let more = |name: &str| second[name].as_u64().unwrap_or(0).saturating_sub(first[name].as_u64().unwrap_or(0));
    more("received").saturating_mul(1000).checked_div(more("at_ms")).unwrap_or(0)
}

fn page(status: &Json, width: usize) -> String {
    let mut lines = Vec::new();
    let number = |value: &Json| value.as_u64().unwrap_or_default();
    let (agents, store) = (&status["agents"], &status["store"]);
    lines.push(format!(
        "elklet-center {}: {}",
        field(status, "version"),
        if status["well"] == true { "well" } else { "UNWELL" }
    ));
    lines.push(format!(
        "  agents    {} connected, {} known",
        count(number(&agents["connected"])),
        count(number(&agents["known"]))
    ));
    lines.push(format!(
        "  records   {} stored, {} a second now",
        count(number(&store["records"])),
        count(number(&status["records_per_s"]))
    ));
    if !store.is_null() {
        let free = store["disk_free_bytes"].as_u64().map_or_else(String::new, |free| format!(", {} free", bytes(free)));
        lines.push(format!(
            "  store     {} of at most {}{free}",
            bytes(number(&store["bytes"])),
            bytes(number(&store["max_bytes"]))
        ));
        let oldest = store["oldest_ms"]
            .as_u64()
            .map_or_else(|| "no record yet".to_owned(), |oldest| format!("since {}", time(oldest)));
        lines.push(format!("            {oldest}, kept for {}", span(number(&store["keep_s"]))));
    }
    for rollout in status["rollouts"].as_array().into_iter().flatten() {
        lines.push(format!("  rollout   {}", self::rollout(rollout)));
    }
    for warning in status["warnings"].as_array().into_iter().flatten() {
        let mark = if warning["failure"] == true { "FAILURE" } else { "warning" };
        lines.push(format!("  {mark}   {}", printable(warning["text"].as_str().unwrap_or_default())));
    }
    let mut page = String::new();
    for line in lines {
        writeln!(page, "{}", wrapped(&line, width)).expect("strings grow");
    }
    page
}

fn rollout(rollout: &Json) -> String {
    let group = rollout["group"].as_str().map_or_else(|| "everybody".to_owned(), printable);
    format!(
        "{} of {} {} for {group}: {}, {} of {} hosts run it",
        field(rollout, "id"),
        field(rollout, "plugin"),
        field(rollout, "version"),
        field(rollout, "state"),
        rollout["running"],
        rollout["hosts"]
    )
}

/// Breaks a line between words, and puts what follows below its text.
fn wrapped(line: &str, width: usize) -> String {
    const INDENT: usize = 12;
    let (mut lines, mut now) = (Vec::new(), String::new());
    for word in line.split_inclusive(' ') {
        if now.chars().count() + word.trim_end().chars().count() > width && now.trim().chars().count() > 0 {
            lines.push(now.trim_end().to_owned());
            now = " ".repeat(INDENT);
        }
        now.push_str(word);
    }
    lines.push(now.trim_end().to_owned());
    lines.iter().map(|line| cut(line, width)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Json {
        json!({
            "version": "1.2.3", "at_ms": 2000, "well": false, "received": 500, "records_per_s": 1250,
            "agents": { "connected": 3, "known": 1204 },
            "store": {
                "records": 1_234_567, "bytes": 3_u64 << 30, "max_bytes": 20_u64 << 30, "disk_free_bytes": 1 << 20,
                "oldest_ms": 1_700_000_000_000_u64, "keep_s": 14 * 86_400,
            },
            "rollouts": [{ "id": 7, "plugin": "probe", "version": "2", "group": null, "state": "canary", "hosts": 3, "running": 1 }],
            "warnings": [
                { "failure": true, "about": "store", "text": "no records are stored: the disk is full and there is nothing left to be let go" },
                { "failure": false, "about": "hosts", "text": "1 host gone for more than a day: \u{1b}[2Jgw" },
            ],
        })
    }

    #[test]
    fn a_page_has_eighty_columns_and_says_what_is_wrong() {
        let page = page(&status(), 80);
        assert_eq!(
            page,
            "elklet-center 1.2.3: UNWELL\n\
             \x20 agents    3 connected, 1,204 known\n\
             \x20 records   1,234,567 stored, 1,250 a second now\n\
             \x20 store     3.0 GiB of at most 20 GiB, 1.0 MiB free\n\
             \x20           since 2023-11-14T22:13:20Z, kept for 14d\n\
             \x20 rollout   7 of probe 2 for everybody: canary, 1 of 3 hosts run it\n\
             \x20 FAILURE   no records are stored: the disk is full and there is nothing left to\n\
             \x20           be let go\n\
             \x20 warning   1 host gone for more than a day: \\u{1b}[2Jgw\n"
        );
    }

    #[test]
    fn a_rate_is_that_between_two_looks() {
        let (first, second) = (json!({ "at_ms": 1000, "received": 100 }), json!({ "at_ms": 3000, "received": 500 }));
        assert_eq!((per_second(&first, &second), per_second(&second, &first)), (200, 0));
    }
}
