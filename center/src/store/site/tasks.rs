//! Tasks that were given to agents, with their answers.

use super::{Site, SiteError, rows};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;

/// The newest tasks are kept, so many.
const KEPT: i64 = 100_000;

/// Something that an agent or one of its plugins is to do once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its number, in the order in which tasks were added.
    pub id: i64,
    /// Comes back in the answer. No two tasks have the same.
    pub token: String,
    /// Whose task it is.
    pub agent_id: String,
    /// The plugin's name, or the agent's own.
    pub object_name: String,
    /// What to do.
    pub data_type: i32,
    /// Arguments.
    pub data: String,
    /// How far it is.
    pub state: TaskState,
    /// What came back, or why nothing did.
    pub answer: String,
    /// Who gave it.
    pub created_by: String,
    /// When it was given, in milliseconds since 1970.
    pub created_ms: i64,
    /// When its state changed last, in milliseconds since 1970.
    pub changed_ms: i64,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It waits for the agent.
    Waiting,
    /// It was sent.
    Sent,
    /// It was answered.
    Answered,
    /// It will not be answered.
    Failed,
}

impl TaskState {
    const ALL: [(Self, &str); 4] =
        [(Self::Waiting, "waiting"), (Self::Sent, "sent"), (Self::Answered, "answered"), (Self::Failed, "failed")];
}

impl ToSql for TaskState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let text = Self::ALL.iter().find(|(state, _)| state == self).map_or("", |(_, text)| text);
        Ok(text.into())
    }
}

impl FromSql for TaskState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let found = value.as_str()?;
        Self::ALL.iter().find(|(_, text)| *text == found).map(|(state, _)| *state).ok_or(FromSqlError::InvalidType)
    }
}

/// The table of tasks.
#[derive(Clone, Copy, Debug)]
pub struct Tasks<'a>(pub(super) &'a Site);

impl Tasks<'_> {
    /// Adds tasks in one transaction, and returns their numbers; `id` is not looked at. A task whose token another one has is not added
    /// and has no number. The oldest tasks beyond 100,000 are forgotten.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add(&self, tasks: &[Task]) -> Result<Vec<Option<i64>>, SiteError> {
        self.0.change(|tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO tasks (token, agent_id, object_name, data_type, data, state, answer, created_by, created_ms, changed_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
            )?;
            let mut ids = Vec::with_capacity(tasks.len());
            for task in tasks {
                let added = insert.execute(params![
                    task.token,
                    task.agent_id,
                    task.object_name,
                    task.data_type,
                    task.data,
                    task.state,
                    task.answer,
                    task.created_by,
                    task.created_ms,
                    task.changed_ms
                ])?;
                ids.push((added > 0).then(|| tx.last_insert_rowid()));
            }
            if let Some(newest) = ids.iter().flatten().max() {
                tx.execute("DELETE FROM tasks WHERE id <= ?1", [newest - KEPT])?;
            }
            Ok(ids)
        })
    }

    /// Has `change` look at the task of each token, in one transaction. Where it returns true, the task's state, answer and time of
    /// change are kept. Returns for how many that was so. Without any, nothing is written.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn revise(&self, tokens: &[&str], mut change: impl FnMut(&mut Task) -> bool) -> Result<usize, SiteError> {
        self.0.change(|tx| {
            let mut find = tx.prepare_cached("SELECT * FROM tasks WHERE token = ?1")?;
            let mut write =
                tx.prepare_cached("UPDATE tasks SET state = ?2, answer = ?3, changed_ms = ?4 WHERE token = ?1")?;
            let mut revised = 0;
            for token in tokens {
                let Some(mut task) = find.query_row([token], task).optional()? else { continue };
                if change(&mut task) {
                    revised += write.execute(params![token, task.state, task.answer, task.changed_ms])?;
                }
            }
            Ok(revised)
        })
    }

    /// The tokens of the tasks that wait for their agents, oldest first, at most 10,000.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn waiting(&self) -> Result<Vec<String>, SiteError> {
        self.0.list("SELECT token FROM tasks WHERE state = 'waiting' ORDER BY id", [], |row| row.get(0))
    }

    /// The task with this token.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn get(&self, token: &str) -> Result<Option<Task>, SiteError> {
        self.0.one("SELECT * FROM tasks WHERE token = ?1", [token], task)
    }

    /// Tasks of one agent or of all, newest first, from the one before `before` on.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self, agent_id: Option<&str>, before: Option<i64>, limit: usize) -> Result<Vec<Task>, SiteError> {
        let before = before.unwrap_or(i64::MAX);
        match agent_id {
            Some(agent_id) => {
                let sql = "SELECT * FROM tasks WHERE agent_id = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3";
                self.0.list(sql, params![agent_id, before, rows(limit)], task)
            }
            None => {
                let sql = "SELECT * FROM tasks WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
                self.0.list(sql, params![before, rows(limit)], task)
            }
        }
    }
}

fn task(row: &Row<'_>) -> rusqlite::Result<Task> {
    Ok(Task {
        id: row.get(0)?,
        token: row.get(1)?,
        agent_id: row.get(2)?,
        object_name: row.get(3)?,
        data_type: row.get(4)?,
        data: row.get(5)?,
        state: row.get(6)?,
        answer: row.get(7)?,
        created_by: row.get(8)?,
        created_ms: row.get(9)?,
        changed_ms: row.get(10)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    fn task(id: i64, token: &str, agent_id: &str) -> Task {
        Task {
            id,
            token: token.into(),
            agent_id: agent_id.into(),
            object_name: "collector".into(),
            data_type: 5050,
            data: "{\"a\": 1}".into(),
            state: TaskState::Waiting,
            answer: String::new(),
            created_by: "ann".into(),
            created_ms: 5,
            changed_ms: 5,
        }
    }

    #[test]
    fn a_task_and_its_answer_are_there_after_a_restart() {
        across_a_restart(
            |site| {
                let tasks = [("t1", "a"), ("t2", "b"), ("t1", "b"), ("t3", "a")];
                let tasks = tasks.map(|(token, agent_id)| task(0, token, agent_id));
                let ids = site.tasks().add(&tasks).unwrap();
                assert_eq!(ids, [Some(1), Some(2), None, Some(4)], "t1 is taken, and a number is left out");
                let revised = site.tasks().revise(&["t1", "no such token", "t2"], |task| {
                    (task.state, task.answer, task.changed_ms) = (TaskState::Answered, "done".into(), 9);
                    task.token == "t1"
                });
                assert_eq!(revised, Ok(1));
                assert_eq!(site.tasks().waiting().unwrap(), ["t2", "t3"]);
            },
            |site| {
                let answered =
                    Task { state: TaskState::Answered, answer: "done".into(), changed_ms: 9, ..task(1, "t1", "a") };
                let (second, third) = (task(2, "t2", "b"), task(4, "t3", "a"));
                assert_eq!(site.tasks().get("t1").unwrap().as_ref(), Some(&answered));
                assert_eq!(site.tasks().get("t9").unwrap(), None);
                assert_eq!(site.tasks().list(Some("a"), None, 9).unwrap(), [third.clone(), answered.clone()]);
                assert_eq!(site.tasks().list(Some("a"), Some(4), 9).unwrap(), [answered]);
                assert_eq!(site.tasks().list(None, None, 2).unwrap(), [third, second]);
            },
        );
    }
}
