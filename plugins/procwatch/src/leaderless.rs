//! Follows processes whose first thread has ended while others live on.
//!
//! The kernel reports the end of each thread, and a process ends with its last one. Usually that is the first thread, whose
//! end ends the program. It is not when the first thread called `pthread_exit`, or when another thread executes a program,
//! which ends all other threads and takes the first one's number. So this module looks up in /proc whether an end was the
//! process's. It remembers a process that goes on without its first thread until the end of another thread was its last.

use crate::event::Pid;
use crate::procfs::ProcDir;
use crate::stat::Stat;
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The processes that are known to have lost their first thread, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Leaderless {
    processes: Vec<Process>,
    has_changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    pid: Pid,
    /// When its first thread ended, as in [`crate::event::Event::ThreadExit`].
    at_ns: u64,
}

/// Most processes to follow. The end of a further one is reported when its first thread ends. Programs rarely do this
/// on purpose, and one process takes 16 bytes.
const CAPACITY: usize = 1024;

impl Leaderless {
    /// Handles the end of a thread. Returns true when it was the end of its process.
    pub(crate) fn handle_thread_exit(&mut self, thread: Pid, pid: Pid, at_ns: u64) -> bool {
        // The end of another thread matters only in a process that waits for its last one.
        if thread != pid && !self.contains(pid) {
            return false;
        }
        match Look::at(pid, at_ns) {
            Look::Ended => {
                self.remove(pid);
                true
            }
            Look::Running => {
                self.remove(pid);
                false
            }
            Look::WithoutFirstThread => {
                let is_followed = self.insert(pid, at_ns);
                !is_followed
            }
        }
    }

    /// Looks for processes that have lost their first thread unnoticed.
    pub(crate) fn look_through(&mut self, running: impl Iterator<Item = Pid>) {
        let now_ns = nanoseconds(clock_gettime(ClockId::Monotonic));
        for pid in running {
            if Look::at(pid, now_ns) == Look::WithoutFirstThread {
                self.insert(pid, now_ns);
            }
        }
    }

    /// Handles an exec. The thread that executed is now the process's first one.
    pub(crate) fn handle_exec(&mut self, pid: Pid) {
        self.remove(pid);
    }

    /// Returns the processes whose threads' ends are wanted, if they have changed since the last call. The caller makes
    /// the kernel deliver these events from now on, and then calls [`Leaderless::take_ended`] for ends that came before.
    pub(crate) fn take_change(&mut self) -> Option<impl Iterator<Item = Pid> + '_> {
        let has_changed = std::mem::take(&mut self.has_changed);
        has_changed.then(|| self.processes.iter().map(|process| process.pid))
    }

    /// Removes and returns a process that has ended meanwhile.
    pub(crate) fn take_ended(&mut self) -> Option<Pid> {
        let has_ended = |process: &&Process| matches!(Look::at(process.pid, process.at_ns), Look::Ended);
        let pid = self.processes.iter().find(has_ended)?.pid;
        self.remove(pid);
        Some(pid)
    }

    fn contains(&self, pid: Pid) -> bool {
        self.processes.iter().any(|process| process.pid == pid)
    }

    /// Adds a process. Returns false when there is no room.
    fn insert(&mut self, pid: Pid, at_ns: u64) -> bool {
        if self.contains(pid) {
            return true;
        }
        if self.processes.len() >= CAPACITY {
            return false;
        }
        self.processes.push(Process { pid, at_ns });
        self.has_changed = true;
        true
    }

    fn remove(&mut self, pid: Pid) {
        let before = self.processes.len();
        self.processes.retain(|process| process.pid != pid);
        self.has_changed |= self.processes.len() != before;
    }
}

/// What /proc shows of a process after one of its threads has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Ended,
    /// It has a first thread: another thread has executed a program and taken the first one's place.
    Running,
    WithoutFirstThread,
}

