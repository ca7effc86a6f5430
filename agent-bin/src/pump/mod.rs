//! The pump: a thread that moves records from the plugins' pipes into the intake, and tasks the other way.
//!
//! It waits on all pipes at once, reads large pieces, and appends the records of one piece under one lock. A plugin whose
//! record finds no room is not read any more until the net thread has taken the buffer; its pipe fills and it blocks, as
//! with any pipe. No plugin is read twice before all others that have something were read once.
//!
//! Plugins that write often and little are left to gather their records for some milliseconds (`rest`); high-priority records
//! are read at once.

mod outlet;
mod rest;
mod source;
mod stats;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use elklet_core::command::PluginName;
use elklet_core::record::intake::{Lane, Origin, Wake};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tokio::sync::mpsc::UnboundedSender;

use self::outlet::Outlet;
use self::rest::Rest;
use self::source::{Complaints, Progress, Source};
pub(crate) use self::stats::PluginStats;
use crate::clock::Clock;
use crate::shared::SharedIntake;

/// Bytes of one read: what a pipe holds unless it was made larger.
const READ_BYTES: usize = 64 << 10;

/// Names a plugin's process to the pump; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PlugId(usize);

/// The agent's ends of a plugin's pipes.
#[derive(Debug)]
pub(crate) struct PipeEnds {
    /// Records, the plugin's descriptor 4.
    pub(crate) records: OwnedFd,
    /// High-priority records, the plugin's descriptor 5.
    pub(crate) urgent: OwnedFd,
    /// Tasks, the plugin's descriptor 3.
    pub(crate) tasks: OwnedFd,
}

/// What the pump tells the net thread.
#[derive(Debug)]
pub(crate) enum PumpEvent {
    /// A plugin's pipes are read to their ends and closed.
    Closed(PlugId),
    /// A task did not reach its plugin.
    TaskRefused {
        /// The task's token.
        token: String,
        /// Why.
        reason: String,
    },
}

enum Order {
    Plug(PlugId, PluginName, Origin, PipeEnds, Arc<PluginStats>),
    Task { plug: PlugId, frame: Vec<u8>, token: String },
    CloseTasks(PlugId),
    Finish(PlugId),
    Resume,
}

/// The net thread's side of the pump. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct PumpHandle {
    orders: Option<mpsc::Sender<Order>>,
    waker: Arc<Waker>,
    next_plug: usize,
    thread: Option<JoinHandle<()>>,
}

impl PumpHandle {
    /// Starts the pump's thread.
    ///
    /// # Errors
    /// When the system has no descriptor or thread left.
    pub(crate) fn start(intake: SharedIntake, clock: Clock, events: UnboundedSender<PumpEvent>) -> io::Result<Self> {
        let polls = Polls::start()?;
        let waker = Arc::new(Waker::new(polls.all.registry(), WAKER)?);
        let (sender, orders) = mpsc::channel();
        let pump = Pump {
            polls,
            rest: Rest::default(),
            gathered: 0,
            wake: Wake::Unneeded,
            orders,
            intake,
            clock,
            events,
            plugs: HashMap::new(),
            ready: VecDeque::new(),
            stalled: Vec::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
        };
        let thread = thread::Builder::new().name("pump".to_owned()).spawn(|| pump.run())?;
        Ok(Self { orders: Some(sender), waker, next_plug: 0, thread: Some(thread) })
    }

    /// Takes over a plugin's pipes.
    pub(crate) fn plug(
        &mut self,
        name: PluginName,
        origin: Origin,
        pipes: PipeEnds,
        stats: Arc<PluginStats>,
    ) -> PlugId {
        let plug = PlugId(self.next_plug);
        self.next_plug += 1;
        self.order(Order::Plug(plug, name, origin, pipes, stats));
        plug
    }

    /// Queues a framed task; it is answered with [`PumpEvent::TaskRefused`] if it does not reach the plugin.
    pub(crate) fn task(&self, plug: PlugId, frame: Vec<u8>, token: String) {
        self.order(Order::Task { plug, frame, token });
    }

    /// Closes the task pipe: the plugin is to end.
    pub(crate) fn close_tasks(&self, plug: PlugId) {
        self.order(Order::CloseTasks(plug));
    }

    /// The process has ended: what is left in its pipes is read, whoever else may hold them open, and they are closed.
    pub(crate) fn finish(&self, plug: PlugId) {
        self.order(Order::Finish(plug));
    }

    /// There is room again.
    pub(crate) fn resume(&self) {
        self.order(Order::Resume);
    }

