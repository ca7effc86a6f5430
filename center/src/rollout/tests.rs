//! Rollouts with a clock that is told.

use super::*;
use elklet_proto::grpc::Config;

fn plugin(version: &str) -> Plugin {
    Config { name: "driver".into(), version: version.into(), ..Default::default() }.into()
}

fn order(canary: usize, wait_s: u32) -> Order {
    Order { group: Some("edge".into()), plugin: plugin("2"), canary, wait_s, by: "ann".into() }
}

/// Hosts a, b and c, of which c is not connected.
fn hosts() -> Vec<Candidate> {
    let host = |id: &str| Candidate {
        id: id.into(),
        connected: id != "c",
        version: Some("1".into()),
        trouble: Some("it always crashes".into()),
    };
    ["c", "b", "a"].map(host).into()
}

/// A rollout whose actions are carried out, as far as hosts are connected, in the way of the center.
struct Site {
    rollout: Rollout,
    connected: Vec<&'static str>,
    promotions: i64,
    /// True if the configuration cannot be written.
    broken: bool,
}

impl Site {
    fn new(canary: usize, wait_s: u32) -> Self {
        let rollout = Rollout::new(order(canary, wait_s), None, hosts(), 0).unwrap();
        let mut site = Self { rollout, connected: vec!["a", "b"], promotions: 0, broken: false };
        site.at(0, |_| {});
        site
    }

    /// Does something, looks at the clock if that is due, and carries out what comes of it.
    fn at(&mut self, now: i64, change: impl FnOnce(&mut Rollout)) {
        change(&mut self.rollout);
        if self.rollout.poll_timeout().is_some_and(|due| due <= now) {
            self.rollout.handle_tick(now);
        }
        while let Some(action) = self.rollout.poll_action() {
            match action {
                Action::Push(ids) => {
                    for id in ids.iter().filter(|id| self.connected.contains(&id.as_str())) {
                        self.rollout.handle_sent(id, now);
                    }
                    self.rollout.handle_pushed(now);
                }
                Action::Promote if self.broken => {}
                Action::Promote => {
                    self.promotions += 1;
                    self.rollout.handle_promoted(self.promotions, now);
                }
            }
        }
        assert!(self.rollout.poll_timeout().is_none_or(|due| due > now), "it would be asked again at once");
    }

    fn states(&self) -> (State, [Progress; 3]) {
        let mut hosts = self.rollout.hosts.iter();
        (self.rollout.state, std::array::from_fn(|_| hosts.next().unwrap().state))
    }
}

use Progress::{Running, Sent, Waiting, Wrong};

#[test]
fn a_canary_runs_it_somebody_promotes_it_and_all_run_it() {
    let mut site = Site::new(1, 0);
    assert_eq!(site.states(), (State::Canary, [Sent, Waiting, Waiting]));
    assert_eq!([site.rollout.overlay("a").is_some(), site.rollout.overlay("b").is_some()], [true, false]);
    site.at(5_000, |rollout| rollout.handle_version("a", "1", 5_000));
    site.at(6_000, |rollout| rollout.handle_version("a", "2", 6_000));
    assert_eq!(site.states(), (State::Canary, [Running, Waiting, Waiting]));
    assert_eq!(site.rollout.poll_timeout(), None, "it waits to be told");
    site.at(7_000, |rollout| rollout.promote(7_000).unwrap());
    assert_eq!(site.states(), (State::Rolling, [Running, Sent, Waiting]));
    assert_eq!(site.rollout.overlay("a"), None);
    assert!(site.rollout.promote(7_500).unwrap_err().to_string().contains("is rolling"));
    site.at(8_000, |rollout| rollout.handle_version("b", "2", 8_000));
    assert_eq!(site.states(), (State::Done, [Running, Running, Waiting]));
    assert!(site.rollout.reason.contains("1 hosts were gone"));
    assert!(!site.rollout.is_active() && site.rollout.abort("ann".into(), 9_000).is_err());
}

#[test]
fn a_host_that_comes_back_while_it_rolls_gets_it() {
    let mut site = Site::new(0, 0);
    assert_eq!(site.states(), (State::Rolling, [Sent, Sent, Waiting]));
    site.at(1_000, |rollout| rollout.handle_sent("c", 1_000));
    site.at(2_000, |rollout| rollout.handle_version("a", "2", 2_000));
    site.at(2_000, |rollout| rollout.handle_gone("b", 2_000));
    assert_eq!(site.states(), (State::Rolling, [Running, Waiting, Sent]));
    site.at(3_000, |rollout| rollout.handle_version("c", "2", 3_000));
    assert_eq!(site.states(), (State::Rolling, [Running, Waiting, Running]), "its connection may only have broken");
    let mut other = Site { rollout: site.rollout.clone(), connected: vec![], promotions: 0, broken: false };
    site.at(2_000 + ABSENCE_MS, |_| {});
    assert_eq!(site.states(), (State::Done, [Running, Waiting, Running]));
    other.at(4_000, |rollout| rollout.handle_sent("b", 4_000));
    other.at(4_050, |rollout| rollout.handle_trouble("b", "what is sent again", Some(900), 4_050));
    assert_eq!(other.states(), (State::Rolling, [Running, Sent, Running]));
    other.at(4_100, |rollout| rollout.handle_trouble("b", "it says so at once, because it lasts", None, 4_100));
    assert_eq!(other.states(), (State::Failed, [Running, Wrong, Running]));
}

