//! What a schedule's events do to the world, and the calm that follows them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use elklet_proto::grpc;
use prost::Message as _;

use super::World;
use super::agenda::{Happening, Manner, Packet};
use super::policy::{PLUGIN_TASK, hash_of};
use crate::command::AGENT_NAME;
use crate::link::End;
use crate::testing::message::Id;
use crate::testing::random::Draw;
use crate::testing::schedule::{DiskFault, Event, Request, Rules, Silent, TooLarge, Update};
use crate::time::Millis;

/// What the servers ask for: which plugins, and which version of the agent.
#[derive(Debug, Default)]
pub(super) struct Center {
    /// Versions of the plugins that are wanted.
    plugins: Vec<Option<u64>>,
    versions: u64,
    agent: Option<(String, Update)>,
    tokens: u64,
}

impl Center {
    pub(super) fn new(plugins: usize) -> Self {
        Self { plugins: (0..plugins).map(|_| Some(0)).collect(), ..Self::default() }
    }

    /// The version of a plugin that is wanted.
    pub(super) fn wanted(&self, plugin: usize) -> Option<String> {
        self.plugins[plugin].map(|version| format!("1.{version}"))
    }

    pub(super) fn is_deaf(&self, version: &str) -> bool {
        self.agent.as_ref().is_some_and(|(named, update)| named == version && *update == Update::Deaf)
    }

    pub(super) fn update_works(&self) -> bool {
        self.agent.as_ref().is_some_and(|(_, update)| *update != Update::Fails)
    }

    /// The version of the agent that is wanted, if one is named.
    pub(super) fn agent(&self) -> Option<&str> {
        self.agent.as_ref().map(|(version, _)| &**version)
    }

    /// The bytes of a command with all of that.
    pub(super) fn command(&self) -> Vec<u8> {
        let entry = |name: String, version: String| grpc::Config {
            name,
            sha256: hash_of(&version),
            version,
            ..grpc::Config::default()
        };
        let plugins = (0..self.plugins.len()).filter_map(|plugin| Some((plugin, self.wanted(plugin)?)));
        let mut configs: Vec<_> = plugins.map(|(plugin, version)| entry(format!("p{plugin}"), version)).collect();
        configs.extend(self.agent.iter().map(|(version, _)| entry(AGENT_NAME.to_string(), version.clone())));
        if configs.is_empty() {
            // A server without policy sends nothing at all, which changes nothing; this one wants none of the plugins.
            configs.push(entry("none".to_string(), "0".to_string()));
        }
        grpc::Command { configs, ..grpc::Command::default() }.encode_to_vec()
    }

