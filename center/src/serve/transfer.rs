//! `/grpc.Transfer/Transfer`: records up, commands down, by AgentCenter's rules.
//!
//! Both directions of a stream run concurrently, and the first that ends ends the stream. As with AgentCenter, the
//! agent then sees status OK. It sees an error only for the connection limit and for an id that is taken.

use super::connection::{ConnectionHandle, revoked};
use super::connections::Orders;
use super::grpc::{Encoding, MessageReader, Outgoing, ReadError, Status};
use super::interpose::{ConnectionStep, Step};
use super::shared::Shared;
use crate::authority::Peer;
use crate::clock::now_ms;
use crate::clock::now_s;
use crate::fleet::Progress;
use crate::http::Thing;
use crate::message::{AGENT_HEARTBEAT, Batch, PackagedData, fields_up_to};
use crate::store::site::SiteError;
use bytes::Bytes;
use elklet_proto::grpc::Command;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, StatusCode};
use prost::Message;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{SemaphorePermit, mpsc, oneshot};

/// How long a stream waits before it offers a message again that the sink has refused.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A stream has so long for its first message. Until then it has no name, and takes the place of one that has.
const FIRST_WITHIN: Duration = Duration::from_secs(60);

/// The longest id of an agent in bytes. Elkeid's agents have UUIDs.
const MAX_AGENT_ID: usize = 256;

/// Fields that a message may have, which are its records and a few more. An empty record has two bytes on the wire and 48 in memory, so that
/// a bound on bytes alone would let 10 MiB become 250. Elklet's batches have at most 8,704 records, those of Elkeid's agent fewer than
/// 10,000.
const MAX_FIELDS: usize = 65_536;

/// A handle on an open stream, for other tasks.
#[derive(Debug)]
pub(crate) struct Live {
    /// A channel has room for 32 values from the beginning, which is why they are boxed.
    pub(crate) orders: mpsc::UnboundedSender<Box<Order>>,
    /// Its number, which no other has.
    pub(crate) stream: u64,
    /// The connection that it is on.
    pub(crate) connection: Orders,
    /// This server's address, as the agent reached it.
    pub(crate) local: IpAddr,
    /// True if the agent's certificate is for this agent alone.
    pub(crate) is_bound: bool,
}

/// What other tasks can order an open stream to do.
#[derive(Debug)]
pub(crate) enum Order {
    Command(Command, oneshot::Sender<Result<(), CommandError>>),
    Step(Step),
}

/// Why a command was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandError {
    /// No agent of this id is connected.
    NotConnected(String),
    /// The stream ended or broke first.
    StreamEnded,
    /// The task could not be written to the database, so that its answer would be lost after a restart. It was not sent.
    NotKept(SiteError),
    /// The agent's flow-control window stayed closed for too long. The command may still be sent later.
    NotTaken(Duration),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected(id) => write!(f, "agent {id} is not connected"),
            Self::StreamEnded => write!(f, "the stream ended before the command was sent"),
            Self::NotKept(error) => write!(f, "the task was not sent, because it could not be kept: {error}"),
            Self::NotTaken(within) => write!(f, "the agent did not take the command within {} s", within.as_secs()),
        }
    }
}

impl std::error::Error for CommandError {}

/// How a stream ends on this side.
#[derive(Debug)]
enum Ending {
    Status(Status),
    HttpStatus(StatusCode),
    Reset(Reason),
}

