//! The SDK for plugins of Elkeid-protocol agents: records out, tasks in.
//!
//! An agent starts a plugin with two pipes. File descriptor 3 brings tasks and file descriptor 4 takes records, each
//! message after its length as a 32-bit little-endian number. [`connect()`] takes both over and returns a [`Client`]
//! that sends and [`Tasks`] that receives:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (client, mut tasks) = elklet_plugin::connect()?;
//! client.send(9101, &[("state", "started")])?;
//! while let Some(task) = tasks.receive()? {
//!     client.answer(&task, Err("this plugin takes no tasks"))?;
//! }
//! # Ok(()) }
//! ```
//!
//! The client coalesces records in a buffer of [`BATCH_BYTES`]. It writes them when the buffer is full, or
//! [`FLUSH_INTERVAL`] after the first of them. A busy plugin therefore makes one system call for hundreds of records,
//! and an idle one does not wake at all. Use [`Client::high_priority`] for a record that must not wait. When the agent
//! is slow to read, sending blocks: that is the protocol's backpressure, and nothing is dropped.
//!
//! The agent ends a plugin by closing the task pipe. [`Tasks::receive`] then returns `None`, the plugin leaves its loop, and
//! dropping the last [`Client`] writes what is buffered. `std::process::exit` drops nothing, so call [`Client::flush`] first.

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

/// Bytes of records that are coalesced before they are written. It is the capacity of a pipe (pipe(7)), so that a whole
/// batch fits an empty one without blocking.
pub const BATCH_BYTES: usize = 64 * 1024;

/// Longest wait of a record in the buffer. The reference SDKs flush as often.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// The longest record that is sent, in bytes, encoded and without its length prefix. Elklet's agent takes 4 MiB from plugins that send
/// by themselves.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// The longest task in bytes, encoded and without its length prefix. It is the reference's Go SDK's limit, so a server
/// that sends longer ones already fails elsewhere.
pub const MAX_TASK_BYTES: usize = 1024 * 1024;

/// The data type of the record that says how a task ended. Its fields are `token`, `status` and `msg`.
pub const TASK_RESULT: i32 = 5100;

/// The README's example is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
