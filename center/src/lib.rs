//! Elklet's center: a server for small sites, which agents of the Elkeid host security system connect to.
//!
//! The binary `elklet-center` runs it. Tests embed it, and wrap faults around it.
#![forbid(unsafe_code)]

pub mod store;
