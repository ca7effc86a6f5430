//! The addresses and the name of the host, for every message's envelope.
//!
//! These are the reference's rules (`agent/host/`, generation C). All interfaces count, up or down, except those whose
//! names start with `docker` or `lo`. Of their addresses, those count that Go's `IsGlobalUnicast` accepts. Private and
//! public ones are separate.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use rustix::system::uname;

/// Most private addresses of a family that are reported (generation C).
const PRIVATE_LIMIT: usize = 5;

/// Most public addresses of a family that are reported. The reference has no limit, but a container host with an
/// interface for each of its guests must not make every message long.
const PUBLIC_LIMIT: usize = 64;

/// The host's addresses in the envelope's fields 3 to 6 (`PackagedData`, `grpc.proto`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// Private IPv4 addresses, at most 5.
    pub(crate) intranet_ipv4: Vec<String>,
    /// All other IPv4 addresses, at most 64.
    pub(crate) extranet_ipv4: Vec<String>,
    /// IPv6 addresses of fd00::/8, at most 5.
    pub(crate) intranet_ipv6: Vec<String>,
    /// All other IPv6 addresses, at most 64.
    pub(crate) extranet_ipv6: Vec<String>,
}

impl Addresses {
    /// Reads the current addresses of the host's interfaces.
    ///
    /// # Errors
    /// When the kernel does not list the interfaces.
    pub(crate) fn current() -> io::Result<Self> {
        let interfaces = getifaddrs()?;
        Ok(Self::classify(interfaces.filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (None, Some(v6)) => IpAddr::V6(v6.ip()),
                (None, None) => return None,
            };
            Some((interface.interface_name, ip))
        })))
    }

    /// Sorts interfaces' addresses into the four lists, keeping their order.
    pub(crate) fn classify<N: AsRef<str>>(interfaces: impl IntoIterator<Item = (N, IpAddr)>) -> Self {
        let mut sorted = Self::default();
        for (name, ip) in interfaces {
            if is_excluded(name.as_ref()) {
                continue;
            }
            // Go treats an IPv4 address and the same mapped into IPv6 alike.
            let ip = ip.to_canonical();
            if !is_global_unicast(ip) {
                continue;
            }
            let (list, limit) = match ip {
                IpAddr::V4(v4) if is_private_v4(v4) => (&mut sorted.intranet_ipv4, PRIVATE_LIMIT),
                IpAddr::V4(_) => (&mut sorted.extranet_ipv4, PUBLIC_LIMIT),
                IpAddr::V6(v6) if is_private_v6(v6) => (&mut sorted.intranet_ipv6, PRIVATE_LIMIT),
                IpAddr::V6(_) => (&mut sorted.extranet_ipv6, PUBLIC_LIMIT),
            };
            if list.len() < limit {
                list.push(ip.to_string());
            }
        }
        sorted
    }
}

/// The host's name from uname(2).
pub(crate) fn hostname() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

fn is_excluded(interface: &str) -> bool {
    interface.starts_with("docker") || interface.starts_with("lo")
}

