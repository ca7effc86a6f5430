//! A naive shell around the dispatch: it keeps books of orders, processes and tasks, and takes no order that makes no sense.
//!
//! It carries nothing out. Whether a preparation or a start succeeds, and when a process ends, is up to the target that
//! drives it; in [`Shell::settle`] everything succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use elklet_core::command::{AgentTask, Command, PluginConfig, PluginName, Policy, Upload};
use elklet_core::dispatch::{Action, Dispatch, PluginAction, Preparation, TaskFailure};
use elklet_core::limits::{
    MAX_PLUGIN_NAME_BYTES, MAX_PLUGINS, MAX_PLUGINS_KNOWN, MAX_REPORT_CHARS, MAX_STATE_DETAILS, MAX_TASK_BYTES,
    MAX_TOKEN_BYTES,
};
use elklet_core::record::frame::task_frame;
use elklet_core::time::Millis;
use elklet_proto::grpc::Task;
use prost::Message;

/// The agent's version, other than which is an update.
pub const AGENT_VERSION: &str = "1";

/// A complaint quotes at most a few shortened texts of the server's, each with its escapes.
const MAX_COMPLAINT_CHARS: usize = 2048;

/// The shell and the dispatch inside it.
#[derive(Debug)]
pub struct Shell {
    dispatch: Dispatch,
    now: Millis,
    /// Whether the next start of a process fails.
    spawn_fails: bool,
    preparing: BTreeMap<Preparation, PluginConfig>,
    prepared: BTreeMap<Preparation, PluginConfig>,
    /// Preparations that were forgotten; their results may still arrive.
    forgotten: Vec<(Preparation, PluginName)>,
    processes: BTreeMap<PluginName, Process>,
    /// Plugins whose process ended, or never began, while orders for it may still be queued.
    gone: BTreeSet<PluginName>,
    /// Preparations that failed, likewise.
    failed: BTreeSet<Preparation>,
    /// Tokens of tasks of which nothing was heard yet.
    unanswered: Vec<String>,
    /// What the host's owner allows.
    policy: Policy,
    /// What should run by everything that was configured so far, and is allowed.
    wanted: BTreeMap<PluginName, PluginConfig>,
    /// What the newest configuration has, and is not allowed.
    forbidden: BTreeMap<PluginName, PluginConfig>,
    /// Plugins whose configuration has changed since the last orders were taken.
    changed: BTreeSet<PluginName>,
    /// The list that was kept last.
    kept: BTreeMap<PluginName, PluginConfig>,
    shutting_down: bool,
}

#[derive(Debug)]
enum Process {
    Running(PluginConfig),
    Stopping,
}

impl Default for Shell {
    fn default() -> Self {
        Self {
            dispatch: Dispatch::new(AGENT_VERSION.into()),
            now: Millis(0),
            spawn_fails: false,
            preparing: BTreeMap::new(),
            prepared: BTreeMap::new(),
            forgotten: Vec::new(),
            processes: BTreeMap::new(),
            gone: BTreeSet::new(),
            failed: BTreeSet::new(),
            unanswered: Vec::new(),
            policy: Policy::default(),
            wanted: BTreeMap::new(),
            forbidden: BTreeMap::new(),
            changed: BTreeSet::new(),
            kept: BTreeMap::new(),
            shutting_down: false,
        }
    }
}

impl Shell {
    /// Passes a command on and notes what has to come of it.
    pub fn command(&mut self, command: Command) {
        match &command {
            Command::Nothing => {}
            Command::PluginTask(task) => self.unanswered.push(task.token.clone()),
            Command::AgentTask(AgentTask::Shutdown { .. }) => {}
            Command::AgentTask(task) => self.unanswered.push(task.token().to_owned()),
            Command::RefusedTask(task) => self.unanswered.push(task.token.clone()),
            Command::Configuration(_) if self.shutting_down => {}
            Command::Configuration(configuration) => {
                let before = std::mem::take(&mut self.wanted);
                self.wanted = before
                    .clone()
                    .into_iter()
                    .filter(|(name, _)| configuration.refused.iter().any(|entry| entry.name.as_ref() == Some(name)))
                    .collect();
                let named = configuration.plugins.iter().map(|config| (config.name.clone(), config.clone()));
                let (allowed, forbidden) =
                    named.partition::<BTreeMap<_, _>, _>(|(_, config)| self.policy.judge_plugin(config).is_ok());
                self.wanted.extend(allowed);
                self.forbidden = forbidden;
                let changed = self.wanted.iter().filter(|(name, config)| before.get(*name) != Some(*config));
                self.changed.extend(changed.map(|(name, _)| name.clone()));
            }
        }
        self.dispatch.handle_command(command, self.now);
    }

