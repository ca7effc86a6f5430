//! Hears of the calls that a plugin's filter refuses (seccomp_unotify(2)), counts them, and has them fail.
//!
//! A refused call waits in the kernel until the agent has answered. The agent answers in the loop that waits for the plugin's
//! end, so that no thread and no timer is there for it. A plugin that floods is answered slowly: each of its calls waits, and so
//! it pays for them itself. If the agent dies, the kernel lets the call fail with `ENOSYS`.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use elklet_core::command::PluginName;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::time::Timespec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::filter::refusal;
use crate::pump::PluginStats;

/// After this many answers the agent pauses, which bounds what a plugin can make it do: 320 answers a second.
const ANSWERS: u32 = 32;
const REST: Duration = Duration::from_millis(100);

/// Walls of a process that get a line in the log. `elklet status` shows the others too.
const MAX_TOLD: usize = 8;

/// `struct seccomp_notif`. The kernel wants it zeroed.
#[repr(C)]
#[derive(Default)]
struct Notice {
    id: u64,
    pid: u32,
    flags: u32,
    call: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: Opcode = opcode::read_write::<Notice>(b'!', 0);
const SEND: Opcode = opcode::read_write::<Answer>(b'!', 1);

/// The listener of a plugin's filter.
pub(crate) struct Refusals {
    /// `None` where the kernel has none, and when nobody has the filter any more.
    listener: Option<AsyncFd<OwnedFd>>,
    name: PluginName,
    stats: Arc<PluginStats>,
    /// Answers since the last pause.
    answers: u32,
}

impl Refusals {
    pub(crate) fn new(listener: Option<OwnedFd>, name: PluginName, stats: Arc<PluginStats>) -> Self {
        // SAFETY: the `AsyncFd` owns the descriptor, which is open, stays so as long as it is owned, and is the same at every call.
        let register = |listener| unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
        let listener = listener.map(register).transpose();
        if let Err(error) = &listener {
            log::warn!("plugin {name}: calls that its sandbox refuses cannot be heard of: {error}");
        }
        Self { listener: listener.ok().flatten(), name, stats, answers: 0 }
    }

    /// Answers until the plugin has ended.
    pub(crate) async fn answer_until<T>(mut self, ended: impl Future<Output = T>) -> T {
        tokio::pin!(ended);
        loop {
            tokio::select! {
                biased;
                result = &mut ended => break result,
                () = sleep(REST), if self.answers >= ANSWERS => self.answers = 0,
                () = asked(self.listener.as_ref()), if self.answers < ANSWERS => self.answer(),
            }
        }
    }

    /// Answers one call.
    fn answer(&mut self) {
        let Some(listener) = &self.listener else { return };
        self.answers += 1;
        let mut notice = Notice::default();
        // SAFETY: the kernel writes a structure of this size, which is a part of the number of the request.
        let received = unsafe { ioctl(listener, Updater::<RECEIVE, _>::new(&mut notice)) };
        match received {
            Ok(()) => {
                let (name, error) = refusal(notice.call, notice.arguments[0]);
                let mut answer = Answer { id: notice.id, value: 0, error: -error, flags: 0 };
                // It fails if the process was killed meanwhile.
                // SAFETY: the kernel reads a structure of this size.
                let _ = unsafe { ioctl(listener, Updater::<SEND, _>::new(&mut answer)) };
                self.count(name);
            }
            // The process was killed, or a signal has interrupted its call.
            Err(Errno::NOENT | Errno::INTR) => {}
            Err(_) => self.listener = None,
        }
    }

    fn count(&self, call: &'static str) {
        let (is_first, walls) = self.stats.refuse(call);
        if is_first && walls <= MAX_TOLD {
            let hint = if call.starts_with("socket") { "; allow = [\"network\"] would let it" } else { "" };
            log::warn!("plugin {}: the sandbox refused {call}{hint}", self.name);
        }
    }
}

/// Waits until a call waits, or for ever without a listener.
async fn asked(listener: Option<&AsyncFd<OwnedFd>>) {
    let Some(listener) = listener else { return pending().await };
    loop {
        // The runtime's end is the only error.
        let Ok(mut guard) = listener.readable().await else { return pending().await };
        // To receive blocks where nothing waits.
        if is_asked(listener).unwrap_or(true) {
            return;
        }
        guard.clear_ready();
    }
}

/// Returns true if a call waits, or the filter has gone.
fn is_asked(listener: &AsyncFd<OwnedFd>) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}
