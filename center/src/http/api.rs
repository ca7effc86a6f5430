//! `/api/v1`: hosts, tasks, plugins and records as JSON.
//!
//! An answer is the object or the list that was asked for. An error is `{"error": TEXT}` with a status of 400 or more.

use super::manager::{CommandJson, ConfigJson, TaskJson, configs_from};
use super::{COMMAND_TIMEOUT, json_response};
use crate::desired::Target;
use crate::fleet::{Agent, Fleet};
use crate::serve::Shared;
use bytes::Bytes;
use elklet_proto::grpc::Command;
use http::{Method, Response, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use std::ops::Bound;

/// Hosts or tasks in an answer, unless the request says how many, and the most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// Bytes of the random token that a task without one gets.
const TOKEN_BYTES: usize = 16;

pub(super) type Answer = Result<(StatusCode, Value), (StatusCode, String)>;

/// Answers a request below `/api/v1`, whose path is without that.
pub(super) async fn answer(
    method: &Method,
    path: &str,
    uri: &Uri,
    body: &[u8],
    shared: &Shared,
) -> Response<Full<Bytes>> {
    let query = Query(uri.query().unwrap_or_default());
    let answer = match (method, path) {
        (&Method::GET, "/hosts") => hosts(&query, shared),
        (&Method::GET, "/tasks") => tasks(&query, shared),
        (&Method::POST, "/tasks") => new_task(body, shared).await,
        (&Method::GET, "/records") => super::records::answer(&query, shared).await,
        (&Method::GET, "/plugins") => Ok((StatusCode::OK, plugins(shared))),
        (&Method::PUT, "/plugins") => set_plugins(body, shared),
        _ => match (method, path.strip_prefix("/hosts/").map(decoded)) {
            (&Method::GET, Some(Some(id))) => host(&id, shared),
            (&Method::PUT, Some(Some(id))) => set_host(&id, body, shared),
            _ => Err((StatusCode::NOT_FOUND, format!("no route {method} /api/v1{path}"))),
        },
    };
    match answer {
        Ok((status, value)) => json_response(status, &value),
        Err((status, error)) => json_response(status, &json!({ "error": error })),
    }
}

pub(super) fn bad(error: &dyn std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, error.to_string())
}

/// `?connected=true|false`, `?after=ID`, `?limit=N`: hosts in the order of their ids.
fn hosts(query: &Query<'_>, shared: &Shared) -> Answer {
    let limit = query.limit()?;
    let connected = match query.get("connected").as_deref() {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(other) => return Err(bad(&format!("connected={other}, expected true or false"))),
    };
    let after = query.get("after").map_or(Bound::Unbounded, Bound::Excluded);
    Ok(shared.read(|fleet| {
        let wanted = |agent: &Agent| connected.is_none_or(|connected| agent.connected == connected);
        let mut found = fleet.agents.range::<String, _>((after, Bound::Unbounded)).filter(|(_, agent)| wanted(agent));
        let hosts: Vec<_> = found.by_ref().take(limit).map(|(id, agent)| summary(id, agent)).collect();
        let next = found.next().and(hosts.last()).map(|last| last["id"].clone());
        (
            StatusCode::OK,
            json!({ "hosts": hosts, "next": next, "known": fleet.agents.len(), "connected": fleet.live.len() }),
        )
    }))
}

fn summary(id: &str, agent: &Agent) -> Value {
    let host = agent.heartbeat.as_ref().map(|heartbeat| &heartbeat.host);
    let of_host = |name| host.and_then(|host| host.get(name)).cloned().unwrap_or_default();
    json!({
        "id": id,
        "connected": agent.connected,
        "hostname": of_host("hostname"),
        "version": of_host("version"),
        "addresses": of_host("intranet_ipv4"),
        "peer": agent.peer.map(|peer| peer.to_string()),
        "connected_since": agent.connected.then_some(agent.create_at),
        "last_seen": agent.last_seen,
        "streams": agent.streams,
        "records": agent.all_records(),
    })
}

