//! The link to the server: where to connect, when, and when to give a connection up.
//!
//! [`session`] is the state machine that decides all of that. [`backoff`] spreads the attempts of a fleet, [`race`] chooses among a
//! name's addresses, [`proxy`] speaks to a proxy on the way, [`grpc`] frames the messages of a stream, and [`x509`] reads the little
//! that the agent tells of its own certificates.

pub mod backoff;
pub mod grpc;
pub mod proxy;
pub mod race;
pub mod session;
pub mod x509;
