//! The processes that plugins start. None outlives its plugin or the agent.
//!
//! A process group does not hold them together, because whoever calls setsid(2) leaves it. Every plugin therefore gets
//! a mark in its environment, [`VARIABLE`], which its descendants inherit, and the agent adopts orphans (`children`).
//! When a plugin has ended, the agent kills its adopted children with the plugin's mark and all their descendants. A
//! process without any mark has dropped it. It counts as the plugin's if it is in the plugin's process group. It also
//! does if it began after the plugin and the agent adopts nobody's orphans but plugins'.
//!
//! An agent that was killed could not do that. The next one in the same work directory finds the marks of the earlier life.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::{fs, process};

use elklet_core::command::PluginName;
use elklet_core::time::Millis;
use rustix::process::{Pid, Signal};

use crate::clock::Stopwatch;
use crate::host::{HostRoot, Process, environment, processes};
use crate::sys::children;

/// The environment variable that says whose a process is. Its value is `DEVICE-INODE/PID-NUMBER/NAME`: the agent's work
/// directory, the agent's process and a count, and the plugin.
const VARIABLE: &str = "ELKLET_PLUGIN";

/// Pause before looking again for killed processes that are not gone.
const LOOK_AGAIN_MS: u64 = 100;

/// Number of such looks. A process that is still there afterwards cannot be killed.
const LOOKS: u32 = 50;

/// Rounds of looking for processes that were forked while others were killed.
const ROUNDS: u32 = 4;

/// How long the agent waits, at its start and at its end, for killed processes to end, and the pause between looks.
const END_WITHIN: Duration = Duration::from_secs(2);
const END_PAUSE: Duration = Duration::from_millis(5);

/// The processes of all plugins of this agent.
#[derive(Debug)]
pub(crate) struct Kin {
    host: HostRoot,
    /// Prefix of the marks in this work directory.
    place: String,
    agent: String,
    given: u64,
    live: Vec<Family>,
    leaving: Vec<Leaving>,
}

/// A plugin's main process.
#[derive(Debug)]
struct Family {
    mark: Mark,
    pid: u32,
    start_ticks: u64,
}

/// A plugin that has ended and whose descendants may not have.
#[derive(Debug)]
struct Leaving {
    plugin: Family,
    look_at: Millis,
    looks: u32,
}

/// An environment entry, `ELKLET_PLUGIN=...`, that identifies the descendants of one process of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark(String);

impl Mark {
    /// Its name and value.
    pub(super) fn entry(&self) -> (Vec<u8>, Vec<u8>) {
        (VARIABLE.into(), self.0.clone().into())
    }
}

impl Kin {
    /// The plugins of an agent in this work directory. There are none yet.
    pub(crate) fn new(workdir: &Path) -> Self {
        let place = place(workdir);
        Self {
            agent: format!("{place}{}-", process::id()),
            place,
            host: HostRoot::live(),
            given: 0,
            live: Vec::new(),
            leaving: Vec::new(),
        }
    }

    /// Makes a mark for a process of this plugin that is about to start.
    pub(crate) fn mark(&mut self, name: &PluginName) -> Mark {
        self.given += 1;
        Mark(format!("{}{}/{name}", self.agent, self.given))
    }

    /// The process was started.
    pub(crate) fn join(&mut self, mark: Mark, pid: u32) {
        let start_ticks = Process::find(&self.host, pid).map_or(0, |process| process.start_ticks);
        self.live.push(Family { mark, pid, start_ticks });
    }

    /// The process has ended. Kills what it has left behind.
    pub(crate) fn leave(&mut self, pid: u32, now: Millis) {
        let Some(at) = self.live.iter().position(|plugin| plugin.pid == pid) else { return };
        let plugin = self.live.swap_remove(at);
        self.leaving.push(Leaving { plugin, look_at: now, looks: 0 });
        self.handle_timeout(now);
    }

