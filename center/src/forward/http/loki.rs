//! The push API of Loki.

use crate::forward::sender::Records;
use crate::serve::lock;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;

/// Where records go below the address.
pub(super) const PATH: &str = "/loki/api/v1/push";

/// Loki keeps each set of labels as a stream of its own, and suffers from many. What comes from agents decides their values, so that
/// later ones are called `other`.
const MAX_VALUES: usize = 1_000;

/// The labels that records get.
#[derive(Debug)]
pub(super) struct Labels {
    job: String,
    host: bool,
    known: Mutex<HashSet<(i32, String)>>,
}

#[derive(Serialize)]
struct Push<'a> {
    streams: Vec<Stream<'a>>,
}

#[derive(Serialize)]
struct Stream<'a> {
    stream: BTreeMap<&'a str, &'a str>,
    values: Vec<(String, &'a str)>,
}

impl Labels {
    pub(super) fn new(job: String, host: bool) -> Self {
        Self { job, host, known: Mutex::default() }
    }

    /// Returns the body of a request with these records.
    pub(super) fn push(&self, records: &Records) -> Vec<u8> {
        let mut streams: BTreeMap<(String, String), Vec<(String, &str)>> = BTreeMap::new();
        for item in records.iter() {
            let nanoseconds = format!("{}000000", item.received_ms.max(0));
            // It is JSON, and its end is no part of it.
            let line = std::str::from_utf8(&item.body.text).unwrap_or_default().trim_end();
            streams.entry(self.of(item.body.data_type, &item.body.hostname)).or_default().push((nanoseconds, line));
        }
        let streams = streams.iter().map(|((data_type, host), values)| {
            let mut stream = BTreeMap::from([("job", self.job.as_str()), ("data_type", data_type)]);
            if self.host {
                stream.insert("host", host);
            }
            Stream { stream, values: values.clone() }
        });
        let push = Push { streams: streams.collect() };
        serde_json::to_vec(&push).expect("its keys are strings")
    }

    fn of(&self, data_type: i32, host: &str) -> (String, String) {
        let host = if self.host { host } else { "" };
        let mut known = lock(&self.known);
        let pair = (data_type, host.to_owned());
        if known.contains(&pair) || known.len() < MAX_VALUES {
            let labels = (data_type.to_string(), host.to_owned());
            known.insert(pair);
            return labels;
        }
        ("other".to_owned(), "other".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::delivery::Item;
    use crate::forward::sender::Body;
    use serde_json::{Value, json};

    fn records(types: impl IntoIterator<Item = i32>) -> Records {
        let item = |data_type: i32| {
            let text = format!("{{\"type\":{data_type}}}\n");
            let body = Body { text: text.into(), agent_id: "a".into(), hostname: "gw1".into(), data_type };
            Item { seq: 1, received_ms: 1_700_000_001_234, bytes: 1, body }
        };
        types.into_iter().map(item).collect()
    }

    #[test]
    fn records_of_a_data_type_are_a_stream() {
        let pushed: Value =
            serde_json::from_slice(&Labels::new("elkeid".into(), true).push(&records([59, 101, 59]))).unwrap();
        let values = |data_type| json!(["1700000001234000000", format!("{{\"type\":{data_type}}}")]);
        let stream = |data_type: &str| json!({ "job": "elkeid", "data_type": data_type, "host": "gw1" });
        assert_eq!(
            pushed,
            json!({ "streams": [
            { "stream": stream("101"), "values": [values(101)] },
            { "stream": stream("59"), "values": [values(59), values(59)] },
        ] })
        );
    }

    #[test]
    fn there_is_a_bound_to_streams() {
        let labels = Labels::new("elkeid".into(), false);
        let pushed: Value = serde_json::from_slice(&labels.push(&records(0..5_000))).unwrap();
        let streams = pushed["streams"].as_array().unwrap();
        assert_eq!(streams.len(), MAX_VALUES + 1);
        let other = streams.iter().find(|stream| stream["stream"]["data_type"] == "other").unwrap();
        assert_eq!(other["values"].as_array().map(Vec::len), Some(4_000));
        assert!(other["stream"].get("host").is_none());
    }
}
