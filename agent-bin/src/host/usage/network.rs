//! The host's name servers and gateway.

use std::net::Ipv4Addr;

use super::super::root::HostRoot;

/// Most bytes of `/etc/resolv.conf` that are read. A resolver uses its first three servers.
const RESOLV_CONF_LIMIT: u64 = 8 * 1024;

/// Most bytes of `/proc/net/route` that are read, 512 routes of 128 bytes. The default route comes first.
const ROUTE_LIMIT: u64 = 64 * 1024;

/// `RTF_UP | RTF_GATEWAY`, `linux/route.h`: the route is usable and leads through another host.
const GATEWAY_FLAGS: u32 = 0x1 | 0x2;

/// The addresses of `/etc/resolv.conf`'s `nameserver` lines, joined by commas.
pub(in crate::host) fn name_servers(host: &HostRoot) -> String {
    let mut joined = String::new();
    for line in host.text("/etc/resolv.conf", RESOLV_CONF_LIMIT).lines() {
        let mut words = line.split_whitespace();
        if let (Some("nameserver"), Some(address)) = (words.next(), words.next()) {
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(address);
        }
    }
    joined
}

/// The first IPv4 gateway of the routing table, if there is one.
pub(in crate::host) fn gateway(host: &HostRoot) -> Option<Ipv4Addr> {
    host.text("/proc/net/route", ROUTE_LIMIT).lines().skip(1).find_map(gateway_of)
}

/// The gateway in one line: interface, destination, gateway, flags, … The kernel prints an address as the hexadecimal
/// number that its four bytes in network order are on this machine.
fn gateway_of(line: &str) -> Option<Ipv4Addr> {
    let mut words = line.split_ascii_whitespace().skip(2);
    let gateway = u32::from_str_radix(words.next()?, 16).ok()?;
    let flags = u32::from_str_radix(words.next()?, 16).ok()?;
    (flags & GATEWAY_FLAGS == GATEWAY_FLAGS).then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::super::root::tests::Tree;
    use super::*;

    #[test]
    fn name_servers_are_joined() {
        let text = "# a comment\nsearch example.com\nnameserver 10.0.0.2\n  nameserver\t2001:db8::53 # why\n\
                    nameserver\n;nameserver 1.1.1.1\nnameservers 9.9.9.9\noptions edns0\n";
        let tree = Tree::new(&[("/etc/resolv.conf", text)]);
        assert_eq!(name_servers(tree.host()), "10.0.0.2,2001:db8::53");
        assert_eq!(name_servers(Tree::new(&[]).host()), "");
    }

    #[test]
    fn the_first_usable_gateway_is_taken() {
        let gateway_word = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let table = format!(
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
             eth1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
             eth2\t00000000\t{down}\t0002\t0\t0\t0\t00000000\t0\t0\t0\n\
             eth0\t00000000\t{first}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t00000000\t{second}\t0003\t0\t0\t200\t00000000\t0\t0\t0\n",
            down = gateway_word([10, 9, 9, 9]),
            first = gateway_word([192, 168, 1, 2]),
            second = gateway_word([192, 168, 1, 3]),
        );
        let tree = Tree::new(&[("/proc/net/route", &table)]);
        assert_eq!(gateway(tree.host()), Some(Ipv4Addr::new(192, 168, 1, 2)));
    }

    #[test]
    fn a_table_without_a_gateway_gives_none() {
        for table in ["", "Iface\n", "Iface\nshort line\neth0\tzz\tzz\tzz\n", "Iface\neth0 0 1FFFFFFFF 0003\n"] {
            assert_eq!(gateway(Tree::new(&[("/proc/net/route", table)]).host()), None, "{table:?}");
        }
        assert_eq!(gateway(Tree::new(&[]).host()), None);
    }
}
