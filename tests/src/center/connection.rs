//! One agent's connection: TLS, HTTP/2, and the calls on it.

use super::grpc::{Encoding, Outgoing, Status};
use super::ping::{Aside, PingWatch, TOO_MANY_PINGS};
use super::shared::Shared;
use super::{transfer, upload};
use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{Method, Request, StatusCode};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The longest that TLS and the HTTP/2 preface together may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Window of a stream, grpc-go's default: the bytes that an agent may send while the center takes nothing.
const STREAM_WINDOW: u32 = 65_535;

/// Window of a connection. grpc-go gives a connection's credit back at once, and h2 only together with the stream's.
/// The window is therefore wide, so that a stream that waits does not block the others.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// What a stream can tell the connection below it to do.
#[derive(Debug, Clone)]
pub(crate) enum ConnectionOrder {
    GoAway(Reason),
    Frame(Bytes),
    Close,
    Freeze,
    Thaw,
}

/// A handle on the connection, for its streams.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionHandle {
    pub(crate) peer: SocketAddr,
    orders: mpsc::UnboundedSender<ConnectionOrder>,
    /// Changes, or fails, when the connection is gone.
    pub(crate) closed: watch::Receiver<()>,
}

impl ConnectionHandle {
    pub(crate) fn order(&self, order: ConnectionOrder) {
        // If the connection is gone, there is nothing left to end.
        _ = self.orders.send(order);
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
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let certificates = |name: &str| -> io::Result<Vec<CertificateDer<'static>>> {
        let path = dir.join(name);
        let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
        read.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    };
    let key_path = dir.join("server.key");
    let key = PrivateKeyDer::from_pem_file(&key_path)
        .map_err(|error| io::Error::other(format!("{}: {error}", key_path.display())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(io::Error::other)?;
    let config = if client_auth {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca.crt")? {
            roots.add(certificate).map_err(io::Error::other)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        config.with_client_cert_verifier(verifier.map_err(io::Error::other)?)
    } else {
        config.with_no_client_auth()
    };
    let mut config = config.with_single_cert(certificates("server.crt")?, key).map_err(io::Error::other)?;
    config.alpn_protocols = alpn;
    Ok(TlsAcceptor::from(Arc::new(config)))
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
    let aside = Aside::default();
    let handshaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(tcp, tls, aside.clone())).await;
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
    let handle = ConnectionHandle { peer, orders, closed };
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

async fn handshake(tcp: TcpStream, tls: TlsAcceptor, aside: Aside) -> io::Result<Connection> {
    tcp.set_nodelay(true)?;
    let tls = tls.accept(tcp).await?;
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("h2 was not agreed on by ALPN"));
    }
    h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(PingWatch::new(tls, aside))
        .await
        .map_err(io::Error::other)
}

/// Runs the connection to its end and serves each call in a task of its own.
async fn drive(
    mut connection: Connection,
    mut orders: mpsc::UnboundedReceiver<ConnectionOrder>,
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
            Some(order) = orders.recv() => match order {
                ConnectionOrder::GoAway(Reason::NO_ERROR) => connection.graceful_shutdown(),
                ConnectionOrder::GoAway(reason) => connection.abrupt_shutdown(reason),
                ConnectionOrder::Frame(frame) => aside.push(&frame),
                ConnectionOrder::Close => return Ok(()),
                ConnectionOrder::Freeze => frozen = true,
                ConnectionOrder::Thaw => frozen = false,
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
        // The client may have gone already, here and below.
        _ = outgoing.finish_as_proxy(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        return;
    }
    match request.uri().path() {
        "/grpc.Transfer/Transfer" => {
            tokio::spawn(transfer::serve(Arc::clone(shared), handle, request, respond));
        }
        "/grpc.FileExt/Upload" => {
            tokio::spawn(upload::serve(Arc::clone(shared), request, respond));
        }
        path => {
            let status = Status::new(Status::UNIMPLEMENTED, format!("unknown method {path}"));
            _ = Outgoing::new(respond, Encoding::Identity).finish(&status);
        }
    }
}
