//! Measures the whole host's load, memory and CPU.

use super::super::root::HostRoot;

/// Most bytes of `/proc/stat` that are read. `btime` comes after a line with a number for each interrupt, which has
/// tens of kilobytes on large machines.
const STAT_LIMIT: u64 = 512 * 1024;

/// Most bytes of `/proc/meminfo` that are read. It has about 1.5 KiB.
const MEMINFO_LIMIT: u64 = 8 * 1024;

/// Most bytes of `/proc/loadavg` that are read. It has one line.
const LOADAVG_LIMIT: u64 = 256;

/// The host's state at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::host) struct SystemUsage {
    /// The load averages over 1, 5 and 15 minutes.
    pub(in crate::host) load: [f64; 3],
    /// Runnable tasks.
    pub(in crate::host) running_procs: u64,
    /// All tasks.
    pub(in crate::host) total_procs: u64,
    /// Memory in bytes.
    pub(in crate::host) total_mem: u64,
    /// The share of the memory that is neither free nor reclaimable cache, 0 to 1.
    pub(in crate::host) mem_usage: f64,
    /// The share of the CPU time since the last sample that was not idle, 0 to 1. Waiting for IO counts as busy, as in
    /// gopsutil v3.22.
    pub(in crate::host) cpu_usage: f64,
    /// Logical processors online.
    pub(in crate::host) nproc: u64,
    /// Boot time in unix seconds.
    pub(in crate::host) boot_time: u64,
}

/// Samples the host. Keeps the CPU times and the boot time of the last sample.
#[derive(Debug, Default)]
pub(in crate::host) struct SystemMeter {
    last: Option<CpuTimes>,
    /// 0 before the first sample.
    boot_time: u64,
}

impl SystemMeter {
    /// When the host was started, in unix seconds, or 0 if it does not say. Reads only if no sample has been taken.
    pub(in crate::host) fn boot_time(&mut self, host: &HostRoot) -> u64 {
        if self.boot_time == 0 {
            self.boot_time = Stat::parse(&host.text("/proc/stat", STAT_LIMIT)).boot_time;
        }
        self.boot_time
    }

    /// Measures the host now. `cpu_usage` of the first sample is 0.
    pub(in crate::host) fn sample(&mut self, host: &HostRoot) -> SystemUsage {
        let stat = Stat::parse(&host.text("/proc/stat", STAT_LIMIT));
        let memory = Memory::parse(&host.text("/proc/meminfo", MEMINFO_LIMIT));
        let load = Load::parse(&host.text("/proc/loadavg", LOADAVG_LIMIT)).unwrap_or_default();
        self.boot_time = stat.boot_time;
        let cpu_usage = self.last.replace(stat.cpu).map_or(0.0, |last| stat.cpu.busy_part_since(last));
        SystemUsage {
            load: load.averages,
            running_procs: load.running,
            total_procs: load.total,
            total_mem: memory.total_kib.saturating_mul(1024),
            mem_usage: memory.used_part(),
            cpu_usage,
            nproc: stat.processors,
            boot_time: stat.boot_time,
        }
    }
}

/// The time all processors have spent since boot, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    idle: u64,
}

impl CpuTimes {
    /// Parses the `cpu` line after its name: user, nice, system, idle, iowait, irq, softirq, steal, and then guest
    /// times, which user and nice include already.
    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let mut times = Self::default();
        for (column, word) in words.take(8).enumerate() {
            let ticks = word.parse().unwrap_or(0);
            let sum = if column == 3 { &mut times.idle } else { &mut times.busy };
            *sum = sum.saturating_add(ticks);
        }
        times
    }

    fn busy_part_since(self, last: Self) -> f64 {
        let busy = self.busy.saturating_sub(last.busy) as f64;
        let idle = self.idle.saturating_sub(last.idle) as f64;
        if busy + idle > 0.0 { busy / (busy + idle) } else { 0.0 }
    }
}

/// `/proc/stat`, proc_stat(5).
#[derive(Debug, Default)]
struct Stat {
    cpu: CpuTimes,
    processors: u64,
    boot_time: u64,
}

impl Stat {
    fn parse(text: &str) -> Self {
        let mut stat = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("cpu") => stat.cpu = CpuTimes::parse(words),
                Some("btime") => stat.boot_time = words.next().and_then(|word| word.parse().ok()).unwrap_or(0),
                Some(name) if is_processor(name) => stat.processors += 1,
                _ => {}
            }
        }
        stat
    }
}

fn is_processor(name: &str) -> bool {
    name.strip_prefix("cpu").is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
}

/// `/proc/meminfo`, proc_meminfo(5), in KiB.
#[derive(Debug, Default)]
struct Memory {
    total_kib: u64,
    reclaimable_kib: u64,
}

