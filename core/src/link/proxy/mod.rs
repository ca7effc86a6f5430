//! Proxies: the handshake with one, and the targets that need none.

mod exceptions;
mod handshake;

pub use self::exceptions::{BadException, Exceptions};
pub use self::handshake::{Credentials, Handshake, Kind, Refusal};
