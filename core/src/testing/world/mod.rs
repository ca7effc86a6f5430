//! The world around one agent: servers, the network, a disk, plugins, operators, and a clock that costs no time.
//!
//! The agent is the real one, and so is its intake. Everything else is as naive as can be. [`World::run`] goes from one happening to the
//! next, has the agent do what it wants after each, and looks whether what must hold does.

mod agenda;
mod checks;
mod disk;
mod events;
mod link;
mod operators;
mod plugins;
mod policy;
mod renewal;
mod server;
mod shell;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use self::agenda::{Agenda, Happening};
use self::disk::Disk;
use self::events::Center;
use self::link::{Connection, Path};
use self::plugins::{Plugin, Process};
use self::policy::Judged;
use self::renewal::Certificate;
use self::server::{Program, Server};
use self::shell::Host;
use super::account::Account;
use super::message::Message;
use super::random::Random;
use super::schedule::{Rules, Schedule, Setup, Timed, Way};
use super::{Failure, Outcome};
use crate::command::PluginConfig;
use crate::delivery::spool::{Place, Write};
use crate::dispatch::Preparation;
use crate::record::manifest::Sources;
use crate::time::Millis;

/// Actions that the agent may want at one moment.
const MAX_ACTIONS: u64 = 20_000;

pub(super) struct World {
    setup: Setup,
    events: Vec<Timed>,
    random: Random,
    agenda: Agenda,
    /// What has happened, in words, if anybody wants to know.
    story: Option<Vec<String>>,
    failure: Option<Failure>,
    is_calm: bool,
    is_done: bool,
    /// The agent is to be looked after now.
    rouse: bool,
    /// Actions since the clock has moved, and all passes.
    actions: u64,
    passes: u64,
    steps: u64,
    waiting_since: Millis,
    has_recovered: bool,

    host: Option<Host>,
    life: u32,
    version: String,
    /// The version before, while the one that runs is on trial.
    on_trial: Option<String>,
    failed_version: Option<String>,
    down_ms: u64,
    frozen_until: Millis,
    kept: Vec<PluginConfig>,
    spool_bytes: u64,
    shrunk_at: Millis,
    disk: Disk,
    /// The operation on the disk that is under way: where it writes, and what.
    op: Option<(Place, Box<[Write<Message>]>)>,
    /// Records that this operation has dropped, before the agent hears of it.
    dropping: u64,
    uploading: Option<String>,
    /// Tasks that have reached the agent: in which life, and how often they were answered.
    tasks: BTreeMap<String, (u32, u32)>,
    certificate: Option<Certificate>,
    /// What the owner's file allows.
    rules: Rules,
    judged: Judged,

    plugins: Vec<Plugin>,
    processes: BTreeMap<u32, Process>,
    next_process: u32,
    ready: Vec<Preparation>,
    sources: Sources,
    padding: String,
    body: Vec<u8>,
    told_versions: Vec<Option<String>>,
    no_spawns_until: Millis,
    no_preparations_until: Millis,
    slow_downloads_until: Millis,
    stubborn_until: Millis,

    connections: Vec<Connection>,
    paths: Vec<Path>,
    no_discovery_until: Millis,
    servers: Vec<Server>,
    program: Program,
    center: Center,
    account: Account,
    results: u64,
    /// Streams that servers have ended without a reason since the agent has started.
    unexplained_ends: u32,
    longest_life_ms: u64,
    /// Records that the agent had sent again after servers had taken them, when its batches were last within their bound.
    replayed: u64,
    may_forget: bool,
    /// When a server was killed last that has lost something.
    forgot_at: Option<Millis>,
    /// Records that servers die of.
    poisoned: u64,
    may_give_up: bool,
    /// When a server has died of a message last.
    died_at: Millis,
}

