//! What a test can make the center do wrong, and how fast it takes messages.

use bytes::Bytes;
use elklet_center::serve::{ConnectionStep, Status, Step, UploadAt, UploadStep, UploadWatch};
use elklet_proto::grpc::Command;
use h2::Reason;
use http::StatusCode;
use prost::Message as _;
use std::time::Duration;

/// A fault on one Transfer stream, or on the connection below it.
///
/// [`super::Center::on_next_stream`] queues it for the next stream that is opened, where it strikes before the first
/// message is read. [`super::Center::inject`] does it to an open one. If a fault does not end the stream, the stream
/// goes on working.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call ends with this status, in trailers. If nothing was sent before, they are the whole answer.
    Status(Status),
    /// The call ends with an HTTP status and no gRPC, as when a proxy cannot reach AgentCenter.
    HttpStatus(StatusCode),
    /// The center sends these bytes, whatever they are, in DATA frames of at most `frame_len` bytes.
    Bytes {
        /// The bytes to send.
        bytes: Bytes,
        /// The longest DATA frame, at least 1.
        frame_len: usize,
    },
    /// The center sends the command, with the call's compression, in DATA frames of one byte.
    Dribble(Command),
    /// The center resets the stream with RST_STREAM.
    Reset(Reason),
    /// The center sends GOAWAY. With NO_ERROR open streams go on, with any other code the connection ends.
    GoAway(Reason),
    /// The center sends this whole HTTP/2 frame, before the next one that the connection has to send.
    Frame(Bytes),
    /// The center closes the TCP connection without a word.
    Close,
    /// The center neither reads nor writes the connection any more and leaves it open, as when the path is cut. The
    /// agent's id stays taken. [`Fault::Thaw`] ends this.
    Freeze,
    /// A frozen connection works again.
    Thaw,
}

impl Fault {
    /// An uncompressed message of these bytes. It is valid if they are a valid command.
    pub fn message(body: &[u8]) -> Self {
        Self::bytes(prefixed(0, body))
    }

    /// A message of these bytes that says it is compressed.
    pub fn compressed_message(body: &[u8]) -> Self {
        Self::bytes(prefixed(1, body))
    }

    /// The prefix of an uncompressed message of `len` bytes, and nothing after it.
    pub fn prefix(len: u32) -> Self {
        let mut prefix = [0; 5];
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
}

/// A message behind a prefix with this flag.
fn prefixed(flag: u8, body: &[u8]) -> Bytes {
    let len = u32::try_from(body.len()).expect("a message is shorter than 4 GiB");
    Bytes::from([&[flag], &len.to_be_bytes()[..], body].concat())
}

impl From<Fault> for Step {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Status(status) => Self::End(status),
            Fault::HttpStatus(status) => Self::EndAsProxy(status),
            Fault::Bytes { bytes, frame_len } => Self::Bytes { bytes, frame_len },
            Fault::Dribble(command) => Self::Message { body: command.encode_to_vec().into(), frame_len: 1 },
            Fault::Reset(reason) => Self::Reset(reason),
            Fault::GoAway(reason) => Self::Connection(ConnectionStep::GoAway(reason)),
            Fault::Frame(frame) => Self::Connection(ConnectionStep::Frame(frame)),
            Fault::Close => Self::Connection(ConnectionStep::Close),
            Fault::Freeze => Self::Connection(ConnectionStep::Freeze),
            Fault::Thaw => Self::Connection(ConnectionStep::Thaw),
        }
    }
}

/// A fault on one upload.
#[derive(Debug, Clone)]
pub enum UploadFault {
    /// The call ends with this status, whatever the agent sends.
    Status(Status),
    /// The center sends RST_STREAM after this many bytes of the file.
    Reset {
        /// Bytes of the file that the center takes before.
        after: u64,
    },
    /// The center takes no more after this many bytes of the file, and never answers.
    Stall {
        /// Bytes of the file that the center takes before.
        after: u64,
    },
    /// The center takes the whole file and answers that the upload has failed.
    Failed,
}

impl UploadFault {
    /// Returns what does it to the upload that it watches.
    pub(crate) fn watch(self) -> UploadWatch {
        Box::new(move |at| match (&self, at) {
            (Self::Status(status), UploadAt::Start) => UploadStep::Refuse(status.clone()),
            (Self::Reset { after }, UploadAt::Taken(len)) if len >= *after => UploadStep::Reset,
            (Self::Stall { after }, UploadAt::Taken(len)) if len >= *after => UploadStep::Stall,
            (Self::Failed, UploadAt::End) => UploadStep::Fail("a test wants it so".to_owned()),
            _ => UploadStep::Go,
        })
    }
}

/// How the center takes messages from its Transfer streams.
///
/// The center gives no flow-control credit for what it does not take. Agents therefore feel backpressure once their
/// window is used up, as when the message queue behind AgentCenter is slow or full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// As fast as they come.
    #[default]
    Full,
    /// With this pause before each.
    Delay(Duration),
    /// Not at all.
    Stopped,
}
