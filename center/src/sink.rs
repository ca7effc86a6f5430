//! Where messages go, and when an agent may forget them.
//!
//! An agent keeps a batch until the center has given its flow-control credit back. The center therefore gives it back only when the
//! [`Sink`] says that the batch is safe. The store is one; tests have another, which takes everything at once.

use crate::fleet::Upload;
use crate::message::Batch;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

/// A message on its way into a sink. Not every sink numbers records.
pub type Taking<'a> = Pin<Box<dyn Future<Output = Result<Option<Numbered>, Refused>> + Send + 'a>>;

/// What a sink calls the records that it has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered {
    /// The sequence number of the first one. The others follow it in their order.
    pub first_seq: u64,
    /// When they were received, in milliseconds since 1970.
    pub received_ms: i64,
}

/// What takes messages for good.
pub trait Sink: Send + Sync + 'static {
    /// Takes a message of the agent whose stream goes by `agent_id`. The future completes once the message is durable. Until then the
    /// stream reads nothing more, and the agent gets no credit for it.
    ///
    /// When it refuses, the center offers the same message again until the sink takes it or the stream ends.
    fn take<'a>(&'a self, agent_id: &'a str, batch: &'a Arc<Batch>) -> Taking<'a>;

    /// Takes note of an upload that has ended. The center goes on whatever becomes of that.
    fn take_upload<'a>(&'a self, upload: &'a Upload) -> Taking<'a>;
}

/// The sink takes nothing now, for a reason that has nothing to do with the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// For people: what is wrong, as in `no space left on device`.
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refused {}
