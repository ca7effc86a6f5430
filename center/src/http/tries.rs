//! Who may try to sign in now.
//!
//! An address has few tries, whatever the names. A name has many from all addresses together, so that it takes many addresses to keep a user
//! waiting. A browser that the user has signed in with before has tries of its own, which nobody else can spend.

use super::limit::{Limits, Rate, TooMany, Tries};
use std::net::IpAddr;

const ADDRESS: Rate = Rate { burst: 10, per_try_ms: 60_000 };

/// 500 guesses and then 43,200 a day, which guess no password of ten characters that is not a common one. To spend the one of each 2 s takes
/// 30 addresses that guess without a pause.
const NAME: Rate = Rate { burst: 500, per_try_ms: 2_000 };

/// A browser that was stolen makes no more guesses than an address.
const BROWSER: Rate = Rate { burst: 10, per_try_ms: 60_000 };

/// Right passwords of a name: a user who signs in over and over would fill the audit trail.
const RIGHT: Rate = Rate { burst: 20, per_try_ms: 15_000 };

/// A try, which is given back to whoever was right.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Try {
    /// It was the browser's.
    OfBrowser,
    /// It was the address's.
    OfAddress(IpAddr),
}

/// The tries of everybody.
#[derive(Debug)]
pub(super) struct SignInTries {
    strangers: Limits,
    browsers: Tries,
    right: Tries,
}

impl Default for SignInTries {
    fn default() -> Self {
        Self { strangers: Limits::new(ADDRESS, NAME), browsers: Tries::new(BROWSER), right: Tries::new(RIGHT) }
    }
}

impl SignInTries {
    /// Takes a try: of the browser, if it is one that the user of this name has signed in with, and has any left; else of the address and of
    /// the name, if there is one. A try counts from its beginning, so that many at once do not help.
    pub(super) fn take(
        &mut self,
        name: Option<&str>,
        browser: Option<&str>,
        address: IpAddr,
        now_ms: i64,
    ) -> Result<Try, TooMany> {
        if browser.is_some_and(|browser| self.browsers.take(browser, now_ms).is_ok()) {
            return Ok(Try::OfBrowser);
        }
        self.strangers.take(name, address, now_ms).map(|()| Try::OfAddress(address))
    }

    /// Gives an address its try back: it was right. Those of the name and of the browser are spent.
    pub(super) fn give_back(&mut self, spent: &Try) {
        if let Try::OfAddress(address) = spent {
            self.strangers.give_back(*address);
        }
    }

    /// Counts a right password of a name.
    pub(super) fn right(&mut self, name: &str, now_ms: i64) -> Result<(), TooMany> {
        self.right.take(name, now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    /// Guesses a name from so many addresses, as often as they may at once.
    fn guess(tries: &mut SignInTries, addresses: u32, now_ms: i64) {
        for n in 0..addresses {
            while tries.take(Some("ann"), None, address(n), now_ms).is_ok() {}
        }
    }

    #[test]
    fn a_few_addresses_that_guess_keep_nobody_else_waiting() {
        let mut tries = SignInTries::default();
        for minute in 0..60 {
            guess(&mut tries, 20, minute * 60_000);
            assert_eq!(tries.take(Some("ann"), None, address(99), minute * 60_000), Ok(Try::OfAddress(address(99))));
            tries.give_back(&Try::OfAddress(address(99)));
        }
        assert!(tries.take(Some("ann"), None, address(7), 59 * 60_000).is_err(), "those who guess wait");
    }

    #[test]
    fn many_addresses_keep_a_name_waiting_but_not_in_a_browser_that_is_known() {
        let mut tries = SignInTries::default();
        guess(&mut tries, 60, 0);
        let stranger = tries.take(Some("ann"), None, address(99), 0);
        assert!(matches!(stranger, Err(TooMany { wait_s: 2, .. })), "{stranger:?}");
        assert_eq!(tries.take(Some("bob"), None, address(99), 0), Ok(Try::OfAddress(address(99))));
        for _ in 0..10 {
            assert_eq!(tries.take(Some("ann"), Some("laptop"), address(0), 0), Ok(Try::OfBrowser));
        }
        assert!(tries.take(Some("ann"), Some("laptop"), address(0), 0).is_err(), "it has as many as an address");
        assert_eq!(tries.take(Some("ann"), Some("tablet"), address(0), 0), Ok(Try::OfBrowser));
    }

    #[test]
    fn a_browser_without_tries_has_those_of_its_address() {
        let mut tries = SignInTries::default();
        for _ in 0..10 {
            assert_eq!(tries.take(Some("ann"), Some("laptop"), address(1), 0), Ok(Try::OfBrowser));
        }
        assert_eq!(tries.take(Some("ann"), Some("laptop"), address(1), 0), Ok(Try::OfAddress(address(1))));
    }

    #[test]
    fn those_who_are_right_over_and_over_wait_by_their_name_alone() {
        let mut tries = SignInTries::default();
        for _ in 0..20 {
            let spent = tries.take(Some("ann"), None, address(1), 0).unwrap();
            assert_eq!(tries.right("ann", 0), Ok(()));
            tries.give_back(&spent);
        }
        assert_eq!(tries.right("ann", 0), Err(TooMany { wait_s: 15, first: true }));
        assert_eq!(tries.right("bob", 0), Ok(()));
        assert!(tries.take(Some("bob"), None, address(1), 0).is_ok());
    }
}
