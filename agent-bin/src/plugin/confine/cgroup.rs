//! Control groups below the agent's own.
//!
//! In version 2 (Linux, `Documentation/admin-guide/cgroup-v2.rst`), a group that hands its controllers on to groups below it may
//! have no processes of its own. The agent therefore moves into a group of its own below the one that it was started in. It does
//! so only if nobody else is in there, which is what delegation means (`Delegate=yes` with systemd). Version 1 has no such rule.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// The version 2 group into which the agent moves.
const AGENT: &str = "elklet-agent";

/// Period over which the processor's share is measured, in microseconds. It is the kernel's default.
const PERIOD_US: u64 = 100_000;

/// Rounds of killing a group's processes.
const KILL_ROUNDS: u32 = 8;

/// How often, and after which pause, the start checks whether the processes of an earlier agent's group have ended.
const STALE_ATTEMPTS: u32 = 20;
const STALE_PAUSE: Duration = Duration::from_millis(10);

/// What a group can limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
    Pids,
}

const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }

    /// The files of a group that set the limit, with their values.
    fn settings(self, version: u8, value: u64) -> Vec<(&'static str, String)> {
        let quota = value * (PERIOD_US / 100);
        match (self, version) {
            (Self::Memory, 2) => vec![("memory.max", value.to_string())],
            (Self::Memory, _) => vec![("memory.limit_in_bytes", value.to_string())],
            (Self::Cpu, 2) => vec![("cpu.max", format!("{quota} {PERIOD_US}"))],
            (Self::Cpu, _) => {
                vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
            }
            (Self::Pids, _) => vec![("pids.max", value.to_string())],
        }
    }

    /// The file, with its value, that keeps a group from swapping instead of staying within its limit.
    fn swap(self, version: u8, value: u64) -> Option<(&'static str, String)> {
        match (self, version) {
            (Self::Memory, 2) => Some(("memory.swap.max", "0".to_owned())),
            (Self::Memory, _) => Some(("memory.memsw.limit_in_bytes", value.to_string())),
            _ => None,
        }
    }
}

/// Prefix of the name of every group that this process makes.
pub(super) fn prefix() -> String {
    format!("elklet-{}", process::id())
}

/// A group for one plugin's process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Group(PathBuf);

impl Group {
    /// Kills the processes left in it and removes it.
    ///
    /// # Errors
    /// When a process is still left in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        // This kills all of them at once, even while they fork. Version 2 has this file since Linux 5.14.
        if fs::write(self.0.join("cgroup.kill"), "1").is_err() {
            kill(&self.0);
        }
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "control group {}", self.0.display())
    }
}

/// For each controller, where groups can be made.
#[derive(Debug, Default)]
pub(super) struct Hierarchies(Vec<(Controller, Parent)>);

/// The version and the parent of groups, or why there is none.
type Parent = Result<(u8, PathBuf), String>;

impl Hierarchies {
    /// Finds the agent's groups, moves the agent aside in version 2 if that is needed and possible, and removes groups
    /// that dead agents have left behind.
    pub(super) fn discover() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let own = Own::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let v2 = match &own.v2 {
            Some(base) => hand_on(base),
            None => Err("cgroup v2 is not mounted".to_owned()),
        };
        Self(CONTROLLERS.map(|controller| (controller, parent(controller, &v2, &own))).into())
    }

    /// Returns true before [`Hierarchies::discover`].
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets a limit for a process that is about to start. Returns the version, and the file by which the process joins
    /// the group, unless it already joins it for another limit. Adds new groups to `made`.
    pub(super) fn limit(
        &self,
        name: &str,
        controller: Controller,
        value: u64,
        made: &mut Vec<Group>,
    ) -> Result<(u8, Option<File>), String> {
        let parent = self.0.iter().find(|(known, _)| *known == controller).map(|(_, parent)| parent);
        let (version, parent) = parent.ok_or("nothing has looked for control groups yet")?.as_ref()?;
        let group = Group(parent.join(name));
        let failed = |what: &Path, error: io::Error| format!("{}: {error}", what.display());
        let is_new = !made.contains(&group);
        if is_new {
            fs::create_dir(&group.0).map_err(|error| failed(&group.0, error))?;
        }
        let set = || {
            for (file, value) in controller.settings(*version, value) {
                let file = group.0.join(file);
                fs::write(&file, value).map_err(|error| failed(&file, error))?;
            }
            if let Some((file, value)) = controller.swap(*version, value) {
                // Hosts without swap, or without accounting for it, do not have this file.
                let _ = fs::write(group.0.join(file), value);
            }
            let procs = group.0.join("cgroup.procs");
            let join = is_new.then(|| File::options().write(true).open(&procs)).transpose();
            join.map_err(|error| failed(&procs, error))
        };
        let result = set();
        match (is_new, &result) {
            (true, Ok(_)) => made.push(group),
            (true, Err(_)) => drop(group.remove()),
            (false, _) => {}
        }
        Ok((*version, result?))
    }
}

