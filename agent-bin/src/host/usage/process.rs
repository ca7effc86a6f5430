//! Measures one process's CPU, memory and IO.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use serde::Serialize;

use super::super::root::HostRoot;
use super::Rates;

/// Most bytes of `/proc/<pid>/stat` and `/proc/<pid>/io` that are read. Both have a few hundred.
const FILE_LIMIT: u64 = 4096;

/// Most descriptors that are counted. A process that has more is reported with this many.
const DESCRIPTOR_LIMIT: usize = 65_536;

/// What a process uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::host) struct ProcessUsage {
    /// CPU time since the last sample divided by wall time: 1 is one busy core.
    pub(in crate::host) cpu: f64,
    /// Resident bytes.
    pub(in crate::host) rss: u64,
    /// Bytes per second that the process had read from storage since the last sample.
    pub(in crate::host) read_speed: f64,
    /// The same for writing.
    pub(in crate::host) write_speed: f64,
    /// Open descriptors.
    pub(in crate::host) nfd: u64,
    /// Threads.
    pub(in crate::host) threads: u64,
    /// Start of the process in unix seconds.
    pub(in crate::host) start_time: u64,
}

/// Memory and CPU time of a process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Footprint {
    /// Resident bytes.
    pub(crate) rss_bytes: u64,
    /// CPU time since its start.
    pub(crate) cpu_ms: u64,
}

impl Footprint {
    /// The footprint of the process `pid`, or zeros if it is gone.
    pub(crate) fn of(host: &HostRoot, pid: u32) -> Self {
        let stat = Stat::parse(&host.text(&format!("/proc/{pid}/stat"), FILE_LIMIT));
        stat.map_or(Self::default(), |stat| Self {
            rss_bytes: stat.rss_pages.saturating_mul(page_size() as u64),
            cpu_ms: stat.cpu_ticks.saturating_mul(1000) / clock_ticks_per_second(),
        })
    }
}

/// Samples one process after another under the same name. A restarted plugin is a new process, and its counters are not
/// compared with the old one's.
#[derive(Debug)]
pub(in crate::host) struct ProcessMeter {
    /// The pid and the start time in ticks, which together identify a process.
    process: Option<(u32, u64)>,
    /// Rates of CPU ticks, bytes read and bytes written.
    rates: Rates<3>,
}

impl ProcessMeter {
    pub(in crate::host) fn new() -> Self {
        Self { process: None, rates: Rates::new() }
    }

    /// Samples the process `pid`, or returns `None` when it has gone (a zombie counts as gone). `boot_time` is in unix
    /// seconds. `now_ms` is monotonic, and so is `began_ms`, when the process began. A new process has rates since
    /// then, or zeros if that is unknown.
    pub(in crate::host) fn sample(
        &mut self,
        host: &HostRoot,
        pid: u32,
        boot_time: u64,
        began_ms: Option<u64>,
        now_ms: u64,
    ) -> Option<ProcessUsage> {
        let stat = Stat::parse(&host.text(&format!("/proc/{pid}/stat"), FILE_LIMIT))?;
        if self.process != Some((pid, stat.start_ticks)) {
            let rates = began_ms.map_or_else(Rates::new, Rates::since);
            *self = Self { process: Some((pid, stat.start_ticks)), rates };
        }
        let io = Io::parse(&host.text(&format!("/proc/{pid}/io"), FILE_LIMIT));
        let [ticks_per_second, read_speed, write_speed] =
            self.rates.sample(now_ms, [stat.cpu_ticks, io.read, io.written]);
        Some(ProcessUsage {
            cpu: ticks_per_second / clock_ticks_per_second() as f64,
            rss: stat.rss_pages.saturating_mul(page_size() as u64),
            read_speed,
            write_speed,
            nfd: descriptors(host, pid),
            threads: stat.threads,
            start_time: boot_time.saturating_add(stat.start_ticks / clock_ticks_per_second()),
        })
    }
}

/// `/proc/<pid>/stat`, proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    rss_pages: u64,
}

impl Stat {
    /// Parses a line. Returns `None` for a malformed line and for a dead process.
    fn parse(line: &str) -> Option<Self> {
        // The name in parentheses may contain anything, even parentheses and spaces. Column 3 follows it.
        let (_, columns) = line.rsplit_once(')')?;
        let mut columns = columns.split_ascii_whitespace();
        if matches!(columns.next()?, "Z" | "X" | "x") {
            return None;
        }
        // `nth` counts from the column after the last one taken.
        let user: u64 = columns.nth(10)?.parse().ok()?; // column 14
        let system: u64 = columns.next()?.parse().ok()?; // 15
        let threads = columns.nth(4)?.parse().ok()?; // 20
        let start_ticks = columns.nth(1)?.parse().ok()?; // 22
        let rss_pages = columns.nth(1)?.parse().ok()?; // 24
        Some(Self { cpu_ticks: user.saturating_add(system), threads, start_ticks, rss_pages })
    }
}

