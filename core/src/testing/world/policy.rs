//! The host's owner, who says what servers may have done, and whether the agent keeps to that.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};

use elklet_proto::data_type::{SET_METADATA, SHUTDOWN, UPLOAD};

use super::World;
use super::agenda::Happening;
use crate::command::{AGENT_NAME, AgentTask, AllowedTask, Command, Policy, Sha256};
use crate::dispatch::TaskFailure;
use crate::testing::schedule::Rules;
use crate::time::Millis;

/// Plugins, and versions of each, that a policy tells apart.
const PLUGINS: usize = 8;
const VERSIONS: u8 = 64;

/// The data type of the servers' tasks for plugins.
pub(super) const PLUGIN_TASK: i32 = 5_000;

const MINUTE_MS: u64 = 60_000;

/// What is known of the tasks that have reached the agent in this life.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Whom each was for and what it was, and whether it was forbidden when it came.
    tasks: BTreeMap<String, (String, i32, bool)>,
    /// When the last ones came that the policy has let pass.
    passed: VecDeque<Millis>,
    /// When the policy was taken.
    since: Millis,
}

impl Judged {
    pub(super) fn handle_new_life(&mut self) {
        *self = Self::default();
    }
}

/// The hash of a version's executable, which is its number again and again.
pub(super) fn hash_of(version: &str) -> String {
    format!("{:02x}", number_of(version)).repeat(32)
}

