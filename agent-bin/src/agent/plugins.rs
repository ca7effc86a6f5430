//! The plugins' processes: carrying out what the dispatch asks for, and telling it how that went.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::ErrorKind;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use elklet_core::command::{PluginConfig, PluginName};
use elklet_core::delivery::losses::Cause;
use elklet_core::dispatch::{Preparation, STOP_TIMEOUT_MS};
use elklet_core::limits::{MAX_DOWNLOADS, MAX_TASK_BYTES, MAX_VERIFICATIONS};
use elklet_core::record::frame::{self, Tally};
use elklet_core::record::intake::Origin;
use elklet_core::time::Millis;
use elklet_proto::grpc::Task;
use rustix::process::{Pid, Signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::clock::{self, Clock};
use crate::config::Settings;
use crate::fetch::{Cancel, Fetcher};
use crate::logging::{self, Event, Kind};
use crate::plugin::{self, Applied, Confiner, Group, Kin, Newest, PrepareError, Prepared, Preparer, Spawned, Stderr};
use crate::pump::{PlugId, PluginStats, PumpHandle};
use crate::status::Meter;
use crate::sys::blocking::{self, Chores};
use crate::sys::children::Own;
use crate::sys::remove::remove_tree;

/// Paths that wait to be deleted at most; each is tried again at every heartbeat.
const MAX_LITTER: usize = 1_000;

/// What happens to plugins without being asked for.
#[derive(Debug)]
pub(super) enum PluginEvent {
    /// A step of a preparation is over; `None` means that another has to follow.
    Prepared { id: Preparation, config: Box<PluginConfig>, step: Step, result: Result<Option<Prepared>, PrepareError> },
    /// The list of plugins was written to the disk, or was not.
    Kept,
    /// What was to be deleted is, but for these.
    Deleted(Vec<PathBuf>),
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

/// A step of a preparation. The steps have threads apart, so that what is in its place does not wait for slow downloads of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Looking whether the plugin is in its place already.
    Verify,
    /// Fetching it.
    Download,
}

impl Step {
    /// How often it is taken at the same time.
    fn at_once(self) -> usize {
        match self {
            Self::Verify => MAX_VERIFICATIONS,
            Self::Download => MAX_DOWNLOADS,
        }
    }
}

/// The preparations at one step.
#[derive(Debug, Default)]
struct Lane {
    /// Those that have not begun it.
    waiting: VecDeque<(Preparation, PluginConfig)>,
    /// Threads that work on it, whether what they prepare is still wanted or not.
    at_work: usize,
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

/// A plugin's pipes that the pump has not closed yet.
#[derive(Debug)]
struct Open {
    name: PluginName,
    stats: Arc<PluginStats>,
    /// Its counts when they were looked at for lost frames, and when that was.
    told: Tally,
    told_at: i64,
}

impl Open {
    fn new(name: PluginName, stats: Arc<PluginStats>) -> Self {
        Self { name, stats, told: Tally::default(), told_at: clock::unix_seconds() }
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
    /// Whether a list is being written, and the one that is to be written after it.
    keeping: bool,
    to_keep: Option<Vec<PluginConfig>>,
    /// When that is tried again, after there was no thread for it.
    keep_at: Option<Millis>,
    /// What is deleted in its time.
    chores: Chores,
    /// Whether another version than before has run, which is to be written too.
    to_note: bool,
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
    events: UnboundedSender<PluginEvent>,
}

fn preparer(settings: &Settings, newest: Arc<Newest>) -> Preparer {
    Preparer {
        workdir: settings.workdir.clone(),
        fetcher: Fetcher::new(settings.certs.join("ca.crt"), settings.proxies.clone()),
        public_key: settings.plugins.public_key(),
        allow_downgrade: settings.plugins.allow_downgrade(),
        newest,
    }
}

impl Plugins {
    pub(super) fn new(settings: &Settings, clock: Clock) -> (Self, UnboundedReceiver<PluginEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let plugins = Self {
            clock,
            preparer: Arc::new(preparer(settings, Arc::new(Newest::read(&settings.workdir)))),
            confiner: Confiner::new(settings),
            kin: Kin::new(&settings.workdir),
            running: BTreeMap::new(),
            verifications: Lane::default(),
            downloads: Lane::default(),
            preparing: HashMap::new(),
            ready: HashMap::new(),
            keeping: false,
            to_keep: None,
            keep_at: None,
            chores: Chores::default(),
            to_note: false,
            litter: Vec::new(),
            deleting: false,
            open: HashMap::new(),
            past: Tally::default(),
            past_stderr: 0,
            deaths: 0,
            events,
        };
        (plugins, receiver)
    }

    /// Prepares by other settings from now on.
    pub(super) fn configure(&mut self, settings: &Settings) {
        self.preparer = Arc::new(preparer(settings, Arc::clone(&self.preparer.newest)));
        self.confiner.configure(settings);
    }

    pub(super) fn prepare(&mut self, id: Preparation, config: PluginConfig) {
        self.verifications.waiting.push_back((id, config));
        self.set_to_work(Step::Verify);
    }

    fn lane(&mut self, step: Step) -> &mut Lane {
        match step {
            Step::Verify => &mut self.verifications,
            Step::Download => &mut self.downloads,
        }
    }

    /// Begins as many preparations as may be at this step at once.
    fn set_to_work(&mut self, step: Step) {
        while self.lane(step).at_work < step.at_once()
            && let Some((id, config)) = self.lane(step).waiting.pop_front()
        {
            self.lane(step).at_work += 1;
            let cancel = Arc::new(Cancel::default());
            self.preparing.insert(id, Arc::clone(&cancel));
            let (preparer, events) = (Arc::clone(&self.preparer), self.events.clone());
            let tell = events.clone();
            let started = blocking::start(config, move |config| {
                let result = match step {
                    // It is fetched, then.
                    Step::Verify => match preparer.verify(&config, &cancel) {
                        Err(_) if !config.urls.is_empty() => Ok(None),
                        verified => verified.map(Some),
                    },
                    Step::Download => preparer.download(&config, &cancel).map(Some),
                };
                let config = Box::new(config);
                let _ = events.send(PluginEvent::Prepared { id, config, step, result });
            });
            if let Err(refused) = started {
                let (config, result) = (Box::new(refused.input), Err(PrepareError::NoThread(refused.error)));
                let _ = tell.send(PluginEvent::Prepared { id, config, step, result });
            }
        }
    }

    pub(super) fn forget(&mut self, id: Preparation) {
        for step in [Step::Verify, Step::Download] {
            self.lane(step).waiting.retain(|(waiting, _)| *waiting != id);
        }
        if let Some(cancel) = self.preparing.remove(&id) {
            cancel.cancel();
        }
        if let Some(prepared) = self.ready.remove(&id) {
            self.drop_aside(prepared);
        }
    }

    /// Drops what was prepared where nobody waits for it: files of a version that is not needed any more may be deleted with
    /// it.
    fn drop_aside(&mut self, prepared: Prepared) {
        if prepared.is_staged() {
            self.chores.push(move || drop(prepared));
        }
    }

    /// Keeps the list of what is to run on the disk; the newest list counts.
    pub(super) fn keep(&mut self, plugins: Vec<PluginConfig>, now: Millis) {
        self.to_keep = Some(plugins);
        self.write_kept(now);
    }

    fn write_kept(&mut self, now: Millis) {
        if self.keeping || self.keep_at.is_some_and(|due| due > now) {
            return;
        }
        self.keep_at = None;
        let lists = (self.to_keep.take(), mem::take(&mut self.to_note));
        if matches!(lists, (None, false)) {
            return;
        }
        let (preparer, events) = (Arc::clone(&self.preparer), self.events.clone());
        let started = blocking::start(lists, move |(to_keep, to_note)| {
            if let Some(Err(error)) = to_keep.map(|plugins| plugin::write_kept(&preparer.workdir, &plugins)) {
                log::error!("the list of plugins cannot be kept for a start without a server: {error}");
            }
            if to_note && let Err(error) = preparer.newest.write() {
                log::error!("the newest versions cannot be kept; after its end the agent will not know them: {error}");
            }
            let _ = events.send(PluginEvent::Kept);
        });
        match started {
            Ok(()) => self.keeping = true,
            Err(refused) => {
                (self.to_keep, self.to_note) = refused.input;
                self.keep_at = Some(now + blocking::RETRY_MS);
            }
        }
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
            Ok(Spawned { mut child, pid, pipes, stderr, limits, groups }) => {
                let own = Own::plugin(pid);
                self.kin.join(mark, pid);
                log::info!("plugin {} version {} started as process {pid}", config.name, config.version);
                self.to_note |= self.preparer.note_started(config);
                self.write_kept(now);
                let stats = Arc::new(PluginStats::default());
                let stderr = Stderr::new(stderr, config.name.clone(), Arc::clone(&stats), self.clock);
                let plug = pump.plug(config.name.clone(), origin, pipes, Arc::clone(&stats));
                self.open.insert(plug, Open::new(config.name.clone(), Arc::clone(&stats)));
                let running = Running {
                    version: config.version.clone(),
                    pid,
                    stats,
                    since: now,
                    meter: Meter::new(now),
                    limits,
                    groups,
                    plug,
                    stopping: false,
                };
                self.running.insert(config.name.clone(), running);
                let (name, events) = (config.name.clone(), self.events.clone());
                tokio::spawn(async move {
                    let (ended, last_words) = stderr.follow(child.wait()).await;
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

    /// Takes a plugin's directory from its place at once, so that the plugin may come again, and has it deleted.
    pub(super) fn remove(&mut self, name: &PluginName) {
        let directory = self.directory(name);
        match plugin::take_away(&directory) {
            Ok(None) => {}
            Ok(Some(away)) => {
                log::info!("plugin {name} is removed");
                logging::audit(&Event::new(Kind::Plugin, name.as_str(), "removed"));
                self.delete(vec![away]);
            }
            Err(error) => log::error!("plugin {name} cannot be removed: {}: {error}", directory.display()),
        }
    }

    /// Deletes these, and what could not be deleted before, in its time.
    pub(super) fn delete(&mut self, paths: Vec<PathBuf>) {
        self.litter.extend(paths);
        // What does not fit is found again by the next start.
        self.litter.truncate(MAX_LITTER);
        if self.deleting || self.litter.is_empty() {
            return;
        }
        self.deleting = true;
        let (mut paths, events) = (mem::take(&mut self.litter), self.events.clone());
        self.chores.push(move || {
            paths.retain(|path| match remove_tree(path, &|| true) {
                Ok(()) => false,
                Err(error) => {
                    log::warn!("{} cannot be deleted and is tried again: {error}", path.display());
                    true
                }
            });
            let _ = events.send(PluginEvent::Deleted(paths));
        });
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
            PluginEvent::Kept => {
                self.keeping = false;
                self.write_kept(now);
                None
            }
            PluginEvent::Deleted(failed) => {
                self.deleting = false;
                let came_meanwhile = mem::replace(&mut self.litter, failed);
                if !came_meanwhile.is_empty() {
                    self.delete(came_meanwhile);
                }
                None
            }
            PluginEvent::Exited(name, how, last_words) => {
                if let Some(running) = self.running.remove(&name) {
                    // The agent complains of one that was not asked to end.
                    match running.stopping {
                        true => log::info!("plugin {name} (process {}) {how}", running.pid),
                        false => self.deaths += 1,
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

    /// A step of a preparation is over.
    fn handle_step(
        &mut self,
        id: Preparation,
        config: PluginConfig,
        step: Step,
        result: Result<Option<Prepared>, PrepareError>,
    ) -> Option<Outcome> {
        self.lane(step).at_work -= 1;
        self.set_to_work(step);
        if self.preparing.remove(&id).is_none() {
            // Nobody wants it any more.
            result.into_iter().flatten().for_each(|prepared| self.drop_aside(prepared));
            return None;
        }
        match result {
            Ok(Some(prepared)) => {
                self.ready.insert(id, prepared);
                Some(Outcome::Prepared(config.name, id))
            }
            Ok(None) => {
                self.downloads.waiting.push_back((id, config));
                self.set_to_work(Step::Download);
                None
            }
            Err(why) => {
                logging::audit(&Event::new(Kind::Refused, &format!("plugin {}", config.name), &why.to_string()));
                Some(Outcome::NotPrepared(config.name, id, why))
            }
        }
    }

    /// The pump has read a plugin's pipes to their ends.
    pub(super) fn handle_closed(&mut self, plug: PlugId) {
        if let Some(open) = self.open.remove(&plug) {
            self.past += open.stats.tally();
            self.past_stderr += open.stats.stderr_left_out();
        }
    }

    /// Frames that were no records, of whom, why, and since when; each is told once.
    pub(super) fn take_lost_frames(&mut self) -> Vec<(PluginName, Cause, u64, i64)> {
        let mut lost = Vec::new();
        for Open { name, stats, told, told_at } in self.open.values_mut() {
            let (before, since) = (mem::replace(told, stats.tally()), mem::replace(told_at, clock::unix_seconds()));
            let more = [
                (Cause::FrameTooLong, told.too_long - before.too_long),
                (Cause::FrameInvalid, told.invalid - before.invalid),
                (Cause::ReservedType, told.reserved_type - before.reserved_type),
                (Cause::NoFields, told.no_fields - before.no_fields),
                (Cause::FrameTruncated, told.truncated - before.truncated),
            ];
            lost.extend(
                more.into_iter()
                    .filter(|(_, frames)| *frames > 0)
                    .map(|(cause, frames)| (name.clone(), cause, frames, since)),
            );
        }
        lost
    }

    /// What all plugins have sent since the agent started.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = self.past;
        self.open.values().for_each(|open| tally += open.stats.tally());
        tally
    }

    /// Bytes of standard error that were not written, of all plugins since the agent started.
    pub(super) fn stderr_left_out(&self) -> u64 {
        self.past_stderr + self.open.values().map(|open| open.stats.stderr_left_out()).sum::<u64>()
    }

    /// Processes that have ended without being asked to, since the agent started.
    pub(super) fn deaths(&self) -> u64 {
        self.deaths
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
        self.write_kept(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        let due = [self.confiner.poll_timeout(), self.kin.poll_timeout(), self.chores.poll_timeout(), self.keep_at];
        due.into_iter().flatten().min()
    }

    pub(super) fn get(&self, name: &PluginName) -> Option<&Running> {
        self.running.get(name)
    }

    pub(super) fn sample_rates(&mut self, now: Millis) {
        for running in self.running.values_mut() {
            running.meter.sample(now, running.sent());
        }
    }

    pub(super) fn directory(&self, name: &PluginName) -> PathBuf {
        plugin::directory(&self.preparer.workdir, name)
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
