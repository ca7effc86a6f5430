//! What Elklet is tested against: an AgentCenter of its own, and the certificates that both ends need.
//!
//! [`center`] speaks Elkeid's side of the wire protocol and can be told to misbehave; a test embeds it, and the binary
//! `center` runs it by hand. [`pki`] makes the certificates, right ones and wrong ones; [`proxy`] is a proxy to go through, and [`files`] has
//! plugins to download.
//!
//! Nothing here is part of the agent.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod center;
pub mod faults;
pub mod files;
pub mod harness;
pub mod load;
pub mod pki;
pub mod proxy;
