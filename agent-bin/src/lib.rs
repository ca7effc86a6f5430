//! Elklet's shell: threads, sockets, files and processes around the decisions of `elklet-core`.
//!
//! Three threads run. The pump (`pump`) moves records from the plugins' pipes into the intake. The net thread (`agent`)
//! holds the connection, the timers and the processes. The first thread starts processes for it (`sys::starter`). This library is
//! the inside of the binary and no interface for others; it makes public only what fuzz targets need, and the command line's tables,
//! of which the man pages are made.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test that cannot start a thread may as well fail"))]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "the agent runs on Linux alone: it executes plugins with execveat, waits with epoll, and reads /proc. On other systems, and \
     without any, build what decides: `cargo build -p elklet-core`, see docs/embedding.md"
);

mod adopt;
mod agent;
mod cli;
mod clock;
mod config;
mod ctl;
mod doctor;
mod enroll;
mod failure;
mod fetch;
mod files;
mod host;
mod identity;
mod init;
mod logging;
mod net;
mod pem;
mod plugin;
mod pump;
mod signer;
mod signing;
mod specified;
mod spool;
mod status;
mod sys;
mod update;
mod upload;
mod version;
mod workdir;

pub use cli::{commands, main};
pub use net::{Pieces, decompress};
pub use plugin::{decode_kept, unpack};
pub use spool::Store;
use version::version;

#[cfg(test)]
mod testing;
