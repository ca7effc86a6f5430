//! Syslog: messages of RFC 5424 in the framing of RFC 5425, by TLS or by TCP.
//!
//! Syslog has no answers. A batch counts as taken once it was written and the connection has lived for [`SETTLE`] since. The system breaks
//! a connection whose receiver's own system has acknowledged nothing for [`UNACKNOWLEDGED_MS`], which is less. What a receiver had
//! in its buffers when it was killed is therefore sent again, unless it was killed later than that.

mod message;

pub(super) use message::Form;

use super::connect::{Connector, Stream};
use super::sender::{Outcome, Records, Sending};
use super::settings::SyslogOutput;
use crate::serve::lock;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a connection has to live after a batch was written.
const SETTLE: Duration = Duration::from_secs(4);
/// How long what was sent may be without an acknowledgement of TCP.
const UNACKNOWLEDGED_MS: u32 = 3_000;
/// How long a receiver may take over a batch.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends batches over a connection.
#[derive(Debug)]
pub(super) struct SyslogSender {
    connector: Connector,
    connection: Option<Connection>,
}

/// A connection that lives, or lived a moment ago.
#[derive(Debug)]
struct Connection {
    jobs: mpsc::UnboundedSender<Job>,
    /// Why it has ended.
    error: Arc<Mutex<String>>,
}

#[derive(Debug)]
struct Job {
    records: Records,
    taken: oneshot::Sender<()>,
}

impl SyslogSender {
    pub(super) fn new(settings: &SyslogOutput) -> io::Result<Self> {
        let connector = Connector::new(&settings.host, settings.port, settings.tls.as_ref())?;
        Ok(Self { connector: connector.unacknowledged(UNACKNOWLEDGED_MS), connection: None })
    }

    pub(super) fn send(&mut self, records: Records) -> Sending {
        let connection = self.connection.take().filter(|connection| !connection.jobs.is_closed());
        let connection = self.connection.insert(connection.unwrap_or_else(|| Connection::open(self.connector.clone())));
        let (taken, answer) = oneshot::channel();
        // One that ends just now answers nothing, which counts as a failure.
        _ = connection.jobs.send(Job { records, taken });
        let error = Arc::clone(&connection.error);
        Box::pin(async move {
            match answer.await {
                Ok(()) => Outcome::taken(),
                Err(_) => Outcome::again(lock(&error).clone()),
            }
        })
    }
}

impl Connection {
    /// Connects on a task of its own, which ends with the first failure, or with the sender.
    fn open(connector: Connector) -> Self {
        // The delivery bounds how much is in flight.
        let (jobs, mut waiting) = mpsc::unbounded_channel();
        let error = Arc::new(Mutex::new("the connection ended".to_owned()));
        let told = Arc::clone(&error);
        tokio::spawn(async move {
            if let Err(error) = carry(&connector, &mut waiting).await {
                *lock(&told) = format!("syslog to {connector}: {error}");
            }
            // What waits hears of it only now.
            drop(waiting);
        });
        Self { jobs, error }
    }
}

/// Writes what is given to it, until nobody gives any more.
async fn carry(connector: &Connector, jobs: &mut mpsc::UnboundedReceiver<Job>) -> io::Result<()> {
    let (mut reader, mut writer) = split(connector.connect().await?);
    let mut settling = VecDeque::new();
    let ended = async {
        loop {
            let next = settling.front().map(|(at, _): &(Instant, oneshot::Sender<()>)| *at);
            tokio::select! {
                job = jobs.recv() => {
                    let Some(Job { records, taken }) = job else { return Ok(()) };
                    write(&mut writer, &mut reader, &records).await?;
                    settling.push_back((Instant::now() + SETTLE, taken));
                }
                ended = end_of(&mut reader) => return Err(ended),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    if let Some((_, taken)) = settling.pop_front() {
                        // The center may be ending.
                        _ = taken.send(());
                    }
                }
            }
        }
    };
    let ended: io::Result<()> = ended.await;
    ended
}

async fn write(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    reader: &mut ReadHalf<Box<dyn Stream>>,
    records: &Records,
) -> io::Result<()> {
    let mut all = Vec::with_capacity(records.iter().map(|item| item.bytes).sum());
    records.iter().for_each(|item| all.extend_from_slice(&item.body.text));
    let written = async {
        writer.write_all(&all).await?;
        writer.flush().await
    };
    tokio::select! {
        written = timeout(WRITE_TIMEOUT, written) => match written {
            Ok(written) => written,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the receiver takes nothing")),
        },
        ended = end_of(reader) => Err(ended),
    }
}

/// Waits for the end of the connection. What a receiver says means nothing.
async fn end_of(reader: &mut ReadHalf<Box<dyn Stream>>) -> io::Error {
    let mut buffer = [0; 512];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => return io::Error::new(io::ErrorKind::UnexpectedEof, "the receiver closed the connection"),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}
