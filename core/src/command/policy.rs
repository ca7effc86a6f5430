//! What a host's owner lets servers have done on it.
//!
//! Elkeid lets whoever holds AgentCenter do anything. A [`Policy`] says what of that a host takes part in; what it forbids is answered as a
//! task or an entry that is wrong in itself.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use elklet_proto::data_type::{SET_METADATA, SHUTDOWN, UPLOAD};

use super::{AgentTask, PluginConfig, PluginName, Sha256};
use crate::time::Millis;

/// What servers may have this host do. By default that is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The plugins that may run, by name; `None` for any.
    pub plugins: Option<Vec<PluginName>>,
    /// The executables that plugins may have; `None` for any.
    pub executables: Option<Vec<Sha256>>,
    /// The tasks that may be given; `None` for any.
    pub tasks: Option<Vec<AllowedTask>>,
    /// How many tasks a minute may be given; 0 for any number.
    pub tasks_per_minute: u32,
}

/// Tasks that servers may give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedTask {
    /// Whom they are for: a plugin's name, or [`AGENT_NAME`](super::AGENT_NAME).
    pub object_name: String,
    /// Their data type; `None` for any.
    pub data_type: Option<i32>,
}

/// What a host's owner does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// A plugin of this name.
    Plugin,
    /// A plugin with this executable.
    Executable,
    /// A task of this data type for this plugin, or for the agent.
    Task,
    /// More tasks a minute than this.
    Rate(u32),
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Plugin => "policy.plugins does not have it",
            Self::Executable => "policy.plugin_sha256 does not have its executable",
            Self::Task => "policy.tasks does not have it",
            Self::Rate(limit) => return write!(f, "policy.tasks_per_minute = {limit} is used up for this minute"),
        };
        write!(f, "this host's owner does not allow it: {what}")
    }
}

impl core::error::Error for Forbidden {}

impl Policy {
    /// Decides whether a plugin may run.
    ///
    /// # Errors
    /// It may not.
    pub fn judge_plugin(&self, config: &PluginConfig) -> Result<(), Forbidden> {
        if self.plugins.as_ref().is_some_and(|names| !names.contains(&config.name)) {
            return Err(Forbidden::Plugin);
        }
        match &self.executables {
            Some(hashes) if !hashes.contains(&config.executable_sha256) => Err(Forbidden::Executable),
            _ => Ok(()),
        }
    }

    /// Decides whether a task may be given, however many there were before.
    ///
    /// # Errors
    /// It may not.
    pub fn judge_task(&self, object_name: &str, data_type: i32) -> Result<(), Forbidden> {
        let is_it = |allowed: &AllowedTask| {
            allowed.object_name == object_name && allowed.data_type.is_none_or(|allowed| allowed == data_type)
        };
        match &self.tasks {
            Some(tasks) if !tasks.iter().any(is_it) => Err(Forbidden::Task),
            _ => Ok(()),
        }
    }
}

impl AgentTask {
    /// Its data type.
    #[must_use]
    pub fn data_type(&self) -> i32 {
        match self {
            Self::Upload(_) => UPLOAD,
            Self::SetMetadata(_) => SET_METADATA,
            Self::Shutdown { .. } => SHUTDOWN,
        }
    }
}

/// Counts tasks by the minute. Within any minute there may be twice the limit, if it lies across two that are counted.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    /// When the counted minute began.
    since: Option<Millis>,
    tasks: u32,
}

const MINUTE_MS: u64 = 60_000;

impl Rate {
    /// Counts a task, unless there were `limit` in this minute.
    ///
    /// # Errors
    /// There were.
    pub(crate) fn take(&mut self, limit: u32, now: Millis) -> Result<(), Forbidden> {
        if self.since.is_none_or(|since| now.since(since) >= MINUTE_MS) {
            (self.since, self.tasks) = (Some(now), 0);
        }
        if limit > 0 && self.tasks >= limit {
            return Err(Forbidden::Rate(limit));
        }
        self.tasks = self.tasks.saturating_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn allowed(object_name: &str, data_type: Option<i32>) -> AllowedTask {
        AllowedTask { object_name: object_name.into(), data_type }
    }

    #[test]
    fn without_a_policy_everything_is_allowed() {
        let policy = Policy::default();
        assert_eq!(policy.judge_task("x", 1), Ok(()));
        let mut rate = Rate::default();
        assert!((0..10_000).all(|_| rate.take(policy.tasks_per_minute, Millis(0)).is_ok()));
    }

    #[test]
    fn tasks_are_allowed_by_whom_they_are_for_and_what_they_are() {
        let tasks = vec![allowed("scanner", None), allowed("elkeid-agent", Some(1051))];
        let policy = Policy { tasks: Some(tasks), ..Policy::default() };
        for (object_name, data_type, expected) in [
            ("scanner", 6053, Ok(())),
            ("scanner", 1, Ok(())),
            ("elkeid-agent", 1051, Ok(())),
            ("elkeid-agent", 1050, Err(Forbidden::Task)),
            ("collector", 1051, Err(Forbidden::Task)),
        ] {
            assert_eq!(policy.judge_task(object_name, data_type), expected, "{object_name} {data_type}");
        }
        let none = Policy { tasks: Some(Vec::new()), ..Policy::default() };
        assert_eq!(none.judge_task("scanner", 1), Err(Forbidden::Task));
    }

    #[test]
    fn a_minute_has_so_many_tasks_whatever_the_clock_does() {
        let mut rate = Rate::default();
        let mut taken = |at: u64| rate.take(2, Millis(at)).is_ok();
        assert_eq!([taken(1_000), taken(1_000), taken(60_999), taken(61_000)], [true, true, false, true]);
        assert_eq!([taken(500), taken(500)], [true, false], "a moment before is none later");
    }
}
