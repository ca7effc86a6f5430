//! How often somebody may try to get in.

use std::collections::HashMap;
use std::net::IpAddr;

/// Names and addresses that are remembered, of each. Those who have waited longest are forgotten first.
const REMEMBERED: usize = 10_000;

/// Tries at once, and then one for each so many milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: i64,
    pub(crate) per_try_ms: i64,
}

/// Tries by the name that is tried, and by the address it is tried from.
#[derive(Debug)]
pub(crate) struct Limits {
    addresses: Tries,
    names: Tries,
}

/// Tries of some kind, by who makes them.
#[derive(Debug)]
pub(super) struct Tries {
    rate: Rate,
    spent: HashMap<String, Spent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spent {
    /// When all tries are there again, in milliseconds since 1970.
    full_at_ms: i64,
    /// True once somebody was told that there are none left, until there is one again.
    told: bool,
}

/// There were too many tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany {
    /// Seconds until the next try.
    pub(crate) wait_s: i64,
    /// True for the first refusal since the last try.
    pub(crate) first: bool,
}

impl Limits {
    /// Tries at these rates.
    pub(crate) fn new(address: Rate, name: Rate) -> Self {
        Self { addresses: Tries::new(address), names: Tries::new(name) }
    }

    /// Takes a try, of a name if there is one. A try counts from its beginning, so that many at once do not help.
    pub(crate) fn take(&mut self, name: Option<&str>, address: IpAddr, now_ms: i64) -> Result<(), TooMany> {
        let address = site_of(address);
        let address_wait = self.addresses.wait(&address, now_ms);
        let name_wait = name.map_or(Ok(()), |name| self.names.wait(name, now_ms));
        address_wait.and(name_wait)?;
        self.addresses.spend(&address, now_ms);
        if let Some(name) = name {
            self.names.spend(name, now_ms);
        }
        Ok(())
    }

    /// Gives the address its try back: it was right. The name's is spent.
    pub(crate) fn give_back(&mut self, address: IpAddr) {
        self.addresses.give_back(&site_of(address));
    }
}

/// Returns the address, or of one of version 6 the network that one site has.
pub(crate) fn site_of(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

impl Tries {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, spent: HashMap::new() }
    }

    /// Takes a try if there is one.
    pub(super) fn take(&mut self, key: &str, now_ms: i64) -> Result<(), TooMany> {
        self.wait(key, now_ms)?;
        self.spend(key, now_ms);
        Ok(())
    }

    fn give_back(&mut self, key: &str) {
        if let Some(tries) = self.spent.get_mut(key) {
            tries.full_at_ms -= self.rate.per_try_ms;
        }
    }

    fn wait(&mut self, key: &str, now_ms: i64) -> Result<(), TooMany> {
        let Rate { burst, per_try_ms } = self.rate;
        let Some(tries) = self.spent.get_mut(key) else { return Ok(()) };
        let wait_ms = tries.full_at_ms - now_ms - (burst - 1) * per_try_ms;
        if wait_ms <= 0 {
            return Ok(());
        }
        let first = !std::mem::replace(&mut tries.told, true);
        // A clock that was set back must not keep anybody out for ever.
        let wait_ms = wait_ms.min(per_try_ms);
        tries.full_at_ms = tries.full_at_ms.min(now_ms + burst * per_try_ms);
        Err(TooMany { wait_s: (wait_ms + 999) / 1000, first })
    }

    fn spend(&mut self, key: &str, now_ms: i64) {
        let spent = &mut self.spent;
        if spent.len() >= REMEMBERED && !spent.contains_key(key) {
            spent.retain(|_, tries| tries.full_at_ms > now_ms);
            while spent.len() >= REMEMBERED
                && let Some(key) = spent.iter().min_by_key(|(_, tries)| tries.full_at_ms).map(|(key, _)| key.clone())
            {
                spent.remove(&key);
            }
        }
        let tries = spent.entry(key.to_owned()).or_insert(Spent { full_at_ms: now_ms, told: false });
        *tries = Spent { full_at_ms: tries.full_at_ms.max(now_ms) + self.rate.per_try_ms, told: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Rate = Rate { burst: 10, per_try_ms: 60_000 };
    const NAME: Rate = Rate { burst: 20, per_try_ms: 15_000 };

    fn limits() -> Limits {
        Limits::new(ADDRESS, NAME)
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn an_address_has_ten_tries_and_then_one_a_minute() {
        let mut limits = limits();
        for _ in 0..10 {
            assert_eq!(limits.take(None, address(1), 0), Ok(()));
        }
        assert_eq!(limits.take(None, address(1), 0), Err(TooMany { wait_s: 60, first: true }));
        assert_eq!(limits.take(None, address(1), 30_000), Err(TooMany { wait_s: 30, first: false }));
        assert_eq!(limits.take(None, address(2), 0), Ok(()), "another address");
        assert_eq!(limits.take(None, address(1), 60_000), Ok(()));
        assert_eq!(limits.take(None, address(1), 60_000), Err(TooMany { wait_s: 60, first: true }));
    }

    #[test]
    fn a_name_has_twenty_tries_from_all_addresses_together() {
        let mut limits = limits();
        for n in 0..20 {
            assert_eq!(limits.take(Some("ann"), address(n), 0), Ok(()));
        }
        assert_eq!(limits.take(Some("ann"), address(99), 0), Err(TooMany { wait_s: 15, first: true }));
        assert_eq!(limits.take(Some("bob"), address(99), 0), Ok(()));
        assert_eq!(limits.take(Some("ann"), address(99), 15_000), Ok(()));
    }

    #[test]
    fn those_who_are_right_do_not_keep_others_at_their_address_out() {
        let mut limits = limits();
        for n in 0..1000 {
            assert_eq!(limits.take(Some(&n.to_string()), address(1), 0), Ok(()));
            limits.give_back(address(1));
        }
        for _ in 0..20 {
            assert_eq!(limits.take(Some("ann"), address(1), 0), Ok(()));
            limits.give_back(address(1));
        }
        assert_eq!(limits.take(Some("ann"), address(1), 0), Err(TooMany { wait_s: 15, first: true }));
    }

    #[test]
    fn the_addresses_of_one_network_count_together() {
        let mut limits = limits();
        let of = |text: &str| text.parse().unwrap();
        for n in 0..10 {
            limits.take(None, of(&format!("2001:db8:1:2::{n}")), 0).unwrap();
        }
        assert!(limits.take(None, of("2001:db8:1:2:3:4:5:6"), 0).is_err());
        assert!(limits.take(None, of("2001:db8:1:3::1"), 0).is_ok());
        for _ in 0..10 {
            limits.take(None, of("10.0.0.1"), 0).unwrap();
        }
        assert!(limits.take(None, of("::ffff:10.0.0.1"), 0).is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut limits = limits();
        for n in 0..10 {
            limits.take(None, address(0), n).unwrap();
        }
        for n in 1..12_000 {
            limits.take(Some(&n.to_string()), address(n), 20).unwrap();
        }
        assert_eq!((limits.addresses.spent.len(), limits.names.spent.len()), (REMEMBERED, REMEMBERED));
        assert!(limits.take(None, address(0), 20).is_err(), "who tries most is remembered longest");
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nobody_out_for_long() {
        let mut limits = limits();
        for _ in 0..10 {
            limits.take(None, address(1), 1_000_000_000).unwrap();
        }
        assert_eq!(limits.take(None, address(1), 0), Err(TooMany { wait_s: 60, first: true }));
        assert_eq!(limits.take(None, address(1), 60_000), Ok(()));
    }
}
