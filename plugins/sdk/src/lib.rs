//! The SDK for plugins of Elkeid-protocol agents: records out, tasks in.
//!
//! An agent starts a plugin with two pipes: file descriptor 3 brings tasks, file descriptor 4 takes records, each message
//! behind its length as a 32-bit little-endian number. [`connect()`] takes both over and gives a [`Client`] that sends and
//! [`Tasks`] that receives:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (client, mut tasks) = elklet_plugin::connect()?;
//! client.send(9001, &[("state", "started")])?;
//! while let Some(task) = tasks.receive()? {
//!     client.answer(&task, Err("this plugin takes no tasks"))?;
//! }
//! # Ok(()) }
//! ```
//!
//! Records gather in a buffer of [`BATCH_BYTES`] and leave when it is full or [`FLUSH_INTERVAL`] after the first of them, so
//! a busy plugin makes one system call for hundreds of records and an idle one does not wake at all. A record that must not
//! wait goes through [`Client::high_priority`]. When the agent is slow to read, sending blocks: that is the protocol's
//! back-pressure, and nothing is dropped.
//!
//! The agent ends a plugin by closing the task pipe: [`Tasks::receive`] then returns `None`, the plugin leaves its loop, and
//! dropping the last [`Client`] writes what is buffered. `std::process::exit` drops nothing; call [`Client::flush`] first.

mod client;
mod connect;
mod encode;
mod lane;
mod tasks;

pub use client::{Client, SendError};
pub use connect::{ConnectError, connect, detail, ignore_sigterm};
pub use elklet_proto::bridge::Record;
pub use elklet_proto::grpc::{Payload, Task};
pub use tasks::{ReceiveError, Tasks};

use std::time::Duration;

/// How many bytes of records gather before they are written: the capacity of a pipe (pipe(7)), so that a whole batch goes
/// into an empty one without blocking.
pub const BATCH_BYTES: usize = 64 * 1024;

/// How long a record may wait in the buffer; the reference SDKs flush as often.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// The longest record in bytes, encoded and without its length prefix: what Elklet's agent takes.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// The longest task in bytes, encoded and without its length prefix: what the reference's Go SDK can take, so that a server
/// which sends longer ones would already fail elsewhere.
pub const MAX_TASK_BYTES: usize = 1024 * 1024;

/// The data type of the record that tells how a task ended; its fields are `token`, `status` and `msg`.
pub const TASK_RESULT: i32 = 5100;

/// The README's example is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