#[test]
fn hosts_that_come_and_go_do_not_keep_it_from_its_end() {
    let mut site = Site::new(0, 0);
    site.at(1_000, |rollout| rollout.handle_version("a", "2", 1_000));
    // One that runs it already is not waited for, and the other one only for so long.
    for now in (2_000..10 * PATIENCE_MS).step_by(20_000) {
        site.at(now, |rollout| rollout.handle_gone("a", now));
        site.at(now, |rollout| rollout.handle_gone("b", now));
        if !site.rollout.is_active() {
            break;
        }
        site.at(now + 10_000, |rollout| rollout.handle_sent("b", now + 10_000));
    }
    assert_eq!(site.states(), (State::Done, [Running, Waiting, Waiting]));
    assert!(site.rollout.changed_ms <= PATIENCE_MS + ABSENCE_MS, "{}", site.rollout.changed_ms);
}

#[test]
fn canaries_that_ran_it_for_long_enough_promote_it() {
    let mut site = Site::new(2, 60);
    site.at(5_000, |rollout| rollout.handle_version("a", "2", 5_000));
    assert_eq!(site.rollout.poll_timeout(), Some(PATIENCE_MS), "b does not run it yet");
    site.at(10_000, |rollout| rollout.handle_version("b", "2", 10_000));
    assert_eq!(site.rollout.poll_timeout(), Some(70_000));
    site.at(20_000, |rollout| rollout.handle_version("b", "1", 20_000));
    site.at(30_000, |rollout| rollout.handle_version("b", "2", 30_000));
    site.at(70_000, |_| {});
    assert_eq!(site.states().0, State::Canary, "it began anew");
    site.broken = true;
    site.at(90_000, |_| {});
    assert_eq!((site.states().0, site.rollout.poll_timeout()), (State::Canary, Some(100_000)), "it is tried again");
    site.broken = false;
    site.at(100_000, |_| {});
    assert_eq!(site.states(), (State::Done, [Running, Running, Waiting]));
}

#[test]
fn a_canary_that_goes_wrong_puts_back_what_ran() {
    let mut site = Site::new(1, 60);
    site.at(500, |rollout| rollout.handle_trouble("a", "too soon to be about the new one", None, 500));
    site.at(2_000, |rollout| rollout.handle_trouble("a", "it always crashes", None, 2_000));
    site.at(2_000, |rollout| rollout.handle_trouble("b", "somebody else's", None, 2_000));
    assert_eq!(site.states(), (State::Canary, [Sent, Waiting, Waiting]));
    site.rollout.handle_version("a", "2", 2_500);
    site.rollout.handle_trouble("a", "it crashes", Some(2_900), 3_000);
    assert_eq!(site.rollout.poll_action(), Some(Action::Push(vec!["a".into()])));
    assert_eq!(site.states(), (State::Aborted, [Wrong, Waiting, Waiting]));
    assert_eq!(site.rollout.reason, "canary a went wrong: it crashes");
    assert_eq!((site.rollout.overlay("a"), site.rollout.poll_timeout(), site.promotions), (None, None, 0));
}

