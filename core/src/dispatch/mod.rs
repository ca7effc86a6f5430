//! The state machine between the server's commands and the plugins.
//!
//! [`Dispatch`] takes commands and what the shell reports of its plugins, and answers with [`Action`]s. Only the newest configuration
//! counts: it never queues behind an older one that is still being applied, and a slow step never delays the next command. A task that
//! cannot be done is answered with an [`Action::Answer`] that carries its token.

mod plugin;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem;

use elklet_proto::grpc::Task;

use self::plugin::Plugin;
pub use self::plugin::{
    HELD_BACK_MS, RESTART_BASE_MS, RESTART_CAP_MS, RESTART_FORGIVEN_MS, STAND_IN_MS, STOP_TIMEOUT_MS,
};
use crate::command::{
    AGENT_NAME, AgentConfig, AgentTask, Command, Configuration, Forbidden, PluginConfig, PluginName, Policy, Rate,
    RefusedTask,
};
use crate::limits::{MAX_PLUGINS_KNOWN, MAX_REPORT_CHARS, MAX_STATE_DETAILS};
use crate::printable;
use crate::time::Millis;

/// What the shell should do after a command, or after something has happened to a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Do this with a plugin.
    Plugin(PluginAction),
    /// Carry out a task of the agent's own; answer a failure with [`Dispatch::handle_task_failed`].
    Task(AgentTask),
    /// Replace the agent by another version, and give up what is under way about an earlier one.
    UpdateAgent(AgentConfig),
    /// Stay what the agent is, and give up what is under way about an [`Action::UpdateAgent`].
    KeepAgent,
    /// Tell the server that a task has failed (data type 5100).
    Answer(TaskFailure),
    /// The host's owner does not allow a plugin that the server wants, or has wanted: tell people, and the owner.
    Forbid(PluginName, Forbidden),
    /// An entry of the server's list cannot be carried out, for this reason: tell people, and the owner.
    Refuse(String),
    /// Log a warning for people.
    Complain(String),
}

/// What the shell should do with a plugin's files and process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginAction {
    /// Verify the plugin's executable, fetching it if need be, beside whatever is running; answer with
    /// [`Dispatch::handle_prepared`], [`Dispatch::handle_preparation_failed`] or [`Dispatch::handle_held_back`].
    Prepare(Preparation, PluginConfig),
    /// Stop this preparation, or drop its result. Nobody needs it any more.
    Forget(Preparation),
    /// Start what was prepared; answer with [`Dispatch::handle_spawn_failed`] if that fails, and with
    /// [`Dispatch::handle_exited`] when the process has ended.
    Spawn(Preparation, PluginConfig),
    /// Close the plugin's task pipe and let it finish; answer with [`Dispatch::handle_exited`].
    Stop(PluginName),
    /// Kill the process, which should have finished within [`STOP_TIMEOUT_MS`].
    Kill(PluginName),
    /// Delete the plugin's directory.
    Remove(PluginName),
    /// Keep this list on the disk for [`Dispatch::handle_kept`] at the next start. It is what should run from now on.
    Keep(Vec<PluginConfig>),
    /// Hand a task to a running plugin. Answer with [`Dispatch::handle_task_failed`] if that fails.
    ForwardTask(PluginName, Task),
}

impl From<PluginAction> for Action {
    fn from(action: PluginAction) -> Self {
        Self::Plugin(action)
    }
}

/// Identifies one preparation of a plugin. It is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Preparation(u64);

/// The answer to a task that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    /// The task's token.
    pub token: String,
    /// Why it failed, at most [`MAX_REPORT_CHARS`] characters.
    pub message: String,
}

impl TaskFailure {
    /// Makes an answer whose text is printable and short enough. The token stays as it is, because the server knows its task by it.
    #[must_use]
    pub fn new(token: String, message: &str) -> Self {
        Self { token, message: printable::cut(message, MAX_REPORT_CHARS) }
    }
}

/// The state of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginState<'a> {
    /// Its name.
    pub name: &'a PluginName,
    /// The configuration that its process was started with, while it has one.
    pub running: Option<&'a PluginConfig>,
    /// The same, or else the configuration that it should be started with.
    pub config: Option<&'a PluginConfig>,
    /// `running`, `stopping`, `preparing` (being fetched and verified), `starting`, `waiting` for its next start, or `held back` from
    /// it.
    pub phase: &'static str,
    /// When the next attempt to start it begins, while it waits for one.
    pub retry_at: Option<Millis>,
    /// How often its process died without being asked to.
    pub restarts: u64,
}

