//! One agent's connection: TLS, HTTP/2, and the calls on it.

use super::grpc::{Encoding, Outgoing, Status};
use super::held::Unstored;
use super::interpose::ConnectionStep;
use super::ping::{Aside, PingWatch, TOO_MANY_PINGS};
use super::shared::Shared;
use super::{transfer, upload};
use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{Method, Request, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The longest that TLS and the HTTP/2 preface together may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// The most calls at a time on a connection. An agent has one Transfer stream, and a few uploads.
pub(super) const MAX_STREAMS: u32 = 16;

/// The longest list of a request's headers. An agent's has five short ones.
const MAX_HEADERS: u32 = 16 << 10;

/// Windows of a connection's streams that its own window holds. grpc-go gives a connection's credit back at once, and h2 only together
/// with the stream's. A stream that waits must not block the others.
const STREAM_WINDOWS: u32 = 64;

/// A handle on the connection, for its streams.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionHandle {
    pub(crate) peer: SocketAddr,
    /// This server's address, as the agent reached it.
    pub(crate) local: IpAddr,
    /// Bytes of the connection's streams' windows.
    pub(crate) window: u32,
    /// What PINGs wait for, if they wait.
    pub(crate) unstored: Option<Unstored>,
    /// A channel has room for 32 values from the beginning, which is why they are boxed.
    orders: mpsc::UnboundedSender<Box<ConnectionStep>>,
    /// Changes, or fails, when the connection is gone.
    pub(crate) closed: watch::Receiver<()>,
}

impl ConnectionHandle {
    pub(crate) fn order(&self, order: ConnectionStep) {
        // If the connection is gone, there is nothing left to end.
        _ = self.orders.send(Box::new(order));
    }

    /// A call has ended, so that no PING waits for it any more.
    pub(crate) fn closed(&self, stream: h2::StreamId) {
        if let Some(unstored) = &self.unstored {
            unstored.closed(stream.as_u32());
        }
    }
}

