//! One plugin: what should be running, what is, and the next step from one to the other.
//!
//! ```text
//!   wanted:       Run(configuration) | Rest (stop, keep the files) | Remove
//!   preparation:  None -> Under way -> Ready -> None            (verified, and fetched if need be)
//!   process:      None -> Running -> Stopping -> None
//! ```
//! The three move on their own. [`Plugin::reconcile`] compares them after every event and asks for one step at a time. A new version is
//! prepared beside the running one, which is stopped only when the new one is ready. If the new one then cannot be started, the old one
//! stands in for it for a while. It also stands in when it has died before the new one is ready.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use core::mem;

use super::{Action, PluginAction, Preparation};
use crate::command::{PluginConfig, PluginName, Policy};
use crate::limits::{MAX_LAST_WORDS_CHARS, MAX_REPORT_CHARS};
use crate::printable;
use crate::time::Millis;

/// The first wait before a plugin that died is started again, or one that could not be prepared is tried again. It doubles each time.
pub const RESTART_BASE_MS: u64 = 1_000;

/// The longest such wait: a plugin that cannot run costs one attempt a minute.
pub const RESTART_CAP_MS: u64 = 60_000;

/// How long a plugin is held back before it is looked at again: as long as a plugin that cannot run waits in the end.
pub const HELD_BACK_MS: u64 = RESTART_CAP_MS;

/// A plugin that lived this long is started again after the shortest wait.
pub const RESTART_FORGIVEN_MS: u64 = 300_000;

/// How long another version stands in for one that could not be started, before that one is tried again. Each attempt interrupts the
/// stand-in.
pub const STAND_IN_MS: u64 = 3_600_000;

/// How long a plugin that was asked to end may take before it is killed; the reference's time.
pub const STOP_TIMEOUT_MS: u64 = 10_000;

/// Deaths in a row after which a plugin counts as crashing in a loop.
const LOOP_DEATHS: u32 = 3;

/// Deaths in a row after which a version does not stand in for its successor.
const STAND_IN_DEATHS: u32 = 2;

#[derive(Debug)]
pub(super) struct Plugin {
    wanted: Wanted,
    preparation: Prepared,
    process: Process,
    /// The configuration of the process before this one, or of the last one.
    previous: Option<PluginConfig>,
    /// The configuration that stands in for the wanted one, and until when.
    stand_in: Option<(PluginConfig, Millis)>,
    /// Failures in a row, of processes and of preparations.
    failures: u32,
    deaths: u32,
    not_before: Option<Millis>,
    /// True from when a preparation was held back until one ends otherwise.
    is_held_back: bool,
    restarts: u64,
    /// What is wrong with it, as `state_detail` says it.
    trouble: Option<String>,
}

#[derive(Debug)]
enum Wanted {
    Run(PluginConfig),
    Rest,
    Remove,
}

#[derive(Debug)]
enum Prepared {
    No,
    UnderWay(Preparation, PluginConfig),
    Ready(Preparation, PluginConfig),
}

#[derive(Debug)]
enum Process {
    None,
    Running {
        config: PluginConfig,
        since: Millis,
    },
    /// It was asked to end. It is killed at `kill_at`, which is `None` once it was.
    Stopping {
        kill_at: Option<Millis>,
    },
}

impl Plugin {
    pub(super) fn new(config: PluginConfig) -> Self {
        Self {
            wanted: Wanted::Run(config),
            preparation: Prepared::No,
            process: Process::None,
            previous: None,
            stand_in: None,
            failures: 0,
            deaths: 0,
            not_before: None,
            is_held_back: false,
            restarts: 0,
            trouble: None,
        }
    }

    /// Wants the plugin to run by `config`, and returns true when that is something new. A changed configuration is tried at once; the same
    /// one waits out its failures.
    pub(super) fn want(&mut self, config: PluginConfig) -> bool {
        let is_new = self.wanted() != Some(&config);
        if is_new {
            // A version that died twice in a row would only die again until its successor is there.
            if self.deaths >= STAND_IN_DEATHS && !self.has_process() {
                self.previous = None;
            }
            (self.failures, self.deaths) = (0, 0);
            self.not_before = None;
            self.is_held_back = false;
            self.stand_in = None;
        }
        if self.running() == Some(&config) && self.deaths < LOOP_DEATHS {
            self.trouble = None;
        }
        self.wanted = Wanted::Run(config);
        is_new
    }

