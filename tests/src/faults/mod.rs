//! Makes things break on purpose: the server, and what lies between an agent and it.
//!
//! The embedded center does what a server can do wrong on a stream ([`Fault`](crate::center::Fault)). This module does
//! what goes wrong below and around it: a [`Proxy`] on the way, a [`Namespace`] that drops packets, and a [`Server`]
//! that is a process of its own and can be stopped and killed.

mod names;
mod namespace;
mod proxy;
mod server;

pub use names::{NameServer, PATIENCE_S, Question, Reply};
pub use namespace::Namespace;
pub use proxy::Proxy;
pub use server::Server;
