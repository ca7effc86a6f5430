//! What Elklet's tests need around the agent: an AgentCenter of its own, and the certificates that both ends need.
//!
//! [`center`] speaks Elkeid's side of the wire protocol and can be told to misbehave. A test embeds it, and the binary
//! `center` runs it by hand. [`pki`] makes certificates, right ones and wrong ones. [`proxy`] is a proxy to go through,
//! and [`files`] serves plugins to download. [`old_kernel`] says which system calls an old kernel lacks.
//!
//! Nothing here is part of the agent.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod center;
pub mod faults;
pub mod files;
pub mod harness;
pub mod load;
pub mod old_kernel;
pub mod pki;
pub mod proxy;