    /// Wants the plugin gone, and returns true when that is something new.
    pub(super) fn want_removed(&mut self) -> bool {
        !matches!(mem::replace(&mut self.wanted, Wanted::Remove), Wanted::Remove)
    }

    /// Gives up all versions that may not run any more, but for the wanted one, and asks the one that runs to end.
    pub(super) fn end_forbidden(
        &mut self,
        name: &PluginName,
        policy: &Policy,
        now: Millis,
        actions: &mut VecDeque<Action>,
    ) {
        let is_forbidden = |config: &PluginConfig| policy.judge_plugin(config).is_err();
        self.stand_in.take_if(|(config, _)| is_forbidden(config));
        if let Prepared::UnderWay(_, config) | Prepared::Ready(_, config) = &self.preparation
            && is_forbidden(config)
        {
            self.drop_preparation(actions);
        }
        if self.running().is_some_and(is_forbidden) {
            self.stop(name, now, actions);
        }
        // The one that was stopped is among these.
        self.previous.take_if(|config| is_forbidden(config));
    }

    /// Returns the configuration that it should run by.
    pub(super) fn wanted(&self) -> Option<&PluginConfig> {
        match &self.wanted {
            Wanted::Run(config) => Some(config),
            Wanted::Rest | Wanted::Remove => None,
        }
    }

    /// Returns what is wrong with it, unless it has run for long enough since.
    pub(super) fn trouble(&self, now: Millis) -> Option<&str> {
        let is_well = match &self.process {
            Process::Running { config, since } => {
                self.wanted() == Some(config) && now.since(*since) >= RESTART_FORGIVEN_MS
            }
            Process::None | Process::Stopping { .. } => false,
        };
        self.trouble.as_deref().filter(|_| !is_well)
    }

