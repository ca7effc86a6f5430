//! The HTTP port: AgentCenter's routes for its manager, the route of service discovery for agents, `/api/v1`, and what
//! supervisors ask for.

mod access;
mod api;
mod auth;
mod caller;
mod device;
mod downloads;
mod file_body;
pub(crate) mod limit;
mod live;
mod local;
mod manager;
mod metrics;
pub mod openapi;
mod page;
mod password;
mod reply;
pub(crate) mod secret;
mod session;
mod sign_in;
mod slots;
mod stall;
mod stream;
mod trail;
mod tries;

pub(crate) use access::Access;
pub use auth::{AccessKey, Signed};
pub use caller::{Caller, Role};
pub(crate) use downloads::{Counts as DownloadCounts, accept as accept_downloads};
pub(crate) use file_body::file_body;
pub(crate) use live::{Thing, Watched};
pub use local::LocalKey;
pub(crate) use manager::ConfigJson;
pub use manager::{configs_from_file, configs_from_json};
pub(crate) use secret::fingerprint;
pub(crate) use trail::write as audit;

use crate::clock::now_ms;
use crate::clock::now_s;
use crate::serve::{Options, Shared, Status};
use access::Asker;
use bytes::Bytes;
use elklet_proto::grpc::Command;
use http::request::Parts;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use manager::{CommandRequest, ResetRequest};
use reply::{Reply, json_response, respond, text};
use serde::Serialize;
use serde_json::{Value, json};
use slots::{Entered, Slots};
use stall::Impatient;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The most connections at a time. When there are more, those that ask nothing make room, and else those who come later wait.
const MAX_CONNECTIONS: usize = 256;

/// How long TLS may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that takes nothing of what it is sent for so long is cut off.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// Longest request body: room for a command of 4 MiB escaped in JSON.
const MAX_BODY: usize = 16 << 20;

/// How long a client may take over the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take over the body of its request. Whoever sends none keeps others from connecting.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest that a command may wait for its agent. AgentCenter allows 2 s to hand it over and 2 s to send it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(4);

const TOO_LONG: &str = "the body is too long, broke off, or took too long";

const SUCCESS: u32 = 0;
const AUTH_FAILED: u32 = 1;
const PARAM_INVALID: u32 = 2;
const OTHER: u32 = 3;

/// One address of a service, as service discovery lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// The service: `hids_svr_grpc` or `hids_svr_http`.
    pub name: String,
    /// An address without its port.
    pub ip: String,
    /// A port.
    pub port: u16,
    /// 0 for an instance that was refreshed lately, up to 4 for one that is nearly given up.
    pub status: u8,
    /// Seconds since 1970.
    pub create_at: u64,
    /// Seconds since 1970.
    pub update_at: u64,
    /// The number of connections.
    pub weight: u64,
    /// Anything else.
    pub extra: BTreeMap<String, String>,
}

impl Instance {
    /// A healthy instance without connections.
    pub fn new(name: &str, address: SocketAddr) -> Self {
        let now = now_s();
        Self {
            name: name.to_owned(),
            ip: address.ip().to_string(),
            port: address.port(),
            status: 0,
            create_at: now,
            update_at: now,
            weight: 0,
            extra: BTreeMap::new(),
        }
    }
}

/// Returns the address of the page with the key of a link, behind the `#`, which browsers send to nobody.
pub(crate) fn page_url(options: &Options, key: &str) -> String {
    format!("{}/#key={key}", local::url(options.http, options.http_tls))
}

