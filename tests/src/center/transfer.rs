//! `/grpc.Transfer/Transfer`: records up, commands down, by AgentCenter's rules.
//!
//! Both directions of a stream run concurrently, and the first that ends ends the stream. As with AgentCenter, the
//! agent then sees status OK. It sees an error only for the connection limit and for an id that is taken.

use super::connection::{ConnectionHandle, ConnectionOrder};
use super::fault::{Fault, Pace};
use super::grpc::{Encoding, MessageReader, Outgoing, Status};
use super::records::{AGENT_HEARTBEAT, Batch, PackagedData};
use super::shared::{Shared, unix_seconds};
use bytes::Bytes;
use elklet_proto::grpc::Command;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, StatusCode};
use prost::Message;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// A handle on an open stream, for other tasks.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) orders: mpsc::UnboundedSender<Order>,
}

/// What other tasks can order an open stream to do.
#[derive(Debug)]
pub(crate) enum Order {
    Command(Command, oneshot::Sender<Result<(), CommandError>>),
    Fault(Fault),
}

/// Why a command was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandError {
    /// No agent of this id is connected.
    NotConnected(String),
    /// The stream ended or broke first.
    StreamEnded,
    /// The agent's flow-control window stayed closed for too long. The command may still be sent later.
    NotTaken(Duration),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected(id) => write!(f, "agent {id} is not connected"),
            Self::StreamEnded => write!(f, "the stream ended before the command was sent"),
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
    let transfer = Transfer { shared: &shared, connection: &connection, stream };
    let mut closed = connection.closed.clone();
    let ending = tokio::select! {
        ending = transfer.run(request.into_body(), encoding, &mut outgoing) => ending,
        // When an agent is gone its id is free at once, even while the center takes no messages.
        _ = closed.changed() => Ending::Status(Status::ok()),
    };
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
}

impl Transfer<'_> {
    async fn run(&self, body: RecvStream, encoding: Result<Encoding, Status>, outgoing: &mut Outgoing) -> Ending {
        if let Some(fault) = self.shared.next_fault()
            && let Some(ending) = self.misbehave(fault, outgoing).await
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
            reader: MessageReader::new(body, encoding, self.shared.options.message_limit),
            pace: self.shared.pace.subscribe(),
            connection: self.connection,
            taken: 0,
        };
        let Some(first) = incoming.next().await else { return Ending::Status(Status::ok()) };
        let Some((registration, mut orders)) = Registration::new(self, first.data.agent_id.clone()) else {
            self.shared.change(|state| state.totals.conflicts += 1);
            return Ending::Status(Status::new(Status::UNKNOWN, "agentID conflict"));
        };
        tokio::select! {
            () = incoming.take_all(first, &registration) => Ending::Status(Status::ok()),
            ending = self.send_all(&mut orders, outgoing, &registration) => ending,
        }
    }

    /// Carries out orders until one of them ends the stream.
    async fn send_all(
        &self,
        orders: &mut mpsc::UnboundedReceiver<Order>,
        outgoing: &mut Outgoing,
        registration: &Registration<'_>,
    ) -> Ending {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Command(command, done) => {
                    let message = outgoing.encoding().message(&command.encode_to_vec());
                    if let Err(error) = outgoing.send(message, usize::MAX).await {
                        self.shared.note(format!("stream {}: sending a command: {error}", self.stream));
                        _ = done.send(Err(CommandError::StreamEnded));
                        break;
                    }
                    registration.count_command();
                    // Whoever asked may be gone. The command is sent all the same.
                    _ = done.send(Ok(()));
                }
                Order::Fault(fault) => {
                    if let Some(ending) = self.misbehave(fault, outgoing).await {
                        return ending;
                    }
                }
            }
        }
        Ending::Status(Status::ok())
    }

    /// Carries out a fault. Returns how the stream ends, if the fault ends it.
    async fn misbehave(&self, fault: Fault, outgoing: &mut Outgoing) -> Option<Ending> {
        self.shared.note(format!("stream {}: {}", self.stream, name(&fault)));
        let fault = match fault.into_bytes(outgoing.encoding()) {
            Ok((bytes, frame_len)) => {
                return outgoing.send(bytes, frame_len).await.err().map(|_| Ending::Status(Status::ok()));
            }
            Err(fault) => fault,
        };
        let order = match fault {
            Fault::Status(status) => return Some(Ending::Status(status)),
            Fault::HttpStatus(status) => return Some(Ending::HttpStatus(status)),
            Fault::Reset(reason) => return Some(Ending::Reset(reason)),
            Fault::GoAway(reason) => ConnectionOrder::GoAway(reason),
            Fault::Frame(frame) => ConnectionOrder::Frame(frame),
            Fault::Close => ConnectionOrder::Close,
            Fault::Freeze => ConnectionOrder::Freeze,
            Fault::Thaw => ConnectionOrder::Thaw,
            Fault::Bytes { .. } | Fault::Dribble(_) => unreachable!("those are bytes"),
        };
        self.connection.order(order);
        None
    }
}