impl World {
    pub(super) fn new(schedule: &Schedule, tells: bool) -> Self {
        let setup = schedule.setup.clone();
        let server = || Server { is_up: true, ..Server::default() };
        let longest = setup.plugins.iter().map(|plugin| plugin.padding).max().unwrap_or(0);
        Self {
            random: Random(schedule.seed),
            agenda: Agenda::default(),
            story: tells.then(|| vec![setup.to_string()]),
            failure: None,
            is_calm: false,
            is_done: false,
            rouse: false,
            actions: 0,
            passes: 0,
            steps: 0,
            waiting_since: Millis(0),
            has_recovered: false,
            host: None,
            life: 0,
            version: "1.0".to_string(),
            on_trial: setup.is_on_trial.then(|| "0.9".to_string()),
            failed_version: None,
            down_ms: 1,
            frozen_until: Millis(0),
            kept: Vec::new(),
            spool_bytes: setup.spool,
            shrunk_at: Millis(0),
            disk: Disk::default(),
            op: None,
            dropping: 0,
            uploading: None,
            tasks: BTreeMap::new(),
            certificate: setup.certificate_s.map(Certificate::new),
            rules: Rules::ANYTHING,
            judged: Judged::default(),
            plugins: setup.plugins.iter().map(|_| Plugin::default()).collect(),
            processes: BTreeMap::new(),
            next_process: 0,
            ready: Vec::new(),
            sources: Sources::default(),
            padding: "x".repeat(longest.max(setup.arena + 200)),
            body: Vec::new(),
            told_versions: setup.plugins.iter().map(|_| None).collect(),
            no_spawns_until: Millis(0),
            no_preparations_until: Millis(0),
            slow_downloads_until: Millis(0),
            stubborn_until: Millis(0),
            connections: Vec::new(),
            paths: setup.servers.iter().map(|_| Path::default()).collect(),
            no_discovery_until: Millis(0),
            servers: setup.servers.iter().map(|_| server()).collect(),
            program: Program::default(),
            center: Center::new(setup.plugins.len()),
            account: Account::default(),
            results: 0,
            unexplained_ends: 0,
            longest_life_ms: 0,
            replayed: 0,
            may_forget: setup.forgets,
            forgot_at: None,
            poisoned: 0,
            may_give_up: false,
            died_at: Millis(0),
            events: schedule.events.clone(),
            setup,
        }
    }

    /// Goes through the whole schedule; gives what came of it, and the story if it was wanted.
    pub(super) fn run(mut self, calm_at: Millis) -> (Result<Outcome, Failure>, Vec<String>) {
        self.agenda.at(Millis(0), Happening::AgentStarts);
        for (index, timed) in self.events.iter().enumerate() {
            self.agenda.at(timed.at, Happening::Event(index));
        }
        self.agenda.at(calm_at, Happening::Calm);
        while self.failure.is_none() && !self.is_done {
            self.step();
        }
        let story = self.story.take().unwrap_or_default();
        let outcome = Outcome {
            ms: self.agenda.now.0,
            passes: self.passes,
            records: self.account.accepted,
            doubles: self.account.doubles,
            excused: self.account.excused,
            lost: self.account.lost(self.host.as_ref().map(|host| host.agent.losses())),
            streams: self.connections.iter().filter(|connection| connection.is_streaming).count() as u64,
            lives: u64::from(self.life),
            tasks: self.tasks.len() as u64,
        };
        (self.failure.map_or(Ok(outcome), Err), story)
    }

    /// Lets one thing happen, or the agent's own time come.
    fn step(&mut self) {
        self.steps += 1;
        let timeout = self.host.as_ref().and_then(|host| host.timeout).map(|due| due.max(self.frozen_until));
        let next = self.agenda.next_at().into_iter().chain(timeout).min();
        let Some(next) = next else {
            return self.fail("every moment has a next one", "nothing will ever happen again");
        };
        if next > self.agenda.now {
            self.agenda.now = next;
            self.actions = 0;
        }
        match self.agenda.pop(self.frozen_until) {
            Some(happening) => self.handle(happening),
            None => self.rouse |= timeout.is_some_and(|due| due <= self.agenda.now),
        }
        if self.rouse && self.agenda.now >= self.frozen_until {
            self.rouse = false;
            self.pass();
        }
    }