    /// The host's owner allows this from now on.
    pub fn allow(&mut self, policy: Policy) {
        self.policy = policy.clone();
        let is_allowed = |(_, config): &(PluginName, PluginConfig)| policy.judge_plugin(config).is_ok();
        let (again, still) = std::mem::take(&mut self.forbidden).into_iter().partition::<BTreeMap<_, _>, _>(is_allowed);
        let (kept, forbidden) = std::mem::take(&mut self.wanted).into_iter().partition::<BTreeMap<_, _>, _>(is_allowed);
        self.changed.retain(|name| kept.contains_key(name));
        self.changed.extend(again.keys().cloned());
        self.wanted = kept.into_iter().chain(again).collect();
        self.forbidden = still.into_iter().chain(forbidden).collect();
        self.dispatch.handle_policy(policy, self.now);
    }

    /// Lets the next start of a process fail.
    pub fn break_next_spawn(&mut self) {
        self.spawn_fails = true;
    }

    /// Ends one of the preparations under way, well or badly; `false` when there is none.
    pub fn end_preparation(&mut self, which: u8, well: bool) -> bool {
        let Some(id) = nth(self.preparing.keys(), which).copied() else { return false };
        let config = self.preparing.remove(&id).expect("it was just found");
        if well {
            self.dispatch.handle_prepared(&config.name, id, self.now);
            self.prepared.insert(id, config);
        } else {
            match which % 2 {
                0 => self.dispatch.handle_preparation_failed(&config.name, id, "the download fails", self.now),
                _ => self.dispatch.handle_held_back(&config.name, id, "its directory is full", self.now),
            }
            // It may have been under way, as a stand-in, before it was wanted.
            self.changed.retain(|name| self.wanted.get(name) != Some(&config));
            self.failed.insert(id);
        }
        true
    }

    /// Ends one of the processes, whether it was asked to end or not; `false` when there is none.
    pub fn end_process(&mut self, which: u8) -> bool {
        let Some(name) = nth(self.processes.keys(), which).cloned() else { return false };
        self.end_process_of(name);
        true
    }

    /// Lets `ms` milliseconds pass.
    pub fn wait(&mut self, ms: u64) {
        self.now = self.now + ms;
        self.dispatch.handle_timeout(self.now);
    }

    /// Reports the end of a preparation that was forgotten, which must change nothing.
    pub fn end_forgotten(&mut self, which: u8, well: bool) {
        self.obey();
        let Some((id, name)) = nth(self.forgotten.iter(), which) else { return };
        let before = format!("{:?}", self.dispatch);
        match well {
            true => self.dispatch.handle_prepared(name, *id, self.now),
            false => {
                self.dispatch.handle_preparation_failed(name, *id, "too late", self.now);
                self.dispatch.handle_held_back(name, *id, "too late", self.now);
            }
        }
        assert_eq!(format!("{:?}", self.dispatch), before, "a forgotten preparation changes nothing");
    }

    /// The agent is to end.
    pub fn shut_down(&mut self) {
        self.obey();
        self.shutting_down = true;
        self.wanted.clear();
        self.forbidden.clear();
        self.dispatch.handle_shutdown(self.now);
    }

    /// Takes every order that the dispatch has.
    pub fn obey(&mut self) {
        while let Some(action) = self.dispatch.poll_action() {
            self.take(action);
        }
        self.check();
        self.changed.clear();
        self.gone.clear();
        self.failed.clear();
    }

