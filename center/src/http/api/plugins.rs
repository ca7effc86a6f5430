//! `/api/v1/plugins`: what agents should run.

use super::{Answer, Ask, bad, change_desired, no_route, ok};
use crate::desired::Target;
use crate::http::manager::{ConfigJson, configs_from};
use crate::serve::Shared;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) fn answer(ask: &Ask<'_>) -> Answer {
    match (ask.method, ask.rest) {
        (&Method::GET, "") => ok(&all(ask.shared)),
        (&Method::PUT, "") => change(ask),
        _ => no_route(ask),
    }
}

fn all(shared: &Shared) -> Value {
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
fn change(ask: &Ask<'_>) -> Answer {
    let (change, shared): (PluginsChange, _) = (ask.json()?, ask.shared);
    let target = match (change.host, change.group) {
        (None, None) => Target::Everybody,
        (Some(host), None) => Target::Host(host),
        (None, Some(group)) => Target::Group(group),
        (Some(_), Some(_)) => return Err(bad(&"host and group, expected one of them")),
    };
    let object = match &target {
        Target::Everybody => "all".to_owned(),
        Target::Group(group) => format!("group/{group}"),
        Target::Host(host) => format!("host/{host}"),
    };
    let detail = serde_json::to_string(&change.plugins).unwrap_or_default();
    let before = shared.desired(Clone::clone);
    change_desired(shared, |desired| desired.set(target, change.plugins.map(configs_from)))?;
    ask.audit("plugins.set", &object, &detail, "ok");
    let after = shared.desired(Clone::clone);
    shared.push_configs(|id| before.of(id) != after.of(id));
    ok(&all(shared))
}
