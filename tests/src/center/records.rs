//! What agents send, as JSON lines.

use elklet_center::fleet::Upload;
use elklet_center::message::{Batch, Record, TASK_REPORT};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

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
    use bytes::Bytes;
    use elklet_center::message::PackagedData;
    use elklet_proto::grpc::{self, Payload};
    use prost::Message;

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
}