/// The state machine; see the module.
#[derive(Debug)]
pub struct Dispatch {
    agent_version: String,
    policy: Policy,
    tasks: Rate,
    plugins: BTreeMap<PluginName, Plugin>,
    /// Plugins that are configured and find no room until others have ended.
    postponed: VecDeque<PluginConfig>,
    /// Plugins of the server's newest list that the owner forbids. Servers send their list once on each stream, so they are kept for a
    /// policy that allows them again.
    forbidden: Vec<PluginConfig>,
    next_preparation: u64,
    shutting_down: bool,
    /// True while the server names another version of the agent.
    updating: bool,
    state_details: VecDeque<String>,
    actions: VecDeque<Action>,
}

impl Dispatch {
    /// Makes a dispatch without plugins, for an agent of this version.
    #[must_use]
    pub fn new(agent_version: String) -> Self {
        Self {
            agent_version,
            policy: Policy::default(),
            tasks: Rate::default(),
            plugins: BTreeMap::new(),
            postponed: VecDeque::new(),
            forbidden: Vec::new(),
            next_preparation: 0,
            shutting_down: false,
            updating: false,
            state_details: VecDeque::new(),
            actions: VecDeque::new(),
        }
    }

    /// The host's owner allows this from now on. Plugins that it forbids end, and are removed as those that no server names any more. A
    /// version that it forbids ends at once, although the one that is to follow may not be there yet. Plugins of the newest list that it
    /// allows again are started.
    pub fn handle_policy(&mut self, policy: Policy, now: Millis) {
        self.policy = policy;
        let wanted = self.plugins.values().filter_map(Plugin::wanted).chain(&self.postponed);
        let (kept, forbidden): (Vec<_>, Vec<_>) =
            wanted.cloned().partition(|config| self.policy.judge_plugin(config).is_ok());
        let (again, still): (Vec<_>, Vec<_>) =
            mem::take(&mut self.forbidden).into_iter().partition(|config| self.policy.judge_plugin(config).is_ok());
        self.forbidden = still;
        if !forbidden.is_empty() || !again.is_empty() {
            let kept = kept.into_iter().chain(again.iter().cloned()).collect();
            self.actions.push_back(PluginAction::Keep(kept).into());
        }
        let running = self.plugins.values().filter_map(Plugin::running).filter(|config| !forbidden.contains(config));
        let running: Vec<_> = running.cloned().collect();
        // This takes no notice of those that are allowed.
        self.forbid(&forbidden);
        self.forbid(&running);
        let is_forbidden = |name: &PluginName| forbidden.iter().any(|config| config.name == *name);
        self.postponed.retain(|config| !is_forbidden(&config.name));
        for (name, plugin) in &mut self.plugins {
            if is_forbidden(name) {
                plugin.want_removed();
            }
            plugin.end_forbidden(name, &self.policy, now, &mut self.actions);
        }
        self.forbidden.extend(forbidden);
        for config in again {
            self.want(config);
        }
        self.reconcile_all(now);
        self.admit();
        self.reconcile_all(now);
    }

    /// Starts what should have run when the agent ended last, before any server has been heard of.
    pub fn handle_kept(&mut self, plugins: Vec<PluginConfig>, now: Millis) {
        let plugins = self.allowed(plugins);
        self.postponed.extend(plugins);
        self.admit();
        self.reconcile_all(now);
    }

    /// The server has sent a command.
    pub fn handle_command(&mut self, command: Command, now: Millis) {
        match command {
            Command::Nothing => {}
            Command::PluginTask(task) => match self.judge_task(&task.object_name, task.data_type, now) {
                Ok(()) => self.forward(task),
                Err(forbidden) => self.report(task.token, &forbidden.to_string()),
            },
            Command::AgentTask(task) => match self.judge_task(AGENT_NAME, task.data_type(), now) {
                Ok(()) => self.actions.push_back(Action::Task(task)),
                Err(forbidden) => self.report(task.token().to_string(), &forbidden.to_string()),
            },
            Command::RefusedTask(RefusedTask { token, reason }) => self.report(token, &reason.to_string()),
            Command::Configuration(configuration) if !self.shutting_down => self.configure(configuration, now),
            Command::Configuration(_) => {
                self.complain("a configuration came while the agent ends: passed over".to_string())
            }
        }
    }

