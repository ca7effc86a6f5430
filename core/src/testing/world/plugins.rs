//! Plugins: their processes, what they write, and the pump between them and the intake.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use elklet_proto::grpc::Task;

use super::World;
use super::agenda::Happening;
use crate::command::{PluginConfig, PluginName};
use crate::dispatch::{PluginAction, Preparation, STOP_TIMEOUT_MS};
use crate::record::Record;
use crate::record::intake::{Lane, Origin, Wake};
use crate::record::manifest::Source;
use crate::testing::message::own_record;
use crate::testing::random::Draw;
use crate::time::Millis;

/// Records that a pipe holds.
const PIPE_RECORDS: usize = 64;

/// Data types of plugins' records begin here; each plugin has one for each lane.
const DATA_TYPES: i32 = 3_000;

/// A plugin, as far as the world decides about it.
#[derive(Debug, Default)]
pub(super) struct Plugin {
    /// Processes of this version die soon, until then.
    pub(super) loops: Option<(String, u64, Millis)>,
    /// The version that ran last.
    in_place: Option<String>,
    /// When the agent was told of the version that is wanted now, if that version has not run since.
    pub(super) news: Option<Millis>,
}

/// A process of a plugin, and its pipes.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) plugin: usize,
    name: PluginName,
    pub(super) version: String,
    source: Source,
    /// Its series in each lane.
    series: [u32; 2],
    /// What lies in its pipes, by the bytes that pad it.
    pipes: [VecDeque<usize>; 2],
    pub(super) is_alive: bool,
    stopped_at: Option<Millis>,
    /// Tasks that it has not read.
    tasks: Vec<String>,
    is_closing: bool,
}

impl Process {
    pub(super) fn series(&self, lane: usize) -> u32 {
        self.series[lane]
    }

    pub(super) fn is_closed(&self) -> bool {
        !self.is_alive && self.pipes.iter().all(VecDeque::is_empty)
    }
}

const LANES: [Lane; 2] = [Lane::Bulk, Lane::Urgent];

