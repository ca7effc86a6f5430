//! The pump: a thread that moves records from the plugins' pipes into the intake, and tasks the other way.
//!
//! It waits on all pipes at once, reads large pieces, and appends the records of one piece under one lock. If a plugin's
//! record finds no room, the pump stops reading that plugin until the net thread has taken the buffer. The pipe fills and the
//! plugin blocks: backpressure as with any pipe. The pump reads every ready plugin once before it reads any plugin twice.
//!
//! The pump coalesces: it leaves plugins that write often and little unread for some milliseconds (`rest`). It reads
//! high-priority records at once.

mod handle;
pub(crate) mod intake;
mod outlet;
mod polls;
mod reader;
mod rest;
mod stats;

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use elklet_core::command::PluginName;
use elklet_core::record::intake::{Lane, Origin, Wake};
use mio::{Events, Interest};
use tokio::sync::mpsc::UnboundedSender;

use self::handle::Order;
pub(crate) use self::handle::{PipeEnds, PlugId, PumpEvent, PumpHandle};
use self::intake::SharedIntake;
use self::outlet::Outlet;
use self::polls::{BULK, EVENTS, Polls, WAKER, lane_token, of_token, tasks_token, wait};
use self::reader::{Complaints, PipeReader, Progress};
use self::rest::Rest;
pub(crate) use self::stats::PluginStats;
use crate::clock::Clock;

/// Bytes of one read: the capacity of a pipe that was not made larger.
const READ_BYTES: usize = 64 << 10;

/// The pump's view of a plugin.
struct Plug {
    name: PluginName,
    bulk: Option<PipeReader>,
    urgent: Option<PipeReader>,
    tasks: Outlet,
    stats: Arc<PluginStats>,
    complaints: Complaints,
    /// True once its process has ended. Its lanes then close when they are empty, not only at their ends.
    finishing: bool,
}

impl Plug {
    fn source(&mut self, lane: Lane) -> &mut Option<PipeReader> {
        match lane {
            Lane::Bulk => &mut self.bulk,
            Lane::Urgent => &mut self.urgent,
        }
    }
}

struct Pump {
    polls: Polls,
    /// Decides how long bulk lanes are left unread.
    rest: Rest,
    /// Bytes that were read from bulk lanes since the last look.
    gathered: usize,
    /// The wake-up that the net thread still needs for records that were read.
    wake: Wake,
    orders: mpsc::Receiver<Order>,
    intake: SharedIntake,
    clock: Clock,
    events: UnboundedSender<PumpEvent>,
    plugs: HashMap<PlugId, Plug>,
    /// Lanes that may have something to read, in reading order.
    ready: VecDeque<(PlugId, Lane)>,
    /// Lanes that wait for room.
    stalled: Vec<(PlugId, Lane)>,
    buffer: Box<[u8]>,
}

impl Pump {
    fn new(
        polls: Polls,
        orders: mpsc::Receiver<Order>,
        intake: SharedIntake,
        clock: Clock,
        events: UnboundedSender<PumpEvent>,
    ) -> Self {
        Self {
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
        }
    }

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
            // Read each lane once, urgent lanes first, and then ask the kernel again.
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
        // The kernel says only once that the last writer is gone.
        if is_hangup {
            self.handle_hangup(plug, lane);
        }
        self.make_ready(plug, lane);
    }

    /// Asks which bulk lanes have something to read. Returns false when that fails.
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

    /// Everything is read. After a look, the pump either rests from bulk lanes for a while or lets them wake it. While
    /// it rests, it tells the net thread when records have waited long enough. Otherwise it tells of the first record,
    /// and the net thread waits by itself.
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
        let capacity = self.plugs.values().filter_map(|plugin| plugin.bulk.as_ref()).map(PipeReader::capacity).min();
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

    /// Carries out the net thread's orders. Returns false when the net thread is gone.
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
                Ok(Order::Prove(answered)) => answered.store(true, Ordering::Relaxed),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn plug(&mut self, plug: PlugId, name: PluginName, origin: Origin, pipes: PipeEnds, stats: Arc<PluginStats>) {
        let mut plugin = Plug {
            bulk: Some(PipeReader::new(pipes.records, Lane::Bulk, origin)),
            urgent: Some(PipeReader::new(pipes.urgent, Lane::Urgent, origin)),
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
            // The pipes close with `plugin`, which asks the plugin to end.
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
        // Wake the net thread at once for what is due now, before everything is read.
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

    /// Publishes a lane's counts. Logs what was wrong with its bytes, but not each time.
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
            // The plugin has closed its end, so nobody reads what is in the pipe.
            self.finish_tasks(plug);
        }
    }

    /// Nobody reads tasks any more. Answers those that are in the pipe.
    fn finish_tasks(&mut self, plug: PlugId) {
        let Some(plugin) = self.plugs.get_mut(&plug) else { return };
        for token in plugin.tasks.finish() {
            self.refuse(token, "the plugin ended before it read the task");
        }
    }

    fn refuse(&self, token: String, reason: &str) {
        // The receiver goes away only when the process ends.
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
