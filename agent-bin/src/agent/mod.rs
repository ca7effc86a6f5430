//! The net thread: one loop that hears of everything that happens and carries out what the core decides.

mod beat;
mod counts;
mod cut;
mod delivery;
mod ending;
mod plugins;
mod reload;
mod reports;
mod stream;
mod tasks;
mod update;
mod watch;

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::time::Duration;

use elklet_core::command::PluginName;
use elklet_core::dispatch::{self, Dispatch};
use elklet_core::link::session::{Attempt, Session};
use elklet_core::record::intake::Origin;
use elklet_core::time::Millis;
use elklet_core::update::Trial;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::beat::{Beat, NetCounters};
use self::delivery::{Delivery, SpoolEvent};
use self::ending::Ending;
use self::plugins::{PluginEvent, Plugins};
use self::watch::Watch;
use crate::alarm::Alarm;
use crate::clock::Clock;
use crate::config::{Address, Environment, Flags, Settings};
use crate::host::{AgentId, HostRoot, agent_id};
use crate::net::{Certificates, Connector, Ends, Event, HalfOpen, Transfer};
use crate::pump::{PumpEvent, PumpHandle};
use crate::shared::SharedIntake;
use crate::update::{After, Updates};
use crate::upload::{Order, Uploads};
use crate::workdir::{self, WorkdirLock};
use crate::{blocking, children, inherited, logging, plugin, version};

/// Events of one attempt that may wait for the loop; commands beyond that stay with the server.
const EVENTS_AHEAD: usize = 32;

/// At the end, threads that write or fetch something are waited for this long.
const END_OF_THREADS: Duration = Duration::from_secs(2);

/// A pump that cannot be started is tried again this often, a second apart: by then it is better that somebody looks.
const PUMP_TRIES: u32 = 60;

/// Why the program cannot run.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was told something wrong: exit code 2.
    Settings(String),
    /// The system refuses what it needs: exit code 1.
    System(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Settings(text) | Self::System(text)) = self;
        f.write_str(text)
    }
}

/// Runs the agent until it is told to end, or to become another version; one that is on trial has to hold a stream.
///
/// # Errors
/// When it cannot begin. Once it runs, it goes on.
pub(crate) fn run(flags: Flags, environment: Environment, is_on_trial: bool) -> Result<After, Failure> {
    let settings = Settings::load(&flags, &environment).map_err(Failure::Settings)?;
    let workdir = settings.workdir.clone();
    let system = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Failure::System(format!("{what}: {error}"))
    };
    // Before anything is written there.
    let _lock = WorkdirLock::take(&settings.workdir).map_err(Failure::System)?;
    plugin::reserve_descriptors().map_err(system("/dev/null"))?;
    let adopting = children::adopt_orphans();
    logging::start(&settings.workdir, &settings.log).map_err(Failure::Settings)?;
    if let Err(error) = adopting {
        log::warn!("what plugins leave behind cannot be told from other processes: {error}");
    }
    settings.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    // The last end may have come too suddenly for it.
    plugin::end_earlier_lives(&workdir);
    workdir::tighten(&settings.workdir);
    let result = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(system("the runtime cannot be started"))
        .and_then(|runtime| {
            runtime.block_on(async {
                let agent = Agent::new(flags, environment, settings, is_on_trial)?;
                agent.run().await.map_err(system("signals cannot be caught"))
            })
        });
    // What is still being resolved, fetched or deleted then is not waited for.
    blocking::wait_for_quiet(END_OF_THREADS);
    plugin::end_all(&workdir);
    children::leave_orphans();
    workdir::clear(&workdir);
    if let Err(failure) = &result {
        log::error!("{failure}");
    }
    result
}

