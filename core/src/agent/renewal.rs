//! When the agent asks for its next certificate: in the last third of the current one's life, with patience.
//!
//! It is told the time of day, which may jump. A clock that is ahead makes it ask too early, and once it has a certificate that looks as
//! old, ever less often. One that is behind makes it ask too late, or never, which it cannot know.

use crate::time::Millis;

/// The time until a second try, which doubles with each further one. It is longer for agents that come later within the spread.
const FIRST_PAUSE_MS: u64 = 10_000;

/// The longest time between two tries.
const MAX_PAUSE_MS: u64 = 6 * 60 * 60 * 1000;

/// The time until a server that does not know the call is asked again. It may be a newer one by then.
const UNKNOWN_PAUSE_MS: u64 = 24 * 60 * 60 * 1000;

/// A fleet that was enrolled in one go is spread over this part of a certificate's life.
const SPREAD_PERMILLE: i64 = 100;

/// A moment that is further away is looked at again before it comes.
const MAX_AHEAD_S: i64 = 400 * 24 * 60 * 60;

/// From when and until when a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// `notBefore`.
    pub from: i64,
    /// `notAfter`.
    pub until: i64,
}

/// What came of asking for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// There is a new one, and it is in use.
    Done,
    /// There is none, and there may be one later.
    Failed,
    /// The server does not know the call.
    Unknown,
}

/// The state of the certificate, if it is one that its server renews.
#[derive(Debug)]
pub(super) struct Renewal {
    lifetime: Option<Lifetime>,
    /// This agent's place within the spread, in thousandths.
    place: i64,
    /// When the certificate is old enough.
    due: Option<Millis>,
    /// Not before this, because of earlier tries.
    not_before: Millis,
    pause_ms: u64,
    is_running: bool,
    /// What it was asked for has come, and is being kept.
    is_given: bool,
}

impl Renewal {
    pub(super) fn new(seed: u64, now: Millis) -> Self {
        let place = (seed % 1000).cast_signed();
        Self {
            lifetime: None,
            place,
            due: None,
            not_before: now,
            pause_ms: FIRST_PAUSE_MS,
            is_running: false,
            is_given: false,
        }
    }

    /// The certificate in use is this one, and the time of day is this.
    pub(super) fn handle_certificate(&mut self, lifetime: Option<Lifetime>, unix_seconds: i64, now: Millis) {
        let is_new = lifetime != self.lifetime;
        self.lifetime = lifetime;
        self.due = lifetime.and_then(|Lifetime { from, until }| {
            let length = until.checked_sub(from).filter(|length| *length > 0)?;
            // Divided first, so that no length is too long. What that loses is less than a thousandth of the life.
            let spread = length / 1000 * SPREAD_PERMILLE;
            let at = until - length / 3 + spread / 1000 * self.place;
            let ahead_s = at.saturating_sub(unix_seconds).clamp(0, MAX_AHEAD_S);
            if is_new && ahead_s > 0 {
                (self.not_before, self.pause_ms) = (now, FIRST_PAUSE_MS);
            }
            Some(now + 1000 * ahead_s.unsigned_abs())
        });
    }

