//! The real agent against a real center: what it promises to the server, to its plugins, to its host and to whoever
//! reads its log.
//!
//! Each test starts the program that cargo has built (or that `ELKLET_BIN` names) in a directory of its own.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

mod cli;
mod discovery;
mod disks;
mod doctor;
mod downloads;
mod end;
mod exhaustion;
mod heartbeat;
mod hostile_server;
mod layout;
mod limits;
mod local_user;
mod logs;
mod metadata;
mod offline;
mod old_kernels;
mod outsized;
mod own_threads;
mod plugin_faults;
mod plugins;
mod poison;
mod policy;
mod processes;
mod proxies;
mod python;
mod quotas;
mod reload;
mod replay;
mod reports;
mod sandbox;
mod server_faults;
mod service;
mod signatures;
mod signer;
mod spool;
mod status;
mod tables;
mod tls;
mod trailers;
mod update;
mod upload;

/// The plugin that does what it is told.
const PLUGIN: &str = env!("CARGO_BIN_EXE_scripted-plugin");
