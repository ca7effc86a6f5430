//! What is done to the agent's process and its host: starts, ends, settings, sleep.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::World;
use super::agenda::{Happening, Manner, Packet};
use super::shell::Host;
use crate::agent::{After, Agent, END_OF_FLUSH_MS, END_OF_PLUGINS_MS, END_OF_SPOOL_MS, Setup, Termination};
use crate::delivery::Bounds;
use crate::link::End;
use crate::link::session::{DRAIN_TIMEOUT_MS, Endpoints, Timing};
use crate::testing::random::Draw;
use crate::testing::schedule::Way;
use crate::update::Trial;

/// The agent that has been asked to end has ended by then.
const END_MS: u64 = END_OF_PLUGINS_MS + END_OF_FLUSH_MS + DRAIN_TIMEOUT_MS + END_OF_SPOOL_MS;

/// A version on trial holds a stream for so long, and has so long to get one.
const HOLD_MS: u64 = 10_000;
pub(super) const TRIAL_MS: u64 = 60_000;

impl World {
    fn endpoints(&self, listed: &[usize]) -> Endpoints {
        let count = |way| listed.iter().filter(|server| self.setup.servers[**server].way == way).count();
        Endpoints { discovery: self.setup.discovery, private: count(Way::Private), public: count(Way::Public) }
    }

    fn timing(&self) -> Timing {
        Timing { spread_ms: self.setup.spread_ms, keepalive_ms: self.setup.keepalive_ms }
    }

    /// A process of the agent begins.
    pub(super) fn start_agent(&mut self) {
        if self.host.is_some() {
            return;
        }
        self.life += 1;
        let now = self.agenda.now;
        let version = self.version.clone();
        let trial = self.on_trial.as_ref().map(|_| Trial::new(now, HOLD_MS, TRIAL_MS));
        let listed: Vec<usize> = (0..self.servers.len()).collect();
        let setup = Setup {
            version: version.clone(),
            endpoints: self.endpoints(&listed),
            timing: self.timing(),
            bounds: Bounds { memory: self.setup.memory, spool: self.spool_bytes },
            replay_ms: self.setup.replay_ms,
            trial,
            seed: self.random.below(u64::MAX),
        };
        self.note(|| format!("the agent starts as version {version}"));
        let own = self.own_series();
        let mut host = Host::new(Agent::new(setup, now), version, self.setup.arena, listed, own);
        host.is_on_trial = self.on_trial.is_some();
        host.previous = self.on_trial.clone();
        host.is_deaf = self.center.is_deaf(&host.version);
        host.rules = self.rules;
        host.agent.handle_policy(self.rules.policy(), now);
        host.agent.handle_start(self.kept.clone(), now);
        self.host = Some(host);
        self.handle_new_life();
        self.rouse = true;
        self.ready = Vec::new();
        self.plugins.iter_mut().for_each(|plugin| plugin.news = None);
        if self.is_calm {
            self.begin_waiting();
        }
    }

    pub(super) fn terminate(&mut self, again_ms: Option<u64>, down_ms: u64) {
        if self.host.is_some() {
            self.down_ms = down_ms;
            if let Some(ms) = again_ms {
                self.agenda.after(ms, Happening::TerminateAgain { life: self.life });
            }
            self.signal();
        }
    }

    /// SIGTERM.
    pub(super) fn signal(&mut self) {
        let now = self.agenda.now;
        self.rouse = true;
        if let Some(host) = &mut self.host {
            host.is_at_once |= host.agent.handle_terminate(now) == Termination::AtOnce;
        }
    }

    /// The agent's process is killed; what only its memory held is gone.
    pub(super) fn kill_agent(&mut self, down_ms: u64) {
        let Some(host) = self.host.take() else { return };
        self.tear();
        let memory = self.in_memory(&host);
        self.lose_memory(&host, memory);
        self.leave(host, down_ms);
    }

    /// Records that are gone with an agent's process.
    fn in_memory(&self, host: &Host) -> u64 {
        let unconfirmed = host.agent.unconfirmed(host.intake.level());
        // That the spool is gone may not have been noticed.
        let on_disk = if self.disk.is_gone() { unconfirmed.disk_records } else { 0 };
        // Nor does anybody hear any more of what a file held that was being dropped.
        unconfirmed.memory_records + on_disk + self.dropping
    }

    /// Holds what is known of records against what will be known in the next life.
    fn lose_memory(&mut self, host: &Host, in_memory: u64) {
        let elsewhere: Vec<_> = self.disk.records().chain(self.promised()).collect();
        let gone = self.account.handle_agent_gone(host.agent.losses(), in_memory, elsewhere.into_iter());
        if let Err(what) = gone {
            self.fail("no record is lost that was not told", &what);
        }
    }

    fn leave(&mut self, host: Host, down_ms: u64) {
        self.tear_certificate(host.renewing.installing());
        self.host = Some(host);
        self.close_near_end();
        (self.host, self.op, self.dropping, self.uploading) = (None, None, 0, None);
        // Plugins do not outlive the agent, and what lies in their pipes is lost with them.
        self.processes.clear();
        self.agenda.after(down_ms.max(1), Happening::AgentStarts);
    }

