//! `/api/v1/tasks`: what agents were told to do once, and what they answered.

use super::{Answer, Ask, Refusal, bad, failed, no_route, ok, refuse, unkept};
use crate::clock::now_ms;
use crate::fleet::{Fleet, Task};
use crate::hex::hex;
use crate::http::COMMAND_TIMEOUT;
use crate::http::manager::TaskJson;
use crate::http::reply::json_response;
use crate::serve::Shared;
use elklet_proto::grpc::{self, Command};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bytes of the random token that a task without one gets.
const TOKEN_BYTES: usize = 16;

/// The longest token. It is in each answer, and in the name of an upload's file.
const MAX_TOKEN: usize = 256;

/// An answer ends early when its tasks have so many bytes.
const MAX_LIST_BYTES: usize = 8 << 20;

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    match (ask.method, ask.rest) {
        (&Method::GET, "") => list(ask).await,
        (&Method::POST, "") => new(ask).await,
        _ => no_route(ask),
    }
}

/// `?agent_id=ID`, `?token=T`, `?before=ID`, `?limit=N`: the latest tasks first.
async fn list(ask: &Ask<'_>) -> Answer {
    let (query, shared) = (&ask.query, ask.shared);
    let (limit, before) = (query.limit()?, query.number("before")?);
    let (token, agent_id) = (query.get("token"), query.get("agent_id"));
    let kept = shared.site(move |site| {
        let tasks: Vec<Task> = match token {
            Some(token) => {
                let task = site.tasks().get(&token)?.filter(|task| {
                    agent_id.as_ref().is_none_or(|id| *id == task.agent_id)
                        && before.is_none_or(|before| task.id < before)
                });
                task.into_iter().map(Task::from).collect()
            }
            None => site.tasks().list(agent_id.as_deref(), before, limit + 1)?.into_iter().map(Task::from).collect(),
        };
        let with_upload = |task: Task| {
            let upload = site.uploads().of_token(&task.token)?;
            Ok((task, upload.map_or(Value::Null, |upload| super::uploads::of_row(&upload))))
        };
        tasks.into_iter().map(with_upload).collect()
    });
    let tasks = match kept.await {
        Some(Ok(tasks)) => shared.read(|fleet| {
            let newest = |(task, upload): (Task, Value)| {
                let place = fleet.tasks.binary_search_by_key(&task.id, |task| task.id);
                // The fleet hears first that a task was sent, and the database that it was answered.
                let known = place.ok().and_then(|place| fleet.tasks.get(place)).filter(|known| {
                    known.token == task.token
                        && known.changed_ms >= task.changed_ms
                        && known.answers.len() >= task.answers.len()
                });
                (known.cloned().unwrap_or(task), upload)
            };
            Vec::from_iter(Vec::into_iter(tasks).map(newest))
        }),
        Some(Err(error)) => return Err(failed(&error)),
        None => in_memory(shared, query.get("token"), query.get("agent_id"), before, limit),
    };
    ok(&page(tasks, limit))
}

/// Returns what is known without a store, at most one more than asked for.
fn in_memory(
    shared: &Shared,
    token: Option<String>,
    agent_id: Option<String>,
    before: Option<i64>,
    limit: usize,
) -> Vec<(Task, Value)> {
    let same = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
    shared.read(|fleet| {
        let wanted = |task: &&Task| {
            same(&token, &task.token) && same(&agent_id, &task.agent_id) && before.is_none_or(|before| task.id < before)
        };
        let tasks = fleet.tasks.iter().rev().filter(wanted).take(limit + 1);
        tasks.map(|task| (task.clone(), upload_of(task, fleet))).collect()
    })
}

fn page(tasks: Vec<(Task, Value)>, limit: usize) -> Value {
    let (mut listed, mut len, mut next) = (Vec::new(), 0, None);
    for (task, upload) in tasks {
        let answers: usize = task.answers.iter().flatten().map(|(name, value)| name.len() + value.len()).sum();
        len += answers + task.data.len();
        if listed.len() == limit || (len > MAX_LIST_BYTES && !listed.is_empty()) {
            next = listed.last().map(|last: &Value| last["id"].clone());
            break;
        }
        let mut value = json!(task);
        value["upload"] = upload;
        listed.push(value);
    }
    json!({ "tasks": listed, "next": next })
}

/// Returns the task with a token.
pub(super) fn by_token(token: &str, shared: &Shared) -> Option<Value> {
    shared.read(|fleet| {
        let task = fleet.tasks.iter().rev().find(|task| task.token == token)?;
        Some(rendered(task, fleet))
    })
}

fn rendered(task: &Task, fleet: &Fleet) -> Value {
    let mut value = json!(task);
    value["upload"] = upload_of(task, fleet);
    value
}