    fn order(&self, order: Order) {
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        if !sent || self.waker.wake().is_err() {
            log::error!("the pump's thread cannot be reached");
        }
    }
}

impl Drop for PumpHandle {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const WAKER: Token = Token(usize::MAX);
const BULK: Token = Token(usize::MAX - 1);

/// What the kernel tells at once.
const EVENTS: usize = 64;

/// Tokens a plugin has: its lanes, and its tasks.
const TOKENS: usize = 3;

fn lane_token(plug: PlugId, lane: Lane) -> Token {
    Token(plug.0 * TOKENS + usize::from(lane == Lane::Urgent))
}

fn tasks_token(plug: PlugId) -> Token {
    Token(plug.0 * TOKENS + 2)
}

/// What a token stands for; `None` is the tasks' pipe.
fn of_token(token: Token) -> (PlugId, Option<Lane>) {
    let lane = match token.0 % TOKENS {
        0 => Some(Lane::Bulk),
        1 => Some(Lane::Urgent),
        _ => None,
    };
    (PlugId(token.0 / TOKENS), lane)
}

/// A plugin as the pump sees it.
struct Plug {
    name: PluginName,
    bulk: Option<Source>,
    urgent: Option<Source>,
    tasks: Outlet,
    stats: Arc<PluginStats>,
    complaints: Complaints,
    /// Its process has ended: the lanes close when they are empty, not only at their ends.
    finishing: bool,
}

impl Plug {
    fn source(&mut self, lane: Lane) -> &mut Option<Source> {
        match lane {
            Lane::Bulk => &mut self.bulk,
            Lane::Urgent => &mut self.urgent,
        }
    }
}

/// What the pump waits for.
struct Polls {
    /// Orders, high-priority lanes, task pipes, and the other one unless it is left alone.
    all: Poll,
    /// Bulk lanes.
    bulk: Poll,
}

impl Polls {
    fn start() -> io::Result<Self> {
        let polls = Self { all: Poll::new()?, bulk: Poll::new()? };
        polls.watch_bulk()?;
        Ok(polls)
    }

    fn of(&self, lane: Lane) -> &Poll {
        match lane {
            Lane::Bulk => &self.bulk,
            Lane::Urgent => &self.all,
        }
    }

    /// Bulk records wake the pump, at once if there are any.
    fn watch_bulk(&self) -> io::Result<()> {
        self.all.registry().register(&mut SourceFd(&self.bulk.as_raw_fd()), BULK, Interest::READABLE)
    }

