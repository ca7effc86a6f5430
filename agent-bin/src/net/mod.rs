//! Everything between the agent and its server: TLS, HTTP/2, the Transfer call, service discovery.
//!
//! The agent's loop starts one task for each attempt that the session asks for, and receives its [`Event`]s. Aborting a
//! task closes its connection.

mod dial;
mod discovery;
mod half_open;
mod http;
mod incoming;
mod key;
mod misbehaviour;
mod names;
mod newcomer;
mod observed;
mod provider;
mod proxy;
mod snappy;
mod tls;
mod transfer;
mod transport;
mod trust;
mod unary;
mod upload;

use elklet_core::command::Command;
use elklet_core::link::session::Attempt;

use crate::config::Address;
use crate::files::FileError;

pub(crate) use self::dial::{DialError, Ends};
pub(crate) use self::discovery::{DiscoveryError, discover};
pub(crate) use self::half_open::HalfOpen;
pub(crate) use self::http::http_agent;
pub(crate) use self::incoming::BadCommand;
pub(crate) use self::newcomer::enroll;
pub(crate) use self::provider::provider;
pub(crate) use self::snappy::Compressor;
pub use self::snappy::{Pieces, decompress};
pub(crate) use self::tls::{Certificates, Tls, WARNED_DAYS, reason as tls_reason};
pub(crate) use self::transfer::{Connector, End, Transfer};
pub(crate) use self::upload::UploadCall;

/// What happens in an attempt to reach a server.
#[derive(Debug)]
pub(crate) enum Event {
    /// Service discovery has named these addresses.
    Resolved(Attempt, Result<Vec<Address>, DiscoveryError>),
    /// The server's port was reached, directly or through a proxy.
    Dialled,
    /// TCP and TLS are up, between these ends.
    Connected(Attempt, Ends),
    /// The Transfer call is open.
    Opened(Attempt),
    /// A whole batch has left HTTP/2.
    Written(Attempt),
    /// The server has sent a message. One that is no command does not end the stream.
    Message {
        /// Its length in bytes, gRPC prefix included.
        bytes: usize,
        /// The command, or what is wrong with it.
        command: Result<Command, BadCommand>,
    },
    /// The server has returned as much credit as was asked for.
    Credit,
    /// The server has answered a PING.
    Pong(Attempt),
    /// The server was asked for the next certificate, which is this in DER.
    Renewed(Attempt, Result<Vec<u8>, End>),
    /// The next certificate was written to the disk, or could not be.
    Installed(Result<(), FileError>),
    /// The attempt is over.
    Ended(Attempt, End),
}

impl Event {
    /// Returns true for a command that says which plugins should be running.
    pub(crate) fn configures(&self) -> bool {
        matches!(self, Self::Message { command: Ok(Command::Configuration(_)), .. })
    }
}
