//! The plugins' processes: carrying out what the dispatch asks for, and telling it how that went.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::mem;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use elklet_core::command::{PluginConfig, PluginName};
use elklet_core::dispatch::{Preparation, STOP_TIMEOUT_MS};
use elklet_core::limits::MAX_TASK_BYTES;
use elklet_core::record::frame::{self, Tally};
use elklet_core::record::intake::Origin;
use elklet_core::time::Millis;
use elklet_proto::grpc::Task;
use rustix::process::{Pid, Signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use self::counts::Open;
use self::prepare::{Lane, Step, preparer};
use self::quota::Measuring;
use crate::clock::Clock;
use crate::config::Settings;
use crate::fetch::Cancel;
use crate::logging::{self, Event, Kind};
use crate::plugin::{
    self, Applied, Confiner, Group, Kin, Newest, OverQuota, PrepareError, Prepared, Preparer, Quota, Refusals, Spawned,
    Stderr,
};
use crate::pump::{PlugId, PluginStats, PumpHandle};
use crate::status::Meter;
use crate::sys::blocking::{self, Chores};
use crate::sys::children::Own;

mod counts;
mod files;
mod prepare;
mod quota;

/// What happens to plugins without being asked for.
#[derive(Debug)]
pub(super) enum PluginEvent {
    /// A step of a preparation is over; `None` means that another has to follow.
    Prepared { id: Preparation, config: Box<PluginConfig>, step: Step, result: Result<Option<Prepared>, PrepareError> },
    /// What was to be deleted is, but for these.
    Deleted(Vec<PathBuf>),
    /// The directories were measured; these processes are over their quotas.
    Measured(Vec<(PluginName, u32, OverQuota)>),
    /// A process has ended; the first text completes "plugin x ...", the second is the end of what it said.
    Exited(PluginName, String, String),
}

/// What has become of a plugin, for the agent to decide what follows.
#[derive(Debug)]
pub(super) enum Outcome {
    /// What was to be prepared is ready to be started.
    Prepared(PluginName, Preparation),
    /// It could not be prepared, for this reason.
    NotPrepared(PluginName, Preparation, PrepareError),
    /// Its process has ended.
    Exited {
        name: PluginName,
        /// Completes "plugin x ...".
        how: String,
        /// The end of what it said.
        last_words: String,
    },
}

/// A plugin's process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) stats: Arc<PluginStats>,
    pub(super) since: Millis,
    /// Of records and their bytes.
    pub(super) meter: Meter<2>,
    /// The limits that it has, and how they are kept.
    pub(super) limits: Vec<Applied>,
    groups: Vec<Group>,
    /// What its directory may hold.
    quota: Option<Quota>,
    /// Why it was killed, if its directory held more.
    over: Option<OverQuota>,
    plug: PlugId,
    /// It was asked to end.
    stopping: bool,
}

impl Running {
    /// Records that it has sent, and their bytes.
    pub(super) fn sent(&self) -> [u64; 2] {
        let tally = self.stats.tally();
        [tally.records, tally.record_bytes]
    }
}

#[derive(Debug)]
pub(super) struct Plugins {
    clock: Clock,
    preparer: Arc<Preparer>,
    confiner: Confiner,
    kin: Kin,
    running: BTreeMap<PluginName, Running>,
    verifications: Lane,
    downloads: Lane,
    /// Preparations that have not come back and are wanted, and those whose executable waits to be started.
    preparing: HashMap<Preparation, Arc<Cancel>>,
    ready: HashMap<Preparation, Prepared>,
    /// What is written in its time.
    writes: Chores,
    /// The list of plugins that is to be written, and whether the versions that have run are.
    to_keep: Arc<Mutex<Option<Vec<PluginConfig>>>>,
    to_note: Arc<AtomicBool>,
    /// What is deleted in its time.
    chores: Chores,
    /// What is to be deleted, and whether a chore is deleting.
    litter: Vec<PathBuf>,
    deleting: bool,
    /// The counts of plugs that the pump has not closed yet; a process may be gone by then.
    open: HashMap<PlugId, Open>,
    /// The counts of those that it has.
    past: Tally,
    past_stderr: u64,
    /// Processes that have ended without being asked to.
    deaths: u64,
    /// Of these, those that were killed for what their directories held.
    quota_kills: u64,
    measuring: Measuring,
    events: UnboundedSender<PluginEvent>,
}

