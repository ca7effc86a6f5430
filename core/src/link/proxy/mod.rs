//! Ways around a direct connection: what is said to a proxy, and which targets need none.

mod exceptions;
mod handshake;

pub use self::exceptions::Exceptions;
pub use self::handshake::{Credentials, Handshake, Kind, Refusal};
