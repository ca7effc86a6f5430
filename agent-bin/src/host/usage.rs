//! Measurements of processes and the host for heartbeats.
//!
//! These modules read `/proc` and `/sys` by hand, a few files of bounded length each time. If a file is missing or
//! malformed, the value is 0 or empty. Their only state is the last sample of each counter, in [`Rates`].

mod hardware;
mod network;
mod process;
mod rates;
mod system;

pub(super) use hardware::Hardware;
pub(super) use network::{gateway, name_servers};
pub(crate) use process::Footprint;
pub(super) use process::{ProcessMeter, ProcessUsage};
pub(super) use rates::Rates;
pub(super) use system::{SystemMeter, SystemUsage};
