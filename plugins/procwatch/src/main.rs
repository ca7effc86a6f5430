//! Procwatch reports each program that starts on the host, and each process that ends, to the agent that started it.
//!
//! It listens to the kernel's process connector, and looks up in /proc what the events do not say. One thread does all
//! of it and sleeps while nothing happens. A second one, the SDK's, sends what has been buffered for long enough.

mod bounded;
mod connector;
mod event;
mod filter;
mod hash;
mod leaderless;
mod options;
mod overruns;
mod process;
mod procfs;
mod row;
mod scan;
mod stat;
mod table;
mod tty;
mod users;
mod watcher;

use elklet_static as _;

use connector::{Connector, DATAGRAM_BYTES, Received};
use elklet_plugin::{Client, ReceiveError, Tasks};
use options::{Mode, Options};
use overruns::Overruns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use scan::Scanner;
use std::error::Error;
use std::fmt::Display;
use std::io::{Write, stderr};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::task::Poll;
use std::time::{Duration, Instant};
use watcher::Watcher;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let (client, tasks) = elklet_plugin::connect()?;
    elklet_plugin::ignore_sigterm();
    let detail = elklet_plugin::detail().unwrap_or_default();
    let (options, unknown) = Options::parse(&detail);
    for word in unknown {
        report(format_args!("the detail's word `{word}` is not known and changes nothing"));
    }
    let agent = Agent { client: client.clone(), tasks };
    match subscribe(options.mode)? {
        Some(connector) => follow(&connector, Watcher::new(client.clone(), options.exits), agent)?,
        None => look_through(Watcher::new(client.clone(), options.exits), agent)?,
    }
    Ok(client.flush()?)
}

/// Returns the process connector, or `None` to scan /proc instead.
fn subscribe(mode: Mode) -> Result<Option<Connector>, Box<dyn Error>> {
    if mode == Mode::Scan {
        return Ok(None);
    }
    match Connector::subscribe() {
        Ok(connector) => Ok(Some(connector)),
        Err(error) if mode == Mode::Connector => Err(format!("the process connector is not to be had: {error}").into()),
        Err(error) => {
            report(format_args!(
                "the process connector is not to be had, so /proc is looked through every second and short-lived \
                 processes are missed: {error}"
            ));
            Ok(None)
        }
    }
}

/// Handles the connector's events until the agent asks for the end.
fn follow(connector: &Connector, mut watcher: Watcher, mut agent: Agent) -> Result<(), Box<dyn Error>> {
    let mut overruns = Overruns::default();
    let mut end = None;
    update_filter(connector, &mut watcher)?;
    loop {
        let drained = drain(connector, &mut watcher, &mut overruns)?;
        if drained && overruns.take_need_to_reload() {
            watcher.reload();
            watcher.handle_ended_meanwhile(unix_seconds())?;
            update_filter(connector, &mut watcher)?;
        }
        if let Some(lost) = overruns.report_due(Instant::now(), end.is_some(), || connector.dropped()) {
            report(lost.message());
            lost.send(&agent.client)?;
        }
        match end {
            // Report what happened before the end, but do not let a host that never rests put the end off.
            Some(deadline) if drained || Instant::now() >= deadline => return Ok(()),
            Some(_) => {}
            None => {
                let timeout = if drained { overruns.poll_timeout(Instant::now()) } else { Some(Duration::ZERO) };
                let ended = agent.wait(Some(connector.as_fd()), timeout)?;
                end = ended.then(|| Instant::now() + LAST_EVENTS_TIMEOUT);
            }
        }
    }
}

/// Time limit for reading events that wait at the end. The agent kills a plugin 10 s after it has asked for the end.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// Events that are handled between two looks at the agent's pipes.
const EVENTS_AT_ONCE: usize = 512;

/// Handles waiting events. Returns true when there are no more.
fn drain(connector: &Connector, watcher: &mut Watcher, overruns: &mut Overruns) -> Result<bool, Box<dyn Error>> {
    let mut buffer = [0; DATAGRAM_BYTES];
    for _ in 0..EVENTS_AT_ONCE {
        match connector.receive(&mut buffer)? {
            Received::Datagram(datagram) => {
                let now = unix_seconds();
                for event in event::events(datagram) {
                    watcher.handle(event, now)?;
                }
                update_filter(connector, watcher)?;
            }
            Received::Overrun => overruns.add(),
            Received::Nothing => return Ok(true),
        }
    }
    Ok(false)
}

/// Makes the kernel deliver the ends of threads that the watcher waits for, if these have changed.
fn update_filter(connector: &Connector, watcher: &mut Watcher) -> Result<(), Box<dyn Error>> {
    while let Some(changed) = watcher.take_changed_leaderless().map(|pids| connector.deliver_all_thread_exits_of(pids))
    {
        if let Err(error) = changed {
            report(format_args!("the event filter cannot be changed, so ends of processes may be missed: {error}"));
            return Ok(());
        }
        watcher.handle_ended_meanwhile(unix_seconds())?;
    }
    Ok(())
}

/// Scans /proc again and again until the agent asks for the end.
fn look_through(mut watcher: Watcher, mut agent: Agent) -> Result<(), Box<dyn Error>> {
    let mut scanner = Scanner::new();
    let mut next = Instant::now() + scan::INTERVAL;
    loop {
        if agent.wait(None, Some(next.saturating_duration_since(Instant::now())))? {
            return Ok(());
        }
        if Instant::now() >= next {
            let now = unix_seconds();
            for event in scanner.scan() {
                watcher.handle(event, now)?;
            }
            next = Instant::now() + scan::INTERVAL;
        }
    }
}

/// The connection to the agent: its tasks, and whether it is still there.
struct Agent {
    client: Client,
    tasks: Tasks,
}

impl Agent {
    /// Waits until `events` can be read, the agent wants something, or `timeout` has passed. Returns true when the
    /// agent asks for the end.
    fn wait(&mut self, events: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> Result<bool, Box<dyn Error>> {
        let timeout = timeout.map(Timespec::try_from).transpose()?;
        let (agent_gone, tasks_wait) = {
            let records = PollFd::new(&self.client, PollFlags::empty());
            let tasks = PollFd::new(&self.tasks, PollFlags::IN);
            let events = events.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            let mut waiting: heapless::Vec<_, 3> = [records, tasks].into_iter().chain(events).collect();
            match poll(&mut waiting, timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
            let woken = |index: usize| waiting.get(index).is_some_and(|fd| !fd.revents().is_empty());
            (woken(0), woken(1))
        };
        if agent_gone {
            return Err("the agent has gone".into());
        }
        if tasks_wait { self.refuse_tasks() } else { Ok(false) }
    }

    /// Answers tasks, which this plugin does not accept. Returns true at the end of the pipe.
    fn refuse_tasks(&mut self) -> Result<bool, Box<dyn Error>> {
        loop {
            match self.tasks.try_receive() {
                Ok(Poll::Pending) => return Ok(false),
                Ok(Poll::Ready(None)) => return Ok(true),
                Ok(Poll::Ready(Some(task))) => self.client.answer(&task, Err("procwatch takes no tasks"))?,
                Err(error @ (ReceiveError::TooLong { .. } | ReceiveError::Malformed(_))) => report(error),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Writes a line to stderr, which the agent keeps in a file.
fn report(message: impl Display) {
    // There is nobody left to tell if that fails.
    let _ = writeln!(stderr(), "procwatch: {message}");
}

fn unix_seconds() -> i64 {
    // Rust's own clock ends in 2038 on processors of 32 bits.
    clock_gettime(ClockId::Realtime).tv_sec.max(0)
}
