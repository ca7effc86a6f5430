//! The binary `elklet`. All code is in the library beside it.

use elklet_static as _;

use std::process::ExitCode;

/// The agent's version. The server compares it with the version that it wants, so packagers can set it to their
/// package's number: `ELKLET_VERSION=1.9.1.7 cargo build --release`.
const VERSION: &str = match option_env!("ELKLET_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

fn main() -> ExitCode {
    elklet_agent::main(VERSION)
}
