//! `/api/v1/records`: what the store holds.

use super::{Answer, Ask, Query, Refusal, bad, no_route, ok, refuse};
use crate::store::{self, Condition, End, Found, Limits, Order, SearchError, Store, Test};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a search may take. The page says where it goes on.
pub(super) const SEARCH_TIME: Duration = Duration::from_secs(5);

/// `?host=NAME|ID`, `?type=59,101`, `?since=S&until=S` (seconds since 1970, when they were received), `?field.NAME=VALUE`,
/// `?contains.NAME=TEXT`, `?order=newest|oldest`, `?limit=N`, `?cursor=N` (the `next` of the page before).
pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    if (ask.method, ask.rest) != (&Method::GET, "") {
        return no_route(ask);
    }
    let Some(store) = ask.shared.options.store.clone() else {
        return refuse(StatusCode::NOT_FOUND, "this center has no store");
    };
    let wanted = wanted(&ask.query, ask.query.limit()?, &[])?;
    let _turn = ask.shared.searches.acquire().await.expect("nobody closes it");
    // Whoever asked may go away, and nobody needs the answer then.
    let cancel = Cancel(Arc::default());
    let cancelled = Arc::clone(&cancel.0);
    let searched = tokio::task::spawn_blocking(move || search(&store, &wanted, cancelled)).await;
    match searched {
        Ok(Ok(page)) => ok(&page),
        Ok(Err(SearchError::Query(why))) => Err(bad(&why)),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("the search failed: {error}")),
    }
}

struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn search(store: &Store, wanted: &store::Query, cancelled: Arc<AtomicBool>) -> Result<Value, SearchError> {
    let limits = Limits { deadline: Some(Instant::now() + SEARCH_TIME), cancelled, ..Limits::default() };
    let page = store.search(wanted, &limits)?;
    let records: Vec<_> = page.records.iter().map(record).collect();
    let end = match page.end {
        End::Complete => "complete",
        End::Limit => "limit",
        End::Deadline => "deadline",
        End::Cancelled => "cancelled",
    };
    Ok(json!({ "records": records, "next": page.next, "end": end, "damaged_blocks": page.damaged }))
}

pub(super) fn record(found: &Found) -> Value {
    let mut value = json!({
        "seq": found.seq,
        "agent_id": &*found.agent_id,
        "hostname": &*found.hostname,
        "received_ms": found.received_ms,
        "data_type": found.data_type,
        "timestamp": found.timestamp,
    });
    let decoded = crate::message::Record { data_type: 0, timestamp: 0, data: found.payload.clone() }.fields();
    match decoded {
        Ok(fields) => value["fields"] = json!(fields),
        Err(error) => {
            value["raw_len"] = json!(found.payload.len());
            value["error"] = json!(error.to_string());
        }
    }
    value
}

/// Returns what a request searches for. The parameters in `others` are somebody else's.
pub(super) fn wanted(query: &Query, limit: usize, others: &[&str]) -> Result<store::Query, Refusal> {
    let mut wanted = store::Query { limit, ..store::Query::default() };
    let mut received = BTreeMap::from([("since", i64::MIN), ("until", i64::MAX)]);
    for (name, value) in query.all() {
        let wrong = || bad(&format!("{name}={value} makes no sense"));
        match name.as_str() {
            "limit" => {}
            name if others.contains(&name) => {}
            "host" => wanted.host = Some(value),
            "type" => {
                let types = value.split(',').map(str::parse);
                wanted.data_types = types.collect::<Result<_, _>>().map_err(|_| wrong())?;
            }
            "since" | "until" => {
                let seconds: i64 = value.parse().map_err(|_| wrong())?;
                let bound = received.get_mut(name.as_str()).expect("both are there");
                *bound = seconds.checked_mul(1000).ok_or_else(wrong)?;
            }
            "order" => {
                wanted.order = match value.as_str() {
                    "newest" => Order::Newest,
                    "oldest" => Order::Oldest,
                    _ => return Err(wrong()),
                }
            }
            "cursor" => wanted.cursor = Some(value.parse().map_err(|_| wrong())?),
            _ => {
                let (test, field) = match (name.strip_prefix("field."), name.strip_prefix("contains.")) {
                    (Some(field), _) => (Test::Is, field),
                    (_, Some(field)) => (Test::Contains, field),
                    _ => return Err(bad(&format!("no parameter {name:?} is known"))),
                };
                wanted.conditions.push(Condition { field: field.to_owned(), test, value });
            }
        }
    }
    wanted.received_ms = received["since"]..=received["until"];
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_is_searched_for() {
        let query = "host=gw1&type=59,101&since=10&until=20&field.exe=%2Fusr%2Fbin%2Fcurl&order=oldest&cursor=7";
        let wanted = wanted(&Query::parse(query).unwrap(), 5, &[]).unwrap();
        assert_eq!((wanted.host.as_deref(), &wanted.data_types[..]), (Some("gw1"), &[59, 101][..]));
        assert_eq!((wanted.received_ms, wanted.limit, wanted.cursor), (10_000..=20_000, 5, Some(7)));
        assert_eq!((wanted.order, wanted.conditions[0].value.as_str()), (Order::Oldest, "/usr/bin/curl"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in
            ["type=x", "since=now", "since=9223372036854775807", "order=odd", "cursor=-1", "hots=a", "fields=a", "hots"]
        {
            assert!(wanted(&Query::parse(text).unwrap(), 1, &[]).is_err(), "{text}");
        }
    }
}
