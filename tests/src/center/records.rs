//! What agents send, as the center takes it apart and as it writes it down.
//!
//! The center splits a message into its records without copying or decoding their payloads. Only a test that asks for a
//! payload's fields, or for JSON lines, pays for decoding.

use super::Upload;
use bytes::Bytes;
use elklet_proto::grpc::Payload;
use prost::Message;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Data type of the agent's heartbeat.
pub const AGENT_HEARTBEAT: i32 = 1000;
/// Data type of a plugin's heartbeat.
pub const PLUGIN_HEARTBEAT: i32 = 1001;
/// Data type of a report on a task.
pub const TASK_REPORT: i32 = 5100;

/// One message of a Transfer stream.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The stream's number, counted from 1 over all agents.
    pub stream: u64,
    /// The message's place in its stream, from 0.
    pub index: u64,
    /// When it was taken, in seconds since 1970.
    pub svr_time: u64,
    /// Bytes on the wire: the message as compressed, and 5 for the prefix.
    pub wire_len: usize,
    /// Bytes after decompression.
    pub decoded_len: usize,
    /// The records, and the host that they come from.
    pub data: PackagedData,
}

/// The message `grpc.PackagedData`. Its payloads share the memory of the message that they arrived in.
#[derive(Clone, PartialEq, Message)]
pub struct PackagedData {
    /// The records in the order of the message.
    #[prost(message, repeated, tag = "1")]
    pub records: Vec<Record>,
    /// The id in this message. The stream goes by the id of its first message.
    #[prost(string, tag = "2")]
    pub agent_id: String,
    /// Private IPv4 addresses.
    #[prost(string, repeated, tag = "3")]
    pub intranet_ipv4: Vec<String>,
    /// Public IPv4 addresses.
    #[prost(string, repeated, tag = "4")]
    pub extranet_ipv4: Vec<String>,
    /// Private IPv6 addresses.
    #[prost(string, repeated, tag = "5")]
    pub intranet_ipv6: Vec<String>,
    /// Public IPv6 addresses.
    #[prost(string, repeated, tag = "6")]
    pub extranet_ipv6: Vec<String>,
    /// The host's name.
    #[prost(string, tag = "7")]
    pub hostname: String,
    /// The agent's version.
    #[prost(string, tag = "8")]
    pub version: String,
    /// The agent's product name.
    #[prost(string, tag = "9")]
    pub product: String,
}

/// The message `grpc.EncodedRecord`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Record {
    /// The data type.
    #[prost(int32, tag = "1")]
    pub data_type: i32,
    /// Seconds since 1970, by the host's clock.
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
    /// A serialized `grpc.Payload`, unless the agent made a mistake.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

impl Record {
    /// Decodes the payload's fields.
    ///
    /// # Errors
    /// When the payload is not a `grpc.Payload`.
    pub fn fields(&self) -> Result<BTreeMap<String, String>, prost::DecodeError> {
        Ok(Payload::decode(self.data.clone())?.fields)
    }
}

/// Where the center writes what it receives, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordsTo {
    /// Standard output.
    Stdout,
    /// This file, which is created or truncated.
    File(PathBuf),
}

/// The most messages that are queued for the writer. Streams wait beyond that.
const WAITING_MESSAGES: usize = 16;

/// A line to write.
#[derive(Debug)]
pub(crate) enum Line {
    Batch(Arc<Batch>),
    Upload(Upload),
}

/// Starts the thread that writes JSON lines. The thread ends when every sender is gone.
pub(crate) fn start_writer(to: &RecordsTo) -> io::Result<(mpsc::Sender<Line>, JoinHandle<()>)> {
    let output: Box<dyn Write + Send> = match to {
        RecordsTo::Stdout => Box::new(io::stdout()),
        RecordsTo::File(path) => Box::new(File::create(path)?),
    };
    let (sender, receiver) = mpsc::channel(WAITING_MESSAGES);
    let thread = std::thread::Builder::new().name("center-records".into()).spawn(move || {
        if let Err(error) = write_lines(receiver, output) {
            // A reader that has enough closes its end of the pipe, so that is no error.
            log::warn!("no more records are written: {error}");
        }
    })?;
    Ok((sender, thread))
}

