//! `/api/v1`: hosts, tasks, plugins and records as JSON.
//!
//! An answer is the object or the list that was asked for. An error is `{"error": TEXT}` with a status of 400 or more.

mod audit;
mod enrolment;
mod export;
mod files;
mod forward;
mod hosts;
mod plugins;
mod records;
mod rollouts;
mod status;
mod store;
mod stream;
mod tasks;
mod uploads;
mod users;

pub(super) use forward::lag;
pub(super) use store::disk_free;

use super::caller::{Caller, Role};
use super::openapi;
use super::reply::{Reply, json_response};
use super::trail;
use crate::desired::{Desired, TooMuch};
use crate::serve::Shared;
use crate::store::site::SiteError;
use export::Form;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

/// Things in an answer, unless the request says how many, and the most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// Characters of a parameter's name that a refusal repeats.
const MAX_NAMED: usize = 64;

/// What a route answers: a reply, or why there is none.
type Answer = Result<Reply, Refusal>;

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    error: String,
}

/// A request below `/api/v1`.
struct Ask<'a> {
    method: &'a Method,
    /// What follows `/api/v1`.
    path: &'a str,
    /// What follows `/api/v1/` and the first part, without a slash at either end: `ID` of `/api/v1/hosts/ID`.
    rest: &'a str,
    query: Query,
    body: &'a [u8],
    caller: &'a Caller,
    shared: &'a Arc<Shared>,
}

impl Ask<'_> {
    /// Returns what follows the first part of the path, decoded, if that is one part.
    fn name(&self) -> Option<String> {
        (!self.rest.is_empty() && !self.rest.contains('/')).then(|| decoded(self.rest)).flatten()
    }

    /// Checks that the caller may do what takes this role. Without it, what only reads takes [`Role::View`] and everything else
    /// [`Role::Operate`].
    fn must(&self, role: Role) -> Result<(), Refusal> {
        self.caller.must(role).map_err(|error| Refusal { status: StatusCode::FORBIDDEN, error })
    }

    /// Writes a line of the audit trail about something that the caller did: what, to whom or what, with what, and what came of it.
    fn audit(&self, action: &str, object: &str, detail: &str, outcome: &str) {
        trail::note(self.shared, self.caller, action, object, detail, outcome);
    }

    /// Decodes the body.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(self.body).map_err(|error| bad(&error))
    }
}

/// Answers a request below `/api/v1`, whose path is without that.
pub(super) async fn answer(
    method: &Method,
    path: &str,
    query: &str,
    body: &[u8],
    caller: &Caller,
    shared: &Arc<Shared>,
) -> Reply {
    let trimmed = path.trim_matches('/');
    if let Some(reply) = openapi::refusal(method, &format!("/{trimmed}")) {
        return reply;
    }
    let (part, rest) = trimmed.split_once('/').unwrap_or((trimmed, ""));
    let answer = async {
        let query = Query::of(method, &format!("/{trimmed}"), query)?;
        route(part, &Ask { method, path, rest, query, body, caller, shared }).await
    };
    answer.await.unwrap_or_else(|Refusal { status, error }| json_response(status, &json!({ "error": error })))
}

/// Takes the body of `POST /api/v1/files` as it comes.
pub(super) async fn upload(query: &str, body: Incoming, caller: &Caller, shared: &Arc<Shared>) -> Reply {
    let answer = async {
        let (method, query) = (&Method::POST, Query::of(&Method::POST, "/files", query)?);
        files::upload(&Ask { method, path: "/files", rest: "", query, body: &[], caller, shared }, body).await
    };
    answer.await.unwrap_or_else(|Refusal { status, error }| json_response(status, &json!({ "error": error })))
}

/// Answers a request whose query the route does not take. `None` if it takes it.
pub(super) fn refuse_query(method: &Method, path: &str, query: &str) -> Option<Reply> {
    let Refusal { status, error } = Query::of(method, path, query).err()?;
    Some(json_response(status, &json!({ "error": error })))
}

async fn route(part: &str, ask: &Ask<'_>) -> Answer {
    // A route that says nothing else takes this.
    ask.must(if [Method::GET, Method::HEAD].contains(ask.method) { Role::View } else { Role::Operate })?;
    match part {
        "audit" => audit::answer(ask),
        "certificates" => enrolment::certificates(ask),
        "tokens" => enrolment::tokens(ask),
        "hosts" => hosts::answer(ask).await,
        "groups" => hosts::groups(ask),
        "links" => users::links(ask),
        "tasks" => tasks::answer(ask).await,
        "forward" => forward::answer(ask),
        "files" => files::answer(ask).await,
        "openapi.json" => ok(openapi::document()),
        "plugins" => plugins::answer(ask).await,
        "rollouts" => rollouts::answer(ask).await,
        "records" => records::answer(ask).await,
        "records.csv" => export::answer(ask, Form::Csv),
        "records.ndjson" => export::answer(ask, Form::Ndjson),
        "status" => status::answer(ask).await,
        "store" => store::answer(ask).await,
        "stream" => stream::answer(ask),
        "uploads" => uploads::answer(ask).await,
        "users" => users::answer(ask).await,
        _ => no_route(ask),
    }
}

/// Answers with this.
fn ok(value: &Value) -> Answer {
    Ok(json_response(StatusCode::OK, value))
}

fn no_route(ask: &Ask<'_>) -> Answer {
    refuse(StatusCode::NOT_FOUND, format!("no route {} /api/v1{}", ask.method, ask.path))
}

