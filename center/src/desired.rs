//! What agents should run: plugins by host, by group, and for everybody else.
//!
//! It outlives the center in a file, which is replaced whole at each change.

use crate::http::{ConfigJson, configs_from};
use elklet_proto::grpc::Config;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// The most groups, and the most hosts that are in one or have a configuration of their own.
const MAX_GROUPS: usize = 1_000;
const MAX_HOSTS: usize = 10_000;

/// The most plugins of one configuration. Elkeid has ten.
const MAX_PLUGINS: usize = 200;

/// The longest name of a group, in bytes.
const MAX_NAME: usize = 256;

/// The desired configuration of all agents.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    default: Option<Vec<Config>>,
    groups: BTreeMap<String, Vec<Config>>,
    hosts: BTreeMap<String, Vec<Config>>,
    members: BTreeMap<String, String>,
}

/// Whom a configuration is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every host that has no other.
    Everybody,
    /// The hosts of a group that have none of their own.
    Group(String),
    /// One host.
    Host(String),
}

/// There is no room for what somebody wants to add. The text says of what there is too much, or that a name is too long or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooMuch(String);

impl std::fmt::Display for TooMuch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TooMuch {}

impl Desired {
    /// The same for everybody. `None` leaves agents what they run.
    pub fn new(default: Option<Vec<Config>>) -> Self {
        Self { default, ..Self::default() }
    }

    /// Returns what a host should run, or `None` if nobody has said.
    pub fn of(&self, agent_id: &str) -> Option<&Vec<Config>> {
        let group = self.members.get(agent_id).and_then(|group| self.groups.get(group));
        self.hosts.get(agent_id).or(group).or(self.default.as_ref())
    }

    /// Returns what everybody should run who has no other.
    pub fn everybody(&self) -> Option<&Vec<Config>> {
        self.default.as_ref()
    }

    /// Returns the group that a host is in.
    pub fn group_of(&self, agent_id: &str) -> Option<&str> {
        self.members.get(agent_id).map(String::as_str)
    }

    /// Returns the groups that have a configuration.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// Returns the groups of the hosts that are in one, by agent id.
    pub(crate) fn members(&self) -> &BTreeMap<String, String> {
        &self.members
    }

    /// Sets what the target should run. `None` lets the next wider target decide.
    ///
    /// # Errors
    /// When there are too many plugins, groups or hosts.
    pub fn set(&mut self, target: Target, configs: Option<Vec<Config>>) -> Result<(), TooMuch> {
        let len = configs.as_ref().map_or(0, Vec::len);
        if len > MAX_PLUGINS {
            return Err(TooMuch(format!("{len} plugins, the limit is {MAX_PLUGINS}")));
        }
        match target {
            Target::Everybody => self.default = configs,
            Target::Group(name) => put(&mut self.groups, name, configs, MAX_GROUPS, "groups")?,
            Target::Host(id) => put(&mut self.hosts, id, configs, MAX_HOSTS, "hosts")?,
        }
        Ok(())
    }

    /// Puts a host into a group, which need not have a configuration yet. `None` takes it out of its group.
    ///
    /// # Errors
    /// When there are too many hosts in groups.
    pub fn set_group(&mut self, agent_id: &str, group: Option<String>) -> Result<(), TooMuch> {
        group.as_deref().map_or(Ok(()), check_name)?;
        put(&mut self.members, agent_id.to_owned(), group, MAX_HOSTS, "hosts in groups")
    }

