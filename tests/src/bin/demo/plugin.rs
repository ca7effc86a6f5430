//! The plugin's process, seen from outside. The agent starts and stops it, the demo only looks on.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::procfs;

/// How procwatch's message begins when it has no access to the kernel's events.
const SCANS: &str = "/proc is looked through";

/// What procwatch says when the kernel dropped events because it could not keep up.
const OVERRAN: &str = "overran";

/// How often the byte count of a process that is about to end is read. procwatch ends longer after its last write than
/// this.
const LAST_LOOKS: Duration = Duration::from_micros(100);

/// How long to wait for the plugin's end. The agent kills a plugin that does not end long before.
const LAST_LOOKS_END: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Plugin {
    agent: u32,
    executable: PathBuf,
    pid: Option<u32>,
    /// The number of processes that ended although nobody asked them to.
    pub(crate) deaths: u64,
}

impl Plugin {
    pub(crate) fn new(agent: u32, executable: PathBuf) -> Self {
        Self { agent, executable, pid: None, deaths: 0 }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Looks for its process. Returns the pid if it is a new one.
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

    /// Returns true if it has to scan for processes, and so misses some.
    pub(crate) fn scans(&self) -> bool {
        self.words().contains(SCANS)
    }

    /// Returns what it said about events that the kernel dropped.
    pub(crate) fn overrun(&self) -> Option<String> {
        self.words().lines().rev().find(|line| line.contains(OVERRAN)).map(str::to_owned)
    }

    /// Returns the bytes that it has written as records, by the kernel's count, or `None` if the kernel does not count
    /// them.
    pub(crate) fn written(&self) -> Option<u64> {
        Some(self.without_words(procfs::bytes_written(self.pid?)?))
    }

    /// Follows that count until the process is gone. It has read the count once when this returns.
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

    /// Subtracts what it wrote to standard error, which the kernel counts as well.
    fn without_words(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(fs::metadata(self.stderr()).map_or(0, |metadata| metadata.len()))
    }

    fn words(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.stderr()).unwrap_or_default()).into_owned()
    }

    /// Returns the file in which the agent keeps its standard error.
    fn stderr(&self) -> PathBuf {
        self.executable.with_extension("stderr")
    }
}

/// Polls the byte count of a process that is about to end, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Follower(Option<JoinHandle<Option<u64>>>);

impl Follower {
    /// Waits until the process is gone, and returns the last value of [`Plugin::written`].
    pub(crate) fn last(self, plugin: &Plugin) -> Option<u64> {
        Some(plugin.without_words(self.0?.join().ok()??))
    }
}
