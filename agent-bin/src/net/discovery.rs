//! Service discovery: asks which AgentCenters there are.
//!
//! Source: Elkeid's service discovery, `GET /registry/detail?name=hids_svr_grpc`. Its answer is `{"data": [{"ip",
//! "port", ...}]}` in random order. This module ignores the weights.

use std::fmt;
use std::io::{self, Read};
use std::time::Duration;

use elklet_core::link::session::RESOLVE_TIMEOUT_MS;
use serde::Deserialize;
use ureq::http::header;

use super::http::{http_agent, reason};
use crate::config::{Address, Proxies};

/// Milliseconds for the whole exchange. It is a little less than the session allows, so that the error names what was slow.
const TIMEOUT_MS: u64 = RESOLVE_TIMEOUT_MS - 500;

/// The longest answer, in bytes: over a thousand instances, which take some 200 each.
const MAX_ANSWER_BYTES: u64 = 256 << 10;

/// Most characters of a location in an error.
const MAX_QUOTED: usize = 160;

/// The number of instances to ask for, which is the reference's. Service discovery ignores it and names all that it knows.
const ASKED_FOR: usize = 10;

/// Most addresses of an answer that are tried. Each may take 15 s, so that these keep an agent busy for a quarter of an
/// hour. Other agents get them in another order.
const MAX_ADDRESSES: usize = 64;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    data: Vec<Instance>,
}

#[derive(Deserialize)]
struct Instance {
    ip: String,
    port: u16,
}

/// Why service discovery has named no addresses.
#[derive(Debug)]
pub(crate) struct DiscoveryError {
    /// The URL that was asked, or the host that was to be.
    asked: String,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// The host has no thread to ask.
    NoThread(io::Error),
    /// There is no answer. The text is the HTTP client's.
    NoAnswer(String),
    /// The answer is a redirection with this status to this location.
    Redirection(u16, String),
    /// The answer breaks off.
    BrokenOff(io::Error),
    /// The answer is not as expected.
    Answer(BadAnswer),
}

/// What is wrong with an answer; the fault of service discovery, or of whoever answers in its place.
#[derive(Debug)]
enum BadAnswer {
    /// It is longer than [`MAX_ANSWER_BYTES`].
    TooLong,
    /// It is not of the form that is expected.
    Json(serde_json::Error),
    /// All that it names is no address, such as this.
    NoAddress(String),
}

impl DiscoveryError {
    /// There is no thread that could ask `host`.
    pub(crate) fn no_thread(host: &Address, error: io::Error) -> Self {
        Self { asked: host.to_string(), why: Why::NoThread(error) }
    }
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, why } = self;
        match why {
            Why::NoThread(error) | Why::BrokenOff(error) => write!(f, "{asked}: {error}"),
            Why::NoAnswer(why) => write!(f, "{asked}: {why}"),
            Why::Redirection(status, location) => {
                write!(f, "{asked}: it redirects to {location:?} (status {status}), expected the answer itself")
            }
            Why::Answer(why) => write!(f, "{asked}: the answer is not as expected: {why}"),
        }
    }
}

impl std::error::Error for DiscoveryError {}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "it is longer than {MAX_ANSWER_BYTES} bytes"),
            Self::Json(error) => error.fmt(f),
            Self::NoAddress(text) => write!(f, "{text:.80?} is no address"),
        }
    }
}

/// Asks `host` for addresses. Blocks.
///
/// # Errors
/// When there is no answer in time, or the answer cannot be understood.
pub(crate) fn discover(host: &Address, proxies: &Proxies) -> Result<Vec<Address>, DiscoveryError> {
    let url = format!("http://{host}/registry/detail?name=hids_svr_grpc&count={ASKED_FOR}");
    ask(&url, proxies).map_err(|why| DiscoveryError { asked: url, why })
}

fn ask(url: &str, proxies: &Proxies) -> Result<Vec<Address>, Why> {
    // Anybody on the way can answer plain HTTP, so a redirection must not send the agent elsewhere.
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_millis(TIMEOUT_MS))).max_redirects(0);
    let agent = http_agent(config, Vec::new(), proxies);
    let mut response = agent.get(url).call().map_err(|error| Why::NoAnswer(reason(&error)))?;
    if response.status().is_redirection() {
        let location = response.headers().get(header::LOCATION).map(|location| location.as_bytes());
        let location: String = String::from_utf8_lossy(location.unwrap_or_default()).chars().take(MAX_QUOTED).collect();
        return Err(Why::Redirection(response.status().as_u16(), location));
    }
    let mut body = Vec::new();
    response.body_mut().as_reader().take(MAX_ANSWER_BYTES + 1).read_to_end(&mut body).map_err(Why::BrokenOff)?;
    addresses(&body).map_err(Why::Answer)
}

/// Returns the addresses in an answer, each once. Skips what is no address, unless there is nothing else.
fn addresses(body: &[u8]) -> Result<Vec<Address>, BadAnswer> {
    if body.len() as u64 > MAX_ANSWER_BYTES {
        return Err(BadAnswer::TooLong);
    }
    let Answer { data } = serde_json::from_slice(body).map_err(BadAnswer::Json)?;
    let mut addresses = Vec::new();
    let mut wrong = None;
    for Instance { ip, port } in data {
        let text = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        match text.parse::<Address>() {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) => wrong = Some(BadAnswer::NoAddress(text)),
        }
        if addresses.len() == MAX_ADDRESSES {
            break;
        }
    }
    match wrong {
        Some(wrong) if addresses.is_empty() => return Err(wrong),
        Some(wrong) => log::warn!("service discovery: {wrong}; it is passed over"),
        None => {}
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_nonsense_is_refused() {
        let body = br#"{"msg":"ok","data":[{"name":"hids_svr_grpc","ip":"10.0.0.1","port":6751,"weight":3},{"ip":"fd00::1","port":1}]}"#;
        let found: Vec<_> = addresses(body).expect("an answer").iter().map(Address::to_string).collect();
        assert_eq!(found, ["10.0.0.1:6751", "[fd00::1]:1"]);
        assert!(addresses(br#"{"msg":"ok","data":[]}"#).expect("an answer").is_empty());
        let mixed = br#"{"data":[{"ip":"10.0.0.1","port":1},{"ip":"10.0.0.1","port":1},{"ip":"a b","port":1},{"ip":"x","port":0}]}"#;
        assert_eq!(addresses(mixed).expect("one").len(), 1);
        let many: Vec<_> = (1..=1000).map(|port| format!(r#"{{"ip":"::1","port":{port}}}"#)).collect();
        let many = format!(r#"{{"data":[{}]}}"#, many.join(","));
        assert_eq!(addresses(many.as_bytes()).expect("enough").len(), MAX_ADDRESSES);
        let wrong = addresses(br#"{"data":[{"ip":"a b","port":1}]}"#).expect_err("no address");
        assert_eq!(wrong.to_string(), "\"a b:1\" is no address");
        let deep = "[".repeat(100_000);
        assert!(addresses(deep.as_bytes()).is_err());
        for nonsense in [&b""[..], b"<html>", br#"{"data":[{"ip":1}]}"#, br#"{"data":[{"ip":"x","port":70000}]}"#] {
            assert!(addresses(nonsense).is_err());
        }
    }
}
