//! The bulk API of Elasticsearch and OpenSearch.
//!
//! Each record is created under an id of its own, so that one that is sent again is not there twice. The answer tells of each record by
//! itself.

use super::{Answered, told};
use crate::forward::delivery::Answer;
use crate::forward::record::Line;
use crate::forward::sender::{Outcome, Records};
use crate::store::Found;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// What is asked of the answer: it would repeat each record's index and id otherwise.
pub(super) const PATH: &str = "/_bulk?filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason";

/// The first second of the year 10000.
const YEAR_10000: i64 = 253_402_300_800;

/// A document: the record, and its time by the name that the tools expect.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "@timestamp")]
    at: String,
    #[serde(flatten)]
    line: Line<'a>,
}

/// Returns the two lines of a record: what is to be done, and the document.
pub(in crate::forward) fn encode(index: &str, found: &Found) -> Vec<u8> {
    let at = instant(found.received_ms);
    let day = at.get(..10).unwrap_or_default().replace('-', ".");
    // The time tells two stores apart in which a sequence number was given twice.
    let id = format!("{}-{}-{}", found.agent_id, found.received_ms, found.seq);
    let action = serde_json::json!({ "create": { "_index": format!("{index}-{day}"), "_id": id } });
    let mut text = action.to_string().into_bytes();
    text.push(b'\n');
    let document = Document { at, line: Line::new(found) };
    serde_json::to_writer(&mut text, &document).expect("its keys are strings and memory takes all");
    text.push(b'\n');
    text
}

fn instant(ms: i64) -> String {
    let ms = u64::try_from(ms.clamp(0, YEAR_10000 * 1000 - 1)).unwrap_or(0);
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

#[derive(Deserialize)]
struct Bulk {
    errors: bool,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    create: Done,
}

#[derive(Deserialize)]
struct Done {
    status: u16,
    #[serde(default)]
    error: Error,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Error {
    r#type: String,
    reason: String,
}

impl Error {
    /// Returns true for what is no fault of the record, although the status says so: that day's index cannot be made while the cluster has
    /// as many shards as it may (`cluster.max_shards_per_node`), and takes records again once somebody has made room.
    fn is_of_the_cluster(&self) -> bool {
        self.r#type == "validation_exception" || self.reason.contains("this action would add")
    }
}

/// What the answer to a bulk request means, when its own status is a success.
pub(super) fn meaning(answered: &Answered, records: &Records) -> Outcome {
    let bulk: Bulk = match serde_json::from_slice(&answered.body) {
        Ok(bulk) => bulk,
        Err(error) => {
            return Outcome::again(format!("this is no answer to a bulk request: {error}: {}", told(&answered.body)));
        }
    };
    if !bulk.errors {
        return Outcome::taken();
    }
    if bulk.items.len() != records.len() {
        return Outcome::again(format!(
            "the answer is about {} records, and {} were sent",
            bulk.items.len(),
            records.len()
        ));
    }
    let (mut again, mut refused, mut error) = (Vec::new(), Vec::new(), None);
    for (place, Item { create: done }) in bulk.items.into_iter().enumerate() {
        match done.status {
            // It was there already: its answer was lost.
            200..300 | 409 => continue,
            // The cluster has no room for another index, and says so of each record.
            400 if done.error.is_of_the_cluster() => again.push(place),
            // The record itself is wrong: its fields do not fit the mapping, or it is too large.
            400 | 413 | 422 => refused.push(place),
            _ => again.push(place),
        }
        error.get_or_insert_with(|| {
            format!("{}: {}: {}", done.status, done.error.r#type, told(done.error.reason.as_bytes()))
        });
    }
    let answer = match again.is_empty() {
        true => Answer::Taken { refused },
        false => Answer::Partly { again, refused, after_ms: super::wish(answered) },
    };
    Outcome { answer, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::record::tests::found;
    use crate::forward::sender::tests::records;
    use bytes::Bytes;
    use http::StatusCode;

    fn answer(body: &'static str, count: usize) -> Outcome {
        let answered =
            Answered { status: StatusCode::OK, retry_after: None, body: Bytes::from_static(body.as_bytes()) };
        meaning(&answered, &records(count))
    }

    #[test]
    fn a_record_is_created_in_the_index_of_its_day() {
        let text = String::from_utf8(encode("elkeid", &found(&[("exe", "/bin/ls")]))).unwrap();
        let (action, document) = text.split_once('\n').unwrap();
        assert_eq!(action, r#"{"create":{"_id":"a-1-1700000001234-7","_index":"elkeid-2023.11.14"}}"#);
        assert!(
            document.starts_with(r#"{"@timestamp":"2023-11-14T22:13:21.234Z","seq":7,"agent_id":"a-1","#),
            "{document}"
        );
        assert!(document.ends_with("\"fields\":{\"exe\":\"/bin/ls\"}}\n"), "{document}");
        let odd = encode("elkeid", &Found { received_ms: i64::MAX, ..found(&[]) });
        assert!(String::from_utf8(odd).unwrap().contains("elkeid-9999.12.31"));
    }

    #[test]
    fn each_record_has_an_answer_of_its_own() {
        assert_eq!(answer(r#"{"errors":false}"#, 2), Outcome::taken());
        let mixed = r#"{"errors":true,"items":[{"create":{"status":201}},{"create":{"status":429,"error":{"type":"es_rejected","reason":"full"}}},
            {"create":{"status":400,"error":{"type":"mapping","reason":"no"}}},{"create":{"status":409}}]}"#;
        let Outcome { answer: of, error } = answer(mixed, 4);
        assert_eq!(of, Answer::Partly { again: vec![1], refused: vec![2], after_ms: None });
        assert_eq!(error.as_deref(), Some("429: es_rejected: full"));
        let bad = r#"{"errors":true,"items":[{"create":{"status":400,"error":{"type":"m","reason":"n"}}},{"create":{"status":201}}]}"#;
        assert_eq!(answer(bad, 2).answer, Answer::Taken { refused: vec![0] });
    }

    #[test]
    fn a_cluster_without_room_for_an_index_is_asked_again() {
        let full = r#"{"errors":true,"items":[{"create":{"status":400,"error":{"type":"validation_exception",
            "reason":"Validation Failed: 1: this action would add [2] total shards, but this cluster currently has [1000]/[1000];"}}},
            {"create":{"status":400,"error":{"type":"illegal_argument_exception","reason":"this action would add [2] shards"}}},
            {"create":{"status":400,"error":{"type":"illegal_argument_exception","reason":"Limit of total fields [1000] has been exceeded"}}}]}"#;
        assert_eq!(answer(full, 3).answer, Answer::Partly { again: vec![0, 1], refused: vec![2], after_ms: None });
    }

    #[test]
    fn an_answer_that_makes_no_sense_confirms_nothing() {
        for body in ["", "<html>", r#"{"errors":true}"#, r#"{"errors":true,"items":[{"create":{"status":201}}]}"#, "{}"]
        {
            assert_eq!(answer(body, 2).answer, Answer::Again { after_ms: None }, "{body}");
        }
    }
}