    fn task(&mut self, request: Request) -> Vec<u8> {
        self.tokens += 1;
        let token = format!("t{}", self.tokens);
        let (data_type, object_name, data) = match request {
            Request::Plugin(plugin) => (PLUGIN_TASK, format!("p{plugin}"), String::new()),
            Request::Unknown => (PLUGIN_TASK, "nobody".to_string(), String::new()),
            Request::Upload(ms, works) => {
                let works = if works { "works" } else { "fails" };
                (1050, AGENT_NAME.to_string(), format!(r#"{{"path":"{ms} {works}","buf_size":1}}"#))
            }
            Request::Metadata(true) => (1051, AGENT_NAME.to_string(), r#"{"idc":"x"}"#.to_string()),
            Request::Metadata(false) => (1051, AGENT_NAME.to_string(), "{}".to_string()),
            Request::Shutdown => (1060, AGENT_NAME.to_string(), String::new()),
            Request::Nonsense => (4_242, AGENT_NAME.to_string(), String::new()),
        };
        let task = Some(grpc::Task { data_type, object_name, data, token });
        grpc::Command { task, ..grpc::Command::default() }.encode_to_vec()
    }
}

impl World {
    pub(super) fn handle_event(&mut self, event: &Event) {
        let now = self.agenda.now;
        let until = now + event.lasts_ms();
        self.note(|| event.to_string());
        if event.lasts_ms() > 0 {
            self.agenda.at(until, Happening::Lapse);
        }
        let later = |moment: &mut Millis| *moment = until.max(*moment);
        match *event {
            Event::Silence { server, silent, .. } => {
                for (_, path) in self.paths.iter_mut().enumerate().filter(|(at, _)| server.is_none_or(|s| s == *at)) {
                    if silent != Silent::ToAgent {
                        later(&mut path.no_way_there);
                    }
                    if silent != Silent::ToServer {
                        later(&mut path.no_way_back);
                    }
                }
            }
            Event::Slow { server, delay_ms, bytes_per_ms, .. } => {
                let path = &mut self.paths[server];
                (path.slow_ms, path.bytes_per_ms) = (delay_ms, bytes_per_ms);
                later(&mut path.slow_until);
            }
            Event::Reset => {
                if let Some(id) = self.current() {
                    self.send(id, Packet::End { end: End::Unexplained, how: Manner::Once });
                    self.send(id, Packet::Reset);
                }
            }
            Event::NoDials { server, why, .. } => {
                for (_, path) in self.paths.iter_mut().enumerate().filter(|(at, _)| server.is_none_or(|s| s == *at)) {
                    path.no_dials = Some((why, until));
                }
            }
            Event::NoDiscovery { .. } => later(&mut self.no_discovery_until),
            Event::ServerKilled { server, away_ms } => self.kill_server(server, away_ms),
            Event::HostDies { server, away_ms } => self.kill_host(server, away_ms),
            Event::ServerStops { server, .. } => later(&mut self.servers[server].stopped_until),
            Event::AppStops { server, .. } => later(&mut self.servers[server].app_stopped_until),
            Event::AppSlow { server, work_ms, .. } => {
                self.servers[server].app_slow_ms = work_ms;
                later(&mut self.servers[server].app_slow_until);
            }
            Event::StreamEnds { server, how } => self.end_streams(server, how),
            Event::Poison { plugin, .. } => self.poison(plugin, until),
            Event::DiesOfNext { times, .. } => self.program.dies = (times, until),
            Event::Limit { bytes, how, .. } => {
                self.program.limit = Some((bytes, how, until));
                // A server that does not say why it ends streams may be dying of a single record that is too long for it.
                self.may_give_up |= how != TooLarge::Says;
            }
            Event::Disk { fault, .. } => {
                let disk = &mut self.disk;
                later(&mut disk.bad_until);
                match fault {
                    DiskFault::Full => later(&mut disk.full_until),
                    DiskFault::ReadOnly => later(&mut disk.read_only_until),
                    DiskFault::NoThread => later(&mut disk.no_thread_until),
                    DiskFault::Slow(ms) => {
                        disk.slow_ms = ms;
                        later(&mut disk.slow_until);
                    }
                }
            }
            Event::Vanish => {
                if !self.host.as_ref().is_some_and(|host| host.knows_disk) {
                    // There is nobody who could tell.
                    let lost: Vec<_> = self.disk.records().collect();
                    lost.into_iter().for_each(|id| self.account.excuse(id));
                }
                self.disk.vanish();
            }
            Event::Spoil { which } => {
                // If it is the last of all, an agent that starts cannot tell it from one that was never written whole.
                let spoilt = self.disk.spoil(which);
                let lost = spoilt.iter().flat_map(|message| message.records().filter_map(|record| record.id));
                lost.for_each(|id| self.account.excuse(id));
            }
            Event::Jam { which } => self.disk.jam(which),
            Event::Burst { plugin, records, urgent } => self.burst(plugin, records, usize::from(urgent), 0),
            Event::Long { plugin } => self.burst(plugin, 1, 0, self.setup.arena + 200),
            Event::Crash { plugin } => {
                let alive = self.processes.iter().find(|(_, it)| it.is_alive && it.plugin == plugin);
                if let Some(process) = alive.map(|(id, _)| *id) {
                    self.agenda.after(0, Happening::PluginExits { process, asked: false });
                }
            }
            Event::CrashLoop { plugin, lives_ms, .. } => {
                if let Some(version) = self.center.wanted(plugin) {
                    self.plugins[plugin].loops = Some((version, lives_ms, until));
                    let alive = self.processes.iter().find(|(_, it)| it.is_alive && it.plugin == plugin);
                    if let Some(process) = alive.map(|(id, _)| *id) {
                        self.agenda.after(lives_ms, Happening::PluginExits { process, asked: false });
                    }
                }
            }
            Event::NoSpawns { .. } => later(&mut self.no_spawns_until),
            Event::NoPreparations { .. } => later(&mut self.no_preparations_until),
            Event::SlowDownloads { .. } => later(&mut self.slow_downloads_until),
            Event::Stubborn { .. } => later(&mut self.stubborn_until),
            Event::Upgrade { plugin } => {
                self.center.versions += 1;
                self.center.plugins[plugin] = Some(self.center.versions);
                self.push_configuration();
            }
            Event::Remove { plugin, ms } => {
                self.center.plugins[plugin] = None;
                self.agenda.after(ms, Happening::Restore { plugin });
                self.push_configuration();
            }
            Event::Ask { request } => {
                let command = self.center.task(request);
                self.push_command(command);
            }
            Event::Terminate { again_ms, down_ms } => self.terminate(again_ms, down_ms),
            Event::Kill { down_ms } => self.kill_agent(down_ms),
            Event::Reload { without, spool } => self.reload(without, spool),
            Event::Suspend { ms } => self.suspend(ms),
            Event::Authority { authority, .. } => self.program.authority = Some((authority, until)),
            Event::Clock { ahead_s } => self.set_clock(ahead_s),
            Event::Policy { rules, ms } => self.set_rules(rules, ms),
            Event::Update { update } => {
                self.center.versions += 1;
                self.center.agent = Some((format!("2.{}", self.center.versions), update));
                self.push_configuration();
            }
        }
    }

    pub(super) fn restore(&mut self, plugin: usize) {
        if self.center.plugins[plugin].is_none() {
            self.center.versions += 1;
            self.center.plugins[plugin] = Some(self.center.versions);
            self.push_configuration();
        }
    }

    /// The next record of a plugin is one that servers die of.
    fn poison(&mut self, plugin: usize, until: Millis) {
        let alive = self.processes.values().find(|it| it.is_alive && it.plugin == plugin);
        if let Some(series) = alive.map(|process| process.series(0)) {
            let next = self.account.next(series);
            let number = next.number + u32::try_from(self.random.below(4)).unwrap_or(0);
            self.program.poison.push((Id { number, ..next }, until));
            self.poisoned += 1;
        }
    }

    /// A server to which the agent has a stream tells it what is wanted now.
    fn push_configuration(&mut self) {
        let command = self.center.command();
        self.push_command(command);
    }

    fn push_command(&mut self, command: Vec<u8>) {
        let registered = |id: &usize| self.connections[*id].server_open && self.connections[*id].far.is_registered;
        if let Some(id) = self.current().filter(registered) {
            self.send(id, Packet::Command(command.into()));
        }
    }

    /// Everything is good from now on.
    pub(super) fn calm(&mut self) {
        let now = self.agenda.now;
        self.note(|| "everything is good from now on".into());
        self.is_calm = true;
        for path in &mut self.paths {
            (path.no_way_there, path.no_way_back, path.slow_until) = (now, now, now);
            path.no_dials = None;
        }
        for server in &mut self.servers {
            (server.host_dead_until, server.stopped_until) = (now, now);
            (server.app_stopped_until, server.app_slow_until) = (now, now);
            server.back_at = now.min(server.back_at);
        }
        // Servers that die of a record do so for ever.
        let poison = core::mem::take(&mut self.program.poison).into_iter().map(|(id, _)| (id, Millis(u64::MAX)));
        self.program = super::server::Program { poison: poison.collect(), ..super::server::Program::default() };
        if !self.program.poison.is_empty() {
            // While servers die of a record, others have to arrive for it to be found.
            self.load_rules(Rules::ANYTHING);
        }
        self.disk.mend(now);
        self.mend_certificate();
        self.plugins.iter_mut().for_each(|plugin| plugin.loops = None);
        for until in [
            &mut self.no_discovery_until,
            &mut self.no_spawns_until,
            &mut self.no_preparations_until,
            &mut self.slow_downloads_until,
            &mut self.stubborn_until,
            &mut self.frozen_until,
        ] {
            *until = now.min(*until);
        }
        self.lapse();
        self.handle_resume();
        self.begin_waiting();
    }

    /// Faults may be over.
    pub(super) fn lapse(&mut self) {
        self.wake_servers();
        self.release_all();
    }
}
