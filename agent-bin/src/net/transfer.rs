//! The Transfer call: gRPC by hand over h2, from the TCP connection to the server's trailers.
//!
//! One task holds a connection and everything on it. It polls at once the HTTP/2 connection itself, a writer
//! that sends batches as far as flow control allows, a reader of commands, PINGs, and a request for the next certificate.

use std::convert::Infallible;
use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use elklet_core::limits::{MAX_COMMAND_BYTES, STREAM_AHEAD};
use elklet_core::link;
use elklet_core::link::grpc::{BadMessage, GrpcMessage, Status};
use elklet_core::link::session::Attempt;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::{DialError, Ends, dial};
use super::half_open::HalfOpen;
use super::incoming::Incoming;
use super::misbehaviour::CenterMisbehaved;
use super::observed::{Flow, Observed};
use super::tls::{self, Tls};
use super::{Event, newcomer, snappy, unary};
use crate::config::{Address, Proxies};
use crate::version;

/// Bytes of DATA that h2 may buffer beyond what the socket takes.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// Bytes that the server may send before the agent reads them. Commands are small and rare.
const RECEIVE_WINDOW_BYTES: u32 = 64 << 10;

/// Budget for small DATA frames before h2 takes them for an attack. In h2's unit a frame costs 256 less its bytes. A
/// burst of small commands is no attack; the receive window bounds it.
const DATA_FRAME_BUDGET: usize = 256 * RECEIVE_WINDOW_BYTES as usize;

/// How long a server may take over a certificate.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(30);

/// Connects to servers with the settings that all attempts share.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    pub(crate) tls: Tls,
    pub(crate) proxies: Proxies,
    /// Earlier connections that servers may still believe in.
    pub(crate) half_open: HalfOpen,
    pub(crate) events: mpsc::Sender<Event>,
}

impl Connector {
    /// Sets up TCP and TLS to a server that speaks HTTP/2.
    pub(super) async fn connect(&self, address: &Address) -> Result<TlsStream<TcpStream>, End> {
        let tcp = dial(address, &self.proxies, &self.half_open).await.map_err(End::Dial)?;
        // The receiver goes away only when the process ends.
        let _ = self.events.send(Event::Dialled).await;
        let tls = TlsConnector::from(Arc::clone(&self.tls.config));
        // A handshake that is given up leaves nothing behind; see [`Observed`].
        let reset =
            |tcp: &TcpStream, linger| sockopt::set_socket_linger(tcp, linger).map_err(|error| tcp_error(error.into()));
        reset(&tcp, Some(Duration::ZERO))?;
        let stream = match tls.connect(self.tls.name.clone(), tcp).into_fallible().await {
            Ok(stream) => stream,
            Err((error, tcp)) => {
                // Let the server read why.
                reset(&tcp, None)?;
                return Err(End::Tls(error));
            }
        };
        reset(stream.get_ref().0, None)?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(stream),
            _ => Err(End::NoHttp2),
        }
    }
}

fn tcp_error(error: io::Error) -> End {
    End::Dial(DialError::Tcp(error))
}

/// The agent's end of one attempt. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Transfer {
    task: JoinHandle<()>,
    go: Arc<Notify>,
    ping: Arc<Notify>,
    flow: Arc<Flow>,
    /// `None` after the half-close.
    batches: Option<mpsc::Sender<Bytes>>,
    renewals: mpsc::Sender<Vec<u8>>,
}

impl Transfer {
    /// Starts the attempt, which sets up TCP and TLS to `address` and then waits for [`Transfer::open`].
    pub(crate) fn start(connector: &Connector, attempt: Attempt, address: Address) -> Self {
        let (sender, batches) = mpsc::channel(STREAM_AHEAD);
        let (renewals, wanted) = mpsc::channel(1);
        let (go, ping, flow) = (Arc::<Notify>::default(), Arc::<Notify>::default(), Arc::<Flow>::default());
        let call = Call {
            attempt,
            connector: connector.clone(),
            go: Arc::clone(&go),
            ping: Arc::clone(&ping),
            flow: Arc::clone(&flow),
            batches,
            renewals: wanted,
        };
        let task = tokio::spawn(async move {
            let events = call.connector.events.clone();
            let end = call.run(&address).await.unwrap_or_else(|end| end);
            // The receiver goes away only when the process ends.
            let _ = events.send(Event::Ended(attempt, end)).await;
        });
        Self { task, go, ping, flow, batches: Some(sender), renewals }
    }

    /// Lets the attempt go on from TLS to HTTP/2 and the call.
    pub(crate) fn open(&self) {
        self.go.notify_one();
    }

    /// Hands over a batch, for which there is room while fewer than [`STREAM_AHEAD`] are not written. Returns false when the stream has
    /// ended.
    pub(crate) fn send(&self, message: Bytes) -> bool {
        self.batches.as_ref().is_some_and(|batches| batches.try_send(message).is_ok())
    }

