//! Where to connect, when, and when to give a connection up.
//!
//! ```text
//!           +------------------------ all targets failed --------------------+
//!           |                                                                v
//!  Idle -> Resolving -> Connecting -> Opening -> Streaming --- ended ---> Backoff
//!           ^   ^           |            |           |                       |
//!           |   +--- next target --------+           | shutdown              |
//!           +--------------------------- wait over --|-----------------------+
//!                                                    v
//!                                                 Draining --- ended or late ---> Ended
//! ```
//! A stream that ends within seconds of its beginning is followed by the next target at once, as an attempt that failed.
//! A stream that has to go elsewhere passes through Moving, which is Draining with Resolving behind it.
//!
//! The shell starts what [`Session::poll_action`] asks for and reports the outcome through the `handle_*` methods. Each attempt has a
//! number, so that the session ignores what a given-up attempt still reports.

use alloc::collections::VecDeque;
use core::fmt;

use crate::limits::{MAX_PING_INTERVAL_MS, PING_INTERVAL_MS};
use crate::link::backoff::{Backoff, RECONNECT_SPREAD_MS};
use crate::time::Millis;

/// A stream that lived this long was a success. The next round then waits for the agent's turn and begins with the first target. A stream
/// that AgentCenter refuses (`agentID conflict`) ends at once and does not count.
pub const STABLE_MS: u64 = 5_000;

/// How long service discovery may take to answer before the next host is asked.
pub const RESOLVE_TIMEOUT_MS: u64 = 10_000;

/// How long TCP and TLS may take before the next target is tried; the reference's dial timeout.
pub const CONNECT_TIMEOUT_MS: u64 = 15_000;

/// How long the HTTP/2 handshake and the call may take.
pub const OPEN_TIMEOUT_MS: u64 = 10_000;

/// How old the last answer to a PING may become before the next PING leaves, unless configured otherwise. Balancers and NATs forget a
/// connection on which nothing passes, seldom before 50 s are over. Only a PING makes something pass in both directions, so other traffic
/// does not put it off. Every second PING goes along with a heartbeat. AgentCenter tolerates one in 5 s.
pub const KEEPALIVE_MS: u64 = 30_000;

/// How long a PING may stay without an answer before the session gives the connection up.
pub const PONG_TIMEOUT_MS: u64 = 10_000;

/// How long the session waits for the server's trailers at the end.
pub const DRAIN_TIMEOUT_MS: u64 = 10_000;

/// How many addresses were configured of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Endpoints {
    /// Service discovery hosts.
    pub discovery: usize,
    /// Private addresses of the server.
    pub private: usize,
    /// Public addresses of the server.
    pub public: usize,
}

/// A place to connect to: an index into what was configured or discovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An address of the last answer of service discovery.
    Discovered(usize),
    /// A private address.
    Private(usize),
    /// A public address.
    Public(usize),
}

impl Target {
    /// Returns the heartbeat's `net_mode` while connected to this target.
    #[must_use]
    pub fn net_mode(self) -> &'static str {
        match self {
            Self::Discovered(_) => "sd",
            Self::Private(_) => "private",
            Self::Public(_) => "public",
        }
    }
}

/// Identifies one attempt to reach a server. It is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt(u64);

/// What the shell is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask a service discovery host for addresses; answer with [`Session::handle_resolved`] or [`Session::handle_failed`].
    Resolve {
        /// The attempt that this belongs to.
        attempt: Attempt,
        /// Which discovery host, by index.
        host: usize,
    },
    /// Set up TCP and TLS; answer with [`Session::handle_connected`] or [`Session::handle_failed`].
    Connect {
        /// The attempt that this belongs to.
        attempt: Attempt,
        /// Where to.
        target: Target,
    },
    /// Start HTTP/2 and the Transfer call; answer with [`Session::handle_opened`] or [`Session::handle_failed`].
    Open {
        /// The attempt that this belongs to.
        attempt: Attempt,
    },
    /// Drop whatever the attempt has set up. The session expects nothing more from it.
    Abandon {
        /// The attempt that has ended.
        attempt: Attempt,
        /// Why it was given up, if the shell does not know it yet.
        reason: Abandoned,
    },
    /// Send a PING; answer with [`Session::handle_pong`].
    Ping,
    /// End the sending side of the stream once everything is written.
    HalfClose,
}

/// Why an attempt is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// It failed or ended by itself, and the shell said so.
    Failed,
    /// The settings have changed before it came to a stream, so another one begins.
    Superseded,
    /// The deadline of this phase has passed.
    TimedOut(Phase),
    /// The agent ends.
    Shutdown,
}

/// What an attempt, or the stream that it came to, waits for. Its text completes the sentence "no answer in time: ...".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Service discovery has to name servers.
    Discovery,
    /// A server has to take the connection.
    Connecting,
    /// A server has to take the call.
    Opening,
    /// The server has to answer a PING.
    Ping,
    /// The server has to end a stream whose sending side the agent has ended.
    End,
}

impl Phase {
    /// Returns true while there is no stream.
    #[must_use]
    pub fn is_before_stream(self) -> bool {
        matches!(self, Self::Discovery | Self::Connecting | Self::Opening)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discovery => "service discovery",
            Self::Connecting => "TCP and TLS",
            Self::Opening => "opening the stream",
            Self::Ping => "the answer to a ping",
            Self::End => "the server's end of the stream",
        })
    }
}

/// What a site may set about the session's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The time over which a fleet that loses its server comes back; see [`backoff`](crate::link::backoff).
    pub spread_ms: u64,
    /// A PING goes out when the last answer to one is this old.
    pub keepalive_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { spread_ms: RECONNECT_SPREAD_MS, keepalive_ms: KEEPALIVE_MS }
    }
}

