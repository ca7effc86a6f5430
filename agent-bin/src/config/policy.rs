//! `[policy]`: what servers may have this host do.

use elklet_core::command::{self, AllowedTask, PluginName};
use serde::Deserialize;

use super::value::{BadValue, Within};

/// What the file says about that. Its lists are texts until [`Policy::to_core`] reads them: the deserialiser of a type of its own for each
/// takes 10 KB of the program.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Policy {
    plugins: Vec<String>,
    plugin_sha256: Vec<String>,
    tasks: Vec<String>,
    tasks_per_minute: Within<0, 1_000_000>,
}

/// Stands for anything.
const ANY: &str = "*";

impl Default for Policy {
    fn default() -> Self {
        let any = || vec![ANY.to_owned()];
        Self { plugins: any(), plugin_sha256: any(), tasks: any(), tasks_per_minute: Within::new(0) }
    }
}

impl Policy {
    /// The same in the core's words.
    ///
    /// # Errors
    /// The key whose list has something in it that makes no sense.
    pub(super) fn to_core(&self) -> Result<command::Policy, (&'static str, BadValue)> {
        Ok(command::Policy {
            plugins: only(&self.plugins, |text| text.parse().ok(), BadValue::Plugin)
                .map_err(|bad| ("policy.plugins", bad))?,
            executables: only(&self.plugin_sha256, |text| text.parse().ok(), BadValue::Executable)
                .map_err(|bad| ("policy.plugin_sha256", bad))?,
            tasks: only(&self.tasks, task, BadValue::Task).map_err(|bad| ("policy.tasks", bad))?,
            tasks_per_minute: self.tasks_per_minute.value(),
        })
    }
}

/// Reads a list. `None` if it allows anything.
fn only<T>(
    list: &[String],
    read: impl Fn(&str) -> Option<T>,
    bad: fn(String) -> BadValue,
) -> Result<Option<Vec<T>>, BadValue> {
    let words = list.iter().filter(|text| *text != ANY);
    let read = words.map(|text| read(text).ok_or_else(|| bad(text.clone()))).collect::<Result<Vec<_>, _>>()?;
    Ok((read.len() == list.len()).then_some(read))
}

/// Reads `OBJECT` or `OBJECT/DATA_TYPE`.
fn task(text: &str) -> Option<AllowedTask> {
    let (object, data_type) = match text.split_once('/') {
        Some((object, data_type)) => (object, Some(data_type.parse().ok()?)),
        None => (text, None),
    };
    let object_name = object.parse::<PluginName>().ok()?.as_str().to_owned();
    Some(AllowedTask { object_name, data_type })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    fn policy(text: &str) -> Result<command::Policy, String> {
        let policy: Policy = parse(text).expect("it has these keys");
        policy.to_core().map_err(|(key, bad)| format!("{key}: {bad}"))
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
            let error = policy(&format!("tasks = [\"*\", \"{bad}\"]")).expect_err(bad);
            assert!(error.starts_with(&format!("policy.tasks: {bad:?} is no task, expected")), "{error}");
        }
    }

    #[test]
    fn what_is_no_plugin_and_no_hash_is_said() {
        assert!(policy("plugins = [\"../x\"]").is_err_and(|error| error.contains("is no plugin's name")));
        assert!(policy("plugin_sha256 = [\"00\"]").is_err_and(|error| error.contains("is no SHA-256")));
    }
}
