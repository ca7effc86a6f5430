//! `[server]` and `[regions.NAME]`: the addresses of servers.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use elklet_core::command::Sha256;
use elklet_core::link::backoff::RECONNECT_SPREAD_MS;
use elklet_core::link::session::{KEEPALIVE_MS, Timing};
use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::value::{BadValue, Within};

/// The servers of a region, in the order in which they are tried.
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
    /// The name in the servers' certificates.
    name: Name,
    /// The keys that servers may have. If there are none, any key is good.
    pin_sha256: Vec<Pin>,
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
            name: Name::default(),
            pin_sha256: Vec::new(),
        }
    }
}

impl Server {
    /// How fast a fleet reconnects, and how often a quiet connection gets a PING.
    pub(crate) fn timing(&self) -> Timing {
        Timing {
            spread_ms: 1000 * u64::from(self.reconnect_spread_s.value()),
            keepalive_ms: 1000 * u64::from(self.keepalive_s.value()),
        }
    }

    /// The name that a server's certificate must have, whatever address was dialled.
    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.0.clone()
    }

    /// The SHA-256 of the keys that servers may have. If there are none, any key is good.
    pub(crate) fn pins(&self) -> Vec<[u8; 32]> {
        self.pin_sha256.iter().map(|pin| pin.0).collect()
    }

    /// Returns true when there is no server.
    pub(crate) fn is_empty(&self) -> bool {
        self.discovery.is_empty() && self.private.is_empty() && self.public.is_empty()
    }
}

/// A DNS name, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "String"))]
#[serde(try_from = "String")]
struct Name(ServerName<'static>);

impl Default for Name {
    /// The name in every certificate of an Elkeid installation: the reference's SNI, and what it checks certificates for.
    fn default() -> Self {
        Self(ServerName::try_from("elkeid.com").expect("it is a DNS name"))
    }
}

impl TryFrom<String> for Name {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        ServerName::try_from(text.clone()).map(Self).map_err(|_| BadValue::Name(text))
    }
}

/// The SHA-256 of a key (the `SubjectPublicKeyInfo`), in hexadecimal or in Base64, as HPKP and curl write it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "String"))]
#[serde(try_from = "String")]
struct Pin([u8; 32]);

/// Reads the SHA-256 of a key, as `server.pin_sha256` has it.
///
/// # Errors
/// It is none.
pub(crate) fn pin(text: &str) -> Result<[u8; 32], impl fmt::Display + use<>> {
    Pin::try_from(text.to_owned()).map(|pin| pin.0)
}

impl TryFrom<String> for Pin {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        if let Ok(Sha256(hash)) = text.replace(':', "").parse() {
            return Ok(Self(hash));
        }
        let bare = text.strip_prefix("pin-sha256=").unwrap_or(&text).trim_matches('"');
        let bare = bare.strip_prefix("sha256/").map_or(bare, |rest| rest.strip_prefix('/').unwrap_or(rest));
        let decoded = STANDARD.decode(bare).ok().and_then(|bytes| bytes.try_into().ok());
        decoded.map(Self).ok_or(BadValue::Pin(text))
    }
}

#[cfg(test)]
impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.to_str().into_owned()
    }
}

#[cfg(test)]
impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        STANDARD.encode(pin.0)
    }
}

/// `HOST:PORT`, with brackets around an IPv6 address.
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
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        parse(text).ok_or_else(|| BadValue::Address(text.to_owned()))
    }
}

impl TryFrom<String> for Address {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
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
    fn pins_are_written_as_others_write_them() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let base64 = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        let colons = hex.as_bytes().chunks(2).map(|two| String::from_utf8_lossy(two)).collect::<Vec<_>>().join(":");
        let pin = Pin::try_from(hex.to_owned()).expect("a pin");
        for same in [
            hex.to_ascii_uppercase(),
            colons,
            base64.to_owned(),
            format!("sha256//{base64}"),
            format!("sha256/{base64}"),
            format!("pin-sha256=\"{base64}\""),
        ] {
            assert_eq!(Pin::try_from(same.clone()), Ok(pin.clone()), "{same}");
        }
        for bad in [
            "",
            "ab",
            &hex[1..],
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD=",
            "sha1/ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
        ] {
            assert!(Pin::try_from(bad.to_owned()).expect_err(bad).to_string().contains("is no pin, expected"), "{bad}");
        }
        assert!(Name::try_from("a b".to_owned()).expect_err("no name").to_string().contains("is no name, expected"));
        assert!(Name::try_from("10.0.0.1".to_owned()).is_ok());
    }

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