impl Plugins {
    pub(super) fn new(settings: &Settings, clock: Clock) -> (Self, UnboundedReceiver<PluginEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let plugins = Self {
            clock,
            preparer: Arc::new(preparer(settings, Arc::new(Newest::read(&settings.layout.workdir)))),
            confiner: Confiner::new(settings),
            kin: Kin::new(&settings.layout.workdir),
            running: BTreeMap::new(),
            verifications: Lane::default(),
            downloads: Lane::default(),
            preparing: HashMap::new(),
            ready: HashMap::new(),
            writes: Chores::default(),
            to_keep: Arc::default(),
            to_note: Arc::default(),
            chores: Chores::default(),
            litter: Vec::new(),
            deleting: false,
            open: HashMap::new(),
            past: Tally::default(),
            past_stderr: 0,
            deaths: 0,
            quota_kills: 0,
            measuring: Measuring::default(),
            events,
        };
        (plugins, receiver)
    }

    /// Prepares by other settings from now on.
    pub(super) fn configure(&mut self, settings: &Settings) {
        self.preparer = Arc::new(preparer(settings, Arc::clone(&self.preparer.newest)));
        self.confiner.configure(settings);
    }

    /// Starts what was prepared.
    ///
    /// # Errors
    /// Why that cannot be; nothing runs then.
    pub(super) fn spawn(
        &mut self,
        id: Preparation,
        config: &PluginConfig,
        origin: Origin,
        pump: &mut PumpHandle,
        now: Millis,
    ) -> Result<(), String> {
        let mut prepared = self.ready.remove(&id).ok_or("it was not prepared")?;
        let mark = self.kin.mark(&config.name);
        let is_new = prepared.is_staged();
        let spawned = plugin::spawn(&mut prepared, config, &mark, &mut self.confiner, now);
        self.drop_aside(prepared);
        if is_new {
            let what = format!("{} version {}", config.name, config.version);
            let sha256 = config.executable_sha256.to_string();
            let result =
                spawned.as_ref().map_or_else(|error| format!("not installed: {error}"), |_| "installed".into());
            logging::audit(&Event { sha256: &sha256, ..Event::new(Kind::Plugin, &what, &result) });
        }
        match spawned {
            Ok(Spawned { mut child, pid, pipes, stderr, limits, groups, refusals }) => {
                let own = Own::plugin(pid);
                self.kin.join(mark, pid);
                log::info!("plugin {} version {} started as process {pid}", config.name, config.version);
                self.note_started(config, now);
                let stats = Arc::new(PluginStats::default());
                let stderr = Stderr::new(stderr, config.name.clone(), Arc::clone(&stats), self.clock);
                let refusals = Refusals::new(refusals, config.name.clone(), Arc::clone(&stats));
                let plug = pump.plug(config.name.clone(), origin, pipes, Arc::clone(&stats));
                self.open.insert(plug, Open::new(config.name.clone(), Arc::clone(&stats)));
                let quota = self.confiner.quota(&config.name);
                if quota.is_some() {
                    self.measuring.schedule(now);
                }
                let running = Running {
                    version: config.version.clone(),
                    pid,
                    stats,
                    since: now,
                    meter: Meter::new(now),
                    limits,
                    groups,
                    quota,
                    over: None,
                    plug,
                    stopping: false,
                };
                self.running.insert(config.name.clone(), running);
                let (name, events) = (config.name.clone(), self.events.clone());
                tokio::spawn(async move {
                    let (ended, last_words) = stderr.follow(refusals.answer_until(child.wait())).await;
                    let how = match ended {
                        Ok(status) => plugin::describe(status),
                        Err(error) => format!("was lost sight of ({error})"),
                    };
                    drop(own);
                    let _ = events.send(PluginEvent::Exited(name, how, last_words));
                });
                Ok(())
            }
            Err(error) => {
                // Of a program that cannot be executed there is another kind of error.
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::OutOfMemory) {
                    blocking::count_refused();
                }
                let program = self.directory(&config.name).join(config.name.as_str());
                Err(plugin::explain(&error, &program))
            }
        }
    }

    /// Asks a plugin to end, by closing its task pipe.
    pub(super) fn stop(&mut self, name: &PluginName, pump: &PumpHandle) {
        if let Some(running) = self.running.get_mut(name) {
            pump.close_tasks(running.plug);
            running.stopping = true;
        }
    }

    /// Kills a plugin that was asked to end and did not.
    pub(super) fn kill(&self, name: &PluginName) {
        if let Some(running) = self.running.get(name) {
            let seconds = STOP_TIMEOUT_MS / 1000;
            log::warn!("plugin {name} (process {}) did not end within {seconds} s and is killed", running.pid);
            kill(running.pid);
        }
    }

    /// Hands a task to a plugin.
    ///
    /// # Errors
    /// Gives the task's token back, and why it cannot be handed over. One that the pump cannot hand over comes back from there.
    pub(super) fn forward(&self, name: &PluginName, task: Task, pump: &PumpHandle) -> Result<(), (String, String)> {
        let why = match (self.running.get(name), frame::task_frame(&task)) {
            (Some(running), Ok(frame)) => {
                pump.task(running.plug, frame, task.token);
                return Ok(());
            }
            (None, _) => format!("plugin {name} is not running"),
            (_, Err(bytes)) => format!("a task of {bytes} bytes, the limit is {MAX_TASK_BYTES}"),
        };
        Err((task.token, why))
    }

    /// Takes note of what has happened, and says what has become of a plugin by it.
    pub(super) fn handle_event(&mut self, event: PluginEvent, pump: &PumpHandle, now: Millis) -> Option<Outcome> {
        match event {
            PluginEvent::Prepared { id, config, step, result } => self.handle_step(id, *config, step, result),
            PluginEvent::Deleted(failed) => {
                self.deleting = false;
                let came_meanwhile = mem::replace(&mut self.litter, failed);
                if !came_meanwhile.is_empty() {
                    self.delete(came_meanwhile);
                }
                None
            }
            PluginEvent::Measured(over) => {
                self.handle_measured(over, now);
                None
            }
            PluginEvent::Exited(name, mut how, last_words) => {
                if let Some(running) = self.running.remove(&name) {
                    if let Some(over) = &running.over {
                        how += &format!(" ({over})");
                    }
                    how += &refused(&running.stats.refusals());
                    // The agent complains of one that was not asked to end.
                    match running.stopping {
                        true => log::info!("plugin {name} (process {}) {how}", running.pid),
                        false => {
                            self.deaths += 1;
                            // The kernel tells nobody which file it has refused.
                            let limits: Vec<_> = running.limits.iter().map(ToString::to_string).collect();
                            if !limits.is_empty() {
                                log::info!("plugin {name} had these limits: {}", limits.join("; "));
                            }
                        }
                    }
                    // What it may have started ends with it, so that nobody writes into its pipes any more.
                    kill_group(running.pid);
                    self.kin.leave(running.pid, now);
                    self.confiner.release(running.groups, now);
                    pump.finish(running.plug);
                }
                Some(Outcome::Exited { name, how, last_words })
            }
        }
    }

    /// Ends every process at once.
    pub(super) fn kill_all(&mut self) {
        self.running.values().for_each(|running| kill(running.pid));
    }

    /// Goes on with what was put off.
    pub(super) fn handle_timeout(&mut self, now: Millis) {
        self.confiner.handle_timeout(now);
        self.kin.handle_timeout(now);
        self.chores.handle_timeout(now);
        self.measure(now);
        self.writes.handle_timeout(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        let rooms = [self.confiner.poll_timeout(), self.kin.poll_timeout(), self.measuring.poll_timeout()];
        rooms.into_iter().chain([&self.chores, &self.writes].map(Chores::poll_timeout)).flatten().min()
    }

    pub(super) fn get(&self, name: &PluginName) -> Option<&Running> {
        self.running.get(name)
    }

    pub(super) fn directory(&self, name: &PluginName) -> PathBuf {
        plugin::directory(&self.preparer.workdir, name)
    }
}

/// Walls that the report of an end names.
const MAX_WALLS: usize = 4;

/// Adds to the report of an end what the sandbox had refused before.
fn refused(refusals: &[(&'static str, u64)]) -> String {
    let named: Vec<_> = refusals.iter().take(MAX_WALLS).map(|(call, count)| format!("{call} {count}x")).collect();
    match refusals.len() {
        0 => String::new(),
        1..=MAX_WALLS => format!(" (its sandbox had refused {})", named.join(", ")),
        more => format!(" (its sandbox had refused {} and {} others)", named.join(", "), more - MAX_WALLS),
    }
}

/// Kills a plugin's process, which may have left its group, and the group.
fn kill(process: u32) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    kill_group(process);
}

/// Kills what is left of the process group of a plugin.
fn kill_group(leader: u32) {
    if let Some(group) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}
