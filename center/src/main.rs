//! The program `elklet-center`.
#![forbid(unsafe_code)]
// Help and version go to standard output: that is what the program was asked for.
#![allow(clippy::print_stdout)]

use lexopt::prelude::*;
use std::process::ExitCode;

const HELP: &str = "\
elklet-center: a server for small sites, which agents of the Elkeid host security system connect to

usage: elklet-center [OPTIONS]

  --help       this text
  --version    the version
";

fn main() -> ExitCode {
    match run(lexopt::Parser::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("elklet-center: {error}; --help tells more");
            ExitCode::from(2)
        }
    }
}

fn run(mut parser: lexopt::Parser) -> Result<(), lexopt::Error> {
    match parser.next()? {
        Some(Long("help") | Short('h')) => print!("{HELP}"),
        Some(Long("version") | Short('V')) => println!("elklet-center {}", env!("CARGO_PKG_VERSION")),
        Some(argument) => return Err(argument.unexpected()),
        None => return Err("a command is missing".into()),
    }
    Ok(())
}
