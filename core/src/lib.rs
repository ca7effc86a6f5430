//! What Elklet decides, without doing any of it.
//!
//! This crate holds the fixed record buffer, every byte format that the agent reads or writes, and the two state machines
//! that drive it: [`session`] (where to connect and when) and [`dispatch`] (what the server's commands come to). It has no
//! clock, no thread and no IO, and builds for a bare target. The shell (package `elklet`) tells it what happened and what
//! time it is, and carries out the [`session::Action`]s and [`dispatch::Action`]s that it answers with.
//!
//! The way of a record: a plugin's bytes go through [`frame::FrameDecoder`], which checks them as a [`record::Record`];
//! [`intake::Intake`] appends the record to a [`buffer::RecordBuffer`], whose bytes are already those of a `PackagedData`
//! message; with the [`envelope::Envelope`] behind them they are a batch.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
// Test code that a fuzz target includes as well names this crate as that does.
#[cfg(test)]
extern crate self as elklet_core;

pub mod backoff;
pub mod buffer;
pub mod command;
pub mod delivery;
pub mod dispatch;
pub mod envelope;
pub mod flood;
pub mod frame;
pub mod grpc;
pub mod intake;
pub mod limits;
pub mod losses;
pub mod manifest;
pub mod oversized;
pub mod printable;
pub mod proxy;
pub mod race;
pub mod record;
pub mod reports;
pub mod session;
pub mod similar;
pub mod time;
pub mod update;
pub mod wire;
pub mod x509;
