//! The plugin's process, seen from outside: the agent starts it and stops it, the demo looks on.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::procfs;

/// What procwatch begins to say when it has to do without the kernel's events.
const SCANS: &str = "/proc is looked through";

/// What it says when the kernel had more events than it could take.
const OVERRAN: &str = "overran";

/// How often the count of a process that is about to end is read. procwatch's last write and its end lie further apart.
const LAST_LOOKS: Duration = Duration::from_micros(100);

/// The agent kills a plugin that does not end long before.
const LAST_LOOKS_END: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Plugin {
    agent: u32,
    executable: PathBuf,
    pid: Option<u32>,
    /// Processes that have ended although nobody wanted it.
    pub(crate) deaths: u64,
}

impl Plugin {
    pub(crate) fn new(agent: u32, executable: PathBuf) -> Self {
        Self { agent, executable, pid: None, deaths: 0 }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Looks for its process; its number when it is a new one.
    pub(crate) fn look(&mut self) -> Option<u32> {
        if let Some(pid) = self.pid {
            if procfs::is_child(pid, self.agent) {
                return None;
            }
            self.deaths += 1;
        }
        self.pid = procfs::child(self.agent, &self.executable);
        self.pid
    }

    /// Whether it has to look for processes itself, and so misses some.
    pub(crate) fn scans(&self) -> bool {
        self.words().contains(SCANS)
    }

    /// What it said about events that the kernel could not keep for it.
    pub(crate) fn overrun(&self) -> Option<String> {
        self.words().lines().rev().find(|line| line.contains(OVERRAN)).map(str::to_owned)
    }

    /// Bytes that it has written as records, by the kernel's count; nothing when the kernel does not tell.
    pub(crate) fn written(&self) -> Option<u64> {
        Some(self.without_words(procfs::bytes_written(self.pid?)?))
    }

    /// Follows that count until the process is gone; the first look at it lies behind when this returns.
    pub(crate) fn follow_to_its_end(&self) -> Follower {
        let (Some(pid), looked) = (self.pid, Arc::new(Barrier::new(2))) else { return Follower(None) };
        let has_looked = Arc::clone(&looked);
        let follow = move || {
            let (start, mut last) = (Instant::now(), procfs::bytes_written(pid));
            has_looked.wait();
            while let Some(bytes) = procfs::bytes_written(pid).filter(|_| start.elapsed() < LAST_LOOKS_END) {
                last = Some(bytes);
                thread::sleep(LAST_LOOKS);
            }
            last
        };
        let thread = thread::Builder::new().name("follow".into()).spawn(follow).ok();
        if thread.is_some() {
            looked.wait();
        }
        Follower(thread)
    }

    /// What it said on standard error was written too.
    fn without_words(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(fs::metadata(self.stderr()).map_or(0, |metadata| metadata.len()))
    }

    fn words(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.stderr()).unwrap_or_default()).into_owned()
    }

    /// Where the agent keeps what it says on standard error.
    fn stderr(&self) -> PathBuf {
        self.executable.with_extension("stderr")
    }
}

/// Looks at the count of a process that is about to end, again and again, on a thread.
#[derive(Debug)]
pub(crate) struct Follower(Option<JoinHandle<Option<u64>>>);

impl Follower {
    /// What [`Plugin::written`] would have told last. Waits for the process to be gone.
    pub(crate) fn last(self, plugin: &Plugin) -> Option<u64> {
        Some(plugin.without_words(self.0?.join().ok()??))
    }
}