    /// Flow-control credit that the server has returned since the stream began, in bytes.
    pub(crate) fn credit(&self) -> u64 {
        self.flow.returned()
    }

    /// Asks for an [`Event::Credit`] when the returned credit reaches this.
    pub(crate) fn want_credit(&self, credit: Option<u64>) {
        self.flow.want(credit);
    }

    /// Sends a PING.
    pub(crate) fn ping(&self) {
        self.ping.notify_one();
    }

    /// Asks for a certificate beside the stream, with an encoded request. The answer is an [`Event::Renewed`].
    pub(crate) fn renew(&self, request: Vec<u8>) {
        // If there is no room the one before is under way, and its answer comes.
        let _ = self.renewals.try_send(request);
    }

    /// Half-closes the stream once all batches are written.
    pub(crate) fn half_close(&mut self) {
        self.batches = None;
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The address could not be reached.
    Dial(DialError),
    /// Either side refused TLS.
    Tls(io::Error),
    /// The server does not speak HTTP/2.
    NoHttp2,
    /// HTTP/2 failed: a reset, a GOAWAY, a broken connection.
    Http2(h2::Error),
    /// The server answered the call with this HTTP status.
    Http(StatusCode),
    /// The server ended the call, perhaps before it had read what it was sent.
    Status(Status),
    /// The server read all that it was sent, to the agent's half-close, and ended the call with status OK.
    Completed,
    /// The server sent something that cannot be understood.
    Center(CenterMisbehaved),
    /// The server has done nothing for this long.
    NoAnswer(Duration),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(error) => error.fmt(f),
            Self::Tls(error) => write!(f, "no TLS session: {}", tls::reason(error)),
            Self::NoHttp2 => f.write_str("the server did not choose HTTP/2 (ALPN h2)"),
            // rustls would explain at length what a missing close_notify may mean.
            Self::Http2(error) if error.get_io().map(io::Error::kind) == Some(io::ErrorKind::UnexpectedEof) => {
                f.write_str("the connection broke: the server closed it in the middle of the stream")
            }
            Self::Http2(error) => write!(f, "the connection broke: {error}"),
            Self::Http(status) => write!(f, "the server answered with HTTP status {status}"),
            Self::Completed | Self::Status(Status { code: 0, .. }) => f.write_str("the server ended the stream"),
            Self::Status(status) => write!(f, "the server ended the stream with {status}"),
            Self::Center(what) => write!(f, "the server sent {what}"),
            Self::NoAnswer(time) => write!(f, "the server has done nothing for {} s", time.as_secs()),
        }
    }
}

impl From<h2::Error> for End {
    fn from(error: h2::Error) -> Self {
        // If HTTP/2 reads first, rustls reports the server's refusal of the agent's certificate through it.
        match error.get_io().map(io::Error::kind) {
            Some(io::ErrorKind::InvalidData) => Self::Tls(error.into_io().expect("it is an IO error")),
            _ => Self::Http2(error),
        }
    }
}

impl End {
    /// Returns true when the server is there and does not take this agent.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Status(status) if status.is_about_the_agent())
    }

    /// Returns true when the connection died unanswered. Nobody has told the server, which may believe in it for a long time.
    pub(crate) fn is_silence(&self) -> bool {
        let io = match self {
            Self::Http2(error) => error.get_io(),
            _ => None,
        };
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        // When its own patience ends, Linux reports a router's last complaint instead, if there was one.
        io.is_some_and(|error| matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable))
    }

    /// Sorts the end by what the agent decides by it.
    pub(crate) fn class(&self) -> link::End {
        match self {
            Self::Dial(_) => link::End::Unreachable,
            Self::Tls(_) | Self::NoHttp2 => link::End::Tls,
            Self::Center(_) => link::End::Protocol,
            Self::Http2(_) if self.is_silence() => link::End::Silent,
            Self::Http2(_) if self.is_too_many_pings() => link::End::TooManyPings,
            Self::Completed => link::End::Ok,
            Self::Status(status) if status.is_too_large() => link::End::TooLarge,
            Self::Status(status) if status.is_about_the_agent() => link::End::Refused,
            // AgentCenter gives no reason either when a message is too large for it.
            Self::Http2(_) | Self::Status(_) => link::End::Unexplained,
            Self::Http(_) | Self::NoAnswer(_) => link::End::Refused,
        }
    }

    /// Returns true when the server ended the connection because PINGs came too close.
    fn is_too_many_pings(&self) -> bool {
        matches!(self, Self::Http2(error) if error.is_go_away() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM))
    }
}

impl From<BadMessage> for End {
    fn from(message: BadMessage) -> Self {
        Self::Center(CenterMisbehaved::Message(message))
    }
}

