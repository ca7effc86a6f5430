//! What agents should run: plugins by host, by group, and for everybody else.
//!
//! It outlives the center in `center.db`, where each change is a version.

use crate::clock::now_ms;
use crate::files::Digest;
use crate::http::ConfigJson;
use crate::store::site::{NOTHING, Site, SiteError};
use elklet_proto::grpc::Config;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

/// The most groups, and the most hosts that are in one or have a configuration of their own.
const MAX_GROUPS: usize = 1_000;
const MAX_HOSTS: usize = 10_000;

/// The most plugins of one configuration. Elkeid has ten.
const MAX_PLUGINS: usize = 200;

/// The longest name of a group, in bytes.
const MAX_NAME: usize = 256;

/// A plugin that agents should run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PluginJson", into = "PluginJson")]
pub struct Plugin {
    /// What agents are told.
    pub config: Config,
    /// The file of this center that it is. Each agent is then told an address of its own to fetch it from.
    pub file: Option<Digest>,
}

impl From<Config> for Plugin {
    fn from(config: Config) -> Self {
        Self { config, file: None }
    }
}

/// The desired configuration of all agents.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    default: Option<Vec<Plugin>>,
    groups: BTreeMap<String, Vec<Plugin>>,
    hosts: BTreeMap<String, Vec<Plugin>>,
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

impl Target {
    /// Returns its name in `center.db`.
    pub(crate) fn scope(&self) -> String {
        match self {
            Self::Everybody => "all".to_owned(),
            Self::Group(name) => format!("group/{name}"),
            Self::Host(id) => format!("host/{id}"),
        }
    }

    fn of_scope(scope: &str) -> Option<Self> {
        match scope.split_once('/') {
            None if scope == "all" => Some(Self::Everybody),
            Some(("group", name)) => Some(Self::Group(name.to_owned())),
            Some(("host", id)) => Some(Self::Host(id.to_owned())),
            _ => None,
        }
    }
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
    pub fn new(default: Option<Vec<Plugin>>) -> Self {
        Self { default, ..Self::default() }
    }

    /// Returns what a host should run, or `None` if nobody has said.
    pub fn of(&self, agent_id: &str) -> Option<&Vec<Plugin>> {
        let group = self.members.get(agent_id).and_then(|group| self.groups.get(group));
        self.hosts.get(agent_id).or(group).or(self.default.as_ref())
    }

    /// Returns what was said for a target itself.
    pub fn at(&self, target: &Target) -> Option<&Vec<Plugin>> {
        match target {
            Target::Everybody => self.default.as_ref(),
            Target::Group(name) => self.groups.get(name),
            Target::Host(id) => self.hosts.get(id),
        }
    }

    /// Returns true if a configuration for this group, or for everybody, would decide what the host runs.
    pub fn reaches(&self, group: Option<&str>, agent_id: &str) -> bool {
        let own = self.members.get(agent_id).map(String::as_str);
        !self.hosts.contains_key(agent_id)
            && match group {
                Some(_) => own == group,
                None => own.is_none_or(|own| !self.groups.contains_key(own)),
            }
    }

    /// Returns true if some configuration has this file.
    pub fn wants(&self, file: &Digest) -> bool {
        let lists = self.default.iter().chain(self.groups.values()).chain(self.hosts.values());
        lists.flatten().any(|plugin| plugin.file.as_ref() == Some(file))
    }

