//! A record as a line of JSON.

use crate::message;
use crate::store::Found;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::collections::BTreeMap;

/// A record as `/api/v1/records` shows it. A payload that is none is there as it came, so that nothing is lost.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    seq: u64,
    agent_id: &'a str,
    hostname: &'a str,
    received_ms: i64,
    data_type: i32,
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
}

impl<'a> Line<'a> {
    pub(super) fn new(found: &'a Found) -> Self {
        let fields = message::Record { data_type: 0, timestamp: 0, data: found.payload.clone() }.fields().ok();
        let raw = fields.is_none().then(|| STANDARD.encode(&found.payload));
        Self {
            seq: found.seq,
            agent_id: &found.agent_id,
            hostname: &found.hostname,
            received_ms: found.received_ms,
            data_type: found.data_type,
            timestamp: found.timestamp,
            fields,
            raw,
        }
    }

    /// The line, without its end.
    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("its keys are strings and its numbers are finite")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use bytes::Bytes;
    use elklet_proto::grpc::Payload;
    use prost::Message;

    /// A record of these fields.
    pub(in crate::forward) fn found(fields: &[(&str, &str)]) -> Found {
        let fields = fields.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Found {
            seq: 7,
            agent_id: "a-1".into(),
            hostname: "gw1".into(),
            received_ms: 1_700_000_001_234,
            data_type: 59,
            timestamp: 1_700_000_000,
            payload: Payload { fields }.encode_to_vec().into(),
        }
    }

    #[test]
    fn a_line_holds_the_record() {
        let json = Line::new(&found(&[("exe", "/bin/\"x\"\n")])).json();
        let expected = r#"{"seq":7,"agent_id":"a-1","hostname":"gw1","received_ms":1700000001234,"data_type":59,"timestamp":1700000000,"fields":{"exe":"/bin/\"x\"\n"}}"#;
        assert_eq!(std::str::from_utf8(&json), Ok(expected));
    }

    #[test]
    fn a_payload_that_is_none_is_kept_as_it_came() {
        let found = Found { payload: Bytes::from_static(b"\xff\xff"), ..found(&[]) };
        let value: serde_json::Value = serde_json::from_slice(&Line::new(&found).json()).unwrap();
        assert_eq!((&value["raw"], value.get("fields")), (&"//8=".into(), None));
    }
}