/// `/proc/<pid>/io`, proc_pid_io(5): bytes from and to storage, not pipes and sockets. Without the rights of the
/// process's owner, they are zeros.
#[derive(Debug, Default, PartialEq, Eq)]
struct Io {
    read: u64,
    written: u64,
}

impl Io {
    fn parse(text: &str) -> Self {
        let mut io = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let bytes = || value.trim().parse().unwrap_or(0);
            match key {
                "read_bytes" => io.read = bytes(),
                "write_bytes" => io.written = bytes(),
                _ => {}
            }
        }
        io
    }
}

fn descriptors(host: &HostRoot, pid: u32) -> u64 {
    let open = fs::read_dir(host.path(&format!("/proc/{pid}/fd")));
    open.map_or(0, |entries| entries.take(DESCRIPTOR_LIMIT).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::super::super::root::tests::Tree;
    use super::*;

    /// A stat line with the columns that matter: CPU ticks in two halves, and a misleading name.
    fn stat(state: char, ticks: u64, start: u64) -> String {
        let (user, system) = (ticks - ticks / 2, ticks / 2);
        format!(
            "42 (a) R (b) {state} 1 42 42 0 -1 4194560 100 0 0 0 {user} {system} 7 7 20 0 3 0 {start} 9999999 250 \
             18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
        )
    }

    const IO: &str =
        "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 5\n";

    #[test]
    fn a_process_is_measured() {
        let hz = clock_ticks_per_second();
        let tree = Tree::new(&[("/proc/42/stat", &stat('S', 100, 3 * hz)), ("/proc/42/io", IO), ("/proc/42/fd/0", "")]);
        tree.write("/proc/42/fd/1", "");
        let mut meter = ProcessMeter::new();
        let first = meter.sample(tree.host(), 42, 1_700_000_000, None, 10_000).unwrap();
        let expected = ProcessUsage {
            rss: 250 * page_size() as u64,
            nfd: 2,
            threads: 3,
            start_time: 1_700_000_003,
            ..ProcessUsage::default()
        };
        assert_eq!(first, expected);
        tree.write("/proc/42/stat", stat('R', 100 + hz, 3 * hz));
        tree.write("/proc/42/io", "read_bytes: 14096\nwrite_bytes: 8192\n");
        let second = meter.sample(tree.host(), 42, 1_700_000_000, None, 14_000).unwrap();
        assert_eq!([second.cpu, second.read_speed, second.write_speed], [0.25, 2500.0, 0.0]);
    }

    #[test]
    fn a_process_whose_beginning_is_known_is_measured_from_there() {
        let hz = clock_ticks_per_second();
        let tree = Tree::new(&[("/proc/42/stat", &stat('S', 2 * hz, 5)), ("/proc/42/io", IO)]);
        let usage = ProcessMeter::new().sample(tree.host(), 42, 0, Some(6_000), 10_000).unwrap();
        assert_eq!([usage.cpu, usage.read_speed, usage.write_speed], [0.5, 1024.0, 2048.0]);
    }

    #[test]
    fn another_process_starts_from_nothing() {
        let tree = Tree::new(&[("/proc/42/stat", &stat('S', 100, 5)), ("/proc/43/stat", &stat('S', 9_000, 5))]);
        let mut meter = ProcessMeter::new();
        meter.sample(tree.host(), 42, 0, None, 0).unwrap();
        assert_eq!(meter.sample(tree.host(), 43, 0, None, 60_000).unwrap().cpu, 0.0, "another pid");
        tree.write("/proc/43/stat", stat('S', 90_000, 6));
        assert_eq!(meter.sample(tree.host(), 43, 0, None, 120_000).unwrap().cpu, 0.0, "the pid is in use again");
        tree.write("/proc/43/stat", stat('S', 96_000, 6));
        assert!(meter.sample(tree.host(), 43, 0, None, 180_000).unwrap().cpu > 0.0);
    }

    #[test]
    fn a_process_that_has_gone_is_none() {
        let tree = Tree::new(&[("/proc/42/stat", &stat('Z', 100, 5))]);
        assert_eq!(ProcessMeter::new().sample(tree.host(), 42, 0, None, 0), None);
        assert_eq!(ProcessMeter::new().sample(tree.host(), 43, 0, None, 0), None);
    }

    #[test]
    fn lines_that_are_cut_or_garbled_are_none() {
        let line = stat('S', 100, 5);
        assert!(Stat::parse(&line).is_some());
        let enough = line.find(" 250").unwrap() + 4;
        for end in 0..enough - 3 {
            assert_eq!(Stat::parse(&line[..end]), None, "{}", &line[..end]);
        }
        assert_eq!(Stat::parse(&line.replace(" 250 ", " -1 ")), None);
        assert_eq!(Io::parse("read_bytes\nread_bytes: x\nwrite_bytes: 99999999999999999999999"), Io::default());
    }

    #[test]
    fn this_process_is_plausible() {
        let usage = ProcessMeter::new().sample(&HostRoot::live(), std::process::id(), 1, None, 0).unwrap();
        assert!(usage.rss > 0 && usage.nfd > 2 && usage.threads > 0 && usage.start_time > 0);
    }
}