/// The plugin of this name.
pub(super) fn plugin_of(name: &PluginName) -> usize {
    name.as_str().strip_prefix('p').and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl World {
    pub(super) fn carry_out_plugin(&mut self, action: PluginAction) {
        match action {
            PluginAction::Prepare(id, config) => self.prepare(id, &config),
            PluginAction::Forget(id) => {
                self.ready.retain(|ready| *ready != id);
            }
            PluginAction::Spawn(id, config) => self.spawn(id, &config),
            PluginAction::Stop(name) => {
                let now = self.agenda.now;
                let ms = self.setup.plugins[plugin_of(&name)].stop_ms;
                if let Some(process) = self.process_of(&name) {
                    self.processes.entry(process).and_modify(|process| process.stopped_at = Some(now));
                    if now >= self.stubborn_until {
                        self.agenda.after(ms, Happening::PluginExits { process, asked: true });
                    }
                }
            }
            PluginAction::Kill(name) => {
                let now = self.agenda.now;
                if let Some(process) = self.process_of(&name) {
                    let stopped = self.processes.get(&process).and_then(|process| process.stopped_at);
                    if stopped.is_none_or(|at| now.since(at) < STOP_TIMEOUT_MS) {
                        self.fail("a plugin has its time to end before it is killed", name.as_str());
                    }
                    let ms = self.random.between(1, 10);
                    self.agenda.after(ms, Happening::PluginExits { process, asked: true });
                }
            }
            PluginAction::Remove(name) => {
                if self.process_of(&name).is_some() {
                    self.fail("a plugin's files are removed when its process has ended", name.as_str());
                }
            }
            PluginAction::Keep(kept) => self.kept = kept,
            PluginAction::ForwardTask(name, task) => self.forward(&name, task),
        }
    }

    fn process_of(&self, name: &PluginName) -> Option<u32> {
        self.processes.iter().find(|(_, process)| process.is_alive && process.name == *name).map(|(id, _)| *id)
    }

    fn prepare(&mut self, id: Preparation, config: &PluginConfig) {
        let usual = self.setup.plugins[plugin_of(&config.name)].prepare_ms;
        let now = self.agenda.now;
        // What ran last is in its place, and need not be fetched.
        let is_there = self.plugins[plugin_of(&config.name)].in_place.as_ref() == Some(&config.version);
        let is_slow = !is_there && now < self.slow_downloads_until;
        let slow = if is_slow { self.random.between(5_000, 40_000) } else { 0 };
        let works = is_there || now >= self.no_preparations_until;
        let (life, name) = (self.life, config.name.clone());
        self.agenda.after(usual + slow, Happening::Prepared { life, name, id, works });
    }

    /// What was given up is reported nevertheless, and is to be ignored.
    pub(super) fn handle_prepared(&mut self, name: &PluginName, id: Preparation, works: bool) {
        if works {
            self.ready.push(id);
            self.tell(|agent, now| agent.handle_prepared(name, id, now));
        } else {
            self.tell(|agent, now| agent.handle_preparation_failed(name, id, "it cannot be fetched", now));
        }
    }

    fn spawn(&mut self, id: Preparation, config: &PluginConfig) {
        let now = self.agenda.now;
        let name = &config.name;
        let is_ready = self.ready.iter().position(|ready| *ready == id).map(|at| self.ready.swap_remove(at)).is_some();
        if !is_ready {
            self.fail("only what was prepared is started", name.as_str());
        }
        if self.process_of(name).is_some() {
            self.fail("a plugin has one process", name.as_str());
        }
        self.check_start(plugin_of(name), &config.version);
        if now < self.no_spawns_until {
            self.note(|| format!("plugin {name} cannot be started"));
            return self.tell(|agent, now| agent.handle_spawn_failed(name, "it cannot be started", now));
        }
        self.note(|| format!("plugin {name} starts as version {}", config.version));
        let plugin = plugin_of(name);
        let data_type = DATA_TYPES + 2 * i32::try_from(plugin).unwrap_or(0);
        let series = [0, 1].map(|lane| self.account.open(LANES[lane], data_type + i32::try_from(lane).unwrap_or(0)));
        let process = self.next_process;
        self.next_process += 1;
        let version = config.version.clone();
        self.plugins[plugin].in_place = Some(version.clone());
        if self.center.wanted(plugin).as_ref() == Some(&version) {
            self.plugins[plugin].news = None;
        }
        if let Some((_, ms, _)) = self.plugins[plugin].loops.as_ref().filter(|l| l.0 == version && now < l.2) {
            self.agenda.after(*ms, Happening::PluginExits { process, asked: false });
        }
        let source = self.sources.source(name);
        self.processes.insert(
            process,
            Process {
                plugin,
                name: name.clone(),
                version,
                source,
                series,
                pipes: [VecDeque::new(), VecDeque::new()],
                is_alive: true,
                stopped_at: None,
                tasks: Vec::new(),
                is_closing: false,
            },
        );
        self.agenda.after(1, Happening::PluginWrites { process });
    }

    pub(super) fn handle_writes(&mut self, process: u32) {
        let Some(plugin) = self.processes.get(&process).filter(|it| it.is_alive).map(|it| it.plugin) else { return };
        let setup = self.setup.plugins[plugin].clone();
        // While servers die of a record, others have to arrive for it to be found.
        if self.is_calm && !self.is_poisoned() {
            return;
        }
        for _ in 0..setup.records {
            let lane = usize::from(self.random.chance(setup.urgent_percent));
            self.write_record(process, lane, setup.padding);
        }
        self.drain(process);
        let every_ms = if self.is_calm { setup.every_ms.max(1_000) } else { setup.every_ms };
        let ms = self.random.between(every_ms / 2, every_ms * 3 / 2);
        self.agenda.after(ms, Happening::PluginWrites { process });
    }

    /// The process of a plugin writes some records at once, as far as its pipe takes them.
    pub(super) fn burst(&mut self, plugin: usize, records: u64, lane: usize, padding: usize) {
        let process = self.processes.iter().find(|(_, it)| it.is_alive && it.plugin == plugin).map(|(id, _)| *id);
        let Some(process) = process else { return };
        for _ in 0..records {
            self.write_record(process, lane, padding);
            self.drain(process);
        }
    }

    fn write_record(&mut self, process: u32, lane: usize, padding: usize) {
        if let Some(process) = self.processes.get_mut(&process)
            && process.pipes[lane].len() < PIPE_RECORDS
        {
            process.pipes[lane].push_back(padding);
        }
    }

    /// Moves what lies in a process's pipes into the intake, as far as there is room, the urgent lane first.
    fn drain(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(host) = &mut self.host else { return };
        let may_drop = self.setup.plugins[process.plugin].may_drop;
        let mut wake = Wake::Unneeded;
        for lane in [1, 0] {
            while let Some(&padding) = process.pipes[lane].front().filter(|_| !host.is_held || may_drop) {
                let series = process.series[lane];
                let origin = Origin { source: process.source, may_drop };
                let id = self.account.next(series);
                let text = &self.padding[..padding.min(self.padding.len())];
                let body = &mut self.body;
                own_record(id, self.account.data_type(series), text, |record| {
                    body.resize(record.encoded_len(), 0);
                    record.write(body);
                });
                let Ok(record) = Record::parse(body) else { break };
                match host.intake.push(LANES[lane], origin, &record) {
                    Ok(pushed) => wake = wake.max(pushed),
                    Err(_) => break,
                }
                self.account.accept(series);
                process.pipes[lane].pop_front();
            }
        }
        self.rouse |= wake != Wake::Unneeded;
        if process.is_closed() && !core::mem::replace(&mut process.is_closing, true) {
            let ms = self.random.between(0, 3);
            self.agenda.after(ms, Happening::PipesClosed { process: id });
        }
    }

    /// There is room in the intake again.
    pub(super) fn handle_resume(&mut self) {
        let all: Vec<u32> = self.processes.keys().copied().collect();
        all.into_iter().for_each(|process| self.drain(process));
    }

    pub(super) fn handle_exits(&mut self, id: u32, is_asked: bool) {
        let Some(process) = self.processes.get_mut(&id).filter(|process| process.is_alive) else { return };
        if !is_asked && self.is_calm {
            return;
        }
        process.is_alive = false;
        let name = process.name.clone();
        self.note(|| format!("the process of plugin {name} ends{}", if is_asked { "" } else { " unasked" }));
        self.tell(|agent, now| agent.handle_exited(&name, "exited with code 1", "", now));
        self.drain(id);
    }

    pub(super) fn handle_pipes_closed(&mut self, id: u32) {
        let Some(process) = self.processes.remove(&id) else { return };
        for token in process.tasks {
            self.tell(|agent, _| agent.handle_task_failed(token, "the plugin has ended without reading it"));
        }
        self.tell(|agent, _| agent.handle_pipes_closed());
    }

    fn forward(&mut self, name: &PluginName, task: Task) {
        self.check_task(name.as_str(), task.data_type);
        let Some(id) = self.process_of(name) else {
            return self.fail("tasks are forwarded to plugins that run", name.as_str());
        };
        let ms = self.processes.get(&id).map_or(0, |process| self.setup.plugins[process.plugin].reads_ms);
        if let Some(process) = self.processes.get_mut(&id) {
            process.tasks.push(task.token.clone());
        }
        self.agenda.after(ms, Happening::TaskRead { process: id, token: task.token });
    }

    pub(super) fn handle_task_read(&mut self, id: u32, token: &str) {
        let Some(process) = self.processes.get_mut(&id).filter(|process| process.is_alive) else { return };
        if let Some(at) = process.tasks.iter().position(|task| task == token) {
            process.tasks.swap_remove(at);
            self.answer(token);
        }
    }

    /// Every plugin that is wanted and allowed runs by the version that is wanted, and no other does; or what is wrong.
    pub(super) fn check_plugins(&self) -> Result<(), String> {
        for plugin in 0..self.plugins.len() {
            let alive = self.processes.values().filter(|process| process.is_alive && process.plugin == plugin);
            let runs: Vec<&str> = alive.map(|process| &*process.version).collect();
            let wanted = self.allowed(plugin);
            if runs != wanted.iter().map(String::as_str).collect::<Vec<_>>() {
                let wanted = wanted.unwrap_or_else(|| "none".to_string());
                return Err(format!("of plugin p{plugin} versions {runs:?} run, and {wanted} is wanted"));
            }
        }
        Ok(())
    }
}
