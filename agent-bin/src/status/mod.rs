//! What a running agent says of itself on its own host: a Unix socket in the work directory that answers `elklet status`,
//! curl and Prometheus.
//!
//! Everything that is shown comes from one [`Snapshot`], which the agent's loop takes when somebody asks. It is shown as text
//! for people (`text`), as JSON (the fields' own names, see docs/operations.md), or as metrics (`metrics`).

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

/// One thing that is counted, since the agent's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    /// Its name in heartbeats and in JSON; in the metrics it is `elklet_NAME_total`.
    pub(crate) name: &'static str,
    /// What it counts.
    pub(crate) help: &'static str,
    /// How many there were.
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
    /// `None` where records are not kept on disk.
    pub(crate) spool: Option<Spool>,
    pub(crate) certificates: Certificates,
    pub(crate) logs: Logs,
    #[serde(serialize_with = "as_map")]
    pub(crate) counters: Vec<Count>,
    pub(crate) plugins: Vec<Plugin<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Identity<'a> {
    pub(crate) id: &'a str,
    pub(crate) version: &'static str,
    pub(crate) pid: u32,
    pub(crate) workdir: &'a str,
    pub(crate) uptime_seconds: u64,
    /// `running`, or `abnormal` when `state_detail` is not empty; as in the heartbeat.
    pub(crate) state: &'static str,
    /// What went wrong since the last configuration came.
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
    /// How long there has been a stream, or none.
    pub(crate) for_seconds: u64,
    /// Where the stream goes, or what was tried last; empty before the first attempt.
    pub(crate) address: &'a str,
    pub(crate) net_mode: &'static str,
    /// Until the next attempt, while the agent waits for it.
    pub(crate) next_attempt_ms: Option<u64>,
    pub(crate) last_error: Option<LastError<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct LastError<'a> {
    pub(crate) text: &'a str,
    pub(crate) seconds_ago: u64,
}

/// Rates per second over the time that is named.
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

/// The buffers that fill, of both lanes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Buffer {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
    pub(crate) capacity_records: usize,
    pub(crate) capacity_bytes: usize,
    /// The most that has left at once.
    pub(crate) high_water_records: usize,
    pub(crate) high_water_bytes: usize,
}

/// What was sent, or is about to be, and is not known to have arrived.
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
pub(crate) struct Spool {
    pub(crate) files: usize,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) capacity_bytes: u64,
}

/// Until when the certificates are good for.
#[derive(Debug, Serialize)]
pub(crate) struct Certificates {
    /// `None` where the agent has none, or its end cannot be read.
    pub(crate) client: Option<Certificate>,
    /// The authority's that lasts longest.
    pub(crate) authority: Option<Certificate>,
}

/// The end of a certificate.
#[derive(Debug, Serialize)]
pub(crate) struct Certificate {
    /// As RFC 3339 has it.
    pub(crate) expires: String,
    /// Whole days; negative once it has expired.
    pub(crate) days_left: i64,
}

impl Certificate {
    pub(crate) fn new(until: i64, days_left: i64) -> Self {
        Self { expires: clock::date(until), days_left }
    }
}

/// Whether the agent's log and audit are written.
#[derive(Debug, Serialize)]
pub(crate) struct Logs {
    /// Why no line of the log is written at present.
    pub(crate) error: Option<String>,
    /// Why no event is audited at present.
    pub(crate) audit_error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Plugin<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    /// See `elklet_core::dispatch::PluginState::phase`.
    pub(crate) state: &'static str,
    pub(crate) restarts: u64,
    /// Until it is tried again, while it waits for that.
    pub(crate) retry_ms: Option<u64>,
    /// What there is of it while it has a process.
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
    /// Its limits, and how they are kept.
    pub(crate) limits: Vec<String>,
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

fn as_map<S: Serializer>(counts: &[Count], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|count| (count.name, count.value)))
}
