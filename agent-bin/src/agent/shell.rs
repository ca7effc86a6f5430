//! The loop: it waits for any of the rooms, a signal or the timer, tells the agent, and hands its actions out.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use elklet_core::agent::{Action, After as End, Agent, Setup, Termination, UpdateAction};
use elklet_core::command::{PluginConfig, PluginName};
use elklet_core::delivery::losses::Loss;
use elklet_core::delivery::{Bounds, Unconfirmed, feed};
use elklet_core::dispatch::{PluginAction, TaskFailure};
use elklet_core::limits::LEDGER_BYTES;
use elklet_core::record::intake::Origin;
use elklet_core::record::manifest::Row;
use elklet_core::time::Millis;
use elklet_core::update::Trial;
use elklet_proto::data_type::{LOG, LOSS, TASK_RESULT};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task;

use super::beat::Beat;
use super::facts::{Facts, Rooms};
use super::link::Link;
use super::plugins::{Outcome, PluginEvent, Plugins};
use super::records::Records;
use super::spool::{SpoolEvent, SpoolFiles};
use super::{beat, insist, reload};
use crate::clock::Clock;
use crate::config::{Environment, Flags, Settings};
use crate::failure::Failure;
use crate::host::{AgentId, HostRoot, agent_id};
use crate::identity;
use crate::logging::reports;
use crate::logging::{Event, Kind};
use crate::net::{self, Certificates};
use crate::plugin::{Applied, PrepareError};
use crate::pump::intake::SharedIntake;
use crate::pump::{PumpEvent, PumpHandle};
use crate::status::Inquiry;
use crate::sys::alarm::Alarm;
use crate::sys::notify::Notifier;
use crate::sys::{children, inherited};
use crate::update::{After, Refusal, Updated, Updates};
use crate::upload::Uploads;
use crate::{clock, logging, plugin, version, workdir};

/// What the audit calls it when the server names another version of the agent.
const AGENT_UPDATE: &str = "update of the agent";

/// The plugins that ran last.
fn kept_plugins(workdir: &Path) -> Vec<PluginConfig> {
    match plugin::read_kept(workdir) {
        Ok(plugins) => {
            if !plugins.is_empty() {
                log::info!("{} plugins of the last configuration are started", plugins.len());
            }
            plugins
        }
        Err(why) => {
            log::error!("{why}; plugins are started when a server names them");
            Vec::new()
        }
    }
}

/// The agent's decisions, and the rooms that carry them out.
pub(super) struct Shell {
    pub(super) clock: Clock,
    alarm: Alarm,
    pub(super) agent: Agent<Bytes>,
    pub(super) link: Link,
    pub(super) plugins: Plugins,
    pump: PumpHandle,
    records: Records,
    spool: SpoolFiles,
    pub(super) uploads: Uploads,
    updates: Updates,
    pub(super) facts: Facts,
    beat: Beat,
    pub(super) flags: Flags,
    pub(super) environment: Environment,
    pub(super) settings: Settings,
    notifier: Notifier,
    /// What an update has brought in place.
    program: Option<PathBuf>,
    inbox: Inbox,
}

/// What the rooms report through.
struct Inbox {
    net: mpsc::Receiver<net::Event>,
    pump: mpsc::UnboundedReceiver<PumpEvent>,
    plugins: mpsc::UnboundedReceiver<PluginEvent>,
    spool: mpsc::UnboundedReceiver<SpoolEvent>,
    inquiries: mpsc::Receiver<Inquiry>,
}