/// The task's side of an attempt.
struct Call {
    attempt: Attempt,
    connector: Connector,
    go: Arc<Notify>,
    ping: Arc<Notify>,
    flow: Arc<Flow>,
    batches: mpsc::Receiver<Bytes>,
    renewals: mpsc::Receiver<Vec<u8>>,
}

impl Call {
    async fn run(mut self, address: &Address) -> Result<End, End> {
        let tls = self.connector.connect(address).await?;
        let ends = Ends::of(tls.get_ref().0).map_err(tcp_error)?;
        let flow = Arc::clone(&self.flow);
        let watched = Observed::new(tls, Arc::clone(&self.flow), self.connector.events.clone());
        self.tell(Event::Connected(self.attempt, ends)).await;
        self.go.notified().await;

        let (requests, mut connection) = client::Builder::new()
            .initial_window_size(RECEIVE_WINDOW_BYTES)
            .initial_connection_window_size(RECEIVE_WINDOW_BYTES)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .enable_push(false)
            .handshake::<_, Bytes>(watched)
            .await?;
        let mut ping_pong = connection.ping_pong().expect("it is taken once");
        let on_connection = self.converse(requests, &mut ping_pong);
        tokio::pin!(on_connection);
        let end = tokio::select! {
            biased;
            end = &mut on_connection => end,
            // A connection that closes has told its streams, which know more about why.
            closed = &mut connection => match closed {
                Err(error) => Err(error.into()),
                Ok(()) => {
                    // A PING without an answer learns of the end when the connection is dropped.
                    flow.close_in_order();
                    drop(connection);
                    on_connection.await
                }
            },
        };
        if !end.as_ref().unwrap_or_else(|end| end).is_silence() {
            flow.close_in_order();
        }
        end
    }

    async fn converse(&mut self, requests: SendRequest<Bytes>, ping_pong: &mut PingPong) -> Result<End, End> {
        let mut requests = requests.ready().await?;
        let (response, stream) = requests.send_request(request("/grpc.Transfer/Transfer"), false)?;
        self.tell(Event::Opened(self.attempt)).await;

        let Self { attempt, connector: Connector { events, .. }, ping, flow, batches, renewals, .. } = self;
        // Known once the writer is done: whether it has half-closed the stream.
        let mut is_half_closed = None;
        let end = {
            let writing = write_batches(stream, batches, flow, events, *attempt);
            let reading = read_commands(response, events);
            let pinging = answer_pings(ping_pong, ping, events, *attempt);
            // HTTP/2 closes a connection that has no stream and on which nobody can open one. The last question to the server comes
            // after the stream, so that `requests` stays here.
            let renewing = renew(requests.clone(), renewals, events, *attempt);
            tokio::pin!(writing, reading, pinging, renewing);
            loop {
                tokio::select! {
                    biased;
                    // The reader knows how the call ended. It ends soon after a write fails.
                    end = &mut reading => break end?,
                    result = &mut writing, if is_half_closed.is_none() => match result {
                        Ok(is_whole) => is_half_closed = Some(is_whole),
                        Err(error) => return Err(reading.await.unwrap_or_else(|end| end).more_telling_than(error)),
                    },
                    result = &mut pinging => result?,
                    never = &mut renewing => match never {},
                }
            }
        };
        match end {
            End::Status(Status { code: 0, .. })
                if is_half_closed == Some(true) && has_read_all(ping_pong, flow).await =>
            {
                Ok(End::Completed)
            }
            end => Ok(end),
        }
    }

    async fn tell(&self, event: Event) {
        let _ = self.connector.events.send(event).await;
    }
}

impl End {
    /// Returns the end of the two halves that says more.
    fn more_telling_than(self, writing: h2::Error) -> Self {
        match self {
            Self::Http2(_) => writing.into(),
            end => end,
        }
    }
}

