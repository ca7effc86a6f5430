//! Decides which of a name's addresses to connect to, and when: "Happy Eyeballs" (RFC 8305).
//!
//! A host may have IPv6 and IPv4 addresses of which one kind leads nowhere. A name server may answer the question for
//! one kind late, with an error, or never. So the two kinds take turns, a second attempt soon joins one that is not
//! answered, and the first connection wins.
//!
//! The shell asks for addresses of both kinds and passes each answer to [`Race::handle_addresses`]. It begins a
//! connection for each address from [`Race::poll_connect`], and reports failures to [`Race::handle_failure`]. It is
//! done at the first success or when [`Race::is_lost`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::limits::MAX_ADDRESSES;
use crate::time::Millis;

/// How long to wait for IPv6 addresses once there are IPv4 ones (RFC 8305, section 3: resolution delay).
pub const RESOLUTION_DELAY_MS: u64 = 50;

/// How long an attempt runs alone before the next one joins it (RFC 8305, section 5: connection attempt delay).
pub const ATTEMPT_DELAY_MS: u64 = 250;

/// A kind of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv6. It goes first.
    V6,
    /// IPv4.
    V4,
}

impl Family {
    fn other(self) -> Self {
        match self {
            Self::V6 => Self::V4,
            Self::V4 => Self::V6,
        }
    }
}

/// The known addresses of one kind.
#[derive(Debug, Default)]
struct Addresses {
    is_answered: bool,
    waiting: VecDeque<SocketAddr>,
}

/// A race between the addresses of one name for one connection.
#[derive(Debug)]
pub struct Race {
    v6: Addresses,
    v4: Addresses,
    /// The kind whose turn it is.
    next: Family,
    /// The next attempt may not begin before this.
    due: Millis,
    begun: usize,
    failed: usize,
}

impl Race {
    /// A race without addresses yet.
    #[must_use]
    pub fn new() -> Self {
        let (v6, v4) = (Addresses::default(), Addresses::default());
        Self { v6, v4, next: Family::V6, due: Millis(0), begun: 0, failed: 0 }
    }

    /// The question for one kind of addresses was answered. A failed question has no addresses.
    pub fn handle_addresses(&mut self, family: Family, addresses: Vec<SocketAddr>, now: Millis) {
        let of_family = self.of(family);
        of_family.is_answered = true;
        of_family.waiting.extend(addresses);
        if self.begun == 0 {
            let waits_for_v6 = family == Family::V4 && !self.v6.is_answered;
            self.due = now + if waits_for_v6 { RESOLUTION_DELAY_MS } else { 0 };
        }
    }

    /// An attempt has failed, so the next one need not wait.
    pub fn handle_failure(&mut self, now: Millis) {
        self.failed += 1;
        self.due = now;
    }

    /// Returns an address to connect to now. Call this again after each answer, after each failure, and at
    /// [`Race::poll_timeout`].
    #[must_use]
    pub fn poll_connect(&mut self, now: Millis) -> Option<SocketAddr> {
        if now < self.due || self.begun == MAX_ADDRESSES {
            return None;
        }
        let [first, second] = [self.next, self.next.other()];
        let (family, address) = match self.of(first).waiting.pop_front() {
            Some(address) => (first, address),
            None => (second, self.of(second).waiting.pop_front()?),
        };
        self.next = family.other();
        self.due = now + ATTEMPT_DELAY_MS;
        self.begun += 1;
        Some(address)
    }

    /// When the next attempt may begin, if there is an address for it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.has_address().then_some(self.due)
    }

    /// Returns true while an attempt is under way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.begun > self.failed
    }

    /// Returns true when the race can no longer lead to a connection.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let is_answered = self.v6.is_answered && self.v4.is_answered;
        is_answered && !self.has_address() && !self.is_running()
    }

    fn has_address(&self) -> bool {
        self.begun < MAX_ADDRESSES && !(self.v6.waiting.is_empty() && self.v4.waiting.is_empty())
    }

    fn of(&mut self, family: Family) -> &mut Addresses {
        match family {
            Family::V6 => &mut self.v6,
            Family::V4 => &mut self.v4,
        }
    }
}

impl Default for Race {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn v6(n: usize) -> SocketAddr {
        format!("[fd00::{n}]:6751").parse().expect("an address")
    }

    fn v4(n: usize) -> SocketAddr {
        format!("10.0.0.{n}:6751").parse().expect("an address")
    }

