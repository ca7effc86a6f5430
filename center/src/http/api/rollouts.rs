//! `/api/v1/rollouts`: plugins on their way to the hosts of a group, a few first.

use super::files::{check, complete};
use super::plugins::{outcome, unusable};
use super::{Answer, Ask, Refusal, bad, no_route, ok};
use crate::desired::Plugin;
use crate::http::Role;
use crate::http::reply::json_response;
use crate::rollout::{Order, Rollout};
use crate::serve::RolloutError;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::block_in_place;

/// The most canaries, and the longest that they are waited for, in seconds.
const MAX_CANARY: usize = 1_000;
const MAX_WAIT_S: u32 = 86_400;

/// Rollouts in a list unless the request says otherwise, and the most hosts of all of them together.
const DEFAULT_LIMIT: usize = 20;
const MAX_HOSTS: usize = 20_000;

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    let (id, what) = ask.rest.split_once('/').unwrap_or((ask.rest, ""));
    if id.is_empty() {
        return match *ask.method {
            Method::GET => list(ask),
            Method::POST => begin(ask).await,
            _ => no_route(ask),
        };
    }
    let id: i64 = id.parse().map_err(|_| bad(&format!("{id:.80?} is no number of a rollout")))?;
    match (ask.method, what) {
        (&Method::GET, "") => one(ask, id),
        (&Method::POST, "promote" | "abort") => step(ask, id, what),
        _ => no_route(ask),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRollout {
    #[serde(default)]
    group: Option<String>,
    plugin: Plugin,
    canary: usize,
    #[serde(default)]
    wait_s: u32,
}

/// `{"group": NAME|null, "plugin": {..}, "canary": N, "wait_s": N}`
async fn begin(ask: &Ask<'_>) -> Answer {
    ask.must(Role::Operate)?;
    let NewRollout { group, mut plugin, canary, wait_s } = ask.json()?;
    if canary > MAX_CANARY || wait_s > MAX_WAIT_S {
        return Err(bad(&format!("{canary} canaries and {wait_s} s, the limits are {MAX_CANARY} and {MAX_WAIT_S}")));
    }
    complete(ask.shared, &mut plugin).await?;
    check(&plugin)?;
    let detail = format!("{} {}, {canary} canaries", plugin.config.name, plugin.config.version);
    let object = group.as_ref().map_or("all".to_owned(), |group| format!("group/{group}"));
    let order = Order { group, plugin, canary, wait_s, by: ask.caller.name.clone() };
    let begun = block_in_place(|| ask.shared.begin_rollout(order)).map_err(|error| refusal(&error));
    ask.audit("rollout.begin", &object, &detail, outcome(&begun));
    let rollout = ask.shared.rollout(begun?).map_err(|error| unusable(&error))?;
    Ok(json_response(StatusCode::CREATED, &rollout.as_ref().map_or(Value::Null, shown)))
}

/// `?before=ID`, `?limit=N`: the latest first, with their hosts. Fewer if they have very many hosts.
fn list(ask: &Ask<'_>) -> Answer {
    let before =
        ask.query.get("before").map(|text| text.parse().map_err(|_| bad(&format!("before={text} is no number"))));
    let limit = if ask.query.get("limit").is_some() { ask.query.limit()? } else { DEFAULT_LIMIT };
    let rollouts = ask.shared.rollouts(before.transpose()?, limit).map_err(|error| unusable(&error))?;
    let mut hosts = 0;
    let fits = |rollout: &&Rollout| {
        let first = hosts == 0;
        hosts += rollout.hosts.len();
        first || hosts <= MAX_HOSTS
    };
    let listed: Vec<Value> = rollouts.iter().take_while(fits).map(shown).collect();
    ok(&json!(listed))
}

fn one(ask: &Ask<'_>, id: i64) -> Answer {
    match ask.shared.rollout(id).map_err(|error| unusable(&error))? {
        Some(rollout) => ok(&shown(&rollout)),
        None => Err(refusal(&RolloutError::Unknown(id))),
    }
}

/// Returns a rollout without what only the center needs to go on.
fn shown(rollout: &Rollout) -> Value {
    let mut value = json!(rollout);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("known");
        fields.remove("steady_ms");
    }
    value
}

fn step(ask: &Ask<'_>, id: i64, what: &str) -> Answer {
    ask.must(Role::Operate)?;
    let (shared, by) = (ask.shared, &ask.caller.name);
    let done = block_in_place(|| match what {
        "promote" => shared.promote_rollout(id),
        _ => shared.abort_rollout(id, by),
    });
    let done = done.map_err(|error| refusal(&error));
    ask.audit(&format!("rollout.{what}"), &id.to_string(), "", outcome(&done));
    done?;
    one(ask, id)
}

fn refusal(error: &RolloutError) -> Refusal {
    let status = match error {
        RolloutError::Unknown(_) => StatusCode::NOT_FOUND,
        RolloutError::NotNow(_) => StatusCode::CONFLICT,
        RolloutError::TooMuch(_) => StatusCode::BAD_REQUEST,
        RolloutError::Site(error) => return unusable(error),
    };
    Refusal { status, error: error.to_string() }
}
