//! Sequences of events on the session, under a clock of their own, against a plan of what is tried in which order: at most
//! one attempt is alive, what a given-up attempt still reports changes nothing, a session that has begun always waits for a
//! moment that comes, a ping is out only one at a time and not without need, and a shutdown ends it whatever the server does.
#![no_main]

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use elklet_core::link::backoff::BACKOFF_CAP_MS;
use elklet_core::link::session::{
    Abandoned, Action, Attempt, DRAIN_TIMEOUT_MS, Endpoints, PONG_TIMEOUT_MS, STABLE_MS, Session, Target, Timing,
};
use elklet_core::time::Millis;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    discovery: u8,
    private: u8,
    public: u8,
    spread_s: u8,
    seed: u64,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Event {
    Succeed { addresses: u8 },
    Fail,
    Pong,
    WantPing,
    Wait { ms: u16 },
    WaitUntilDue { late: u8 },
    WaitUntilStable { less: bool },
    Stale { which: u8, how: Stale },
    Reconfigure { discovery: u8, private: u8, public: u8, keeps_stream: bool },
    ShutDown,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Stale {
    Resolved,
    Connected,
    Opened,
    Failed,
    Pong,
}

/// What is tried next.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Resolve(usize),
    Connect(Target),
}

/// How far the attempt that is alive has come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Resolving,
    Connecting,
    Opening,
    Streaming { since: Millis, heard: Millis, pinged: Option<Millis> },
    Moving { until: Millis },
    Draining { until: Millis },
}

#[derive(Debug)]
struct Shell {
    session: Session,
    endpoints: Endpoints,
    timing: Timing,
    longest_wait_ms: u64,
    now: Millis,
    alive: Option<(Attempt, Phase)>,
    over: Vec<Attempt>,
    /// Since when it waits for the next round.
    waiting: Option<Millis>,
    /// What this round has still to try.
    plan: VecDeque<Step>,
    ping_wanted: bool,
    shutting_down: bool,
    finished: bool,
}

fuzz_target!(|input: Input| {
    let Input { discovery, private, public, spread_s, seed, events } = input;
    let timing = Timing { spread_ms: 1_000 * u64::from(spread_s), ..Timing::default() };
    let mut shell = Shell::new(few(discovery, private, public), timing, seed);
    for event in events {
        shell.handle(event);
        shell.obey();
    }
    shell.settle();
    shell.handle(Event::ShutDown);
    shell.obey();
    if let Some((_, phase)) = shell.alive {
        assert!(matches!(phase, Phase::Draining { until } if until <= shell.now + DRAIN_TIMEOUT_MS));
        shell.handle(Event::WaitUntilDue { late: 0 });
        shell.obey();
    }
    assert!(shell.finished, "a shutdown ends the session");
});

fn few(discovery: u8, private: u8, public: u8) -> Endpoints {
    let few = |count: u8| usize::from(count % 4);
    Endpoints { discovery: few(discovery), private: few(private), public: few(public) }
}

impl Shell {
    fn new(endpoints: Endpoints, timing: Timing, seed: u64) -> Self {
        let mut shell = Self {
            session: Session::new(endpoints, timing, seed),
            endpoints,
            timing,
            // A turn that is too close is left out, and the one after it is a window later.
            longest_wait_ms: BACKOFF_CAP_MS.max(timing.spread_ms) + 2_000,
            now: Millis(1),
            alive: None,
            over: Vec::new(),
            waiting: None,
            plan: VecDeque::new(),
            ping_wanted: false,
            shutting_down: false,
            finished: false,
        };
        assert_eq!(shell.session.poll_timeout(), None, "it waits for its start");
        shell.new_round();
        shell.session.handle_start(shell.now);
        shell.obey();
        shell
    }

