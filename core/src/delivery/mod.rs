//! Delivery at least once, over a protocol that acknowledges nothing.
//!
//! The [`Outbox`] keeps every batch until the server is known to have taken it. It sends again what a broken stream leaves
//! unconfirmed, in order, first thing on the next stream. HTTP/2 shows in three ways that the server has taken a batch:
//!
//! - *by credit*, while data flows. A gRPC server returns a stream's flow-control credit as its application takes data, and
//!   [`CreditObserver`] reads that from the connection's bytes. grpc-go may grant one message's length ahead of time, and
//!   works on a message before it reads the next. The returned credit, less the largest message sent so far, therefore
//!   confirms every batch that it reaches beyond. (grpc-go: `internal/transport/flowcontrol.go`, `onRead` and `maybeAdjust`.)
//! - *by ping*, when data stops. The answer to a PING proves that the peer has read everything sent before the PING. It
//!   confirms what was written some time before the PING left.
//! - *by an end in order*, when the agent ends or moves. A server that reads a half-closed stream to its end and answers with
//!   status OK has taken everything.

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
