//! A plugin on its way to the hosts of a group: a few canaries first, then all, and back if it goes wrong.
//!
//! This is the decision alone. Whoever has a [`Rollout`] tells it what happens and what time it is, carries out the [`Action`]s that
//! [`Rollout::poll_action`] hands out after that, and calls [`Rollout::handle_tick`] at the time that [`Rollout::poll_timeout`] names.
//! `serve` does so. Times are milliseconds since 1970.
//!
//! ```text
//!            promote, or all canaries          every host runs it
//!            ran it for wait_s                 or has gone wrong
//!   canary ──────────────────────────► rolling ─────────────────► done, or failed if some went wrong
//!      │ a canary goes wrong, abort       │ abort                         │ abort
//!      └──────────► aborted ◄─────────────┴───────────────────────────────┘
//! ```

use crate::desired::Plugin;
use crate::message::TEXT_LEN;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A host has so long to run the version that it was sent. An agent fetches for 600 s at most and then tries again, and tells of the
/// plugins that run once a minute.
pub const PATIENCE_MS: i64 = 180_000;

/// What a host tells so soon after it was sent a version may still be about the one before. It tells again what lasts.
const GRACE_MS: i64 = 1_000;

/// What an agent says when it does not start a version: because it cannot fetch it, or its signature or its hash is wrong.
const REFUSAL: &str = " cannot be started: ";

/// A host that is not connected is waited for so long. One whose connection broke is back by then.
const ABSENCE_MS: i64 = 60_000;

/// A promotion that could not be written is tried again after so long.
const RETRY_MS: i64 = 10_000;

/// The most bytes of an error that are kept.
const MAX_ERROR: usize = 500;

/// The plugin's name under which agents update themselves.
pub const AGENT: &str = "elkeid-agent";

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Only the canaries have the new version.
    Canary,
    /// All hosts are to have it.
    Rolling,
    /// All hosts that were connected run it.
    Done,
    /// What ran before is put back.
    Aborted,
    /// All hosts are to have it, and some do not run it.
    Failed,
}

/// How far a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// It was not sent the new version since it connected.
    Waiting,
    /// It was sent the new version and has not said that it runs it.
    Sent,
    /// It has said that it runs it.
    Running,
    /// It has said that something is wrong with it, or runs another version.
    Wrong,
}

/// A host of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The agent's id.
    pub id: String,
    /// How far it is.
    pub state: Progress,
    /// The plugin's version that it last said it runs.
    pub version: Option<String>,
    /// What is wrong.
    pub error: Option<String>,
    /// When it was sent the new version in its present stream, if it was.
    sent_ms: Option<i64>,
    /// When it was sent the new version first.
    #[serde(default)]
    first_sent_ms: Option<i64>,
}

/// What was wanted before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The configuration's version.
    pub version: i64,
    /// The configuration.
    pub plugins: Option<Vec<Plugin>>,
    /// Who set it.
    pub changed_by: String,
    /// When.
    pub changed_ms: i64,
}

/// What somebody wants rolled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The hosts of this group, or all that no group's configuration decides for.
    pub group: Option<String>,
    /// The plugin in its new version.
    pub plugin: Plugin,
    /// So many hosts get it first. With none, all get it at once.
    pub canary: usize,
    /// All get it once the canaries have run it for so long; with 0 when somebody says so.
    pub wait_s: u32,
    /// Who wants it.
    pub by: String,
}

/// What is known of a host when a rollout begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The agent's id.
    pub id: String,
    /// True if it is connected.
    pub connected: bool,
    /// The plugin's version that it runs.
    pub version: Option<String>,
    /// What it says is wrong with the plugin already.
    pub trouble: Option<String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Sends these hosts their configuration. Each that gets it is told to [`Rollout::handle_sent`].
    Push(Vec<String>),
    /// Puts the plugin into the configuration of all, and calls [`Rollout::handle_promoted`].
    Promote,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its number.
    pub id: i64,
    /// The group, or `None` for everybody.
    pub group: Option<String>,
    /// The plugin in its new version.
    pub plugin: Plugin,
    /// The configuration before, if there was one.
    pub from: Option<Before>,
    /// How far it is.
    pub state: State,
    /// The hosts that get it first.
    pub canary: Vec<String>,
    /// All hosts, by id.
    pub hosts: Vec<Host>,
    /// Who began it.
    pub created_by: String,
    /// When.
    pub created_ms: i64,
    /// When it changed last.
    pub changed_ms: i64,
    /// Why it is in its state, for people. Empty while there is nothing to say.
    pub reason: String,
    /// See [`Order::wait_s`].
    pub wait_s: u32,
    /// The version of the configuration that all hosts got the plugin by.
    pub promoted: Option<i64>,
    /// Since when all canaries run it.
    steady_ms: Option<i64>,
    /// What hosts said was wrong with the plugin before they were sent the new version.
    known: Vec<(String, String)>,
    #[serde(skip)]
    promote_ms: Option<i64>,
    /// Before this, hosts may still be coming back after a restart.
    #[serde(skip)]
    settle_ms: Option<i64>,
    #[serde(skip)]
    actions: VecDeque<Action>,
}

