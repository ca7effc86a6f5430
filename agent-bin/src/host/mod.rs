//! What the agent knows about the host it runs on: its own id, the host's addresses, platform and hardware, and the
//! measurements that heartbeats carry.
//!
//! The transport takes the id, the addresses and the host name for every message's envelope, and the heartbeat task asks
//! [`Heartbeat`] for the fields of records 1000 and 1001. Nothing here keeps a thread, reads a clock or talks to a
//! network: time comes in as monotonic milliseconds, and the host is read through [`HostRoot`], so that tests can put
//! another file tree in its place. Every read is bounded, and what cannot be read is reported as unknown (an empty string
//! or 0), never as a failure of the agent.

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
pub(crate) use processes::{Process, environment, processes};
pub(crate) use root::HostRoot;
pub(crate) use usage::Footprint;