    /// They do not any more.
    fn ignore_bulk(&self) -> io::Result<()> {
        self.all.registry().deregister(&mut SourceFd(&self.bulk.as_raw_fd()))
    }
}

/// Waits for events; false when that is impossible.
fn wait(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> bool {
    match poll.poll(events, timeout) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => {
            log::error!("the pump cannot wait for its pipes: {error}");
            false
        }
        _ => true,
    }
}

struct Pump {
    polls: Polls,
    /// Until when bulk lanes are not looked at.
    rest: Rest,
    /// Bytes that bulk lanes gave since the last look.
    gathered: usize,
    /// What the net thread is to hear of the records that were read since it was told last.
    wake: Wake,
    orders: mpsc::Receiver<Order>,
    intake: SharedIntake,
    clock: Clock,
    events: UnboundedSender<PumpEvent>,
    plugs: HashMap<PlugId, Plug>,
    /// Lanes that may have something to read, in the order in which they are read.
    ready: VecDeque<(PlugId, Lane)>,
    /// Lanes that wait for room.
    stalled: Vec<(PlugId, Lane)>,
    buffer: Box<[u8]>,
}

impl Pump {
    fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let rest = self.rest.until().map(|until| Duration::from_millis(until.since(self.clock.now())));
            let timeout = if self.ready.is_empty() { rest } else { Some(Duration::ZERO) };
            if !wait(&mut self.polls.all, &mut events, timeout) {
                return;
            }
            let mut look = self.rest.until().is_some_and(|until| until <= self.clock.now());
            for event in &events {
                match event.token() {
                    WAKER if !self.obey() => return,
                    WAKER => {}
                    BULK => look = true,
                    token => match of_token(token) {
                        (plug, Some(lane)) => self.handle_readable(plug, lane, event.is_read_closed()),
                        (plug, None) => self.write_tasks(plug),
                    },
                }
            }
            if look && !self.look_at_bulk(&mut events) {
                return;
            }
            // One read each, urgent lanes first, then the kernel is asked again.
            for _ in 0..self.ready.len() {
                if let Some((plug, lane)) = self.ready.pop_front() {
                    self.read(plug, lane);
                }
            }
            if self.ready.is_empty() {
                self.tell(look);
            }
        }
    }

    fn handle_readable(&mut self, plug: PlugId, lane: Lane, is_hangup: bool) {
        // The kernel says once that nobody writes any more.
        if is_hangup {
            self.handle_hangup(plug, lane);
        }
        self.make_ready(plug, lane);
    }

    /// Asks which bulk lanes have something; false when that fails.
    fn look_at_bulk(&mut self, events: &mut Events) -> bool {
        loop {
            if !wait(&mut self.polls.bulk, events, Some(Duration::ZERO)) {
                return false;
            }
            for event in &*events {
                if let (plug, Some(lane)) = of_token(event.token()) {
                    self.handle_readable(plug, lane, event.is_read_closed());
                }
            }
            if events.iter().count() < EVENTS {
                return true;
            }
        }
    }

    /// Everything is read. After a look, bulk lanes are left alone for a while, or else wake the pump. While they are, the
    /// pump says when records have waited long enough; else the net thread hears of the first and waits itself.
    fn tell(&mut self, look: bool) {
        if look {
            self.rest();
        }
        let wake = mem::replace(&mut self.wake, Wake::Unneeded);
        if self.rest.until().is_none() {
            self.intake.wake(wake);
        }
    }

    fn rest(&mut self) {
        let capacity = self.plugs.values().filter_map(|plugin| plugin.bulk.as_ref()).map(Source::capacity).min();
        let rested = self.rest.until().is_some();
        if self.rest.handle_look(mem::take(&mut self.gathered), capacity.unwrap_or(0), self.clock.now()) {
            let wake = self.intake.lock().ripen();
            self.intake.wake(wake);
        }
        let changed = match (rested, self.rest.until().is_some()) {
            (false, true) => self.polls.ignore_bulk(),
            (true, false) => self.polls.watch_bulk(),
            _ => Ok(()),
        };
        if let Err(error) = changed {
            log::error!("the pump cannot change what wakes it: {error}");
            self.rest.go_on(self.clock.now());
        }
    }

    /// Carries out what the net thread has ordered; false when it is gone.
    fn obey(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Plug(plug, name, origin, pipes, stats)) => self.plug(plug, name, origin, pipes, stats),
                Ok(Order::Task { plug, frame, token }) => {
                    match self.plugs.get_mut(&plug) {
                        Some(plugin) => {
                            if let Err((token, reason)) = plugin.tasks.push(frame, token) {
                                self.refuse(token, reason);
                            }
                        }
                        None => self.refuse(token, "the plugin has ended"),
                    }
                    self.write_tasks(plug);
                }
                Ok(Order::CloseTasks(plug)) => self.close_tasks(plug),
                Ok(Order::Finish(plug)) => {
                    self.close_tasks(plug);
                    self.finish_tasks(plug);
                    if let Some(plugin) = self.plugs.get_mut(&plug) {
                        plugin.finishing = true;
                    }
                    self.make_ready(plug, Lane::Urgent);
                    self.make_ready(plug, Lane::Bulk);
                    self.close_if_done(plug);
                }
                Ok(Order::Resume) => {
                    for (plug, lane) in mem::take(&mut self.stalled) {
                        self.make_ready(plug, lane);
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn plug(&mut self, plug: PlugId, name: PluginName, origin: Origin, pipes: PipeEnds, stats: Arc<PluginStats>) {
        let mut plugin = Plug {
            bulk: Some(Source::new(pipes.records, Lane::Bulk, origin)),
            urgent: Some(Source::new(pipes.urgent, Lane::Urgent, origin)),
            tasks: Outlet::new(pipes.tasks),
            stats,
            complaints: Complaints::default(),
            finishing: false,
            name,
        };
        let mut registered = plugin.tasks.register(self.polls.all.registry(), tasks_token(plug));
        for lane in [Lane::Urgent, Lane::Bulk] {
            if let Some(source) = plugin.source(lane) {
                let registry = self.polls.of(lane).registry();
                registered =
                    registered.and(registry.register(source.pipe(), lane_token(plug, lane), Interest::READABLE));
            }
        }
        if let Err(error) = registered {
            // The pipes close with `plugin`, which the plugin takes for a wish that it end.
            log::error!("plugin {}: its pipes cannot be watched: {error}", plugin.name);
            let _ = self.events.send(PumpEvent::Closed(plug));
            return;
        }
        self.plugs.insert(plug, plugin);
    }

    fn make_ready(&mut self, plug: PlugId, lane: Lane) {
        let entry = (plug, lane);
        if self.ready.contains(&entry) || self.stalled.contains(&entry) {
            return;
        }
        match lane {
            Lane::Urgent => self.ready.push_front(entry),
            Lane::Bulk => self.ready.push_back(entry),
        }
    }

    fn read(&mut self, plug: PlugId, lane: Lane) {
        let Some(plugin) = self.plugs.get_mut(&plug) else { return };
        let Some(source) = plugin.source(lane) else { return };
        let before = source.tally().record_bytes;
        let (progress, wake) = source.read(&mut self.buffer, &self.intake);
        if lane == Lane::Bulk {
            self.gathered += usize::try_from(source.tally().record_bytes - before).unwrap_or(usize::MAX);
        }
        // What is due at once does not wait until everything is read.
        match wake {
            Wake::Now => self.intake.wake(wake),
            Wake::First | Wake::Unneeded => self.wake = self.wake.max(wake),
        }
        self.tell_oddities(plug, lane);
        let finishing = self.plugs.get(&plug).is_some_and(|plugin| plugin.finishing);
        match progress {
            Progress::More => self.ready.push_back((plug, lane)),
            Progress::Stalled => self.stalled.push((plug, lane)),
            Progress::Drained if !finishing => {}
            Progress::Drained | Progress::Ended => self.close_source(plug, lane),
        }
    }

    fn handle_hangup(&mut self, plug: PlugId, lane: Lane) {
        if let Some(source) = self.plugs.get_mut(&plug).and_then(|plugin| plugin.source(lane).as_mut()) {
            source.handle_hangup();
        }
    }

    fn close_source(&mut self, plug: PlugId, lane: Lane) {
        let Some(plugin) = self.plugs.get_mut(&plug) else { return };
        if let Some(source) = plugin.source(lane) {
            source.end();
            let _ = self.polls.of(lane).registry().deregister(source.pipe());
        }
        self.tell_oddities(plug, lane);
        if let Some(plugin) = self.plugs.get_mut(&plug) {
            *plugin.source(lane) = None;
        }
        self.close_if_done(plug);
    }

    /// Publishes a lane's counts, and logs what was wrong with its bytes, though not each time.
    fn tell_oddities(&mut self, plug: PlugId, lane: Lane) {
        let Some(plugin) = self.plugs.get_mut(&plug) else { return };
        let Some(source) = plugin.source(lane) else { return };
        let (tally, oddities) = (source.tally(), source.take_oddities());
        plugin.stats.publish(lane, tally);
        for oddity in oddities {
            if let Some(suppressed) = plugin.complaints.admit(self.clock.now()) {
                let more = if suppressed > 0 { format!(" ({suppressed} more not logged)") } else { String::new() };
                log::warn!("plugin {} sent {oddity}{more}", plugin.name);
            }
        }
    }

    fn close_tasks(&mut self, plug: PlugId) {
        let Some(plugin) = self.plugs.get_mut(&plug) else { return };
        for token in plugin.tasks.close(self.polls.all.registry()) {
            self.refuse(token, "the plugin ended before it took the task");
        }
    }

    fn write_tasks(&mut self, plug: PlugId) {
        let Some(plugin) = self.plugs.get_mut(&plug) else { return };
        let written = plugin.tasks.write();
        plugin.stats.publish_tasks(plugin.tasks.written());
        if let Err(error) = written {
            log::warn!("plugin {} takes no tasks any more: {error}", plugin.name);
            self.close_tasks(plug);
            // It has closed its end, so that what is in the pipe is not read any more.
            self.finish_tasks(plug);
        }
    }

    /// Nobody reads tasks any more: those that are in the pipe are answered.
    fn finish_tasks(&mut self, plug: PlugId) {
        let Some(plugin) = self.plugs.get_mut(&plug) else { return };
        for token in plugin.tasks.finish() {
            self.refuse(token, "the plugin ended before it read the task");
        }
    }

    fn refuse(&self, token: String, reason: &str) {
        // Nobody listens any more only when the process ends.
        let _ = self.events.send(PumpEvent::TaskRefused { token, reason: reason.to_owned() });
    }

    fn close_if_done(&mut self, plug: PlugId) {
        if self
            .plugs
            .get(&plug)
            .is_some_and(|plugin| plugin.finishing && plugin.bulk.is_none() && plugin.urgent.is_none())
        {
            self.plugs.remove(&plug);
            let _ = self.events.send(PumpEvent::Closed(plug));
        }
    }
}