/// The session's state machine.
#[derive(Debug)]
pub struct Session {
    state: State,
    endpoints: Endpoints,
    /// The discovery host that was asked last, by index.
    host: usize,
    /// How many addresses it named.
    discovered: usize,
    /// The attempt that is alive, or was last.
    attempt: u64,
    timing: Timing,
    /// [`Timing::keepalive_ms`], or longer for a server that finds PINGs too frequent.
    keepalive_ms: u64,
    /// When the last stream was opened or ended, whichever came later.
    since: Millis,
    backoff: Backoff,
    actions: VecDeque<Action>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Idle,
    Resolving { deadline: Millis },
    Connecting { target: Target, deadline: Millis },
    Opening { target: Target, deadline: Millis },
    Streaming { target: Target, liveness: Liveness },
    Moving { deadline: Millis },
    Draining { deadline: Millis },
    Backoff { until: Millis },
    Ended,
}

#[derive(Debug, Clone, Copy)]
enum Liveness {
    /// The stream was opened, or a PING was answered, at this moment.
    Heard(Millis),
    /// A PING is out; its answer is due.
    Pinged { deadline: Millis },
}

impl Session {
    /// Makes a session that has not begun. `seed` decides which moments within the spread are this agent's.
    #[must_use]
    pub fn new(endpoints: Endpoints, timing: Timing, seed: u64) -> Self {
        Self {
            state: State::Idle,
            endpoints,
            host: 0,
            discovered: 0,
            attempt: 0,
            timing,
            keepalive_ms: timing.keepalive_ms,
            since: Millis(0),
            backoff: Backoff::new(timing.spread_ms, seed),
            actions: VecDeque::new(),
        }
    }

    /// Begins the first round.
    pub fn handle_start(&mut self, now: Millis) {
        if matches!(self.state, State::Idle) {
            self.since = now;
            self.start_round(now);
        }
    }

    /// Service discovery has named this many addresses.
    pub fn handle_resolved(&mut self, attempt: Attempt, addresses: usize, now: Millis) {
        if let State::Resolving { .. } = self.state
            && attempt.0 == self.attempt
        {
            self.discovered = addresses;
            match addresses {
                0 => self.resolve_next(now),
                _ => self.connect(Target::Discovered(0), now),
            }
        }
    }

    /// TCP and TLS are up.
    pub fn handle_connected(&mut self, attempt: Attempt, now: Millis) {
        if let State::Connecting { target, .. } = self.state
            && attempt.0 == self.attempt
        {
            self.state = State::Opening { target, deadline: now + OPEN_TIMEOUT_MS };
            self.actions.push_back(Action::Open { attempt });
        }
    }

    /// The call is open: records may be sent.
    pub fn handle_opened(&mut self, attempt: Attempt, now: Millis) {
        if let State::Opening { target, .. } = self.state
            && attempt.0 == self.attempt
        {
            self.since = now;
            self.state = State::Streaming { target, liveness: Liveness::Heard(now) };
        }
    }

    /// The attempt has failed, or its stream has ended, for whatever reason.
    pub fn handle_failed(&mut self, attempt: Attempt, now: Millis) {
        if attempt.0 == self.attempt {
            self.give_up(Abandoned::Failed, now);
        }
    }

    /// Sends a PING before the keepalive is due, unless one is out already.
    pub fn handle_ping_wanted(&mut self, now: Millis) {
        if let State::Streaming { liveness: liveness @ Liveness::Heard(_), .. } = &mut self.state {
            *liveness = Liveness::Pinged { deadline: now + PONG_TIMEOUT_MS };
            self.actions.push_back(Action::Ping);
        }
    }

    /// Something is about to be sent anyway. A keepalive that is due before long goes along, which spares an idle host a wake-up.
    pub fn handle_sending(&mut self, now: Millis) {
        let soon = PING_INTERVAL_MS.max(self.keepalive_ms / 4 * 3);
        if matches!(self.state, State::Streaming { liveness: Liveness::Heard(at), .. } if at + soon <= now) {
            self.handle_ping_wanted(now);
        }
    }

    /// The PING was answered.
    pub fn handle_pong(&mut self, attempt: Attempt, now: Millis) {
        if let State::Streaming { liveness, .. } = &mut self.state
            && attempt.0 == self.attempt
        {
            *liveness = Liveness::Heard(now);
        }
    }

    /// The server finds PINGs too frequent. Makes them rarer.
    pub fn handle_too_many_pings(&mut self) {
        self.keepalive_ms = (self.keepalive_ms * 2).min(MAX_PING_INTERVAL_MS.max(self.keepalive_ms));
    }

    /// The agent ends, and has handed the stream, if there is one, everything that it should send.
    pub fn handle_shutdown(&mut self, now: Millis) {
        match self.state {
            State::Streaming { .. } => {
                self.state = State::Draining { deadline: now + DRAIN_TIMEOUT_MS };
                self.actions.push_back(Action::HalfClose);
            }
            State::Moving { deadline } => self.state = State::Draining { deadline },
            State::Draining { .. } | State::Ended => {}
            _ => self.end(Abandoned::Shutdown),
        }
    }