impl Shell {
    pub(super) fn new(
        flags: Flags,
        environment: Environment,
        settings: Settings,
        is_on_trial: bool,
        own: Applied,
    ) -> Result<Self, Failure> {
        let clock = Clock::start();
        let now = clock.now();
        let alarm = Alarm::new(clock).map_err(|error| Failure::System(format!("the timer cannot be made: {error}")))?;
        let AgentId { id, source, not_stored } =
            agent_id(&HostRoot::live(), &settings.layout.workdir, settings.agent_id.as_deref())
                .map_err(|error| Failure::Settings(error.to_string()))?;
        log::info!("elklet {} starts as {id} ({source}) in {}", version(), settings.layout.workdir.display());
        if let Some(error) = not_stored {
            log::warn!("the id cannot be kept: {}/machine-id: {error}", settings.layout.workdir.display());
        }
        // The last agent may have been killed while it put a new one in its place.
        if let Err(error) = identity::settle(&settings.layout.certs) {
            log::warn!("{error}; the new certificate is used where it lies");
        }
        let certificates = Certificates::load(settings.layout.certs.clone(), &settings.server)
            .map_err(|error| Failure::Settings(settings.blame_certificates(error)))?;

        let intake = SharedIntake::new(settings.buffer.arena_bytes());
        let (pump_sender, pump_events) = mpsc::unbounded_channel();
        let start_pump = || PumpHandle::start(intake.clone(), clock, pump_sender.clone());
        let pump = insist("the pump", start_pump)
            .map_err(|error| Failure::System(format!("the pump cannot be started: {error}")))?;
        let mut records = Records::new(intake, settings.buffer.arena_bytes());
        records.set_sender(beat::sender(&id));
        let spool_directory = settings.layout.workdir.join(crate::spool::DIRECTORY);
        let (spool, spool_events) = SpoolFiles::new(spool_directory, records.sources().clone());
        let (plugins, plugin_events) = Plugins::new(&settings, clock);
        let (link, net_events) = Link::new(certificates, &settings, now);
        let (facts, inquiries) = Facts::new(id, &settings, own, now);
        let setup = Setup {
            version: version().to_owned(),
            endpoints: reload::endpoints(&settings.server),
            timing: settings.server.timing(),
            bounds: Bounds { memory: LEDGER_BYTES, spool: settings.spool.bytes() },
            replay_ms: settings.buffer.replay_ms(),
            trial: is_on_trial.then(|| Trial::new(now, settings.update.hold_ms(), settings.update.trial_ms())),
            seed: RandomState::new().build_hasher().finish(),
        };
        let mut shell = Self {
            clock,
            alarm,
            agent: Agent::new(setup, now),
            link,
            plugins,
            pump,
            records,
            spool,
            uploads: Uploads::default(),
            updates: Updates::new(&settings),
            facts,
            beat: Beat::new(&settings),
            flags,
            environment,
            settings,
            notifier: Notifier::from_environment(now),
            program: None,
            inbox: Inbox { net: net_events, pump: pump_events, plugins: plugin_events, spool: spool_events, inquiries },
        };
        // The last end may have come too suddenly for it.
        shell.plugins.delete(workdir::leftovers(&shell.settings.layout.workdir));
        Ok(shell)
    }

