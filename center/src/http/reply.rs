//! What the HTTP port answers with.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use serde_json::Value;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// An answer. Its body may come bit by bit.
pub(super) type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Answers with JSON, which nobody on the way may keep.
pub(super) fn json_response(status: StatusCode, body: &Value) -> Reply {
    let mut reply = respond(status, "application/json; charset=utf-8", body.to_string());
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::UNAUTHORIZED {
        reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    reply
}

/// Answers with text, as Prometheus reads it.
pub(super) fn text(body: String) -> Reply {
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

/// Answers with a body of this type.
pub(super) fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let whole = Full::new(body.into()).map_err(|never| match never {});
    let mut response = Response::new(whole.boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Answers with a body of this type that comes bit by bit.
pub(super) fn streamed(content_type: &'static str, parts: mpsc::Receiver<io::Result<Bytes>>) -> Reply {
    let mut response = Response::new(Parts(parts).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

struct Parts(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|part| part.map(|part| part.map(Frame::data)))
    }
}
