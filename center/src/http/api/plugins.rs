//! `/api/v1/plugins`: what agents should run, and what they should have run before.

use super::files::{check, complete};
use super::{Answer, Ask, Refusal, bad, no_route, ok, refuse};
use crate::desired::{Desired, Plugin, Target, TooMuch, plugins_from_body};
use crate::http::Role;
use crate::serve::Shared;
use crate::store::site::SiteError;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    match (ask.method, ask.rest) {
        (&Method::GET, "") => ok(&all(ask.shared)),
        (&Method::PUT, "") => change(ask).await,
        (&Method::GET, "history") => history(ask),
        (&Method::POST, "rollback") => rollback(ask),
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
    plugins: Option<Vec<Plugin>>,
}

/// `{"host": ID, "plugins": [..]|null}`, the same with `group`, or with neither for everybody. Those who are connected hear of it at
/// once.
async fn change(ask: &Ask<'_>) -> Answer {
    ask.must(Role::Operate)?;
    let change: PluginsChange = ask.json()?;
    let target = target(change.host, change.group)?;
    let mut plugins = change.plugins;
    for plugin in plugins.iter_mut().flatten().filter(|plugin| plugin.file.is_some()) {
        complete(ask.shared, plugin).await?;
        check(plugin)?;
    }
    set(ask, target, plugins, "plugins.set")
}

/// `?group=NAME`, `?host=ID`, or neither: the versions, newest first.
fn history(ask: &Ask<'_>) -> Answer {
    let target = target(ask.query.get("host"), ask.query.get("group"))?;
    let kept = ask.shared.db().configs().history(&target.scope()).map_err(|error| unusable(&error))?;
    let versions: Vec<_> = kept
        .into_iter()
        .map(|kept| {
            let plugins = plugins_from_body(&kept.body).unwrap_or_default();
            json!({
                "version": kept.version,
                "plugins": plugins,
                "changed_by": kept.changed_by,
                "changed_ms": kept.changed_ms,
            })
        })
        .collect();
    ok(&json!(versions))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    host: Option<String>,
    group: Option<String>,
    version: i64,
}

/// `{"host": ID, "version": N}`, the same with `group`, or with neither: what that version said is wanted again.
fn rollback(ask: &Ask<'_>) -> Answer {
    ask.must(Role::Operate)?;
    let back: Rollback = ask.json()?;
    let target = target(back.host, back.group)?;
    let kept = ask.shared.db().configs().version(&target.scope(), back.version).map_err(|error| unusable(&error))?;
    let Some(kept) = kept else {
        return refuse(
            StatusCode::NOT_FOUND,
            format!("{} has no version {} that is kept", target.scope(), back.version),
        );
    };
    let plugins = plugins_from_body(&kept.body)
        .or_else(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("version {}: {error}", back.version)))?;
    set(ask, target, plugins, "plugins.rollback")
}

fn target(host: Option<String>, group: Option<String>) -> Result<Target, Refusal> {
    match (host, group) {
        (None, None) => Ok(Target::Everybody),
        (Some(host), None) => Ok(Target::Host(host)),
        (None, Some(group)) => Ok(Target::Group(group)),
        (Some(_), Some(_)) => Err(bad(&"host and group, expected one of them")),
    }
}

fn set(ask: &Ask<'_>, target: Target, plugins: Option<Vec<Plugin>>, action: &str) -> Answer {
    let shared = ask.shared;
    if let Some(id) = shared.rollout_under_way(&target) {
        return refuse(StatusCode::CONFLICT, format!("rollout {id} is under way there; wait for its end, or abort it"));
    }
    let before = shared.desired(Clone::clone);
    let names: Vec<_> =
        plugins.iter().flatten().map(|plugin| format!("{} {}", plugin.config.name, plugin.config.version)).collect();
    let scope = target.scope();
    let change = |desired: &mut Desired| -> Result<(), Refusal> {
        // A file cannot be deleted while this has the lock, nor after it.
        for file in plugins.iter().flatten().filter_map(|plugin| plugin.file) {
            if shared.db().files().get(&file.to_string()).map_err(|error| unusable(&error))?.is_none() {
                return refuse(StatusCode::CONFLICT, format!("file {file} is not here any more; upload it again"));
            }
        }
        desired.set(target, plugins.clone()).map_err(|too_much: TooMuch| bad(&too_much))
    };
    let changed = tokio::task::block_in_place(|| shared.change_desired(&ask.caller.name, change))
        .map_err(|error| unusable(&error))
        .flatten();
    ask.audit(action, &scope, &names.join(", "), outcome(&changed));
    changed?;
    let after = shared.desired(Clone::clone);
    shared.push_configs(|id| before.of(id) != after.of(id));
    ok(&all(shared))
}

/// Says for the audit trail how something ended.
pub(super) fn outcome<T>(done: &Result<T, Refusal>) -> &str {
    done.as_ref().map_or_else(|refusal| refusal.error.as_str(), |_| "ok")
}

pub(super) fn unusable(error: &SiteError) -> Refusal {
    Refusal { status: StatusCode::INSUFFICIENT_STORAGE, error: error.to_string() }
}
