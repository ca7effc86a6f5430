//! What a test can have the center do wrong, and how fast it takes messages.

use super::grpc::{Encoding, PREFIX_LEN, Status, prefixed};
use bytes::Bytes;
use elklet_proto::grpc::Command;
use h2::Reason;
use http::StatusCode;
use prost::Message as _;
use std::time::Duration;

/// Something to go wrong on one Transfer stream, or on the connection below it.
///
/// [`super::Center::on_next_stream`] queues it for a stream that is yet to be opened, where it comes before the first message
/// is read; [`super::Center::inject`] does it to an open one. A fault that does not end the stream leaves it working.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call ends with this status: in trailers, or in trailers only where nothing was sent before.
    Status(Status),
    /// The call ends with an HTTP status and no gRPC, as when a proxy cannot reach AgentCenter.
    HttpStatus(StatusCode),
    /// These bytes, whatever they are, in DATA frames of at most `frame_len` bytes.
    Bytes {
        /// What is sent.
        bytes: Bytes,
        /// The longest DATA frame, at least 1.
        frame_len: usize,
    },
    /// The command, compressed as the call has it, in DATA frames of one byte.
    Dribble(Command),
    /// RST_STREAM.
    Reset(Reason),
    /// GOAWAY: with NO_ERROR a polite one that lets open streams go on, else one that ends the connection.
    GoAway(Reason),
    /// A whole HTTP/2 frame, which leaves in front of the next that the connection has to send.
    Frame(Bytes),
    /// The TCP connection is closed without a word.
    Close,
    /// The connection is neither read nor written any more, but stays open, as when the path is cut. The agent's id stays
    /// taken. [`Fault::Thaw`] ends it.
    Freeze,
    /// A frozen connection works again.
    Thaw,
}

impl Fault {
    /// An uncompressed message of these bytes: a sound one, when they are a sound command.
    pub fn message(body: &[u8]) -> Self {
        Self::bytes(prefixed(0, body))
    }

    /// A message of these bytes that says it is compressed.
    pub fn compressed_message(body: &[u8]) -> Self {
        Self::bytes(prefixed(1, body))
    }

    /// The prefix of an uncompressed message of `len` bytes, and nothing after it.
    pub fn prefix(len: u32) -> Self {
        let mut prefix = [0; PREFIX_LEN];
        prefix[1..].copy_from_slice(&len.to_be_bytes());
        Self::bytes(Bytes::copy_from_slice(&prefix))
    }

    /// A GOAWAY frame without an error that names this as the last stream that the server has worked on.
    pub fn last_stream(stream: u32) -> Self {
        const GOAWAY: u8 = 7;
        let head = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0];
        Self::Frame(Bytes::from([&head[..], &stream.to_be_bytes(), &[0; 4]].concat()))
    }

    fn bytes(bytes: Bytes) -> Self {
        Self::Bytes { bytes, frame_len: usize::MAX }
    }

    /// The bytes that are to be sent, and the longest frame to send them in.
    pub(crate) fn into_bytes(self, encoding: Encoding) -> Result<(Bytes, usize), Self> {
        match self {
            Self::Bytes { bytes, frame_len } => Ok((bytes, frame_len.max(1))),
            Self::Dribble(command) => Ok((encoding.message(&command.encode_to_vec()), 1)),
            other => Err(other),
        }
    }
}

/// Something to go wrong on one upload.
#[derive(Debug, Clone)]
pub enum UploadFault {
    /// The call ends with this status, whatever is sent.
    Status(Status),
    /// RST_STREAM once so many bytes of the file have come.
    Reset {
        /// Bytes of the file that come before.
        after: u64,
    },
    /// Nothing more is taken once so many bytes of the file have come, and nothing is answered.
    Stall {
        /// Bytes of the file that come before.
        after: u64,
    },
    /// All is taken, and the answer is that it has failed.
    Failed,
}

/// How the center takes messages from its Transfer streams.
///
/// What it does not take it gives no flow-control credit for, so that agents feel it when their window is used up: as when
/// the message queue behind AgentCenter is slow or full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// As fast as they come.
    #[default]
    Full,
    /// With this much time before each.
    Delay(Duration),
    /// Not at all.
    Stopped,
}
