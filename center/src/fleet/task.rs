//! Tasks: what agents were told to do once, and what came back.

use crate::store::site;
pub use crate::store::site::TaskState;
use elklet_proto::grpc;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most answers of a task that are kept, and their bytes with the names of their fields. A task that reports its progress sends a few
/// short ones.
pub(super) const ANSWERS: usize = 16;
const ANSWERS_LEN: usize = 64 << 10;

/// Bytes of a task's arguments that are kept. The agent gets all of them.
const DATA_LEN: usize = 16 << 10;

/// A task with a token, and what came back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Its number, in the order in which tasks were given.
    pub id: i64,
    /// The token, which answers carry.
    pub token: String,
    /// The agent that it is for.
    pub agent_id: String,
    /// The plugin that it is for, or `elkeid-agent`.
    pub name: String,
    /// The task's kind.
    pub data_type: i32,
    /// Its arguments, the first 16 KiB of them.
    pub data: String,
    /// How far it is.
    pub state: TaskState,
    /// The fields of the records 5100 with its token, oldest first, at most 16 and 64 KiB.
    pub answers: Vec<BTreeMap<String, String>>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// Who gave it.
    pub created_by: String,
    /// When it was given, in milliseconds since 1970.
    pub created_ms: i64,
    /// When anything of this changed last, in milliseconds since 1970.
    pub changed_ms: i64,
}

/// What the server has learned of a task that it was to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The task's token.
    pub(crate) token: String,
    /// The agent that the task is for.
    pub(crate) agent_id: String,
    /// Why it will not be sent; `None` if it was.
    pub(crate) error: Option<String>,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: i64,
}

/// What the database keeps of a task's end, as JSON.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Outcome {
    answers: Vec<BTreeMap<String, String>>,
    error: Option<String>,
}

impl Task {
    /// Returns a task that waits for its agent. Its number is given when it is added.
    pub(crate) fn new(task: &grpc::Task, agent_id: &str, created_by: &str, now_ms: i64) -> Self {
        Self {
            id: 0,
            token: task.token.clone(),
            agent_id: agent_id.to_owned(),
            name: task.object_name.clone(),
            data_type: task.data_type,
            data: task.data[..task.data.floor_char_boundary(DATA_LEN)].to_owned(),
            state: TaskState::Waiting,
            answers: Vec::new(),
            error: None,
            created_by: created_by.to_owned(),
            created_ms: now_ms,
            changed_ms: now_ms,
        }
    }

    /// Keeps an answer. Returns false if there is no room for it, or if it is there already: an agent sends again what it does not know
    /// to have arrived.
    pub(crate) fn answer(&mut self, fields: &BTreeMap<String, String>, now_ms: i64) -> bool {
        let len = |fields: &BTreeMap<String, String>| -> usize {
            fields.iter().map(|(name, value)| name.len() + value.len()).sum()
        };
        let kept: usize = self.answers.iter().map(len).sum();
        if self.answers.len() >= ANSWERS || kept + len(fields) > ANSWERS_LEN || self.answers.contains(fields) {
            return false;
        }
        self.answers.push(fields.clone());
        (self.state, self.error, self.changed_ms) = (TaskState::Answered, None, now_ms);
        true
    }

    /// Notes that it was sent, or that it will not be. Returns false if that is no news: its answer may have come before.
    pub(crate) fn progress(&mut self, progress: &Progress) -> bool {
        let state = if progress.error.is_none() { TaskState::Sent } else { TaskState::Failed };
        if self.agent_id != progress.agent_id || self.state != TaskState::Waiting {
            return false;
        }
        (self.state, self.error, self.changed_ms) = (state, progress.error.clone(), progress.at_ms);
        true
    }

    /// Returns the task as the database has it.
    pub(crate) fn row(&self) -> site::Task {
        let outcome = Outcome { answers: self.answers.clone(), error: self.error.clone() };
        site::Task {
            id: self.id,
            token: self.token.clone(),
            agent_id: self.agent_id.clone(),
            object_name: self.name.clone(),
            data_type: self.data_type,
            data: self.data.clone(),
            state: self.state,
            answer: serde_json::to_string(&outcome).expect("texts become JSON"),
            created_by: self.created_by.clone(),
            created_ms: self.created_ms,
            changed_ms: self.changed_ms,
        }
    }
}

impl From<site::Task> for Task {
    fn from(row: site::Task) -> Self {
        // Whatever else stands there was not written by this program, and is no answer that it knows.
        let Outcome { answers, error } = serde_json::from_str(&row.answer).unwrap_or_default();
        Self {
            id: row.id,
            token: row.token,
            agent_id: row.agent_id,
            name: row.object_name,
            data_type: row.data_type,
            data: row.data,
            state: row.state,
            answers,
            error,
            created_by: row.created_by,
            created_ms: row.created_ms,
            changed_ms: row.changed_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        let task = grpc::Task { token: "t".into(), data: "ü".repeat(DATA_LEN), ..Default::default() };
        Task::new(&task, "a", "ann", 5)
    }

    fn answer(text: &str) -> BTreeMap<String, String> {
        [("msg".to_owned(), text.to_owned())].into()
    }

    fn progress(agent_id: &str, error: Option<&str>) -> Progress {
        Progress { token: "t".into(), agent_id: agent_id.into(), error: error.map(str::to_owned), at_ms: 7 }
    }

    #[test]
    fn an_answer_counts_whatever_comes_after_it() {
        let mut task = task();
        assert_eq!(task.data.len(), DATA_LEN);
        assert!(!task.progress(&progress("b", None)), "another agent's");
        assert!(task.answer(&answer("done"), 6));
        assert!(!task.progress(&progress("a", None)));
        assert!(!task.answer(&answer("done"), 9), "it was sent again");
        assert_eq!((task.state, task.answers.len(), task.changed_ms), (TaskState::Answered, 1, 6));
        assert_eq!(Task::from(task.row()), task);
    }

    #[test]
    fn a_task_that_was_never_sent_says_why() {
        let mut task = task();
        assert!(task.progress(&progress("a", Some("gone"))));
        assert_eq!((task.state, task.error.as_deref()), (TaskState::Failed, Some("gone")));
        assert_eq!(Task::from(task.row()), task);
    }

    #[test]
    fn answers_have_a_bound_in_bytes() {
        let mut task = task();
        assert!(task.answer(&answer(&"x".repeat(ANSWERS_LEN - 3)), 6));
        assert!(!task.answer(&answer("y"), 6));
    }
}
