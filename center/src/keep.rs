//! The store as the sink of the server.

use crate::fleet::Upload;
use crate::message::{Batch, TASK_REPORT};
use crate::sink::{Numbered, Refused, Sink, Taking};
use crate::store::{self, AppendError, Record, Store};
use bytes::Bytes;
use elklet_proto::grpc::Payload;
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

/// The longest host name that is stored, in bytes. The system's limit is 64.
const HOSTNAME_LEN: usize = 256;

/// Keeps every record in the store.
#[derive(Debug)]
pub struct Keeper {
    store: Arc<Store>,
}

impl Keeper {
    /// Keeps records in this store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
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
            let status = if upload.error.is_none() { "succeed" } else { "failed" };
            let message = upload.error.clone().unwrap_or_else(|| upload.path.display().to_string());
            let fields = [("token", upload.token.clone()), ("status", status.to_owned()), ("msg", message)];
            let fields: HashMap<_, _> = fields.map(|(name, value)| (name.to_owned(), value)).into();
            let payload = Bytes::from(Payload { fields: fields.into_iter().collect() }.encode_to_vec());
            let record = Record { data_type: TASK_REPORT, timestamp: upload.svr_time.cast_signed(), payload };
            self.append("", "", &[record]).await
        })
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