    fn handle(&mut self, happening: Happening) {
        let is_mine = |life: u32| life == self.life;
        match happening {
            Happening::Event(index) => {
                let event = self.events.get(index).map(|timed| timed.event.clone());
                match event {
                    // Who sleeps does nothing, and nobody can do anything to it.
                    Some(event) if event.is_on_the_host() && self.agenda.now < self.frozen_until => {
                        self.agenda.at(self.frozen_until, Happening::Event(index));
                    }
                    Some(event) => self.handle_event(&event),
                    None => {}
                }
            }
            Happening::Calm => self.calm(),
            Happening::Lapse => self.lapse(),
            Happening::AgentStarts => self.start_agent(),
            Happening::TerminateAgain { life } if is_mine(life) => self.signal(),
            Happening::Resolved { life, attempt, works } if is_mine(life) => {
                if works {
                    let named = self.named();
                    self.tell(|agent, now| agent.handle_resolved(attempt, named, now));
                } else {
                    self.tell(|agent, now| agent.handle_not_resolved(attempt, now));
                }
            }
            Happening::Syn { connection, lost } => self.handle_syn(connection, lost),
            Happening::Opened { connection } => self.handle_opened(connection),
            Happening::Written { connection } => self.handle_written(connection),
            Happening::Arrive { connection, packet } => self.handle_arrive(connection, packet),
            Happening::Release { connection, to_server } => self.handle_release(connection, to_server),
            Happening::GiveUp { connection } => self.handle_give_up(connection),
            Happening::AppDone { connection } => self.handle_app_done(connection),
            Happening::ServerNotices { connection } => {
                self.end_sleeper(connection);
                self.handle_notices(connection);
                if self.is_calm {
                    self.begin_waiting();
                }
            }
            Happening::Balance { connection } => self.handle_balance(connection),
            Happening::DiskDone { life, done } if is_mine(life) => self.handle_disk_done(*done),
            Happening::Prepared { life, name, id, works } if is_mine(life) => self.handle_prepared(&name, id, works),
            Happening::PluginWrites { process } => self.handle_writes(process),
            Happening::PluginExits { process, asked } => self.handle_exits(process, asked),
            Happening::PipesClosed { process } => self.handle_pipes_closed(process),
            Happening::Resume { life } if is_mine(life) => self.handle_resume(),
            Happening::TaskRead { process, token } => self.handle_task_read(process, &token),
            Happening::Uploaded { life, upload, works } if is_mine(life) => self.handle_uploaded(upload, works),
            Happening::Updated { life, update, works } if is_mine(life) => self.handle_updated(update, works),
            Happening::Certified { connection, request, answer } => self.answer_request(connection, request, answer),
            Happening::NotCertified { life, request } if is_mine(life) => self.handle_patience(request),
            Happening::Installed { life, written } if is_mine(life) => self.handle_installed(written),
            Happening::Allow => self.load_rules(Rules::ANYTHING),
            Happening::Restore { plugin } => self.restore(plugin),
            _ => {}
        }
    }

    /// Addresses that service discovery names.
    fn named(&self) -> usize {
        self.setup.servers.iter().filter(|server| server.way == Way::Discovered).count()
    }

    /// The agent does all that it wants to do now.
    fn pass(&mut self) {
        self.passes += 1;
        self.look_at_credit();
        let now = self.agenda.now;
        if let Some(host) = &mut self.host {
            host.agent.handle_timeout(now);
        }
        while let Some(host) = &mut self.host {
            let level = host.intake.level();
            let Some(action) = host.agent.poll_action(level, now) else { break };
            self.actions += 1;
            if self.actions > MAX_ACTIONS {
                return self.fail("what the agent wants at one moment has an end", &format!("it wants {action:?}"));
            }
            self.carry_out(action);
            if self.failure.is_some() {
                return;
            }
        }
        self.rouse = false;
        let Some(host) = &mut self.host else { return };
        host.timeout = host.agent.poll_timeout(host.intake.level(), now);
        match host.timeout {
            None => self.fail("every moment has a next one", "the agent waits for nothing"),
            Some(due) if due <= now => {
                self.fail("the agent waits for what is to come", &format!("it waits for {due:?} at {now:?}"));
            }
            Some(_) => self.check(),
        }
    }

    /// What must hold does not.
    fn fail(&mut self, rule: &'static str, what: &str) {
        let at = self.agenda.now;
        self.note(|| format!("FAILED: {rule}: {what}"));
        self.failure.get_or_insert(Failure { rule, at, what: what.to_string() });
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.agenda.now.0;
        if let Some(story) = &mut self.story {
            story.push(format!("{:>6}.{:03} s  {}", now / 1_000, now % 1_000, what()));
        }
    }
}
