//! `/api/v1/tokens`: what lets hosts in that have no certificate yet. `/api/v1/certificates`: those that the center has issued.

use super::{Answer, Ask, bad, no_route, ok, refuse, unkept};
use crate::clock::now_ms;
use crate::desired::Desired;
use crate::enrolment::{NewToken, Refused};
use crate::http::caller::Role;
use crate::http::reply::json_response;
use crate::serve::Options;
use crate::store::site::{Certificate, Token};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long a token may let hosts in, in seconds, and how many of them.
const TTL_S: std::ops::RangeInclusive<u64> = 1..=30 * 86_400;
const USES: std::ops::RangeInclusive<u32> = 1..=10_000;

const DEFAULT_TTL_S: u64 = 3600;

pub(super) fn tokens(ask: &Ask<'_>) -> Answer {
    ask.must(Role::Admin)?;
    match (ask.method, ask.rest, ask.rest.parse()) {
        (&Method::GET, "", _) => list(ask),
        (&Method::POST, "", _) => add(ask),
        (&Method::DELETE, _, Ok(id)) => remove(id, ask),
        _ => no_route(ask),
    }
}

pub(super) fn certificates(ask: &Ask<'_>) -> Answer {
    ask.must(Role::Admin)?;
    match (ask.method, ask.rest.strip_suffix("/revoke").and_then(super::decoded)) {
        (&Method::GET, _) if ask.rest.is_empty() => issued(ask),
        (&Method::POST, Some(agent_id)) => revoke(&agent_id, ask),
        _ => no_route(ask),
    }
}

fn list(ask: &Ask<'_>) -> Answer {
    let tokens = tokio::task::block_in_place(|| ask.shared.db().tokens().list()).map_err(|error| unkept(&error))?;
    let now_ms = now_ms();
    ok(&json!(tokens.iter().map(|token| told(token, now_ms)).collect::<Vec<_>>()))
}

fn told(token: &Token, now_ms: i64) -> Value {
    json!({
        "id": token.id,
        "uses": token.uses,
        "used": token.used,
        "group": token.group,
        "created_by": token.created_by,
        "created_ms": token.created_ms,
        "expires_ms": token.expires_ms,
        "revoked_ms": token.revoked_ms,
        "usable": token.revoked_ms.is_none() && token.used < token.uses && token.expires_ms > now_ms,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenWanted {
    uses: Option<u32>,
    ttl_s: Option<u64>,
    group: Option<String>,
}

/// `{"uses": N, "ttl_s": N, "group": NAME}`, each of which may be left out.
fn add(ask: &Ask<'_>) -> Answer {
    let (TokenWanted { uses, ttl_s, group }, shared) = (ask.json()?, ask.shared);
    let (uses, ttl_s) = (uses.unwrap_or(1), ttl_s.unwrap_or(DEFAULT_TTL_S));
    if !USES.contains(&uses) {
        return Err(bad(&format!("uses is {uses}, expected {} to {}", USES.start(), USES.end())));
    }
    if !TTL_S.contains(&ttl_s) {
        return Err(bad(&format!("ttl_s is {ttl_s}, expected {} to {}", TTL_S.start(), TTL_S.end())));
    }
    Desired::default().set_group("any", group.clone()).map_err(|error| bad(&error))?;
    let created_ms = now_ms();
    let wanted = Token {
        id: 0,
        hash: String::new(),
        uses,
        used: 0,
        group,
        created_by: ask.caller.name.clone(),
        created_ms,
        expires_ms: created_ms.saturating_add_unsigned(ttl_s * 1000),
        revoked_ms: None,
    };
    let made = tokio::task::block_in_place(|| shared.enrolment.new_token(shared.db(), wanted));
    let NewToken { token, secret } = made.map_err(|refused| super::Refusal {
        status: match refused {
            Refused::NoAuthority(_) => StatusCode::CONFLICT,
            _ => StatusCode::INSUFFICIENT_STORAGE,
        },
        error: refused.to_string(),
    })?;
    let pin = shared.enrolment.authority().map_err(|refused| bad(&refused))?.pin();
    let detail = format!("{uses} uses, {ttl_s} s, group {}", token.group.as_deref().unwrap_or("none"));
    ask.audit("token.new", &token.id.to_string(), &detail, "ok");
    let mut answer = told(&token, created_ms);
    answer["command"] = json!(format!("elklet enroll {} --token {secret} --ca-pin {pin}", address(&shared.options)));
    answer["token"] = json!(secret);
    answer["ca_pin"] = json!(pin);
    Ok(json_response(StatusCode::CREATED, &answer))
}

/// Where hosts are told to connect: the host from which they fetch files, or the address that the center listens at, or this host.
fn address(options: &Options) -> String {
    let (ip, port) = (options.listen.ip(), options.listen.port());
    match &options.download_host {
        Some(host) => format!("{host}:{port}"),
        None if !ip.is_unspecified() => options.listen.to_string(),
        None => format!("{}:{port}", rustix::system::uname().nodename().to_string_lossy()),
    }
}

fn remove(id: i64, ask: &Ask<'_>) -> Answer {
    let revoked = tokio::task::block_in_place(|| ask.shared.db().tokens().revoke(id, now_ms()));
    if !revoked.map_err(|error| unkept(&error))? {
        return refuse(StatusCode::NOT_FOUND, format!("there is no token {id} that is not revoked"));
    }
    ask.audit("token.revoke", &id.to_string(), "", "ok");
    ok(&json!({}))
}

/// `?agent_id=ID` or `?before=N`, and `&limit=N`: the latest first.
fn issued(ask: &Ask<'_>) -> Answer {
    let (limit, before, agent_id) = (ask.query.limit()?, ask.query.number("before")?, ask.query.get("agent_id"));
    let found = tokio::task::block_in_place(|| match &agent_id {
        Some(agent_id) => ask.shared.db().certificates().of(agent_id, limit),
        None => ask.shared.db().certificates().list(before, limit),
    });
    let certificates: Vec<_> = found.map_err(|error| unkept(&error))?.iter().map(told_certificate).collect();
    ok(&json!({ "certificates": certificates }))
}

fn told_certificate(certificate: &Certificate) -> Value {
    json!({
        "id": certificate.id,
        "serial": certificate.serial,
        "agent_id": certificate.agent_id,
        "token": certificate.token,
        "issued_ms": certificate.issued_ms,
        "expires_ms": certificate.expires_ms,
        "revoked_ms": certificate.revoked_ms,
        "revoked_by": (!certificate.revoked_by.is_empty()).then_some(&certificate.revoked_by),
    })
}

/// Revokes all certificates of an agent, and ends its stream if it came with one of them.
fn revoke(agent_id: &str, ask: &Ask<'_>) -> Answer {
    let shared = ask.shared;
    let revoked =
        tokio::task::block_in_place(|| shared.enrolment.revoke(shared.db(), agent_id, &ask.caller.name, now_ms()));
    let serials = revoked.map_err(|error| unkept(&error))?;
    if serials.is_empty() {
        let none = format!("agent {agent_id:?} has no certificate of this center that is not revoked");
        return refuse(StatusCode::NOT_FOUND, none);
    }
    shared.revoke(agent_id);
    shared.note(format!("the certificates of agent {agent_id} are revoked"));
    ask.audit("certificate.revoke", agent_id, &serials.join(" "), "ok");
    ok(&json!({ "revoked": serials }))
}