/// Serves one stream to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    connection: ConnectionHandle,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let stream = shared.change(|state| {
        state.totals.streams += 1;
        state.totals.streams
    });
    let encoding = Encoding::of(request.headers());
    let mut outgoing = Outgoing::new(respond, *encoding.as_ref().unwrap_or(&Encoding::Identity));
    let id = request.body().stream_id();
    let storing = AtomicBool::new(false);
    let transfer = Transfer { shared: &shared, connection: &connection, stream, storing: &storing };
    let mut closed = connection.closed.clone();
    let ending = tokio::select! {
        ending = transfer.run(request.into_body(), encoding, &mut outgoing) => ending,
        // When an agent is gone its id is free at once, even while the center takes no messages.
        _ = closed.changed() => Ending::Status(Status::ok()),
    };
    let ending = match ending {
        // OK would tell an agent that has said all that it had to say that all of it is stored.
        Ending::Status(Status { code: 0, .. }) if storing.load(Ordering::Relaxed) => {
            Ending::Status(Status::new(Status::UNAVAILABLE, "the stream ended before its last message was stored"))
        }
        other => other,
    };
    connection.closed(id);
    shared.note(format!("stream {stream} from {} ended: {ending:?}", connection.peer));
    let sent = match ending {
        Ending::Status(status) => outgoing.finish(&status),
        Ending::HttpStatus(status) => outgoing.finish_as_proxy(status),
        Ending::Reset(reason) => {
            outgoing.reset(reason);
            Ok(())
        }
    };
    if let Err(error) = sent {
        log::debug!("stream {stream}: nobody hears how it ended: {error}");
    }
}

struct Transfer<'a> {
    shared: &'a Shared,
    connection: &'a ConnectionHandle,
    stream: u64,
    /// True while a message is on its way into the sink.
    storing: &'a AtomicBool,
}

impl Transfer<'_> {
    async fn run(&self, body: RecvStream, encoding: Result<Encoding, Status>, outgoing: &mut Outgoing) -> Ending {
        if let Some(step) = self.shared.interpose.opened()
            && let Some(ending) = Box::pin(self.take_step(step, outgoing)).await
        {
            return ending;
        }
        let encoding = match encoding {
            Ok(encoding) => encoding,
            Err(status) => return Ending::Status(status),
        };
        let Ok(_token) = self.shared.tokens.try_acquire() else {
            self.shared.change(|state| state.totals.out_of_tokens += 1);
            return Ending::Status(Status::new(Status::UNKNOWN, "out of max connection limit"));
        };
        let mut incoming = Incoming {
            shared: self.shared,
            stream: self.stream,
            reader: MessageReader::new(
                body,
                encoding,
                self.shared.options.message_limit,
                self.connection.window,
                self.connection.unstored.clone(),
                Arc::clone(&self.shared.assembling),
            ),
            connection: self.connection,
            storing: self.storing,
            taken: 0,
        };
        incoming.reader.set_begins_within(Some(FIRST_WITHIN));
        let Some(first) = incoming.next().await else { return Ending::Status(Status::ok()) };
        incoming.reader.set_begins_within(None);
        let agent_id = first.batch.data.agent_id.clone();
        if agent_id.len() > MAX_AGENT_ID {
            incoming.refuse(&format_args!("an agent's id of {} bytes, the limit is {MAX_AGENT_ID}", agent_id.len()));
            return Ending::Status(Status::ok());
        }
        if let Peer::Agent(bound) = &self.connection.who
            && bound.agent_id != agent_id
        {
            self.shared.change(|state| state.totals.id_mismatches += 1);
            // It may have anything in it. A line break would make another line of the log.
            let said =
                format!("the certificate is for agent {}, and not for {}", bound.agent_id, agent_id.escape_debug());
            self.shared.note(format!("stream {} from {}: {said}", self.stream, self.connection.peer));
            return Ending::Status(Status::new(Status::PERMISSION_DENIED, said));
        }
        let Some((registration, mut orders)) = Registration::new(self, agent_id) else {
            self.shared.change(|state| state.totals.conflicts += 1);
            return Ending::Status(Status::new(Status::UNKNOWN, "agentID conflict"));
        };
        // Whoever revokes a certificate ends the streams that are registered, and this one was not when it began.
        if let Peer::Agent(bound) = &self.connection.who
            && self.shared.enrolment.is_revoked(bound)
        {
            return Ending::Status(revoked(self.connection, &bound.agent_id, self.shared));
        }
        tokio::select! {
            () = incoming.take_all(first, &registration) => Ending::Status(Status::ok()),
            ending = self.send_all(&mut orders, outgoing, &registration) => ending,
        }
    }

    /// Carries out orders until one of them ends the stream.
    async fn send_all(
        &self,
        orders: &mut mpsc::UnboundedReceiver<Box<Order>>,
        outgoing: &mut Outgoing,
        registration: &Registration<'_>,
    ) -> Ending {
        while let Some(order) = orders.recv().await {
            match *order {
                Order::Command(command, done) => {
                    let message = outgoing.encoding().message(&command.encode_to_vec());
                    if let Err(error) = outgoing.send(message, usize::MAX).await {
                        self.shared.note(format!("stream {}: sending a command: {error}", self.stream));
                        _ = done.send(Err(CommandError::StreamEnded));
                        break;
                    }
                    registration.sent(command.task.map(|task| task.token));
                    // Whoever asked may be gone. The command is sent all the same.
                    _ = done.send(Ok(()));
                }
                Order::Step(step) => {
                    if let Some(ending) = Box::pin(self.take_step(step, outgoing)).await {
                        return ending;
                    }
                }
            }
        }
        Ending::Status(Status::ok())
    }

    /// Does what somebody else wants the stream to do. Returns how it ends, if that ends it.
    async fn take_step(&self, step: Step, outgoing: &mut Outgoing) -> Option<Ending> {
        let (bytes, frame_len) = match step {
            Step::End(status) => return Some(Ending::Status(status)),
            Step::EndAsProxy(status) => return Some(Ending::HttpStatus(status)),
            Step::Reset(reason) => return Some(Ending::Reset(reason)),
            Step::Connection(step) => {
                self.connection.order(step);
                return None;
            }
            Step::Message { body, frame_len } => (outgoing.encoding().message(&body), frame_len),
            Step::Bytes { bytes, frame_len } => (bytes, frame_len),
        };
        outgoing.send(bytes, frame_len.max(1)).await.err().map(|_| Ending::Status(Status::ok()))
    }
}