    /// Returns what everybody should run who has no other.
    pub fn everybody(&self) -> Option<&Vec<Plugin>> {
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
    pub fn set(&mut self, target: Target, plugins: Option<Vec<Plugin>>) -> Result<(), TooMuch> {
        let len = plugins.as_ref().map_or(0, Vec::len);
        if len > MAX_PLUGINS {
            return Err(TooMuch(format!("{len} plugins, the limit is {MAX_PLUGINS}")));
        }
        match target {
            Target::Everybody => self.default = plugins,
            Target::Group(name) => put(&mut self.groups, name, plugins, MAX_GROUPS, "groups")?,
            Target::Host(id) => put(&mut self.hosts, id, plugins, MAX_HOSTS, "hosts")?,
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

    /// Reads what is kept. `default` is for everybody as long as nobody has ever said anything for everybody.
    ///
    /// # Errors
    /// When the database cannot be read, or holds what [`Desired::keep`] has not written.
    pub(crate) fn load(site: &Site, default: Option<Vec<Plugin>>) -> io::Result<Self> {
        let mut desired = Self::new(default);
        for kept in site.configs().list().map_err(io::Error::other)? {
            let plugins = plugins_from_body(&kept.body)
                .map_err(|error| io::Error::other(format!("center.db, configuration {}: {error}", kept.scope)))?;
            match Target::of_scope(&kept.scope) {
                Some(target) => desired.set(target, plugins).map_err(io::Error::other)?,
                None => log::warn!("center.db has a configuration for {:?}, which is nobody", kept.scope),
            }
        }
        desired.members = site.configs().members().map_err(io::Error::other)?.into_iter().collect();
        Ok(desired)
    }

    /// Writes what differs from `before`, each as a new version.
    ///
    /// # Errors
    /// When the database cannot be written. What was written before that stays, and is not in force.
    pub(crate) fn keep(&self, before: &Self, site: &Site, by: &str, now_ms: i64) -> Result<(), SiteError> {
        let groups = changed(&self.groups, &before.groups).map(Target::Group);
        let hosts = changed(&self.hosts, &before.hosts).map(Target::Host);
        let everybody = (self.default != before.default).then_some(Target::Everybody);
        for target in groups.chain(hosts).chain(everybody) {
            site.configs().set(&target.scope(), &body_of(self.at(&target)), by, now_ms)?;
        }
        for agent_id in changed(&self.members, &before.members) {
            site.configs().set_member(&agent_id, self.group_of(&agent_id))?;
        }
        Ok(())
    }

    /// Returns everything as the HTTP port has it.
    pub(crate) fn json(&self) -> impl Serialize {
        DesiredJson {
            default: self.default.clone(),
            groups: self.groups.clone(),
            hosts: self.hosts.clone(),
            members: self.members.clone(),
        }
    }
}

/// Takes over `desired.json`, in which an earlier version of the program kept all this, and sets it aside.
///
/// # Errors
/// When it is there and cannot be read, or the database cannot be written.
pub fn take_over(dir: &Path, site: &Site) -> io::Result<()> {
    let path = dir.join("desired.json");
    let at = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let json = match std::fs::read_to_string(&path) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(&error)),
    };
    let old: DesiredJson = serde_json::from_str(&json).map_err(|error| at(&error))?;
    let old = Desired { default: old.default, groups: old.groups, hosts: old.hosts, members: old.members };
    old.keep(&Desired::load(site, None)?, site, "desired.json", now_ms()).map_err(|error| at(&error))?;
    std::fs::rename(&path, dir.join("desired.json.taken-over")).map_err(|error| at(&error))
}

#[derive(Serialize, Deserialize)]
struct DesiredJson {
    default: Option<Vec<Plugin>>,
    groups: BTreeMap<String, Vec<Plugin>>,
    hosts: BTreeMap<String, Vec<Plugin>>,
    members: BTreeMap<String, String>,
}

/// A plugin as JSON has it.
#[derive(Serialize, Deserialize)]
struct PluginJson {
    #[serde(flatten)]
    config: ConfigJson,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<Digest>,
}

impl From<PluginJson> for Plugin {
    fn from(json: PluginJson) -> Self {
        Self { config: json.config.into(), file: json.file }
    }
}

impl From<Plugin> for PluginJson {
    fn from(plugin: Plugin) -> Self {
        Self { config: (&plugin.config).into(), file: plugin.file }
    }
}

/// Reads the body of a version.
pub(crate) fn plugins_from_body(body: &str) -> Result<Option<Vec<Plugin>>, serde_json::Error> {
    serde_json::from_str(body)
}

fn body_of(plugins: Option<&Vec<Plugin>>) -> String {
    plugins.map_or(NOTHING.to_owned(), |plugins| {
        serde_json::to_string(plugins).expect("names are text and nothing else can fail")
    })
}

/// Returns the keys whose values differ.
fn changed<V: PartialEq>(now: &BTreeMap<String, V>, before: &BTreeMap<String, V>) -> impl Iterator<Item = String> {
    let keys: BTreeSet<_> = now.keys().chain(before.keys()).filter(|key| now.get(*key) != before.get(*key)).collect();
    keys.into_iter().cloned().collect::<Vec<_>>().into_iter()
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

    fn plugin(name: &str) -> Vec<Plugin> {
        vec![Config { name: name.to_owned(), ..Default::default() }.into()]
    }

    #[test]
    fn the_closest_target_decides() {
        let mut desired = Desired::new(Some(plugin("everybody")));
        let name = |desired: &Desired| desired.of("a").map(|plugins| plugins[0].config.name.clone());
        let reaches = |desired: &Desired| [None, Some("gateways"), Some("b")].map(|group| desired.reaches(group, "a"));
        desired.set_group("a", Some("gateways".to_owned())).unwrap();
        assert_eq!(name(&desired).as_deref(), Some("everybody"));
        assert_eq!(reaches(&desired), [true, true, false]);
        desired.set(Target::Group("gateways".to_owned()), Some(plugin("group"))).unwrap();
        assert_eq!(name(&desired).as_deref(), Some("group"));
        assert_eq!(reaches(&desired), [false, true, false]);
        desired.set(Target::Host("a".to_owned()), Some(plugin("host"))).unwrap();
        assert_eq!(name(&desired).as_deref(), Some("host"));
        assert_eq!(reaches(&desired), [false, false, false]);
        desired.set(Target::Host("a".to_owned()), None).unwrap();
        desired.set_group("a", None).unwrap();
        desired.set(Target::Everybody, None).unwrap();
        assert_eq!(name(&desired), None);
    }

    #[test]
    fn it_is_read_as_it_was_kept_and_each_change_is_a_version() {
        let site = Site::in_memory().unwrap();
        let mut kept = Desired::load(&site, Some(plugin("given"))).unwrap();
        assert_eq!(kept.everybody(), Some(&plugin("given")));
        let change = |kept: &mut Desired, change: &dyn Fn(&mut Desired)| {
            let before = kept.clone();
            change(kept);
            kept.keep(&before, &site, "ann", 7).unwrap();
        };
        let group = Target::Group("g/1".to_owned());
        let file = Digest::of(b"driver");
        let of_file = Plugin { file: Some(file), ..plugin("driver").remove(0) };
        change(&mut kept, &|desired| desired.set(group.clone(), Some(plugin("driver"))).unwrap());
        change(&mut kept, &|desired| desired.set(group.clone(), Some(vec![of_file.clone()])).unwrap());
        change(&mut kept, &|desired| desired.set_group("a", Some("g/1".to_owned())).unwrap());
        change(&mut kept, &|_| {});
        let read = Desired::load(&site, Some(plugin("given"))).unwrap();
        assert_eq!((read.of("a"), read.group_of("a")), (Some(&vec![of_file]), Some("g/1")));
        assert_eq!(read.of("b"), Some(&plugin("given")), "nobody has said anything for everybody");
        assert!(read.wants(&file) && !read.wants(&Digest::of(b"other")));
        assert_eq!(site.configs().history("group/g/1").unwrap().len(), 2);
        change(&mut kept, &|desired| desired.set(Target::Everybody, None).unwrap());
        change(&mut kept, &|desired| desired.set(group.clone(), None).unwrap());
        let read = Desired::load(&site, Some(plugin("given"))).unwrap();
        assert_eq!((read.of("b"), read.at(&group)), (None, None), "what was taken back stays so");
    }

    #[test]
    fn what_an_earlier_version_kept_is_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::in_memory().unwrap();
        take_over(dir.path(), &site).unwrap();
        let path = dir.path().join("desired.json");
        std::fs::write(&path, "{").unwrap();
        assert!(take_over(dir.path(), &site).unwrap_err().to_string().contains("desired.json"));
        let old =
            r#"{"default":null,"groups":{"g":[{"name":"driver","download_url":null}]},"hosts":{},"members":{"a":"g"}}"#;
        std::fs::write(&path, old).unwrap();
        take_over(dir.path(), &site).unwrap();
        assert!(!path.exists());
        let taken = Desired::load(&site, None).unwrap();
        assert_eq!((taken.of("a"), taken.of("b")), (Some(&plugin("driver")), None));
    }

    #[test]
    fn there_is_a_bound_on_everything() {
        let mut desired = Desired::default();
        let many = vec![Plugin::default(); MAX_PLUGINS + 1];
        assert!(desired.set(Target::Everybody, Some(many)).unwrap_err().to_string().contains("201 plugins"));
        for n in 0..MAX_GROUPS {
            desired.set(Target::Group(n.to_string()), Some(Vec::new())).unwrap();
        }
        assert!(desired.set(Target::Group("one more".to_owned()), Some(Vec::new())).is_err());
        assert!(desired.set(Target::Group("7".to_owned()), Some(Vec::new())).is_ok());
        assert!(desired.set_group("a", Some("x".repeat(MAX_NAME + 1))).is_err());
    }
}
