//! Targets that the agent reaches without the proxy, as `NO_PROXY` lists them.
//!
//! Nobody has specified that variable. This module accepts what curl and Go's `httpproxy` both understand, and what
//! Windows writes:
//!
//! - a name, with or without a dot or `*.` before it, for itself and everything below it,
//! - an address, or a network as `ADDRESS/BITS` or as `10.1.*`,
//! - `<local>` for names without a dot, and `*` for everything.
//!
//! A name and an address may carry a port, or `:*` for every port.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

/// A list of targets that need no proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exceptions(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Everything,
    /// Names without a dot.
    Local,
    Name {
        name: String,
        port: Option<u16>,
    },
    Address {
        address: IpAddr,
        port: Option<u16>,
    },
    Network {
        bits: u128,
        mask: u128,
        v4: bool,
    },
}

impl Exceptions {
    /// Adds an entry.
    ///
    /// # Errors
    /// When it is none.
    pub fn add(&mut self, entry: &str) -> Result<(), BadException> {
        self.0.push(parse(entry).ok_or_else(|| BadException(entry.to_owned()))?);
        Ok(())
    }

    /// Returns true when this target needs no proxy. An IPv6 address comes without brackets.
    #[must_use]
    pub fn contains(&self, host: &str, port: u16) -> bool {
        let address = host.parse().ok();
        self.0.iter().any(|entry| entry.matches(host, address, port))
    }
}

/// A text that is no exception; whoever wrote the settings or the environment is at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadException(String);

impl fmt::Display for BadException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no exception, expected a name, .suffix, address, network (10.0.0.0/8, 10.*), <local> or *",
            self.0
        )
    }
}

impl core::error::Error for BadException {}

impl Entry {
    fn matches(&self, host: &str, address: Option<IpAddr>, on: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Local => address.is_none() && !host.contains('.'),
            Self::Name { name, port } => port.is_none_or(|port| port == on) && is_at_or_below(host, name),
            Self::Address { address: wanted, port } => address == Some(*wanted) && port.is_none_or(|port| port == on),
            Self::Network { bits, mask, v4 } => {
                address.is_some_and(|address| address.is_ipv4() == *v4 && value(address) & mask == *bits)
            }
        }
    }
}

fn is_at_or_below(host: &str, name: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).as_bytes();
    let Some(above) = host.len().checked_sub(name.len()) else { return false };
    host[above..].eq_ignore_ascii_case(name.as_bytes()) && (above == 0 || host[above - 1] == b'.')
}

fn parse(entry: &str) -> Option<Entry> {
    if entry == "*" {
        return Some(Entry::Everything);
    }
    if entry.eq_ignore_ascii_case("<local>") {
        return Some(Entry::Local);
    }
    if let Some((address, bits)) = entry.split_once('/') {
        return network(without_brackets(address).parse().ok()?, bits.parse().ok()?);
    }
    if let Ok(address) = entry.parse() {
        return Some(Entry::Address { address, port: None });
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, "*")) => (host, None),
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (entry, None),
    };
    if let Ok(address) = without_brackets(host).parse::<IpAddr>() {
        return Some(Entry::Address { address, port });
    }
    if let Some(network) = wildcard(host) {
        return port.is_none().then_some(network);
    }
    let name = host.strip_prefix("*.").or_else(|| host.strip_prefix('.')).unwrap_or(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    // A name never ends in a number, as an address does (RFC 1123, section 2.1).
    let is_number = name.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    let is_name = !is_number && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    is_name.then(|| Entry::Name { name: name.to_owned(), port })
}

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Parses `10.1.*` or `10.1.*.*`: all addresses that begin with these bytes.
fn wildcard(entry: &str) -> Option<Entry> {
    let mut bytes = [0; 4];
    let mut known = 0;
    let mut parts = entry.split('.');
    let mut stars = 0;
    for part in parts.by_ref().take(bytes.len()) {
        match part {
            "*" => stars += 1,
            _ if stars == 0 => {
                bytes[known] = part.parse().ok()?;
                known += 1;
            }
            _ => return None,
        }
    }
    let is_wildcard = known > 0 && stars > 0 && parts.next().is_none();
    is_wildcard.then(|| network(bytes.into(), 8 * u32::try_from(known).ok()?)).flatten()
}

fn network(address: IpAddr, length: u32) -> Option<Entry> {
    let width = if address.is_ipv4() { 32 } else { 128 };
    let host_bits = u32::checked_sub(width, length)?;
    let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
    Some(Entry::Network { bits: value(address) & mask, mask, v4: address.is_ipv4() })
}