/// Go's `net.IP.IsGlobalUnicast`. In its sense, private addresses and 240.0.0.0/4 are global.
fn is_global_unicast(ip: IpAddr) -> bool {
    let is_local = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(is_local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// 10/8, 172.16/12 and 192.168/16. 100.64/10 (carriers' NAT) is public to the reference.
fn is_private_v4(ip: Ipv4Addr) -> bool {
    ip.is_private()
}

/// fd00::/8. The other half of fc00::/7 is public to the reference.
fn is_private_v6(ip: Ipv6Addr) -> bool {
    ip.octets()[0] == 0xfd
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(addresses: &[(&str, &str)]) -> Addresses {
        Addresses::classify(addresses.iter().map(|(name, ip)| (name, ip.parse().unwrap())))
    }

    /// The list that an address of eth0 gets into.
    fn list_of(ip: &str) -> &'static str {
        let sorted = classify(&[("eth0", ip)]);
        let lists = [&sorted.intranet_ipv4, &sorted.extranet_ipv4, &sorted.intranet_ipv6, &sorted.extranet_ipv6];
        match lists.map(Vec::len) {
            [1, 0, 0, 0] => "intranet_ipv4",
            [0, 1, 0, 0] => "extranet_ipv4",
            [0, 0, 1, 0] => "intranet_ipv6",
            [0, 0, 0, 1] => "extranet_ipv6",
            _ => "",
        }
    }

    #[test]
    fn private_ipv4_is_rfc_1918() {
        for ip in ["10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1"] {
            assert_eq!(list_of(ip), "intranet_ipv4", "{ip}");
        }
        // Generations A and B treated 172.48.0.0 as private; C does not.
        for ip in ["172.15.0.1", "172.32.0.1", "172.48.0.1", "192.169.0.1", "100.64.0.1", "8.8.8.8", "240.0.0.1"] {
            assert_eq!(list_of(ip), "extranet_ipv4", "{ip}");
        }
    }

    #[test]
    fn private_ipv6_is_fd00() {
        assert_eq!(list_of("fd12:3456::1"), "intranet_ipv6");
        for ip in ["fc00::1", "2001:db8::1", "fec0::1", "64:ff9b::1"] {
            assert_eq!(list_of(ip), "extranet_ipv6", "{ip}");
        }
    }

    #[test]
    fn only_global_unicast_is_reported() {
        for ip in ["127.0.0.1", "169.254.1.1", "224.0.0.1", "239.1.2.3", "0.0.0.0", "255.255.255.255"] {
            assert_eq!(list_of(ip), "", "{ip}");
        }
        for ip in ["::1", "fe80::1", "febf::1", "ff02::1", "::", "::ffff:127.0.0.1"] {
            assert_eq!(list_of(ip), "", "{ip}");
        }
    }

    #[test]
    fn mapped_ipv4_is_ipv4() {
        assert_eq!(classify(&[("eth0", "::ffff:10.1.2.3")]).intranet_ipv4, ["10.1.2.3"]);
    }

    #[test]
    fn docker_and_loopback_interfaces_are_left_out() {
        let sorted = classify(&[
            ("docker0", "172.17.0.1"),
            ("docker_gwbridge", "172.18.0.1"),
            ("lo", "192.168.9.9"),
            ("lo:1", "8.8.4.4"),
            ("br-0a1b", "172.19.0.1"),
            ("wlo1", "192.168.1.2"),
        ]);
        assert_eq!(sorted.intranet_ipv4, ["172.19.0.1", "192.168.1.2"]);
        assert!(sorted.extranet_ipv4.is_empty());
    }

    #[test]
    fn lists_are_bounded_and_keep_their_order() {
        let addresses: Vec<_> = (1..=100u8)
            .flat_map(|n| {
                [
                    IpAddr::from([10, 0, 0, n]),
                    IpAddr::from([8, 8, 8, n]),
                    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
                    IpAddr::from([0x2001, 0, 0, 0, 0, 0, 0, u16::from(n)]),
                ]
            })
            .collect();
        let sorted = Addresses::classify(addresses.into_iter().map(|ip| ("eth0", ip)));
        assert_eq!(sorted.intranet_ipv4, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]);
        assert_eq!(sorted.intranet_ipv6[4], "fd00::5");
        let lengths = [sorted.extranet_ipv4.len(), sorted.intranet_ipv6.len(), sorted.extranet_ipv6.len()];
        assert_eq!(lengths, [64, 5, 64]);
    }

    #[test]
    fn the_live_host_can_be_asked() {
        let sorted = Addresses::current().unwrap();
        assert!(!sorted.intranet_ipv4.iter().chain(&sorted.extranet_ipv4).any(|ip| ip.starts_with("127.")));
        assert!(!hostname().is_empty());
    }
}
