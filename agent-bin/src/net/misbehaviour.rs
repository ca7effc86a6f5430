//! What a server sends that it should not.

use std::fmt;
use std::io;

use elklet_core::command::NotACommand;
use elklet_core::link::grpc::BadMessage;
use prost::DecodeError;

/// What a server has sent that cannot be understood, or not at this moment. Its text completes "the server sent ...".
#[derive(Debug)]
pub(crate) enum CenterMisbehaved {
    /// Bytes that are no message, or one that is too long.
    Message(BadMessage),
    /// A message of this length that cannot be decompressed.
    Snappy(usize, io::Error),
    /// A message that is compressed in this way.
    Compression(String),
    /// A message that is no command.
    Command(NotACommand),
    /// A message that does not answer a call.
    Answer(DecodeError),
    /// A message that ends early.
    Part,
    /// The answer to an upload before the end of the file.
    EarlyAnswer,
    /// Word that it has not kept a file.
    NotKept,
    /// No answer to a call.
    Nothing,
}

impl fmt::Display for CenterMisbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(why) => why.fmt(f),
            Self::Snappy(bytes, error) => write!(f, "a compressed message of {bytes} bytes: {error}"),
            Self::Compression(name) => write!(f, "a message compressed by {name:.20}, expected snappy"),
            Self::Command(why) => why.fmt(f),
            Self::Answer(error) => error.fmt(f),
            Self::Part => f.write_str("a message that ends early"),
            Self::EarlyAnswer => f.write_str("its answer before the end of the file"),
            Self::NotKept => f.write_str("status FAILED: it has not kept the file"),
            Self::Nothing => f.write_str("no answer to the call"),
        }
    }
}

impl std::error::Error for CenterMisbehaved {}
