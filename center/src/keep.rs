//! The store as the sink of the server: it keeps every record, and the answers to tasks with their tasks as well.

use crate::clock::now_ms;
use crate::fleet::{Task, Upload, bounded_fields};
use crate::message::{Batch, TASK_REPORT};
use crate::serve::upload_report;
use crate::sink::{Numbered, Refused, Sink, Taking};
use crate::store::site::Site;
use crate::store::{self, AppendError, Record, Store};
use bytes::Bytes;
use elklet_proto::grpc::Payload;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The longest host name that is stored, in bytes. The system's limit is 64.
const HOSTNAME_LEN: usize = 256;

/// Messages at a time whose answers are written to their tasks. Each has a thread.
const ANSWERING: usize = 4;

/// Keeps every record in the store.
#[derive(Debug)]
pub struct Keeper {
    store: Arc<Store>,
    answering: Semaphore,
}

impl Keeper {
    /// Keeps records in this store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, answering: Semaphore::new(ANSWERING) }
    }

    /// Writes the answers that a message holds to their tasks, before the agent may forget them. A message that is offered again changes
    /// nothing more.
    async fn keep_answers(&self, agent_id: &str, batch: &Batch) -> Result<(), Refused> {
        let reports = batch.data.records.iter().filter(|record| record.data_type == TASK_REPORT);
        let answers: Vec<_> =
            reports.filter_map(bounded_fields).filter(|fields| fields.contains_key("token")).collect();
        if answers.is_empty() {
            return Ok(());
        }
        let _turn = self.answering.acquire().await.expect("nobody closes it");
        let (store, agent_id) = (Arc::clone(&self.store), agent_id.to_owned());
        let written = tokio::task::spawn_blocking(move || write_answers(store.site(), &agent_id, &answers)).await;
        written.unwrap_or_else(|error| Err(Refused { reason: error.to_string() }))
    }

    async fn append(&self, agent_id: &str, hostname: &str, records: &[Record]) -> Result<Option<Numbered>, Refused> {
        let hostname = &hostname[..hostname.floor_char_boundary(HOSTNAME_LEN)];
        let received_ms = now_ms();
        let batch = store::Batch { received_ms, agent_id, hostname, records };
        match self.store.append(batch).await {
            Ok(seqs) => Ok(Some(Numbered { first_seq: seqs.start, received_ms })),
            Err(AppendError::Refused(why)) => {
                // To offer it again would hold its agent up for ever.
                log::error!("{} records of agent {agent_id:?} are given up: {why}", records.len());
                Ok(None)
            }
            Err(error) => Err(Refused { reason: error.to_string() }),
        }
    }
}

impl Sink for Keeper {
    fn take<'a>(&'a self, agent_id: &'a str, batch: &'a Arc<Batch>) -> Taking<'a> {
        Box::pin(async move {
            // They come first: to write them again does no harm, and to store records again makes them two.
            self.keep_answers(agent_id, batch).await?;
            let stored = |record: &crate::message::Record| Record {
                data_type: record.data_type,
                timestamp: record.timestamp,
                payload: record.data.clone(),
            };
            let records: Vec<_> = batch.data.records.iter().map(stored).collect();
            self.append(agent_id, &batch.data.hostname, &records).await
        })
    }

    /// Stores what AgentCenter itself reports about an upload. The call does not say which agent's it is.
    fn take_upload<'a>(&'a self, upload: &'a Upload) -> Taking<'a> {
        Box::pin(async move {
            let fields: HashMap<_, _> = upload_report(upload).into_iter().collect();
            let payload = Bytes::from(Payload { fields: fields.into_iter().collect() }.encode_to_vec());
            let record = Record { data_type: TASK_REPORT, timestamp: upload.svr_time.cast_signed(), payload };
            self.append("", "", &[record]).await
        })
    }
}

/// Writes answers of an agent to its tasks. Another agent's tasks are not its own to answer.
fn write_answers(site: &Site, agent_id: &str, answers: &[BTreeMap<String, String>]) -> Result<(), Refused> {
    let tokens: Vec<&str> = answers.iter().map(|fields| fields["token"].as_str()).collect();
    let mut rest = answers.iter();
    let revised = site.tasks().revise(&tokens, |row| {
        let Some(fields) = rest.by_ref().find(|fields| fields["token"] == row.token) else { return false };
        let mut task = Task::from(row.clone());
        let news = task.agent_id == agent_id && task.answer(fields, now_ms());
        *row = task.row();
        news
    });
    revised.map(drop).map_err(|error| Refused { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::TaskState;
    use crate::store::Settings;
    use elklet_proto::grpc;

    #[test]
    fn answers_go_to_the_tasks_of_their_agent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Settings::default()).unwrap();
        let tasks = [("t1", "a"), ("t2", "b"), ("t3", "a")].map(|(token, agent_id)| {
            let task = grpc::Task { token: token.into(), ..Default::default() };
            Task::new(&task, agent_id, "ann", 1).row()
        });
        store.site().tasks().add(&tasks).unwrap();
        let answer = |token: &str, msg: &str| {
            BTreeMap::from([("token", token), ("msg", msg)].map(|(name, text)| (name.to_owned(), text.to_owned())))
        };
        let answers = [answer("t3", "1"), answer("nobody's", ""), answer("t2", "not b's"), answer("t3", "2")];
        for _ in 0..2 {
            write_answers(store.site(), "a", &answers).unwrap();
        }
        let task = |token| Task::from(store.site().tasks().get(token).unwrap().unwrap());
        assert_eq!(
            (task("t3").state, &task("t3").answers[..]),
            (TaskState::Answered, &[answer("t3", "1"), answer("t3", "2")][..])
        );
        assert!(task("t2").answers.is_empty() && task("t1").answers.is_empty());
    }
    #[tokio::test]
    async fn an_answer_that_cannot_be_kept_stays_with_its_agent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), Settings::default()).unwrap());
        let task = grpc::Task { token: "t".into(), ..Default::default() };
        store.site().tasks().add(&[Task::new(&task, "a", "ann", 1).row()]).unwrap();
        let keeper = Keeper::new(Arc::clone(&store));
        let fields = [("token".to_owned(), "t".to_owned())].into();
        let data = Payload { fields }.encode_to_vec().into();
        let records = vec![crate::message::Record { data_type: TASK_REPORT, timestamp: 0, data }];
        let data = crate::message::PackagedData { records, ..Default::default() };
        let batch = Arc::new(Batch { stream: 1, index: 0, svr_time: 7, wire_len: 1, decoded_len: 1, data });
        let database = rusqlite::Connection::open(dir.path().join("center.db")).unwrap();
        let rename =
            |from: &str, to: &str| database.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).unwrap();
        rename("tasks", "elsewhere");
        let refused = keeper.take("a", &batch).await.unwrap_err();
        assert!(refused.reason.contains("center.db cannot be used"), "{refused}");
        assert_eq!(store.stats().records, 0, "it is offered again whole");
        rename("elsewhere", "tasks");
        keeper.take("a", &batch).await.unwrap();
        assert_eq!(store.site().tasks().get("t").unwrap().unwrap().state, TaskState::Answered);
        assert_eq!(store.stats().records, 1);
    }
}
