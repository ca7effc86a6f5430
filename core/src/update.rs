//! Decides about the agent's own update: whether to try a version that the server names, and whether a version on trial may stay.
//!
//! ```text
//!   named by the server -> fetched, checked -> in place, on trial -> it has held a stream long enough: it stays
//!                                                                 -> it has not, or has started too often: the old one is back
//! ```
//! The version on trial counts its own starts. A version that cannot even do that is beyond what this module can help.

use alloc::format;
use alloc::string::String;
use core::cmp::Ordering;
use core::fmt;

use crate::command::AgentConfig;
use crate::limits::MAX_TRIAL_STARTS;
use crate::time::Millis;

/// Checks whether an agent of version `running` should try the version that the server names. `failed` are the version
/// and the SHA-256 (in hexadecimal) of the last version that was rolled back, if there is one.
///
/// # Errors
/// Why the agent should not try it.
pub fn may_try(
    wanted: &AgentConfig,
    running: &str,
    failed: Option<(&str, &str)>,
    allow_downgrade: bool,
) -> Result<(), NotTried> {
    let version = &wanted.version;
    let not_tried = |why| NotTried { version: version.clone(), running: running.into(), why };
    if failed == Some((version, &format!("{}", wanted.sha256))) {
        return Err(not_tried(Objection::Failed));
    }
    match compare(version, running) {
        _ if allow_downgrade => Ok(()),
        Some(Ordering::Greater) => Ok(()),
        Some(_) => Err(not_tried(Objection::NotLater)),
        None => Err(not_tried(Objection::Incomparable)),
    }
}

/// The server names a version that this agent should not try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotTried {
    /// The version that the server names.
    pub version: String,
    /// The version that runs.
    pub running: String,
    /// What speaks against it.
    pub why: Objection,
}

/// What speaks against a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// It was tried and rolled back.
    Failed,
    /// It is not later than the one that runs.
    NotLater,
    /// Nobody can say which of the two is later.
    Incomparable,
}

impl fmt::Display for NotTried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, running, why } = self;
        match why {
            Objection::Failed => {
                write!(f, "version {version} has failed here, and is not tried again until the server names another")
            }
            Objection::NotLater => {
                write!(f, "version {version} is not later than {running}, and update.allow_downgrade is off")
            }
            Objection::Incomparable => {
                write!(f, "version {version:.80} cannot be compared with {running}, and update.allow_downgrade is off")
            }
        }
    }
}

impl core::error::Error for NotTried {}

/// Compares two versions, or returns `None` if one of them is no version. A version is numbers separated by dots; a
/// missing one is 0. As in semantic versioning, one with a suffix behind `-` is earlier than the same without it,
/// suffixes compare part by part, and what follows a `+` does not count.
#[must_use]
pub fn compare(a: &str, b: &str) -> Option<Ordering> {
    let ((a, a_suffix), (b, b_suffix)) = (parts(a), parts(b));
    let mut numbers = (a.split('.'), b.split('.'));
    let number = |part: Option<&str>| part.map_or(Some(0), |part| part.parse::<u64>().ok());
    let mut order = Ordering::Equal;
    loop {
        let (a, b) = (numbers.0.next(), numbers.1.next());
        if a.is_none() && b.is_none() {
            break;
        }
        order = order.then(number(a)?.cmp(&number(b)?));
    }
    Some(order.then_with(|| match (a_suffix, b_suffix) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.split('.').map(Part::of).cmp(b.split('.').map(Part::of)),
    }))
}

/// Splits a version into its numbers and its suffix.
fn parts(version: &str) -> (&str, Option<&str>) {
    let version = version.split_once('+').map_or(version, |(version, _)| version);
    match version.split_once('-') {
        Some((numbers, suffix)) => (numbers, Some(suffix)),
        None => (version, None),
    }
}

/// A part of a suffix. A number is earlier than a word.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Number(u64),
    Word(&'a str),
}

impl<'a> Part<'a> {
    fn of(text: &'a str) -> Self {
        text.parse().map_or(Self::Word(text), Self::Number)
    }
}

/// Returns true when a version on trial may run once more at its `starts`-th start.
#[must_use]
pub fn may_start(starts: u32) -> bool {
    starts <= MAX_TRIAL_STARTS
}

/// The trial of the running version within one process.
#[derive(Debug)]
pub struct Trial {
    hold_ms: u64,
    deadline: Millis,
    open_since: Option<Millis>,
}

/// The outcome of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The version has held a stream for long enough.
    Stays,
    /// The version has not, and its time is over.
    Fails,
}

impl Trial {
    /// Starts a trial. A stream has to open within `trial_ms` and hold for `hold_ms`.
    #[must_use]
    pub fn new(now: Millis, hold_ms: u64, trial_ms: u64) -> Self {
        Self { hold_ms, deadline: now + trial_ms, open_since: None }
    }

    /// A stream was opened.
    pub fn handle_opened(&mut self, now: Millis) {
        self.open_since = Some(now);
    }

    /// The stream has ended or was given up.
    pub fn handle_ended(&mut self) {
        self.open_since = None;
    }

    /// When [`Trial::verdict`] may change. It changes with every `handle_*` call.
    #[must_use]
    pub fn poll_timeout(&self) -> Millis {
        self.open_since.map_or(self.deadline, |since| since + self.hold_ms)
    }