fn refuse<T>(status: StatusCode, error: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, error: error.into() })
}

fn bad(error: &dyn std::fmt::Display) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, error: error.to_string() }
}

/// What the center itself could not do.
fn failed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, error: error.to_string() }
}

/// A change that could not be written to the database, and did not happen.
fn unkept(error: &SiteError) -> Refusal {
    Refusal { status: StatusCode::INSUFFICIENT_STORAGE, error: format!("the change could not be kept: {error}") }
}

fn change_desired(shared: &Shared, change: impl FnOnce(&mut Desired) -> Result<(), TooMuch>) -> Result<(), Refusal> {
    match shared.change_desired("", change) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(too_much)) => Err(bad(&too_much)),
        Err(error) => refuse(StatusCode::INSUFFICIENT_STORAGE, format!("the change could not be kept: {error}")),
    }
}

/// The parameters of a request, decoded.
#[derive(Debug, PartialEq, Eq)]
struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes the query of a request for a path below `/api/v1`.
    ///
    /// # Errors
    /// [`Query::parse`] fails, or the description does not have a parameter: a mistyped filter would otherwise give everything.
    fn of(method: &Method, path: &str, query: &str) -> Result<Self, Refusal> {
        let query = Self::parse(query)?;
        match query.0.iter().find(|(name, _)| !openapi::takes(method, path, name)) {
            Some((name, _)) => Err(bad(&format!("no parameter {} is known here", named(name)))),
            None => Ok(query),
        }
    }

    /// Decodes a query. A name without `=` has an empty value.
    ///
    /// # Errors
    /// A name or a value is no UTF-8. Without that parameter, the answer would be to another question than the one that was asked.
    fn parse(query: &str) -> Result<Self, Refusal> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| decoded(&text.replace('+', " "));
            match (decode(name), decode(value)) {
                (Some(name), Some(value)) => Ok((name, value)),
                (Some(_), None) => Err(bad(&format!("the value of parameter {} is no UTF-8", named(name)))),
                (None, _) => Err(bad(&format!("the name of parameter {} is no UTF-8", named(name)))),
            }
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    /// Returns a parameter.
    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    /// Returns all parameters.
    fn all(&self) -> impl Iterator<Item = (String, String)> {
        self.0.iter().cloned()
    }

    /// Returns a parameter that is a number.
    fn number(&self, name: &str) -> Result<Option<i64>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| bad(&format!("{name}={text}, expected a number")))
    }

    fn limit(&self) -> Result<usize, Refusal> {
        match self.get("limit") {
            None => Ok(DEFAULT_LIMIT),
            Some(text) => match text.parse() {
                Ok(limit @ 1..=MAX_LIMIT) => Ok(limit),
                _ => Err(bad(&format!("limit={text}, expected 1 to {MAX_LIMIT}"))),
            },
        }
    }
}

/// Returns what a refusal calls a parameter: its name as the request has it, as far as it is not too long to be shown.
fn named(name: &str) -> String {
    let shown: String = name.chars().take(MAX_NAMED).collect();
    format!("{shown:?}{}", if shown.len() < name.len() { ".." } else { "" })
}

/// Returns percent-encoded text as it was, if that is UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| after.first_chunk::<2>())
            .flatten()
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::parse("after=a%2Fb%20c&x=%zz&limit=7&connected=true&y=a+b&bare&&").unwrap();
        assert_eq!(query.get("after").as_deref(), Some("a/b c"));
        assert_eq!(query.get("x").as_deref(), Some("%zz"));
        assert_eq!(query.get("y").as_deref(), Some("a b"));
        assert_eq!(query.get("bare").as_deref(), Some(""));
        assert_eq!(query.all().count(), 6);
        assert_eq!(query.limit(), Ok(7));
        let limit = |text: &str| Query::parse(text).unwrap().limit();
        assert!(limit("limit=0").is_err() && limit("limit=1001").is_err() && limit("limit").is_err());
        assert_eq!(limit(""), Ok(DEFAULT_LIMIT));
        assert_eq!(decoded("%ff"), None);
        assert_eq!(decoded("%"), Some("%".to_owned()));
    }

    #[test]
    fn a_parameter_that_cannot_be_decoded_is_refused_by_its_name() {
        let refused = |query: &str| Query::parse(query).unwrap_err();
        assert_eq!(refused("limit=7&host=%ff"), bad(&"the value of parameter \"host\" is no UTF-8"));
        assert_eq!(refused("bogus%ff=1&host=%ff"), bad(&"the name of parameter \"bogus%ff\" is no UTF-8"));
        assert_eq!(refused("%c3").status, StatusCode::BAD_REQUEST);
        let unknown = |path, query: &str| Query::of(&Method::GET, path, query).err().map(|refusal| refusal.error);
        assert_eq!(
            unknown("/hosts", "group=a&connectd=true"),
            Some("no parameter \"connectd\" is known here".to_owned())
        );
        assert_eq!(unknown("/groups", "limit=5"), Some("no parameter \"limit\" is known here".to_owned()));
        assert_eq!(unknown("/hosts", "group=a&connected=true&&"), None);
        let long = refused(&format!("{}=%ff", "n".repeat(5000)));
        assert_eq!(long.error, format!("the value of parameter \"{}\".. is no UTF-8", "n".repeat(MAX_NAMED)));
    }
}
