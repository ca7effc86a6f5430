//! The agent under load, beside another one and beside what the machine can do.
//!
//!     ELKLET_BIN=target/dist/elklet-x86_64 cargo bench -p elklet-tests --bench agent
//!     ... --bench agent -- --runs 5 --compare BINARY --reference-certs DIR --svg docs/performance.svg
//!
//! An agent, the load plugin and a peer that only reads run as processes of their own on loopback. What is told of the agent
//! the kernel has counted; what is told of records the peer has counted, by their numbers and their stamps.
#![allow(clippy::print_stdout, reason = "a table is what it is for")]

mod chart;
mod limit;
mod run;
mod table;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use elklet_tests::binaries::Binaries;
use elklet_tests::load::Size;
use lexopt::prelude::*;

use self::run::{Figures, Program, run};
use self::table::Row;

const HELP: &str = "\
usage: cargo bench -p elklet-tests --bench agent -- [OPTIONS]

  --runs N               medians of so many runs (default 1)
  --seconds S            of each load (default 10)
  --quick                2 s of each load
  --only TEXT            only loads whose name has this in it
  --scale                1, 10 and 50 plugins, and records of 64 B to 1 MiB, in place of the usual loads
  --compare BINARY       the same for another agent by turns, started with Elklet's arguments
  --reference-certs DIR  start it as Elkeid's own is: in its directory, without arguments; it goes to 127.0.0.1:6751 and
                         takes the certificates of this directory (ca.crt, server.crt, server.key)
  --svg FILE             a chart of the table

ELKLET_BIN names the agent that is measured; without it the release profile is built.
";

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

const fn load(name: &'static str, size: Size, rate: u64) -> Load {
    Load { name, size, rate, plugins: 1, urgent: false }
}

const USUAL: [Load; 8] = [
    Load { plugins: 0, ..load("idle", Size::Full, 0) },
    load("893 B, 1,000/s", Size::Full, 1_000),
    load("893 B, 10,000/s", Size::Full, 10_000),
    load("893 B, 50,000/s", Size::Full, 50_000),
    load("893 B, flat out", Size::Full, 0),
    load("219 B, 50,000/s", Size::Small, 50_000),
    load("219 B, flat out", Size::Small, 0),
    Load { urgent: true, ..load("893 B, 100/s, high priority", Size::Full, 100) },
];

const SCALE: [Load; 8] = [
    load("893 B, 20,000/s, 1 plugin", Size::Full, 20_000),
    Load { plugins: 10, ..load("893 B, 20,000/s, 10 plugins", Size::Full, 20_000) },
    Load { plugins: 50, ..load("893 B, 20,000/s, 50 plugins", Size::Full, 20_000) },
    load("64 B, 50,000/s", Size::Bytes(64), 50_000),
    load("1 KiB, 20,000/s", Size::Bytes(1 << 10), 20_000),
    load("16 KiB, 2,000/s", Size::Bytes(16 << 10), 2_000),
    load("256 KiB, 100/s", Size::Bytes(256 << 10), 100),
    load("1 MiB, 20/s", Size::Bytes((1 << 20) - 64), 20),
];

struct Arguments {
    runs: usize,
    seconds: u64,
    only: String,
    scale: bool,
    compare: Option<PathBuf>,
    reference_certs: Option<PathBuf>,
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match parse(lexopt::Parser::from_env()) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}; --help tells more");
            return ExitCode::from(2);
        }
    };
    let binary = Binaries::build("release").expect("cargo builds the agent").elklet;
    let mut programs = vec![Program { name: "Elklet", binary, reference_certs: None }];
    if let Some(binary) = arguments.compare {
        programs.push(Program { name: "compared", binary, reference_certs: arguments.reference_certs });
    }
    let loads: &[Load] = if arguments.scale { &SCALE } else { &USUAL };
    let loads: Vec<Load> = loads.iter().filter(|load| load.name.contains(&arguments.only)).copied().collect();

    let mut rows = Vec::new();
    for load in &loads {
        let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); programs.len()];
        let mut limits = Vec::new();
        // By turns, so that a machine that is slow for a while is slow for all.
        for _ in 0..arguments.runs {
            for (program, figures) in programs.iter().zip(&mut figures) {
                eprintln!("{}: {}", program.name, load.name);
                figures.push(run(program, load, arguments.seconds));
            }
            if load.plugins > 0 {
                limits.push(limit::measure(load.size));
            }
        }
        rows.extend(programs.iter().zip(figures).map(|(program, figures)| Row::new(program.name, load, figures)));
        rows.extend(limit::median(limits).map(|limit| Row::limit(load, limit)));
    }
    let text = table::markdown(&rows);
    print!("{text}");
    if let Some(svg) = arguments.svg {
        std::fs::write(svg, chart::svg(&rows)).expect("the file is writable");
    }
    // Elklet itself is held to what it promises; whom it is compared with is not.
    let broken = rows.iter().filter(|row| row.program == "Elklet").filter_map(Row::broken_promise);
    let broken: Vec<String> = broken.collect();
    broken.iter().for_each(|what| eprintln!("{what}"));
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut parser: lexopt::Parser) -> Result<Option<Arguments>, lexopt::Error> {
    let mut arguments = Arguments {
        runs: 1,
        seconds: 10,
        only: String::new(),
        scale: false,
        compare: None,
        reference_certs: None,
        svg: None,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") => return Ok(None),
            Long("runs") => arguments.runs = parser.value()?.parse()?,
            Long("seconds") => arguments.seconds = parser.value()?.parse()?,
            Long("quick") => arguments.seconds = 2,
            Long("only") => arguments.only = parser.value()?.parse()?,
            Long("scale") => arguments.scale = true,
            Long("compare") => arguments.compare = Some(from_here(parser.value()?)),
            Long("reference-certs") => arguments.reference_certs = Some(from_here(parser.value()?)),
            Long("svg") => arguments.svg = Some(from_here(parser.value()?)),
            // What cargo tells a benchmark.
            Long("bench") => {}
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(arguments))
}

/// Cargo runs benchmarks in the package's directory; whoever types a path is in the workspace's.
fn from_here(path: std::ffi::OsString) -> PathBuf {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    workspace.canonicalize().unwrap_or(workspace).join(path)
}