    /// The servers, or the ways to them, have changed. The session tries the new ones at once, unless it has a stream that is still good
    /// (`keeps_stream`). A stream that is not ends in order first.
    pub fn handle_reconfigured(&mut self, endpoints: Endpoints, timing: Timing, keeps_stream: bool, now: Millis) {
        self.endpoints = endpoints;
        self.backoff.set_spread(timing.spread_ms);
        if self.timing.keepalive_ms != timing.keepalive_ms {
            self.keepalive_ms = timing.keepalive_ms;
        }
        self.timing = timing;
        match self.state {
            State::Streaming { .. } if !keeps_stream => {
                self.state = State::Moving { deadline: now + DRAIN_TIMEOUT_MS };
                self.actions.push_back(Action::HalfClose);
            }
            State::Resolving { .. } | State::Connecting { .. } | State::Opening { .. } => {
                let attempt = Attempt(self.attempt);
                self.actions.push_back(Action::Abandon { attempt, reason: Abandoned::Superseded });
                self.start_round(now);
            }
            State::Backoff { .. } => self.start_round(now),
            State::Idle | State::Streaming { .. } | State::Moving { .. } | State::Draining { .. } | State::Ended => {}
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Millis) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        match &mut self.state {
            State::Resolving { .. } => self.give_up(Abandoned::TimedOut(Phase::Discovery), now),
            State::Connecting { .. } => self.give_up(Abandoned::TimedOut(Phase::Connecting), now),
            State::Opening { .. } => self.give_up(Abandoned::TimedOut(Phase::Opening), now),
            State::Streaming { liveness: Liveness::Heard(_), .. } => self.handle_ping_wanted(now),
            State::Streaming { .. } => self.give_up(Abandoned::TimedOut(Phase::Ping), now),
            State::Moving { .. } => self.give_up(Abandoned::TimedOut(Phase::End), now),
            State::Draining { .. } => self.end(Abandoned::TimedOut(Phase::End)),
            State::Backoff { .. } => self.start_round(now),
            State::Idle | State::Ended => {}
        }
        // The agent's turn may be now.
        if matches!(self.state, State::Backoff { until } if until <= now) {
            self.start_round(now);
        }
    }

