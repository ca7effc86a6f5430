//! The agent under a later version number, to which tests update the agent under test.

use std::process::ExitCode;

fn main() -> ExitCode {
    elklet_agent::main("9.9.9")
}
