//! The table: medians of the runs, one row for an agent under a load.

use std::fmt::Write as _;

use crate::compare::Load;
use crate::limit::Limit;
use crate::run::{Failure, Figures};

pub(crate) struct Row {
    pub(crate) program: &'static str,
    pub(crate) load: &'static str,
    /// Of a few records that are to arrive soon: what one of them costs says nothing of many.
    pub(crate) urgent: bool,
    pub(crate) figures: Vec<Figures>,
    /// Why there are no more figures.
    pub(crate) failure: Option<Failure>,
    pub(crate) limit: Option<Limit>,
}

impl Row {
    /// A row that waits for figures.
    pub(crate) fn new(program: &'static str, load: &Load) -> Self {
        Self { program, load: load.name, urgent: load.urgent, figures: Vec::new(), failure: None, limit: None }
    }

    pub(crate) fn limit(load: &Load, limit: Limit) -> Self {
        Self { limit: Some(limit), ..Self::new("limit", load) }
    }

    fn median(&self, figure: impl Fn(&Figures) -> f64) -> f64 {
        let mut values: Vec<f64> = self.figures.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    }

    /// The most that any run has lost.
    pub(crate) fn lost(&self) -> u64 {
        self.figures.iter().map(|run| run.sent.saturating_sub(run.delivered)).max().unwrap_or(0)
    }

    /// What an agent of ours must not do.
    pub(crate) fn broken_promise(&self) -> Option<String> {
        if let Some(Failure::Other(reason)) = &self.failure {
            return Some(format!("{}: {reason}", self.load));
        }
        let is_idle = self.cpu_per_million().is_none();
        let (rss, wakeups) = (self.median(|run| run.idle_rss as f64), self.median(|run| run.wakeups));
        let (threads, start) = (self.median(|run| run.threads as f64), self.median(|run| run.start_ms));
        if self.lost() > 0 {
            Some(format!("{}: {} records were lost", self.load, self.lost()))
        } else if is_idle && rss > IDLE_RSS {
            Some(format!("idle: {rss} bytes are resident, expected {IDLE_RSS}"))
        } else if is_idle && wakeups > IDLE_WAKEUPS {
            Some(format!("idle: {wakeups:.1} wake-ups a second, expected {IDLE_WAKEUPS}"))
        } else if is_idle && threads > IDLE_THREADS {
            Some(format!("idle: {threads} threads, expected {IDLE_THREADS}"))
        } else if start > START_MS {
            Some(format!("{}: {start} ms to the open stream, expected {START_MS}", self.load))
        } else {
            None
        }
    }

    /// Seconds of CPU per million delivered; nothing where nothing was.
    pub(crate) fn cpu_per_million(&self) -> Option<f64> {
        match &self.limit {
            Some(limit) => Some(limit.total()),
            None if !self.figures.is_empty() && self.figures.iter().all(|run| run.delivered > 0) => {
                Some(self.median(|run| run.cpu * 1e6 / run.delivered as f64))
            }
            None => None,
        }
    }
}

/// Bytes that the agent may have resident when it is idle.
const IDLE_RSS: f64 = 3.2e6;

/// Times a second that an idle agent may wake up.
const IDLE_WAKEUPS: f64 = 1.0;

/// Threads of an agent that has come to rest: the net thread, the pump, and the first one, which starts processes.
const IDLE_THREADS: f64 = 3.0;

/// From exec to the open stream. Ten milliseconds are promised, and the table shows them; but a machine that has other work
/// takes its time, so what is held here is only that a start waits for nothing.
const START_MS: f64 = 1_000.0;

const HEAD: &str = "\
| load | agent | delivered/s | lost | CPU s per million | RSS idle, MB | RSS peak, MB | wake-ups/s | p50, ms | p99, ms | wire, B per record | start, ms |
|---|---|---|---|---|---|---|---|---|---|---|---|
";

pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        line(row, &mut text).expect("strings grow");
    }
    notes(rows, &mut text).expect("strings grow");
    text
}

/// Below the table: which TLS each agent has used, and what it was not asked for.
fn notes(rows: &[Row], text: &mut String) -> std::fmt::Result {
    let mut seen = Vec::new();
    for row in rows {
        for tls in row.figures.iter().map(|run| (row.program, &run.tls)) {
            if !seen.contains(&tls) {
                seen.push(tls);
            }
        }
    }
    if let Some(limit) = rows.iter().find_map(|row| row.limit.as_ref()) {
        seen.push(("limit", &limit.tls));
    }
    writeln!(text)?;
    for (program, tls) in seen {
        writeln!(text, "TLS of {program}: {tls}")?;
    }
    for row in rows.iter().filter(|row| row.failure == Some(Failure::NoUrgentPipe)) {
        writeln!(text, "{} was left out for {}: it gives plugins no pipe of high priority", row.load, row.program)?;
    }
    Ok(())
}

fn line(row: &Row, text: &mut String) -> std::fmt::Result {
    let failure = match &row.failure {
        Some(Failure::NoUrgentPipe) => return Ok(()),
        Some(Failure::Other(reason)) => Some(reason),
        None => None,
    };
    write!(text, "| {} | {} |", row.load, row.program)?;
    if let Some(reason) = failure.filter(|_| row.figures.is_empty()) {
        return writeln!(text, " failed: {} | | | | | | | | | |", reason.replace('|', "/"));
    }
    if let Some(Limit { compress, copy, send, .. }) = &row.limit {
        let total = row.cpu_per_million().unwrap_or(0.0);
        return writeln!(
            text,
            " | | {total:.2} ({compress:.2} snappy, {copy:.2} pipe, {send:.2} TLS and TCP) | | | | | | | |"
        );
    }
    match row.cpu_per_million() {
        Some(cpu) => {
            let part = 100.0 * row.lost() as f64 / row.median(|run| run.sent as f64).max(1.0);
            let lost = if row.lost() == 0 { "0".to_owned() } else { format!("{part:.1} %") };
            write!(text, " {:.0} | {lost} | {cpu:.2} |", row.median(|run| run.per_second))?;
        }
        None => {
            let percent = row.median(|run| 100.0 * run.cpu / run.seconds);
            write!(text, " | | {percent:.2} % of a core, {} threads |", row.median(|run| run.threads as f64))?;
        }
    }
    let megabytes = |bytes: f64| bytes / 1e6;
    write!(
        text,
        " {:.1} | {:.1} | {:.1} |",
        megabytes(row.median(|run| run.idle_rss as f64)),
        megabytes(row.median(|run| run.peak_rss as f64)),
        row.median(|run| run.wakeups),
    )?;
    if row.cpu_per_million().is_some() {
        write!(
            text,
            " {:.1} | {:.1} | {:.0} |",
            row.median(|run| run.p50_ms),
            row.median(|run| run.p99_ms),
            row.median(|run| run.wire_bytes as f64 / run.delivered as f64),
        )?;
    } else {
        write!(text, " | | |")?;
    }
    write!(text, " {:.0}", row.median(|run| run.start_ms))?;
    if let Some(reason) = failure {
        write!(text, " (of {}, then it failed: {})", row.figures.len(), reason.replace('|', "/"))?;
    }
    writeln!(text, " |")
}
