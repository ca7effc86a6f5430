//! A fleet whose servers go and come back, in virtual time: who tries when, and what comes of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use elklet_core::backoff::{Backoff, RECONNECT_SPREAD_MS};
use elklet_core::session::{Action, Attempt, CONNECT_TIMEOUT_MS, Endpoints, Session};
use elklet_core::time::Millis;

/// Agents of a fleet.
pub(crate) const AGENTS: usize = 100_000;

/// A fleet notices within this that its servers are gone: what resets take to arrive.
const NOTICED_WITHIN_MS: u64 = 200;

/// Handshakes that the servers manage in a second, all together: some 75 to each of the nodes that a fleet of this size needs
/// by AgentCenter's default of 1,500 streams.
const HANDSHAKES_PER_S: u64 = 5_000;

/// What a refusal takes.
const ROUND_TRIP_MS: u64 = 1;

/// When the servers went: late enough that every stream was a stable one.
const LOST: Millis = Millis(3_600_000);

/// What happens to the servers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outage {
    /// How long they are away.
    pub(crate) seconds: u64,
    /// Whether nobody answers meanwhile, where a host that is up would refuse.
    pub(crate) silent: bool,
    /// Streams that they take afterwards.
    pub(crate) room: usize,
}

/// An agent, so far as it decides when to try.
pub(crate) trait Agent {
    /// One of a fleet, with a stream that is stable.
    fn streaming(seed: u64) -> Self;
    /// It has lost its stream: when it tries again.
    fn lose(&mut self, now: Millis) -> Millis;
    /// It tries now.
    fn attempt(&mut self, now: Millis);
    /// The attempt has succeeded.
    fn succeed(&mut self, now: Millis);
    /// The attempt was refused, or nobody has answered: when it tries again.
    fn fail(&mut self, now: Millis) -> Millis;
}

/// The real thing: the session of the agent's core.
#[derive(Debug)]
pub(crate) struct Elklet {
    session: Session,
    attempt: Attempt,
}

impl Elklet {
    fn next_attempt(&mut self) -> Millis {
        while self.session.poll_action().is_some() {}
        self.session.waits_until().expect("it has only one server, and waits before it tries that again")
    }

    fn connecting(session: &mut Session) -> Attempt {
        match session.poll_action() {
            Some(Action::Connect { attempt, .. }) => attempt,
            other => panic!("it is to connect: {other:?}"),
        }
    }
}

impl Agent for Elklet {
    fn streaming(seed: u64) -> Self {
        let mut session = Session::new(Endpoints { private: 1, ..Endpoints::default() }, RECONNECT_SPREAD_MS, seed);
        session.handle_start(Millis(0));
        let attempt = Self::connecting(&mut session);
        let mut agent = Self { session, attempt };
        agent.succeed(Millis(0));
        agent
    }

    fn lose(&mut self, now: Millis) -> Millis {
        self.session.handle_failed(self.attempt, now);
        self.next_attempt()
    }

    fn attempt(&mut self, now: Millis) {
        self.session.handle_timeout(now);
        self.attempt = Self::connecting(&mut self.session);
    }

    fn succeed(&mut self, now: Millis) {
        self.session.handle_connected(self.attempt, now);
        assert!(matches!(self.session.poll_action(), Some(Action::Open { .. })));
        self.session.handle_opened(self.attempt, now);
    }

    fn fail(&mut self, now: Millis) -> Millis {
        if self.session.poll_timeout() == Some(now) {
            self.session.handle_timeout(now);
        } else {
            self.session.handle_failed(self.attempt, now);
        }
        self.next_attempt()
    }
}

/// Decorrelated jitter from 1 s to 60 s, from the first wait on.
#[derive(Debug)]
pub(crate) struct Jitter(Backoff);

impl Agent for Jitter {
    fn streaming(seed: u64) -> Self {
        Self(Backoff::new(RECONNECT_SPREAD_MS, seed))
    }

    fn lose(&mut self, now: Millis) -> Millis {
        self.0.after_failure(now)
    }

    fn attempt(&mut self, _: Millis) {}

    fn succeed(&mut self, _: Millis) {}

    fn fail(&mut self, now: Millis) -> Millis {
        self.0.after_failure(now)
    }
}

/// Elkeid's own agent: it waits for 5 s, ends itself at the seventh failure in a row, and is started again 45 s later.
#[derive(Debug)]
pub(crate) struct Reference {
    failures: u32,
}

