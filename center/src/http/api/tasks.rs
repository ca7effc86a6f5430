//! `/api/v1/tasks`: what agents were told to do once, and what they answered.

use super::{Answer, Ask, Query, Refusal, no_route, ok, refuse};
use crate::fleet::{Fleet, Task};
use crate::http::manager::{CommandJson, TaskJson};
use crate::http::reply::json_response;
use crate::http::{COMMAND_TIMEOUT, auth};
use crate::serve::Shared;
use elklet_proto::grpc::Command;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// Bytes of the random token that a task without one gets.
const TOKEN_BYTES: usize = 16;

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    match (ask.method, ask.rest) {
        (&Method::GET, "") => list(&ask.query, ask.shared),
        (&Method::POST, "") => new(ask).await,
        _ => no_route(ask),
    }
}

/// `?agent_id=ID`, `?token=T`, `?limit=N`: the latest tasks first.
fn list(query: &Query<'_>, shared: &Shared) -> Answer {
    let (limit, token, agent_id) = (query.limit()?, query.get("token"), query.get("agent_id"));
    let found = |fleet: &Fleet| {
        let same = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
        let tasks = fleet.tasks.iter().rev();
        let tasks: Vec<_> = tasks
            .filter(|task| same(&token, &task.token) && same(&agent_id, &task.agent_id))
            .take(limit)
            .map(|task| rendered(task, fleet))
            .collect();
        json!({ "tasks": tasks })
    };
    ok(&shared.read(found))
}

/// Returns the task with a token.
pub(super) fn by_token(token: &str, shared: &Shared) -> Option<Value> {
    shared.read(|fleet| {
        let task = fleet.tasks.iter().rev().find(|task| task.token == token)?;
        Some(rendered(task, fleet))
    })
}

fn rendered(task: &Task, fleet: &Fleet) -> Value {
    let upload = fleet.uploads.iter().rev().find(|upload| upload.token == task.token);
    let mut value = json!(task);
    value["upload"] = upload.map_or(
        Value::Null,
        |upload| json!({ "path": upload.path, "len": upload.len, "error": upload.error, "ended_at": upload.svr_time }),
    );
    value
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTask {
    agent_id: String,
    task: TaskJson,
}

/// `{"agent_id": ID, "task": {"data_type", "name", "data", "token"}}`: sends the task, and gives it a token unless it has one.
async fn new(ask: &Ask<'_>) -> Answer {
    let mut request: NewTask = ask.json()?;
    if request.task.token.is_empty() {
        request.task.token = new_token()?;
    }
    let token = request.task.token.clone();
    let command = Command::from(CommandJson::of_task(request.task));
    let detail = command
        .task
        .as_ref()
        .map_or_else(String::new, |task| format!("{} for {} with token {token}", task.data_type, task.object_name));
    let sent = ask.shared.command(&request.agent_id, command, COMMAND_TIMEOUT).await;
    let outcome = sent.as_ref().map_or_else(ToString::to_string, |()| "ok".to_owned());
    ask.audit("task", &request.agent_id, &detail, &outcome);
    match sent {
        Ok(()) => Ok(json_response(StatusCode::CREATED, &json!({ "token": token }))),
        Err(error) => refuse(StatusCode::CONFLICT, error.to_string()),
    }
}

fn new_token() -> Result<String, Refusal> {
    let random: ring::rand::Random<[u8; TOKEN_BYTES]> = ring::rand::generate(&ring::rand::SystemRandom::new())
        .or_else(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random numbers"))?;
    Ok(auth::hex(&random.expose()))
}
