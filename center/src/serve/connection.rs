//! One agent's connection: TLS, HTTP/2, and the calls on it.

use super::connections::{Orders, Whose};
use super::grpc::{Encoding, Outgoing, Status};
use super::held::Unstored;
use super::interpose::ConnectionStep;
use super::ping::{Aside, PingWatch, TOO_MANY_PINGS};
use super::shared::Shared;
use super::shown::{Certificates, Shown};
use super::{Options, enroll, transfer, upload};
use crate::authority::Peer;
use crate::http::limit::site_of;
use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{Method, Request, StatusCode};
use rustix::net::sockopt;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The longest that TLS and the HTTP/2 preface together may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// The most calls at a time on a connection. An agent has one Transfer stream, and a few uploads.
pub(super) const MAX_STREAMS: u32 = 16;

/// The same for a client without a certificate, which makes one.
const MAX_ANONYMOUS_STREAMS: u32 = 2;

/// How long such a client may stay.
const ANONYMOUS_TIMEOUT: Duration = Duration::from_secs(30);

/// The window of its streams.
const ANONYMOUS_WINDOW: u32 = 16 << 10;

/// A connection on which nothing has come for so long is asked whether it is still there, and asked again so often.
const IDLE: Duration = Duration::from_secs(60);
const ASKED_AGAIN: Duration = Duration::from_secs(15);

/// A connection of which the other end has acknowledged nothing for so long is dead. A host that has lost its power or its network says
/// nothing, and its id would be taken until somebody sends it a command.
const UNACKNOWLEDGED: Duration = Duration::from_secs(90);

/// The longest list of a request's headers. An agent's has five short ones.
const MAX_HEADERS: u32 = 16 << 10;

/// Windows of a connection's streams that its own window holds. grpc-go gives a connection's credit back at once, and h2 only together
/// with the stream's. A stream that waits must not block the others.
const STREAM_WINDOWS: u32 = 64;

/// A handle on the connection, for its streams.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionHandle {
    pub(crate) peer: SocketAddr,
    /// Whom the client's certificate is for.
    pub(crate) who: Peer,
    /// This server's address, as the agent reached it.
    pub(crate) local: IpAddr,
    /// Bytes of the connection's streams' windows.
    pub(crate) window: u32,
    /// What PINGs wait for, if they wait.
    pub(crate) unstored: Option<Unstored>,
    pub(super) orders: Orders,
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

/// Which clients TLS lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clients {
    /// Those with a certificate of an authority in `ca.crt`, as AgentCenter does it.
    Certified,
    /// The same, and those without a certificate, who have to be told apart later. A certificate that is shown has to be good.
    CertifiedAndAnonymous,
}

/// TLS for agents, with the certificate that the server shows. Whose certificates they may have can change while the server runs.
#[derive(Debug)]
pub(super) struct AgentTls {
    shown: Arc<Shown>,
    clients: Clients,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: Vec<Vec<u8>>,
    current: RwLock<Arc<ServerConfig>>,
}

impl AgentTls {
    /// TLS for agents with certificates of the authorities that `shown` has read.
    ///
    /// # Errors
    /// One of them is no authority, or there is none.
    pub(super) fn new(shown: Arc<Shown>, clients: Clients, options: &Options) -> io::Result<Self> {
        let (versions, alpn) = (options.tls_versions, options.alpn.clone());
        let authorities = shown.current().authorities;
        let current = RwLock::new(agents(clients, &authorities, &shown, versions, alpn.clone())?);
        Ok(Self { shown, clients, versions, alpn, current })
    }

