//! `/api/v1/uploads`: files that agents sent.

use super::{Answer, Ask, bad, failed, no_route, ok, refuse, unkept};
use crate::fleet::Upload;
use crate::http::Role;
use crate::http::stream::{self, Pieces};
use crate::serve::{Shared, remove_upload};
use crate::store::site;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes that are read of a file at a time.
const PIECE: usize = 256 << 10;

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    let id = |text: &str| text.parse().map_err(|_| bad(&format!("{text:?} is no number of an upload")));
    match (ask.method, ask.rest.split_once('/').unwrap_or((ask.rest, ""))) {
        (&Method::GET, ("", "")) => list(ask).await,
        (&Method::GET, (number, "file")) => {
            // Whoever only looks must not see what an operator has had a host send, which may be any file of it.
            ask.must(Role::Operate)?;
            file(id(number)?, ask.shared).await
        }
        (&Method::DELETE, (number, "")) if !number.is_empty() => remove(id(number)?, ask).await,
        _ => no_route(ask),
    }
}

/// Returns an upload of the database as JSON.
pub(super) fn of_row(upload: &site::Upload) -> Value {
    json!({
        "id": upload.id,
        "token": upload.token,
        "agent_id": upload.agent_id,
        "path": upload.path,
        "len": upload.bytes,
        "error": (!upload.error.is_empty()).then_some(&upload.error),
        "received_ms": upload.received_ms,
    })
}

/// Returns an upload of a center without a store in the same way.
pub(super) fn of_fleet(upload: &Upload) -> Value {
    json!({
        "id": upload.id,
        "token": upload.token,
        "agent_id": upload.agent_id,
        "path": upload.host_path,
        "len": upload.len,
        "error": upload.error,
        "received_ms": upload.svr_time.saturating_mul(1000),
    })
}

/// `?before=ID`, `?limit=N`: the latest uploads first.
async fn list(ask: &Ask<'_>) -> Answer {
    let (limit, before) = (ask.query.limit()?, ask.query.number("before")?);
    let mut uploads: Vec<Value> = match ask.shared.site(move |site| site.uploads().list(before, limit + 1)).await {
        Some(Ok(rows)) => rows.iter().map(of_row).collect(),
        Some(Err(error)) => return Err(failed(&error)),
        None => ask.shared.read(|fleet| {
            let wanted = fleet.uploads.iter().rev().filter(|upload| before.is_none_or(|before| upload.id < before));
            wanted.take(limit + 1).map(of_fleet).collect()
        }),
    };
    let more = uploads.len() > limit;
    uploads.truncate(limit);
    let next = uploads.last().filter(|_| more).map(|last| last["id"].clone());
    ok(&json!({ "uploads": uploads, "next": next }))
}

/// Sends the bytes.
async fn file(id: i64, shared: &Shared) -> Answer {
    let (path, name, len) = match shared.site(move |site| site.uploads().get(id)).await {
        Some(Ok(row)) => {
            let Some(upload) = row else { return unknown(id) };
            if upload.file.is_empty() {
                return refuse(StatusCode::CONFLICT, format!("upload {id} failed: {}", upload.error));
            }
            (directory(shared).join(&upload.file), file_name(&upload.path, &upload.file), upload.bytes.cast_unsigned())
        }
        Some(Err(error)) => return Err(failed(&error)),
        None => {
            let known = shared.read(|fleet| fleet.uploads.iter().find(|upload| upload.id == id).cloned());
            let Some(upload) = known else { return unknown(id) };
            if let Some(error) = upload.error {
                return refuse(StatusCode::CONFLICT, format!("upload {id} failed: {error}"));
            }
            (upload.path, file_name(&upload.host_path, &upload.token), upload.len)
        }
    };
    let opened = tokio::task::spawn_blocking(move || {
        let file = File::open(path)?;
        let has = file.metadata()?.len();
        if has == len { Ok(file) } else { Err(io::Error::other(format!("the file has {has} bytes, expected {len}"))) }
    });
    let file = match opened.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(file) => file,
        Err(error) => return refuse(StatusCode::GONE, format!("the file of upload {id} is not there: {error}")),
    };
    let (mut reply, pieces) = stream::attachment("application/octet-stream", &name);
    reply.headers_mut().insert(CONTENT_LENGTH, len.into());
    tokio::spawn(send(file, pieces));
    Ok(reply)
}

async fn send(mut file: File, pieces: Pieces) {
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::with_capacity(PIECE);
            file.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
            Ok((file, piece))
        });
        match read.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok((_, piece)) if piece.is_empty() => return,
            Ok((rest, piece)) => {
                file = rest;
                if !pieces.send(piece).await {
                    return;
                }
            }
            Err(error) => return pieces.fail(error).await,
        }
    }
}

async fn remove(id: i64, ask: &Ask<'_>) -> Answer {
    let (shared, dir) = (ask.shared, ask.shared.options.upload_dir.clone());
    let removed = shared.site(move |site| match site.uploads().get(id)? {
        Some(upload) => remove_upload(site, dir.as_deref(), &upload),
        None => Ok(false),
    });
    let known = match removed.await {
        Some(removed) => removed.map_err(|error| unkept(&error))?,
        None => false,
    };
    if !known {
        return unknown(id);
    }
    ask.audit("upload.remove", &id.to_string(), "", "ok");
    shared.change(|fleet| fleet.uploads.retain(|upload| upload.id != id));
    ok(&json!({}))
}

fn directory(shared: &Shared) -> PathBuf {
    shared.options.upload_dir.clone().unwrap_or_default()
}

/// Returns the name that a file has on its host, or else here.
fn file_name(host_path: &str, here: &str) -> String {
    let name = Path::new(host_path).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| here.to_owned())
}

fn unknown(id: i64) -> Answer {
    refuse(StatusCode::NOT_FOUND, format!("no upload {id} is known"))
}
