//! What breaks between an agent and its server, and either of them, made to break on purpose.
//!
//! What a server can do wrong on a stream is the embedded center's business ([`Fault`](crate::center::Fault)). In here are the
//! things below and around it: a [`Proxy`] on the way, a [`Namespace`] whose packets can be made to vanish, and a [`Server`]
//! that is a process of its own, to be stopped and killed.

mod names;
mod namespace;
mod proxy;
mod server;

pub use names::{NameServer, PATIENCE_S, Question, Reply};
pub use namespace::Namespace;
pub use proxy::Proxy;
pub use server::Server;
