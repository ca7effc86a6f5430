//! What the demo reads about processes under /proc.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) rss_bytes: u64,
    pub(crate) peak_rss_bytes: u64,
    /// User and system time of all its threads.
    pub(crate) cpu: Duration,
}

/// Reads what a process uses. Returns `None` if it is gone.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let status = read(pid, "status")?;
    let bytes = |name| Some(number_after(&status, name)? * 1024);
    Some(Usage {
        rss_bytes: bytes("VmRSS:")?,
        peak_rss_bytes: bytes("VmHWM:")?,
        cpu: cpu(&read(pid, "stat")?, rustix::param::clock_ticks_per_second())?,
    })
}

/// Returns the bytes that a process has passed to write(2) and its like, to files and pipes but not by `send`. Returns
/// `None` if the process is gone or belongs to another user, or if the kernel does not count.
pub(crate) fn bytes_written(pid: u32) -> Option<u64> {
    number_after(&read(pid, "io")?, "wchar:")
}

/// Finds the process that `parent` has started from `executable`.
pub(crate) fn child(parent: u32, executable: &Path) -> Option<u32> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let wanted = executable.to_str()?;
    pids.into_iter().find(|pid| {
        let is_child = read(*pid, "stat").and_then(|stat| nth_after_comm(&stat, 1)) == Some(u64::from(parent));
        // A child that has not called exec yet still has its parent's arguments.
        is_child && read(*pid, "cmdline").is_some_and(|arguments| arguments.split('\0').next() == Some(wanted))
    })
}

/// Returns true if `pid` is still a child of `parent`.
pub(crate) fn is_child(pid: u32, parent: u32) -> bool {
    read(pid, "stat").and_then(|stat| nth_after_comm(&stat, 1)) == Some(u64::from(parent))
}

fn read(pid: u32, file: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// Returns `utime` and `stime`, see proc_pid_stat(5).
fn cpu(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let ticks = nth_after_comm(stat, 11)? + nth_after_comm(stat, 12)?;
    Some(Duration::from_millis(ticks * 1000 / ticks_per_second))
}

/// A program's name may hold spaces and brackets. The fields behind it may not.
fn nth_after_comm(stat: &str, n: usize) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(n)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_its_name() {
        let stat = "42 (a) b (c) S 7 42 42 0 -1 0 0 0 0 0 120 30 0 0 20 0 9 0 0 1 10 0 0\n";
        assert_eq!(nth_after_comm(stat, 1), Some(7));
        assert_eq!(cpu(stat, 100), Some(Duration::from_millis(1500)));
        assert_eq!(cpu("42 (x", 100), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let own = std::process::id();
        let usage = usage(own).unwrap();
        assert!(usage.rss_bytes > 100_000 && usage.peak_rss_bytes >= usage.rss_bytes, "{usage:?}");
        assert_eq!(super::usage(u32::MAX), None);
        let parent = std::os::unix::process::parent_id();
        assert!(is_child(own, parent) && !is_child(parent, own));
    }
}
