//! What a running agent shows on its own host: a Unix socket in the work directory that answers `elklet status`, curl
//! and Prometheus.
//!
//! All of it comes from one [`Snapshot`], which the agent's loop takes when somebody asks. It is rendered as text for
//! people (`text`), as JSON (with the fields' own names, see docs/operations.md), or as metrics (`metrics`).

mod client;
mod meter;
mod metrics;
mod server;
mod socket;
mod text;

use std::path::PathBuf;

use elklet_core::time::Millis;
use serde::{Serialize, Serializer};

use crate::clock;
use crate::host::{Footprint, Traffic};

pub(crate) use self::client::{ask, ask_itself};
pub(crate) use self::meter::Meter;
pub(crate) use self::server::{Inquiry, Page, Server};

/// A counter since the agent's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    /// Its name in heartbeats and in JSON. The metric is `elklet_NAME_total`.
    pub(crate) name: &'static str,
    /// What it counts.
    pub(crate) help: &'static str,
    /// Its value.
    pub(crate) value: u64,
}

/// The agent at one moment.
#[derive(Debug, Serialize)]
pub(crate) struct Snapshot<'a> {
    pub(crate) agent: Identity<'a>,
    pub(crate) connection: Connection<'a>,
    pub(crate) rates: Rates,
    pub(crate) buffer: Buffer,
    pub(crate) ledger: Ledger,
    /// `None` without a spool.
    pub(crate) spool: Option<SpoolFill>,
    pub(crate) certificates: Certificates,
    pub(crate) logs: Logs,
    #[serde(serialize_with = "as_map")]
    pub(crate) counters: Vec<Count>,
    pub(crate) plugins: Vec<PluginView<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Identity<'a> {
    pub(crate) id: &'a str,
    pub(crate) version: &'static str,
    pub(crate) pid: u32,
    pub(crate) workdir: &'a str,
    /// What its own threads may not do, and how that is enforced.
    pub(crate) limits: &'a str,
    pub(crate) uptime_seconds: u64,
    /// `running`, or `abnormal` when `state_detail` is not empty, as in the heartbeat.
    pub(crate) state: &'static str,
    /// What has gone wrong since the last configuration came.
    pub(crate) state_detail: Vec<&'a str>,
    pub(crate) footprint: Footprint,
    /// The data centre's name, and the region, that were set for the host; only heartbeats tell them.
    #[serde(skip)]
    pub(crate) idc: &'a str,
    #[serde(skip)]
    pub(crate) region: &'a str,
    /// What went over the connections; heartbeats tell its rates.
    #[serde(skip)]
    pub(crate) traffic: Traffic,
}

#[derive(Debug, Serialize)]
pub(crate) struct Connection<'a> {
    pub(crate) connected: bool,
    /// See `elklet_core::link::session::Session::phase`.
    pub(crate) state: &'static str,
    /// For how long there has been a stream, or none.
    pub(crate) for_seconds: u64,
    /// The server of the stream, or the one that was tried last. It is empty before the first attempt.
    pub(crate) address: &'a str,
    pub(crate) net_mode: &'static str,
    /// Milliseconds until the next attempt, while the agent waits for it.
    pub(crate) next_attempt_ms: Option<u64>,
    pub(crate) last_error: Option<LastError<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct LastError<'a> {
    pub(crate) text: &'a str,
    pub(crate) seconds_ago: u64,
    /// True if the server is there and refuses this agent.
    pub(crate) refused: bool,
}

/// Rates per second over `over_ms`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Rates {
    pub(crate) over_ms: u64,
    /// Records that plugins have sent.
    pub(crate) records_per_second: f64,
    /// Bytes of these.
    pub(crate) bytes_per_second: f64,
    /// Bytes that were handed to the stream, compressed.
    pub(crate) sent_bytes_per_second: f64,
}

/// The filling buffers of both lanes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Buffer {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
    pub(crate) capacity_records: usize,
    pub(crate) capacity_bytes: usize,
    /// The most that left at once.
    pub(crate) high_water_records: usize,
    pub(crate) high_water_bytes: usize,
}

/// Batches that were sent, or are about to be, and are not known to have arrived.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Ledger {
    pub(crate) batches: usize,
    pub(crate) bytes: usize,
    pub(crate) capacity_bytes: usize,
    /// Records that the server is not known to have taken, wherever they are.
    pub(crate) unconfirmed_records: u64,
}

/// Records on the disk.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct SpoolFill {
    pub(crate) files: usize,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) capacity_bytes: u64,
}

/// Expiry of the certificates.
#[derive(Debug, Serialize)]
pub(crate) struct Certificates {
    /// `None` if the agent has none, or its expiry cannot be read.
    pub(crate) client: Option<Certificate>,
    /// The certificate of the authority that expires last.
    pub(crate) authority: Option<Certificate>,
}

/// Expiry of a certificate.
#[derive(Debug, Serialize)]
pub(crate) struct Certificate {
    /// In the format of RFC 3339.
    pub(crate) expires: String,
    /// Whole days, negative after expiry.
    pub(crate) days_left: i64,
}

impl Certificate {
    pub(crate) fn new(until: i64, days_left: i64) -> Self {
        Self { expires: clock::date(until), days_left }
    }
}

/// Errors of the agent's log and audit.
#[derive(Debug, Serialize)]
pub(crate) struct Logs {
    /// Why no line of the log can be written now.
    pub(crate) error: Option<String>,
    /// Why no event can be audited now.
    pub(crate) audit_error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PluginView<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    /// See `elklet_core::dispatch::PluginState::phase`.
    pub(crate) state: &'static str,
    pub(crate) restarts: u64,
    /// Milliseconds until the next attempt, while it waits for that.
    pub(crate) retry_ms: Option<u64>,
    /// Its process, if it has one.
    pub(crate) process: Option<Process>,
}

/// A plugin's process.
#[derive(Debug, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: u64,
    pub(crate) footprint: Footprint,
    pub(crate) records_per_second: f64,
    pub(crate) bytes_per_second: f64,
    /// Its limits, and how they are enforced.
    pub(crate) limits: Vec<String>,
    /// Calls that its sandbox has refused, and how often.
    #[serde(serialize_with = "refused_as_map")]
    pub(crate) refused: Vec<(&'static str, u64)>,
    #[serde(serialize_with = "as_map")]
    pub(crate) counters: Vec<Count>,
    /// The index of the first of them that heartbeats tell under the same name; the ones before are in `traffic`.
    #[serde(skip)]
    pub(crate) troubles: usize,
    /// When the process was started.
    #[serde(skip)]
    pub(crate) began: Millis,
    /// Where its files are.
    #[serde(skip)]
    pub(crate) directory: PathBuf,
    /// What went over its pipes; heartbeats tell its rates.
    #[serde(skip)]
    pub(crate) traffic: Traffic,
}

fn refused_as_map<S: Serializer>(refused: &[(&'static str, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(refused.iter().copied())
}

fn as_map<S: Serializer>(counts: &[Count], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|count| (count.name, count.value)))
}