fn number_of(version: &str) -> u8 {
    version.rsplit('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn has(bits: u8, bit: usize) -> bool {
    bits >> bit & 1 == 1
}

impl Rules {
    /// The same in the words of the agent's settings.
    pub(super) fn policy(&self) -> Policy {
        let plugins = (0..PLUGINS).filter(|plugin| has(self.plugins, *plugin));
        let plugins = plugins.filter_map(|plugin| format!("p{plugin}").parse().ok());
        let executables = |odd| (0..VERSIONS).filter(move |n| (n % 2 == 1) == odd).map(|n| Sha256([n; 32]));
        let own = [UPLOAD, SET_METADATA, SHUTDOWN].into_iter().enumerate().filter(|(bit, _)| has(self.own_tasks, *bit));
        let own = own.map(|(_, data_type)| AllowedTask { object_name: AGENT_NAME.into(), data_type: Some(data_type) });
        let tasks = (0..PLUGINS).filter(|plugin| has(self.tasks, *plugin)).map(|plugin| AllowedTask {
            object_name: format!("p{plugin}"),
            data_type: (plugin % 2 == 1).then_some(PLUGIN_TASK),
        });
        Policy {
            plugins: (self.plugins != u8::MAX).then(|| plugins.collect()),
            executables: self.odd_versions.map(|odd| executables(odd).collect()),
            tasks: self.names_tasks().then(|| tasks.chain(own).collect()),
            tasks_per_minute: self.tasks_per_minute,
        }
    }

    fn names_tasks(&self) -> bool {
        (self.tasks, self.own_tasks) != (u8::MAX, u8::MAX)
    }

    fn allows_version(&self, plugin: usize, version: &str) -> bool {
        has(self.plugins, plugin) && self.odd_versions.is_none_or(|odd| (number_of(version) % 2 == 1) == odd)
    }

    fn allows_task(&self, object_name: &str, data_type: i32) -> bool {
        if object_name == AGENT_NAME {
            let bit = [UPLOAD, SET_METADATA, SHUTDOWN].iter().position(|own| *own == data_type);
            return bit.is_none_or(|bit| has(self.own_tasks, bit));
        }
        let plugin = object_name.strip_prefix('p').and_then(|number| number.parse().ok());
        plugin.map_or(!self.names_tasks(), |plugin| has(self.tasks, plugin))
    }
}

impl World {
    /// The owner writes other rules into the file and has it read, for so long if not for good.
    pub(super) fn set_rules(&mut self, rules: Rules, ms: Option<u64>) {
        self.load_rules(rules);
        if let Some(ms) = ms {
            self.agenda.after(ms, Happening::Allow);
        }
    }

    pub(super) fn load_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.note(|| format!("the file allows {rules}"));
        self.reload_policy();
        if self.is_calm {
            self.begin_waiting();
        }
    }

    /// SIGHUP: the shell tells the agent of another policy, if there is one, unless the agent ends.
    pub(super) fn reload_policy(&mut self) {
        let (now, rules) = (self.agenda.now, self.rules);
        let Some(host) = self.host.as_mut().filter(|host| !host.agent.is_ending() && host.rules != rules) else {
            return;
        };
        host.rules = rules;
        self.judged.since = now;
        self.plugins.iter_mut().for_each(|plugin| plugin.news = None);
        self.tell(|agent, now| agent.handle_policy(rules.policy(), now));
    }

    fn rules_in_force(&self) -> Rules {
        self.host.as_ref().map_or(self.rules, |host| host.rules)
    }

    /// The version of a plugin that servers want, if the owner allows it.
    pub(super) fn allowed(&self, plugin: usize) -> Option<String> {
        self.center.wanted(plugin).filter(|version| self.rules_in_force().allows_version(plugin, version))
    }

    /// A process of a plugin is about to start.
    pub(super) fn check_start(&mut self, plugin: usize, version: &str) {
        if !self.rules_in_force().allows_version(plugin, version) {
            self.fail("nothing is started that the owner forbids", &format!("p{plugin} {version} is"));
        }
    }

    /// A plugin is about to be given a task.
    pub(super) fn check_task(&mut self, object_name: &str, data_type: i32) {
        if !self.rules_in_force().allows_task(object_name, data_type) {
            self.fail("no task is begun that the owner forbids", &format!("{object_name}/{data_type} is"));
        }
    }

    /// The agent is about to carry out a task of its own.
    pub(super) fn check_own_task(&mut self, task: &AgentTask) {
        self.check_task(AGENT_NAME, task.data_type());
    }

    /// A task reaches the agent.
    pub(super) fn judge(&mut self, command: &Command) {
        let (object_name, data_type, token) = match command {
            Command::PluginTask(task) => (&*task.object_name, task.data_type, &*task.token),
            Command::AgentTask(task) => (AGENT_NAME, task.data_type(), task.token()),
            _ => return,
        };
        let is_forbidden = !self.rules_in_force().allows_task(object_name, data_type);
        self.judged.tasks.insert(token.to_string(), (object_name.to_string(), data_type, is_forbidden));
        if !is_forbidden {
            self.judged.passed.push_back(self.agenda.now);
        }
    }

    /// A task is answered with a failure: with the owner's word if that is why, and only then.
    pub(super) fn check_reason(&mut self, failure: &TaskFailure) {
        let (now, rules) = (self.agenda.now, self.rules_in_force());
        let TaskFailure { token, message } = failure;
        self.note(|| format!("task {token} fails: {message}"));
        let Some((object_name, data_type, was_forbidden)) = self.judged.tasks.get(token) else { return };
        let is_forbidden = *was_forbidden || !rules.allows_task(object_name, *data_type);
        let is_told = message.contains("policy.tasks does not have it");
        if (*was_forbidden && !is_told) || (is_told && !is_forbidden) {
            let what = format!("{object_name}/{data_type} is told {message:?}");
            self.fail("a task that the owner forbids is answered with that reason, and no other is", &what);
        }
        if message.contains("policy.tasks_per_minute") {
            self.judged.passed.pop_back();
            let lately = self.judged.passed.iter().filter(|at| now.since(**at) < MINUTE_MS).count();
            if rules.tasks_per_minute == 0 || lately < rules.tasks_per_minute as usize {
                let what = format!("{lately} have passed within a minute, of {}", rules.tasks_per_minute);
                self.fail("a task is one too many when there were as many as the owner allows", &what);
            }
        }
    }

    /// Looks at how many tasks have passed.
    pub(super) fn check_rate(&mut self) {
        let (now, limit) = (self.agenda.now, self.rules_in_force().tasks_per_minute as usize);
        let Judged { passed, since, .. } = &mut self.judged;
        while passed.front().is_some_and(|at| now.since(*at) >= MINUTE_MS) {
            passed.pop_front();
        }
        let counted = passed.iter().filter(|at| **at > *since).count();
        // Any minute may lie across two that are counted.
        if limit > 0 && counted > 2 * limit {
            self.fail("there are no more tasks a minute than the owner allows", &format!("{counted} of {limit}"));
        }
    }
}
