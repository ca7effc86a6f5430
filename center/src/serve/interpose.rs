//! The hook for those who embed the server and want it to err: tests wrap their faults around it.

use super::grpc::Status;
use crate::message::Batch;
use bytes::Bytes;
use h2::Reason;
use http::StatusCode;
use std::pin::Pin;

/// Stands between the server and each stream. The default of every method leaves the stream alone, and `()` has only defaults.
pub trait Interpose: Send + Sync + 'static {
    /// Returns what a Transfer stream does first, before it reads anything.
    fn opened(&self) -> Option<Step> {
        None
    }

    /// The stream awaits this before it reads a message.
    fn before_message(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }

    /// Returns true for a message over which the server closes the connection without a word. It takes nothing of it.
    fn dies_of(&self, _: &Batch) -> bool {
        false
    }

    /// Returns what watches over the next upload.
    fn upload(&self) -> Option<UploadWatch> {
        None
    }
}

impl Interpose for () {}

/// What a stream, or the connection below it, is to do apart from serving its agent.
#[derive(Debug, Clone)]
pub enum Step {
    /// It ends with this status, in trailers. If nothing was sent before, they are the whole answer.
    End(Status),
    /// It ends with an HTTP status and no gRPC, as when a proxy cannot reach the server.
    EndAsProxy(StatusCode),
    /// It ends with RST_STREAM.
    Reset(Reason),
    /// It sends a message of this body, with the call's compression, in DATA frames of at most `frame_len` bytes.
    Message {
        /// The message's body, not compressed.
        body: Bytes,
        /// The longest DATA frame, at least 1.
        frame_len: usize,
    },
    /// It sends these bytes, whatever they are, in DATA frames of at most `frame_len` bytes.
    Bytes {
        /// What to send.
        bytes: Bytes,
        /// The longest DATA frame, at least 1.
        frame_len: usize,
    },
    /// The connection does something.
    Connection(ConnectionStep),
}

/// What a connection is to do.
#[derive(Debug, Clone)]
pub enum ConnectionStep {
    /// It sends GOAWAY. With NO_ERROR open streams go on, with any other code the connection ends.
    GoAway(Reason),
    /// It sends this whole HTTP/2 frame, before the next one that it has to send.
    Frame(Bytes),
    /// It closes without a word.
    Close,
    /// It neither reads nor writes any more and stays open.
    Freeze,
    /// It works again.
    Thaw,
}

/// Is asked before an upload begins, after each of its pieces, and at its end.
pub type UploadWatch = Box<dyn FnMut(UploadAt) -> UploadStep + Send>;

/// How far an upload has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadAt {
    /// Nothing was read.
    Start,
    /// This many bytes of the file were taken.
    Taken(u64),
    /// The whole file was taken, and is not answered yet.
    End,
}

/// What becomes of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadStep {
    /// It goes on.
    Go,
    /// It ends with this status. Only at its start.
    Refuse(Status),
    /// It is reset.
    Reset,
    /// It is neither read nor answered any more.
    Stall,
    /// It is answered as failed, for this reason.
    Fail(String),
}
