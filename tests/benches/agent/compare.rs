//! Agents under loads, by turns: what is asked of them, and the rows that come of it.

use std::path::PathBuf;

use elklet_tests::load::Size;

use crate::limit;
use crate::run::{Failure, run};
use crate::table::Row;

/// An agent to measure.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) binary: PathBuf,
    /// It is started as the reference is.
    pub(crate) reference_certs: Option<PathBuf>,
}

/// What is asked of an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) size: Size,
    /// Records a second of all plugins together; 0 is as fast as they can, and nothing at all where there is no plugin.
    pub(crate) rate: u64,
    pub(crate) plugins: u64,
    /// On the high-priority lane.
    pub(crate) urgent: bool,
}

pub(crate) const fn load(name: &'static str, size: Size, rate: u64) -> Load {
    Load { name, size, rate, plugins: 1, urgent: false }
}

pub(crate) const USUAL: [Load; 8] = [
    Load { plugins: 0, ..load("idle", Size::Full, 0) },
    load("893 B, 1,000/s", Size::Full, 1_000),
    load("893 B, 10,000/s", Size::Full, 10_000),
    load("893 B, 50,000/s", Size::Full, 50_000),
    load("893 B, flat out", Size::Full, 0),
    load("219 B, 50,000/s", Size::Small, 50_000),
    load("219 B, flat out", Size::Small, 0),
    Load { urgent: true, ..load("893 B, 100/s, high priority", Size::Full, 100) },
];

pub(crate) const SCALE: [Load; 8] = [
    load("893 B, 20,000/s, 1 plugin", Size::Full, 20_000),
    Load { plugins: 10, ..load("893 B, 20,000/s, 10 plugins", Size::Full, 20_000) },
    Load { plugins: 50, ..load("893 B, 20,000/s, 50 plugins", Size::Full, 20_000) },
    load("64 B, 50,000/s", Size::Bytes(64), 50_000),
    load("1 KiB, 20,000/s", Size::Bytes(1 << 10), 20_000),
    load("16 KiB, 2,000/s", Size::Bytes(16 << 10), 2_000),
    load("256 KiB, 100/s", Size::Bytes(256 << 10), 100),
    load("1 MiB, 20/s", Size::Bytes((1 << 20) - 64), 20),
];

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) runs: usize,
    /// Of each load.
    pub(crate) seconds: u64,
    /// Of records, for the limit.
    pub(crate) limit_bytes: usize,
}

/// Measures each program under each load. A run that fails costs its program the rest of that load's runs, and its row says
/// why.
pub(crate) fn compare(programs: &[Program], loads: &[Load], effort: Effort) -> Vec<Row> {
    let mut rows = Vec::new();
    for load in loads {
        let mut measured: Vec<Row> = programs.iter().map(|program| Row::new(program.name, load)).collect();
        let mut limits = Vec::new();
        // By turns, so that a machine that is slow for a while is slow for all.
        for _ in 0..effort.runs {
            for (program, row) in programs.iter().zip(&mut measured) {
                if row.failure.is_some() {
                    continue;
                }
                eprintln!("{}: {}", program.name, load.name);
                match run(program, load, effort.seconds) {
                    Ok(figures) => row.figures.push(figures),
                    Err(failure) => {
                        if let Failure::Other(reason) = &failure {
                            eprintln!("{}: {}: {reason}", program.name, load.name);
                        }
                        row.failure = Some(failure);
                    }
                }
            }
            if load.plugins > 0 {
                limits.push(limit::measure(load.size, effort.limit_bytes));
            }
        }
        rows.extend(measured);
        rows.extend(limit::median(limits).map(|limit| Row::limit(load, limit)));
    }
    rows
}