/// A message that was read, and the room in memory that it has.
struct Taken<'a> {
    batch: Arc<Batch>,
    _room: SemaphorePermit<'a>,
}

/// The messages of a stream, one after another.
struct Incoming<'a> {
    shared: &'a Shared,
    stream: u64,
    reader: MessageReader,
    connection: &'a ConnectionHandle,
    storing: &'a AtomicBool,
    taken: u64,
}

impl<'a> Incoming<'a> {
    /// Returns the next message, or `None` at the end. It has noted the reason for the end by then.
    async fn next(&mut self) -> Option<Taken<'a>> {
        self.shared.interpose.before_message().await;
        match self.read().await {
            Ok(taken) => {
                let taken = taken?;
                if self.shared.interpose.dies_of(&taken.batch) {
                    self.shared.note(format!("stream {}: a message that the connection ends over", self.stream));
                    self.connection.order(ConnectionStep::Close);
                    return None;
                }
                Some(taken)
            }
            Err(error) => {
                self.refuse(&error);
                None
            }
        }
    }

    async fn read(&mut self) -> Result<Option<Taken<'a>>, Unreadable> {
        let Some(message) = self.reader.next().await.map_err(Unreadable::Read)? else { return Ok(None) };
        // How long a message becomes is known once it is decompressed. Few may be at that point without having room.
        let decoding = self.shared.decoding.acquire().await.expect("nobody closes it");
        let wire_len = message.wire_len;
        let body = message.body(self.shared.options.message_limit).map_err(Unreadable::Read)?;
        let decoded_len = body.len();
        let room = self.shared.room_for(decoded_len).await;
        drop(decoding);
        if fields_up_to(MAX_FIELDS + 1, &body) > MAX_FIELDS {
            return Err(Unreadable::TooManyFields(decoded_len));
        }
        let mut data = PackagedData::decode(body).map_err(|error| Unreadable::NoPackagedData(decoded_len, error))?;
        data.bound();
        let index = self.taken;
        self.taken += 1;
        let (stream, svr_time) = (self.stream, now_s());
        let batch = Arc::new(Batch { stream, index, svr_time, wire_len, decoded_len, data });
        Ok(Some(Taken { batch, _room: room }))
    }

    fn refuse(&self, error: &dyn fmt::Display) {
        self.shared.note(format!("stream {}: {error}", self.stream));
        self.shared.change(|state| state.totals.bad_messages += 1);
    }

    /// Takes messages until there are no more.
    async fn take_all(&mut self, first: Taken<'a>, registration: &Registration<'_>) {
        let mut configured = false;
        let mut next = Some(first);
        while let Some(Taken { batch, _room: room }) = next {
            let heartbeat = batch.data.records.iter().any(|record| record.data_type == AGENT_HEARTBEAT);
            self.storing.store(true, Ordering::Relaxed);
            self.store(&registration.agent_id, &batch).await;
            self.storing.store(false, Ordering::Relaxed);
            drop((batch, room));
            if heartbeat && !configured {
                configured = true;
                registration.push_configs();
            }
            if let Err(error) = self.reader.stored() {
                return self.refuse(&error);
            }
            next = self.next().await;
        }
    }

    /// Offers a message to the sink until it takes it.
    async fn store(&self, agent_id: &str, batch: &Arc<Batch>) {
        let numbered = loop {
            match self.shared.sink.take(agent_id, batch).await {
                Ok(numbered) => break numbered,
                Err(refused) => self.shared.sink_refused(refused),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        };
        self.shared.sink_took(agent_id, batch, numbered);
    }
}

