//! `/api/v1/files`: the files of plugins that agents may fetch from this center.

use super::plugins::{outcome, unusable};
use super::{Answer, Ask, Refusal, bad, no_route, ok, refuse};
use crate::clock::now_ms;
use crate::desired::Plugin;
use crate::files::{Digest, FileError, Files};
use crate::http::Role;
use crate::http::reply::json_response;
use crate::serve::Shared;
use crate::store::site::File;
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::block_in_place;

/// Whoever sends a file and says nothing for so long is left.
const STALL: Duration = Duration::from_secs(30);

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    match (ask.method, ask.rest, ask.name()) {
        (&Method::GET, "", _) => list(ask.shared),
        (&Method::POST, "", _) => upload(ask, Full::new(Bytes::copy_from_slice(ask.body))).await,
        (&Method::DELETE, _, Some(sha256)) => delete(ask, &sha256),
        _ => no_route(ask),
    }
}

fn list(shared: &Shared) -> Answer {
    let files = shared.db().files().list().map_err(|error| unusable(&error))?;
    ok(&files.iter().map(as_json).collect())
}

pub(super) fn as_json(file: &File) -> Value {
    json!({
        "sha256": file.sha256,
        "name": file.name,
        "len": file.bytes,
        "uploaded_ms": file.uploaded_ms,
        "uploaded_by": file.uploaded_by,
    })
}

/// `?name=TEXT`, and the file as the body.
pub(super) async fn upload<B>(ask: &Ask<'_>, body: B) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    ask.must(Role::Operate)?;
    let name = ask.query.get("name").unwrap_or_default();
    let taken = take(ask, &name, body).await;
    let sha256 = taken.as_ref().map_or(String::new(), |file| file.sha256.clone());
    ask.audit("files.upload", &name, &sha256, outcome(&taken));
    Ok(json_response(StatusCode::CREATED, &as_json(&taken?)))
}

async fn take<B>(ask: &Ask<'_>, name: &str, mut body: B) -> Result<File, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let files = Arc::clone(directory(ask.shared)?);
    let Ok(_room) = files.room.try_acquire() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "other files are on their way; try again later");
    };
    let mut incoming = files.begin(name, ask.shared.db()).map_err(refusal)?;
    loop {
        match tokio::time::timeout(STALL, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => {
                // Trailers say nothing that matters here.
                if let Ok(data) = frame.into_data() {
                    incoming.write(&data).map_err(refusal)?;
                }
            }
            Ok(Some(Err(error))) => return Err(bad(&format!("the file broke off: {error}"))),
            Err(_) => {
                return refuse(StatusCode::REQUEST_TIMEOUT, format!("nothing came for {} s", STALL.as_secs()));
            }
        }
    }
    let (shared, placed, by) = (Arc::clone(ask.shared), Arc::clone(&files), ask.caller.name.clone());
    let finished = tokio::task::spawn_blocking(move || placed.finish(&incoming, shared.db(), &by, now_ms())).await;
    match finished {
        Ok(finished) => finished.map_err(refusal),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn refusal(error: FileError) -> Refusal {
    let status = match &error {
        FileError::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        FileError::Name => StatusCode::BAD_REQUEST,
        FileError::Full(_) | FileError::Io(..) | FileError::Site(_) => StatusCode::INSUFFICIENT_STORAGE,
    };
    Refusal { status, error: error.to_string() }
}

fn delete(ask: &Ask<'_>, sha256: &str) -> Answer {
    ask.must(Role::Operate)?;
    let (sha256, files) = (sha256.parse::<Digest>().map_err(|error| bad(&error))?, directory(ask.shared)?);
    let deleted = match block_in_place(|| ask.shared.remove_file(files, &sha256)) {
        Ok(Some(true)) => Ok(()),
        Ok(Some(false)) => refuse(StatusCode::NOT_FOUND, format!("there is no file {sha256}")),
        Ok(None) => refuse(StatusCode::CONFLICT, "agents should run it; change what they should run first"),
        Err(error) => Err(unusable(&error)),
    };
    ask.audit("files.delete", &sha256.to_string(), "", outcome(&deleted));
    deleted?;
    ok(&json!({}))
}

pub(super) fn directory(shared: &Shared) -> Result<&Arc<Files>, Refusal> {
    match &shared.files {
        Some(files) => Ok(files),
        None => refuse(StatusCode::SERVICE_UNAVAILABLE, "this center has no directory for files"),
    }
}

/// Says in a plugin that is a file of this center what an agent has to be told, as far as it is not there: its SHA-256, and that of the
/// program in an archive.
pub(super) async fn complete(shared: &Shared, plugin: &mut Plugin) -> Result<(), Refusal> {
    let Some(sha256) = plugin.file else { return Ok(()) };
    if shared.options.downloads.is_none() {
        return refuse(
            StatusCode::CONFLICT,
            "this center has no port for downloads, so that agents could not fetch the file",
        );
    }
    let files = directory(shared)?;
    if shared.db().files().get(&sha256.to_string()).map_err(|error| unusable(&error))?.is_none() {
        return refuse(StatusCode::CONFLICT, format!("there is no file {sha256}; upload it first"));
    }
    let config = &mut plugin.config;
    if !config.sha256.is_empty() && config.sha256.parse() != Ok(sha256) {
        return Err(bad(&format!("sha256 is {:.80} and file {sha256}, expected the same or no sha256", config.sha256)));
    }
    config.sha256 = sha256.to_string();
    config.download_urls.clear();
    if config.r#type == "tar.gz" && config.signature.is_empty() {
        let (files, name) = (Arc::clone(files), config.name.clone());
        let found = tokio::task::spawn_blocking(move || files.program_in(&sha256, &name)).await;
        let found = found.unwrap_or_else(|_| Err("reading it ended early".to_owned())).map_err(|error| bad(&error))?;
        config.signature = found.to_string();
    }
    Ok(())
}

/// Refuses what agents would refuse.
pub(super) fn check(plugin: &Plugin) -> Result<(), Refusal> {
    let config = &plugin.config;
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let (name, version, detail) = (&config.name, &config.version, &config.detail);
    if name.is_empty() || name.len() > MAX_PLUGIN_NAME || !name.chars().all(safe) {
        return Err(bad(&format!("name {name:.80?}, expected 1 to {MAX_PLUGIN_NAME} letters, digits, _ and -")));
    }
    if version.is_empty() || version.len() > MAX_VERSION {
        return Err(bad(&format!("a version of {} bytes, expected 1 to {MAX_VERSION}", version.len())));
    }
    if detail.len() > MAX_DETAIL || detail.contains('\0') {
        let len = detail.len();
        return Err(bad(&format!("a detail of {len} bytes, expected {MAX_DETAIL} at most and no zero byte")));
    }
    let executable = config.signature.split(':').next().unwrap_or_default();
    if !executable.is_empty() {
        executable.parse::<Digest>().map_err(|error| bad(&format!("signature: {error}")))?;
    }
    config.sha256.parse::<Digest>().map(drop).map_err(|error| bad(&format!("sha256: {error}")))
}

/// What agents take of a plugin; see the table of `Config` in `docs/protocol.md`.
const MAX_PLUGIN_NAME: usize = 64;
const MAX_VERSION: usize = 128;
const MAX_DETAIL: usize = 120 << 10;