    /// Lets agents in that have certificates of these authorities, and no others, from their next connection on.
    ///
    /// # Errors
    /// As [`AgentTls::new`]. Those of before stay then.
    pub(super) fn set_authorities(&self, authorities: &[CertificateDer<'static>]) -> io::Result<()> {
        // Sessions of before could be resumed without a look at the authority. A new configuration has none.
        let new = agents(self.clients, authorities, &self.shown, self.versions, self.alpn.clone())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn agents(
    clients: Clients,
    authorities: &[CertificateDer<'static>],
    shown: &Arc<Shown>,
    versions: &[&'static SupportedProtocolVersion],
    alpn: Vec<Vec<u8>>,
) -> io::Result<Arc<ServerConfig>> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| io::Error::other(format!("ca.crt: {error}")))?;
    }
    let provider = Arc::new(default_provider());
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    if clients == Clients::CertifiedAndAnonymous {
        verifier = verifier.allow_unauthenticated();
    }
    let verifier = verifier.build().map_err(|error| io::Error::other(format!("ca.crt: {error}")))?;
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let config = config.map_err(io::Error::other)?.with_client_cert_verifier(verifier);
    let mut config = config.with_cert_resolver(Arc::clone(shown) as _);
    config.alpn_protocols = alpn;
    Ok(Arc::new(config))
}

/// TLS for HTTP, with the certificate that the server shows and none of the client.
///
/// # Errors
/// The versions of TLS are none that the library has.
pub(super) fn http_tls(shown: Arc<Shown>) -> io::Result<TlsAcceptor> {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_protocol_versions(rustls::DEFAULT_VERSIONS).map_err(io::Error::other)?;
    let mut config = config.with_no_client_auth().with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Accepts agents until the center ends.
pub(super) async fn accept(listener: TcpListener, certificates: Arc<Certificates>, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                shared.change(|state| state.totals.connections += 1);
                tokio::spawn(serve(tcp, peer, certificates.agents.acceptor(), Arc::clone(&shared)));
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
    let (who, connection) = match handshaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(handshaken) => handshaken,
        Err(error) => {
            shared.note(format!("handshake with {peer}: {error}"));
            shared.change(|state| state.totals.failed_handshakes += 1);
            return;
        }
    };
    let (orders, receiver) = mpsc::unbounded_channel();
    let (_alive, closed) = watch::channel(());
    let is_anonymous = who == Peer::Anonymous;
    let window = if is_anonymous { ANONYMOUS_WINDOW } else { window };
    let whose = match &who {
        Peer::Agent(bound) => Whose::Agent(bound.agent_id.clone()),
        Peer::Anonymous => Whose::Address(site_of(peer.ip())),
        Peer::Anyone => Whose::Shared(site_of(peer.ip())),
    };
    let Some(_entered) = shared.connections.enter(whose, orders.clone()) else {
        let how = if is_anonymous { "without a certificate" } else { "with a certificate that others have as well" };
        return shared.note(format!("connection from {peer} {how}: there are too many from there"));
    };
    let handle = ConnectionHandle { peer, who, local, window, unstored, orders, closed };
    let driven = drive(connection, receiver, handle, &aside, &shared);
    let driven = if is_anonymous {
        let Ok(_room) = shared.enrolment.anonymous.try_acquire() else {
            return shared.note(format!("connection from {peer} without a certificate: there are too many of these"));
        };
        tokio::time::timeout(ANONYMOUS_TIMEOUT, driven).await.unwrap_or(Ok(()))
    } else {
        driven.await
    };
    match driven {
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
) -> io::Result<(Peer, Box<Connection>)> {
    tcp.set_nodelay(true)?;
    notice_its_death(&tcp)?;
    let tls = tls.accept(tcp).await?;
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("h2 was not agreed on by ALPN"));
    }
    let who = Peer::of(tls.get_ref().1.peer_certificates().and_then(<[_]>::first));
    let (window, streams) = match who {
        Peer::Anonymous => (ANONYMOUS_WINDOW, MAX_ANONYMOUS_STREAMS),
        Peer::Anyone | Peer::Agent(_) => (window, MAX_STREAMS),
    };
    let connection = h2::server::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(window.saturating_mul(STREAM_WINDOWS))
        .max_concurrent_streams(streams)
        .max_header_list_size(MAX_HEADERS)
        .handshake(watch(tls))
        .await
        .map_err(io::Error::other)?;
    Ok((who, Box::new(connection)))
}

/// Has the system break the connection once the other end does not answer any more.
fn notice_its_death(tcp: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, IDLE)?;
    sockopt::set_tcp_keepintvl(tcp, ASKED_AGAIN)?;
    let unacknowledged_ms = u32::try_from(UNACKNOWLEDGED.as_millis()).expect("minutes");
    Ok(sockopt::set_tcp_user_timeout(tcp, unacknowledged_ms)?)
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
    if let Err(status) = admit(&handle, request.uri().path(), shared) {
        handle.closed(request.body().stream_id());
        _ = Outgoing::new(respond, Encoding::Identity).finish(&status);
        return;
    }
    match request.uri().path() {
        enroll::PATH if shared.enrolment.authority().is_ok() => {
            tokio::spawn(enroll::serve(Arc::clone(shared), handle, request, respond));
        }
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

/// Decides whether a client may make a call at all.
fn admit(handle: &ConnectionHandle, path: &str, shared: &Shared) -> Result<(), Status> {
    match &handle.who {
        Peer::Anonymous if path != enroll::PATH => {
            shared.change(|state| state.totals.anonymous_calls += 1);
            shared.note(format!("call from {} without a certificate: {path:.64}", handle.peer));
            Err(Status::new(Status::UNAUTHENTICATED, "this call takes a client certificate"))
        }
        Peer::Agent(bound) if shared.enrolment.is_revoked(bound) => Err(revoked(handle, &bound.agent_id, shared)),
        Peer::Anonymous | Peer::Anyone | Peer::Agent(_) => Ok(()),
    }
}

/// Notes a call with a certificate that is revoked, and returns how it ends.
pub(super) fn revoked(handle: &ConnectionHandle, agent_id: &str, shared: &Shared) -> Status {
    shared.change(|state| state.totals.revoked_calls += 1);
    shared.note(format!("call from {}: the certificate of agent {agent_id} is revoked", handle.peer));
    Status::new(Status::UNAUTHENTICATED, "the certificate of this agent is revoked")
}
