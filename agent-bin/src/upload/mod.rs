//! Task 1050: files for the server, one at a time, each on a connection of its own, which never disturbs the records'.
//!
//! The reference's rules: `buf_size` bytes a second, at most 500 KiB; a file that would take longer than ten minutes is
//! refused; the token names the file at the server, which reports success itself. Whatever fails is the task's answer.

mod source;

use std::collections::VecDeque;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use elklet_core::limits::{MAX_UPLOADS_WAITING, UPLOAD_BYTES_PER_SECOND, UPLOAD_PIECE_BYTES, UPLOAD_SECONDS};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::source::Source;
use crate::blocking::blocking;
use crate::config::{Address, Upload};
use crate::logging::{self, Event, Kind};
use crate::net::{Connector, UploadCall};

/// What connecting, a slow server and the last answer may take beyond the file's own time.
const GRACE: Duration = Duration::from_secs(60);

/// A file that the server wants.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) token: String,
    pub(crate) path: String,
    /// Bytes a second.
    pub(crate) buf_size: u64,
}

/// The upload that is under way, and those that wait.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    running: Option<Running>,
    waiting: VecDeque<Order>,
    sent_bytes: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Running {
    token: String,
    task: JoinHandle<Result<(), String>>,
}

impl Uploads {
    /// Queues an upload, or gives its token back with the reason why not.
    pub(crate) fn push(&mut self, order: Order) -> Result<(), (String, String)> {
        if self.waiting.len() == MAX_UPLOADS_WAITING {
            let why = format!("{MAX_UPLOADS_WAITING} uploads wait already: {}", order.path);
            return Err((order.token, why));
        }
        self.waiting.push_back(order);
        Ok(())
    }

    /// Whether one could be started now.
    pub(crate) fn wants_start(&self) -> bool {
        self.running.is_none() && !self.waiting.is_empty()
    }

    /// Starts the oldest that waits.
    pub(crate) fn start(&mut self, connector: &Connector, address: &Address, rules: &Upload) {
        let Some(order) = self.waiting.pop_front() else { return };
        let token = order.token.clone();
        let job = Job {
            connector: connector.clone(),
            address: address.clone(),
            rules: rules.clone(),
            sent_bytes: Arc::clone(&self.sent_bytes),
        };
        let task = tokio::spawn(async move {
            let seconds = Duration::from_secs(UPLOAD_SECONDS) + GRACE;
            match timeout(seconds, job.run(order)).await {
                Ok(result) => result,
                Err(_) => Err(format!("the upload did not end within {} s", seconds.as_secs())),
            }
        });
        self.running = Some(Running { token, task });
    }

    /// Waits until the running upload has ended; its token, and what went wrong.
    pub(crate) async fn ended(&mut self) -> (String, Result<(), String>) {
        let Some(running) = &mut self.running else { return pending().await };
        let result = (&mut running.task).await.unwrap_or_else(|error| Err(error.to_string()));
        let token = self.running.take().map(|running| running.token).unwrap_or_default();
        (token, result)
    }

    /// Gives up; the tokens of all that will not be uploaded any more.
    pub(crate) fn give_up(&mut self) -> Vec<String> {
        let running = self.running.take().map(|running| {
            running.task.abort();
            running.token
        });
        running.into_iter().chain(self.waiting.drain(..).map(|order| order.token)).collect()
    }

    /// Bytes of messages that went out since the start, gRPC prefixes included.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }
}

/// What one upload is carried out with.
struct Job {
    connector: Connector,
    address: Address,
    rules: Upload,
    sent_bytes: Arc<AtomicU64>,
}

impl Job {
    async fn run(self, Order { token, path, buf_size }: Order) -> Result<(), String> {
        // The reference checks the size against `buf_size` and sends no more than this, so that such a file could not
        // arrive in time.
        let rate = buf_size.min(UPLOAD_BYTES_PER_SECOND);
        let (rules, file) = (self.rules, PathBuf::from(&path));
        let failed = |what: &dyn std::fmt::Display| format!("{path}: {what}");
        let opened = blocking(move || Source::open(&file, &rules, rate * UPLOAD_SECONDS)).await;
        let mut source = opened.map_err(|error| failed(&error))??;
        // Before anything leaves, and whatever comes of it.
        let audit = |result: &str| logging::audit(&Event { token: &token, ..Event::new(Kind::Upload, &path, result) });
        audit("begins");
        let mut call = UploadCall::open(&self.connector, &self.address).await.map_err(|end| failed(&end))?;
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut total = 0;
        let mut is_first = true;
        'file: loop {
            seconds.tick().await;
            let mut budget = rate;
            while budget > 0 {
                let max = budget.min(UPLOAD_PIECE_BYTES);
                let read = blocking(move || (source.read(max), source)).await;
                let (read, rest) = read.map_err(|error| failed(&error))?;
                source = rest;
                let piece = read.map_err(|error| failed(&error))?;
                // An empty file is one empty piece: the token has to arrive.
                if piece.is_empty() && !is_first {
                    break 'file;
                }
                is_first = false;
                budget -= piece.len() as u64;
                total += piece.len() as u64;
                let sent = call.send(&token, piece).await.map_err(|end| failed(&end))?;
                self.sent_bytes.fetch_add(sent, Ordering::Relaxed);
            }
        }
        call.finish().await.map_err(|end| failed(&end))?;
        log::info!("uploaded {path:?}, {total} bytes (token {token:?})");
        audit(&format!("done, {total} bytes"));
        Ok(())
    }
}
