//! `/api/v1/stream`: what happens, as server-sent events.
//!
//! Each event says how things are by then, so that whoever reads slowly misses states in between and nothing is queued.

use super::{Answer, Ask, bad, hosts, no_route, records, refuse, tasks};
use crate::clock::now_ms;
use crate::http::caller::Caller;
use crate::http::live::{Look, Shown, Tap, Thing};
use crate::http::reply::streamed;
use crate::serve::Shared;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::MissedTickBehavior;

/// How often a stream looks whether there are records to show. What else changes is told at every second look, and the totals at every
/// fourth, once a second.
const LOOK_MS: u64 = 250;
const LOOKS_PER_CHANGE: u64 = 2;
const LOOKS_PER_TOTAL: u64 = 4;

/// A stream that says nothing says so, so that nobody on the way takes it for dead.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Things in an event.
const CHANGES: usize = 200;

/// `?host=ID`, `?type=59,101`, `?records=1`.
pub(super) fn answer(ask: &Ask<'_>) -> Answer {
    if (ask.method, ask.rest) != (&Method::GET, "") {
        return no_route(ask);
    }
    let (mut host, mut types, mut records) = (None, Vec::new(), false);
    for (name, value) in ask.query.all() {
        let wrong = || bad(&format!("{name}={value} makes no sense"));
        match name.as_str() {
            "host" if value.is_empty() => {}
            "type" if value.is_empty() => {}
            "host" => host = Some(value),
            "type" => types = value.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?,
            "records" if value == "1" => records = true,
            "records" if value == "0" => records = false,
            _ => return Err(wrong()),
        }
    }
    let watched = &ask.shared.watched;
    let Some(room) = watched.room() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "as many streams are open as there may be");
    };
    let stream = Stream {
        shared: Arc::clone(ask.shared),
        caller: ask.caller.clone(),
        tap: records.then(|| watched.tap(host.clone(), types)),
        host,
        look: watched.look(),
        totals: Value::Null,
        whole: Value::Null,
        _room: room,
    };
    // What is in it was not read yet. The next look waits until there is room.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(stream.run(sender));
    Ok(streamed("text/event-stream; charset=utf-8", receiver))
}

struct Stream {
    shared: Arc<Shared>,
    caller: Caller,
    host: Option<String>,
    tap: Option<Arc<Tap>>,
    look: Look,
    /// The totals and the host as they were told last.
    totals: Value,
    whole: Value,
    _room: OwnedSemaphorePermit,
}

impl Stream {
    async fn run(mut self, sender: mpsc::Sender<io::Result<Bytes>>) {
        let mut looks = tokio::time::interval(Duration::from_millis(LOOK_MS));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Instant::now();
        for look in 0_u64.. {
            tokio::select! {
                () = sender.closed() => return,
                _ = looks.tick() => {}
            }
            if look.is_multiple_of(LOOKS_PER_TOTAL) && !self.shared.access.may_still_look(&self.caller, now_ms()) {
                return;
            }
            let mut text = self.news(look);
            if text.is_empty() && told.elapsed() >= KEEPALIVE {
                text.push_str(": nothing new\n\n");
            }
            if text.is_empty() {
                continue;
            }
            if sender.send(Ok(text.into())).await.is_err() {
                return;
            }
            told = Instant::now();
        }
    }

    /// Returns the events for what is new.
    fn news(&mut self, look: u64) -> String {
        let mut text = String::new();
        if look.is_multiple_of(LOOKS_PER_TOTAL) {
            self.totals(&mut text);
            self.whole(&mut text);
        }
        if look.is_multiple_of(LOOKS_PER_CHANGE) {
            self.hosts(&mut text);
            self.tasks(&mut text);
            self.rollouts(&mut text);
        }
        self.records(&mut text);
        text
    }

    fn totals(&mut self, text: &mut String) {
        let mut totals = self.shared.read(|fleet| {
            json!({
                "known": fleet.agents.len(),
                "connected": fleet.live.len(),
                "records": fleet.totals.records,
                "wire_bytes": fleet.totals.wire_bytes,
                "storing": fleet.sink_refuses.is_none(),
                "refusal": fleet.sink_refuses,
            })
        });
        if totals != self.totals {
            self.totals = totals.clone();
            totals["at_ms"] = json!(now_ms());
            event(text, "totals", &totals);
        }
    }