/// Why something is not done with a rollout: it is in another state than that takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotNow(pub String);

impl std::fmt::Display for NotNow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotNow {}

impl Rollout {
    /// Begins with the canaries: the first hosts that are connected, by id. It has no number yet.
    ///
    /// # Errors
    /// When canaries are wanted and no host is connected.
    pub fn new(order: Order, from: Option<Before>, hosts: Vec<Candidate>, now: i64) -> Result<Self, NotNow> {
        let Order { group, plugin, canary: wanted, wait_s, by } = order;
        let connected = hosts.iter().filter(|host| host.connected).map(|host| host.id.clone());
        let mut canary: Vec<_> = connected.collect();
        canary.sort_unstable();
        canary.truncate(wanted);
        if wanted > 0 && canary.is_empty() {
            return Err(NotNow(format!("none of {} hosts is connected, so that none can be the canary", hosts.len())));
        }
        let troubles =
            hosts.iter().filter_map(|host| Some((host.id.clone(), shortened(host.trouble.as_deref()?).to_owned())));
        let mut rollout = Self {
            id: 0,
            group,
            plugin,
            from,
            state: State::Canary,
            known: troubles.collect(),
            canary,
            hosts: hosts
                .into_iter()
                .map(|host| Host {
                    id: host.id,
                    state: Progress::Waiting,
                    version: host.version.map(|version| kept(&version).to_owned()),
                    error: None,
                    sent_ms: None,
                    first_sent_ms: None,
                })
                .collect(),
            created_by: by,
            created_ms: now,
            changed_ms: now,
            reason: String::new(),
            wait_s,
            promoted: None,
            steady_ms: None,
            promote_ms: None,
            settle_ms: None,
            actions: VecDeque::new(),
        };
        rollout.hosts.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        if rollout.canary.is_empty() {
            rollout.promote_ms = Some(now);
        } else {
            rollout.actions.push_back(Action::Push(rollout.canary.clone()));
        }
        Ok(rollout)
    }

    /// Goes on after a restart, at which no host is connected.
    pub fn resume(&mut self, now: i64) {
        for host in self.hosts.iter_mut().filter(|host| host.state == Progress::Sent) {
            host.state = Progress::Waiting;
        }
        self.settle_ms = Some(now + PATIENCE_MS);
        if self.state == State::Canary && self.canary.is_empty() {
            self.promote_ms = Some(now);
        }
    }

