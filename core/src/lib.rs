//! Elklet's decisions, apart from their effects.
//!
//! This crate has no clock, no thread and no IO, and builds for a bare target. The shell (package `elklet`) tells it
//! what happened and what time it is, and carries out the actions that it answers with.
//!
//! - [`agent`]: the whole agent's decisions, which bring the following together.
//! - [`record`]: the fixed record buffer, and every byte of a record's way from a plugin's pipe to a batch.
//! - [`command`]: what a server asks of the agent, checked once.
//! - [`dispatch`]: the state machine between commands and plugins.
//! - [`link`]: the state machine of the connection, and the protocols on it.
//! - [`delivery`]: keeps batches, in memory and on disk, until the server is known to have them.
//! - [`update`], [`reports`], [`flood`]: the agent's own update, its reports to the server, and the bounds of its log.
//! - [`limits`]: the capacities that hold for more than one of these, each with its reason.
//! - [`time`], [`printable`], [`similar`]: the moments that all of these are told, and texts that are safe and helpful in a log.
//! - `testing` (a feature): the whole agent in a simulated world.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
// A fuzz target includes some test code too, and names this crate from outside.
#[cfg(test)]
extern crate self as elklet_core;

pub mod agent;
pub mod command;
pub mod delivery;
pub mod dispatch;
pub mod flood;
pub mod limits;
pub mod link;
pub mod printable;
pub mod record;
pub mod reports;
pub mod similar;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod update;
