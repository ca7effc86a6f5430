//! A fleet whose servers go and come back, in virtual time: which agents try when, and how that works out.

use elklet_core::link::session::{Action, Attempt, CONNECT_TIMEOUT_MS, Endpoints, Session, Timing};
use elklet_core::time::Millis;

/// The number of agents, and of the AgentCenter nodes that share them evenly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fleet {
    pub(crate) agents: usize,
    pub(crate) nodes: usize,
}

/// The agents that an AgentCenter node takes by default.
pub(crate) const FULL_NODE: Fleet = Fleet { agents: 1_500, nodes: 1 };

/// A large site.
pub(crate) const LARGE: Fleet = Fleet { agents: 100_000, nodes: 70 };

/// A fleet notices within this time that its servers are gone: as long as resets take to arrive.
const NOTICED_WITHIN_MS: u64 = 200;

/// How long a refusal takes.
const ROUND_TRIP_MS: u64 = 1;

/// When the servers go: late enough that every stream is stable.
const LOST: Millis = Millis(3_600_000);

/// What happens to the servers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outage {
    /// How long they are away.
    pub(crate) seconds: u64,
    /// True if nobody answers meanwhile, while a host that is up would refuse.
    pub(crate) silent: bool,
    /// Handshakes that a node manages in a second.
    pub(crate) handshakes: u64,
    /// The share of its agents that a node has room for afterwards, in percent.
    pub(crate) room: usize,
}

/// An agent, so far as it decides when to try.
pub(crate) trait Agent {
    /// One of a fleet, with a stream that is stable.
    fn streaming(seed: u64) -> Self;
    /// It has lost its stream. Returns when it tries again.
    fn lose(&mut self, now: Millis) -> Millis;
    /// It tries now.
    fn attempt(&mut self, now: Millis);
    /// The attempt has succeeded.
    fn succeed(&mut self, now: Millis);
    /// The attempt was refused, or nobody has answered. Returns when it tries again.
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
        let mut session = Session::new(Endpoints { private: 1, ..Endpoints::default() }, Timing::default(), seed);
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

/// The usual remedy: each wait is drawn between 1 s and three times the last one, and never exceeds 60 s.
///
/// Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (decorrelated jitter).
#[derive(Debug)]
pub(crate) struct Jitter {
    last_ms: u64,
    random: u64,
}

impl Jitter {
    const BASE_MS: u64 = 1_000;
    const CAP_MS: u64 = 60_000;
}

impl Agent for Jitter {
    fn streaming(seed: u64) -> Self {
        Self { last_ms: Self::BASE_MS, random: seed | 1 }
    }

    fn lose(&mut self, now: Millis) -> Millis {
        self.fail(now)
    }

    fn attempt(&mut self, _: Millis) {}

    fn succeed(&mut self, _: Millis) {
        self.last_ms = Self::BASE_MS;
    }