    /// Reads the file. Returns `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is none that [`Desired::write`] has written.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let json = match std::fs::read_to_string(path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        let read: DesiredJson =
            serde_json::from_str(&json).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
        let all = |map: BTreeMap<String, Vec<ConfigJson>>| {
            map.into_iter().map(|(name, configs)| (name, configs_from(configs))).collect()
        };
        Ok(Some(Self {
            default: read.default.map(configs_from),
            groups: all(read.groups),
            hosts: all(read.hosts),
            members: read.members,
        }))
    }

    /// Replaces the file, which holds either the old or the new whatever happens meanwhile.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        serde_json::to_writer(&mut file, &self.json())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }

    /// Returns everything as the file and the HTTP port have it.
    pub(crate) fn json(&self) -> impl Serialize {
        let all = |configs: &Vec<Config>| configs.iter().map(ConfigJson::from).collect::<Vec<_>>();
        let by_name = |map: &BTreeMap<String, Vec<Config>>| {
            map.iter().map(|(name, configs)| (name.clone(), all(configs))).collect::<BTreeMap<_, _>>()
        };
        DesiredJson {
            default: self.default.as_ref().map(all),
            groups: by_name(&self.groups),
            hosts: by_name(&self.hosts),
            members: self.members.clone(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct DesiredJson {
    default: Option<Vec<ConfigJson>>,
    groups: BTreeMap<String, Vec<ConfigJson>>,
    hosts: BTreeMap<String, Vec<ConfigJson>>,
    members: BTreeMap<String, String>,
}

fn put<T>(
    map: &mut BTreeMap<String, T>,
    name: String,
    value: Option<T>,
    limit: usize,
    what: &str,
) -> Result<(), TooMuch> {
    let Some(value) = value else {
        map.remove(&name);
        return Ok(());
    };
    check_name(&name)?;
    if map.len() >= limit && !map.contains_key(&name) {
        return Err(TooMuch(format!("{} {what}, the limit is {limit}", map.len() + 1)));
    }
    map.insert(name, value);
    Ok(())
}

fn check_name(name: &str) -> Result<(), TooMuch> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(TooMuch(format!("a name of {} bytes, expected 1 to {MAX_NAME}", name.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str) -> Vec<Config> {
        vec![Config { name: name.to_owned(), ..Default::default() }]
    }

    #[test]
    fn the_closest_target_decides() {
        let mut desired = Desired::new(Some(config("everybody")));
        let name = |desired: &Desired| desired.of("a").map(|configs| configs[0].name.clone());
        desired.set_group("a", Some("gateways".to_owned())).unwrap();
        assert_eq!(name(&desired).as_deref(), Some("everybody"));
        desired.set(Target::Group("gateways".to_owned()), Some(config("group"))).unwrap();
        assert_eq!(name(&desired).as_deref(), Some("group"));
        desired.set(Target::Host("a".to_owned()), Some(config("host"))).unwrap();
        assert_eq!(name(&desired).as_deref(), Some("host"));
        desired.set(Target::Host("a".to_owned()), None).unwrap();
        desired.set_group("a", None).unwrap();
        desired.set(Target::Everybody, None).unwrap();
        assert_eq!(name(&desired), None);
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let dir = std::env::temp_dir().join(format!("elklet-center-desired-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("desired.json");
        assert!(Desired::read(&path).unwrap().is_none());
        let mut desired = Desired::new(None);
        desired.set(Target::Group("g".to_owned()), Some(config("driver"))).unwrap();
        desired.set_group("a", Some("g".to_owned())).unwrap();
        desired.write(&path).unwrap();
        let read = Desired::read(&path).unwrap().unwrap();
        assert_eq!((read.of("a"), read.of("b"), read.group_of("a")), (Some(&config("driver")), None, Some("g")));
        std::fs::write(&path, "{").unwrap();
        assert!(Desired::read(&path).unwrap_err().to_string().contains("desired.json"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn there_is_a_bound_on_everything() {
        let mut desired = Desired::default();
        let many = vec![Config::default(); MAX_PLUGINS + 1];
        assert!(desired.set(Target::Everybody, Some(many)).unwrap_err().to_string().contains("201 plugins"));
        for n in 0..MAX_GROUPS {
            desired.set(Target::Group(n.to_string()), Some(Vec::new())).unwrap();
        }
        assert!(desired.set(Target::Group("one more".to_owned()), Some(Vec::new())).is_err());
        assert!(desired.set(Target::Group("7".to_owned()), Some(Vec::new())).is_ok());
        assert!(desired.set_group("a", Some("x".repeat(MAX_NAME + 1))).is_err());
    }
}
