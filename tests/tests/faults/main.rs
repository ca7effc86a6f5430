//! Whatever breaks under 5,000 records a second: none is lost, they stay in order, and few arrive twice.
//!
//! Each test has a plugin send numbered records of an execve event's size through the real agent, breaks something, and
//! counts at the server. It tells records that arrive again on a later stream from those that arrive twice, or late, on
//! one. A line on standard error says what a test has counted.
//! `cargo test -p elklet-tests --test faults -- --nocapture` shows it.
//!
//! Tests that take minutes are ignored. `.ci/run long` runs them against the agent as it ships. To run them by hand,
//! one after the other:
//!
//!     cargo build --release -p elklet
//!     ELKLET_BIN=$PWD/target/release/elklet cargo test --release -p elklet-tests --test faults -- \
//!         --ignored --nocapture --test-threads 1 --skip grpc_go
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

mod agent;
#[path = "../support/described.rs"]
mod described;
mod grpc_go;
#[path = "../support/http.rs"]
mod http;
mod load;
mod names;
mod path;
mod server;
mod soak;
mod spool;
mod stream;

/// The plugin that does what it is told.
const PLUGIN: &str = env!("CARGO_BIN_EXE_scripted-plugin");

/// The center as a program.
const CENTER: &str = env!("CARGO_BIN_EXE_center");
