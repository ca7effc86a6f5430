//! Where messages go, and when an agent may forget them.
//!
//! An agent keeps a batch until the center has given its flow-control credit back. The center therefore gives it back only when the
//! [`Sink`] says that the batch is safe. The store is one; tests have another, which takes everything at once.

use crate::fleet::Upload;
use crate::message::Batch;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

/// A message on its way into a sink.
pub type Taking<'a> = Pin<Box<dyn Future<Output = Result<(), Refused>> + Send + 'a>>;

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