/// Returns the upload of a task that came since the center started.
fn upload_of(task: &Task, fleet: &Fleet) -> Value {
    let upload = fleet.uploads.iter().rev().find(|upload| upload.token == task.token);
    upload.map_or(Value::Null, super::uploads::of_fleet)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTask {
    agent_id: Option<String>,
    group: Option<String>,
    task: TaskJson,
}

/// `{"agent_id": ID, "task": {"data_type", "name", "data", "token"}}`: sends the task, and gives it a token unless it has one.
/// `{"group": NAME, "task": ..}` sends it to each connected host of the group, each with a token of its own.
async fn new(ask: &Ask<'_>) -> Answer {
    let request: NewTask = ask.json()?;
    let mut task = grpc::Task::from(request.task);
    if task.token.len() > MAX_TOKEN {
        return Err(bad(&format!("a token of {} bytes, the limit is {MAX_TOKEN}", task.token.len())));
    }
    match (request.agent_id, request.group) {
        (Some(agent_id), None) => {
            if task.token.is_empty() {
                task.token = new_token()?;
            }
            to_host(ask, &agent_id, task).await
        }
        (None, Some(group)) if task.token.is_empty() => to_group(ask, &group, task).await,
        (None, Some(_)) => Err(bad(&"a token for a group, expected none: each host gets its own")),
        _ => Err(bad(&"expected either agent_id or group")),
    }
}

async fn to_host(ask: &Ask<'_>, agent_id: &str, task: grpc::Task) -> Answer {
    let (token, detail) = (task.token.clone(), detail(&task));
    let given = give(ask, agent_id, task).await;
    let outcome = given.as_ref().map_or_else(|refusal| refusal.error.clone(), |()| "ok".to_owned());
    ask.audit("task", agent_id, &detail, &outcome);
    given.map(|()| json_response(StatusCode::CREATED, &json!({ "token": token })))
}

/// Remembers a task, and sends it.
async fn give(ask: &Ask<'_>, agent_id: &str, task: grpc::Task) -> Result<(), Refusal> {
    let shared = ask.shared;
    if !shared.read(|fleet| fleet.live.contains_key(agent_id)) {
        return refuse(StatusCode::CONFLICT, format!("agent {agent_id} is not connected"));
    }
    let added = Task::new(&task, agent_id, &ask.caller.name, now_ms());
    if shared.add_tasks(vec![added]).await.map_err(|error| unkept(&error))? == [false] {
        return refuse(StatusCode::CONFLICT, format!("there is a task with the token {:?} already", task.token));
    }
    let sent = shared.send(agent_id, Command { task: Some(task), ..Default::default() }, COMMAND_TIMEOUT).await;
    sent.or_else(|error| refuse(StatusCode::CONFLICT, error.to_string()))
}

async fn to_group(ask: &Ask<'_>, group: &str, task: grpc::Task) -> Answer {
    let shared = ask.shared;
    let connected: Vec<String> = shared.read(|fleet| fleet.connected().map(str::to_owned).collect());
    let hosts: Vec<String> =
        shared.desired(|desired| connected.into_iter().filter(|id| desired.group_of(id) == Some(group)).collect());
    if hosts.is_empty() {
        return refuse(StatusCode::CONFLICT, format!("no host of group {group:?} is connected"));
    }
    let mut commands = Vec::with_capacity(hosts.len());
    for id in hosts {
        commands.push((id, grpc::Task { token: new_token()?, ..task.clone() }));
    }
    let now = now_ms();
    let tasks = commands.iter().map(|(id, task)| Task::new(task, id, &ask.caller.name, now)).collect();
    shared.add_tasks(tasks).await.map_err(|error| unkept(&error))?;
    let what = format!("{} for {} to {} hosts", task.data_type, task.object_name, commands.len());
    ask.audit("task.group", group, &what, "ok");
    let mut tokens = BTreeMap::new();
    for (id, task) in commands {
        tokens.insert(id.clone(), task.token.clone());
        // Who is gone meanwhile has a task that failed.
        _ = shared.begin_sending(&id, Command { task: Some(task), ..Default::default() });
    }
    Ok(json_response(StatusCode::CREATED, &json!({ "tokens": tokens })))
}

/// Says in a line what a task is.
fn detail(task: &grpc::Task) -> String {
    format!("{} for {} with token {}", task.data_type, task.object_name, task.token)
}

fn new_token() -> Result<String, Refusal> {
    let random: ring::rand::Random<[u8; TOKEN_BYTES]> = ring::rand::generate(&ring::rand::SystemRandom::new())
        .or_else(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random numbers"))?;
    Ok(hex(&random.expose()))
}
