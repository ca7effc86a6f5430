//! What the example firmware does with `elklet-core`, and everything that it prints about it.
//!
//! The scenario runs on a microcontroller and in a host's test, and its output is the same in both: only what is true of every
//! machine is printed. There are two halves, and an embedder meets both.
//!
//! - [`send_records`]: a plugin's bytes become records, the fixed buffer fills, and what it holds leaves as a gRPC message.
//! - [`obey`]: a server's bytes become commands, and the core answers each with actions.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod commands;
mod crc;
mod plugin;
mod records;

pub use self::commands::{COMMANDS, obey};
pub use self::records::{MAX_RECORD_BYTES, READ_BYTES, send_records};
