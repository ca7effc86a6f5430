//! Everything between the agent and its server: TLS, HTTP/2, the Transfer call, service discovery.
//!
//! The agent's loop starts one task for each attempt that the session asks for and hears of it by [`Event`]s. A task that is
//! aborted closes its connection.

mod dial;
mod discovery;
mod half_open;
mod http;
mod incoming;
mod key;
mod names;
mod observed;
mod proxy;
mod snappy;
mod tls;
mod transfer;
mod transport;
mod trust;
mod upload;

use elklet_core::command::Command;
use elklet_core::link::session::Attempt;

use crate::config::Address;

pub(crate) use self::dial::{DialError, Ends};
pub(crate) use self::discovery::discover;
pub(crate) use self::half_open::HalfOpen;
pub(crate) use self::http::http_agent;
pub(crate) use self::incoming::BadCommand;
pub(crate) use self::snappy::Compressor;
pub use self::snappy::decompress;
pub(crate) use self::tls::{Certificates, Tls, WARNED_DAYS, reason as tls_reason};
pub(crate) use self::transfer::{Connector, End, Transfer};
pub(crate) use self::upload::UploadCall;

/// What an attempt to reach a server has come to.
#[derive(Debug)]
pub(crate) enum Event {
    /// Service discovery has named these addresses.
    Resolved(Attempt, Result<Vec<Address>, String>),
    /// The server's port is reached, directly or through a proxy.
    Dialled,
    /// TCP and TLS are up, between these ends.
    Connected(Attempt, Ends),
    /// The Transfer call is open.
    Opened(Attempt),
    /// A batch has left HTTP/2 whole.
    Written(Attempt),
    /// The server has sent a message; one that is no command does not end the stream.
    Message {
        /// Bytes that it took, gRPC prefix included.
        bytes: usize,
        /// What it says, or what is wrong with it.
        command: Result<Command, BadCommand>,
    },
    /// The server has returned the credit that was wanted.
    Credit,
    /// The server has answered a PING.
    Pong(Attempt),
    /// The attempt is over.
    Ended(Attempt, End),
}

impl Event {
    /// Returns true for a command that says which plugins should be running.
    pub(crate) fn configures(&self) -> bool {
        matches!(self, Self::Message { command: Ok(Command::Configuration(_)), .. })
    }
}
