//! The agent's side of the socket: a little HTTP/1.1, with one request a connection.
//!
//! A client can hold up only its own task. There are a few tasks, each with a bounded request and a bounded time. The
//! loop answers a request for a page and does not care how fast anybody reads it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use elklet_core::printable::PrintableJson;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::socket::{SocketFile, listen_at};
use super::{Snapshot, metrics, text};
use crate::files::FileError;

/// Clients at a time. Others wait to be accepted.
const CLIENTS: usize = 4;

/// Time limit for a client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a connection could not be accepted, most likely for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The longest request, in bytes, headers included. curl and Prometheus send about 200.
const MAX_REQUEST_BYTES: usize = 4096;

/// The pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Page {
    #[default]
    Text,
    Json,
    Metrics,
}

impl Page {
    const ALL: [Self; 3] = [Self::Text, Self::Json, Self::Metrics];

    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Text => "/status.txt",
            Self::Json => "/status",
            Self::Metrics => "/metrics",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Json => "application/json",
            Self::Metrics => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Somebody's request for the agent's state.
#[derive(Debug)]
pub(crate) struct Inquiry {
    page: Page,
    answer: oneshot::Sender<(bool, String)>,
}

impl Inquiry {
    pub(crate) fn answer(self, snapshot: &Snapshot<'_>) {
        let body = match self.page {
            Page::Text => text::render(snapshot),
            // This cannot fail: there are no maps with odd keys, and the writer does not fail.
            Page::Json => format!("{}\n", PrintableJson(serde_json::to_string(snapshot).unwrap_or_default())),
            Page::Metrics => metrics::render(snapshot),
        };
        // The client may be gone.
        let _ = self.answer.send((snapshot.connection.connected, body));
    }
}

/// The listening socket and its clients. Dropping it closes all of them and removes the file.
#[derive(Debug)]
pub(crate) struct Server {
    _tasks: JoinSet<()>,
    _file: SocketFile,
}

impl Server {
    /// Starts to listen at this path.
    ///
    /// # Errors
    /// When there can be no socket.
    pub(crate) fn start(socket: &Path) -> Result<(Self, mpsc::Receiver<Inquiry>), FileError> {
        let (listener, file) = listen_at(socket)?;
        let listener = Arc::new(UnixListener::from_std(listener).map_err(FileError::at(socket))?);
        let (inquiries, receiver) = mpsc::channel(CLIENTS);
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS {
            let (listener, inquiries) = (Arc::clone(&listener), inquiries.clone());
            tasks.spawn(async move {
                loop {
                    match listener.accept().await {
                        // A client that is slow or gone does not matter.
                        Ok((client, _)) => drop(timeout(CLIENT_TIMEOUT, serve(&client, &inquiries)).await),
                        Err(error) => {
                            log::warn!("status socket: {error}");
                            sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
            });
        }
        Ok((Self { _tasks: tasks, _file: file }, receiver))
    }
}

async fn serve(client: &UnixStream, inquiries: &mpsc::Sender<Inquiry>) -> io::Result<()> {
    let answer = match page(&read_request(client).await?) {
        Ok(page) => {
            let (sender, receiver) = oneshot::channel();
            // The loop goes away only when the process ends.
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            inquiries.send(Inquiry { page, answer: sender }).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            let (connected, body) = receiver.await.map_err(gone)?;
            let connected = if connected { "yes" } else { "no" };
            let head = format!("Content-Type: {}\r\nElklet-Connected: {connected}\r\n", page.content_type());
            response("200 OK", &head, &body)
        }
        Err((status, body)) => response(status, "Content-Type: text/plain\r\n", &body),
    };
    write_all(client, answer.as_bytes()).await
}

fn response(status: &str, head: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// The page that a request asks for, or the status and text to refuse it with.
fn page(request: &[u8]) -> Result<Page, (&'static str, String)> {
    let line = request.split(|byte| *byte == b'\r' || *byte == b'\n').next().and_then(|line| str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(("400 Bad Request", "expected an HTTP request\n".to_owned()));
    };
    if !version.starts_with("HTTP/1.") || !ended(request) {
        return Err((
            "400 Bad Request",
            format!("expected an HTTP/1.1 request of at most {MAX_REQUEST_BYTES} bytes\n"),
        ));
    }
    if method != "GET" {
        return Err(("405 Method Not Allowed", "expected GET\n".to_owned()));
    }
    let path = path.split('?').next().unwrap_or_default();
    Page::ALL.into_iter().find(|page| page.path() == path).ok_or_else(|| {
        let paths = Page::ALL.map(Page::path).join(", ");
        ("404 Not Found", format!("expected one of {paths}\n"))
    })
}

/// Reads until a request's head is complete, the client sends nothing more, or it has sent too much.
async fn read_request(client: &UnixStream) -> io::Result<Vec<u8>> {
    let mut request = vec![0; MAX_REQUEST_BYTES];
    let mut length = 0;
    while length < request.len() && !ended(&request[..length]) {
        client.readable().await?;
        match client.try_read(&mut request[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    request.truncate(length);
    Ok(request)
}

fn ended(request: &[u8]) -> bool {
    request.windows(4).any(|bytes| bytes == b"\r\n\r\n")
}

async fn write_all(client: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        client.writable().await?;
        match client.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let ask = |line: &str| page(format!("{line}\r\nHost: localhost\r\n\r\n").as_bytes());
        assert_eq!(ask("GET /metrics HTTP/1.1"), Ok(Page::Metrics));
        assert_eq!(ask("GET /status?x=1 HTTP/1.0"), Ok(Page::Json));
        assert_eq!(ask("GET /status.txt HTTP/1.1"), Ok(Page::Text));
        for (line, status) in [
            ("", "400"),
            ("hello", "400"),
            ("GET /metrics", "400"),
            ("GET /metrics HTTP/2", "400"),
            ("GET  /metrics HTTP/1.1", "400"),
            ("POST /metrics HTTP/1.1", "405"),
            ("GET / HTTP/1.1", "404"),
            ("GET /metrics/ HTTP/1.1", "404"),
        ] {
            let (refused, _) = ask(line).expect_err(line);
            assert!(refused.starts_with(status), "{line}: {refused}");
        }
        assert!(page(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").is_err(), "it is not whole");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = page(&bytes);
        }
    }
}