/// TLS as AgentCenter does it: it asks for a client certificate and verifies it.
///
/// `dir` holds `ca.crt`, `server.crt` and `server.key`. Without `client_auth`, as on the HTTP port, it does not read
/// `ca.crt`.
pub(crate) fn tls(
    dir: &Path,
    client_auth: bool,
    versions: &[&'static SupportedProtocolVersion],
    alpn: Vec<Vec<u8>>,
) -> io::Result<TlsAcceptor> {
    let key_path = dir.join("server.key");
    let key = PrivateKeyDer::from_pem_file(&key_path)
        .map_err(|error| io::Error::other(format!("{}: {error}", key_path.display())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(io::Error::other)?;
    let config = if client_auth {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(dir, "ca.crt")? {
            roots.add(certificate).map_err(io::Error::other)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        config.with_client_cert_verifier(verifier.map_err(io::Error::other)?)
    } else {
        config.with_no_client_auth()
    };
    let mut config = config.with_single_cert(certificates(dir, "server.crt")?, key).map_err(io::Error::other)?;
    config.alpn_protocols = alpn;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(dir: &Path, name: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let path = dir.join(name);
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
    read.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

/// Returns the certificate that the server shows.
pub(super) fn certificate(dir: &Path) -> io::Result<Vec<u8>> {
    let first = certificates(dir, "server.crt")?.into_iter().next();
    Ok(first.ok_or_else(|| io::Error::other("server.crt holds no certificate"))?.to_vec())
}

/// Accepts agents until the center ends.
pub(crate) async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                shared.change(|state| state.totals.connections += 1);
                tokio::spawn(serve(tcp, peer, tls.clone(), Arc::clone(&shared)));
            }
            Err(error) => {
                // The process has most likely run out of file descriptors. That passes when others close theirs.
                shared.note(format!("accepting a connection: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(tcp: TcpStream, peer: SocketAddr, tls: TlsAcceptor, shared: Arc<Shared>) {
    // A connection that is gone already has none, and needs none.
    let local = tcp.local_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |local| local.ip());
    let aside = Aside::default();
    let unstored = shared.options.pings_wait.then(Unstored::default);
    let window = shared.window();
    let watch = |io| PingWatch::new(io, aside.clone(), unstored.clone());
    // What the handshake needs is given back when it is over. Otherwise each connection would keep it to its end.
    let handshake = Box::pin(handshake(tcp, tls, window, watch));
    let handshaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    let connection = match handshaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(connection) => connection,
        Err(error) => {
            shared.note(format!("handshake with {peer}: {error}"));
            shared.change(|state| state.totals.failed_handshakes += 1);
            return;
        }
    };
    let (orders, receiver) = mpsc::unbounded_channel();
    let (_alive, closed) = watch::channel(());
    let handle = ConnectionHandle { peer, local, window, unstored, orders, closed };
    match drive(connection, receiver, handle, &aside, &shared).await {
        Ok(()) => shared.note(format!("connection from {peer} closed")),
        Err(error) => {
            if error.get_io().is_some_and(|error| error.to_string() == TOO_MANY_PINGS) {
                shared.change(|state| state.totals.too_many_pings += 1);
            }
            shared.note(format!("connection from {peer} broke: {error}"));
        }
    }
}

type Connection = h2::server::Connection<PingWatch<TlsStream<TcpStream>>, Bytes>;

async fn handshake(
    tcp: TcpStream,
    tls: TlsAcceptor,
    window: u32,
    watch: impl FnOnce(TlsStream<TcpStream>) -> PingWatch<TlsStream<TcpStream>>,
) -> io::Result<Box<Connection>> {
    tcp.set_nodelay(true)?;
    let tls = tls.accept(tcp).await?;
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("h2 was not agreed on by ALPN"));
    }
    h2::server::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(window.saturating_mul(STREAM_WINDOWS))
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .handshake(watch(tls))
        .await
        .map(Box::new)
        .map_err(io::Error::other)
}

/// Runs the connection to its end and serves each call in a task of its own.
async fn drive(
    mut connection: Box<Connection>,
    mut orders: mpsc::UnboundedReceiver<Box<ConnectionStep>>,
    handle: ConnectionHandle,
    aside: &Aside,
    shared: &Arc<Shared>,
) -> Result<(), h2::Error> {
    let mut frozen = false;
    loop {
        tokio::select! {
            call = connection.accept(), if !frozen => match call {
                Some(call) => {
                    let (request, respond) = call?;
                    route(request, respond, handle.clone(), shared);
                }
                None => return Ok(()),
            },
            Some(order) = orders.recv() => match *order {
                ConnectionStep::GoAway(Reason::NO_ERROR) => connection.graceful_shutdown(),
                ConnectionStep::GoAway(reason) => connection.abrupt_shutdown(reason),
                ConnectionStep::Frame(frame) => aside.push(&frame),
                ConnectionStep::Close => return Ok(()),
                ConnectionStep::Freeze => frozen = true,
                ConnectionStep::Thaw => frozen = false,
            },
        }
    }
}

fn route(
    request: Request<h2::RecvStream>,
    respond: SendResponse<Bytes>,
    handle: ConnectionHandle,
    shared: &Arc<Shared>,
) {
    let content_type = request.headers().get("content-type").map_or(&b""[..], |value| value.as_bytes());
    if request.method() != Method::POST || !content_type.starts_with(b"application/grpc") {
        let outgoing = Outgoing::new(respond, Encoding::Identity);
        handle.closed(request.body().stream_id());
        // The client may have gone already, here and below.
        _ = outgoing.finish_as_proxy(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        return;
    }
    match request.uri().path() {
        "/grpc.Transfer/Transfer" => {
            tokio::spawn(transfer::serve(Arc::clone(shared), handle, request, respond));
        }
        "/grpc.FileExt/Upload" => {
            tokio::spawn(upload::serve(Arc::clone(shared), handle, request, respond));
        }
        path => {
            handle.closed(request.body().stream_id());
            let status = Status::new(Status::UNIMPLEMENTED, format!("unknown method {path}"));
            _ = Outgoing::new(respond, Encoding::Identity).finish(&status);
        }
    }
}