    pub(super) fn want_rest(&mut self) {
        self.wanted = Wanted::Rest;
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.process, Process::Running { .. })
    }

    pub(super) fn has_process(&self) -> bool {
        !matches!(self.process, Process::None)
    }

    pub(super) fn running(&self) -> Option<&PluginConfig> {
        match &self.process {
            Process::Running { config, .. } => Some(config),
            _ => None,
        }
    }

    pub(super) fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Returns the configuration that it runs by, or else should run by.
    pub(super) fn config(&self) -> Option<&PluginConfig> {
        self.running().or(self.wanted())
    }

    /// Returns its phase; see [`super::PluginState::phase`].
    pub(super) fn phase(&self) -> &'static str {
        match (&self.process, &self.preparation) {
            (Process::Running { .. }, _) => "running",
            (Process::Stopping { .. }, _) => "stopping",
            (Process::None, Prepared::UnderWay(..)) => "preparing",
            (Process::None, Prepared::Ready(..)) => "starting",
            (Process::None, Prepared::No) if self.is_held_back => "held back",
            (Process::None, Prepared::No) => "waiting",
        }
    }

    /// Returns when [`Plugin::reconcile`] is due although nothing has happened.
    pub(super) fn timeout(&self) -> Option<Millis> {
        let kill_at = match self.process {
            Process::Stopping { kill_at } => kill_at,
            Process::None | Process::Running { .. } => None,
        };
        self.retry_at().into_iter().chain(kill_at).min()
    }

    /// Returns when another attempt to start it begins.
    pub(super) fn retry_at(&self) -> Option<Millis> {
        let stand_in = self.stand_in.as_ref().map(|(_, until)| *until);
        self.not_before.into_iter().chain(stand_in).min()
    }

    pub(super) fn prepared(&mut self, preparation: Preparation) {
        match mem::replace(&mut self.preparation, Prepared::No) {
            Prepared::UnderWay(id, config) if id == preparation => {
                self.preparation = Prepared::Ready(id, config);
                if mem::take(&mut self.is_held_back) {
                    // What kept it from its start is over.
                    self.trouble = None;
                }
            }
            other => self.preparation = other,
        }
    }

    /// Ends `preparation` if it is the one under way, and returns what to say about it.
    pub(super) fn preparation_failed(
        &mut self,
        name: &PluginName,
        preparation: Preparation,
        reason: &str,
        now: Millis,
    ) -> Option<String> {
        if !self.end_preparation(preparation)? {
            self.wait(now);
        }
        self.is_held_back = false;
        Some(self.not_started(name, reason))
    }

    /// Ends `preparation` if it is the one under way, and returns what to say about it the first time.
    pub(super) fn held_back(
        &mut self,
        name: &PluginName,
        preparation: Preparation,
        reason: &str,
        now: Millis,
    ) -> Option<String> {
        if !self.end_preparation(preparation)? {
            self.not_before = Some(now + HELD_BACK_MS);
        }
        let is_known = mem::replace(&mut self.is_held_back, true);
        Some(self.not_started(name, reason)).filter(|_| !is_known)
    }

    /// Ends `preparation` without success if it is the one under way. Returns true if another version is to be prepared at once.
    fn end_preparation(&mut self, preparation: Preparation) -> Option<bool> {
        let is_next = match &self.preparation {
            Prepared::UnderWay(id, config) if *id == preparation => {
                let stood_in = self.previous.take_if(|previous| previous == config).is_some();
                stood_in && self.stand_in.is_none() && self.wanted() != Some(config)
            }
            _ => return None,
        };
        self.preparation = Prepared::No;
        self.stand_in = None;
        Some(is_next)
    }

    fn not_started(&mut self, name: &PluginName, reason: &str) -> String {
        let running = self.running().map(|config| format!("; version {:.40} runs on", config.version));
        self.troubled(format!("plugin {name} cannot be started: {reason}{}", running.unwrap_or_default()))
    }

    /// Notes that the process could not be started, and returns what to say about it.
    pub(super) fn spawn_failed(&mut self, name: &PluginName, reason: &str, now: Millis) -> String {
        let others = [self.running(), self.wanted()].map(|config| config.cloned());
        let previous = self.previous.take().filter(|previous| !others.iter().flatten().any(|other| other == previous));
        self.process = Process::None;
        self.stand_in = previous.map(|previous| (previous, now + STAND_IN_MS));
        let standing_in = match &self.stand_in {
            Some((previous, _)) => format!("; version {:.40} is started again", previous.version),
            None => {
                self.wait(now);
                String::new()
            }
        };
        self.troubled(format!("plugin {name} cannot be started: {reason}{standing_in}"))
    }

    /// Notes that the process has ended, and returns what to say about it when nobody had asked it to end.
    pub(super) fn exited(&mut self, name: &PluginName, how: &str, last_words: &str, now: Millis) -> Option<String> {
        match mem::replace(&mut self.process, Process::None) {
            Process::Running { since, config } => {
                if now.since(since) >= RESTART_FORGIVEN_MS {
                    (self.failures, self.deaths) = (0, 0);
                }
                self.previous = Some(config);
                self.restarts += 1;
                self.deaths += 1;
                self.wait(now);
                let loops = match self.deaths {
                    ..LOOP_DEATHS => String::new(),
                    deaths => format!(", {deaths} times in a row: it crashes in a loop"),
                };
                let last_words = match last_words {
                    "" => String::new(),
                    words => {
                        // The end of a long text says most.
                        let skipped = words.chars().count().saturating_sub(MAX_LAST_WORDS_CHARS);
                        let kept: String = words.chars().skip(skipped).collect();
                        format!("; its last words: {kept}")
                    }
                };
                Some(self.troubled(format!("plugin {name} {how} unexpectedly{loops}{last_words}")))
            }
            Process::Stopping { .. } | Process::None => None,
        }
    }

    fn troubled(&mut self, what: String) -> String {
        self.trouble = Some(printable::cut(&what, MAX_REPORT_CHARS));
        what
    }

    fn wait(&mut self, now: Millis) {
        self.not_before = Some(now + (RESTART_BASE_MS << self.failures.min(16)).min(RESTART_CAP_MS));
        self.failures += 1;
    }

    /// Asks for the next steps. Returns false when the plugin is gone and may be forgotten.
    pub(super) fn reconcile(
        &mut self,
        name: &PluginName,
        now: Millis,
        next_preparation: &mut u64,
        actions: &mut VecDeque<Action>,
    ) -> bool {
        if self.not_before.is_some_and(|moment| moment <= now) {
            self.not_before = None;
        }
        if self.stand_in.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.stand_in = None;
        }
        if let Process::Stopping { kill_at } = &mut self.process
            && kill_at.take_if(|moment| *moment <= now).is_some()
        {
            actions.push_back(PluginAction::Kill(name.clone()).into());
        }
        let Wanted::Run(wanted) = &self.wanted else {
            self.not_before = None;
            self.stand_in = None;
            self.drop_preparation(actions);
            self.stop(name, now, actions);
            if matches!((&self.wanted, &self.process), (Wanted::Remove, Process::None)) {
                actions.push_back(PluginAction::Remove(name.clone()).into());
                return false;
            }
            return true;
        };

        let target = self.target(wanted);
        if self.running() == Some(target) {
            self.drop_preparation(actions);
            return true;
        }
        match &self.preparation {
            Prepared::UnderWay(_, config) if config == target => {}
            Prepared::Ready(_, config) if config == target => match &self.process {
                Process::None => return self.start(name, now, next_preparation, actions),
                Process::Running { .. } => self.stop(name, now, actions),
                Process::Stopping { .. } => {}
            },
            _ if self.not_before.is_some() => {}
            _ => {
                let target = target.clone();
                self.drop_preparation(actions);
                *next_preparation += 1;
                let id = Preparation(*next_preparation);
                actions.push_back(PluginAction::Prepare(id, target.clone()).into());
                self.preparation = Prepared::UnderWay(id, target);
            }
        }
        true
    }

    /// Starts what is ready, and prepares the wanted configuration if that is another one.
    fn start(
        &mut self,
        name: &PluginName,
        now: Millis,
        next_preparation: &mut u64,
        actions: &mut VecDeque<Action>,
    ) -> bool {
        let Prepared::Ready(id, config) = mem::replace(&mut self.preparation, Prepared::No) else { return true };
        actions.push_back(PluginAction::Spawn(id, config.clone()).into());
        let is_wanted = self.wanted() == Some(&config);
        if is_wanted && self.previous.as_ref().is_some_and(|previous| *previous != config) {
            // The failures so far were the other version's, or those of getting here.
            (self.failures, self.deaths) = (0, 0);
        }
        self.process = Process::Running { config, since: now };
        if is_wanted && self.deaths == 0 {
            self.trouble = None;
        }
        self.reconcile(name, now, next_preparation, actions)
    }

    /// Returns the configuration that should run now: the wanted one, or its stand-in.
    fn target<'a>(&'a self, wanted: &'a PluginConfig) -> &'a PluginConfig {
        if let Some((stand_in, _)) = &self.stand_in {
            return stand_in;
        }
        let is_awaited = match &self.preparation {
            Prepared::Ready(_, config) => config == wanted,
            // For a version that crashes in a loop, no download is worth beginning anew.
            Prepared::UnderWay(_, config) => config == wanted && self.deaths >= LOOP_DEATHS,
            Prepared::No => false,
        };
        let may_stand_in = !self.has_process() && self.not_before.is_none() && !is_awaited;
        self.previous.as_ref().filter(|_| may_stand_in).unwrap_or(wanted)
    }

    fn stop(&mut self, name: &PluginName, now: Millis, actions: &mut VecDeque<Action>) {
        if let Process::Running { config, .. } = &self.process {
            self.previous = Some(config.clone());
            actions.push_back(PluginAction::Stop(name.clone()).into());
            self.process = Process::Stopping { kill_at: Some(now + STOP_TIMEOUT_MS) };
        }
    }

    fn drop_preparation(&mut self, actions: &mut VecDeque<Action>) {
        if let Prepared::UnderWay(id, _) | Prepared::Ready(id, _) = mem::replace(&mut self.preparation, Prepared::No) {
            actions.push_back(PluginAction::Forget(id).into());
        }
    }
}