    pub(super) async fn run(mut self) -> std::io::Result<After> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut child = signal(SignalKind::child())?;
        inherited::take_signals();
        children::reap();
        self.agent.handle_policy(self.settings.policy.clone(), self.clock.now());
        self.agent.handle_start(kept_plugins(&self.settings.layout.workdir), self.clock.now());
        self.notifier.ready();
        loop {
            if let Some(after) = self.carry_out().await {
                return Ok(after);
            }
            self.alarm.set(self.poll_timeout());
            tokio::select! {
                Some(event) = self.inbox.net.recv() => self.handle_net(event),
                Some(event) = self.inbox.plugins.recv() => self.handle_plugin(event),
                Some(event) = self.inbox.pump.recv() => self.handle_pump(event),
                Some(event) = self.inbox.spool.recv() => {
                    let done = self.spool.handle_event(event);
                    self.agent.handle_spool(done, self.clock.now());
                }
                Some(inquiry) = self.inbox.inquiries.recv() => self.handle_inquiry(inquiry),
                // The agent looks at what is due before the next wait in any case.
                () = self.records.woken() => {}
                () = reports::news() => {}
                result = self.uploads.ended() => self.agent.handle_uploaded(result.map_err(|why| why.to_string())),
                updated = self.updates.ended(&self.settings) => self.handle_updated(updated),
                _ = terminate.recv() => self.handle_terminate("SIGTERM"),
                _ = interrupt.recv() => self.handle_terminate("SIGINT"),
                _ = hangup.recv() => {
                    self.notifier.reloading();
                    self.reload();
                    self.notifier.ready();
                }
                _ = child.recv() => children::reap(),
                () = self.alarm.rung() => {}
            }
        }
    }

    /// Lets time pass, and does all that the agent asks for; what is to become of the process, once it has ended.
    async fn carry_out(&mut self) -> Option<After> {
        let now = self.clock.now();
        self.link.tell_credit(&mut self.agent, now);
        self.plugins.handle_timeout(now);
        self.agent.handle_timeout(now);
        self.report_errors();
        while let Some(action) = self.agent.poll_action(self.records.level(), now) {
            match action {
                Action::Link(action) => self.link.carry_out(action, &self.settings, &mut self.agent, now),
                Action::Plugin(action) => self.carry_out_plugin(action, now),
                Action::Delivery(action) => self.carry_out_delivery(action, now).await,
                Action::Beat => self.beat(now),
                Action::Renew => self.renew(now),
                Action::Task(task) => self.carry_out_task(task, now),
                Action::AbortUpload => self.uploads.abort(),
                Action::Update(action) => self.carry_out_update(action),
                Action::Answer(report) => self.report(&report),
                Action::Forbid(plugin, why) => {
                    log::warn!("plugin {plugin}: {why}");
                    logging::audit(&Event::new(Kind::Refused, &format!("plugin {plugin}"), &why.to_string()));
                }
                Action::Refuse(what) => {
                    log::warn!("{what}");
                    logging::audit(&Event::new(Kind::Refused, "entry", &what));
                }
                Action::Complain(what) => log::warn!("{what}"),
                Action::Exit(end) => return Some(self.leave(end)),
            }
        }
        self.link.want_credit(self.agent.wanted_credit());
        self.link.tell_wait(self.agent.session().waits_until(), now);
        self.notifier.handle_timeout(|| self.pump.prove(), now);
        None
    }

    fn poll_timeout(&self) -> Option<Millis> {
        let due = self.agent.poll_timeout(self.records.level(), self.clock.now());
        due.into_iter().chain(self.plugins.poll_timeout()).chain(self.notifier.poll_timeout()).min()
    }

    fn carry_out_plugin(&mut self, action: PluginAction, now: Millis) {
        match action {
            PluginAction::Prepare(id, config) => self.plugins.prepare(id, config),
            PluginAction::Forget(id) => self.plugins.forget(id),
            PluginAction::Spawn(id, config) => {
                let origin = self.origin(&config.name);
                if let Err(why) = self.plugins.spawn(id, &config, origin, &mut self.pump, now) {
                    self.agent.handle_spawn_failed(&config.name, &why, now);
                }
            }
            PluginAction::Stop(name) => self.plugins.stop(&name, &self.pump),
            PluginAction::Kill(name) => self.plugins.kill(&name),
            PluginAction::Remove(name) => self.plugins.remove(&name),
            PluginAction::Keep(plugins) => self.plugins.keep(plugins, now),
            PluginAction::ForwardTask(name, task) => {
                if let Err((token, why)) = self.plugins.forward(&name, task, &self.pump) {
                    self.agent.handle_task_failed(token, &why);
                }
            }
        }
    }

    async fn carry_out_delivery(&mut self, action: feed::Action<Bytes>, now: Millis) {
        match action {
            feed::Action::Take { apart } => {
                if self.records.take() {
                    self.pump.resume();
                }
                self.records.batches(apart).into_iter().for_each(|batch| self.agent.handle_batch(batch));
            }
            feed::Action::Send(message) => {
                self.link.send(message);
                // The stream writes this message before the next is compressed, which takes milliseconds.
                task::yield_now().await;
            }
            feed::Action::Cut { whole, limit } => {
                let (parts, refused) = self.records.cut(&whole, limit);
                self.agent.handle_cut(parts, &refused);
            }
            feed::Action::Spool { op, at_once } => {
                if let Err(op) = self.spool.begin(op, at_once) {
                    self.agent.handle_no_thread(op, now);
                }
            }
            feed::Action::Tell(losses) => losses.iter().for_each(|loss| self.tell_loss(loss)),
            feed::Action::Hold(hold) => {
                self.records.hold(hold);
                if !hold {
                    self.pump.resume();
                }
            }
        }
    }

    /// Makes a round of heartbeats, and does what is worth doing once a minute.
    fn beat(&mut self, now: Millis) {
        self.lose_frames();
        // What could not be deleted the last time.
        self.plugins.delete(Vec::new());
        self.updates.retry_put_back();
        self.sample_rates(now);
        self.link.look_after(&self.settings, now);
        self.tell_certificate(now);
        self.records.set_sender(beat::sender(self.facts.agent_id()));
        let Self { agent, link, records, plugins, uploads, settings, facts, beat, .. } = self;
        let snapshot = facts.gather(Rooms { agent, link, records, plugins, uploads, settings }, now);
        let lost = beat.write(&snapshot, records, now);
        lost.into_iter().for_each(|row| self.agent.handle_own_lost(row));
        self.agent.handle_batch(self.records.take_heartbeats());
    }

    fn handle_inquiry(&mut self, inquiry: Inquiry) {
        let now = self.clock.now();
        self.sample_rates(now);
        let Self { agent, link, records, plugins, uploads, settings, facts, .. } = self;
        inquiry.answer(&facts.gather(Rooms { agent, link, records, plugins, uploads, settings }, now));
    }

    fn sample_rates(&mut self, now: Millis) {
        self.facts.sample_rates(&self.agent, &self.plugins, now);
        self.plugins.sample_rates(now);
    }

    fn handle_net(&mut self, event: net::Event) {
        let configures = event.configures();
        let is_turn = matches!(event, net::Event::Opened(_) | net::Event::Ended(..));
        let event = match event {
            net::Event::Renewed(attempt, answer) => return self.handle_renewed(attempt, answer),
            net::Event::Installed(written) => return self.handle_installed(written),
            event => event,
        };
        self.link.handle_event(event, &mut self.agent, self.clock.now());
        if is_turn {
            self.notifier.status(&self.link.describe(self.agent.is_streaming()));
            self.tell_certificate(self.clock.now());
        }
        if configures {
            self.facts.warn_of_sections(&self.agent, &self.settings);
        }
    }

    fn handle_plugin(&mut self, event: PluginEvent) {
        let now = self.clock.now();
        match self.plugins.handle_event(event, &self.pump, now) {
            None => {}
            Some(Outcome::Prepared(name, id)) => self.agent.handle_prepared(&name, id, now),
            Some(Outcome::NotPrepared(name, id, PrepareError::OverQuota(over))) => {
                self.agent.handle_held_back(&name, id, &over.to_string(), now);
            }
            Some(Outcome::NotPrepared(name, id, why)) => {
                self.agent.handle_preparation_failed(&name, id, &why.to_string(), now);
            }
            Some(Outcome::Exited { name, how, last_words }) => {
                self.beat.handle_plugin_ended(name.as_str());
                self.agent.handle_exited(&name, &how, &last_words, now);
            }
        }
    }

    fn handle_pump(&mut self, event: PumpEvent) {
        match event {
            PumpEvent::Closed(plug) => {
                self.lose_frames();
                self.plugins.handle_closed(plug);
                self.agent.handle_pipes_closed();
            }
            PumpEvent::TaskRefused { token, reason } => self.agent.handle_task_failed(token, &reason),
        }
    }

    fn handle_terminate(&mut self, signal: &str) {
        self.notifier.stopping();
        match self.agent.handle_terminate(self.clock.now()) {
            Termination::InOrder => log::info!("{signal}: the agent ends in order"),
            Termination::AtOnce => {
                log::warn!("{signal} again: the agent ends at once");
                self.plugins.kill_all();
            }
        }
    }

    fn carry_out_update(&mut self, action: UpdateAction) {
        match action {
            UpdateAction::Install(config) => {
                let (what, sha256) = (format!("version {}", config.version), config.sha256.to_string());
                logging::audit(&Event { sha256: &sha256, ..Event::new(Kind::Update, &what, "asked for") });
                if let Err(refusal) = self.updates.want(config, &self.settings) {
                    let why = refusal.to_string();
                    logging::audit(&Event::new(Kind::Refused, AGENT_UPDATE, &why));
                    match refusal {
                        Refusal::SwitchedOff(_) => log::info!("{why}"),
                        _ => self.agent.handle_update_refused(why),
                    }
                }
            }
            UpdateAction::Keep => self.updates.keep(),
            UpdateAction::Commit => {
                log::info!("version {} has held a stream: it stays", version());
                self.updates.handle_stays();
            }
            UpdateAction::Reject => {
                let what = format!("version {}", version());
                logging::audit(&Event::new(Kind::Update, &what, "put back: it held no stream"));
                log::error!("{what} has not held a stream: the previous one comes again");
            }
        }
    }

    fn handle_updated(&mut self, updated: Updated) {
        let result = match updated {
            Updated::Cancelled => return,
            Updated::InPlace(program) => {
                if !self.agent.is_ending() {
                    let what = program.display().to_string();
                    logging::audit(&Event::new(Kind::Update, &what, "in place, and executed next"));
                    log::info!("{what} is another version now: the agent ends in order and becomes it");
                }
                self.program = Some(program);
                Ok(())
            }
            Updated::HandedOver => {
                if !self.agent.is_ending() {
                    let what = "Elkeid's own agent is in the place of this one, which ends for the service manager to start it";
                    logging::audit(&Event::new(Kind::Update, "elkeid-agent", what));
                    log::info!("{what}");
                }
                return self.agent.handle_shutdown(self.clock.now());
            }
            Updated::Failed { version, why } => {
                let why = format!("the update to version {version:.80} failed: {why}");
                logging::audit(&Event::new(Kind::Refused, AGENT_UPDATE, &why));
                Err(why)
            }
        };
        self.agent.handle_updated(result, self.clock.now());
    }

    /// Whose records a plugin's are, and what may become of them.
    fn origin(&self, name: &PluginName) -> Origin {
        let own = self.settings.plugin.get(name.as_str());
        Origin { source: self.records.source(name), may_drop: self.settings.plugins.may_drop(own) }
    }

    /// Counts what plugins sent that was no record.
    fn lose_frames(&mut self) {
        for (name, cause, frames, since) in self.plugins.take_lost_frames() {
            let (source, last) = (self.records.source(&name), clock::unix_seconds());
            let row = Row { source, data_type: 0, records: frames, first: since, last };
            self.agent.handle_lost_frames(cause, row);
        }
    }

    /// Hands over what was logged as a warning or an error.
    fn report_errors(&mut self) {
        if !self.agent.takes_reports() {
            return;
        }
        while let Some(report) = reports::take() {
            let suppressed = report.suppressed.to_string();
            let fields = [
                ("level", report.level),
                ("source", &report.source),
                ("msg", &report.text),
                ("suppressed", &suppressed),
            ];
            let told = if report.suppressed == 0 { &fields[..3] } else { &fields };
            self.push_own(LOG, report.timestamp, told.iter().copied());
        }
    }

    /// Answers a task that failed.
    fn report(&mut self, TaskFailure { token, message }: &TaskFailure) {
        log::warn!(target: reports::TOLD_OTHERWISE, "a task failed: {message} (token {token:?})");
        logging::audit(&Event { token, ..Event::new(Kind::Refused, "task", message) });
        let fields = [("token", &**token), ("status", "failed"), ("msg", message)];
        self.push_own(TASK_RESULT, clock::unix_seconds(), fields.into_iter());
    }

    /// Reports in the stream what was lost.
    fn tell_loss(&mut self, loss: &Loss) {
        let Row { source, data_type, records, first, last } = loss.row;
        let (plugin, cause) = (self.records.source_name(source), loss.cause.name());
        log::warn!(target: reports::TOLD_OTHERWISE, "lost: {records} records of {plugin:?}, data type {data_type}: {cause}");
        let numbers = [data_type.to_string(), records.to_string(), first.to_string(), last.to_string()];
        let [data_type, records, first, last] = numbers.each_ref().map(String::as_str);
        let fields = [
            ("cause", cause),
            ("plugin", &plugin),
            ("lost_data_type", data_type),
            ("records", records),
            ("first", first),
            ("last", last),
        ];
        self.push_own(LOSS, clock::unix_seconds(), fields.into_iter());
    }

    fn push_own<'f>(
        &mut self,
        data_type: i32,
        timestamp: i64,
        fields: impl Iterator<Item = (&'f str, &'f str)> + Clone,
    ) {
        if let Err(row) = self.records.push_own(data_type, timestamp, fields) {
            self.agent.handle_own_lost(row);
        }
    }

    /// The end is over: says what is left, and what becomes of the process.
    fn leave(&self, end: End) -> After {
        let records = self.plugins.tally().records;
        let Unconfirmed { memory_records, disk_records, .. } = self.agent.unconfirmed(self.records.level());
        match (memory_records, disk_records) {
            (0, 0) => log::info!("the agent ends; the server has taken all {records} records"),
            (0, kept) => log::info!("the agent ends; {kept} records wait on the disk for the next start"),
            (lost, kept) => log::warn!(
                "the agent ends; {lost} of {records} records are not known to have arrived, {kept} wait on the disk"
            ),
        }
        match (end, &self.program) {
            (End::BecomeUpdate, Some(program)) => After::Execute(program.clone()),
            (End::Exit | End::BecomeUpdate, _) => After::Exit,
            (End::PutBack, _) => {
                After::PutBack(format!("it held no stream within {} s", self.settings.update.trial_ms() / 1000))
            }
        }
    }
}