/// The head of a call to this method.
pub(super) fn request(path: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("https://elkeid.com{path}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("grpc-encoding", "snappy")
        .header("grpc-accept-encoding", "snappy,identity")
        .header("user-agent", format!("elklet/{}", version()))
        .body(())
        .expect("the parts are constants, and a version is printable")
}

/// Writes batches as far as the server's windows allow, and half-closes after the last. A batch counts as written when
/// its last byte has left HTTP/2. Returns false when the stream was over before the half-close.
async fn write_batches(
    mut stream: SendStream<Bytes>,
    batches: &mut mpsc::Receiver<Bytes>,
    flow: &Flow,
    events: &mpsc::Sender<Event>,
    attempt: Attempt,
) -> Result<bool, h2::Error> {
    let mut end = 0;
    while let Some(message) = batches.recv().await {
        end += message.len() as u64;
        if !write_message(&mut stream, message).await? {
            return Ok(false);
        }
        flow.sent(end).await;
        let _ = events.send(Event::Written(attempt)).await;
    }
    stream.send_data(Bytes::new(), true)?;
    Ok(true)
}

/// Writes a message as the server's windows allow. Returns false when the stream is over; the reader then knows why.
pub(super) async fn write_message(stream: &mut SendStream<Bytes>, mut message: Bytes) -> Result<bool, h2::Error> {
    while !message.is_empty() {
        stream.reserve_capacity(message.len());
        while stream.capacity() == 0 {
            match poll_fn(|context| stream.poll_capacity(context)).await {
                Some(granted) => granted?,
                None => return Ok(false),
            };
        }
        let granted = stream.capacity();
        stream.send_data(message.split_to(granted.min(message.len())), false)?;
    }
    Ok(true)
}

/// Returns true when the server had read the half-close before it ended the call with trailers. A server that had not resets the
/// stream right behind its trailers (RFC 9113, section 8.1). What answers a PING from now on comes after that, as does the end of the
/// connection. The session bounds the wait.
async fn has_read_all(ping_pong: &mut PingPong, flow: &Flow) -> bool {
    if !flow.is_reset() {
        // An earlier PING may still wait for its answer.
        if ping_pong.send_ping(Ping::opaque()).is_err() {
            let _ = poll_fn(|context| ping_pong.poll_pong(context)).await;
            let _ = ping_pong.send_ping(Ping::opaque());
        }
        let _ = poll_fn(|context| ping_pong.poll_pong(context)).await;
    }
    !flow.is_reset()
}

async fn answer_pings(
    ping_pong: &mut PingPong,
    ping: &Notify,
    events: &mpsc::Sender<Event>,
    attempt: Attempt,
) -> Result<(), h2::Error> {
    loop {
        ping.notified().await;
        ping_pong.ping(Ping::opaque()).await?;
        let _ = events.send(Event::Pong(attempt)).await;
    }
}

/// Asks for certificates beside the stream, whenever that is wanted.
async fn renew(
    requests: SendRequest<Bytes>,
    renewals: &mut mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<Event>,
    attempt: Attempt,
) -> Infallible {
    while let Some(request) = renewals.recv().await {
        let call = unary::call(requests.clone(), newcomer::PATH, &request, newcomer::MAX_ANSWER_BYTES);
        let answer = timeout(RENEWAL_PATIENCE, call).await.unwrap_or(Err(End::NoAnswer(RENEWAL_PATIENCE)));
        let _ = events.send(Event::Renewed(attempt, answer.and_then(|answer| newcomer::certificate(&answer)))).await;
    }
    // The agent's end is gone, and with it soon the attempt.
    pending().await
}

/// Reads commands until the server ends the call. An error ends the stream as well.
async fn read_commands(response: ResponseFuture, events: &mpsc::Sender<Event>) -> Result<End, End> {
    let (head, mut body) = response.await?.into_parts();
    if head.status != StatusCode::OK {
        return Err(End::Http(head.status));
    }
    if let Some(status) = status(&head.headers) {
        return Ok(End::Status(status));
    }
    let encoding = head.headers.get("grpc-encoding").map(|value| value.as_bytes().to_vec());
    let mut incoming = Incoming::new(encoding);
    while let Some(data) = next_data(&mut body).await? {
        let mut rest = &data[..];
        while let Some((bytes, command)) = incoming.next(&mut rest)? {
            let _ = events.send(Event::Message { bytes, command }).await;
        }
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    if !incoming.is_between_messages() {
        return Err(End::Center(CenterMisbehaved::Part));
    }
    Ok(End::Status(status(&trailers).unwrap_or_else(|| Status::parse(None, Some(b"no grpc-status in the trailers")))))
}

pub(super) async fn next_data(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let Some(data) = body.data().await.transpose()? else { return Ok(None) };
    // The message reader bounds what is taken here, and it is small, so open the window at once.
    body.flow_control().release_capacity(data.len())?;
    Ok(Some(data))
}

/// Decompresses a message if need be.
pub(super) fn content(message: GrpcMessage, encoding: Option<&[u8]>) -> Result<Vec<u8>, CenterMisbehaved> {
    match (message.compressed, encoding) {
        (false, _) => Ok(message.bytes),
        (true, Some(b"snappy")) => snappy::decompress(&message.bytes, MAX_COMMAND_BYTES)
            .map_err(|error| CenterMisbehaved::Snappy(message.bytes.len(), error)),
        (true, other) => {
            let name = String::from_utf8_lossy(other.unwrap_or(b"none")).into_owned();
            Err(CenterMisbehaved::Compression(name))
        }
    }
}

/// The status in headers or trailers, if they have one.
pub(super) fn status(headers: &HeaderMap) -> Option<Status> {
    let bytes = |name| headers.get(name).map(http::HeaderValue::as_bytes);
    bytes("grpc-status").map(|code| Status::parse(Some(code), bytes("grpc-message")))
}
