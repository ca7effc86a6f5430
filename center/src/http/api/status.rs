//! `/api/v1/status`: how the center is, in one answer, with what somebody should look into.

use super::{Answer, Ask, no_route, ok, store};
use crate::clock::now_ms;
use crate::fleet::Fleet;
use crate::forward::{Snapshot, State};
use crate::rollout::{Progress, Rollout};
use crate::serve::Ends;
use http::Method;
use serde::Serialize;
use serde_json::{Value, json};

/// A host that is gone for so long is worth a look.
const GONE_S: u64 = 86_400;

/// Certificates that end so soon are worth a look. Whoever makes them by hand needs weeks.
const CERTIFICATE_DAYS: i64 = 30;

const DAY_S: i64 = 86_400;

/// A disk with less than this may be full soon, unless the store is nearly as large as it may be.
const LITTLE_ROOM: u64 = 1 << 30;

/// Hosts that a warning names.
const NAMED: usize = 3;

/// Characters of an output's error in a warning. Receivers answer with pages.
const ERROR_SHOWN: usize = 200;

/// Something that somebody should look into.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Warning {
    /// True if the center cannot do what it is there for.
    failure: bool,
    /// What it is about: `store`, `database`, `disk`, `hosts`, `certificates` or `forward`.
    about: &'static str,
    text: String,
}

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    if (ask.method, ask.rest) != (&Method::GET, "") {
        return no_route(ask);
    }
    let store = store::told(ask.shared).await?.unwrap_or_default();
    let at_ms = now_ms();
    let rollouts: Vec<Value> = ask.shared.rollouts_under_way().iter().map(brief).collect();
    let outputs = ask.shared.forwards.get().map(Vec::as_slice).unwrap_or_default();
    let outputs: Vec<_> = outputs.iter().map(|status| (status.name.as_str(), status.snapshot())).collect();
    let status = ask.shared.read(|fleet| {
        let mut warnings = of_store(&store);
        if store["failure"].is_null()
            && let Some(reason) = &fleet.sink_refuses
        {
            warnings.push(failure("store", format!("no records are stored: {reason}")));
        }
        warnings.extend(of_certificates(ask.shared.ends(), at_ms / 1000));
        warnings.extend(of_outputs(&outputs, at_ms));
        warnings.extend(of_hosts(fleet, u64::try_from(at_ms / 1000).unwrap_or_default()));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "at_ms": at_ms,
            "well": !warnings.iter().any(|warning| warning.failure),
            "agents": { "connected": fleet.live.len(), "known": fleet.agents.len() },
            "received": fleet.totals.records,
            "store": store,
            "rollouts": rollouts,
            "warnings": warnings,
        })
    });
    ok(&status)
}

fn brief(rollout: &Rollout) -> Value {
    let running = rollout.hosts.iter().filter(|host| host.state == Progress::Running).count();
    json!({
        "id": rollout.id,
        "group": rollout.group,
        "plugin": rollout.plugin.config.name,
        "version": rollout.plugin.config.version,
        "state": rollout.state,
        "hosts": rollout.hosts.len(),
        "running": running,
    })
}

fn failure(about: &'static str, text: String) -> Warning {
    Warning { failure: true, about, text }
}

fn warning(about: &'static str, text: String) -> Warning {
    Warning { failure: false, about, text }
}

/// Returns what is wrong with a store that tells this of itself.
fn of_store(store: &Value) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let number = |name: &str| store[name].as_u64();
    if let Some(reason) = store["failure"].as_str() {
        warnings.push(failure("store", format!("no records are stored: {reason}")));
    }
    if let Some(reason) = store["site_failure"].as_str() {
        warnings.push(failure("database", format!("hosts, tasks and plugins cannot be written: {reason}")));
    }
    if let (Some(free), Some(bytes), Some(max)) = (number("disk_free_bytes"), number("bytes"), number("max_bytes"))
        && free < LITTLE_ROOM.min(max.saturating_sub(bytes))
    {
        let text = format!("the disk has {} MiB left, and the store may grow by {}", free >> 20, (max - bytes) >> 20);
        warnings.push(warning("disk", text + " MiB"));
    }
    for (name, what) in [("corrupt_files", "files"), ("damaged_blocks", "blocks")] {
        if let Some(count) = number(name).filter(|count| *count > 0) {
            warnings.push(warning("store", format!("{count} {what} of records cannot be read")));
        }
    }
    warnings
}

