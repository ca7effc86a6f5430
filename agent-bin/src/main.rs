//! The binary `elklet`; everything is in the library beside it.

use elklet_no_unwinding as _;

use std::process::ExitCode;

/// The server compares it with the version that it wants, so that packagers can give it the number of their package:
/// `ELKLET_VERSION=1.9.1.7 cargo build --release`.
const VERSION: &str = match option_env!("ELKLET_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

fn main() -> ExitCode {
    elklet_agent::main(VERSION)
}