    /// Returns when it is time to ask, unless that is being done.
    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        self.due.filter(|_| !self.is_running).map(|due| due.max(self.not_before))
    }

    /// Begins to ask, if it is time to. Returns true if it did.
    pub(super) fn begin(&mut self, now: Millis) -> bool {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return false;
        }
        self.is_running = true;
        self.not_before = now + self.pause_ms + self.pause_ms / 1000 * self.place.unsigned_abs();
        self.pause_ms = (2 * self.pause_ms).min(MAX_PAUSE_MS);
        true
    }

    pub(super) fn handle_given(&mut self) {
        self.is_given = true;
    }

    pub(super) fn handle_renewed(&mut self, renewed: Renewed, now: Millis) {
        (self.is_running, self.is_given) = (false, false);
        if renewed == Renewed::Unknown {
            self.not_before = now + UNKNOWN_PAUSE_MS;
        }
    }

    /// The stream on which it was asked for is gone. What has come on it is kept all the same.
    pub(super) fn handle_ended(&mut self) {
        self.is_running &= self.is_given;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400;
    const LIFETIME: Lifetime = Lifetime { from: 1_000 * DAY, until: 1_090 * DAY };

    fn renewal(seed: u64, unix_seconds: i64) -> Renewal {
        let mut renewal = Renewal::new(seed, Millis(0));
        renewal.handle_certificate(Some(LIFETIME), unix_seconds, Millis(0));
        renewal
    }

    fn due_days(seed: u64) -> f64 {
        renewal(seed, LIFETIME.from).poll_timeout().expect("it is renewed").0 as f64 / 86_400_000.0
    }

    #[test]
    fn a_certificate_is_renewed_in_its_last_third_and_a_fleet_is_spread() {
        assert_eq!(due_days(0), 60.0);
        assert!((64.4..64.6).contains(&due_days(500)), "{}", due_days(500));
        assert!(due_days(999) < 69.0);
    }

    #[test]
    fn a_certificate_that_no_center_gave_is_left_alone() {
        let mut renewal = renewal(0, LIFETIME.until);
        renewal.handle_certificate(None, LIFETIME.until, Millis(0));
        assert!(renewal.poll_timeout().is_none() && !renewal.begin(Millis(u64::MAX / 2)));
        renewal.handle_certificate(Some(Lifetime { from: 5, until: 5 }), 9, Millis(0));
        assert_eq!(renewal.poll_timeout(), None, "one without a life");
    }

    #[test]
    fn what_fails_is_tried_ever_less_often_and_a_new_certificate_begins_anew() {
        let (mut renewal, mut now, mut pauses) = (renewal(0, LIFETIME.until), Millis(0), 0);
        while pauses < 30 {
            assert!(renewal.begin(now) && !renewal.begin(now), "one at a time");
            renewal.handle_renewed(Renewed::Failed, now);
            let next = renewal.poll_timeout().expect("it is tried again");
            assert!(next.since(now) >= FIRST_PAUSE_MS && next.since(now) <= 2 * MAX_PAUSE_MS);
            (now, pauses) = (next, pauses + 1);
        }
        assert!(renewal.begin(now));
        assert_eq!(renewal.poll_timeout(), None);
        renewal.handle_renewed(Renewed::Failed, now);
        assert_eq!(renewal.poll_timeout(), Some(now + 6 * 3_600_000));
        let next = Lifetime { from: LIFETIME.until, until: LIFETIME.until + 90 };
        renewal.handle_certificate(Some(next), next.from, now);
        assert_eq!(renewal.poll_timeout(), Some(now + 60_000));
    }

    #[test]
    fn who_comes_later_within_the_spread_waits_longer() {
        let mut renewal = renewal(500, LIFETIME.until);
        assert!(renewal.begin(Millis(0)));
        renewal.handle_renewed(Renewed::Failed, Millis(0));
        assert_eq!(renewal.poll_timeout(), Some(Millis(FIRST_PAUSE_MS * 3 / 2)));
    }

    #[test]
    fn a_server_that_does_not_know_the_call_is_asked_once_a_day() {
        let mut renewal = renewal(0, LIFETIME.until);
        assert!(renewal.begin(Millis(5)));
        renewal.handle_renewed(Renewed::Unknown, Millis(6));
        assert_eq!(renewal.poll_timeout(), Some(Millis(6) + UNKNOWN_PAUSE_MS));
    }

    #[test]
    fn a_stream_that_breaks_meanwhile_lets_the_next_one_ask() {
        let mut renewal = renewal(0, LIFETIME.until);
        assert!(renewal.begin(Millis(0)));
        assert_eq!(renewal.poll_timeout(), None);
        renewal.handle_ended();
        assert_eq!(renewal.poll_timeout(), Some(Millis(FIRST_PAUSE_MS)));
    }

    #[test]
    fn no_other_is_asked_for_while_one_is_being_kept_whatever_the_stream_does() {
        let mut renewal = renewal(0, LIFETIME.until);
        assert!(renewal.begin(Millis(0)));
        renewal.handle_given();
        renewal.handle_ended();
        assert!(renewal.poll_timeout().is_none() && !renewal.begin(Millis(FIRST_PAUSE_MS)));
        renewal.handle_renewed(Renewed::Failed, Millis(FIRST_PAUSE_MS));
        assert!(renewal.begin(Millis(FIRST_PAUSE_MS)));
        renewal.handle_ended();
        assert!(renewal.begin(Millis(4 * FIRST_PAUSE_MS)), "nothing has come of that one");
    }

    #[test]
    fn a_clock_that_is_ahead_for_good_asks_ever_less_often() {
        let (mut renewal, mut now, mut asked) = (renewal(0, 5_000 * DAY), Millis(0), 0);
        while now.0 < 10 * 24 * 60 * 60 * 1000 {
            now = renewal.poll_timeout().expect("it looks due");
            assert!(renewal.begin(now));
            asked += 1;
            // The center's clock is right, so that the new certificate looks old as well.
            let next = Lifetime { from: LIFETIME.from + asked, until: LIFETIME.until + asked };
            renewal.handle_certificate(Some(next), 5_000 * DAY, now);
            renewal.handle_renewed(Renewed::Done, now);
        }
        assert!(asked < 60, "{asked} times in ten days");
    }

    proptest! {
        #[test]
        fn no_time_of_day_and_no_certificate_is_too_odd(from: i64, until: i64, unix_seconds: i64, seed: u64, at in 0..u64::MAX / 2) {
            let mut renewal = Renewal::new(seed, Millis(at));
            renewal.handle_certificate(Some(Lifetime { from, until }), unix_seconds, Millis(at));
            if let Some(due) = renewal.poll_timeout() {
                prop_assert!(due >= Millis(at) && renewal.begin(due));
            }
        }
    }
}