/// Answers requests until the center ends, over TLS if there is an acceptor.
pub(crate) async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let slots = Slots::new(MAX_CONNECTIONS);
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                shared.note(format!("accepting an HTTP connection: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        let entered = slots.enter().await;
        tokio::spawn(async move {
            let served = async {
                match tls {
                    None => serve(tcp, peer, &entered, &shared).await,
                    Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await {
                        Ok(Ok(tcp)) => serve(tcp, peer, &entered, &shared).await,
                        Ok(Err(error)) => shared.note(format!("TLS on the HTTP port: {error}")),
                        Err(_) => shared.note("TLS on the HTTP port took too long".to_owned()),
                    },
                }
            };
            tokio::select! {
                () = served => {}
                () = entered.makes_room() => log::debug!("{peer} asks nothing and makes room for another connection"),
            }
        });
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, peer: SocketAddr, entered: &Entered, shared: &Arc<Shared>) {
    let service = service_fn(|request| async {
        entered.has_asked();
        let reply = answer(request, peer, shared).await;
        shared.access.counts.answered(reply.status());
        Ok::<_, Infallible>(reply)
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    if let Err(error) = server.serve_connection(TokioIo::new(Impatient::new(io, TAKEN_WITHIN)), service).await {
        log::debug!("an HTTP connection: {error}");
    }
}

async fn answer(request: Request<Incoming>, peer: SocketAddr, shared: &Arc<Shared>) -> Reply {
    let (head, body) = request.into_parts();
    if let Some(file) = page::answer(&head) {
        return file;
    }
    let path = head.uri.path().trim_end_matches('/');
    match (&head.method, path) {
        (&Method::GET, "/ping") => return success("pong".into()),
        (&Method::GET, "/healthz") => return text("ok\n".to_owned()),
        (&Method::GET, "/readyz") => return ready(shared),
        (&Method::GET, "/metrics") => return text(metrics::text(shared).await),
        (&Method::GET, "/registry/detail") => return registry_detail(&head, shared),
        _ => {}
    }
    let route = path.strip_prefix("/api/v1");
    let session =
        route.and_then(|route| route.strip_prefix("/session")).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let signs_in = session == Some("") && head.method == Method::POST;
    let refuse = |status, reason: &str| match route {
        Some(_) => json_response(status, &json!({ "error": reason })),
        None => reply(status, AUTH_FAILED, reason, Value::Null),
    };
    let asker = match shared.access.who(&head, peer, signs_in, now_ms()) {
        Ok(asker) => asker,
        Err(reason) => return refuse(StatusCode::FORBIDDEN, &reason),
    };
    if let Some(rest) = session {
        let Ok(body) = whole(body, sign_in::MAX_BODY).await else {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, TOO_LONG);
        };
        let rest = rest.trim_start_matches('/');
        let (method, query, headers) = (&head.method, head.uri.query().unwrap_or_default(), &head.headers);
        return sign_in::SignIn { method, rest, query, headers, body: &body, asker, peer, shared }.answer().await;
    }
    if let Asker::Unknown(reason) = &asker {
        // AgentCenter says so in its own way, and those who know its key know that.
        let status = if route.is_none() && shared.access.access_key().is_some() {
            StatusCode::OK
        } else {
            StatusCode::UNAUTHORIZED
        };
        return refuse(status, reason);
    }
    if let (&Method::POST, Some("/files"), Asker::Known(caller)) = (&head.method, route, &asker) {
        // A file does not have to fit into memory. What is signed does: the signature covers all of it.
        return api::upload(head.uri.query().unwrap_or_default(), body, caller, shared).await;
    }
    let (body, caller) = match asker {
        Asker::Known(caller) => {
            let Ok(body) = whole(body, MAX_BODY).await else { return refuse(StatusCode::PAYLOAD_TOO_LARGE, TOO_LONG) };
            (body, caller)
        }
        Asker::Signed | Asker::Unknown(_) => {
            let Some(key) = shared.access.access_key() else {
                return refuse(StatusCode::UNAUTHORIZED, "there is no access key");
            };
            let status = if route.is_none() { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            if let Err(reason) = key.precheck(&signed(&head, b""), now_s()) {
                return refuse(status, &reason);
            }
            // Until the body is there, nobody knows whether the signature is right.
            let _turn = shared.access.unproven.acquire().await.expect("nobody closes it");
            let Ok(body) = whole(body, MAX_BODY).await else { return refuse(StatusCode::PAYLOAD_TOO_LARGE, TOO_LONG) };
            if let Err(reason) = key.verify(&signed(&head, &body), now_s()) {
                return refuse(status, &reason);
            }
            (body, Access::signer(peer))
        }
    };
    if let Some(path) = route {
        let query = head.uri.query().unwrap_or_default();
        return api::answer(&head.method, path, query, &body, &caller, shared).await;
    }
    match (&head.method, path) {
        (&Method::GET, "/conn/list") => success(shared.read(|state| state.connected().collect::<Vec<_>>().into())),
        (&Method::GET, "/conn/count") => success(shared.read(|state| state.live.len().into())),
        (&Method::GET, "/conn/stat") => {
            success(shared.read(|state| state.connected().map(|id| state.agents[id].stat()).collect()))
        }
        (&Method::POST, "/conn/reset") => match caller.must(Role::Operate) {
            Ok(()) => conn_reset(&body, &caller, shared),
            Err(reason) => forbidden(&reason),
        },
        (&Method::POST, "/command") => match caller.must(Role::Operate) {
            Ok(()) => command(&body, &caller, shared).await,
            Err(reason) => forbidden(&reason),
        },
        _ => reply(StatusCode::NOT_FOUND, OTHER, &format!("no route {} {path}", head.method), Value::Null),
    }
}

fn signed<'a>(head: &'a Parts, body: &'a [u8]) -> Signed<'a> {
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Signed {
        access_key: header("AccessKey"),
        timestamp: header("TimeStamp"),
        signature: header("Signature"),
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        body,
    }
}

/// Reads the body of a request, if it has no more than this many bytes and comes in time.
async fn whole(body: Incoming, limit: usize) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    Ok(body??.to_bytes())
}

fn ready(shared: &Shared) -> Reply {
    match shared.read(|fleet| fleet.sink_refuses.clone()) {
        None => text("ready\n".to_owned()),
        Some(reason) => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain; charset=utf-8",
            format!("no records are stored: {reason}\n"),
        ),
    }
}

async fn command(body: &[u8], caller: &Caller, shared: &Shared) -> Reply {
    let request: CommandRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return invalid(&error),
    };
    if request.agent_id.is_empty() {
        return reply(StatusCode::BAD_REQUEST, PARAM_INVALID, "agent_id is empty", Value::Null);
    }
    let command = Command::from(request.command);
    let detail = summary(&command);
    let sent = shared.command(&request.agent_id, command, &caller.name, COMMAND_TIMEOUT).await;
    let outcome = sent.as_ref().map_or_else(ToString::to_string, |()| "ok".to_owned());
    trail::note(shared, caller, "command", &request.agent_id, &detail, &outcome);
    match sent {
        Ok(()) => success(Value::Null),
        Err(error) => reply(StatusCode::OK, OTHER, &error.to_string(), Value::Null),
    }
}