    /// Returns true until it has ended.
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Canary | State::Rolling)
    }

    /// Returns the plugin that a host should run other than its configuration says: canaries run the new version.
    pub fn overlay(&self, agent_id: &str) -> Option<&Plugin> {
        (self.state == State::Canary && self.canary.iter().any(|id| id == agent_id)).then_some(&self.plugin)
    }

    /// Says that a host was sent its configuration.
    pub fn handle_sent(&mut self, agent_id: &str, now: i64) {
        if self.concerns(agent_id)
            && let Some(host) = self.host(agent_id)
            && host.state == Progress::Waiting
        {
            (host.state, host.sent_ms) = (Progress::Sent, Some(now));
            host.first_sent_ms.get_or_insert(now);
            self.changed_ms = now;
        }
    }

    /// Says that a host has disconnected. It is sent its configuration again when it comes back.
    pub fn handle_gone(&mut self, agent_id: &str, now: i64) {
        let Some(host) = self.host(agent_id) else { return };
        if host.state != Progress::Sent {
            return;
        }
        host.state = Progress::Waiting;
        // One that comes and goes all the time is not waited for for ever.
        let is_new = host.first_sent_ms.is_some_and(|sent| now < sent + PATIENCE_MS);
        self.changed_ms = now;
        if self.is_active() && is_new {
            self.settle_ms = Some(now + ABSENCE_MS);
        }
        self.settle(now);
    }

    /// Says that a host runs this version of the plugin.
    pub fn handle_version(&mut self, agent_id: &str, version: &str, now: i64) {
        let concerned = self.concerns(agent_id);
        let wanted = self.plugin.config.version == version;
        let Some(host) = self.host(agent_id) else { return };
        let before = (host.state, host.version.clone());
        host.version = Some(kept(version).to_owned());
        if concerned && wanted && host.state != Progress::Running {
            (host.state, host.error) = (Progress::Running, None);
        } else if concerned && !wanted && host.state == Progress::Running {
            host.state = Progress::Sent;
        }
        if before == (host.state, host.version.clone()) {
            return;
        }
        self.changed_ms = now;
        self.look_at_canaries(now);
        self.settle(now);
    }

    /// Says what a host says is wrong with the plugin: what happened at a time of this host's clock, or what lasts, which is in its
    /// heartbeats. Agents send again what a server may not have, also from before the new version.
    ///
    /// What a host told before the new version lasts until that runs, or happens to the one before again while the new one is fetched. It does
    /// not count, but for a refusal in the log: an agent refuses no version but the one that it was sent last.
    pub fn handle_trouble(&mut self, agent_id: &str, what: &str, at_ms: Option<i64>, now: i64) {
        let what = shortened(what);
        if !self.concerns(agent_id) {
            return;
        }
        let refused_again = at_ms.is_some() && what.contains(REFUSAL);
        if !refused_again && self.known.iter().any(|(id, known)| id == agent_id && known == what) {
            return;
        }
        let Some(host) = self.host(agent_id) else { return };
        let is_new = |sent: i64| at_ms.is_none_or(|at| at >= sent + GRACE_MS) && now >= sent + GRACE_MS;
        if host.first_sent_ms.is_some_and(is_new) && host.state != Progress::Wrong {
            self.goes_wrong(agent_id, what.to_owned(), now);
        }
    }

    /// Looks at what the time has brought about.
    pub fn handle_tick(&mut self, now: i64) {
        let late: Vec<_> = self
            .hosts
            .iter()
            .filter(|host| host.state == Progress::Sent && host.sent_ms.is_some_and(|sent| sent + PATIENCE_MS <= now))
            .map(|host| (host.id.clone(), host.version.clone()))
            .collect();
        for (id, version) in late {
            let says = version.map_or("nothing of the plugin".to_owned(), |version| format!("version {version}"));
            let patience = PATIENCE_MS / 1000;
            self.goes_wrong(&id, format!("it says {says} {patience} s after it was sent the new one"), now);
        }
        if self.state == State::Canary
            && self.wait_s > 0
            && let Some(steady) = self.steady_ms
            && steady + i64::from(self.wait_s) * 1000 <= now
        {
            self.steady_ms = None;
            self.promote_ms = Some(now);
        }
        if self.promote_ms.is_some_and(|at| at <= now) && self.state == State::Canary {
            self.promote_ms = Some(now + RETRY_MS);
            self.actions.push_back(Action::Promote);
        }
        self.settle_ms = self.settle_ms.filter(|settle| *settle > now);
        self.settle(now);
    }

    /// Returns when [`Rollout::handle_tick`] is due, if ever. Ask again after each call of another method.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<i64> {
        if !self.is_active() {
            return None;
        }
        let sent = self.hosts.iter().filter(|host| host.state == Progress::Sent).filter_map(|host| host.sent_ms);
        let late = sent.min().map(|sent| sent + PATIENCE_MS);
        let waits = self.state == State::Canary && self.wait_s > 0;
        let steady = self.steady_ms.filter(|_| waits).map(|steady| steady + i64::from(self.wait_s) * 1000);
        let promote = self.promote_ms.filter(|_| self.state == State::Canary);
        let settle = self.settle_ms.filter(|_| self.state == State::Rolling);
        [late, steady, promote, settle].into_iter().flatten().min()
    }

    /// Returns what is to be done next. Ask until there is nothing more.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Lets all hosts have it, whatever the canaries say.
    ///
    /// # Errors
    /// When it is past that.
    pub fn promote(&mut self, now: i64) -> Result<(), NotNow> {
        if self.state != State::Canary {
            return Err(self.not_now("promoted"));
        }
        self.promote_ms = Some(now);
        self.handle_tick(now);
        Ok(())
    }

    /// Says that the configuration of all hosts now has the plugin, in this version of the configuration.
    pub fn handle_promoted(&mut self, version: i64, now: i64) {
        (self.state, self.promoted, self.promote_ms, self.changed_ms) = (State::Rolling, Some(version), None, now);
        self.reason.clear();
        let rest = self.hosts.iter().filter(|host| host.state == Progress::Waiting);
        self.actions.push_back(Action::Push(rest.map(|host| host.id.clone()).collect()));
    }

    /// Says that the hosts of the last [`Action::Push`] were sent it, as far as they are connected.
    pub fn handle_pushed(&mut self, now: i64) {
        self.settle(now);
    }

    /// Returns true if this host is part of it.
    pub fn has(&self, agent_id: &str) -> bool {
        self.at(agent_id).is_some()
    }

    /// Puts back what ran before. If it was promoted, the configuration of all has to be the old one again already.
    ///
    /// # Errors
    /// When it has ended otherwise.
    pub fn abort(&mut self, reason: String, now: i64) -> Result<(), NotNow> {
        if !matches!(self.state, State::Canary | State::Rolling | State::Failed) {
            return Err(self.not_now("aborted"));
        }
        (self.state, self.reason, self.changed_ms) = (State::Aborted, reason, now);
        let touched = self.hosts.iter().filter(|host| host.sent_ms.is_some());
        self.actions.push_back(Action::Push(touched.map(|host| host.id.clone()).collect()));
        Ok(())
    }

    fn not_now(&self, what: &str) -> NotNow {
        NotNow(format!("rollout {} is {}, and cannot be {what}", self.id, self.state))
    }

    /// Returns true if this host is to have the new version in the present state.
    fn concerns(&self, agent_id: &str) -> bool {
        match self.state {
            State::Canary => self.canary.iter().any(|id| id == agent_id),
            State::Rolling => true,
            State::Done | State::Aborted | State::Failed => false,
        }
    }

    fn at(&self, agent_id: &str) -> Option<usize> {
        self.hosts.binary_search_by(|host| host.id.as_str().cmp(agent_id)).ok()
    }

    fn host(&mut self, agent_id: &str) -> Option<&mut Host> {
        let at = self.at(agent_id)?;
        self.hosts.get_mut(at)
    }

    fn goes_wrong(&mut self, agent_id: &str, what: String, now: i64) {
        let Some(host) = self.host(agent_id) else { return };
        (host.state, host.error) = (Progress::Wrong, Some(what.clone()));
        self.changed_ms = now;
        if self.state == State::Canary {
            // The state takes an abort.
            _ = self.abort(format!("canary {agent_id} went wrong: {what}"), now);
        }
        self.settle(now);
    }

    fn look_at_canaries(&mut self, now: i64) {
        let running = |id: &String| self.at(id).is_some_and(|at| self.hosts[at].state == Progress::Running);
        let all = self.state == State::Canary && self.canary.iter().all(running);
        self.steady_ms = all.then(|| self.steady_ms.unwrap_or(now));
    }

    /// Ends once no host is on its way. Those that are gone get it when they come back, because it is in their configuration.
    fn settle(&mut self, now: i64) {
        let on_its_way = self.hosts.iter().any(|host| host.state == Progress::Sent);
        let pushing = self.actions.iter().any(|action| matches!(action, Action::Push(_)));
        if self.state != State::Rolling || on_its_way || pushing {
            return;
        }
        let count = |state| self.hosts.iter().filter(|host| host.state == state).count();
        let (wrong, waiting) = (count(Progress::Wrong), count(Progress::Waiting));
        if waiting > 0 && self.settle_ms.is_some() {
            return;
        }
        self.changed_ms = now;
        (self.state, self.reason) = match (wrong, waiting) {
            (0, 0) => (State::Done, String::new()),
            (0, waiting) => (State::Done, format!("{waiting} hosts were gone, and get it when they come back")),
            (wrong, _) => (State::Failed, format!("{wrong} of {} hosts went wrong", self.hosts.len())),
        };
    }
}

/// Returns as much of a version as is kept of what a host says that it runs.
fn kept(version: &str) -> &str {
    &version[..version.floor_char_boundary(TEXT_LEN)]
}

fn shortened(error: &str) -> &str {
    &error[..error.floor_char_boundary(MAX_ERROR)]
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Canary => "at its canaries",
            Self::Rolling => "rolling",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests;
