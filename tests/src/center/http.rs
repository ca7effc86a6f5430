//! The HTTP port: AgentCenter's routes for its manager, and the route of service discovery for agents.

use super::auth::{self, AccessKey};
use super::config::{CommandRequest, ResetRequest};
use super::shared::{Shared, unix_seconds};
use super::{Fault, Status};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Longest request body: room for a command of 4 MiB escaped in JSON.
const MAX_BODY: usize = 16 << 20;

/// How long a client may take over the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that a command may wait for its agent. AgentCenter allows 2 s to hand it over and 2 s to send it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(4);

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
        let now = unix_seconds();
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

/// Answers requests until the center ends, over TLS if there is an acceptor.
pub(crate) async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    loop {
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                shared.note(format!("accepting an HTTP connection: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            match tls {
                None => serve(tcp, shared).await,
                Some(tls) => match tls.accept(tcp).await {
                    Ok(tcp) => serve(tcp, shared).await,
                    Err(error) => shared.note(format!("TLS on the HTTP port: {error}")),
                },
            }
        });
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request, &shared).await) });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    if let Err(error) = server.serve_connection(TokioIo::new(io), service).await {
        log::debug!("an HTTP connection: {error}");
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return reply(StatusCode::PAYLOAD_TOO_LARGE, PARAM_INVALID, "the body is too long or broke off", Value::Null);
    };
    let body = body.to_bytes();
    let path = head.uri.path().trim_end_matches('/');
    match (&head.method, path) {
        (&Method::GET, "/ping") => return success("pong".into()),
        (&Method::GET, "/metrics") => return text(metrics(shared)),
        (&Method::GET, "/registry/detail") => return registry_detail(&head, shared),
        _ => {}
    }
    if let Some(key) = &shared.options.access_key
        && let Err(reason) = authorize(key, &head, &body)
    {
        return reply(StatusCode::OK, AUTH_FAILED, &reason, Value::Null);
    }
    match (&head.method, path) {
        (&Method::GET, "/conn/list") => success(shared.read(|state| state.connected().collect::<Vec<_>>().into())),
        (&Method::GET, "/conn/count") => success(shared.read(|state| state.live.len().into())),
        (&Method::GET, "/conn/stat") => {
            success(shared.read(|state| state.connected().map(|id| state.agents[id].stat()).collect()))
        }
        (&Method::POST, "/conn/reset") => conn_reset(&body, shared),
        (&Method::POST, "/command") => command(&body, shared).await,
        _ => reply(StatusCode::NOT_FOUND, OTHER, &format!("no route {} {path}", head.method), Value::Null),
    }
}

fn authorize(key: &AccessKey, head: &Parts, body: &[u8]) -> Result<(), String> {
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let signed = auth::Signed {
        access_key: header("AccessKey"),
        timestamp: header("TimeStamp"),
        signature: header("Signature"),
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        body,
    };
    key.verify(&signed, unix_seconds())
}

async fn command(body: &[u8], shared: &Shared) -> Response<Full<Bytes>> {
    let request: CommandRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return invalid(&error),
    };
    if request.agent_id.is_empty() {
        return reply(StatusCode::BAD_REQUEST, PARAM_INVALID, "agent_id is empty", Value::Null);
    }
    match shared.command(&request.agent_id, request.command.into(), COMMAND_TIMEOUT).await {
        Ok(()) => success(Value::Null),
        Err(error) => reply(StatusCode::OK, OTHER, &error.to_string(), Value::Null),
    }
}

/// Ends streams as AgentCenter does, which the agent sees as an orderly end. The answer's data is the ids.
fn conn_reset(body: &[u8], shared: &Shared) -> Response<Full<Bytes>> {
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
    ids.retain(|id| shared.inject(id, Fault::Status(Status::ok())));
    success(ids.into())
}

/// Shuffles. The standard library seeds its hashes anew each time, so any order will come up.
fn shuffle(ids: &mut [String]) {
    use std::hash::{BuildHasher, RandomState};
    let seed = RandomState::new();
    ids.sort_by_cached_key(|id| seed.hash_one(id));
}

fn registry_detail(head: &Parts, shared: &Shared) -> Response<Full<Bytes>> {
    let mut pairs = head.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let Some((_, name)) = pairs.find(|(key, name)| *key == "name" && !name.is_empty()) else {
        return json_response(StatusCode::BAD_REQUEST, &json!({ "msg": "name is missing", "data": null }));
    };
    json_response(StatusCode::OK, &json!({ "msg": "ok", "data": shared.instances(name) }))
}

fn metrics(shared: &Shared) -> String {
    let mut text = String::new();
    shared.read(|state| {
        let totals = &state.totals;
        for (name, kind, value) in [
            ("connected_agents", "gauge", state.live.len() as u64),
            ("connections_total", "counter", totals.connections),
            ("failed_handshakes_total", "counter", totals.failed_handshakes),
            ("streams_total", "counter", totals.streams),
            ("refused_out_of_tokens_total", "counter", totals.out_of_tokens),
            ("refused_conflicts_total", "counter", totals.conflicts),
            ("bad_messages_total", "counter", totals.bad_messages),
            ("too_many_pings_total", "counter", totals.too_many_pings),
            ("messages_total", "counter", state.agents.values().map(|agent| agent.messages).sum()),
            ("wire_bytes_total", "counter", state.agents.values().map(|agent| agent.wire_bytes).sum()),
            ("decoded_bytes_total", "counter", state.agents.values().map(|agent| agent.decoded_bytes).sum()),
        ] {
            writeln!(text, "# TYPE center_{name} {kind}\ncenter_{name} {value}").expect("strings grow");
        }
        let mut by_type = BTreeMap::<i32, u64>::new();
        for (data_type, count) in state.agents.values().flat_map(|agent| &agent.counts) {
            *by_type.entry(*data_type).or_default() += count.records;
        }
        text.push_str("# TYPE center_records_total counter\n");
        for (data_type, records) in by_type {
            writeln!(text, "center_records_total{{data_type=\"{data_type}\"}} {records}").expect("strings grow");
        }
    });
    text
}

fn success(data: Value) -> Response<Full<Bytes>> {
    reply(StatusCode::OK, SUCCESS, "success", data)
}

fn invalid(error: &serde_json::Error) -> Response<Full<Bytes>> {
    reply(StatusCode::BAD_REQUEST, PARAM_INVALID, &error.to_string(), Value::Null)
}

fn reply(status: StatusCode, code: u32, msg: &str, data: Value) -> Response<Full<Bytes>> {
    json_response(status, &json!({ "code": code, "msg": msg, "data": data }))
}

fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    respond(status, "application/json; charset=utf-8", body.to_string())
}

fn text(body: String) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