    /// The agent has ended by itself.
    pub(super) fn handle_exit(&mut self, after: After) {
        let Some(host) = self.host.take() else { return };
        let now = self.agenda.now;
        self.note(|| format!("the agent has ended: {after:?}"));
        let memory = self.in_memory(&host);
        let began = host.ending.map_or(now, |(began, _)| began);
        if host.is_at_once {
            self.lose_memory(&host, memory);
        } else {
            // With a good disk there is no reason to lose anything.
            let is_safe = self.spool_bytes > 0
                && self.disk.bad_until < began
                && !self.disk.is_damaged
                && self.disk.bytes() + (2 << 20) < self.spool_bytes;
            self.lose_memory(&host, if is_safe { 0 } else { memory });
            let is_quiet = self.processes.is_empty();
            if !is_quiet && now.since(began) < END_OF_PLUGINS_MS && self.frozen_until < began {
                self.fail("the agent ends when its plugins have, and their pipes are read", "it did not wait for them");
            }
            if is_quiet && let Some(token) = self.unanswered() {
                let what = token.to_string();
                self.fail("every task is answered before the agent ends", &what);
            }
        }
        let down_ms = match after {
            After::Exit => self.down_ms,
            After::BecomeUpdate => {
                self.on_trial = Some(self.version.clone());
                self.version = self.center.agent().map_or_else(String::new, ToString::to_string);
                50
            }
            After::PutBack => {
                self.version = self.on_trial.take().unwrap_or_default();
                50
            }
        };
        if !host.is_on_trial && after == After::Exit {
            self.on_trial = None;
        }
        self.leave(host, down_ms);
    }

    /// Looks at how long the agent has been ending.
    pub(super) fn check_ending(&mut self) {
        let now = self.agenda.now;
        let frozen_until = self.frozen_until;
        let Some(host) = &mut self.host else { return };
        if !host.is_on_trial {
            self.on_trial = None;
        }
        if !host.agent.is_ending() {
            return;
        }
        let (_, due) = *host.ending.get_or_insert((now, now + END_MS));
        if now > due && frozen_until < due {
            self.fail("an agent that was asked to end has ended within its time", &format!("it was to end by {due:?}"));
        }
    }

    /// The stream ends in order, and the next one begins with another certificate.
    pub(super) fn move_stream(&mut self) {
        let Some(listed) = self.host.as_ref().map(|host| host.listed.clone()) else { return };
        let (endpoints, timing) = (self.endpoints(&listed), self.timing());
        self.tell(|agent, now| agent.handle_reconfigured(endpoints, timing, false, now));
    }

    pub(super) fn reload(&mut self, without: usize, spool: u64) {
        let all = 0..self.servers.len();
        let kept: Vec<usize> = all.clone().filter(|server| *server != without).collect();
        let listed = if kept.is_empty() { all.collect() } else { kept };
        let (endpoints, timing) = (self.endpoints(&listed), self.timing());
        let server = self.current().map(|id| self.connections[id].server);
        let keeps = server.is_some_and(|server| listed.contains(&server));
        if self.spool_bytes > 0 {
            self.spool_bytes = spool;
        }
        let spool = self.spool_bytes;
        if let Some(host) = &mut self.host {
            host.listed = listed;
            host.agent.set_spool_bytes(spool);
        }
        self.shrunk_at = self.agenda.now;
        self.reload_policy();
        self.tell(|agent, now| agent.handle_reconfigured(endpoints, timing, keeps, now));
    }

    /// The agent's host sleeps. The servers do not.
    pub(super) fn suspend(&mut self, ms: u64) {
        let now = self.agenda.now;
        if self.forgot_at.is_some_and(|at| now.since(at) < 1_000) {
            // The agent would hear of that only when it wakes up, and reckon from then.
            return;
        }
        self.frozen_until = self.frozen_until.max(now + ms);
        if let Some(id) = self.current() {
            let notices = self.setup.servers[self.connections[id].server].notices_ms;
            if ms > notices {
                self.agenda.after(notices, Happening::ServerNotices { connection: id });
            }
        }
    }

    /// A server has not heard of a sleeping host for so long that it ends the connection.
    pub(super) fn end_sleeper(&mut self, id: usize) {
        let connection = &self.connections[id];
        if connection.server_open && connection.agent_open && self.agenda.now < self.frozen_until {
            self.send(id, Packet::End { end: End::Unexplained, how: Manner::Once });
            self.close_far_end(id);
        }
    }

    /// The moment from which on the world's faults are over, as far as the agent can tell.
    pub(super) fn begin_waiting(&mut self) {
        (self.waiting_since, self.has_recovered) = (self.agenda.now, false);
    }

    /// Whether a server believes in a connection that is dead.
    pub(super) fn is_mistaken(&self) -> bool {
        let dead = |id: usize| !self.connections[id].agent_open || self.connections[id].is_cut;
        (0..self.connections.len()).any(|id| self.connections[id].server_open && dead(id))
    }
}
