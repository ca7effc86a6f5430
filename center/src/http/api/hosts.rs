//! `/api/v1/hosts`: the hosts that are known, and one host whole. `/api/v1/groups`: the groups that they are in.

use super::{Answer, Ask, Query, bad, change_desired, no_route, ok, refuse, unkept};
use crate::fleet::Agent;
use crate::http::Thing;
use crate::serve::Shared;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Bound;

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    match (ask.method, ask.rest, ask.name()) {
        (&Method::GET, "", _) => list(&ask.query, ask.shared),
        (&Method::GET, _, Some(id)) => host(&id, ask.shared),
        (&Method::PUT, _, Some(id)) => change(&id, ask),
        (&Method::DELETE, _, Some(id)) => forget(&id, ask).await,
        _ => no_route(ask),
    }
}

/// `?connected=true|false`, `?group=NAME`, `?q=TEXT` (the id or the name contains it), `?after=ID`, `?limit=N`: hosts in the order of their
/// ids.
fn list(query: &Query, shared: &Shared) -> Answer {
    let limit = query.limit()?;
    let connected = match query.get("connected").as_deref() {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(other) => return Err(bad(&format!("connected={other}, expected true or false"))),
    };
    let (group, text) = (query.get("group"), query.get("q").map(|text| text.to_lowercase()));
    let members = shared.desired(|desired| desired.members().clone());
    let after = query.get("after").map_or(Bound::Unbounded, Bound::Excluded);
    let found = shared.read(|fleet| {
        let wanted = |id: &str, agent: &Agent| {
            connected.is_none_or(|connected| agent.connected == connected)
                && group.as_ref().is_none_or(|group| members.get(id) == Some(group))
                && text
                    .as_ref()
                    .is_none_or(|text| id.to_lowercase().contains(text) || agent.hostname.to_lowercase().contains(text))
        };
        let range = fleet.agents.range::<String, _>((after, Bound::Unbounded));
        let mut found = range.filter(|(id, agent)| wanted(id, agent));
        let hosts: Vec<_> = found
            .by_ref()
            .take(limit)
            .map(|(id, agent)| summary(id, agent, members.get(id).map(String::as_str)))
            .collect();
        let next = found.next().and(hosts.last()).map(|last| last["id"].clone());
        json!({ "hosts": hosts, "next": next, "known": fleet.agents.len(), "connected": fleet.live.len() })
    });
    ok(&found)
}

/// Returns what a list says of a host.
fn summary(id: &str, agent: &Agent, group: Option<&str>) -> Value {
    let heartbeat = agent.heartbeat.as_ref();
    let number = |name| heartbeat.and_then(|heartbeat| heartbeat.number(name));
    json!({
        "id": id,
        "connected": agent.connected,
        "hostname": (!agent.hostname.is_empty()).then_some(&agent.hostname),
        "group": group,
        "version": heartbeat.map(|heartbeat| &heartbeat.host.version),
        "addresses": heartbeat.map(|heartbeat| &heartbeat.host.intranet_ipv4),
        "peer": agent.peer.map(|peer| peer.to_string()),
        "connected_since": agent.connected.then_some(agent.create_at),
        "first_seen": agent.first_seen,
        "last_seen": agent.last_seen,
        "streams": agent.streams,
        "records": agent.all_records(),
        "cpu": number("cpu"),
        "rss": number("rss"),
        "mode": heartbeat.and_then(|heartbeat| heartbeat.field("net_mode")),
        "unconfirmed": number("records_unconfirmed"),
        "spooled": number("records_in_spool"),
        "lost": number("records_lost"),
        "cert_days": number("cert_days_left"),
    })
}

fn host(id: &str, shared: &Shared) -> Answer {
    whole(id, shared).map_or_else(|| unknown(id), |host| ok(&host))
}

/// Returns a host as the list has it.
pub(super) fn brief(id: &str, shared: &Shared) -> Option<Value> {
    let group = shared.desired(|desired| desired.group_of(id).map(str::to_owned));
    shared.read(|fleet| fleet.agents.get(id).map(|agent| summary(id, agent, group.as_deref())))
}

/// Returns everything that is known of a host.
pub(super) fn whole(id: &str, shared: &Shared) -> Option<Value> {
    let group = shared.desired(|desired| desired.group_of(id).map(str::to_owned));
    shared.read(|fleet| {
        let agent = fleet.agents.get(id)?;
        let mut host = summary(id, agent, group.as_deref());
        let counts: Vec<_> = agent
            .counts
            .iter()
            .map(|(kind, count)| json!({ "data_type": kind, "records": count.records, "bytes": count.bytes }))
            .collect();
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

/// Forgets a host that is gone.
async fn forget(id: &str, ask: &Ask<'_>) -> Answer {
    let shared = ask.shared;
    // What is being written may hold it.
    let _turn = shared.writing.lock().await;
    match shared.read(|fleet| fleet.agents.get(id).map(|agent| agent.connected)) {
        None => return unknown(id),
        Some(true) => {
            return refuse(StatusCode::CONFLICT, format!("host {id:?} is connected, and would be back at once"));
        }
        Some(false) => {}
    }
    let agent_id = id.to_owned();
    if let Some(removed) = shared.site(move |site| site.hosts().remove(&[&agent_id])).await {
        removed.map_err(|error| unkept(&error))?;
    }
    shared.change(|fleet| fleet.forget(id));
    shared.watched.changed(Thing::Host, id);
    ask.audit("host.forget", id, "", "ok");
    if shared.desired(|desired| desired.group_of(id).is_some()) {
        change_desired(shared, |desired| desired.set_group(id, None))?;
    }
    ok(&json!({}))
}

/// `/groups`: every group that a host is in or that has a configuration.
pub(super) fn groups(ask: &Ask<'_>) -> Answer {
    if (ask.method, ask.rest) != (&Method::GET, "") {
        return no_route(ask);
    }
    let (names, members) = ask
        .shared
        .desired(|desired| (desired.groups().map(str::to_owned).collect::<Vec<_>>(), desired.members().clone()));
    let mut groups: BTreeMap<String, (usize, usize)> = names.into_iter().map(|name| (name, (0, 0))).collect();
    ask.shared.read(|fleet| {
        for (id, group) in members {
            let (hosts, connected) = groups.entry(group).or_default();
            *hosts += 1;
            *connected += usize::from(fleet.live.contains_key(&id));
        }
    });
    let groups: Vec<_> = groups
        .into_iter()
        .map(|(name, (hosts, connected))| json!({ "name": name, "hosts": hosts, "connected": connected }))
        .collect();
    ok(&json!(groups))
}