    /// Looks again for killed processes that were not gone yet.
    pub(crate) fn handle_timeout(&mut self, now: Millis) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain_mut(|Leaving { plugin, look_at, looks }| {
            if *look_at > now {
                return true;
            }
            (*look_at, *looks) = (now + LOOK_AGAIN_MS, *looks + 1);
            let left = kill_all(&self.host, |all| self.left_by(plugin, all));
            if left > 0 && *looks == 1 {
                log::warn!("plugin {} has left {left} processes behind, which are killed", plugin.name());
            }
            if left > 0 && *looks == LOOKS {
                log::error!("{left} processes that plugin {} has left behind cannot be killed", plugin.name());
            }
            left > 0 && *looks < LOOKS
        });
        self.leaving = leaving;
    }

    /// When [`Kin::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Millis> {
        self.leaving.iter().map(|leaving| leaving.look_at).min()
    }

    /// The adopted processes that an ended plugin has left behind.
    fn left_by(&self, plugin: &Family, all: &[Process]) -> Vec<u32> {
        let guesses = children::all_orphans_are_plugins();
        let is_left = |process: &&Process| {
            let of_group = |plugin: &Family| plugin.pid == process.group;
            match mark_of(&self.host, process.pid, &self.place) {
                Some(mark) => !self.live.iter().any(|live| live.mark == mark),
                None if of_group(plugin) => true,
                None => guesses && !self.live.iter().any(of_group) && process.start_ticks >= plugin.start_ticks,
            }
        };
        children::adopted(all).filter(is_left).map(|process| process.pid).collect()
    }
}

impl Family {
    fn name(&self) -> &str {
        self.mark.0.rsplit('/').next().unwrap_or_default()
    }
}

/// Kills what the plugins of an earlier agent in this work directory have left behind, and waits until it is gone.
pub(crate) fn end_earlier_lives(workdir: &Path) {
    let (host, place) = (HostRoot::live(), place(workdir));
    // If the agent is the first process, there was none before it.
    if rustix::process::getpid().is_init() {
        return;
    }
    let killed = end(&host, |all| {
        let others = all.iter().filter(|process| process.pid != process::id());
        others.filter(|process| mark_of(&host, process.pid, &place).is_some()).map(|process| process.pid).collect()
    });
    if killed > 0 {
        log::warn!("{killed} processes of plugins were left by an agent that had no time to end them: they are killed");
    }
}

/// Kills every process of a plugin that the agent has started or adopted, and waits until they are gone. The agent
/// calls this when it ends.
pub(crate) fn end_all(workdir: &Path) {
    let (host, place) = (HostRoot::live(), place(workdir));
    let guesses = children::all_orphans_are_plugins();
    end(&host, |all| {
        let children = all.iter().filter(|process| process.parent == process::id());
        let of_plugin = |process: &&Process| guesses || mark_of(&host, process.pid, &place).is_some();
        children.filter(of_plugin).map(|process| process.pid).collect()
    });
}

/// Kills until nobody is left or the time is over. Returns how many were killed.
fn end(host: &HostRoot, find: impl Fn(&[Process]) -> Vec<u32>) -> usize {
    let begun = Stopwatch::start();
    let mut most = 0;
    loop {
        let left = kill_all(host, &find);
        most = most.max(left);
        if left == 0 || begun.elapsed() >= END_WITHIN {
            return most;
        }
        children::reap();
        thread::sleep(END_PAUSE);
    }
}

/// Kills the living processes that `find` names and all their descendants. Returns how many there were.
fn kill_all(host: &HostRoot, find: impl Fn(&[Process]) -> Vec<u32>) -> usize {
    let mut killed = Vec::new();
    for _ in 0..ROUNDS {
        let mut all = processes(host);
        all.retain(|process| !process.is_dead);
        let mut found = find(&all);
        let mut next = 0;
        while let Some(&parent) = found.get(next) {
            found.extend(all.iter().filter(|process| process.parent == parent).map(|process| process.pid));
            next += 1;
        }
        found.retain(|pid| !killed.contains(pid));
        if found.is_empty() {
            break;
        }
        for pid in found {
            kill(pid);
            killed.push(pid);
        }
    }
    killed.len()
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Prefix of the marks in a work directory. It uses the directory's number, because its path means another directory in
/// another container.
fn place(workdir: &Path) -> String {
    let (device, inode) = fs::metadata(workdir).map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()));
    format!("{device:x}-{inode:x}/")
}

/// The mark of a process, if it is of this place.
fn mark_of(host: &HostRoot, pid: u32, place: &str) -> Option<Mark> {
    let environment = environment(host, pid);
    let value = environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok().filter(|value| value.starts_with(place))
    });
    value.map(|value| Mark(value.to_owned()))
}
