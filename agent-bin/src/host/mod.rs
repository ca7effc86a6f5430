//! What the agent knows about its host: its own id, the host's addresses, platform and hardware, and the measurements
//! for heartbeats.
//!
//! The id, the addresses and the host name go into every message's envelope. [`Heartbeat`] makes the fields of records
//! 1000 and 1001. Nothing here keeps a thread, reads a clock or uses the network. Time comes in as monotonic
//! milliseconds, and the host is read through [`HostRoot`], which tests replace by another file tree. Every read is
//! bounded. What cannot be read is reported as unknown (an empty string or 0), never as a failure of the agent.

mod addresses;
mod fields;
mod heartbeat;
mod identity;
mod mounts;
mod platform;
mod processes;
mod root;
mod usage;

pub(crate) use addresses::{Addresses, hostname};
pub(crate) use fields::Fields;
pub(crate) use heartbeat::{AgentFacts, Heartbeat, PluginFacts, Traffic};
pub(crate) use identity::{AgentId, agent_id, find_id};
pub(crate) use mounts::mount_of;
pub(crate) use processes::{Process, environment, executing, processes};
pub(crate) use root::HostRoot;
pub(crate) use usage::Footprint;
