//! The messages of Elkeid's agent protocol, for agents, plugins and servers alike.
//!
//! The `.proto` files beside this crate say what each message means; the Rust types are generated from them by prost and
//! checked in, so that building needs neither `protoc` nor a build script. A test generates them anew and compares; when it
//! fails after a change of a `.proto` file, `ELKLET_BLESS=1 cargo test -p elklet-proto` writes them again.
//!
//! The crate does no IO and needs no standard library, only an allocator.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod agent_uri;
pub mod data_type;

/// The stream between an agent and AgentCenter, and the upload of files (`proto/transfer.proto`, `proto/file_ext.proto`).
#[rustfmt::skip]
#[path = "generated/grpc.rs"]
pub mod grpc;

/// What passes between an agent and a plugin (`proto/bridge.proto`).
#[rustfmt::skip]
#[path = "generated/bridge.rs"]
pub mod bridge;

/// How a host gets a certificate from a center (`proto/enrollment.proto`).
#[rustfmt::skip]
#[path = "generated/elklet.rs"]
pub mod enrollment;
