//! What the commands write, and what becomes of it where nobody reads: standard output is a full disk or a pipe that was closed.
//! `println!` would panic there. Lints (`print_stdout`, `print_stderr`) keep the crate from it.

use super::Failure;
use std::io::{self, ErrorKind, Write};

/// Prints what was asked for. Whoever reads it may have seen enough, as `head` has, which is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match write(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

/// Prints in a line what the command has done. Where it cannot be printed, the failure says it, because it is done all the same.
pub(super) fn tell(line: &str) -> Result<(), Failure> {
    tell_or(&format!("{line}\n"), line)
}

/// Prints what a command that has done something answers. Where it cannot be printed, the failure says what was done: `done`.
pub(super) fn tell_or(text: &str, done: &str) -> Result<(), Failure> {
    write(text).map_err(|error| Failure::Work(format!("{error}; all the same, {done}").into()))
}

/// Prints what has to be seen.
///
/// # Errors
/// It cannot be written, or nobody reads it.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| io::Error::new(error.kind(), format!("standard output: {error}")))
}

/// Writes on standard error what is for people. Where nobody reads that, the exit code has to do.
pub(super) fn note(text: &str) {
    _ = io::stderr().write_all(text.as_bytes());
}