    #[test]
    fn the_kinds_take_turns_and_an_attempt_without_an_answer_gets_company() {
        let mut race = Race::new();
        race.handle_addresses(Family::V4, vec![v4(1), v4(2), v4(3)], Millis(0));
        race.handle_addresses(Family::V6, vec![v6(1), v6(2)], Millis(1));
        let mut now = Millis(1);
        let mut order = vec![];
        while let Some(due) = race.poll_timeout() {
            assert!(order.is_empty() || due == now + ATTEMPT_DELAY_MS);
            now = now.max(due);
            order.extend(race.poll_connect(now));
            assert_eq!(race.poll_connect(now), None, "one at a time");
        }
        assert_eq!(order, [v6(1), v4(1), v6(2), v4(2), v4(3)]);
        assert!(race.is_running() && !race.is_lost());
        (0..5).for_each(|_| race.handle_failure(now));
        assert!(race.is_lost());
    }

    #[test]
    fn a_failure_has_the_next_attempt_begin_at_once() {
        let mut race = Race::new();
        race.handle_addresses(Family::V6, vec![v6(1)], Millis(0));
        race.handle_addresses(Family::V4, vec![v4(1)], Millis(0));
        assert_eq!(race.poll_connect(Millis(0)), Some(v6(1)));
        race.handle_failure(Millis(3));
        assert_eq!(race.poll_connect(Millis(3)), Some(v4(1)));
    }

    #[test]
    fn the_second_answer_is_waited_for_shortly_and_welcome_later() {
        let mut race = Race::new();
        race.handle_addresses(Family::V4, vec![v4(1)], Millis(100));
        assert_eq!((race.poll_connect(Millis(100)), race.poll_timeout()), (None, Some(Millis(150))));
        assert_eq!(race.poll_connect(Millis(150)), Some(v4(1)));
        race.handle_failure(Millis(151));
        assert!(!race.is_lost(), "the other answer may help");
        race.handle_addresses(Family::V6, vec![v6(1)], Millis(5_000));
        assert_eq!(race.poll_connect(Millis(5_000)), Some(v6(1)));

        let mut race = Race::new();
        race.handle_addresses(Family::V4, vec![v4(1)], Millis(0));
        race.handle_addresses(Family::V6, vec![], Millis(7));
        assert_eq!(race.poll_connect(Millis(7)), Some(v4(1)), "there is nothing to wait for");

        let mut race = Race::new();
        race.handle_addresses(Family::V6, vec![v6(1)], Millis(0));
        assert_eq!(race.poll_connect(Millis(0)), Some(v6(1)), "IPv6 waits for nobody");
    }

    proptest! {
        /// Every address is tried once, up to the limit, in whatever order answers and failures come. Then the race is lost.
        #[test]
        fn every_address_is_tried_and_the_race_ends(
            counts in (0..12usize, 0..12usize),
            steps in prop::collection::vec((0..4u8, 0..400u64), 0..100),
        ) {
            let mut race = Race::new();
            let mut answers = vec![
                (Family::V6, (0..counts.0).map(v6).collect::<Vec<_>>()),
                (Family::V4, (0..counts.1).map(v4).collect::<Vec<_>>()),
            ];
            let (mut now, mut tried, mut failed) = (Millis(0), vec![], 0);
            let rest = core::iter::repeat_n((0, 0), 2).chain(core::iter::repeat_n((2, 0), 60));
            for (step, wait) in steps.into_iter().chain(rest) {
                now = now + wait;
                match step {
                    0 | 1 if !answers.is_empty() => {
                        let (family, addresses) = answers.remove(usize::from(step) % answers.len());
                        race.handle_addresses(family, addresses, now);
                    }
                    2 if tried.len() > failed => {
                        race.handle_failure(now);
                        failed += 1;
                    }
                    _ => now = now.max(race.poll_timeout().unwrap_or(now)),
                }
                tried.extend(race.poll_connect(now));
                prop_assert_eq!(race.is_running(), tried.len() > failed);
            }
            prop_assert!(race.is_lost());
            prop_assert_eq!(tried.len(), MAX_ADDRESSES.min(counts.0 + counts.1));
            tried.sort_unstable();
            tried.dedup();
            prop_assert_eq!(tried.len(), MAX_ADDRESSES.min(counts.0 + counts.1));
        }
    }
}
