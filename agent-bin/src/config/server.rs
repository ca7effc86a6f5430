//! `[server]` and `[regions.NAME]`: where servers are.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use elklet_core::backoff::RECONNECT_SPREAD_MS;
use elklet_core::session::{KEEPALIVE_MS, Timing};
use serde::Deserialize;

use super::value::Within;

/// Where the servers of a region are, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Server {
    /// Service discovery hosts.
    pub(crate) discovery: Vec<Address>,
    /// AgentCenters, tried after those that service discovery names.
    pub(crate) private: Vec<Address>,
    /// AgentCenters, tried last.
    pub(crate) public: Vec<Address>,
    reconnect_spread_s: Within<1, 3600>,
    /// AgentCenter ends a connection whose PINGs come closer than 5 s.
    keepalive_s: Within<6, 3600>,
}

impl Default for Server {
    fn default() -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "they are less than a minute")]
        const DEFAULTS_S: [u32; 2] = [(RECONNECT_SPREAD_MS / 1000) as u32, (KEEPALIVE_MS / 1000) as u32];
        let (discovery, private, public) = (Vec::new(), Vec::new(), Vec::new());
        let [reconnect_spread_s, keepalive_s] = DEFAULTS_S;
        Self {
            discovery,
            private,
            public,
            reconnect_spread_s: Within::new(reconnect_spread_s),
            keepalive_s: Within::new(keepalive_s),
        }
    }
}

impl Server {
    /// How soon a fleet that loses its servers comes back, and how often a quiet connection is used.
    pub(crate) fn timing(&self) -> Timing {
        Timing {
            spread_ms: 1000 * u64::from(self.reconnect_spread_s.value()),
            keepalive_ms: 1000 * u64::from(self.keepalive_s.value()),
        }
    }

    /// Whether there is nowhere to go.
    pub(crate) fn is_empty(&self) -> bool {
        self.discovery.is_empty() && self.private.is_empty() && self.public.is_empty()
    }
}

/// `HOST:PORT`, where an IPv6 address stands in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "String"))]
#[serde(try_from = "String")]
pub(crate) struct Address {
    /// A name, or an address without brackets.
    pub(crate) host: String,
    /// Never 0.
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text)
            .ok_or_else(|| format!("{text:?} is no address, expected HOST:PORT, as in 10.0.0.1:6751 or [fd00::1]:6751"))
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

fn parse(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(|_| v6)?,
        None => host,
    };
    let is_v6 = host.contains(':') && text.starts_with('[');
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    let port = port.parse().ok().filter(|&port| port != 0)?;
    (is_v6 || is_name).then(|| Address { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["10.0.0.1:1", "elk.example.com:65535", "[fd00::1]:6751", "a_b-c:8088"] {
            assert_eq!(good.parse::<Address>().map(|address| address.to_string()).as_deref(), Ok(good));
        }
        for bad in
            ["", ":1", "a", "a:", "a:0", "a:65536", "fd00::1:6751", "[fd00]:1", "[]:1", "[a]:1", "a b:1", "http://a:1"]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
