//! The agent's children: those that it has started itself, and the orphans that it adopts.
//!
//! A plugin may leave processes behind. The agent is their subreaper (prctl(2)): an orphan becomes the agent's child
//! instead of init's, and the agent finds it there (`plugin::kin`). As the first process of a container, the agent
//! adopts every orphan in it. Somebody has to take the exit status of each, or it stays as a zombie. [`reap`] does so
//! on SIGCHLD. It skips children for which an [`Own`] lives, because whoever has started them waits for them.
//!
//! No two threads call these functions at the same time, so a child that one starts cannot be reaped before it is known: the net
//! thread calls them while it runs, and the first thread before and after that.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};

use crate::host::{HostRoot, Process, processes};

static OWN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// True once a child was started that is no plugin.
static HAD_HELPER: AtomicBool = AtomicBool::new(false);

/// A child that the agent has started itself and waits for. Once this is dropped, [`reap`] may take its exit status.
#[derive(Debug)]
pub(crate) struct Own(u32);

impl Own {
    /// Registers a plugin's process.
    pub(crate) fn plugin(pid: u32) -> Self {
        own().insert(pid);
        Self(pid)
    }

    /// Registers another process, such as a package manager. What it starts is no plugin's.
    pub(crate) fn helper(pid: u32) -> Self {
        HAD_HELPER.store(true, Ordering::Relaxed);
        Self::plugin(pid)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        own().remove(&self.0);
    }
}

fn own() -> MutexGuard<'static, BTreeSet<u32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes orphans among the agent's descendants its children from now on.
///
/// # Errors
/// On Linux before 3.4.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Stops adopting orphans. A program that is executed in the agent's place would inherit the trait, and that version
/// may not reap them.
pub(crate) fn leave_orphans() {
    let _ = set_child_subreaper(None);
}

/// Returns true when every adopted orphan is a plugin's, because the agent adopts nobody else's.
pub(crate) fn all_orphans_are_plugins() -> bool {
    !getpid().is_init() && !HAD_HELPER.load(Ordering::Relaxed)
}

/// The processes of `all` that the agent has adopted.
pub(crate) fn adopted(all: &[Process]) -> impl Iterator<Item = &Process> {
    let (me, own) = (std::process::id(), own().clone());
    all.iter().filter(move |process| process.parent == me && !own.contains(&process.pid))
}

/// Takes the exit status of every adopted orphan that has ended.
pub(crate) fn reap() {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(status) => match status.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok()) {
                Some(pid) if !own().contains(&pid) => take_status(pid),
                // The kernel would return this one again and again, and hide those after it.
                _ => return reap_each(),
            },
            // A signal without a name has killed it.
            Err(_) => return reap_each(),
        }
    }
}

fn reap_each() {
    let all = processes(&HostRoot::live());
    adopted(&all).filter(|process| process.is_dead).for_each(|process| take_status(process.pid));
}

fn take_status(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = waitpid(pid, WaitOptions::NOHANG);
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_child_that_somebody_waits_for_is_not_taken_for_an_orphan() {
        let mut child = Command::new("true").spawn().expect("it can be started");
        // Nobody but this test waits for it, so its status stays.
        let mut other = Command::new("true").spawn().expect("it can be started");
        let own = Own::plugin(child.id());
        let ended = || -> Vec<u32> {
            let all = processes(&HostRoot::live());
            adopted(&all).filter(|process| process.is_dead).map(|process| process.pid).collect()
        };
        while !ended().contains(&other.id()) {
            sleep(Duration::from_millis(1));
        }
        assert!(!ended().contains(&child.id()));
        drop(own);
        while !ended().contains(&child.id()) {
            sleep(Duration::from_millis(1));
        }
        take_status(other.id());
        assert!(!ended().contains(&other.id()) && other.wait().is_err(), "its status is taken");
        assert!(child.wait().expect("its status is still there").success());
    }
}