    /// From here on everything succeeds: after a while the newest configuration runs, and nothing is left to do.
    pub fn settle(&mut self) {
        self.spawn_fails = false;
        self.obey();
        let mut steps = 0;
        while self.step() {
            self.obey();
            steps += 1;
            assert!(steps < 50 * MAX_PLUGINS, "it comes to rest");
        }
        let running = self.processes.iter().map(|(name, process)| match process {
            Process::Running(config) => (name.clone(), config.clone()),
            Process::Stopping => panic!("{name} was to end"),
        });
        assert_eq!(running.collect::<BTreeMap<_, _>>(), self.wanted, "the newest configuration is what runs");
        if !self.shutting_down {
            assert_eq!(self.kept, self.wanted, "the newest configuration is what the next start begins with");
        }
        assert!(self.prepared.is_empty(), "nothing is kept that was prepared for nothing");
        assert_eq!(self.unanswered, [""; 0], "every task is passed on or answered");
    }

    /// One thing that is under way ends well, or else the time of the next timeout comes.
    fn step(&mut self) -> bool {
        let stopping = self.processes.iter().find(|(_, process)| matches!(process, Process::Stopping));
        let stopping = stopping.map(|(name, _)| name.clone());
        if let Some(name) = stopping {
            self.end_process_of(name);
        } else if self.end_preparation(0, true) {
        } else if let Some(due) = self.dispatch.poll_timeout() {
            self.now = self.now.max(due);
            self.dispatch.handle_timeout(self.now);
        } else {
            return false;
        }
        true
    }

