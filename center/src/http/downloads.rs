//! The port at which agents fetch the files of plugins: `GET /files/SHA256`, and nothing else.
//!
//! It has no TLS and asks nobody who they are. An agent holds what it fetches to the SHA-256 that came to it over mutual TLS, and who does
//! not know a file's SHA-256 cannot ask for it.

use super::TAKEN_WITHIN;
use super::file_body::file_body;
use super::reply::{Reply, respond};
use super::slots::{Entered, Slots};
use super::stall::Impatient;
use crate::files::Digest;
use crate::serve::Shared;
use http::header::{ACCEPT_RANGES, ALLOW, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// The most connections at a time. When there are more, those that ask for nothing make room, and else those who come later wait.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take over the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may last. An agent gives a download up after 600 s.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(620);

/// Counts what was asked for here.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Files, or parts of them, that were sent or begun to be.
    pub(crate) sent: AtomicU64,
    /// Requests for anything else.
    pub(crate) refused: AtomicU64,
    /// Bytes of the files that were sent or begun to be.
    pub(crate) bytes: AtomicU64,
}

/// Answers agents until the center ends.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Slots::new(MAX_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let (shared, entered) = (Arc::clone(&shared), slots.enter().await);
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve(tcp, &entered, &shared) => {}
                        () = entered.makes_room() => log::debug!("{peer} asks for nothing and makes room for another"),
                    }
                });
            }
            Err(error) => {
                shared.note(format!("accepting a download: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(tcp: TcpStream, entered: &Entered, shared: &Shared) {
    let service = service_fn(|request: Request<Incoming>| async move {
        entered.has_asked();
        let reply = answer(&request.into_parts().0, shared);
        if reply.status().is_client_error() {
            shared.downloads.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, Infallible>(reply)
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(false);
    let served = server.serve_connection(TokioIo::new(Impatient::new(tcp, TAKEN_WITHIN)), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("a download: {error}"),
        Err(_) => log::debug!("a download took more than {} s", CONNECTION_TIMEOUT.as_secs()),
    }
}

fn answer(head: &Parts, shared: &Shared) -> Reply {
    if head.method != Method::GET && head.method != Method::HEAD {
        let mut reply = refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    let nothing = || refuse(StatusCode::NOT_FOUND, "there is no such file\n");
    let wanted = head.uri.path().strip_prefix("/files/").and_then(|name| name.parse::<Digest>().ok());
    let (Some(sha256), Some(files)) = (wanted, &shared.files) else { return nothing() };
    // A file that is known only by its name on the disk is on its way, or was deleted.
    if !matches!(shared.db().files().get(&sha256.to_string()), Ok(Some(_))) {
        return nothing();
    }
    let opened = File::open(files.path(&sha256)).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (len, mut file) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            log::warn!("file {sha256} cannot be read: {error}");
            return nothing();
        }
    };
    let from = head.headers.get(RANGE).and_then(|range| first_byte(range.to_str().ok()?));
    let start = from.unwrap_or(0);
    if from.is_some_and(|from| from >= len) {
        let mut reply = refuse(StatusCode::RANGE_NOT_SATISFIABLE, "the file is shorter\n");
        put(&mut reply, CONTENT_RANGE, &format!("bytes */{len}"));
        return reply;
    }
    if let Err(error) = file.seek(SeekFrom::Start(start)) {
        log::warn!("file {sha256} cannot be read: {error}");
        return nothing();
    }
    shared.downloads.sent.fetch_add(1, Ordering::Relaxed);
    shared.downloads.bytes.fetch_add(len - start, Ordering::Relaxed);
    let mut reply = Response::new(file_body(file, len - start));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if from.is_some() {
        *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
        put(&mut reply, CONTENT_RANGE, &format!("bytes {start}-{}/{len}", len - 1));
    }
    reply
}

/// Returns where a range begins that goes to the end of the file (RFC 9110, section 14.1.2), which is what agents ask for. Any other
/// range may be answered with the whole file.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn refuse(status: StatusCode, text: &'static str) -> Reply {
    respond(status, "text/plain; charset=utf-8", text)
}

fn put(reply: &mut Reply, name: http::HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("digits and ASCII words");
    reply.headers_mut().insert(name, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_to_the_end_is_understood() {
        assert_eq!(first_byte("bytes=100-"), Some(100));
        for other in ["bytes=0-99", "bytes=-5", "bytes=1-,5-", "lines=1-", "bytes=x-", ""] {
            assert_eq!(first_byte(other), None, "{other}");
        }
    }
}
