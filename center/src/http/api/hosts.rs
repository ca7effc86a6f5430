//! `/api/v1/hosts`: the hosts that are known, and one host whole.

use super::{Answer, Ask, Query, bad, change_desired, no_route, ok, refuse};
use crate::fleet::Agent;
use crate::serve::Shared;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::ops::Bound;

pub(super) fn answer(ask: &Ask<'_>) -> Answer {
    match (ask.method, ask.rest, ask.name()) {
        (&Method::GET, "", _) => list(&ask.query, ask.shared),
        (&Method::GET, _, Some(id)) => host(&id, ask.shared),
        (&Method::PUT, _, Some(id)) => change(&id, ask),
        _ => no_route(ask),
    }
}

/// `?connected=true|false`, `?after=ID`, `?limit=N`: hosts in the order of their ids.
fn list(query: &Query<'_>, shared: &Shared) -> Answer {
    let limit = query.limit()?;
    let connected = match query.get("connected").as_deref() {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(other) => return Err(bad(&format!("connected={other}, expected true or false"))),
    };
    let after = query.get("after").map_or(Bound::Unbounded, Bound::Excluded);
    let found = shared.read(|fleet| {
        let wanted = |agent: &Agent| connected.is_none_or(|connected| agent.connected == connected);
        let mut found = fleet.agents.range::<String, _>((after, Bound::Unbounded)).filter(|(_, agent)| wanted(agent));
        let hosts: Vec<_> = found.by_ref().take(limit).map(|(id, agent)| summary(id, agent)).collect();
        let next = found.next().and(hosts.last()).map(|last| last["id"].clone());
        json!({ "hosts": hosts, "next": next, "known": fleet.agents.len(), "connected": fleet.live.len() })
    });
    ok(&found)
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
    whole(id, shared).map_or_else(|| unknown(id), |host| ok(&host))
}

/// Returns a host as the list has it.
pub(super) fn brief(id: &str, shared: &Shared) -> Option<Value> {
    shared.read(|fleet| fleet.agents.get(id).map(|agent| summary(id, agent)))
}

/// Returns everything that is known of a host.
pub(super) fn whole(id: &str, shared: &Shared) -> Option<Value> {
    let group = shared.desired(|desired| desired.group_of(id).map(str::to_owned));
    shared.read(|fleet| {
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
    })
}

fn unknown(id: &str) -> Answer {
    refuse(StatusCode::NOT_FOUND, format!("no host {id:?} is known"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostChange {
    group: Option<String>,
}

/// `{"group": NAME|null}`
fn change(id: &str, ask: &Ask<'_>) -> Answer {
    let (change, shared): (HostChange, _) = (ask.json()?, ask.shared);
    if !shared.read(|fleet| fleet.agents.contains_key(id)) {
        return unknown(id);
    }
    let group = change.group.clone().unwrap_or_default();
    change_desired(shared, |desired| desired.set_group(id, change.group))?;
    ask.audit("host.group", id, &group, "ok");
    shared.push_configs(|agent_id| agent_id == id);
    ok(&json!({}))
}