impl Agent for Reference {
    fn streaming(_: u64) -> Self {
        Self { failures: 0 }
    }

    fn lose(&mut self, now: Millis) -> Millis {
        now + 5_000
    }

    fn attempt(&mut self, _: Millis) {}

    fn succeed(&mut self, _: Millis) {
        self.failures = 0;
    }

    fn fail(&mut self, now: Millis) -> Millis {
        self.failures += 1;
        if self.failures < 7 {
            return now + 5_000;
        }
        self.failures = 0;
        now + 45_000
    }
}

/// What came of it, in seconds from the moment at which the servers went.
#[derive(Debug)]
pub(crate) struct Course {
    /// Attempts in each second.
    pub(crate) attempts: Vec<u32>,
    /// When agents had a stream again that stayed, in order.
    back: Vec<f64>,
}

impl Course {
    /// The most attempts of any second, as a share of the fleet.
    pub(crate) fn peak(&self) -> f64 {
        f64::from(self.attempts.iter().copied().max().unwrap_or(0)) / AGENTS as f64
    }

    /// Attempts of an agent in the mean.
    pub(crate) fn attempts_of_an_agent(&self) -> f64 {
        f64::from(self.attempts.iter().sum::<u32>()) / AGENTS as f64
    }

    /// When this share of the fleet was back, if it ever was.
    pub(crate) fn back_after(&self, share: f64) -> Option<f64> {
        let count = (share * AGENTS as f64).ceil() as usize;
        self.back.get(count - 1).copied()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Lost,
    Attempt,
    /// The server has answered, or the agent's patience is over.
    Outcome {
        is_open: bool,
    },
}

/// Lets a fleet of these agents go through an outage and watches it for so many seconds.
pub(crate) fn run<A: Agent>(outage: Outage, seconds: usize) -> Course {
    let mut agents: Vec<A> = (0..AGENTS as u64).map(|agent| A::streaming(agent * 0x5851_f42d)).collect();
    let mut servers = Servers { outage, up: LOST + outage.seconds * 1000, busy_until_us: 0, streams: 0 };
    let mut events = BinaryHeap::new();
    let mut course = Course { attempts: vec![0; seconds], back: Vec::new() };
    for agent in 0..agents.len() {
        let noticed = LOST + agent as u64 % NOTICED_WITHIN_MS;
        events.push(Reverse((noticed, agent, Event::Lost)));
    }
    while let Some(Reverse((now, number, event))) = events.pop() {
        let Some(this_second) = course.attempts.get_mut(usize::try_from(now.since(LOST) / 1000).expect("it is short"))
        else {
            break;
        };
        let agent = &mut agents[number];
        let (next, event) = match event {
            Event::Lost => (agent.lose(now), Event::Attempt),
            Event::Attempt => {
                *this_second += 1;
                agent.attempt(now);
                let (answered, is_open) = servers.answer(now);
                (answered, Event::Outcome { is_open })
            }
            Event::Outcome { is_open } if is_open && servers.streams < outage.room => {
                servers.streams += 1;
                course.back.push(now.since(LOST) as f64 / 1000.0);
                agent.succeed(now);
                continue;
            }
            Event::Outcome { is_open } => {
                if is_open {
                    // "out of max connection limit" comes on a stream that was opened.
                    agent.succeed(now);
                }
                (agent.fail(now), Event::Attempt)
            }
        };
        events.push(Reverse((next, number, event)));
    }
    course
}

struct Servers {
    outage: Outage,
    up: Millis,
    busy_until_us: u64,
    streams: usize,
}

impl Servers {
    /// When an attempt that begins now is answered, and whether its stream is opened.
    fn answer(&mut self, now: Millis) -> (Millis, bool) {
        if now < self.up {
            return (now + if self.outage.silent { CONNECT_TIMEOUT_MS } else { ROUND_TRIP_MS }, false);
        }
        // Handshakes queue. Those whose agents have gone are not even begun, which is kind to whoever comes in a crowd.
        let done_us = self.busy_until_us.max(now.0 * 1000) + 1_000_000 / HANDSHAKES_PER_S;
        let done = Millis(done_us.div_ceil(1000));
        if done.since(now) >= CONNECT_TIMEOUT_MS {
            return (now + CONNECT_TIMEOUT_MS, false);
        }
        self.busy_until_us = done_us;
        (done, true)
    }
}
