//! The agent as of a later version: what the one under test is updated to.

use std::process::ExitCode;

fn main() -> ExitCode {
    elklet_agent::main("9.9.9")
}