    fn fail(&mut self, now: Millis) -> Millis {
        // A linear congruential generator (Knuth, MMIX), of which this uses the upper half.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let range = 3 * self.last_ms - Self::BASE_MS + 1;
        self.last_ms = (Self::BASE_MS + (self.random >> 32) % range).min(Self::CAP_MS);
        now + self.last_ms
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

/// The clock's step in the search for the busiest second.
const STEPS_PER_S: usize = 10;

/// What came of an outage.
#[derive(Debug)]
pub(crate) struct Course {
    /// Attempts of the whole fleet in each second since the servers went.
    pub(crate) attempts: Vec<u32>,
    /// The most attempts that any node saw within any second, wherever it begins.
    pub(crate) peak: u32,
    /// When agents had a lasting stream again, in seconds since the servers' return, in order.
    back: Vec<f64>,
    fleet: Fleet,
}

impl Course {
    /// Returns the mean number of attempts of an agent.
    pub(crate) fn attempts_of_an_agent(&self) -> f64 {
        f64::from(self.attempts.iter().sum::<u32>()) / self.fleet.agents as f64
    }

    /// Returns the attempts of this second, as a share of the fleet.
    pub(crate) fn share(&self, second: usize) -> f64 {
        f64::from(self.attempts[second]) / self.fleet.agents as f64
    }

    /// Returns how long after the servers this share of the fleet was back, if it ever was.
    pub(crate) fn back_after(&self, share: f64) -> Option<f64> {
        let count = (share * self.fleet.agents as f64).ceil() as usize;
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

/// What is to come, by the millisecond. A heap would take the time of the whole test for the millions of attempts of a large fleet.
struct Agenda {
    now: usize,
    /// Agents and events by milliseconds since the servers went. Those of this millisecond are in order, the next one last.
    by_ms: Vec<Vec<(usize, Event)>>,
}

impl Agenda {
    fn new(seconds: usize) -> Self {
        Self { now: 0, by_ms: vec![Vec::new(); seconds * 1000] }
    }

    /// Adds an event, unless it lies behind the end.
    fn add(&mut self, at: Millis, agent: usize, event: Event) {
        let at = usize::try_from(at.since(LOST)).expect("it is short");
        let Some(events) = self.by_ms.get_mut(at) else { return };
        events.push((agent, event));
        if at == self.now {
            Self::arrange(events);
        }
    }

    /// Returns when the next event is, whose it is, and what it is.
    fn next(&mut self) -> Option<(Millis, usize, Event)> {
        loop {
            if let Some((agent, event)) = self.by_ms.get_mut(self.now)?.pop() {
                return Some((LOST + self.now as u64, agent, event));
            }
            self.by_ms[self.now] = Vec::new();
            self.now += 1;
            Self::arrange(self.by_ms.get_mut(self.now)?);
        }
    }

    fn arrange(events: &mut [(usize, Event)]) {
        events.sort_unstable_by(|a, b| b.cmp(a));
    }
}

/// Lets a fleet of these agents go through an outage, and watches it for this many seconds.
pub(crate) fn run<A: Agent>(fleet: Fleet, outage: Outage, seconds: usize) -> Course {
    let mut agents: Vec<A> = (0..fleet.agents as u64).map(|agent| A::streaming(agent * 0x5851_f42d)).collect();
    let up = LOST + outage.seconds * 1000;
    let room = fleet.agents * outage.room / 100 / fleet.nodes + usize::from(outage.room == 100);
    let mut nodes: Vec<_> = (0..fleet.nodes)
        .map(|_| Node { outage, up, room, busy_until_us: 0, steps: vec![0; seconds * STEPS_PER_S] })
        .collect();
    let mut agenda = Agenda::new(seconds);
    let mut back = Vec::new();
    for agent in 0..agents.len() {
        agenda.add(LOST + agent as u64 % NOTICED_WITHIN_MS, agent, Event::Lost);
    }
    while let Some((now, number, event)) = agenda.next() {
        let (agent, node) = (&mut agents[number], &mut nodes[number % fleet.nodes]);
        let (next, event) = match event {
            Event::Lost => (agent.lose(now), Event::Attempt),
            Event::Attempt => {
                agent.attempt(now);
                let (answered, is_open) = node.answer(now);
                (answered, Event::Outcome { is_open })
            }
            Event::Outcome { is_open } if is_open && node.room > 0 => {
                node.room -= 1;
                back.push(now.since(up) as f64 / 1000.0);
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
        agenda.add(next, number, event);
    }
    let in_second = |second: usize| {
        let steps = second * STEPS_PER_S..(second + 1) * STEPS_PER_S;
        nodes.iter().flat_map(|node| &node.steps[steps.clone()]).sum()
    };
    let busiest = |node: &Node| node.steps.windows(STEPS_PER_S).map(|second| second.iter().sum()).max();
    Course {
        attempts: (0..seconds).map(in_second).collect(),
        peak: nodes.iter().filter_map(busiest).max().unwrap_or(0),
        back,
        fleet,
    }
}

struct Node {
    outage: Outage,
    up: Millis,
    /// The number of streams that it still takes.
    room: usize,
    busy_until_us: u64,
    /// The attempts that it has seen in each step of the clock.
    steps: Vec<u32>,
}

impl Node {
    /// Returns when an attempt that begins now is answered, and true if its stream opens.
    fn answer(&mut self, now: Millis) -> (Millis, bool) {
        self.steps[usize::try_from(now.since(LOST)).expect("it is short") * STEPS_PER_S / 1000] += 1;
        if now < self.up {
            return (now + if self.outage.silent { CONNECT_TIMEOUT_MS } else { ROUND_TRIP_MS }, false);
        }
        // Handshakes queue. The node does not even begin those whose agents have gone, which favours agents that come
        // in a crowd.
        let done_us = self.busy_until_us.max(now.0 * 1000) + 1_000_000 / self.outage.handshakes;
        let done = Millis(done_us.div_ceil(1000));
        if done.since(now) >= CONNECT_TIMEOUT_MS {
            return (now + CONNECT_TIMEOUT_MS, false);
        }
        self.busy_until_us = done_us;
        (done, true)
    }
}
