//! `/api/v1/records.csv` and `/api/v1/records.ndjson`: what a search finds, whole, as a file.
//!
//! It is read page by page as fast as the client takes it, so that a million records need the memory of one page.

use super::records::{self, record, wanted};
use super::{Answer, Ask, bad, no_route, refuse};
use crate::http::stream::{self, Pieces};
use crate::store::{End, Found, Limits, Page, Query, SearchError, Store};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Records of an export, unless the request says how many, and the most.
const DEFAULT_LIMIT: usize = 100_000;
const MAX_LIMIT: usize = 1_000_000;

/// Records that are read at a time. The fields of the first ones become a table's columns.
const PAGE: usize = 1_000;

/// The most columns of fields. What has none goes into the last column.
const MAX_COLUMNS: usize = 1_000;

/// The columns that every table has.
const COLUMNS: [&str; 6] = ["seq", "received", "hostname", "agent_id", "data_type", "timestamp"];

/// The last column of a table whose fields nobody chose.
const OTHER: &str = "other";

/// The last instant that RFC 3339 can write, in milliseconds since 1970.
const YEAR_9999_MS: u64 = 253_402_300_799_999;

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A table.
    Csv,
    /// A JSON object a line.
    Ndjson,
}

/// What `/records` takes, `?limit=N` up to 1,000,000, and for a table `?fields=A,B`.
pub(super) fn answer(ask: &Ask<'_>, form: Form) -> Answer {
    if (ask.method, ask.rest) != (&Method::GET, "") {
        return no_route(ask);
    }
    let Some(store) = ask.shared.options.store.clone() else {
        return refuse(StatusCode::NOT_FOUND, "this center has no store");
    };
    let limit = match ask.query.get("limit") {
        None => DEFAULT_LIMIT,
        Some(text) => match text.parse() {
            Ok(limit @ 1..=MAX_LIMIT) => limit,
            _ => return Err(bad(&format!("limit={text}, expected 1 to {MAX_LIMIT}"))),
        },
    };
    let query = wanted(&ask.query, limit, &["fields"])?;
    let fields = ask.query.get("fields").map(|fields| fields.split(',').map(str::to_owned).collect::<Vec<_>>());
    if fields.as_ref().is_some_and(|fields| form == Form::Ndjson || fields.len() > MAX_COLUMNS) {
        return Err(bad(&format!("fields, expected at most {MAX_COLUMNS} of a table")));
    }
    let Ok(turn) = Arc::clone(&ask.shared.exports).try_acquire_owned() else {
        return refuse(StatusCode::TOO_MANY_REQUESTS, "too many exports are under way; try again when one has ended");
    };
    let (reply, pieces) = match form {
        Form::Csv => stream::attachment("text/csv; charset=utf-8", "records.csv"),
        Form::Ndjson => stream::attachment("application/x-ndjson; charset=utf-8", "records.ndjson"),
    };
    let pages =
        Pages { store, searches: Arc::clone(&ask.shared.searches), left: limit, query: Some(query), damaged: 0 };
    tokio::spawn(export(pages, form, fields, pieces, turn));
    Ok(reply)
}

async fn export(
    mut pages: Pages,
    form: Form,
    fields: Option<Vec<String>>,
    pieces: Pieces,
    _turn: OwnedSemaphorePermit,
) {
    let exported = async {
        let mut first = VecDeque::new();
        let mut table = None;
        if form == Form::Csv {
            let chosen = match fields {
                Some(fields) => Table { fields, other: false },
                None => {
                    let mut seen = 0;
                    while seen < PAGE
                        && let Some(page) = pages.next().await?
                    {
                        seen += page.len();
                        first.push_back(page);
                    }
                    Table::of(first.iter().flatten())
                }
            };
            if !pieces.send(chosen.head().into()).await {
                return Ok(());
            }
            table = Some(chosen);
        }
        loop {
            let page = match first.pop_front() {
                Some(page) => page,
                None => match pages.next().await? {
                    Some(page) => page,
                    None => return Ok(()),
                },
            };
            let mut text = String::new();
            for found in &page {
                match &table {
                    Some(table) => table.row(found, &mut text),
                    None => writeln!(text, "{}", record(found)).expect("strings grow"),
                }
            }
            drop(page);
            if !pieces.send(text.into()).await {
                return Ok(());
            }
        }
    };
    let exported: Result<(), String> = exported.await;
    if pages.damaged > 0 {
        log::warn!("an export lacks what is in {} damaged blocks", pages.damaged);
    }
    if let Err(error) = exported {
        log::warn!("an export breaks off: {error}");
        pieces.fail(io::Error::other(error)).await;
    }
}

/// The pages of a search, one after another.
struct Pages {
    store: Arc<Store>,
    searches: Arc<Semaphore>,
    left: usize,
    /// Nothing once all was found.
    query: Option<Query>,
    damaged: u64,
}

impl Pages {
    /// Returns the next page, which may be empty, or `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Found>>, String> {
        let Some(mut query) = self.query.take() else { return Ok(None) };
        query.limit = self.left.min(PAGE);
        let _turn = self.searches.acquire().await.expect("nobody closes it");
        let store = Arc::clone(&self.store);
        let searched = tokio::task::spawn_blocking(move || {
            let limits = Limits { deadline: Some(Instant::now() + records::SEARCH_TIME), ..Limits::default() };
            let page = store.search(&query, &limits)?;
            Ok::<_, SearchError>((query, page))
        });
        let searched = searched.await.map_err(|error| error.to_string())?;
        let (query, Page { records, next, end, damaged, .. }) = searched.map_err(|error| error.to_string())?;
        self.damaged += damaged;
        self.left -= records.len().min(self.left);
        if end != End::Complete && next.is_some() && self.left > 0 {
            self.query = Some(Query { cursor: next, ..query });
        }
        Ok(Some(records))
    }
}

