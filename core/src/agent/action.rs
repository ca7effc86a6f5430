//! What the agent asks of the shell.

use alloc::string::String;

#[cfg(doc)]
use super::Agent;
use crate::command::{AgentConfig, AgentTask, Forbidden, PluginName};
#[cfg(doc)]
use crate::delivery;
use crate::delivery::feed;
use crate::dispatch::{PluginAction, TaskFailure};
use crate::link::session;

/// What the shell is to do, by the room that does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<M> {
    /// The network: where to connect, what to do with the connection.
    Link(session::Action),
    /// Plugins: their files and processes.
    Plugin(PluginAction),
    /// The delivery: records, batches, the spool's files.
    Delivery(feed::Action<M>),
    /// Make heartbeats of the agent and of every running plugin, and give them to [`Agent::handle_batch`] as one batch of kind
    /// [`Heartbeat`](delivery::Kind::Heartbeat). It leaves ahead of everything else.
    Beat,
    /// Ask the server for the next certificate, on the connection of the stream. Answer with [`Agent::handle_renewed`], unless the stream
    /// ends before. Tell of one that is given and has to be kept with [`Agent::handle_certificate_given`].
    Renew,
    /// Carry out a task of the agent's own. Answer a failure with [`Agent::handle_task_failed`], the end of an upload, good or bad, with
    /// [`Agent::handle_uploaded`], and a shutdown with [`Agent::handle_shutdown`].
    Task(AgentTask),
    /// Stop the upload that is under way; its task is answered already.
    AbortUpload,
    /// The agent's own update.
    Update(UpdateAction),
    /// Put the answer to a task that failed into the intake (data type 5100).
    Answer(TaskFailure),
    /// Tell people, and note for the owner's eyes: the host's policy forbids a plugin.
    Forbid(PluginName, Forbidden),
    /// Tell people, and note for the owner's eyes: an entry of the server's list cannot be carried out, for this reason.
    Refuse(String),
    /// Tell people: something is not as it should be.
    Complain(String),
    /// The end is over: leave, and become what this says.
    Exit(After),
}

/// What the shell is to do about the agent's own version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateAction {
    /// Bring this version in place, and give up an earlier `Install` that is under way. Answer with [`Agent::handle_updated`].
    Install(AgentConfig),
    /// The agent is to be what it is: give up an [`UpdateAction::Install`] that is under way.
    Keep,
    /// The version that runs has held a stream for long enough: it stays.
    Commit,
    /// The version that runs has not held a stream in time. The agent ends, to become the one before ([`After::PutBack`]).
    Reject,
}

/// What becomes of the process once the agent has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It exits.
    Exit,
    /// It becomes the version that an update has brought in place.
    BecomeUpdate,
    /// It becomes the version that the one on trial has replaced.
    PutBack,
}

/// How the agent was asked to end once more; see [`Agent::handle_terminate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// It begins to end in order.
    InOrder,
    /// It was ending already, and ends at once now.
    AtOnce,
}
