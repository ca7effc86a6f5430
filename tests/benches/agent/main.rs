//! The agent under load, beside another one and beside what the machine can do.
//!
//!     ELKLET_BIN=target/dist/elklet-x86_64 cargo bench -p elklet-tests --bench agent
//!     ... --bench agent -- --runs 5 --compare BINARY --reference-certs DIR --svg docs/performance.svg
//!
//! An agent, the load plugin and a peer that only reads run as processes of their own on loopback. What is told of the agent
//! the kernel has counted; what is told of records the peer has counted, by their numbers and their stamps.
#![allow(clippy::print_stdout, reason = "a table is what it is for")]

mod chart;
mod compare;
mod limit;
mod run;
mod table;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use elklet_tests::binaries::Binaries;
use lexopt::prelude::*;

use self::compare::{Effort, Load, Program, SCALE, USUAL, compare};
use self::table::Row;

const HELP: &str = "\
usage: cargo bench -p elklet-tests --bench agent -- [OPTIONS]

  --runs N               medians of so many runs (default 1)
  --seconds S            of each load (default 10)
  --quick                2 s of each load
  --only TEXT            only loads whose name has this in it
  --scale                1, 10 and 50 plugins, and records of 64 B to 1 MiB, in place of the usual loads
  --compare BINARY       the same for another agent by turns, started with Elklet's arguments; where it fails its row says
                         why, and loads of high priority are left out if it has no pipe for them
  --reference-certs DIR  start it as Elkeid's own is: in its directory, without arguments; it goes to 127.0.0.1:6751 and
                         takes the certificates of this directory (ca.crt, server.crt, server.key)
  --svg FILE             a chart of the table

ELKLET_BIN names the agent that is measured; without it the release profile is built.
";

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
    if loads.is_empty() {
        eprintln!("no load has {:?} in its name; --help tells more", arguments.only);
        return ExitCode::from(2);
    }

    let effort = Effort { runs: arguments.runs, seconds: arguments.seconds, limit_bytes: limit::USUAL_BYTES };
    let rows = compare(&programs, &loads, effort);
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