/// Returns what is wrong with the center's own certificates at this time, in seconds since 1970.
fn of_certificates(ends: Ends, now: i64) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (end, whose) in [
        (ends.server_s, "the center's certificate (server.crt)"),
        (ends.authorities_s, "the last authority of agents' certificates (ca.crt)"),
    ] {
        let Some(left_s) = end.map(|end| end.saturating_sub(now)) else { continue };
        if left_s <= 0 {
            warnings.push(failure("certificates", format!("{whose} has ended: no agent can connect")));
        } else if left_s < CERTIFICATE_DAYS * DAY_S {
            warnings.push(warning("certificates", format!("{whose} ends in {} days", left_s / DAY_S)));
        }
    }
    warnings
}

/// Returns which outputs deliver nothing at this time, in milliseconds since 1970. The store keeps what they owe, as long as it keeps
/// records, so that the center is well all the same.
fn of_outputs(outputs: &[(&str, Snapshot)], now_ms: i64) -> Vec<Warning> {
    let failing = outputs.iter().filter(|(_, now)| now.state == State::Failing);
    let told = failing.map(|(name, now)| {
        let error = now.error.as_ref().map_or("for no reason that is known", |(error, _)| error);
        let mut shown: String = error.chars().take(ERROR_SHOWN).collect();
        if shown.len() < error.len() {
            shown.push('…');
        }
        let seconds = now_ms.saturating_sub(now.since_ms).max(0) / 1000;
        warning("forward", format!("output {name} has delivered nothing for {seconds} s: {shown}"))
    });
    told.collect()
}

/// Returns what is wrong with hosts at this time, in seconds since 1970.
fn of_hosts(fleet: &Fleet, now: u64) -> Vec<Warning> {
    let (mut gone, mut ending, mut ended) = (Named::default(), Named::default(), Named::default());
    for (id, agent) in &fleet.agents {
        let name = if agent.hostname.is_empty() { id } else { &agent.hostname };
        if !agent.connected {
            if now.saturating_sub(agent.last_seen) > GONE_S {
                gone.add(name);
            }
            continue;
        }
        let left = agent.heartbeat.as_ref().and_then(|heartbeat| heartbeat.number("cert_days_left")?.as_i64());
        match left {
            Some(..=0) => ended.add(name),
            Some(1..CERTIFICATE_DAYS) => ending.add(name),
            _ => {}
        }
    }
    [
        (gone, false, "hosts", "gone for more than a day"),
        (ending, false, "certificates", "whose certificate ends within 30 days"),
        (ended, true, "certificates", "whose certificate has ended, and which cannot connect again"),
    ]
    .into_iter()
    .filter(|(named, ..)| named.count > 0)
    .map(|(named, failure, about, what)| Warning { failure, about, text: named.text(what) })
    .collect()
}

/// Hosts, of which the first are named.
#[derive(Default)]
struct Named {
    count: usize,
    names: Vec<String>,
}

