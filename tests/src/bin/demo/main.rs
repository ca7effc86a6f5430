//! `cargo demo`: shows the whole of Elklet on this machine, from the kernel's events to the server's records.
//!
//! A center (elklet-center) runs inside this process. The real agent runs beside it, connects over mutual TLS, and is told to run
//! the real plugin procwatch. What the plugin sees arrives here and is shown. Nothing is simulated, and the demo leaves
//! nothing behind. [`show`] runs the demo. [`verdict`] says whether anything was lost, and how one knows.
#![forbid(unsafe_code)]

mod agent;
mod arguments;
mod board;
mod event;
mod maker;
mod plugin;
mod procfs;
mod programs;
mod screen;
mod show;
mod stage;
mod summary;
mod tally;
mod verdict;

use std::fmt::Display;
use std::io::{Write, stderr};
use std::process::ExitCode;

use arguments::Arguments;
use screen::Screen;

fn main() -> ExitCode {
    let mut screen = Screen::stdout();
    match Arguments::parse(lexopt::Parser::from_env()) {
        Ok(Some(arguments)) => run(&arguments, &mut screen),
        Ok(None) => {
            screen.text(arguments::HELP);
            screen.flush();
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(format_args!("{error}; cargo demo -- --help tells more"));
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments, screen: &mut Screen) -> ExitCode {
    match programs::build(screen).and_then(|programs| show::run(arguments, &programs, screen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            complain(reason);
            ExitCode::FAILURE
        }
    }
}

/// Prints a line to standard error.
fn complain(what: impl Display) {
    // If that fails there is nobody left to tell.
    let _ = writeln!(stderr(), "demo: {what}");
}