    /// A preparation has succeeded: the plugin can be started.
    pub fn handle_prepared(&mut self, name: &PluginName, preparation: Preparation, now: Millis) {
        self.with_plugin(name, now, |plugin| plugin.prepared(preparation));
    }

    /// A preparation has failed.
    pub fn handle_preparation_failed(
        &mut self,
        name: &PluginName,
        preparation: Preparation,
        reason: &str,
        now: Millis,
    ) {
        let what = self.with_plugin(name, now, |plugin| plugin.preparation_failed(name, preparation, reason, now));
        self.complain_if(what.flatten());
    }

    /// A preparation has found that the plugin must not start for now, by no fault of its executable. It is prepared again after
    /// [`HELD_BACK_MS`], which is no failure, and complained of once.
    pub fn handle_held_back(&mut self, name: &PluginName, preparation: Preparation, reason: &str, now: Millis) {
        let what = self.with_plugin(name, now, |plugin| plugin.held_back(name, preparation, reason, now));
        self.complain_if(what.flatten());
    }

    /// A plugin could not be started. Nothing has changed on the disk.
    pub fn handle_spawn_failed(&mut self, name: &PluginName, reason: &str, now: Millis) {
        let what = self.with_plugin(name, now, |plugin| plugin.spawn_failed(name, reason, now));
        self.complain_if(what);
    }

    /// A plugin's process has ended. `how` completes the sentence "plugin x ..."; `last_words` is the end of what it wrote to its standard
    /// error, if it wrote anything.
    pub fn handle_exited(&mut self, name: &PluginName, how: &str, last_words: &str, now: Millis) {
        let what = self.with_plugin(name, now, |plugin| plugin.exited(name, how, last_words, now));
        if !self.shutting_down {
            self.complain_if(what.flatten());
        }
    }

    /// A task could not be carried out, or could not be handed to its plugin.
    pub fn handle_task_failed(&mut self, token: String, reason: &str) {
        self.report(token, reason);
    }

    /// Something that the agent does by itself has failed.
    pub fn handle_agent_failed(&mut self, what: String) {
        self.degrade(what);
    }

    /// The agent ends: stops every plugin, and leaves its files.
    pub fn handle_shutdown(&mut self, now: Millis) {
        self.shutting_down = true;
        self.postponed.clear();
        self.forbidden.clear();
        self.plugins.values_mut().for_each(Plugin::want_rest);
        self.reconcile_all(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Millis) {
        if self.poll_timeout().is_some_and(|due| due <= now) {
            self.reconcile_all(now);
        }
    }

    /// Returns when [`Dispatch::handle_timeout`] is due. Every call of a `handle_*` method may change it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.plugins.values().filter_map(Plugin::timeout).min()
    }