/// Returns a fault's text for the log, without the bytes that it may carry.
fn name(fault: &Fault) -> String {
    match fault {
        Fault::Bytes { bytes, frame_len } => format!("fault: {} bytes in frames of at most {frame_len}", bytes.len()),
        Fault::Dribble(_) => "fault: a command byte by byte".to_owned(),
        other => format!("fault: {other:?}"),
    }
}

/// The messages of a stream, at the center's pace.
struct Incoming<'a> {
    shared: &'a Shared,
    stream: u64,
    reader: MessageReader,
    pace: watch::Receiver<Pace>,
    connection: &'a ConnectionHandle,
    taken: u64,
}

impl Incoming<'_> {
    /// Returns the next message, or `None` at the end. It has noted the reason for the end by then.
    async fn next(&mut self) -> Option<Arc<Batch>> {
        keep_pace(&mut self.pace).await;
        let message = match self.reader.next().await {
            Ok(message) => message?,
            Err(error) => {
                self.refuse(&error);
                return None;
            }
        };
        let (wire_len, decoded_len) = (message.wire_len, message.body.len());
        match PackagedData::decode(message.body) {
            Ok(data) => {
                let index = self.taken;
                self.taken += 1;
                let (stream, svr_time) = (self.stream, unix_seconds());
                let batch = Batch { stream, index, svr_time, wire_len, decoded_len, data };
                if self.shared.dies_of(&batch) {
                    self.shared.note(format!("stream {stream}: a message that the connection ends over"));
                    self.connection.order(ConnectionOrder::Close);
                    return None;
                }
                Some(Arc::new(batch))
            }
            Err(error) => {
                self.refuse(&format_args!("a message of {decoded_len} bytes is no PackagedData: {error}"));
                None
            }
        }
    }

    fn refuse(&self, error: &dyn fmt::Display) {
        self.shared.note(format!("stream {}: {error}", self.stream));
        self.shared.change(|state| state.totals.bad_messages += 1);
    }

    /// Takes messages until there are no more.
    async fn take_all(&mut self, first: Arc<Batch>, registration: &Registration<'_>) {
        let mut configured = false;
        let mut next = Some(first);
        while let Some(batch) = next {
            let heartbeat = batch.data.records.iter().any(|record| record.data_type == AGENT_HEARTBEAT);
            self.shared.take(&registration.agent_id, batch).await;
            if heartbeat && !configured {
                configured = true;
                registration.push_configs();
            }
            next = self.next().await;
        }
    }
}

/// Waits as long as the pace asks before the next message.
async fn keep_pace(pace: &mut watch::Receiver<Pace>) {
    loop {
        let now = *pace.borrow_and_update();
        match now {
            Pace::Full => return,
            Pace::Delay(delay) => tokio::select! {
                () = tokio::time::sleep(delay) => return,
                _ = pace.changed() => {}
            },
            Pace::Stopped => {
                if pace.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// An agent's id, which is taken for as long as this lives.
struct Registration<'a> {
    shared: &'a Shared,
    agent_id: String,
    orders: mpsc::UnboundedSender<Order>,
}

impl<'a> Registration<'a> {
    /// Takes the id. Returns `None` if it is taken already.
    fn new(transfer: &Transfer<'a>, agent_id: String) -> Option<(Self, mpsc::UnboundedReceiver<Order>)> {
        let (orders, receiver) = mpsc::unbounded_channel();
        transfer.shared.change(|state| {
            if state.live.contains_key(&agent_id) {
                return None;
            }
            state.live.insert(agent_id.clone(), Live { orders: orders.clone() });
            let agent = state.agents.entry(agent_id.clone()).or_default();
            agent.connected = true;
            agent.streams += 1;
            agent.peer = Some(transfer.connection.peer);
            agent.create_at = unix_seconds();
            agent.heartbeat = None;
            agent.plugins.clear();
            Some(())
        })?;
        Some((Self { shared: transfer.shared, agent_id, orders }, receiver))
    }

    fn push_configs(&self) {
        if let Some(configs) = self.shared.configs_for(&self.agent_id) {
            let (done, _) = oneshot::channel();
            _ = self.orders.send(Order::Command(Command { configs, ..Default::default() }, done));
        }
    }

    fn count_command(&self) {
        self.shared.change(|state| state.agents.entry(self.agent_id.clone()).or_default().commands += 1);
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.live.remove(&self.agent_id);
            if let Some(agent) = state.agents.get_mut(&self.agent_id) {
                agent.connected = false;
            }
        });
    }
}
