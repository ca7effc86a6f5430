//! Task 1050: uploads files to the server, one at a time, each on a connection of its own, which never disturbs the records.
//!
//! These are the reference's rules. `buf_size` bytes leave a second, at most 500 KiB. A file that would take longer than ten
//! minutes is refused. The token names the file at the server, which reports success itself. A failure is the task's answer.

mod error;
mod file;

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use elklet_core::command::Upload;
use elklet_core::limits::{UPLOAD_BYTES_PER_SECOND, UPLOAD_PIECE_BYTES, UPLOAD_SECONDS};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::error::Failure;
pub(crate) use self::error::UploadError;
use self::file::{Refusal, UploadFile};
use crate::config::{Address, UploadRules};
use crate::logging::{self, Event, Kind};
use crate::net::{Connector, UploadCall};
use crate::sys::atomic::AtomicU64;
use crate::sys::blocking::blocking;

/// Time for connecting, a slow server and the last answer, beyond the file's own time.
const GRACE: Duration = Duration::from_secs(60);

/// The running upload. The agent decides when the next one begins.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    running: Option<JoinHandle<Result<(), UploadError>>>,
    sent_bytes: Arc<AtomicU64>,
}

impl Uploads {
    /// Starts an upload. There has to be none under way.
    pub(crate) fn start(&mut self, upload: Upload, connector: &Connector, address: &Address, rules: UploadRules) {
        let job = Job {
            connector: connector.clone(),
            address: address.clone(),
            rules,
            sent_bytes: Arc::clone(&self.sent_bytes),
        };
        self.running = Some(tokio::spawn(async move {
            let seconds = Duration::from_secs(UPLOAD_SECONDS) + GRACE;
            let path = upload.path.clone();
            match timeout(seconds, job.run(upload)).await {
                Ok(result) => result.map_err(|why| UploadError::File { path, why }),
                Err(_) => Err(UploadError::Late(seconds)),
            }
        }));
    }

    /// Waits until the running upload has ended. Returns what went wrong, if something did.
    pub(crate) async fn ended(&mut self) -> Result<(), UploadError> {
        let Some(running) = &mut self.running else { return pending().await };
        let result = running.await.unwrap_or_else(|error| Err(UploadError::GivenUp(error)));
        self.running = None;
        result
    }

    /// Gives up the running upload.
    pub(crate) fn abort(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    /// Bytes of messages that were sent since the start, gRPC prefixes included.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }
}

/// What one upload needs.
struct Job {
    connector: Connector,
    address: Address,
    rules: UploadRules,
    sent_bytes: Arc<AtomicU64>,
}

impl Job {
    async fn run(self, Upload { token, path, buf_size }: Upload) -> Result<(), Failure> {
        // The reference checks the size against `buf_size` but sends no faster than this, so that a large file could
        // not arrive in time.
        let rate = buf_size.min(UPLOAD_BYTES_PER_SECOND);
        let (rules, file) = (self.rules, PathBuf::from(&path));
        let opened = blocking(move || UploadFile::open(&file, &rules, rate * UPLOAD_SECONDS)).await;
        let mut source = opened.map_err(Failure::NoThread)??;
        // Audit before anything leaves, whatever the outcome.
        let audit = |result: &str| logging::audit(&Event { token: &token, ..Event::new(Kind::Upload, &path, result) });
        audit("begins");
        let mut call = UploadCall::open(&self.connector, &self.address).await?;
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
                let (read, rest) = read.map_err(Failure::NoThread)?;
                source = rest;
                let piece = read.map_err(Refusal::Io)?;
                // Send an empty file as one empty piece, because the token has to arrive.
                if piece.is_empty() && !is_first {
                    break 'file;
                }
                is_first = false;
                budget -= piece.len() as u64;
                total += piece.len() as u64;
                let sent = call.send(&token, piece).await?;
                self.sent_bytes.fetch_add(sent, Ordering::Relaxed);
            }
        }
        call.finish().await?;
        log::info!("uploaded {path:?}, {total} bytes (token {token:?})");
        audit(&format!("done, {total} bytes"));
        Ok(())
    }
}
