//! `[policy]`: what servers may have this host do.

use elklet_core::command::{self, AllowedTask, PluginName, Sha256};
use serde::Deserialize;

use super::value::{BadValue, Within};

/// What the file says about that.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    plugins: List<Name>,
    plugin_sha256: List<Hash>,
    tasks: List<TaskPattern>,
    tasks_per_minute: Within<0, 1_000_000>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            plugins: List::default(),
            plugin_sha256: List::default(),
            tasks: List::default(),
            tasks_per_minute: Within::new(0),
        }
    }
}

impl Policy {
    /// The same in the core's words.
    pub(crate) fn to_core(&self) -> command::Policy {
        command::Policy {
            plugins: self.plugins.only(|Name(name)| name.clone()),
            executables: self.plugin_sha256.only(|Hash(hash)| *hash),
            tasks: self.tasks.only(|TaskPattern(task)| task.clone()),
            tasks_per_minute: self.tasks_per_minute.value(),
        }
    }
}

/// What is allowed, one by one, or anything if `*` is among it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(transparent, bound(deserialize = "Entry<T>: Deserialize<'de>"))]
#[cfg_attr(test, serde(bound(serialize = "Entry<T>: serde::Serialize")))]
struct List<T>(Vec<Entry<T>>);

impl<T> List<T> {
    fn only<U>(&self, each: impl Fn(&T) -> U) -> Option<Vec<U>> {
        self.0.iter().map(|entry| entry.0.as_ref().map(&each)).collect()
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(vec![Entry(None)])
    }
}

/// One of a list; `None` for `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String", bound(deserialize = "T: TryFrom<String, Error = BadValue>"))]
struct Entry<T>(Option<T>);

impl<T: TryFrom<String, Error = BadValue>> TryFrom<String> for Entry<T> {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        if text == "*" { Ok(Self(None)) } else { T::try_from(text).map(|value| Self(Some(value))) }
    }
}

/// A plugin's name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name(PluginName);

impl TryFrom<String> for Name {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse().map(Self).map_err(|_| BadValue::Plugin(text))
    }
}

/// An executable's SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hash(Sha256);

impl TryFrom<String> for Hash {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse().map(Self).map_err(|_| BadValue::Executable(text))
    }
}

/// Tasks: `OBJECT` or `OBJECT/DATA_TYPE`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TaskPattern(AllowedTask);

impl TryFrom<String> for TaskPattern {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        let (object, data_type) = text.split_once('/').map_or((&*text, None), |(object, rest)| (object, Some(rest)));
        let data_type = data_type.map(str::parse).transpose();
        match (object.parse::<PluginName>(), data_type) {
            (Ok(name), Ok(data_type)) => Ok(Self(AllowedTask { object_name: name.as_str().to_owned(), data_type })),
            _ => Err(BadValue::Task(text)),
        }
    }
}

#[cfg(test)]
impl<T: std::fmt::Debug> serde::Serialize for Entry<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Result<command::Policy, String> {
        toml::from_str::<Policy>(text).map(|policy| policy.to_core()).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn everything_is_allowed_unless_a_list_says_what_is() {
        assert_eq!(policy(""), Ok(command::Policy::default()));
        assert_eq!(policy("plugins = [\"a\", \"*\"]\ntasks = [\"*\"]"), Ok(command::Policy::default()));
        let none = policy("plugins = []\nplugin_sha256 = []\ntasks = []").expect("valid");
        assert_eq!((none.plugins, none.executables, none.tasks), (Some(vec![]), Some(vec![]), Some(vec![])));
    }

    #[test]
    fn a_task_is_named_by_whom_it_is_for_and_perhaps_its_data_type() {
        let tasks = policy("tasks = [\"scanner\", \"elkeid-agent/1051\"]").expect("valid").tasks.expect("a list");
        let expected = [("scanner", None), ("elkeid-agent", Some(1051))];
        let found: Vec<_> = tasks.iter().map(|task| (&*task.object_name, task.data_type)).collect();
        assert_eq!(found, expected);
        for bad in ["", "a/", "a/b", "a b", "/1", "a/1/2"] {
            let error = policy(&format!("tasks = [\"{bad}\"]")).expect_err(bad);
            assert!(error.contains("is no task, expected"), "{error}");
        }
    }

    #[test]
    fn what_is_no_plugin_and_no_hash_is_said() {
        assert!(policy("plugins = [\"../x\"]").is_err_and(|error| error.contains("is no plugin's name")));
        assert!(policy("plugin_sha256 = [\"00\"]").is_err_and(|error| error.contains("is no SHA-256")));
    }
}