fn write_lines(mut lines: mpsc::Receiver<Line>, output: Box<dyn Write + Send>) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(256 * 1024, output);
    while let Some(line) = lines.blocking_recv() {
        match line {
            Line::Batch(batch) => {
                batch.data.records.iter().try_for_each(|record| write_record(&mut output, &batch, record))?
            }
            Line::Upload(upload) => write_json(&mut output, &upload_line(&upload))?,
        }
        if lines.is_empty() {
            output.flush()?;
        }
    }
    output.flush()
}

#[derive(Serialize)]
struct RecordLine<'a> {
    agent_id: &'a str,
    hostname: &'a str,
    data_type: i32,
    timestamp: i64,
    svr_time: u64,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body {
    Fields { fields: BTreeMap<String, String> },
    Raw { raw_len: usize, error: String },
}

fn write_record(output: &mut impl Write, batch: &Batch, record: &Record) -> io::Result<()> {
    let body = match record.fields() {
        Ok(fields) => Body::Fields { fields },
        Err(error) => Body::Raw { raw_len: record.data.len(), error: error.to_string() },
    };
    let line = RecordLine {
        agent_id: &batch.data.agent_id,
        hostname: &batch.data.hostname,
        data_type: record.data_type,
        timestamp: record.timestamp,
        svr_time: batch.svr_time,
        body,
    };
    write_json(output, &line)
}

/// What AgentCenter itself reports to the manager about an upload, in the shape of a record. The call does not say
/// which agent's it is.
fn upload_line(upload: &Upload) -> RecordLine<'static> {
    let fields = [
        ("token", upload.token.clone()),
        ("status", if upload.error.is_none() { "succeed" } else { "failed" }.to_owned()),
        ("msg", upload.error.clone().unwrap_or_else(|| upload.path.display().to_string())),
    ];
    RecordLine {
        agent_id: "",
        hostname: "",
        data_type: TASK_REPORT,
        timestamp: upload.svr_time.cast_signed(),
        svr_time: upload.svr_time,
        body: Body::Fields { fields: fields.map(|(name, value)| (name.to_owned(), value)).into() },
    }
}

fn write_json(output: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, value)?;
    output.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use elklet_proto::grpc;

    fn batch(data: Vec<u8>) -> Batch {
        let record = grpc::EncodedRecord { data_type: 59, timestamp: 7, data };
        let message = grpc::PackagedData {
            records: vec![record],
            agent_id: "a".into(),
            hostname: "h".into(),
            ..Default::default()
        };
        let bytes = Bytes::from(message.encode_to_vec());
        let decoded_len = bytes.len();
        let data = PackagedData::decode(bytes).unwrap();
        Batch { stream: 1, index: 0, svr_time: 9, wire_len: decoded_len + 5, decoded_len, data }
    }

    fn line(batch: &Batch) -> String {
        let mut line = Vec::new();
        write_record(&mut line, batch, &batch.data.records[0]).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_record_is_a_line() {
        let payload = Payload { fields: [("exe".to_owned(), "/bin/\"true\"".to_owned())].into() };
        assert_eq!(
            line(&batch(payload.encode_to_vec())),
            r#"{"agent_id":"a","hostname":"h","data_type":59,"timestamp":7,"svr_time":9,"fields":{"exe":"/bin/\"true\""}}"#
                .to_owned()
                + "\n"
        );
    }

    #[test]
    fn an_undecodable_payload_is_told_by_its_length() {
        let line = line(&batch(vec![0xff; 3]));
        assert!(line.contains(r#""raw_len":3,"error":""#), "{line}");
    }

    #[test]
    fn payloads_share_the_memory_of_their_message() {
        let message = grpc::PackagedData {
            records: vec![grpc::EncodedRecord { data_type: 1, timestamp: 2, data: vec![3; 100] }],
            ..Default::default()
        };
        let bytes = Bytes::from(message.encode_to_vec());
        let range = bytes.as_ptr_range();
        let data = PackagedData::decode(bytes.clone()).unwrap();
        assert!(range.contains(&data.records[0].data.as_ptr()));
    }
}