    /// Tells of the host that is looked at.
    fn whole(&mut self, text: &mut String) {
        let Some(id) = &self.host else { return };
        let whole = hosts::whole(id, &self.shared).unwrap_or_default();
        if !whole.is_null() && whole != self.whole {
            event(text, "host", &whole);
            self.whole = whole;
        }
    }

    fn hosts(&mut self, text: &mut String) {
        let (ids, more) = self.look.changes(Thing::Host, CHANGES);
        if more {
            // Whoever is told that there were more reads the list.
            self.look.skip(Thing::Host);
        }
        let hosts: Vec<_> = ids.iter().filter_map(|id| hosts::brief(id, &self.shared)).collect();
        if more || !hosts.is_empty() {
            event(text, "hosts", &json!({ "hosts": hosts, "more": more }));
        }
    }

    fn tasks(&mut self, text: &mut String) {
        let (tokens, _) = self.look.changes(Thing::Task, CHANGES);
        let tasks: Vec<_> = tokens.iter().filter_map(|token| tasks::by_token(token, &self.shared)).collect();
        if !tasks.is_empty() {
            event(text, "tasks", &json!({ "tasks": tasks }));
        }
    }

    fn rollouts(&mut self, text: &mut String) {
        let (ids, _) = self.look.changes(Thing::Rollout, CHANGES);
        if !ids.is_empty() {
            event(text, "rollouts", &json!({ "changed": ids }));
        }
    }

    fn records(&self, text: &mut String) {
        let Some(tapped) = self.tap.as_ref().map(|tap| tap.drain()).filter(|tapped| tapped.seen > 0) else { return };
        let records: Vec<_> = tapped.newest.iter().rev().map(shown).collect();
        event(text, "records", &json!({ "records": records, "seen": tapped.seen }));
    }
}

fn shown(shown: &Shown) -> Value {
    let mut value = records::record(&shown.found);
    if shown.too_long() {
        value["fields"] = Value::Null;
        value["raw_len"] = json!(shown.len);
        value["error"] = json!(format!("its {} bytes are too long to be shown as they come", shown.len));
    }
    if !shown.numbered {
        value["seq"] = Value::Null;
    }
    value
}

fn event(text: &mut String, name: &str, data: &Value) {
    write!(text, "event: {name}\ndata: {data}\n\n").expect("strings grow");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Batch, PackagedData, Record};
    use crate::sink::Numbered;

    #[test]
    fn an_event_is_one_line_of_data() {
        let mut text = String::new();
        event(&mut text, "records", &json!({ "argv": "a\nb\r\n\ndata: c" }));
        assert_eq!(text, "event: records\ndata: {\"argv\":\"a\\nb\\r\\n\\ndata: c\"}\n\n");
    }

    #[test]
    fn a_record_is_shown_as_a_search_shows_it_or_says_why_not() {
        let watched = crate::http::Watched::default();
        let tap = watched.tap(None, vec![]);
        let record = |data| Record { data_type: 59, timestamp: 5, data };
        let payload = Bytes::from_static(b"\n\x08\n\x01a\x12\x03b c");
        let data =
            PackagedData { records: vec![record(payload), record(vec![0; 1 << 20].into())], ..Default::default() };
        let batch = Batch { stream: 1, index: 0, svr_time: 7, wire_len: 1, decoded_len: 1, data };
        watched.took("a", &batch, Some(Numbered { first_seq: 3, received_ms: 9 }));
        let tapped = tap.drain();
        let first = shown(&tapped.newest[0]);
        assert_eq!((&first["seq"], &first["fields"]), (&json!(3), &json!({ "a": "b c" })));
        let long = shown(&tapped.newest[1]);
        assert_eq!((&long["fields"], &long["raw_len"]), (&Value::Null, &json!(1 << 20)));
        watched.took("a", &batch, None);
        assert_eq!(shown(&tap.drain().newest[0])["seq"], Value::Null);
    }
}