/// The columns of a table.
struct Table {
    fields: Vec<String>,
    /// True if what has no column goes into the last one.
    other: bool,
}

impl Table {
    /// A column for each field of these records.
    fn of<'a>(records: impl Iterator<Item = &'a Found>) -> Self {
        let names = records.flat_map(|found| fields(found).unwrap_or_default().into_keys());
        Self { fields: names.collect::<BTreeSet<_>>().into_iter().take(MAX_COLUMNS).collect(), other: true }
    }

    fn head(&self) -> String {
        let mut text = String::new();
        let columns = COLUMNS.into_iter().chain(self.fields.iter().map(String::as_str));
        line(columns.chain(self.other.then_some(OTHER)).map(cell), &mut text);
        text
    }

    fn row(&self, found: &Found, text: &mut String) {
        let received = u64::try_from(found.received_ms).unwrap_or_default().min(YEAR_9999_MS);
        let received = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(received));
        let own = [
            found.seq.to_string(),
            received.to_string(),
            cell(&found.hostname),
            cell(&found.agent_id),
            found.data_type.to_string(),
            found.timestamp.to_string(),
        ];
        let (mut fields, mut other) = match fields(found) {
            Ok(fields) => (fields, BTreeMap::new()),
            Err(error) => {
                let error = [("raw_len", json!(found.payload.len())), ("error", json!(error))];
                (BTreeMap::new(), error.map(|(name, value)| (name.to_owned(), value)).into())
            }
        };
        let chosen: Vec<String> =
            self.fields.iter().map(|name| fields.remove(name).map_or_else(String::new, |value| cell(&value))).collect();
        other.extend(fields.into_iter().map(|(name, value)| (name, Value::from(value))));
        let rest = if other.is_empty() { String::new() } else { cell(&json!(other).to_string()) };
        line(own.into_iter().chain(chosen).chain(self.other.then_some(rest)), text);
    }
}

fn fields(found: &Found) -> Result<BTreeMap<String, String>, String> {
    let record = crate::message::Record { data_type: 0, timestamp: 0, data: found.payload.clone() };
    record.fields().map_err(|error| error.to_string())
}

/// Adds a line of cells as RFC 4180 has it.
fn line(cells: impl Iterator<Item = String>, text: &mut String) {
    for (n, cell) in cells.enumerate() {
        if n > 0 {
            text.push(',');
        }
        text.push_str(&cell);
    }
    text.push_str("\r\n");
}

/// Returns text as a cell. Spreadsheets take a cell that begins with certain characters for a formula, and hosts decide what a field holds:
/// such a cell gets a quote in front, which spreadsheets take for "text", unless it is a number.
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<f64>().is_err();
    let quote = if formula { "'" } else { "" };
    if text.contains(['"', ',', '\n', '\r']) {
        return format!("\"{quote}{}\"", text.replace('"', "\"\""));
    }
    format!("{quote}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use elklet_proto::grpc::Payload;
    use prost::Message;

    fn found(fields: &[(&str, &str)]) -> Found {
        let fields = fields.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Found {
            seq: 7,
            agent_id: "a".into(),
            hostname: "gw,1".into(),
            received_ms: 1_700_000_000_123,
            data_type: 59,
            timestamp: -5,
            payload: Payload { fields }.encode_to_vec().into(),
        }
    }

    #[test]
    fn a_table_has_a_column_for_each_field_of_the_first_records() {
        let first = [found(&[("exe", "/bin/true"), ("argv", "a \"b\"\nc")]), found(&[("pid", "-1")])];
        let table = Table::of(first.iter());
        assert_eq!(table.head(), "seq,received,hostname,agent_id,data_type,timestamp,argv,exe,pid,other\r\n");
        let mut text = String::new();
        table.row(&first[0], &mut text);
        table.row(&found(&[("pid", "-1"), ("new", "x")]), &mut text);
        assert_eq!(
            text,
            "7,2023-11-14T22:13:20.123Z,\"gw,1\",a,59,-5,\"a \"\"b\"\"\nc\",/bin/true,,\r\n\
             7,2023-11-14T22:13:20.123Z,\"gw,1\",a,59,-5,,,-1,\"{\"\"new\"\":\"\"x\"\"}\"\r\n"
        );
        let chosen = Table { fields: vec!["pid".into()], other: false };
        text.clear();
        chosen.row(&first[0], &mut text);
        assert_eq!(text, "7,2023-11-14T22:13:20.123Z,\"gw,1\",a,59,-5,\r\n");
    }

    #[test]
    fn a_payload_that_is_none_is_told() {
        let mut text = String::new();
        let broken = Found { payload: vec![0xff; 3].into(), received_ms: i64::MAX, ..found(&[]) };
        Table::of(std::iter::empty()).row(&broken, &mut text);
        assert!(text.starts_with("7,9999-12-31T23:59:59.999Z,") && text.contains("\"\"raw_len\"\":3"), "{text}");
    }

    #[test]
    fn no_cell_is_a_formula() {
        for (text, written) in [
            ("=1+1", "'=1+1"),
            ("@sum(a)", "'@sum(a)"),
            ("-x", "'-x"),
            ("\t=1", "'\t=1"),
            ("-1.5", "-1.5"),
            ("+3", "+3"),
            ("=a,\"b\"", "\"'=a,\"\"b\"\"\""),
            ("plain", "plain"),
        ] {
            assert_eq!(cell(text), written);
        }
    }
}