impl Named {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.names.len() < NAMED {
            self.names.push(name.to_owned());
        }
    }

    fn text(&self, what: &str) -> String {
        let more = if self.count > self.names.len() { ", .." } else { "" };
        let hosts = if self.count == 1 { "host" } else { "hosts" };
        format!("{} {hosts} {what}: {}{more}", self.count, self.names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Agent, Heartbeat, Host};

    fn about(warnings: &[Warning]) -> Vec<(bool, &str)> {
        warnings.iter().map(|warning| (warning.failure, warning.text.as_str())).collect()
    }

    #[test]
    fn a_store_that_cannot_write_is_a_failure_and_little_room_a_warning() {
        let well = json!({ "bytes": 5, "max_bytes": 20_u64 << 30, "disk_free_bytes": 2_u64 << 30, "corrupt_files": 0 });
        assert_eq!(of_store(&well), []);
        assert_eq!(of_store(&Value::Null), []);
        let mut full = well.clone();
        full["failure"] = json!("disk full: no space");
        full["disk_free_bytes"] = json!(3 << 20);
        full["corrupt_files"] = json!(2);
        assert_eq!(
            about(&of_store(&full)),
            [
                (true, "no records are stored: disk full: no space"),
                (false, "the disk has 3 MiB left, and the store may grow by 20479 MiB"),
                (false, "2 files of records cannot be read"),
            ]
        );
        let mut small = full;
        small["failure"] = Value::Null;
        small["max_bytes"] = json!(1 << 20);
        assert_eq!(of_store(&small).len(), 1, "a store that may grow by less than there is has room");
    }

    #[test]
    fn an_output_that_delivers_nothing_is_told_with_as_much_of_its_error_as_somebody_reads() {
        let output = |state, error: Option<&str>| Snapshot {
            state,
            error: error.map(|error| (error.to_owned(), 6_000)),
            ..Snapshot::new(5_000)
        };
        let page = "é".repeat(ERROR_SHOWN + 1);
        let outputs = [
            ("siem", output(State::Failing, Some("connection refused"))),
            ("well", output(State::Sending, Some("it was refused before"))),
            ("idle", output(State::Idle, None)),
            ("page", output(State::Failing, Some(&page))),
        ];
        let shown = "é".repeat(ERROR_SHOWN);
        assert_eq!(
            about(&of_outputs(&outputs, 65_999)),
            [
                (false, "output siem has delivered nothing for 60 s: connection refused"),
                (false, &*format!("output page has delivered nothing for 60 s: {shown}…")),
            ]
        );
        assert!(of_outputs(&outputs[..1], 0)[0].text.contains("for 0 s"), "the clock was set back");
    }

    #[test]
    fn certificates_of_the_center_that_end_are_told() {
        let at = |server_s, authorities_s| of_certificates(Ends { server_s, authorities_s }, 1000);
        let days = |days: i64| Some(1000 + days * DAY_S);
        assert_eq!(at(None, None), []);
        assert_eq!(at(days(30), days(30)), []);
        assert_eq!(
            about(&at(days(29), Some(1000))),
            [
                (false, "the center's certificate (server.crt) ends in 29 days"),
                (true, "the last authority of agents' certificates (ca.crt) has ended: no agent can connect"),
            ]
        );
    }

    #[test]
    fn hosts_that_are_gone_and_certificates_that_end_are_told() {
        let mut fleet = Fleet::new(10);
        let days = |days: &str| {
            let fields = [("cert_days_left".to_owned(), days.to_owned())];
            Some(Heartbeat::new(fields.into(), 7, Host::default()))
        };
        for n in 0..5 {
            fleet.agents.insert(format!("gone{n}"), Agent { last_seen: 10, ..Agent::default() });
        }
        let connected = Agent { connected: true, last_seen: 10, ..Agent::default() };
        fleet.agents.insert("a".into(), Agent { heartbeat: days("29"), hostname: "gw1".into(), ..connected.clone() });
        fleet.agents.insert("b".into(), Agent { heartbeat: days("0"), ..connected.clone() });
        fleet.agents.insert("c".into(), Agent { heartbeat: days("30"), ..connected.clone() });
        fleet.agents.insert("d".into(), connected);
        assert_eq!(
            about(&of_hosts(&fleet, 10 + GONE_S + 1)),
            [
                (false, "5 hosts gone for more than a day: gone0, gone1, gone2, .."),
                (false, "1 host whose certificate ends within 30 days: gw1"),
                (true, "1 host whose certificate has ended, and which cannot connect again: b"),
            ]
        );
        assert_eq!(of_hosts(&fleet, 10 + GONE_S).len(), 2);
    }
}