/// The groups that this process is in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Own {
    v2: Option<PathBuf>,
    v1: Vec<(Controller, PathBuf)>,
}

impl Own {
    /// Parses `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5), cgroups(7)).
    fn parse(mountinfo: &str, cgroup: &str) -> Self {
        let group_of = |controllers: &dyn Fn(&str) -> bool| {
            cgroup.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (named, path) = rest.split_once(':')?;
                controllers(named).then_some(path)
            })
        };
        let mut own = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else { continue };
            let mut mount = mount.split(' ').skip(3);
            let (Some(root), Some(point)) = (mount.next(), mount.next()) else { continue };
            let mut kind = kind.split(' ');
            let (kind, options) = (kind.next(), kind.nth(1).unwrap_or_default());
            // A group outside of what is mounted is out of reach; use the mount's root then.
            let place = |group: Option<&str>| {
                let below = group.and_then(|group| Path::new(group).strip_prefix(root).ok());
                let below = below.filter(|below| !below.starts_with(".."));
                let path = Path::new(point).join(below.unwrap_or(Path::new("")));
                if path.is_dir() { path } else { PathBuf::from(point) }
            };
            match kind {
                Some("cgroup2") if own.v2.is_none() => {
                    let path = place(group_of(&|named| named.is_empty()));
                    // An agent that has replaced itself is in the group to which it moved before.
                    let moved = path.file_name().is_some_and(|name| name == AGENT);
                    own.v2 = Some(path.parent().filter(|_| moved).map_or(path.clone(), Path::to_owned));
                }
                Some("cgroup") => {
                    for controller in CONTROLLERS {
                        let names_it = |list: &str| list.split(',').any(|name| name == controller.name());
                        if names_it(options) {
                            own.v1.push((controller, place(group_of(&names_it))));
                        }
                    }
                }
                _ => {}
            }
        }
        own
    }
}

/// Hands the controllers of the version 2 group `base` on to the groups below it. Returns those that were handed on.
fn hand_on(base: &Path) -> Result<(PathBuf, Vec<Controller>), String> {
    let read = |file: &str| fs::read_to_string(base.join(file)).unwrap_or_default();
    let listed = |file: &str| -> Vec<Controller> {
        let list = read(file);
        CONTROLLERS.into_iter().filter(|known| list.split_whitespace().any(|name| name == known.name())).collect()
    };
    let available = listed("cgroup.controllers");
    if available.is_empty() {
        return Err("cgroup v2 has none of these controllers here".to_owned());
    }
    if listed("cgroup.subtree_control") != available {
        // The root group has no type and may keep its processes.
        if base.join("cgroup.type").exists() {
            move_aside(base)?;
        }
        for controller in &available {
            let enable = format!("+{}", controller.name());
            if let Err(error) = fs::write(base.join("cgroup.subtree_control"), enable) {
                log::info!("{}: {} cannot be handed on: {error}", base.display(), controller.name());
            }
        }
    }
    remove_stale(base);
    Ok((base.to_owned(), listed("cgroup.subtree_control")))
}

/// Moves the agent from a group into one of its own below it.
fn move_aside(base: &Path) -> Result<(), String> {
    let me = rustix::process::getpid();
    if pids(base).any(|pid| pid != me) {
        return Err(format!("{} is not delegated: others than the agent are in it", base.display()));
    }
    let aside = base.join(AGENT);
    let moved = fs::create_dir(&aside).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    });
    moved
        .and_then(|()| fs::write(aside.join("cgroup.procs"), process::id().to_string()))
        .map_err(|error| format!("{}: {error}", aside.display()))
}