/// Says in a line what a command consists of.
fn summary(command: &Command) -> String {
    let mut parts = Vec::new();
    if command.agent_ctrl != 0 {
        parts.push(format!("agent_ctrl {}", command.agent_ctrl));
    }
    if let Some(task) = &command.task {
        parts.push(format!("task {} for {} with token {}", task.data_type, task.object_name, task.token));
    }
    if !command.configs.is_empty() {
        let names: Vec<_> =
            command.configs.iter().map(|config| format!("{} {}", config.name, config.version)).collect();
        parts.push(format!("plugins {}", names.join(", ")));
    }
    parts.join("; ")
}

/// Ends streams as AgentCenter does, which the agent sees as an orderly end. The answer's data is the ids.
fn conn_reset(body: &[u8], caller: &Caller, shared: &Arc<Shared>) -> Reply {
    let request: ResetRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return invalid(&error),
    };
    let mut ids: Vec<String> = shared.read(|state| state.connected().map(str::to_owned).collect());
    match request {
        ResetRequest::Strict { id_list } => ids.retain(|id| id_list.contains(id)),
        ResetRequest::Random { count } => {
            shuffle(&mut ids);
            ids.truncate(count);
        }
    }
    ids.retain(|id| shared.end(id, Status::ok()));
    trail::note(shared, caller, "connections.reset", &ids.join(" "), "", "ok");
    success(ids.into())
}

/// Shuffles. The standard library seeds its hashes anew each time, so any order will come up.
fn shuffle(ids: &mut [String]) {
    use std::hash::{BuildHasher, RandomState};
    let seed = RandomState::new();
    ids.sort_by_cached_key(|id| seed.hash_one(id));
}

fn registry_detail(head: &Parts, shared: &Shared) -> Reply {
    let mut pairs = head.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let Some((_, name)) = pairs.find(|(key, name)| *key == "name" && !name.is_empty()) else {
        return json_response(StatusCode::BAD_REQUEST, &json!({ "msg": "name is missing", "data": null }));
    };
    json_response(StatusCode::OK, &json!({ "msg": "ok", "data": shared.instances(name) }))
}

fn success(data: Value) -> Reply {
    reply(StatusCode::OK, SUCCESS, "success", data)
}

fn forbidden(reason: &str) -> Reply {
    reply(StatusCode::FORBIDDEN, AUTH_FAILED, reason, Value::Null)
}

fn invalid(error: &serde_json::Error) -> Reply {
    reply(StatusCode::BAD_REQUEST, PARAM_INVALID, &error.to_string(), Value::Null)
}

fn reply(status: StatusCode, code: u32, msg: &str, data: Value) -> Reply {
    json_response(status, &json!({ "code": code, "msg": msg, "data": data }))
}