impl Memory {
    fn parse(text: &str) -> Self {
        let mut memory = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let kib = || value.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
            match key {
                "MemTotal" => memory.total_kib = kib(),
                "MemFree" | "Buffers" | "Cached" | "SReclaimable" => {
                    memory.reclaimable_kib = memory.reclaimable_kib.saturating_add(kib());
                }
                _ => {}
            }
        }
        memory
    }

    fn used_part(&self) -> f64 {
        let used = self.total_kib.saturating_sub(self.reclaimable_kib) as f64;
        if self.total_kib > 0 { used / self.total_kib as f64 } else { 0.0 }
    }
}

/// `/proc/loadavg`: three averages, and `runnable/all` tasks.
#[derive(Debug, Default)]
struct Load {
    averages: [f64; 3],
    running: u64,
    total: u64,
}

impl Load {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let mut load = Self::default();
        for average in &mut load.averages {
            *average = words.next()?.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)?;
        }
        let (running, total) = words.next()?.split_once('/')?;
        load.running = running.parse().ok()?;
        load.total = total.parse().ok()?;
        Some(load)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::root::tests::Tree;
    use super::*;

    const STAT: &str = "cpu  100 10 50 800 40 0 0 0 7 0\ncpu0 50 5 25 400 20 0 0 0 7 0\ncpu1 50 5 25 400 20 0 0 0 0 0\n\
                        intr 12345 0 0 9\nctxt 99\nbtime 1700000000\nprocesses 5000\n";
    const MEMINFO: &str = "MemTotal:        1000 kB\nMemFree:          200 kB\nMemAvailable:     600 kB\n\
                           Buffers:           50 kB\nCached:           100 kB\nSwapCached:       500 kB\nSReclaimable:      50 kB\n\
                           HugePages_Total:       0\n";

    #[test]
    fn the_host_is_measured() {
        let tree = Tree::new(&[
            ("/proc/stat", STAT),
            ("/proc/meminfo", MEMINFO),
            ("/proc/loadavg", "0.52 1.25 2.00 3/456 7890\n"),
        ]);
        let mut meter = SystemMeter::default();
        let usage = meter.sample(tree.host());
        let expected = SystemUsage {
            load: [0.52, 1.25, 2.0],
            running_procs: 3,
            total_procs: 456,
            total_mem: 1_024_000,
            mem_usage: 0.6,
            cpu_usage: 0.0,
            nproc: 2,
            boot_time: 1_700_000_000,
        };
        assert_eq!(usage, expected);
        assert_eq!(meter.boot_time(tree.host()), expected.boot_time);
        assert_eq!(SystemMeter::default().boot_time(tree.host()), expected.boot_time);
        // 25 ticks busy (5 of them waiting for IO), 75 idle.
        tree.write("/proc/stat", "cpu  110 10 60 875 45 0 0 0 7 0\ncpu0 1 1 1 1\n");
        assert_eq!(meter.sample(tree.host()).cpu_usage, 0.25);
        assert_eq!(meter.sample(tree.host()).cpu_usage, 0.0, "no time has passed");
    }

    #[test]
    fn counters_that_go_back_stay_within_bounds() {
        let mut meter = SystemMeter::default();
        for (stat, busy) in [(STAT, 0.0), ("cpu 1 1 1 900\n", 0.0), ("cpu 500 1 1 1\n", 1.0), ("", 0.0), ("cpu\n", 0.0)]
        {
            assert_eq!(meter.sample(Tree::new(&[("/proc/stat", stat)]).host()).cpu_usage, busy, "{stat:?}");
        }
    }

    #[test]
    fn what_is_missing_or_garbled_is_zero() {
        assert_eq!(SystemMeter::default().sample(Tree::new(&[]).host()), SystemUsage::default());
        let garbled = Tree::new(&[
            ("/proc/stat", "cpu x y\nbtime\nbtime soon\ncpux 1\n"),
            ("/proc/meminfo", "MemTotal: lots\nMemFree\nCached: 99999999999999999999999 kB\n"),
            ("/proc/loadavg", "inf NaN -1 1/2 3\n"),
        ]);
        assert_eq!(SystemMeter::default().sample(garbled.host()), SystemUsage::default());
        assert!(Load::parse("0.1 0.2 0.3 1").is_none());
    }

    #[test]
    fn the_live_host_is_plausible() {
        let usage = SystemMeter::default().sample(&HostRoot::live());
        assert!(usage.nproc > 0 && usage.boot_time > 0 && usage.total_mem > 0 && usage.total_procs > 0);
        assert!((0.0..=1.0).contains(&usage.mem_usage));
    }
}