#[test]
fn a_host_that_refuses_the_new_one_as_it_did_the_one_before_goes_wrong_once_its_log_says_so() {
    let refused = "plugin driver cannot be started: its signature is wrong";
    let with_trouble = |trouble: &str| {
        hosts().into_iter().map(|host| Candidate { trouble: Some(trouble.to_owned()), ..host }).collect::<Vec<_>>()
    };
    let mut rollout = Rollout::new(order(1, 0), None, with_trouble(refused), 500_700).unwrap();
    rollout.handle_sent("a", 500_700);
    rollout.handle_trouble("a", refused, Some(400_000), 501_800);
    rollout.handle_trouble("a", refused, None, 502_000);
    // Hosts tell whole seconds, so that the one before may have been tried again just before the new one came.
    rollout.handle_trouble("a", refused, Some(501_000), 503_000);
    rollout.handle_trouble("a", refused, None, 504_000);
    assert_eq!(rollout.hosts[0].state, Sent, "all of that may be about the one before");
    rollout.handle_trouble("a", refused, Some(502_000), 505_000);
    assert_eq!((rollout.hosts[0].state, rollout.state), (Wrong, State::Aborted));

    let mut rollout = Rollout::new(order(1, 0), None, hosts(), 0).unwrap();
    rollout.handle_sent("a", 0);
    rollout.handle_trouble("a", "it always crashes", Some(4_000), 5_000);
    assert_eq!(rollout.hosts[0].state, Sent, "the one before runs until the new one is there");

    let long = "é".repeat(MAX_ERROR);
    let mut rollout = Rollout::new(order(1, 0), None, with_trouble(&long), 0).unwrap();
    rollout.handle_sent("a", 0);
    rollout.handle_trouble("a", &long, None, 5_000);
    assert_eq!(rollout.hosts[0].state, Sent, "a long text is known as well");
}

#[test]
fn a_canary_that_does_not_come_to_run_it_in_time_has_gone_wrong() {
    let mut site = Site::new(1, 0);
    site.at(PATIENCE_MS - 1, |rollout| rollout.handle_version("a", "1", 1));
    assert_eq!(site.states().0, State::Canary);
    site.at(PATIENCE_MS, |_| {});
    assert_eq!(site.states(), (State::Aborted, [Wrong, Waiting, Waiting]));
    assert!(site.rollout.reason.contains("it says version 1 180 s after"), "{}", site.rollout.reason);
}

#[test]
fn hosts_that_go_wrong_behind_the_canary_are_told_and_do_not_stop_the_others() {
    let mut site = Site::new(0, 0);
    site.at(2_000, |rollout| rollout.handle_trouble("a", "no room", None, 2_000));
    assert_eq!(site.states(), (State::Rolling, [Wrong, Sent, Waiting]));
    assert_eq!(site.rollout.hosts[0].error.as_deref(), Some("no room"));
    site.at(3_000, |rollout| rollout.handle_version("a", "2", 3_000));
    assert_eq!(site.states().1[0], Running, "it was tried again");
    site.at(4_000, |rollout| rollout.handle_trouble("b", "no room", None, 4_000));
    assert_eq!(site.states(), (State::Failed, [Running, Wrong, Waiting]));
    assert_eq!(site.rollout.reason, "1 of 3 hosts went wrong");
    site.rollout.abort("aborted by ann".into(), 5_000).unwrap();
    assert_eq!(site.rollout.poll_action(), Some(Action::Push(vec!["a".into(), "b".into()])));
}

#[test]
fn a_rollout_goes_on_after_a_restart() {
    let again = |site: &Site, now| {
        let mut rollout: Rollout = serde_json::from_str(&serde_json::to_string(&site.rollout).unwrap()).unwrap();
        rollout.resume(now);
        Site { rollout, connected: vec![], promotions: site.promotions, broken: false }
    };
    let mut site = Site::new(1, 60);
    site.at(5_000, |rollout| rollout.handle_version("a", "2", 5_000));
    let mut site = again(&site, 30_000);
    assert_eq!(site.rollout.overlay("a"), Some(&plugin("2")));
    site.at(65_000, |_| {});
    assert_eq!(site.states(), (State::Rolling, [Running, Waiting, Waiting]), "nobody has come back yet");
    let mut site = again(&site, 66_000);
    site.at(67_000, |rollout| rollout.handle_sent("b", 67_000));
    site.at(68_000, |rollout| rollout.handle_version("b", "2", 68_000));
    assert_eq!(site.states(), (State::Rolling, [Running, Running, Waiting]));
    site.at(66_000 + PATIENCE_MS, |_| {});
    assert_eq!(site.states(), (State::Done, [Running, Running, Waiting]));
}

#[test]
fn without_a_connected_host_there_is_no_canary() {
    let gone = vec![hosts().remove(0)];
    let refused = Rollout::new(order(1, 0), None, gone.clone(), 0).unwrap_err();
    assert!(refused.to_string().contains("none of 1 hosts is connected"));
    assert!(Rollout::new(order(0, 0), None, gone, 0).is_ok());
}

#[test]
fn a_host_cannot_have_it_keep_a_version_without_end() {
    let long = "x".repeat(1 << 20);
    let talkative = hosts().into_iter().map(|host| Candidate { version: Some(long.clone()), ..host }).collect();
    let mut rollout = Rollout::new(order(1, 0), None, talkative, 0).unwrap();
    rollout.handle_version("a", &long, 1);
    let kept: Vec<_> = rollout.hosts.iter().map(|host| host.version.as_ref().map(String::len)).collect();
    assert_eq!(kept, [Some(TEXT_LEN); 3]);
}
