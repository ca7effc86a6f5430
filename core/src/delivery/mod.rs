//! Delivery at least once, over a protocol that acknowledges nothing.
//!
//! The [`Outbox`] keeps every batch until the server is known to have taken it; what a broken stream leaves unconfirmed is sent
//! again, in order, first thing on the next. HTTP/2 tells in two ways that a batch was taken:
//!
//! - *by credit*, while data flows: a gRPC server gives a stream's flow-control credit back as its application takes data.
//!   [`CreditObserver`] reads that from the connection's bytes. grpc-go may give back one message's length ahead of time, and
//!   works on a message before it reads the next, so a batch is confirmed when the returned credit, less the largest message
//!   sent so far, reaches beyond it. (grpc-go: `internal/transport/flowcontrol.go`, `onRead` and `maybeAdjust`.)
//! - *by ping*, when data stops: the answer to a PING proves that the peer has read all that was sent before it. It confirms
//!   what was written some time before the PING left.

mod batch;
mod credit;
pub mod cut;
#[cfg(test)]
mod dying;
pub mod feed;
mod ledger;
pub mod losses;
mod outbox;
pub mod spool;
mod suspects;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

pub use self::batch::{Batch, Kind};
pub use self::credit::{CreditObserver, DataObserver};
pub use self::outbox::{Bounds, Counters, Outbox, Outgoing, Shed, Unconfirmed};