impl Look {
    fn at(pid: Pid, at_ns: u64) -> Self {
        match ProcDir::open(pid).and_then(|dir| dir.stat()) {
            Ok(stat) => Self::of(&stat, ticks_since_boot(at_ns)),
            Err(Errno::NOENT | Errno::SRCH) => Self::Ended,
            // The process cannot be looked at, for instance for want of a descriptor. Most ends of a first thread are
            // the process's.
            Err(_) => Self::Ended,
        }
    }

    /// `at` is the thread's end in ticks since the system's start.
    fn of(stat: &Stat, at: u64) -> Self {
        // A process that began after the thread had ended is another one with the same number.
        if stat.has_ended() || stat.start_time > at {
            Self::Ended
        } else if stat.first_thread_has_ended() {
            Self::WithoutFirstThread
        } else {
            Self::Running
        }
    }
}

/// Converts a time of the monotonic clock to the clock of /proc's start times, which runs on while the system sleeps.
fn ticks_since_boot(monotonic_ns: u64) -> u64 {
    // In this order, a delay in between makes the result later. What started before the event then stays before it.
    let monotonic = nanoseconds(clock_gettime(ClockId::Monotonic));
    let slept = nanoseconds(clock_gettime(ClockId::Boottime)).saturating_sub(monotonic);
    monotonic_ns.saturating_add(slept) / NANOSECONDS_PER_TICK
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// /proc counts in hundredths of a second on every architecture that this is built for (`USER_HZ`).
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Comm;
    use std::process::{self, Command};

    fn stat(state: u8, threads: u32, start_time: u64) -> Stat {
        Stat { comm: Comm::default(), state, threads, family: None, tty: 0, flags: 0, start_time, start_stack: 0 }
    }

    #[test]
    fn a_process_ends_with_its_last_thread_or_is_another_one() {
        assert_eq!(Look::of(&stat(b'Z', 1, 5), 9), Look::Ended);
        assert_eq!(Look::of(&stat(b'Z', 3, 5), 9), Look::WithoutFirstThread);
        assert_eq!(Look::of(&stat(b'S', 3, 5), 9), Look::Running);
        assert_eq!(Look::of(&stat(b'S', 3, 10), 9), Look::Ended);
    }

    #[test]
    fn the_clocks_agree() {
        let now_ns = nanoseconds(clock_gettime(ClockId::Monotonic));
        let own = ProcDir::open(process::id()).unwrap().stat().unwrap();
        assert!(own.start_time <= ticks_since_boot(now_ns), "this process has started before now");
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let started = ProcDir::open(child.id()).unwrap().stat().unwrap().start_time;
        let later_ns = nanoseconds(clock_gettime(ClockId::Monotonic));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ticks_since_boot(now_ns) <= started + 1 && started <= ticks_since_boot(later_ns));
    }

    #[test]
    fn who_is_gone_has_ended_and_who_runs_has_not() {
        let now_ns = nanoseconds(clock_gettime(ClockId::Monotonic));
        let mut leaderless = Leaderless::default();
        let nobody = 1 << 23;
        assert!(leaderless.handle_thread_exit(nobody, nobody, now_ns));
        assert!(!leaderless.handle_thread_exit(nobody + 1, nobody, now_ns), "nobody waits for that thread");
        assert!(!leaderless.handle_thread_exit(process::id(), process::id(), now_ns));
        assert!(leaderless.take_change().is_none());
    }

    #[test]
    fn the_list_is_told_when_it_changes_and_is_bounded() {
        let mut leaderless = Leaderless::default();
        for pid in 0..=u32::try_from(CAPACITY).unwrap() {
            assert_eq!(leaderless.insert(pid, 0), (pid as usize) < CAPACITY);
            assert!(leaderless.insert(0, 0), "who is in it stays");
        }
        assert_eq!(leaderless.take_change().unwrap().count(), CAPACITY);
        assert!(leaderless.take_change().is_none());
        leaderless.handle_exec(5);
        assert!(!leaderless.take_change().unwrap().any(|pid| pid == 5));
        leaderless.handle_exec(5);
        assert!(leaderless.take_change().is_none());
    }
}