fn host(id: &str, shared: &Shared) -> Answer {
    let group = shared.desired(|desired| desired.group_of(id).map(str::to_owned));
    let found = shared.read(|fleet| {
        let agent = fleet.agents.get(id)?;
        let mut host = summary(id, agent);
        let counts: Vec<_> = agent
            .counts
            .iter()
            .map(|(kind, count)| json!({ "data_type": kind, "records": count.records, "bytes": count.bytes }))
            .collect();
        host["group"] = json!(group);
        host["messages"] = json!(agent.messages);
        host["wire_bytes"] = json!(agent.wire_bytes);
        host["decoded_bytes"] = json!(agent.decoded_bytes);
        host["commands"] = json!(agent.commands);
        host["counts"] = json!(counts);
        host["history"] = json!(agent.history);
        let stat = agent.stat();
        host["agent_info"] = stat["agent_info"].clone();
        host["plugins_info"] = stat["plugins_info"].clone();
        Some(host)
    });
    found.map(|host| (StatusCode::OK, host)).ok_or_else(|| (StatusCode::NOT_FOUND, format!("no host {id:?} is known")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostChange {
    group: Option<String>,
}

/// `{"group": NAME|null}`
fn set_host(id: &str, body: &[u8], shared: &Shared) -> Answer {
    let change: HostChange = serde_json::from_slice(body).map_err(|error| bad(&error))?;
    if !shared.read(|fleet| fleet.agents.contains_key(id)) {
        return Err((StatusCode::NOT_FOUND, format!("no host {id:?} is known")));
    }
    change_desired(shared, |desired| desired.set_group(id, change.group))?;
    shared.push_configs(|agent_id| agent_id == id);
    Ok((StatusCode::OK, json!({})))
}

/// `?agent_id=ID`, `?token=T`, `?limit=N`: the latest tasks first.
fn tasks(query: &Query<'_>, shared: &Shared) -> Answer {
    let (limit, token, agent_id) = (query.limit()?, query.get("token"), query.get("agent_id"));
    let found = |fleet: &Fleet| {
        let same = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
        let tasks = fleet.tasks.iter().rev();
        let tasks: Vec<_> = tasks
            .filter(|task| same(&token, &task.token) && same(&agent_id, &task.agent_id))
            .take(limit)
            .map(|task| {
                let upload = fleet.uploads.iter().rev().find(|upload| upload.token == task.token);
                let mut value = json!(task);
                value["upload"] = upload.map_or(Value::Null, |upload| {
                    json!({ "path": upload.path, "len": upload.len, "error": upload.error, "ended_at": upload.svr_time })
                });
                value
            })
            .collect();
        json!({ "tasks": tasks })
    };
    Ok((StatusCode::OK, shared.read(found)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTask {
    agent_id: String,
    task: TaskJson,
}

/// `{"agent_id": ID, "task": {"data_type", "name", "data", "token"}}`: sends the task, and gives it a token unless it has one.
async fn new_task(body: &[u8], shared: &Shared) -> Answer {
    let mut request: NewTask = serde_json::from_slice(body).map_err(|error| bad(&error))?;
    if request.task.token.is_empty() {
        request.task.token = new_token()?;
    }
    let token = request.task.token.clone();
    let command = Command::from(CommandJson::of_task(request.task));
    match shared.command(&request.agent_id, command, COMMAND_TIMEOUT).await {
        Ok(()) => Ok((StatusCode::CREATED, json!({ "token": token }))),
        Err(error) => Err((StatusCode::CONFLICT, error.to_string())),
    }
}

fn new_token() -> Result<String, (StatusCode, String)> {
    let random: ring::rand::Random<[u8; TOKEN_BYTES]> = ring::rand::generate(&ring::rand::SystemRandom::new())
        .map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random numbers".to_owned()))?;
    Ok(super::auth::hex(&random.expose()))
}

fn plugins(shared: &Shared) -> Value {
    shared.desired(|desired| json!(desired.json()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginsChange {
    host: Option<String>,
    group: Option<String>,
    plugins: Option<Vec<ConfigJson>>,
}

/// `{"host": ID, "plugins": [..]|null}`, the same with `group`, or with neither for everybody. Those who are connected hear of it at
/// once.
fn set_plugins(body: &[u8], shared: &Shared) -> Answer {
    let change: PluginsChange = serde_json::from_slice(body).map_err(|error| bad(&error))?;
    let target = match (change.host, change.group) {
        (None, None) => Target::Everybody,
        (Some(host), None) => Target::Host(host),
        (None, Some(group)) => Target::Group(group),
        (Some(_), Some(_)) => return Err(bad(&"host and group, expected one of them")),
    };
    let before = shared.desired(Clone::clone);
    change_desired(shared, |desired| desired.set(target, change.plugins.map(configs_from)))?;
    let after = shared.desired(Clone::clone);
    shared.push_configs(|id| before.of(id) != after.of(id));
    Ok((StatusCode::OK, plugins(shared)))
}

fn change_desired(
    shared: &Shared,
    change: impl FnOnce(&mut crate::desired::Desired) -> Result<(), crate::desired::TooMuch>,
) -> Result<(), (StatusCode, String)> {
    match shared.change_desired(change) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(too_much)) => Err(bad(&too_much)),
        Err(error) => Err((StatusCode::INSUFFICIENT_STORAGE, format!("the change could not be kept: {error}"))),
    }
}

/// The query of a request.
pub(super) struct Query<'a>(pub(super) &'a str);

impl Query<'_> {
    /// Returns a parameter, decoded.
    fn get(&self, name: &str) -> Option<String> {
        self.all().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Returns all parameters, decoded. Those that are no UTF-8 are left out.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, String)> {
        self.0.split('&').filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((decoded(&key.replace('+', " "))?, decoded(&value.replace('+', " "))?))
        })
    }

    pub(super) fn limit(&self) -> Result<usize, (StatusCode, String)> {
        match self.get("limit") {
            None => Ok(DEFAULT_LIMIT),
            Some(text) => match text.parse() {
                Ok(limit @ 1..=MAX_LIMIT) => Ok(limit),
                _ => Err(bad(&format!("limit={text}, expected 1 to {MAX_LIMIT}"))),
            },
        }
    }
}

/// Returns percent-encoded text as it was, if that is UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| after.first_chunk::<2>())
            .flatten()
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query("after=a%2Fb%20c&x=%zz&limit=7&connected=true&y=a+b");
        assert_eq!(query.get("after").as_deref(), Some("a/b c"));
        assert_eq!(query.get("x").as_deref(), Some("%zz"));
        assert_eq!(query.get("y").as_deref(), Some("a b"));
        assert_eq!(query.limit(), Ok(7));
        assert!(Query("limit=0").limit().is_err() && Query("limit=1001").limit().is_err());
        assert_eq!(decoded("%ff"), None);
        assert_eq!(decoded("%"), Some("%".to_owned()));
    }
}