    /// Returns the next thing to do. Ask again after every call of a `handle_*` method, until there is none.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns every plugin that is configured or still has a process.
    pub fn plugins(&self) -> impl Iterator<Item = PluginState<'_>> {
        self.plugins.iter().map(|(name, plugin)| PluginState {
            name,
            running: plugin.running(),
            config: plugin.config(),
            phase: plugin.phase(),
            retry_at: plugin.retry_at(),
            restarts: plugin.restarts(),
        })
    }

    /// Returns true once no plugin has a process any more.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.plugins.values().any(Plugin::has_process)
    }

    /// Returns the heartbeat's `state_detail`: what is wrong with plugins, and what else went wrong since the last configuration came, in
    /// at most [`MAX_STATE_DETAILS`] texts. No text means `state` "running", any means "abnormal".
    #[must_use]
    pub fn state_details(&self, now: Millis) -> Vec<&str> {
        let plugins = self.plugins.values().filter_map(|plugin| plugin.trouble(now));
        plugins.chain(self.state_details.iter().map(String::as_str)).take(MAX_STATE_DETAILS).collect()
    }

    fn judge_task(&mut self, object_name: &str, data_type: i32, now: Millis) -> Result<(), Forbidden> {
        self.policy.judge_task(object_name, data_type)?;
        self.tasks.take(self.policy.tasks_per_minute, now)
    }

    /// Takes out the plugins that the owner does not allow.
    fn allowed(&mut self, plugins: Vec<PluginConfig>) -> Vec<PluginConfig> {
        let (allowed, forbidden): (Vec<_>, Vec<_>) =
            plugins.into_iter().partition(|config| self.policy.judge_plugin(config).is_ok());
        self.forbid(&forbidden);
        self.forbidden = forbidden;
        allowed
    }

    /// Wants a plugin to run, and returns true when that is something new. One that is not known waits for [`Dispatch::admit`].
    fn want(&mut self, config: PluginConfig) -> bool {
        match self.plugins.get_mut(&config.name) {
            Some(plugin) => plugin.want(config),
            None => {
                self.postponed.push_back(config);
                true
            }
        }
    }

    fn forbid(&mut self, plugins: &[PluginConfig]) {
        for config in plugins {
            if let Err(why) = self.policy.judge_plugin(config) {
                self.note_detail(&format!("plugin {}: {why}", config.name));
                self.actions.push_back(Action::Forbid(config.name.clone(), why));
            }
        }
    }

    fn forward(&mut self, task: Task) {
        let name = task.object_name.parse::<PluginName>();
        let running = name.as_ref().ok().and_then(|name| self.plugins.get(name)).map(Plugin::is_running);
        match (name, running) {
            (Ok(name), Some(true)) => self.actions.push_back(PluginAction::ForwardTask(name, task).into()),
            (Ok(name), Some(false)) => self.report(task.token, &format!("plugin {name} is not running")),
            (Ok(name), None) => self.report(task.token, &format!("no plugin {name} is configured")),
            (Err(why), _) => self.report(task.token, &format!("no plugin can have this name: {why}")),
        }
    }

    fn configure(&mut self, configuration: Configuration, now: Millis) {
        let Configuration { agent, plugins, refused } = configuration;
        self.state_details.clear();
        let other = agent.filter(|agent| agent.version != self.agent_version);
        let update = other.and_then(|agent| agent.package.map_err(|bad| self.refuse(bad.to_string())).ok());
        if self.updating || update.is_some() {
            self.updating = update.is_some();
            self.actions.push_back(update.map_or(Action::KeepAgent, Action::UpdateAgent));
        }
        let plugins = self.allowed(plugins);
        let mut changed = !self.postponed.is_empty();
        self.postponed.clear();
        for (name, plugin) in &mut self.plugins {
            let named = plugins.iter().any(|config| config.name == *name)
                || refused.iter().any(|refused| refused.name.as_ref() == Some(name));
            if !named {
                changed |= plugin.want_removed();
            }
        }
        for config in plugins {
            changed |= self.want(config);
        }
        if changed {
            let wanted = self.plugins.values().filter_map(Plugin::wanted).chain(&self.postponed);
            self.actions.push_back(PluginAction::Keep(wanted.cloned().collect()).into());
        }
        for entry in refused {
            self.refuse(entry.reason);
        }
        self.reconcile_all(now);
        self.admit();
        self.reconcile_all(now);
    }

    /// Takes postponed plugins in, as far as there is room.
    fn admit(&mut self) {
        while self.plugins.len() < MAX_PLUGINS_KNOWN
            && let Some(config) = self.postponed.pop_front()
        {
            self.plugins.insert(config.name.clone(), Plugin::new(config));
        }
    }

    fn with_plugin<T>(&mut self, name: &PluginName, now: Millis, handle: impl FnOnce(&mut Plugin) -> T) -> Option<T> {
        let plugin = self.plugins.get_mut(name)?;
        let result = handle(plugin);
        if !plugin.reconcile(name, now, &mut self.next_preparation, &mut self.actions) {
            self.plugins.remove(name);
            if !self.postponed.is_empty() {
                self.admit();
                self.reconcile_all(now);
            }
        }
        Some(result)
    }

    fn reconcile_all(&mut self, now: Millis) {
        let Self { plugins, next_preparation, actions, .. } = self;
        plugins.retain(|name, plugin| plugin.reconcile(name, now, next_preparation, actions));
    }

    fn degrade(&mut self, what: String) {
        self.note_detail(&what);
        self.complain(what);
    }

    fn refuse(&mut self, what: String) {
        self.note_detail(&what);
        self.actions.push_back(Action::Refuse(what));
    }

    fn note_detail(&mut self, what: &str) {
        if self.state_details.len() == MAX_STATE_DETAILS {
            self.state_details.pop_front();
        }
        self.state_details.push_back(printable::cut(what, MAX_REPORT_CHARS));
    }

    fn complain_if(&mut self, what: Option<String>) {
        self.actions.extend(what.map(Action::Complain));
    }

    fn complain(&mut self, what: String) {
        self.actions.push_back(Action::Complain(what));
    }

    fn report(&mut self, token: String, message: &str) {
        self.actions.push_back(Action::Answer(TaskFailure::new(token, message)));
    }
}

#[cfg(test)]
mod tests;