fn value(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn exceptions(entries: &[&str]) -> Exceptions {
        let mut exceptions = Exceptions::default();
        for entry in entries {
            exceptions.add(entry).expect("a good entry");
        }
        exceptions
    }

    #[test]
    fn entries_match_what_they_stand_for() {
        let cases: [(&str, &[&str], &[&str]); 16] = [
            ("*", &["a", "10.0.0.1", "::1"], &[]),
            (
                "example.com",
                &["example.com", "EXAMPLE.com", "a.b.example.com", "example.com."],
                &["badexample.com", "com", "example.org"],
            ),
            (".example.com", &["a.example.com", "example.com"], &["xexample.com"]),
            ("*.example.com", &["a.example.com"], &["example.org"]),
            ("10.1.2.3", &["10.1.2.3"], &["10.1.2.4", "1.10.1.2.3"]),
            ("fd00::1", &["fd00::1", "fd00:0:0:0:0:0:0:1"], &["fd00::2"]),
            ("10.0.0.0/8", &["10.255.0.1"], &["11.0.0.1", "::a00:1", "ten.example.com"]),
            ("10.1.2.3/0", &["1.1.1.1"], &["::1"]),
            ("fd00::/8", &["fdff::1"], &["fe00::1", "10.0.0.1"]),
            ("::/0", &["::1"], &["0.0.0.0"]),
            ("[fd00::]/8", &["fdff::1"], &["fe00::1"]),
            ("192.168.*", &["192.168.0.1", "192.168.255.1"], &["192.169.0.1", "192.168.example.com", "::1"]),
            ("10.*.*.*", &["10.255.0.1"], &["11.0.0.1"]),
            ("<local>", &["intranet", "LOCALHOST"], &["a.example", "10.0.0.1", "::1"]),
            ("127.0.0.1:*", &["127.0.0.1"], &["127.0.0.2"]),
            ("example.com.", &["a.example.com", "example.com."], &["example.org"]),
        ];
        for (entry, inside, outside) in cases {
            let exceptions = exceptions(&[entry]);
            for host in inside {
                assert!(exceptions.contains(host, 1), "{entry} {host}");
            }
            for host in outside {
                assert!(!exceptions.contains(host, 1), "{entry} {host}");
            }
        }
    }

    #[test]
    fn a_port_restricts_an_entry() {
        let exceptions = exceptions(&["a.example:80", "10.0.0.1:81", "[fd00::1]:82"]);
        for (host, port) in [("a.example", 80), ("b.a.example", 80), ("10.0.0.1", 81), ("fd00::1", 82)] {
            assert!(exceptions.contains(host, port), "{host}");
            assert!(!exceptions.contains(host, 83), "{host}");
        }
        assert!(!Exceptions::default().contains("a", 1));
    }

    #[test]
    fn nonsense_is_refused() {
        for entry in [
            "",
            ".",
            "a b",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/x",
            "a/8",
            "http://a",
            "a:b",
            "a:65536",
            "10.*.1",
            "10.1",
            "10",
            "*.*",
            "10.*:80",
            "256.*",
            "1.2.3.4.*",
            "<remote>",
            "10.0.0.1-10.0.0.9",
        ] {
            assert!(Exceptions::default().add(entry).is_err(), "{entry}");
        }
    }

    proptest! {
        #[test]
        fn no_entry_and_no_host_is_too_odd(entry in ".{0,40}", host in ".{0,40}", port: u16) {
            let mut exceptions = Exceptions::default();
            if exceptions.add(&entry).is_ok() {
                let _ = exceptions.contains(&host, port);
            }
        }

        #[test]
        fn a_network_has_the_addresses_that_begin_like_it(network: u32, length in 0..=32u32, address: u32) {
            let mut exceptions = Exceptions::default();
            let text = |bits: u32| format!("{}", core::net::Ipv4Addr::from(bits));
            exceptions.add(&format!("{}/{length}", text(network))).expect("a network");
            let begins_alike = length == 0 || (network ^ address) >> (32 - length) == 0;
            prop_assert_eq!(exceptions.contains(&text(address), 1), begins_alike);
        }
    }

    #[test]
    fn what_is_no_exception_is_named_with_what_was_expected() {
        let bad = Exceptions::default().add("10.0.0.0/99").expect_err("no network has 99 bits");
        let expected = "\"10.0.0.0/99\" is no exception, expected a name, .suffix, address, network (10.0.0.0/8, 10.*), <local> or *";
        assert_eq!(bad.to_string(), expected);
    }
}