/// Starts the pump, and tries again where there is no thread for it just now.
fn insist(start: impl Fn() -> std::io::Result<PumpHandle>) -> std::io::Result<PumpHandle> {
    let mut tries = 0;
    loop {
        tries += 1;
        match start() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && tries < PUMP_TRIES => {
                if tries == 1 {
                    log::warn!("the pump cannot be started: {error}; it is tried again every second");
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            started => return started,
        }
    }
}

/// Begins with the plugins that ran last: a server may be long in coming.
fn with_kept_plugins(mut dispatch: Dispatch, workdir: &Path, now: Millis) -> Dispatch {
    match plugin::read_kept(workdir) {
        Ok(plugins) if plugins.is_empty() => {}
        Ok(plugins) => {
            log::info!("{} plugins of the last configuration are started", plugins.len());
            dispatch.handle_kept(plugins, now);
        }
        Err(why) => log::error!("{why}; plugins are started when a server names them"),
    }
    dispatch
}

struct Agent {
    clock: Clock,
    alarm: Alarm,
    session: Session,
    dispatch: Dispatch,
    delivery: Delivery,
    plugins: Plugins,
    pump: PumpHandle,
    beat: Beat,
    net: NetCounters,
    intake: SharedIntake,
    connector: Connector,
    flags: Flags,
    environment: Environment,
    settings: Settings,
    certificates: Certificates,
    /// When the certificates are looked at again if nothing else asks for it.
    certificates_due: Millis,
    discovered: Vec<Address>,
    /// The attempt that is alive, from its TCP connection to its stream.
    transfer: Option<Transfer>,
    /// What is being asked or connected to, and the number of that attempt.
    address: String,
    current: Option<Attempt>,
    /// The ends of its connection.
    ends: Option<Ends>,
    /// The moment of the next attempt, once the log has told it.
    told_wait: Option<Millis>,
    net_mode: &'static str,
    /// The server has sent something on this stream.
    heard: bool,
    /// When heartbeats are due; only while there is a stream.
    beat_at: Option<Millis>,
    uploads: Uploads,
    updates: Updates,
    /// Only while this version has not stood it.
    trial: Option<Trial>,
    after: After,
    ending: Ending,
    watch: Watch,
    net_events: mpsc::Receiver<Event>,
    pump_events: mpsc::UnboundedReceiver<PumpEvent>,
    plugin_events: mpsc::UnboundedReceiver<PluginEvent>,
    spool_events: mpsc::UnboundedReceiver<SpoolEvent>,
}

impl Agent {
    fn new(flags: Flags, environment: Environment, settings: Settings, is_on_trial: bool) -> Result<Self, Failure> {
        let clock = Clock::start();
        let alarm = Alarm::new(clock).map_err(|error| Failure::System(format!("the timer cannot be made: {error}")))?;
        let AgentId { id, source, not_stored } =
            agent_id(&HostRoot::live(), &settings.workdir, settings.agent_id.as_deref())
                .map_err(|error| Failure::Settings(error.to_string()))?;
        log::info!("elklet {} starts as {id} ({source}) in {}", version(), settings.workdir.display());
        if let Some(error) = not_stored {
            log::warn!("the id cannot be kept: {}/machine-id: {error}", settings.workdir.display());
        }
        let certificates = Certificates::load(settings.certs.clone(), &settings.server)
            .map_err(|error| Failure::Settings(settings.blame_certificates(error)))?;

        let intake = SharedIntake::new(settings.buffer.arena_bytes());
        let (pump_sender, pump_events) = mpsc::unbounded_channel();
        let start_pump = || PumpHandle::start(intake.clone(), clock, pump_sender.clone());
        let pump =
            insist(start_pump).map_err(|error| Failure::System(format!("the pump cannot be started: {error}")))?;
        let (events, net_events) = mpsc::channel(EVENTS_AHEAD);
        let (plugins, plugin_events) = Plugins::new(&settings, clock);
        let beat = Beat::new(id, &settings);
        let (mut delivery, spool_events) = Delivery::new(intake.clone(), &settings, clock.now());
        delivery.set_sender(beat.sender());
        let seed = RandomState::new().build_hasher().finish();
        let tls = certificates.tls().clone();
        let mut agent = Self {
            clock,
            alarm,
            session: Session::new(reload::endpoints(&settings.server), settings.server.timing(), seed),
            dispatch: with_kept_plugins(Dispatch::new(version().to_owned()), &settings.workdir, clock.now()),
            delivery,
            plugins,
            pump,
            beat,
            net: NetCounters::default(),
            intake,
            connector: Connector { tls, proxies: settings.proxies.clone(), half_open: HalfOpen::default(), events },
            flags,
            environment,
            certificates,
            certificates_due: clock.now() + reload::CERTIFICATES_INTERVAL_MS,
            discovered: Vec::new(),
            transfer: None,
            address: String::new(),
            current: None,
            ends: None,
            told_wait: None,
            net_mode: "unknown",
            heard: false,
            beat_at: None,
            uploads: Uploads::default(),
            updates: Updates::new(&settings),
            trial: is_on_trial.then(|| Trial::new(clock.now(), settings.update.hold_ms(), settings.update.trial_ms())),
            after: After::Exit,
            ending: Ending::No,
            watch: Watch::start(&settings.workdir, clock.now()),
            settings,
            net_events,
            pump_events,
            plugin_events,
            spool_events,
        };
        agent.warn_of_certificates();
        // The last end may have come too suddenly for it.
        agent.plugins.delete(workdir::leftovers(&agent.settings.workdir));
        Ok(agent)
    }

    async fn run(mut self) -> std::io::Result<After> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut child = signal(SignalKind::child())?;
        inherited::take_signals();
        children::reap();
        self.session.handle_start(self.clock.now());
        loop {
            self.carry_out();
            if self.ending == Ending::Done {
                return Ok(self.after);
            }
            self.alarm.set(self.poll_timeout());
            tokio::select! {
                Some(event) = self.net_events.recv() => self.handle_net(event),
                Some(event) = self.plugin_events.recv() => self.handle_plugin(event),
                Some(event) = self.pump_events.recv() => self.handle_pump(event),
                Some(event) = self.spool_events.recv() => self.delivery.handle_spool(event, self.clock.now()),
                Some(inquiry) = self.watch.inquiries.recv() => self.handle_inquiry(inquiry),
                // What is due is looked at before the next wait in any case.
                () = self.intake.woken() => {}
                () = crate::reports::news() => {}
                (token, result) = self.uploads.ended() => self.handle_uploaded(token, result),
                updated = self.updates.ended(&self.settings) => self.handle_updated(updated),
                _ = terminate.recv() => self.handle_signal("SIGTERM"),
                _ = interrupt.recv() => self.handle_signal("SIGINT"),
                _ = hangup.recv() => self.reload(),
                _ = child.recv() => children::reap(),
                () = self.alarm.rung() => {}
            }
        }
    }

    /// Lets time pass, does all that the core asks for, and sends what is due.
    fn carry_out(&mut self) {
        let now = self.clock.now();
        self.session.handle_timeout(now);
        self.dispatch.handle_timeout(now);
        self.plugins.handle_timeout(now);
        if self.delivery.wants_ping(now) {
            self.session.handle_ping_wanted(now);
        }
        if self.beat_is_due(now) {
            self.session.handle_sending(now);
        }
        loop {
            if let Some(action) = self.session.poll_action() {
                self.carry_out_session(action);
            } else if let Some(action) = self.dispatch.poll_action() {
                self.carry_out_dispatch(action, now);
            } else {
                break;
            }
        }
        self.tell_wait(now);
        self.start_upload();
        self.advance_trial(now);
        self.advance_ending(now);
        self.report_errors();
        if self.beat_is_due(now) {
            self.beat(now);
        }
        self.deliver(now);
    }

    /// Moves records on, to the stream if there is one.
    fn deliver(&mut self, now: Millis) {
        let transfer = self.session.streaming_to().and(self.transfer.as_ref());
        // While plugins end, what they still write waits for company as always.
        let all = !matches!(self.ending, Ending::No | Ending::Plugins { .. });
        self.delivery.advance(transfer, &self.pump, now, all);
    }

    fn beat_is_due(&self, now: Millis) -> bool {
        self.session.streaming_to().is_some() && self.beat_at.is_some_and(|moment| moment <= now)
    }

    fn beat(&mut self, now: Millis) {
        self.lose_frames();
        // What could not be deleted the last time.
        self.plugins.delete(Vec::new());
        self.updates.retry_put_back();
        self.sample_rates(now);
        self.net.uploaded_bytes = self.uploads.sent_bytes();
        self.look_after_certificates(now);
        self.connector.half_open.tell();
        self.beat.beat(now, self.net_mode, &self.net, &self.dispatch, &self.plugins, &mut self.delivery);
        self.beat_at = Some(now + beat::INTERVAL_MS);
    }

    fn poll_timeout(&self) -> Option<Millis> {
        let transfer = self.session.streaming_to().and(self.transfer.as_ref());
        [
            self.session.poll_timeout(),
            self.dispatch.poll_timeout(),
            self.plugins.poll_timeout(),
            self.beat_at.filter(|_| transfer.is_some()),
            self.delivery.poll_timeout(transfer, self.clock.now()),
            self.ending.deadline(),
            self.trial.as_ref().filter(|_| self.ending == Ending::No).map(Trial::poll_timeout),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn carry_out_dispatch(&mut self, action: dispatch::Action, now: Millis) {
        use dispatch::Action;
        match action {
            Action::Prepare(id, config) => self.plugins.prepare(id, config),
            Action::Forget(id) => self.plugins.forget(id),
            Action::Spawn(id, config) => {
                let origin = self.origin(&config.name);
                self.plugins.spawn(id, &config, origin, &mut self.pump, &mut self.dispatch, now);
            }
            Action::Stop(name) => self.plugins.stop(&name, &self.pump, now),
            Action::Remove(name) => self.plugins.remove(&name),
            Action::Keep(plugins) => self.plugins.keep(plugins, now),
            Action::ForwardTask(name, task) => self.plugins.forward(&name, task, &self.pump, &mut self.dispatch),
            Action::Upload { token, path, buf_size } => self.queue_upload(Order { token, path, buf_size }),
            Action::SetMetadata { token, idc, region } => self.set_metadata(token, idc, region),
            Action::UpdateAgent(config) => self.update_to(config),
            Action::KeepAgent => self.updates.keep(),
            Action::Shutdown => {
                log::info!("the server asks the agent to end");
                logging::audit(&logging::Event::new(logging::Kind::Shutdown, "the agent", "it ends"));
                self.after = After::Exit;
                self.begin_ending(now);
            }
            Action::Report(report) => self.report(&report),
            Action::Complain(what) => log::warn!("{what}"),
        }
    }

    fn refuse(&mut self, token: String, reason: &str) {
        self.dispatch.handle_task_refused(token, reason);
    }

    fn handle_plugin(&mut self, event: PluginEvent) {
        if let PluginEvent::Exited(name, ..) = &event {
            self.beat.handle_plugin_ended(name.as_str());
        }
        let now = self.clock.now();
        self.plugins.handle_event(event, &self.pump, &mut self.dispatch, now);
    }

    fn handle_pump(&mut self, event: PumpEvent) {
        match event {
            PumpEvent::Closed(plug) => {
                self.lose_frames();
                self.plugins.handle_closed(plug);
            }
            PumpEvent::TaskRefused { token, reason } => self.refuse(token, &reason),
        }
    }

    /// Whose records a plugin's are, and what may become of them.
    fn origin(&self, name: &PluginName) -> Origin {
        let own = self.settings.plugin.get(name.as_str());
        Origin { source: self.delivery.source(name), may_drop: self.settings.plugins.may_drop(own) }
    }

    /// Counts what plugins sent that was no record.
    fn lose_frames(&mut self) {
        for (name, cause, frames, since) in self.plugins.take_lost_frames() {
            self.delivery.lose_frames(&name, cause, frames, since);
        }
    }
}
