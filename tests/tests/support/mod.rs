//! What the tests of the center share.

pub(crate) mod client;
pub(crate) mod described;
pub(crate) mod http;
