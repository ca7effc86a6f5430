//! The net thread's side of the pump: orders, and what the pump tells.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use elklet_core::command::PluginName;
use elklet_core::record::intake::Origin;
use mio::Waker;
use tokio::sync::mpsc::UnboundedSender;

use super::intake::SharedIntake;
use super::polls::{Polls, WAKER};
use super::{PluginStats, Pump};
use crate::clock::Clock;

/// Identifies a plugin's process to the pump. It is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PlugId(pub(super) usize);

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
    /// The pump has closed a plugin's pipes: it has read them to their ends, or could not watch them.
    Closed(PlugId),
    /// A task did not reach its plugin.
    TaskRefused {
        /// The task's token.
        token: String,
        /// Why it did not.
        reason: String,
    },
}

pub(super) enum Order {
    Plug(PlugId, PluginName, Origin, PipeEnds, Arc<PluginStats>),
    Task { plug: PlugId, frame: Vec<u8>, token: String },
    CloseTasks(PlugId),
    Finish(PlugId),
    Resume,
    Prove(Arc<AtomicBool>),
}

/// The net thread's side of the pump. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct PumpHandle {
    orders: Option<mpsc::Sender<Order>>,
    waker: Arc<Waker>,
    next_plug: usize,
    /// Whether the thread has answered the last [`Order::Prove`].
    answered: Arc<AtomicBool>,
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
        let pump = Pump::new(polls, orders, intake, clock, events);
        let thread = thread::Builder::new().name("pump".to_owned()).spawn(|| pump.run())?;
        Ok(Self {
            orders: Some(sender),
            waker,
            next_plug: 0,
            answered: Arc::new(AtomicBool::new(true)),
            thread: Some(thread),
        })
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

    /// Queues a framed task. [`PumpEvent::TaskRefused`] answers a task that does not reach the plugin.
    pub(crate) fn task(&self, plug: PlugId, frame: Vec<u8>, token: String) {
        self.order(Order::Task { plug, frame, token });
    }

    /// Closes the task pipe, which asks the plugin to end.
    pub(crate) fn close_tasks(&self, plug: PlugId) {
        self.order(Order::CloseTasks(plug));
    }

    /// The process has ended. The pump reads what is left in its pipes, whoever else may hold them open, and closes them.
    pub(crate) fn finish(&self, plug: PlugId) {
        self.order(Order::Finish(plug));
    }

    /// There is room in the buffer again.
    pub(crate) fn resume(&self) {
        self.order(Order::Resume);
    }

    /// Asks the thread for a sign of life. Returns true if it has given the last one that it was asked for.
    pub(crate) fn prove(&self) -> bool {
        let answered = self.answered.swap(false, Ordering::Relaxed);
        self.order(Order::Prove(Arc::clone(&self.answered)));
        answered
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