    /// Returns when [`Session::handle_timeout`] is due. Every call of a `handle_*` method may change it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Millis> {
        match self.state {
            State::Resolving { deadline, .. }
            | State::Connecting { deadline, .. }
            | State::Opening { deadline, .. }
            | State::Moving { deadline }
            | State::Draining { deadline }
            | State::Streaming { liveness: Liveness::Pinged { deadline }, .. }
            | State::Backoff { until: deadline } => Some(deadline),
            State::Streaming { liveness: Liveness::Heard(at), .. } => Some(at + self.keepalive_ms),
            State::Idle | State::Ended => None,
        }
    }

    /// Returns the next thing to do. Ask again after every call of a `handle_*` method, until there is none.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns where the stream goes, while there is one.
    #[must_use]
    pub fn streaming_to(&self) -> Option<Target> {
        match self.state {
            State::Streaming { target, .. } => Some(target),
            _ => None,
        }
    }

    /// Returns what the session is doing, in a word: `starting`, `resolving`, `connecting`, `opening`, `connected`, `waiting`,
    /// `moving`, `draining` or `ended`.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        match self.state {
            State::Idle => "starting",
            State::Resolving { .. } => "resolving",
            State::Connecting { .. } => "connecting",
            State::Opening { .. } => "opening",
            State::Streaming { .. } => "connected",
            State::Backoff { .. } => "waiting",
            State::Moving { .. } => "moving",
            State::Draining { .. } => "draining",
            State::Ended => "ended",
        }
    }

    /// Returns since when there has been a stream, or none.
    #[must_use]
    pub fn since(&self) -> Millis {
        self.since
    }

    /// Returns true while the agent has ended its side of the stream and waits for the server's.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        matches!(self.state, State::Moving { .. } | State::Draining { .. })
    }

    /// Returns true once the agent's end has closed the last connection. Nothing begins after that.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Returns true while this attempt is the one that is alive. What another one still reports comes too late.
    #[must_use]
    pub fn is_alive(&self, attempt: Attempt) -> bool {
        let is_over = matches!(self.state, State::Idle | State::Backoff { .. } | State::Ended);
        attempt.0 == self.attempt && !is_over
    }

    /// Returns until when the session waits before it tries again, if it does wait.
    #[must_use]
    pub fn waits_until(&self) -> Option<Millis> {
        match self.state {
            State::Backoff { until } => Some(until),
            _ => None,
        }
    }

    fn start_round(&mut self, now: Millis) {
        match self.endpoints.discovery {
            0 => self.connect_configured(now),
            _ => self.resolve(0, now),
        }
    }

    fn resolve(&mut self, host: usize, now: Millis) {
        self.attempt += 1;
        self.host = host;
        self.discovered = 0;
        self.state = State::Resolving { deadline: now + RESOLVE_TIMEOUT_MS };
        self.actions.push_back(Action::Resolve { attempt: Attempt(self.attempt), host });
    }

    fn connect(&mut self, target: Target, now: Millis) {
        self.attempt += 1;
        self.state = State::Connecting { target, deadline: now + CONNECT_TIMEOUT_MS };
        self.actions.push_back(Action::Connect { attempt: Attempt(self.attempt), target });
    }

    /// Goes on after a discovery host that did not help.
    fn resolve_next(&mut self, now: Millis) {
        if self.host + 1 < self.endpoints.discovery {
            self.resolve(self.host + 1, now);
        } else {
            self.connect_configured(now);
        }
    }

    fn connect_configured(&mut self, now: Millis) {
        if self.endpoints.private > 0 {
            self.connect(Target::Private(0), now);
        } else {
            self.connect_public(0, now);
        }
    }

    fn connect_public(&mut self, index: usize, now: Millis) {
        if index < self.endpoints.public {
            self.connect(Target::Public(index), now);
        } else {
            self.state = State::Backoff { until: self.backoff.after_failure(now) };
        }
    }

    fn connect_after(&mut self, target: Target, now: Millis) {
        match target {
            Target::Discovered(i) if i + 1 < self.discovered => self.connect(Target::Discovered(i + 1), now),
            Target::Discovered(_) => self.resolve_next(now),
            Target::Private(i) if i + 1 < self.endpoints.private => self.connect(Target::Private(i + 1), now),
            Target::Private(_) => self.connect_public(0, now),
            Target::Public(i) => self.connect_public(i + 1, now),
        }
    }

    fn give_up(&mut self, reason: Abandoned, now: Millis) {
        let abandon = Action::Abandon { attempt: Attempt(self.attempt), reason };
        match self.state {
            State::Idle | State::Backoff { .. } | State::Ended => {}
            State::Draining { .. } => self.end(reason),
            State::Moving { .. } => {
                self.actions.push_back(abandon);
                self.since = now;
                self.start_round(now);
            }
            State::Resolving { .. } => {
                self.actions.push_back(abandon);
                self.resolve_next(now);
            }
            State::Connecting { target, .. } | State::Opening { target, .. } => {
                self.actions.push_back(abandon);
                self.connect_after(target, now);
            }
            State::Streaming { target, .. } => {
                self.actions.push_back(abandon);
                let lived = now.since(self.since);
                self.since = now;
                if lived < STABLE_MS {
                    self.connect_after(target, now);
                } else {
                    self.state = State::Backoff { until: self.backoff.after_loss(now) };
                }
            }
        }
    }

    fn end(&mut self, reason: Abandoned) {
        if !matches!(self.state, State::Idle | State::Backoff { .. }) {
            self.actions.push_back(Action::Abandon { attempt: Attempt(self.attempt), reason });
        }
        self.state = State::Ended;
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::link::backoff::{BACKOFF_BASE_MS, BACKOFF_CAP_MS, RECONNECT_SPREAD_MS};

    const ONE_PRIVATE: Endpoints = Endpoints { discovery: 0, private: 1, public: 0 };

    fn actions(session: &mut Session) -> Vec<Action> {
        core::iter::from_fn(|| session.poll_action()).collect()
    }

    /// Connects `session`, whose only target is a private one, and returns its attempt.
    fn streaming(session: &mut Session, now: Millis) -> Attempt {
        session.handle_start(now);
        let Some(Action::Connect { attempt, .. }) = actions(session).pop() else { panic!("a start connects") };
        session.handle_connected(attempt, now);
        assert_eq!(actions(session), [Action::Open { attempt }]);
        session.handle_opened(attempt, now);
        attempt
    }

    #[test]
    fn a_round_tries_discovery_then_private_then_public_then_waits() {
        let mut session = Session::new(Endpoints { discovery: 2, private: 2, public: 1 }, Timing::default(), 1);
        let (mut seen, mut now) = (vec![], Millis(0));
        session.handle_start(now);
        while session.waits_until().is_none() {
            for action in actions(&mut session) {
                match action {
                    Action::Resolve { attempt, host: 0 } => session.handle_resolved(attempt, 2, now),
                    Action::Resolve { attempt, .. } | Action::Connect { attempt, .. } => {
                        session.handle_failed(attempt, now)
                    }
                    _ => continue,
                }
                seen.push(action);
            }
            now = now + 1;
        }
        let targets: Vec<_> = seen
            .into_iter()
            .map(|action| match action {
                Action::Resolve { host, .. } => (None, host),
                Action::Connect { target: Target::Discovered(i), .. } => (Some("sd"), i),
                Action::Connect { target: Target::Private(i), .. } => (Some("private"), i),
                Action::Connect { target: Target::Public(i), .. } => (Some("public"), i),
                other => panic!("{other:?}"),
            })
            .collect();
        let (p, d) = (Some("private"), Some("sd"));
        assert_eq!(targets, [(None, 0), (d, 0), (d, 1), (None, 1), (p, 0), (p, 1), (Some("public"), 0)]);
    }

    #[test]
    fn a_stream_that_was_stable_is_opened_again_within_the_spread_and_one_that_is_refused_then_later_and_later() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = streaming(&mut session, Millis(0));
        session.handle_failed(attempt, Millis(STABLE_MS));
        let mut turn = session.waits_until().expect("it waits");
        assert!(turn.since(Millis(STABLE_MS)) <= RECONNECT_SPREAD_MS, "{turn:?}");
        let mut last = 0;
        for _ in 0..10 {
            refuse_in_turn(&mut session, turn);
            let next = session.waits_until().expect("it waits");
            let wait = next.since(turn);
            assert!(
                wait + 1 >= last && (RECONNECT_SPREAD_MS..=BACKOFF_CAP_MS).contains(&wait),
                "{wait} ms after {last}"
            );
            (turn, last) = (next, wait);
        }
        assert!(last + 1 >= BACKOFF_CAP_MS, "{last}");

        session.handle_timeout(turn);
        let Some(Action::Connect { attempt, .. }) = actions(&mut session).pop() else { panic!("the wait is over") };
        session.handle_connected(attempt, turn);
        session.handle_opened(attempt, turn);
        let lost = turn + STABLE_MS;
        session.handle_failed(attempt, lost);
        let wait = session.waits_until().expect("it waits").since(lost);
        assert!(wait <= RECONNECT_SPREAD_MS, "a stable stream has it begin anew: {wait} ms");
    }

    #[test]
    fn an_agent_that_has_never_been_connected_tries_soon_and_then_later_and_later() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        session.handle_start(Millis(0));
        let (mut now, mut waits) = (Millis(0), vec![]);
        for _ in 0..12 {
            refuse_in_turn(&mut session, now);
            let until = session.waits_until().expect("it waits");
            waits.push(until.since(now));
            now = until;
        }
        // The first turn may be too close to the failure, and is left out then.
        assert!(waits[0] <= 2 * RECONNECT_SPREAD_MS + BACKOFF_BASE_MS, "{waits:?}");
        assert!(waits[11] + 1 >= BACKOFF_CAP_MS, "{waits:?}");
    }

    #[test]
    fn rounds_before_the_turn_do_not_put_it_off() {
        let endpoints = Endpoints { discovery: 0, private: 1, public: 0 };
        let mut session = Session::new(endpoints, Timing::default(), 1);
        session.handle_start(Millis(0));
        let attempt = streaming(&mut session, Millis(0));
        let mut now = Millis(STABLE_MS);
        session.handle_failed(attempt, now);
        let _ = actions(&mut session);
        let turn = session.waits_until().expect("it waits");
        for _ in 0..5 {
            now = now + 1;
            session.handle_reconfigured(endpoints, Timing::default(), true, now);
            let Some(Action::Connect { attempt, .. }) = actions(&mut session).pop() else { panic!("it tries at once") };
            session.handle_failed(attempt, now);
            let _ = actions(&mut session);
            assert_eq!(session.waits_until(), Some(turn));
        }
    }

    /// The wait is over, the server takes the connection, and refuses the stream 20 ms later.
    fn refuse_in_turn(session: &mut Session, now: Millis) {
        session.handle_timeout(now);
        let Some(Action::Connect { attempt, .. }) = actions(session).pop() else { panic!("the wait is over") };
        session.handle_connected(attempt, now);
        session.handle_opened(attempt, now);
        session.handle_failed(attempt, now + 20);
        assert_eq!(actions(session).len(), 2, "it was opened and given up");
    }

    #[test]
    fn a_ping_goes_out_at_every_keepalive_and_one_without_an_answer_ends_the_stream() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = streaming(&mut session, Millis(10));
        assert_eq!(session.poll_timeout(), Some(Millis(10 + KEEPALIVE_MS)));
        session.handle_timeout(Millis(10 + KEEPALIVE_MS));
        assert_eq!(actions(&mut session), [Action::Ping]);
        session.handle_pong(attempt, Millis(10 + KEEPALIVE_MS + 5));
        let next = session.poll_timeout().expect("a keepalive");
        session.handle_timeout(next);
        assert_eq!(actions(&mut session), [Action::Ping]);
        session.handle_timeout(next + PONG_TIMEOUT_MS);
        assert_eq!(actions(&mut session), [Action::Abandon { attempt, reason: Abandoned::TimedOut(Phase::Ping) }]);
        assert!(session.waits_until().is_some());
    }

    #[test]
    fn a_keepalive_that_is_due_soon_goes_along_with_what_is_sent() {
        let mut session = Session::new(ONE_PRIVATE, Timing { keepalive_ms: 8_000, ..Timing::default() }, 7);
        let attempt = streaming(&mut session, Millis(0));
        session.handle_sending(Millis(PING_INTERVAL_MS - 1));
        assert_eq!(actions(&mut session), [], "AgentCenter would find it too frequent");
        session.handle_sending(Millis(PING_INTERVAL_MS));
        session.handle_sending(Millis(PING_INTERVAL_MS));
        assert_eq!(actions(&mut session), [Action::Ping], "one at a time is out");
        session.handle_pong(attempt, Millis(PING_INTERVAL_MS + 5));
        assert_eq!(session.poll_timeout(), Some(Millis(PING_INTERVAL_MS + 5 + 8_000)));
    }

    #[test]
    fn another_keepalive_holds_for_the_stream_that_is_open() {
        let mut session = Session::new(ONE_PRIVATE, Timing { keepalive_ms: 600_000, ..Timing::default() }, 7);
        streaming(&mut session, Millis(0));
        assert_eq!(session.poll_timeout(), Some(Millis(600_000)));
        session.handle_reconfigured(ONE_PRIVATE, Timing { keepalive_ms: 7_000, ..Timing::default() }, true, Millis(1));
        assert_eq!(session.poll_timeout(), Some(Millis(7_000)));
    }

    #[test]
    fn a_server_that_finds_pings_too_frequent_gets_fewer() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        session.handle_too_many_pings();
        streaming(&mut session, Millis(0));
        assert_eq!(session.poll_timeout(), Some(Millis(2 * KEEPALIVE_MS)));
        (0..100).for_each(|_| session.handle_too_many_pings());
        assert_eq!(session.poll_timeout(), Some(Millis(MAX_PING_INTERVAL_MS)));
        // What is configured again is no reason to ask that server more often.
        session.handle_reconfigured(ONE_PRIVATE, Timing::default(), true, Millis(1));
        assert_eq!(session.poll_timeout(), Some(Millis(MAX_PING_INTERVAL_MS)));
    }

    #[test]
    fn a_shutdown_half_closes_and_waits_ten_seconds_at_most() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = streaming(&mut session, Millis(0));
        session.handle_shutdown(Millis(5));
        assert_eq!(actions(&mut session), [Action::HalfClose]);
        session.handle_failed(attempt, Millis(6));
        assert!(matches!(actions(&mut session)[..], [Action::Abandon { reason: Abandoned::Failed, .. }]));
        assert!(session.is_ended());

        let mut unanswered = Session::new(ONE_PRIVATE, Timing::default(), 7);
        streaming(&mut unanswered, Millis(0));
        unanswered.handle_shutdown(Millis(5));
        unanswered.handle_timeout(Millis(5 + DRAIN_TIMEOUT_MS));
        let last = actions(&mut unanswered).pop();
        assert!(matches!(last, Some(Action::Abandon { reason: Abandoned::TimedOut(_), .. })));
        assert!(unanswered.is_ended());

        let mut connecting = Session::new(ONE_PRIVATE, Timing::default(), 7);
        connecting.handle_start(Millis(0));
        connecting.handle_shutdown(Millis(1));
        assert!(matches!(actions(&mut connecting).last(), Some(Action::Abandon { reason: Abandoned::Shutdown, .. })));
        assert!(connecting.is_ended());
    }

    const KINDS: Endpoints = Endpoints { discovery: 1, private: 1, public: 1 };

    /// Starts `session` and returns the attempt that it begins with.
    fn started(session: &mut Session, now: Millis) -> Attempt {
        session.handle_start(now);
        match actions(session)[..] {
            [Action::Resolve { attempt, .. } | Action::Connect { attempt, .. }] => attempt,
            ref other => panic!("{other:?}"),
        }
    }

    fn connect_to(session: &mut Session, attempt: Attempt, now: Millis) {
        session.handle_connected(attempt, now);
        session.handle_opened(attempt, now);
        assert_eq!(actions(session), [Action::Open { attempt }]);
    }

    #[test]
    fn the_heartbeat_says_by_which_kind_of_address_the_server_was_reached() {
        let modes = [Target::Discovered(1), Target::Private(0), Target::Public(2)].map(Target::net_mode);
        assert_eq!(modes, ["sd", "private", "public"]);
    }

    #[test]
    fn every_phase_has_a_name_and_only_a_stream_has_a_target() {
        let mut session = Session::new(Endpoints { public: 0, ..KINDS }, Timing::default(), 7);
        let mut seen = vec![(session.phase(), session.streaming_to(), session.is_half_closed())];
        let mut see = |session: &Session| {
            seen.push((session.phase(), session.streaming_to(), session.is_half_closed()));
        };
        let attempt = started(&mut session, Millis(0));
        see(&session);
        session.handle_resolved(attempt, 1, Millis(0));
        let Some(Action::Connect { attempt, .. }) = actions(&mut session).pop() else { panic!("an address is known") };
        see(&session);
        session.handle_connected(attempt, Millis(0));
        see(&session);
        session.handle_opened(attempt, Millis(0));
        see(&session);
        session.handle_reconfigured(KINDS, Timing::default(), false, Millis(1));
        see(&session);
        session.handle_shutdown(Millis(2));
        see(&session);
        session.handle_failed(attempt, Millis(3));
        see(&session);
        let expected = [
            ("starting", None, false),
            ("resolving", None, false),
            ("connecting", None, false),
            ("opening", None, false),
            ("connected", Some(Target::Discovered(0)), false),
            ("moving", None, true),
            ("draining", None, true),
            ("ended", None, false),
        ];
        assert_eq!(seen, expected);

        let mut refused = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = started(&mut refused, Millis(0));
        refused.handle_failed(attempt, Millis(0));
        assert_eq!(refused.phase(), "waiting");
    }

    #[test]
    fn a_session_starts_once() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        started(&mut session, Millis(5));
        session.handle_start(Millis(6));
        assert_eq!((actions(&mut session), session.since()), (vec![], Millis(5)));
    }

    #[test]
    fn what_takes_too_long_is_given_up_and_says_in_which_phase() {
        let mut session = Session::new(KINDS, Timing::default(), 7);
        let expect = |session: &mut Session, deadline: u64, attempt: Attempt, phase: Phase| {
            assert_eq!(session.poll_timeout(), Some(Millis(deadline)), "{phase}");
            session.handle_timeout(Millis(deadline - 1));
            assert_eq!(actions(session), [], "{phase}: it has a millisecond left");
            session.handle_timeout(Millis(deadline));
            let done = actions(session);
            assert_eq!(done[0], Action::Abandon { attempt, reason: Abandoned::TimedOut(phase) });
            done.get(1).copied()
        };
        let attempt = started(&mut session, Millis(0));
        let next = expect(&mut session, RESOLVE_TIMEOUT_MS, attempt, Phase::Discovery);
        let Some(Action::Connect { attempt, target: Target::Private(0) }) = next else { panic!("{next:?}") };
        let mut now = RESOLVE_TIMEOUT_MS + CONNECT_TIMEOUT_MS;
        let next = expect(&mut session, now, attempt, Phase::Connecting);
        let Some(Action::Connect { attempt, target: Target::Public(0) }) = next else { panic!("{next:?}") };
        session.handle_connected(attempt, Millis(now));
        assert_eq!(actions(&mut session), [Action::Open { attempt }]);
        now += OPEN_TIMEOUT_MS;
        assert_eq!(expect(&mut session, now, attempt, Phase::Opening), None);
        assert_eq!(Phase::Opening.to_string(), "opening the stream");
        assert_eq!(session.phase(), "waiting");
    }

    #[test]
    fn what_an_earlier_attempt_still_reports_is_ignored() {
        let mut session = Session::new(KINDS, Timing::default(), 7);
        let stale = started(&mut session, Millis(0));
        session.handle_failed(stale, Millis(0));
        let Some(Action::Connect { attempt, .. }) = actions(&mut session).pop() else { panic!("it goes on") };
        let everything = |session: &mut Session, phase: &str| {
            session.handle_resolved(stale, 1, Millis(1));
            session.handle_connected(stale, Millis(1));
            session.handle_opened(stale, Millis(1));
            session.handle_failed(stale, Millis(1));
            session.handle_pong(stale, Millis(1));
            assert_eq!((session.phase(), actions(session)), (phase, vec![]));
        };
        everything(&mut session, "connecting");
        session.handle_connected(attempt, Millis(0));
        assert_eq!(actions(&mut session), [Action::Open { attempt }]);
        everything(&mut session, "opening");
        session.handle_opened(attempt, Millis(0));
        everything(&mut session, "connected");
        assert_eq!(session.poll_timeout(), Some(Millis(KEEPALIVE_MS)), "a stale answer does not put the PING off");

        // An attempt that has failed is over, even if it fails once more.
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = started(&mut session, Millis(0));
        session.handle_failed(attempt, Millis(0));
        assert_eq!(actions(&mut session), [Action::Abandon { attempt, reason: Abandoned::Failed }]);
        let turn = session.waits_until();
        session.handle_failed(attempt, Millis(1));
        assert_eq!((actions(&mut session), session.waits_until()), (vec![], turn));
    }

    #[test]
    fn an_answer_of_service_discovery_to_an_earlier_question_is_ignored() {
        let mut session = Session::new(Endpoints { discovery: 2, ..KINDS }, Timing::default(), 7);
        let first = started(&mut session, Millis(0));
        session.handle_resolved(first, 0, Millis(0));
        let [Action::Resolve { attempt, host: 1 }] = actions(&mut session)[..] else {
            panic!("the next host is asked")
        };
        session.handle_resolved(first, 1, Millis(0));
        assert_eq!(actions(&mut session), []);
        session.handle_resolved(attempt, 0, Millis(0));
        assert!(matches!(actions(&mut session)[..], [Action::Connect { target: Target::Private(0), .. }]));
    }

    #[test]
    fn a_stream_that_ends_early_has_the_next_target_tried_and_a_stable_one_waits_for_the_turn() {
        for (lived, is_stable) in [(STABLE_MS - 1, false), (STABLE_MS, true)] {
            let mut session = Session::new(Endpoints { discovery: 0, ..KINDS }, Timing::default(), 7);
            let attempt = started(&mut session, Millis(0));
            connect_to(&mut session, attempt, Millis(10));
            assert_eq!(session.since(), Millis(10));
            session.handle_failed(attempt, Millis(10 + lived));
            let done = actions(&mut session);
            assert_eq!(done[0], Action::Abandon { attempt, reason: Abandoned::Failed });
            assert_eq!((done.len() == 1, session.waits_until().is_some()), (is_stable, is_stable), "{lived}");
            assert_eq!(session.since(), Millis(10 + lived), "since then there has been no stream");
        }
    }

    #[test]
    fn other_servers_are_tried_at_once_unless_the_stream_is_good_for_them() {
        let other = Endpoints { discovery: 0, private: 0, public: 1 };
        let reconfigured = |session: &mut Session, keeps_stream: bool, now: u64| {
            session.handle_reconfigured(other, Timing::default(), keeps_stream, Millis(now));
            actions(session)
        };
        let tries = |action: &Action| matches!(action, Action::Connect { target: Target::Public(0), .. });

        let mut idle = Session::new(KINDS, Timing::default(), 7);
        assert_eq!((reconfigured(&mut idle, false, 0), idle.phase()), (vec![], "starting"));

        let mut session = Session::new(KINDS, Timing::default(), 7);
        let attempt = started(&mut session, Millis(0));
        let done = reconfigured(&mut session, false, 1);
        assert_eq!(done[0], Action::Abandon { attempt, reason: Abandoned::Superseded }, "it was resolving");
        assert!(tries(&done[1]), "{done:?}");

        let Action::Connect { attempt, .. } = done[1] else { panic!("{done:?}") };
        let done = reconfigured(&mut session, false, 2);
        assert_eq!(done[0], Action::Abandon { attempt, reason: Abandoned::Superseded }, "it was connecting");

        let Action::Connect { attempt, .. } = done[1] else { panic!("{done:?}") };
        session.handle_connected(attempt, Millis(3));
        assert_eq!(actions(&mut session), [Action::Open { attempt }]);
        let done = reconfigured(&mut session, false, 3);
        assert_eq!(done[0], Action::Abandon { attempt, reason: Abandoned::Superseded }, "it was opening");

        let Action::Connect { attempt, .. } = done[1] else { panic!("{done:?}") };
        session.handle_failed(attempt, Millis(4));
        assert_eq!(actions(&mut session).len(), 1);
        let done = reconfigured(&mut session, false, 5);
        assert!(done.len() == 1 && tries(&done[0]), "it was waiting: {done:?}");

        let Action::Connect { attempt, .. } = done[0] else { panic!("{done:?}") };
        connect_to(&mut session, attempt, Millis(6));
        assert_eq!((reconfigured(&mut session, true, 7), session.phase()), (vec![], "connected"));
        assert_eq!(reconfigured(&mut session, false, 8), [Action::HalfClose]);
        assert_eq!((reconfigured(&mut session, false, 9), session.phase()), (vec![], "moving"), "once is enough");
        session.handle_failed(attempt, Millis(10));
        let done = actions(&mut session);
        assert_eq!(done[0], Action::Abandon { attempt, reason: Abandoned::Failed });
        assert!(done.len() == 2 && tries(&done[1]), "{done:?}");
        assert_eq!(session.since(), Millis(10), "the stream has ended");

        let Action::Connect { attempt, .. } = done[1] else { panic!("{done:?}") };
        session.handle_shutdown(Millis(11));
        assert_eq!(actions(&mut session), [Action::Abandon { attempt, reason: Abandoned::Shutdown }]);
        assert_eq!((reconfigured(&mut session, false, 12), session.phase()), (vec![], "ended"));
    }

    #[test]
    fn a_server_that_does_not_end_its_side_does_not_hold_the_move_up() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = streaming(&mut session, Millis(0));
        session.handle_reconfigured(ONE_PRIVATE, Timing::default(), false, Millis(1));
        assert_eq!(actions(&mut session), [Action::HalfClose]);
        assert_eq!(session.poll_timeout(), Some(Millis(1 + DRAIN_TIMEOUT_MS)));
        session.handle_timeout(Millis(1 + DRAIN_TIMEOUT_MS));
        let done = actions(&mut session);
        let reason = Abandoned::TimedOut(Phase::End);
        assert_eq!(done[0], Action::Abandon { attempt, reason });
        assert!(matches!(done[1..], [Action::Connect { target: Target::Private(0), .. }]), "{done:?}");
    }

    #[test]
    fn an_end_while_the_stream_moves_keeps_the_deadline_and_tries_no_server_any_more() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = streaming(&mut session, Millis(0));
        session.handle_reconfigured(ONE_PRIVATE, Timing::default(), false, Millis(1));
        session.handle_shutdown(Millis(500));
        assert_eq!(actions(&mut session), [Action::HalfClose], "it is half-closed once");
        assert_eq!(session.poll_timeout(), Some(Millis(1 + DRAIN_TIMEOUT_MS)));
        session.handle_shutdown(Millis(600));
        assert_eq!(session.phase(), "draining", "to be told twice changes nothing");
        session.handle_timeout(Millis(1 + DRAIN_TIMEOUT_MS));
        let reason = Abandoned::TimedOut(Phase::End);
        assert_eq!(actions(&mut session), [Action::Abandon { attempt, reason }]);
        session.handle_shutdown(Millis(20_000));
        session.handle_timeout(Millis(20_000));
        assert_eq!((actions(&mut session), session.poll_timeout()), (vec![], None), "it has ended");
    }

    #[test]
    fn an_end_before_there_is_an_attempt_or_after_it_has_failed_abandons_nothing() {
        let mut idle = Session::new(ONE_PRIVATE, Timing::default(), 7);
        assert_eq!(idle.poll_timeout(), None);
        idle.handle_shutdown(Millis(0));
        assert_eq!((actions(&mut idle), idle.is_ended()), (vec![], true));

        let mut waiting = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = started(&mut waiting, Millis(0));
        waiting.handle_failed(attempt, Millis(0));
        let _ = actions(&mut waiting);
        waiting.handle_shutdown(Millis(1));
        assert_eq!((actions(&mut waiting), waiting.is_ended()), (vec![], true));
    }

    #[test]
    fn an_attempt_is_alive_from_its_beginning_until_it_is_given_up() {
        let mut session = Session::new(Endpoints { discovery: 0, ..KINDS }, Timing::default(), 7);
        let first = started(&mut session, Millis(0));
        assert!(session.is_alive(first) && !session.is_alive(Attempt(0)) && !session.is_ended());
        session.handle_failed(first, Millis(0));
        let Some(Action::Connect { attempt, .. }) = actions(&mut session).pop() else { panic!("it goes on") };
        assert!(session.is_alive(attempt) && !session.is_alive(first));
        connect_to(&mut session, attempt, Millis(0));
        session.handle_shutdown(Millis(1));
        assert!(session.is_alive(attempt) && !session.is_ended(), "its stream drains");
        session.handle_failed(attempt, Millis(2));
        assert!(!session.is_alive(attempt) && session.is_ended());

        let idle = Session::new(ONE_PRIVATE, Timing::default(), 7);
        assert!(!idle.is_alive(Attempt(0)), "no attempt has begun");
        let mut waiting = Session::new(ONE_PRIVATE, Timing::default(), 7);
        let attempt = started(&mut waiting, Millis(0));
        waiting.handle_failed(attempt, Millis(0));
        assert!(!waiting.is_alive(attempt));
    }

    #[test]
    fn a_keepalive_goes_along_from_three_quarters_of_its_time_on() {
        let mut session = Session::new(ONE_PRIVATE, Timing { keepalive_ms: 40_000, ..Timing::default() }, 7);
        streaming(&mut session, Millis(0));
        session.handle_sending(Millis(29_999));
        assert_eq!(actions(&mut session), []);
        session.handle_sending(Millis(30_000));
        assert_eq!(actions(&mut session), [Action::Ping]);
        assert_eq!(session.poll_timeout(), Some(Millis(30_000 + PONG_TIMEOUT_MS)));
    }

    #[test]
    fn a_ping_is_sent_on_a_stream_and_nowhere_else() {
        let mut session = Session::new(ONE_PRIVATE, Timing::default(), 7);
        started(&mut session, Millis(0));
        session.handle_ping_wanted(Millis(1));
        session.handle_sending(Millis(1_000_000));
        assert_eq!(actions(&mut session), []);
    }

    #[test]
    fn another_spread_counts_from_the_next_failure_on() {
        let spread = |spread_ms| Timing { spread_ms, ..Timing::default() };
        let mut session = Session::new(ONE_PRIVATE, spread(1_000_000), 7);
        let attempt = streaming(&mut session, Millis(0));
        session.handle_reconfigured(ONE_PRIVATE, spread(1_000), true, Millis(1));
        session.handle_failed(attempt, Millis(STABLE_MS));
        let turn = session.waits_until().expect("it waits");
        assert!(turn <= Millis(STABLE_MS + 1_000), "{turn:?}");
    }

    proptest! {
        /// Whatever is reported in whatever order, stale or not: there is never a state without a way on, and the last
        /// attempt that was started is the only one alive.
        #[test]
        fn never_stuck_and_never_two_attempts(
            endpoints in (0..3usize, 0..3usize, 0..3usize),
            steps in prop::collection::vec((0..6u8, 0..20u64, 0..3usize), 0..200),
        ) {
            let (discovery, private, public) = endpoints;
            let mut session = Session::new(Endpoints { discovery, private, public }, Timing::default(), 3);
            let mut now = Millis(0);
            session.handle_start(now);
            let mut attempts: Vec<Attempt> = Vec::new();
            let mut alive: Option<Attempt> = None;
            for (step, back, n) in steps {
                let attempt = attempts.iter().rev().nth(usize::from(back > 12)).copied().unwrap_or(Attempt(0));
                match step {
                    0 => session.handle_resolved(attempt, n, now),
                    1 => session.handle_connected(attempt, now),
                    2 => session.handle_opened(attempt, now),
                    3 => session.handle_failed(attempt, now),
                    4 => session.handle_pong(attempt, now),
                    _ => {
                        now = session.poll_timeout().expect("always a deadline").max(now) + back;
                        session.handle_timeout(now);
                    }
                }
                for action in actions(&mut session) {
                    match action {
                        Action::Resolve { attempt, .. } | Action::Connect { attempt, .. } => {
                            alive = Some(attempt);
                            attempts.push(attempt);
                        }
                        Action::Open { attempt } => prop_assert_eq!(Some(attempt), alive),
                        Action::Abandon { attempt, .. } => prop_assert_eq!(alive.take(), Some(attempt)),
                        Action::Ping => prop_assert!(session.streaming_to().is_some()),
                        Action::HalfClose => prop_assert!(false, "nobody asked for the end"),
                    }
                }
                prop_assert!(session.poll_timeout().is_some());
            }
        }
    }
}
