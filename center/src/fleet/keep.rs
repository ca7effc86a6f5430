//! What is known of a host as the database keeps it, and what of the fleet is not written yet.

use super::heartbeat::{Heartbeat, Host};
use super::task::Progress;
use super::{Agent, Count, Event};
use crate::store::site;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// What is not in the database yet.
#[derive(Debug, Default)]
pub(crate) struct Unwritten {
    /// Hosts that came or went.
    pub(crate) hosts: BTreeSet<String>,
    /// Hosts that only sent a heartbeat. They are written less often.
    pub(crate) beats: BTreeSet<String>,
    /// Hosts that were forgotten.
    pub(crate) forgotten: BTreeSet<String>,
    /// Tasks that were sent, or will not be.
    pub(crate) tasks: Vec<Progress>,
}

/// A heartbeat as JSON.
#[derive(Serialize, Deserialize)]
struct Beat {
    fields: BTreeMap<String, String>,
    at: u64,
    #[serde(default)]
    host: Host,
}

impl From<&Heartbeat> for Beat {
    fn from(heartbeat: &Heartbeat) -> Self {
        Self { fields: heartbeat.fields(), at: heartbeat.at, host: heartbeat.host.clone() }
    }
}

impl From<Beat> for Heartbeat {
    fn from(beat: Beat) -> Self {
        Self::new(beat.fields, beat.at, beat.host)
    }
}

/// Everything of a host that has no column of its own, as JSON.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Details {
    peer: Option<SocketAddr>,
    streams: u64,
    messages: u64,
    wire_bytes: u64,
    decoded_bytes: u64,
    commands: u64,
    counts: Vec<(i32, u64, u64)>,
    heartbeat: Option<Beat>,
    former: Option<Host>,
    plugins: BTreeMap<String, Beat>,
    create_at: u64,
    history: Vec<Event>,
}

impl Agent {
    /// Returns the host as the database has it.
    pub(crate) fn row(&self, agent_id: &str) -> site::Host {
        let counts = self.counts.iter().map(|(kind, count)| (*kind, count.records, count.bytes)).collect();
        let details = Details {
            peer: self.peer,
            streams: self.streams,
            messages: self.messages,
            wire_bytes: self.wire_bytes,
            decoded_bytes: self.decoded_bytes,
            commands: self.commands,
            counts,
            heartbeat: self.heartbeat.as_ref().map(Beat::from),
            former: self.former.clone(),
            plugins: self.plugins.iter().map(|(name, beat)| (name.clone(), beat.into())).collect(),
            create_at: self.create_at,
            history: self.history.iter().copied().collect(),
        };
        site::Host {
            agent_id: agent_id.to_owned(),
            hostname: self.hostname.clone(),
            first_seen_ms: milliseconds(self.first_seen),
            last_seen_ms: milliseconds(self.last_seen),
            details: serde_json::to_string(&details).expect("texts and numbers become JSON"),
        }
    }

    /// Returns a host that is gone, as the database has it.
    pub(crate) fn from_row(row: &site::Host) -> Self {
        // Details that cannot be read are of another program. The host is known all the same.
        let details: Details = serde_json::from_str(&row.details).unwrap_or_default();
        let counts = details.counts.into_iter();
        Self {
            connected: false,
            hostname: row.hostname.clone(),
            first_seen: seconds(row.first_seen_ms),
            last_seen: seconds(row.last_seen_ms),
            peer: details.peer,
            streams: details.streams,
            messages: details.messages,
            wire_bytes: details.wire_bytes,
            decoded_bytes: details.decoded_bytes,
            commands: details.commands,
            counts: counts.map(|(kind, records, bytes)| (kind, Count { records, bytes })).collect(),
            heartbeat: details.heartbeat.map(Heartbeat::from),
            former: details.former,
            ahead_s: 0,
            plugins: details.plugins.into_iter().map(|(name, beat)| (name, beat.into())).collect(),
            create_at: details.create_at,
            history: details.history.into(),
        }
    }
}

fn milliseconds(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}

fn seconds(milliseconds: i64) -> u64 {
    u64::try_from(milliseconds / 1000).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_as_it_was_but_for_being_connected() {
        let fields = [("name".to_owned(), "driver".to_owned())];
        let host = Host { hostname: "gw1".into(), intranet_ipv4: vec!["10.0.0.1".into()], ..Default::default() };
        let agent = Agent {
            connected: true,
            hostname: "gw1".into(),
            first_seen: 1,
            last_seen: 9,
            peer: Some(SocketAddr::from(([10, 0, 0, 1], 1))),
            streams: 2,
            counts: [(59, Count { records: 3, bytes: 4 })].into(),
            heartbeat: Some(Heartbeat::new(fields.clone().into(), 8, host)),
            plugins: [("driver".to_owned(), Heartbeat::new(fields.into(), 7, Host::default()))].into(),
            history: [Event { at: 5, connected: true, peer: None }].into(),
            former: Some(Host { version: "1.6".into(), ..Default::default() }),
            ..Default::default()
        };
        let again = Agent::from_row(&agent.row("a"));
        assert_eq!(again, Agent { connected: false, ..agent.clone() });
        let strange = site::Host { details: "{\"streams\": []}".into(), ..agent.row("a") };
        assert_eq!((Agent::from_row(&strange).hostname.as_str(), Agent::from_row(&strange).last_seen), ("gw1", 9));
    }
}