    /// The outcome, if there is one yet. If a stream is open when the time is over, the trial goes on until it ends or holds.
    #[must_use]
    pub fn verdict(&self, now: Millis) -> Option<Verdict> {
        match self.open_since {
            _ if now < self.poll_timeout() => None,
            Some(_) => Some(Verdict::Stays),
            None => Some(Verdict::Fails),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;
    use crate::command::Sha256;

    const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    fn named(version: &str) -> AgentConfig {
        AgentConfig { version: version.into(), sha256: Sha256([0; 32]), signature: None, urls: [].into() }
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        for (later, earlier) in [
            ("1.10.0", "1.9.9"),
            ("1.7.0.24", "1.7.0.9"),
            ("2", "1.9.9.9"),
            ("1.0.1", "1.0"),
            ("1.0.0", "1.0.0-rc.1"),
            ("1.0.0-rc.10", "1.0.0-rc.9"),
            ("1.0.0-rc.1", "1.0.0-1"),
            ("1.0.1-rc.1", "1.0.0+build9"),
        ] {
            assert_eq!(compare(later, earlier), Some(Ordering::Greater), "{later} {earlier}");
            assert_eq!(compare(earlier, later), Some(Ordering::Less), "{later} {earlier}");
        }
        assert_eq!(compare("1.0", "1.0.0+x"), Some(Ordering::Equal));
        for odd in ["", "nightly", "v1.2", "1..2", "1.2.x", "1.99999999999999999999", "-1"] {
            assert_eq!(compare(odd, "1.0"), None, "{odd}");
        }
    }

    #[test]
    fn only_a_later_version_is_tried_and_none_twice() {
        assert_eq!(may_try(&named("1.1"), "1.0", None, false), Ok(()));
        let tried = |version, failed, allow| may_try(&named(version), "1.0", failed, allow).map_err(|not| not.why);
        for (version, why) in
            [("0.9", Objection::NotLater), ("1.0.0", Objection::NotLater), ("nightly", Objection::Incomparable)]
        {
            assert_eq!(tried(version, None, false), Err(why));
            assert_eq!(may_try(&named(version), "1.0", None, true), Ok(()));
        }
        let failed = Some(("1.1", HASH));
        assert_eq!(tried("1.1", failed, true), Err(Objection::Failed));
        assert_eq!(may_try(&named("1.2"), "1.0", failed, false), Ok(()));
        let rebuilt = AgentConfig { sha256: Sha256([1; 32]), ..named("1.1") };
        assert_eq!(may_try(&rebuilt, "1.0", failed, false), Ok(()), "another file is another try");
    }

    #[test]
    fn a_stream_held_long_enough_decides() {
        let mut trial = Trial::new(Millis(0), 60, 600);
        trial.handle_opened(Millis(10));
        assert_eq!((trial.verdict(Millis(69)), trial.poll_timeout()), (None, Millis(70)));
        assert_eq!(trial.verdict(Millis(70)), Some(Verdict::Stays));
        trial.handle_ended();
        assert_eq!((trial.verdict(Millis(70)), trial.poll_timeout()), (None, Millis(600)));
        // A stream that is open at the deadline still gets its time.
        trial.handle_opened(Millis(590));
        assert_eq!(trial.verdict(Millis(649)), None);
        assert_eq!(trial.verdict(Millis(650)), Some(Verdict::Stays));
        trial.handle_ended();
        assert_eq!(trial.verdict(Millis(649)), Some(Verdict::Fails));
    }

    proptest! {
        #[test]
        fn any_two_texts_compare_alike_both_ways(a in "[0-9.a-c+-]{0,9}", b in "[0-9.a-c+-]{0,9}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).map(Ordering::reverse));
        }

        #[test]
        fn a_trial_ends(steps in prop::collection::vec((0..3u8, 0..30u64), 0..100)) {
            let mut trial = Trial::new(Millis(0), 60, 600);
            let (mut now, mut held) = (Millis(0), None);
            for (step, later) in steps {
                now = now + later;
                match step {
                    0 => trial.handle_opened(now),
                    1 => trial.handle_ended(),
                    _ => {}
                }
                held = match step {
                    0 => Some(now),
                    1 => None,
                    _ => held,
                };
                let expected = match held {
                    Some(since) => (now.since(since) >= 60).then_some(Verdict::Stays),
                    None => (now >= Millis(600)).then_some(Verdict::Fails),
                };
                prop_assert_eq!(trial.verdict(now), expected);
            }
            prop_assert!(trial.verdict(trial.poll_timeout()).is_some());
        }
    }

    #[test]
    fn a_version_on_trial_may_start_as_often_as_the_limit_says() {
        assert!(may_start(0) && may_start(MAX_TRIAL_STARTS));
        assert!(!may_start(MAX_TRIAL_STARTS + 1));
    }

    #[test]
    fn words_of_suffixes_are_compared_in_order() {
        for (later, earlier) in [
            ("1-beta", "1-alpha"),
            ("1-alpha.2", "1-alpha.1"),
            ("1-alpha.1", "1-alpha"),
            ("1-2.0", "1-1.9"),
            ("2-alpha", "1"),
        ] {
            assert_eq!(compare(later, earlier), Some(Ordering::Greater), "{later} {earlier}");
        }
        assert_eq!(compare("1-rc.1+x", "1-rc.1+y"), Some(Ordering::Equal));
    }

    #[test]
    fn why_a_version_is_not_tried_is_told_with_what_it_is_compared_with() {
        let told = |why| NotTried { version: "2".to_string(), running: "3".to_string(), why }.to_string();
        let failed = "version 2 has failed here, and is not tried again until the server names another";
        assert_eq!(told(Objection::Failed), failed);
        assert_eq!(told(Objection::NotLater), "version 2 is not later than 3, and update.allow_downgrade is off");
        let incomparable = "version 2 cannot be compared with 3, and update.allow_downgrade is off";
        assert_eq!(told(Objection::Incomparable), incomparable);
    }
}
