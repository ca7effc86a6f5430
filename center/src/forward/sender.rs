//! The kinds of outputs, from outside: what becomes of a record, and what came of a batch.

use super::delivery::{Answer, Item, Limits};
use super::file::FileSender;
use super::http::{HttpSender, encode_document};
use super::kafka::{Facts, KafkaSender, Writer};
use super::record::Line;
use super::settings::{HttpFormat, Kind};
use super::syslog::{Form, SyslogSender};
use crate::store::Found;
use bytes::Bytes;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

/// A record is given up if it takes more than this. Agents send at most 4 MiB in one, and JSON may write a byte as six.
const MAX_RECORD: usize = 16 << 20;

/// A record as an output sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    /// The record itself.
    pub(super) text: Bytes,
    pub(super) agent_id: Arc<str>,
    pub(super) hostname: Arc<str>,
    pub(super) data_type: i32,
}

/// Records that go together.
pub(super) type Records = Arc<[Item<Body>]>;

/// What came of a batch, and what went wrong, if anything did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) answer: Answer,
    pub(super) error: Option<String>,
}

impl Outcome {
    /// The receiver has all of it.
    pub(super) fn taken() -> Self {
        Self { answer: Answer::Taken { refused: Vec::new() }, error: None }
    }

    /// All of it is sent again.
    pub(super) fn again(error: impl ToString) -> Self {
        Self { answer: Answer::Again { after_ms: None }, error: Some(error.to_string()) }
    }
}

/// What a batch will come to.
pub(super) type Sending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Sends batches to one output.
#[derive(Debug)]
pub(super) enum Sender {
    File(FileSender),
    Http(HttpSender),
    Syslog(Form, SyslogSender),
    Kafka(Writer, KafkaSender),
}

impl Sender {
    /// Reads certificates, and connects to nothing. `facts` tells what is known of hosts.
    ///
    /// # Errors
    /// When a certificate cannot be read.
    pub(super) fn new(kind: &Kind, facts: &Facts) -> io::Result<Self> {
        Ok(match kind {
            Kind::File(file) => Self::File(FileSender::new(file.clone())),
            Kind::Http(http) => Self::Http(HttpSender::new(http)?),
            Kind::Syslog(syslog) => Self::Syslog(Form::new(syslog), SyslogSender::new(syslog)?),
            Kind::Kafka(kafka) => Self::Kafka(Writer::new(Arc::clone(facts)), KafkaSender::new(kafka)?),
        })
    }

    /// How much goes together, and how much waits.
    pub(super) fn limits(&self) -> Limits {
        let usual =
            Limits { batch_records: 5_000, batch_bytes: 1 << 20, linger_ms: 500, in_flight: 1, held_bytes: 8 << 20 };
        match self {
            // A batch is not divided between two files.
            Self::File(file) => Limits { batch_bytes: file.max_size().min(usual.batch_bytes), ..usual },
            Self::Http(http) => Limits { in_flight: http.in_flight(), held_bytes: 16 << 20, ..usual },
            // Each of them waits for some seconds until it counts as taken.
            // Brokers take a mebibyte unless they are told otherwise, with what is around each record.
            Self::Kafka(..) => Limits { batch_records: 2_000, batch_bytes: 512 << 10, ..usual },
            Self::Syslog(..) => Limits { batch_bytes: 256 << 10, in_flight: 128, held_bytes: 16 << 20, ..usual },
        }
    }

    /// What turns records into what is sent.
    pub(super) fn encoder(&self) -> Encoder {
        match self {
            Self::File(_) => Encoder::Ndjson,
            Self::Http(http) => match http.format() {
                HttpFormat::Ndjson | HttpFormat::Loki { .. } => Encoder::Ndjson,
                HttpFormat::Elasticsearch { index } => Encoder::Document(index.clone()),
            },
            Self::Kafka(writer, _) => Encoder::Kafka(writer.clone()),
            Self::Syslog(form, _) => Encoder::Syslog(form.clone()),
        }
    }

    /// Sends a batch. What it returns does the work, in the order in which batches were given where that matters.
    pub(super) fn send(&mut self, records: Records) -> Sending {
        match self {
            Self::File(file) => file.send(records),
            Self::Http(http) => http.send(records),
            Self::Syslog(_, syslog) => syslog.send(records),
            Self::Kafka(_, kafka) => kafka.send(records),
        }
    }
}

/// Turns records into what is sent, on a thread that may take its time.
#[derive(Clone, Debug)]
pub(super) enum Encoder {
    Ndjson,
    Document(String),
    Kafka(Writer),
    Syslog(Form),
}

impl Encoder {
    /// # Errors
    /// The record is too large; the number is its bytes.
    pub(super) fn encode(&mut self, found: &Found) -> Result<Body, usize> {
        let text = match self {
            Self::Ndjson => {
                let mut line = Line::new(found).json();
                line.push(b'\n');
                line
            }
            Self::Document(index) => encode_document(index, found),
            Self::Kafka(writer) => writer.encode(found),
            Self::Syslog(form) => form.encode(found),
        };
        if text.len() > MAX_RECORD {
            return Err(text.len());
        }
        let (agent_id, hostname) = (Arc::clone(&found.agent_id), Arc::clone(&found.hostname));
        Ok(Body { text: text.into(), agent_id, hostname, data_type: found.data_type })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// So many records, each of one byte.
    pub(in crate::forward) fn records(count: usize) -> Records {
        (0..count).map(|seq| item(seq as u64, "x")).collect()
    }

    /// A record that is sent as this text.
    pub(in crate::forward) fn item(seq: u64, text: &str) -> Item<Body> {
        let text = Bytes::copy_from_slice(text.as_bytes());
        let body = Body { text, agent_id: "a".into(), hostname: "gw1".into(), data_type: 59 };
        Item { seq, received_ms: 0, bytes: body.text.len(), body }
    }
}