/// Where to make groups with this controller.
fn parent(controller: Controller, v2: &Result<(PathBuf, Vec<Controller>), String>, own: &Own) -> Parent {
    let why = match v2 {
        Ok((base, handed_on)) if handed_on.contains(&controller) => return Ok((2, base.clone())),
        Ok((base, _)) => format!("{} does not have it", base.display()),
        Err(why) => why.clone(),
    };
    match own.v1.iter().find(|(known, _)| *known == controller) {
        Some((_, parent)) => {
            remove_stale(parent);
            Ok((1, parent.clone()))
        }
        None => Err(format!("{why}; cgroup v1 does not have {} mounted", controller.name())),
    }
}

/// Kills the processes of a group, including those that fork meanwhile.
fn kill(group: &Path) {
    for _ in 0..KILL_ROUNDS {
        let mut is_empty = true;
        for pid in pids(group) {
            is_empty = false;
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        if is_empty {
            return;
        }
    }
}

/// Removes the groups of dead agents with the processes in them. It kills these one by one, because an agent in another
/// PID namespace may have the same number, and its processes are not visible here.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix("elklet-")?.split('-').next()?.parse::<u32>().ok());
        if number.is_some_and(|pid| pid == process::id() || !Path::new("/proc").join(pid.to_string()).exists()) {
            let group = entry.path();
            for _ in 0..STALE_ATTEMPTS {
                kill(&group);
                if fs::remove_dir(&group).is_ok() {
                    break;
                }
                thread::sleep(STALE_PAUSE);
            }
        }
    }
}

fn pids(group: &Path) -> impl Iterator<Item = Pid> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<_> = listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect();
    pids.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_groups_are_found_in_both_versions() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |path: &str| directory.path().join(path);
        for path in ["memory/a/b", "cpu", "unified/x/elklet-agent"] {
            fs::create_dir_all(at(path)).expect("writable");
        }
        let top = directory.path().display();
        let mountinfo = format!(
            "23 1 0:1 / / rw - ext4 /dev/x rw\n\
             30 23 0:28 / {top} rw - tmpfs tmpfs rw\n\
             31 30 0:29 / {top}/memory rw shared:1 - cgroup cgroup rw,memory\n\
             32 30 0:30 /inner {top}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 30 0:31 / {top}/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
             nonsense\n"
        );
        let own =
            Own::parse(&mountinfo, "4:memory:/a/b\n3:cpu,cpuacct:/inner/gone\n1:name=systemd:/\n0::/x/elklet-agent\n");
        let expected = Own {
            v2: Some(at("unified/x")),
            v1: vec![(Controller::Memory, at("memory/a/b")), (Controller::Cpu, at("cpu"))],
        };
        assert_eq!(own, expected);
        assert_eq!(Own::parse("", ""), Own::default());
        // A group outside of the agent's namespace.
        let outside = Own::parse(&mountinfo, "0::/../../other\n");
        assert_eq!(outside.v2, Some(at("unified")));
    }

    #[test]
    fn a_limit_is_one_or_two_files() {
        assert_eq!(Controller::Cpu.settings(2, 250), [("cpu.max", "250000 100000".to_owned())]);
        let v1 = [("cpu.cfs_period_us", "100000".to_owned()), ("cpu.cfs_quota_us", "50000".to_owned())];
        assert_eq!(Controller::Cpu.settings(1, 50), v1);
    }

    #[test]
    fn a_group_that_others_are_in_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path();
        for (file, text) in
            [("cgroup.controllers", "cpu memory pids"), ("cgroup.subtree_control", ""), ("cgroup.type", "domain")]
        {
            fs::write(base.join(file), text).expect("writable");
        }
        fs::write(base.join("cgroup.procs"), format!("1\n{}\n", process::id())).expect("writable");
        assert!(hand_on(base).expect_err("somebody else is in it").contains("is not delegated"));
        // Once the agent is alone in it, it moves aside. In a directory that is no group, that fails.
        fs::write(base.join("cgroup.procs"), format!("{}\n", process::id())).expect("writable");
        hand_on(base).expect("it is the agent's alone");
        let moved = fs::read_to_string(base.join(AGENT).join("cgroup.procs")).expect("written");
        assert_eq!(moved, process::id().to_string());
        assert_eq!(fs::read_to_string(base.join("cgroup.subtree_control")).expect("written"), "+pids");
    }
}