    fn end_process_of(&mut self, name: PluginName) {
        self.processes.remove(&name);
        self.dispatch.handle_exited(&name, "exited with code 0", "", self.now);
        self.gone.insert(name);
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::Plugin(PluginAction::Prepare(id, config)) => {
                check_name(&config.name);
                assert_eq!(self.orders_for(&config.name), 0, "one preparation a plugin");
                assert!(self.preparing.insert(id, config).is_none(), "a number names one preparation");
            }
            Action::Plugin(PluginAction::Forget(id)) => {
                match self.preparing.remove(&id).or_else(|| self.prepared.remove(&id)) {
                    Some(config) => self.forgotten.push((id, config.name)),
                    None => assert!(self.failed.contains(&id), "what is forgotten was ordered and not used up"),
                }
            }
            Action::Plugin(PluginAction::Spawn(id, config)) => {
                let prepared = self.prepared.remove(&id);
                assert_eq!(prepared.as_ref(), Some(&config), "only what was prepared is started");
                assert!(!self.processes.contains_key(&config.name), "one process a plugin");
                if std::mem::take(&mut self.spawn_fails) {
                    self.dispatch.handle_spawn_failed(&config.name, "out of memory", self.now);
                    self.gone.insert(config.name);
                } else {
                    self.gone.remove(&config.name);
                    self.processes.insert(config.name.clone(), Process::Running(config));
                }
            }
            Action::Plugin(PluginAction::Stop(name)) => match self.processes.get_mut(&name) {
                Some(process @ Process::Running(_)) => *process = Process::Stopping,
                Some(Process::Stopping) => panic!("{name} is stopped twice"),
                None => assert!(self.gone.contains(&name), "{name} has no process to stop"),
            },
            Action::Plugin(PluginAction::Kill(name)) => {
                assert!(matches!(self.processes.get(&name), Some(Process::Stopping) | None), "{name} was to end first");
            }
            Action::Plugin(PluginAction::Remove(name)) => {
                assert!(!self.shutting_down, "a shutdown deletes nothing");
                assert!(!self.processes.contains_key(&name), "nothing runs from what is deleted");
                assert_eq!(self.orders_for(&name), 0, "nothing is prepared in what is deleted");
            }
            Action::Plugin(PluginAction::Keep(list)) => {
                self.kept = list.into_iter().map(|config| (config.name.clone(), config)).collect();
            }
            Action::Plugin(PluginAction::ForwardTask(name, task)) => {
                assert_eq!(name.as_str(), task.object_name);
                self.answered(&task.token);
                check_frame(&task);
                match self.processes.get(&name) {
                    Some(Process::Running(_)) => {}
                    Some(Process::Stopping) => panic!("{name} is ending and gets a task"),
                    None => {
                        assert!(self.gone.contains(&name), "{name} has no process to take a task");
                        self.unanswered.push(task.token.clone());
                        self.dispatch.handle_task_failed(task.token, "its process is gone");
                    }
                }
            }
            Action::Task(AgentTask::Shutdown { .. }) => {}
            Action::Task(task) => {
                if let AgentTask::Upload(Upload { buf_size, .. }) = task {
                    assert!(buf_size > 0, "an upload comes forward");
                }
                self.answered(task.token());
            }
            Action::Answer(TaskFailure { token, message }) => {
                self.answered(&token);
                assert!(token.len() <= MAX_TOKEN_BYTES);
                assert!(!message.is_empty() && message.chars().count() <= MAX_REPORT_CHARS);
            }
            Action::KeepAgent => {}
            Action::UpdateAgent(agent) => assert_ne!(agent.version, AGENT_VERSION),
            Action::Forbid(..) => {}
            Action::Refuse(what) | Action::Complain(what) => {
                assert!(what.chars().count() <= MAX_COMPLAINT_CHARS, "a line for a log: {what}")
            }
        }
    }

    /// What the dispatch shows of itself is what the shell's books say.
    fn check(&self) {
        let shown: BTreeMap<_, _> =
            self.dispatch.plugins().filter_map(|plugin| Some((plugin.name, plugin.running?))).collect();
        let running = self.processes.iter().filter_map(|(name, process)| match process {
            Process::Running(config) => Some((name, config)),
            Process::Stopping => None,
        });
        assert_eq!(shown, running.collect());
        for (name, process) in &self.processes {
            if let Process::Running(config) = process {
                assert_eq!(
                    self.policy.judge_plugin(config),
                    Ok(()),
                    "{name} runs although its owner does not allow it"
                );
            }
        }
        for name in self.changed.difference(&self.gone) {
            let Some(config) = self.wanted.get(name) else { continue };
            let ordered = self.preparing.values().chain(self.prepared.values()).any(|order| order == config);
            // One that ran before stands in first, if there is one.
            let stands_in = !self.processes.contains_key(name) && self.orders_for(name) == 1;
            let is_full = self.dispatch.plugins().count() == MAX_PLUGINS_KNOWN;
            assert!(
                is_full || ordered || stands_in || shown.get(name) == Some(&config),
                "what has changed is tried at once"
            );
        }
        assert_eq!(self.dispatch.is_quiet(), self.processes.is_empty());
        assert!(self.dispatch.plugins().count() <= MAX_PLUGINS_KNOWN);
        let details = self.dispatch.state_details(self.now);
        assert!(details.len() <= MAX_STATE_DETAILS);
        assert!(details.iter().all(|detail| detail.chars().count() <= MAX_REPORT_CHARS));
    }

    fn orders_for(&self, name: &PluginName) -> usize {
        self.preparing.values().chain(self.prepared.values()).filter(|config| config.name == *name).count()
    }

    fn answered(&mut self, token: &str) {
        let task = self.unanswered.iter().position(|open| open == token);
        self.unanswered.remove(task.expect("a task is answered once, and under its own token"));
    }
}

fn nth<T>(items: impl ExactSizeIterator<Item = T>, which: u8) -> Option<T> {
    let which = usize::from(which).checked_rem(items.len())?;
    items.into_iter().nth(which)
}

/// A name becomes a directory and a file in it, so it has to be one plain component.
fn check_name(name: &PluginName) {
    let text = name.as_str();
    assert!(text.is_ascii() && (1..=MAX_PLUGIN_NAME_BYTES).contains(&text.len()), "{text:?}");
    let components: Vec<_> = Path::new(text).components().collect();
    assert!(matches!(components[..], [Component::Normal(component)] if component == text), "{text:?}");
}

fn check_frame(task: &Task) {
    match task_frame(task) {
        Ok(frame) => {
            assert!(frame.len() <= MAX_TASK_BYTES);
            let (length, body) = frame.split_first_chunk().expect("a frame begins with its length");
            assert_eq!(u32::from_le_bytes(*length) as usize, body.len());
            assert_eq!(Task::decode(body).as_ref(), Ok(task), "the plugin reads what the server wrote");
        }
        Err(bytes) => assert!(bytes > MAX_TASK_BYTES && bytes == task.encoded_len() + 4),
    }
}
