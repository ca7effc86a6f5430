//! The program `elklet-center`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    elklet_center::cli::main()
}