/// Why a stream ends over a message.
enum Unreadable {
    Read(ReadError),
    TooManyFields(usize),
    NoPackagedData(usize, prost::DecodeError),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::TooManyFields(len) => {
                write!(f, "a message of {len} bytes has more fields than the limit of {MAX_FIELDS}")
            }
            Self::NoPackagedData(len, error) => write!(f, "a message of {len} bytes is no PackagedData: {error}"),
        }
    }
}

/// An agent's id, which is taken for as long as this lives.
struct Registration<'a> {
    shared: &'a Shared,
    agent_id: String,
}

impl<'a> Registration<'a> {
    /// Takes the id. Returns `None` if it is taken already.
    fn new(transfer: &Transfer<'a>, agent_id: String) -> Option<(Self, mpsc::UnboundedReceiver<Box<Order>>)> {
        let (orders, receiver) = mpsc::unbounded_channel();
        let is_bound = matches!(transfer.connection.who, Peer::Agent(_));
        transfer.shared.change(|state| {
            if state.live.contains_key(&agent_id) {
                return None;
            }
            let Transfer { connection, stream, .. } = *transfer;
            let live =
                Live { orders, stream, connection: connection.orders.clone(), local: connection.local, is_bound };
            state.live.insert(agent_id.clone(), live);
            state.connect(&agent_id, transfer.connection.peer, now_s());
            Some(())
        })?;
        transfer.shared.watched.changed(Thing::Host, &agent_id);
        Some((Self { shared: transfer.shared, agent_id }, receiver))
    }

    fn push_configs(&self) {
        self.shared.send_configs(&self.agent_id);
    }

    /// A command is on the wire. It may be a task.
    fn sent(&self, token: Option<String>) {
        self.shared.change(|state| state.count_command(&self.agent_id));
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            let (agent_id, at_ms) = (self.agent_id.clone(), now_ms());
            self.shared.progress(Progress { token, agent_id, error: None, at_ms });
        }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let unsent = self.shared.change(|state| {
            state.live.remove(&self.agent_id);
            state.disconnect(&self.agent_id, now_s())
        });
        unsent.iter().for_each(|token| self.shared.watched.changed(Thing::Task, token));
        self.shared.watched.changed(Thing::Host, &self.agent_id);
        self.shared.handle_gone(&self.agent_id);
    }
}