    fn new_round(&mut self) {
        assert!(self.plan.is_empty(), "a round is over when everything was tried");
        let Endpoints { discovery, private, public } = self.endpoints;
        self.plan.extend((0..discovery).map(Step::Resolve));
        self.plan.extend((0..private).map(|i| Step::Connect(Target::Private(i))));
        self.plan.extend((0..public).map(|i| Step::Connect(Target::Public(i))));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Succeed { addresses } => self.succeed(addresses),
            Event::Fail => {
                if let Some((attempt, phase)) = self.alive {
                    self.forget_plan_after(phase);
                    self.session.handle_failed(attempt, self.now);
                }
            }
            Event::Pong => {
                if let Some((attempt, phase)) = &mut self.alive {
                    if let Phase::Streaming { heard, pinged, .. } = phase {
                        (*heard, *pinged) = (self.now, None);
                    }
                    self.session.handle_pong(*attempt, self.now);
                }
            }
            Event::WantPing => {
                self.ping_wanted = true;
                self.session.handle_ping_wanted(self.now);
            }
            Event::Wait { ms } => self.wait_until(self.now + u64::from(ms)),
            Event::WaitUntilDue { late } => {
                if let Some(due) = self.session.poll_timeout() {
                    self.wait_until(due + 1_000 * u64::from(late));
                }
            }
            Event::WaitUntilStable { less } => {
                if let Some((_, Phase::Streaming { since, .. })) = self.alive {
                    self.wait_until(since + (STABLE_MS - u64::from(less)));
                }
            }
            Event::Stale { which, how } => self.stale(which, how),
            Event::Reconfigure { discovery, private, public, keeps_stream } => {
                self.reconfigure(few(discovery, private, public), keeps_stream);
            }
            Event::ShutDown => {
                match &mut self.alive {
                    Some((_, phase @ Phase::Streaming { .. })) => {
                        *phase = Phase::Draining { until: self.now + DRAIN_TIMEOUT_MS };
                    }
                    // Its side of the stream has ended already.
                    Some((_, phase @ Phase::Moving { .. })) => {
                        let Phase::Moving { until } = *phase else { unreachable!() };
                        *phase = Phase::Draining { until };
                    }
                    _ => {}
                }
                self.shutting_down = true;
                self.session.handle_shutdown(self.now);
            }
        }
    }

    fn reconfigure(&mut self, endpoints: Endpoints, keeps_stream: bool) {
        if let Some((_, Phase::Streaming { since, .. })) = self.alive
            && keeps_stream
            && self.now.since(since) < STABLE_MS
        {
            // If it ended now, what is tried next would come from both lists.
            return;
        }
        self.endpoints = endpoints;
        match &mut self.alive {
            Some((_, phase @ Phase::Streaming { .. })) if !keeps_stream => {
                *phase = Phase::Moving { until: self.now + DRAIN_TIMEOUT_MS };
                self.plan.clear();
            }
            Some((_, Phase::Streaming { .. } | Phase::Moving { .. } | Phase::Draining { .. })) => {}
            Some(_) | None if !self.shutting_down => {
                self.plan.clear();
                self.waiting = None;
                self.new_round();
            }
            Some(_) | None => {}
        }
        self.session.handle_reconfigured(endpoints, self.timing, keeps_stream, self.now);
    }

    /// What the live attempt is about works.
    fn succeed(&mut self, addresses: u8) {
        let Some((attempt, phase)) = &mut self.alive else { return };
        let attempt = *attempt;
        match phase {
            Phase::Resolving => {
                let addresses = usize::from(addresses % 4);
                (0..addresses).rev().for_each(|i| self.plan.push_front(Step::Connect(Target::Discovered(i))));
                // What has answered is over without being given up.
                self.alive = None;
                self.over.push(attempt);
                self.session.handle_resolved(attempt, addresses, self.now);
            }
            Phase::Connecting => self.session.handle_connected(attempt, self.now),
            Phase::Opening => {
                *phase = Phase::Streaming { since: self.now, heard: self.now, pinged: None };
                self.session.handle_opened(attempt, self.now);
            }
            Phase::Streaming { .. } | Phase::Moving { .. } | Phase::Draining { .. } => {}
        }
    }

    fn wait_until(&mut self, moment: Millis) {
        self.now = self.now.max(moment);
        let Some(due) = self.session.poll_timeout() else { return };
        if self.now < due {
            let before = format!("{:?}", self.session);
            self.session.handle_timeout(self.now);
            assert_eq!(format!("{:?}", self.session), before, "nothing is due yet");
            return;
        }
        match &mut self.alive {
            Some((_, Phase::Streaming { pinged: None, .. })) | None => {}
            Some((_, phase)) => {
                let phase = *phase;
                self.forget_plan_after(phase);
            }
        }
        if self.session.waits_until().is_some() {
            self.waiting = None;
            self.new_round();
        }
        self.session.handle_timeout(self.now);
    }

    /// A stream that lived long enough is no failure of its target: the next round begins from the first one. One that was to
    /// go elsewhere does so at once.
    fn forget_plan_after(&mut self, phase: Phase) {
        if let Phase::Moving { .. } = phase {
            self.new_round();
        }
        if let Phase::Streaming { since, .. } = phase
            && self.now.since(since) >= STABLE_MS
        {
            self.plan.clear();
        }
    }

    fn stale(&mut self, which: u8, how: Stale) {
        let Some(which) = usize::from(which).checked_rem(self.over.len()) else { return };
        let attempt = self.over[which];
        let before = format!("{:?}", self.session);
        match how {
            Stale::Resolved => self.session.handle_resolved(attempt, 3, self.now),
            Stale::Connected => self.session.handle_connected(attempt, self.now),
            Stale::Opened => self.session.handle_opened(attempt, self.now),
            Stale::Failed => self.session.handle_failed(attempt, self.now),
            Stale::Pong => self.session.handle_pong(attempt, self.now),
        }
        assert_eq!(format!("{:?}", self.session), before, "an attempt that is over changes nothing");
    }

    fn obey(&mut self) {
        while let Some(action) = self.session.poll_action() {
            assert!(!self.finished, "nothing comes after the end");
            self.take(action);
        }
        if self.session.is_ended() {
            assert!(self.shutting_down && self.alive.is_none());
            self.finished = true;
        }
        self.ping_wanted = false;
        self.check();
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::Resolve { attempt, host } => self.begin(attempt, Phase::Resolving, Step::Resolve(host)),
            Action::Connect { attempt, target } => self.begin(attempt, Phase::Connecting, Step::Connect(target)),
            Action::Open { attempt } => {
                assert_eq!(self.alive, Some((attempt, Phase::Connecting)));
                self.alive = Some((attempt, Phase::Opening));
            }
            Action::Abandon { attempt, reason } => {
                assert_eq!(self.alive.map(|(alive, _)| alive), Some(attempt), "only what is alive is given up");
                assert!(reason != Abandoned::Shutdown || self.shutting_down);
                self.over.push(attempt);
                self.alive = None;
            }
            Action::Ping => match &mut self.alive {
                Some((_, Phase::Streaming { heard, pinged: pinged @ None, .. })) => {
                    let due = self.now.since(*heard) >= self.timing.keepalive_ms;
                    assert!(due || self.ping_wanted, "a ping goes out when it is due or wanted");
                    *pinged = Some(self.now);
                }
                other => panic!("a ping to {other:?}"),
            },
            Action::HalfClose => match self.alive {
                Some((_, Phase::Draining { .. })) => assert!(self.shutting_down),
                Some((_, Phase::Moving { .. })) => {}
                other => panic!("a half-close of {other:?}"),
            },
        }
    }

    fn begin(&mut self, attempt: Attempt, phase: Phase, step: Step) {
        assert!(!self.shutting_down, "nothing begins at the end");
        assert_eq!(self.alive, None, "one attempt at a time");
        assert!(!self.over.contains(&attempt), "an attempt has its own number");
        assert_eq!(self.plan.pop_front(), Some(step), "everything is tried in order");
        self.alive = Some((attempt, phase));
    }

    fn check(&mut self) {
        let due = self.session.poll_timeout();
        if self.finished {
            assert_eq!((due, self.alive), (None, None));
            return;
        }
        let due = due.expect("whoever waits for nothing waits for ever");
        match self.alive {
            None => {
                let until = self.session.waits_until().expect("without an attempt it waits for the next round");
                assert!(self.plan.is_empty(), "it waits when everything was tried");
                let since = *self.waiting.get_or_insert(self.now);
                assert!(due == until && until.since(since) <= self.longest_wait_ms);
            }
            Some((_, Phase::Streaming { heard, pinged, .. })) => {
                let expected = pinged.map_or(heard + self.timing.keepalive_ms, |pinged| pinged + PONG_TIMEOUT_MS);
                assert_eq!(due, expected);
            }
            Some((_, Phase::Moving { until } | Phase::Draining { until })) => assert_eq!(due, until),
            Some(_) => assert!(due <= self.now + 15_000, "a step that hangs is noticed"),
        }
        let target = self.session.streaming_to();
        assert_eq!(target.is_some(), matches!(self.alive, Some((_, Phase::Streaming { .. }))));
    }

    /// From here on everything works: it streams, if there is anywhere to stream to.
    fn settle(&mut self) {
        let Endpoints { discovery, private, public } = self.endpoints;
        for _ in 0..5 {
            if self.shutting_down || matches!(self.alive, Some((_, Phase::Streaming { .. }))) {
                return;
            }
            match self.alive {
                None => self.handle(Event::WaitUntilDue { late: 0 }),
                Some((_, Phase::Moving { .. })) => self.handle(Event::Fail),
                Some(_) => self.handle(Event::Succeed { addresses: 1 }),
            }
            self.obey();
        }
        let streams = matches!(self.alive, Some((_, Phase::Streaming { .. })));
        assert!(streams || discovery + private + public == 0);
    }
}
