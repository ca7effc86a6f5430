//! The program `elklet-center`.
#![forbid(unsafe_code)]

use rustix::fs::Mode;
use std::process::ExitCode;

fn main() -> ExitCode {
    // What it writes holds password hashes, hosts' files and every command line of a fleet, and is for nobody else on this host.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    elklet_center::cli::main()
}
