//! The fields of the heartbeat records: 1000 for the agent and its host, 1001 for each plugin.
//!
//! The names are generation C's (`agent/heartbeat/heartbeat.go` of the reference). Every value is a string, and
//! fractions have eight decimals. Record 1000 always has every field, because the server builds its picture of the host
//! from this record alone. What cannot be found out is empty or 0.
//!
//! `du` is as old as the previous heartbeat, and 0 in the first one. On a slow disk or over a network, walking a
//! directory takes seconds, so it happens in the background.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::sys::blocking;
use crate::sys::size::measure;

use super::fields::Fields;
use super::platform::{Distribution, Kernel};
use super::root::HostRoot;
use super::usage::{Hardware, ProcessMeter, ProcessUsage, Rates, SystemMeter, SystemUsage, gateway, name_servers};

/// Number of plugins whose last sample is kept. It is more than a configuration has. A further plugin replaces the one
/// that was reported least recently, whose next rates are then those since its start.
const PLUGIN_LIMIT: usize = 128;

/// Facts for record 1000 that only the rest of the agent knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AgentFacts<'a> {
    /// `running` or `abnormal`.
    pub(crate) state: &'a str,
    /// A JSON array of strings that say what is abnormal.
    pub(crate) state_detail: &'a str,
    /// The data centre's name that was set for the host.
    pub(crate) idc: &'a str,
    /// The region that was set for the host.
    pub(crate) region: &'a str,
    /// How the agent reached the server: `sd`, `private`, `public`, or `unknown` before it has.
    pub(crate) net_mode: &'a str,
    /// Traffic of the connections as the agent sees it: bytes of gRPC payload of all calls, records sent and commands received.
    pub(crate) traffic: Traffic,
}

/// Facts for record 1001 that only the rest of the agent knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PluginFacts<'a> {
    /// The plugin's name, unique among the plugins.
    pub(crate) name: &'a str,
    /// Its version as configured.
    pub(crate) version: &'a str,
    /// Its process.
    pub(crate) pid: u32,
    /// When its process was started, in monotonic milliseconds. Its rates count from then.
    pub(crate) began_ms: u64,
    /// Its directory, whose size is reported.
    pub(crate) dir: &'a Path,
    /// Traffic of its pipes as the plugin sees it: `tx` is from the plugin to the agent.
    pub(crate) traffic: Traffic,
}

/// Totals of what was received and sent, of which the heartbeat makes rates. They may start again from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Bytes received.
    pub(crate) rx_bytes: u64,
    /// Bytes sent.
    pub(crate) tx_bytes: u64,
    /// Messages received: commands or tasks.
    pub(crate) rx_messages: u64,
    /// Messages sent: records.
    pub(crate) tx_messages: u64,
}

/// Makes heartbeats. It keeps what does not change, and the last sample of each rate.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    host: HostRoot,
    workdir: PathBuf,
    pid: u32,
    kernel: Kernel,
    distribution: Distribution,
    hardware: Hardware,
    system: SystemMeter,
    process: ProcessMeter,
    traffic: TrafficMeter,
    /// The plugin that was reported last is at the end.
    plugins: Vec<PluginMeter>,
    sizes: DirectoryMeter,
}

impl Heartbeat {
    /// A heartbeat of this process. `du` is that of `workdir`.
    pub(crate) fn new(host: HostRoot, workdir: PathBuf) -> Self {
        Self {
            kernel: Kernel::current(),
            distribution: Distribution::detect(&host),
            hardware: Hardware::read(&host),
            host,
            workdir,
            pid: std::process::id(),
            system: SystemMeter::default(),
            process: ProcessMeter::new(),
            traffic: TrafficMeter::new(),
            plugins: Vec::new(),
            sizes: DirectoryMeter::default(),
        }
    }

    /// Measures the work directory and the plugins' directories for the next heartbeat.
    pub(crate) fn measure_directories(&mut self, plugins: impl Iterator<Item = PathBuf>) {
        self.sizes.measure(&self.workdir, plugins);
    }

    /// Replaces `out` by the fields of record 1000. `now_ms` is monotonic.
    pub(crate) fn agent_fields(&mut self, now_ms: u64, facts: &AgentFacts<'_>, out: &mut Fields) {
        out.clear();
        out.put("kernel_version", &self.kernel.release);
        out.put("arch", &self.kernel.machine);
        out.put("platform", &self.distribution.platform);
        out.put("platform_family", self.distribution.family);
        out.put("platform_version", &self.distribution.version);
        out.put("state", facts.state);
        out.put("state_detail", facts.state_detail);
        out.put("idc", facts.idc);
        out.put("region", facts.region);
        out.put("net_mode", facts.net_mode);
        self.traffic.put(now_ms, facts.traffic, out);
        let system = self.system.sample(&self.host);
        let process = self.process.sample(&self.host, self.pid, system.boot_time, None, now_ms).unwrap_or_default();
        put_process(self.pid, &process, out);
        out.put("ngr", process.threads);
        out.put("du", self.sizes.bytes(&self.workdir));
        put_system(&system, out);
        out.put("host_serial", &self.hardware.serial);
        out.put("host_id", &self.hardware.id);
        out.put("host_model", &self.hardware.model);
        out.put("host_vendor", &self.hardware.vendor);
        out.put("cpu_name", &self.hardware.cpu_name);
        out.put("dns", name_servers(&self.host));
        match gateway(&self.host) {
            Some(gateway) => out.put("gateway", gateway),
            None => out.put("gateway", ""),
        }
    }

    /// Replaces `out` by the fields of record 1001. Clears it and returns false when the plugin's process has gone,
    /// because ended plugins are not reported. `now_ms` is monotonic.
    #[must_use]
    pub(crate) fn plugin_fields(&mut self, now_ms: u64, facts: &PluginFacts<'_>, out: &mut Fields) -> bool {
        out.clear();
        let boot_time = self.system.boot_time(&self.host);
        let mut meter = self.take_plugin(facts);
        let began_ms = Some(facts.began_ms);
        let Some(process) = meter.process.sample(&self.host, facts.pid, boot_time, began_ms, now_ms) else {
            return false;
        };
        out.put("name", facts.name);
        out.put("pversion", facts.version);
        meter.traffic.put(now_ms, facts.traffic, out);
        put_process(facts.pid, &process, out);
        out.put("du", self.sizes.bytes(facts.dir));
        self.plugins.push(meter);
        true
    }

    /// Frees the last sample of a plugin that no longer runs.
    pub(crate) fn forget(&mut self, plugin: &str) {
        self.plugins.retain(|meter| meter.name != plugin);
    }

    /// Takes the meter of a plugin out of the list, or makes one, and leaves room to put it back at the end.
    fn take_plugin(&mut self, facts: &PluginFacts<'_>) -> PluginMeter {
        if let Some(at) = self.plugins.iter().position(|meter| meter.name == facts.name) {
            return self.plugins.remove(at);
        }
        if self.plugins.len() == PLUGIN_LIMIT {
            self.plugins.remove(0);
        }
        PluginMeter {
            name: facts.name.to_owned(),
            process: ProcessMeter::new(),
            traffic: TrafficMeter(Rates::since(facts.began_ms)),
        }
    }
}

/// The sizes of directories at their last measurement.
#[derive(Debug, Default)]
struct DirectoryMeter {
    last: Arc<Mutex<HashMap<PathBuf, u64>>>,
    /// The measuring thread holds the other end while it works.
    at_work: Weak<()>,
}

impl DirectoryMeter {
    /// The size of a directory, or 0 if it has not been measured yet.
    fn bytes(&self, dir: &Path) -> u64 {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get(dir).copied().unwrap_or(0)
    }

    /// Measures on a thread that may block, unless the last measurement is still going on.
    fn measure(&mut self, workdir: &Path, plugins: impl Iterator<Item = PathBuf>) {
        if self.at_work.strong_count() > 0 {
            return;
        }
        let (workdir, plugins, last) = (workdir.to_owned(), plugins.collect::<Vec<_>>(), Arc::clone(&self.last));
        let at_work = Arc::new(());
        self.at_work = Arc::downgrade(&at_work);
        // If no thread can be started, the sizes stay as they are until the next heartbeat.
        let _ = blocking::start((workdir, plugins), move |(workdir, plugins)| {
            let mut sizes: HashMap<_, _> =
                plugins.into_iter().map(|dir| (dir.clone(), measure(&dir, None).lengths)).collect();
            // Each plugin reports its own (generation C).
            let size = measure(&workdir, Some(c"plugin")).lengths;
            sizes.insert(workdir, size);
            *last.lock().unwrap_or_else(PoisonError::into_inner) = sizes;
            drop(at_work);
        });
    }
}

/// The last sample of one plugin.
#[derive(Debug)]
struct PluginMeter {
    name: String,
    process: ProcessMeter,
    traffic: TrafficMeter,
}

/// The last sample of both directions.
#[derive(Debug)]
struct TrafficMeter(Rates<4>);

impl TrafficMeter {
    fn new() -> Self {
        Self(Rates::new())
    }

    fn put(&mut self, now_ms: u64, totals: Traffic, out: &mut Fields) {
        let Traffic { rx_bytes, tx_bytes, rx_messages, tx_messages } = totals;
        let [rx_speed, tx_speed, rx_tps, tx_tps] =
            self.0.sample(now_ms, [rx_bytes, tx_bytes, rx_messages, tx_messages]);
        out.put_fraction("rx_speed", rx_speed);
        out.put_fraction("tx_speed", tx_speed);
        out.put_fraction("rx_tps", rx_tps);
        out.put_fraction("tx_tps", tx_tps);
    }
}

fn put_process(pid: u32, usage: &ProcessUsage, out: &mut Fields) {
    out.put("pid", pid);
    out.put_fraction("cpu", usage.cpu);
    out.put("rss", usage.rss);
    out.put_fraction("read_speed", usage.read_speed);
    out.put_fraction("write_speed", usage.write_speed);
    out.put("nfd", usage.nfd);
    out.put("start_time", usage.start_time);
}

fn put_system(usage: &SystemUsage, out: &mut Fields) {
    out.put("nproc", usage.nproc);
    out.put("total_mem", usage.total_mem);
    out.put_fraction("load_1", usage.load[0]);
    out.put_fraction("load_5", usage.load[1]);
    out.put_fraction("load_15", usage.load[2]);
    out.put("running_procs", usage.running_procs);
    out.put("total_procs", usage.total_procs);
    out.put("boot_time", usage.boot_time);
    out.put_fraction("cpu_usage", usage.cpu_usage);
    out.put_fraction("mem_usage", usage.mem_usage);
}

#[cfg(test)]
mod tests {
    use super::super::root::tests::Tree;
    use super::*;

    const AGENT: AgentFacts<'_> = AgentFacts {
        state: "running",
        state_detail: "[]",
        idc: "default",
        region: "default",
        net_mode: "private",
        traffic: Traffic { rx_bytes: 0, tx_bytes: 0, rx_messages: 0, tx_messages: 0 },
    };

    /// Generation C's record 1000, sorted.
    const AGENT_KEYS: [&str; 40] = [
        "arch",
        "boot_time",
        "cpu",
        "cpu_name",
        "cpu_usage",
        "dns",
        "du",
        "gateway",
        "host_id",
        "host_model",
        "host_serial",
        "host_vendor",
        "idc",
        "kernel_version",
        "load_1",
        "load_15",
        "load_5",
        "mem_usage",
        "net_mode",
        "nfd",
        "ngr",
        "nproc",
        "pid",
        "platform",
        "platform_family",
        "platform_version",
        "read_speed",
        "region",
        "rss",
        "running_procs",
        "rx_speed",
        "rx_tps",
        "start_time",
        "state",
        "state_detail",
        "total_mem",
        "total_procs",
        "tx_speed",
        "tx_tps",
        "write_speed",
    ];

    /// Generation C's record 1001, sorted.
    const PLUGIN_KEYS: [&str; 14] = [
        "cpu",
        "du",
        "name",
        "nfd",
        "pid",
        "pversion",
        "read_speed",
        "rss",
        "rx_speed",
        "rx_tps",
        "start_time",
        "tx_speed",
        "tx_tps",
        "write_speed",
    ];

    fn keys(fields: &Fields) -> Vec<&str> {
        let mut keys: Vec<_> = fields.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys
    }

    fn stat(pid: u32, ticks: u64) -> String {
        format!("{pid} (x) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 9 0 0 1 10 0 0\n")
    }

    fn heartbeat(tree: &Tree) -> Heartbeat {
        Heartbeat::new(tree.host().clone(), tree.path().join("wd"))
    }

    /// Measures the directories, and waits for the result.
    fn measure(heartbeat: &mut Heartbeat, plugins: &[&Path]) {
        heartbeat.measure_directories(plugins.iter().map(|dir| dir.to_path_buf()));
        while heartbeat.sizes.at_work.strong_count() > 0 {
            std::thread::yield_now();
        }
    }

    fn plugin<'a>(name: &'a str, dir: &'a Path, traffic: Traffic) -> PluginFacts<'a> {
        PluginFacts { name, version: "1.0.0.1", pid: 42, began_ms: 0, dir, traffic }
    }

    #[test]
    fn every_field_is_there_on_a_host_that_says_nothing() {
        let tree = Tree::new(&[]);
        let mut fields = Fields::new();
        heartbeat(&tree).agent_fields(0, &AGENT, &mut fields);
        assert_eq!(keys(&fields), AGENT_KEYS);
        for key in ["platform", "gateway", "dns", "cpu_name", "host_id"] {
            assert_eq!(fields.value(key), Some(""), "{key}");
        }
        for key in ["cpu", "mem_usage", "cpu_usage", "rx_speed", "tx_tps", "read_speed", "load_1"] {
            assert_eq!(fields.value(key), Some("0.00000000"), "{key}");
        }
        for key in ["rss", "nfd", "start_time", "du", "ngr", "nproc", "total_mem", "boot_time"] {
            assert_eq!(fields.value(key), Some("0"), "{key}");
        }
        assert_eq!(fields.value("pid"), Some(std::process::id().to_string().as_str()));
    }

    #[tokio::test]
    async fn the_agent_and_its_host_are_described() {
        let pid = std::process::id();
        let own_stat = format!("/proc/{pid}/stat");
        let tree = Tree::new(&[
            ("/etc/debian_version", "12.7\n"),
            ("/etc/resolv.conf", "nameserver 10.0.0.2\n"),
            ("/proc/loadavg", "0.50 0.25 0.10 2/300 9\n"),
            ("/proc/stat", "cpu  1 1 1 97\ncpu0 1 1 1 97\nbtime 1700000000\n"),
            (&own_stat, &stat(pid, 0)),
            ("/wd/log/agent.log", "12345"),
            ("/wd/plugin/x/x", "1234567"),
            ("/sys/class/dmi/id/product_serial", "1e5\n"),
        ]);
        let mut heartbeat = heartbeat(&tree);
        let mut fields = Fields::new();
        heartbeat.agent_fields(10_000, &AGENT, &mut fields);
        assert_eq!(fields.value("du"), Some("0"), "it is not waited for");
        measure(&mut heartbeat, &[]);
        tree.write("/proc/stat", "cpu  51 1 1 147\ncpu0 1 1 1 97\nbtime 1700000000\n");
        tree.write(&own_stat, stat(pid, 600));
        let traffic = Traffic { rx_bytes: 600, tx_bytes: 6_000, rx_messages: 6, tx_messages: 60_000 };
        heartbeat.agent_fields(70_000, &AgentFacts { traffic, ..AGENT }, &mut fields);
        let cpu = format!("{:.8}", 10.0 / rustix::param::clock_ticks_per_second() as f64);
        for (key, value) in [
            ("platform", "debian"),
            ("platform_family", "debian"),
            ("platform_version", "12.7"),
            ("state", "running"),
            ("state_detail", "[]"),
            ("net_mode", "private"),
            ("rx_speed", "10.00000000"),
            ("tx_speed", "100.00000000"),
            ("rx_tps", "0.10000000"),
            ("tx_tps", "1000.00000000"),
            ("cpu", &cpu),
            ("cpu_usage", "0.50000000"),
            ("load_1", "0.50000000"),
            ("running_procs", "2"),
            ("ngr", "9"),
            ("du", "5"),
            ("dns", "10.0.0.2"),
            ("start_time", "1700000000"),
            ("boot_time", "1700000000"),
            ("host_serial", "1e5"),
        ] {
            assert_eq!(fields.value(key), Some(value), "{key}");
        }
    }

    #[tokio::test]
    async fn a_plugin_is_described_until_it_has_gone() {
        let tree = Tree::new(&[
            ("/proc/42/stat", &stat(42, 0)),
            ("/proc/stat", "btime 1700000000\n"),
            ("/wd/plugin/x/x", "1234567"),
            ("/wd/plugin/x/plugin/y", "1"),
        ]);
        let dir = tree.path().join("wd/plugin/x");
        let mut heartbeat = heartbeat(&tree);
        let mut fields = Fields::new();
        assert!(heartbeat.plugin_fields(0, &plugin("x", &dir, Traffic::default()), &mut fields));
        assert_eq!(keys(&fields), PLUGIN_KEYS);
        measure(&mut heartbeat, &[&dir]);
        let traffic = Traffic { tx_bytes: 120_000, rx_messages: 6, ..Traffic::default() };
        assert!(heartbeat.plugin_fields(60_000, &plugin("x", &dir, traffic), &mut fields));
        for (key, value) in [
            ("name", "x"),
            ("pversion", "1.0.0.1"),
            ("pid", "42"),
            ("tx_speed", "2000.00000000"),
            ("rx_tps", "0.10000000"),
            ("du", "8"),
            ("start_time", "1700000000"),
        ] {
            assert_eq!(fields.value(key), Some(value), "{key}");
        }
        std::fs::remove_file(tree.path().join("proc/42/stat")).unwrap();
        assert!(!heartbeat.plugin_fields(120_000, &plugin("x", &dir, traffic), &mut fields));
        assert_eq!(fields.iter().len(), 0);
        assert!(heartbeat.plugins.is_empty());
    }

    #[tokio::test]
    async fn directories_are_measured_once_at_a_time_and_keep_their_last_size() {
        let tree = Tree::new(&[("/wd/file", "12345"), ("/wd/plugin/x/x", "1234567")]);
        let (workdir, dir) = (tree.path().join("wd"), tree.path().join("wd/plugin/x"));
        let mut heartbeat = heartbeat(&tree);
        measure(&mut heartbeat, &[&dir]);
        let sizes = |heartbeat: &Heartbeat| (heartbeat.sizes.bytes(&workdir), heartbeat.sizes.bytes(&dir));
        assert_eq!(sizes(&heartbeat), (5, 7));
        // On a disk that does not answer, the measurement waits and no other begins.
        let (answer, silence) = std::sync::mpsc::channel::<()>();
        let at_work = Arc::new(());
        heartbeat.sizes.at_work = Arc::downgrade(&at_work);
        let waiting = std::thread::spawn(move || {
            let _ = silence.recv();
            drop(at_work);
        });
        tree.write("/wd/file", "123456");
        heartbeat.measure_directories(std::iter::empty());
        assert_eq!(sizes(&heartbeat), (5, 7));
        drop(answer);
        waiting.join().unwrap();
        assert_eq!(sizes(&heartbeat), (5, 7));
        measure(&mut heartbeat, &[]);
        assert_eq!(sizes(&heartbeat), (6, 0), "what is not asked for is not kept");
    }

    #[test]
    fn samples_of_plugins_are_bounded_and_can_be_forgotten() {
        let tree = Tree::new(&[("/proc/42/stat", &stat(42, 0))]);
        let mut heartbeat = heartbeat(&tree);
        let mut fields = Fields::new();
        let mut report = |heartbeat: &mut Heartbeat, now_ms, name: &str, tx_bytes| {
            let traffic = Traffic { tx_bytes, ..Traffic::default() };
            assert!(heartbeat.plugin_fields(now_ms, &plugin(name, tree.path(), traffic), &mut fields));
            fields.value("tx_speed").unwrap().to_owned()
        };
        for n in 0..PLUGIN_LIMIT {
            report(&mut heartbeat, 0, &n.to_string(), 0);
        }
        // The first plugin was reported again, so it does not make room.
        assert_eq!(report(&mut heartbeat, 10_000, "0", 100), "10.00000000");
        report(&mut heartbeat, 10_000, "one more", 0);
        assert_eq!(heartbeat.plugins.len(), PLUGIN_LIMIT);
        assert_eq!(report(&mut heartbeat, 20_000, "0", 300), "20.00000000");
        assert_eq!(report(&mut heartbeat, 20_000, "1", 300), "15.00000000", "its sample made room");
        heartbeat.forget("0");
        heartbeat.forget("none");
        assert_eq!(heartbeat.plugins.len(), PLUGIN_LIMIT - 1);
        assert_eq!(report(&mut heartbeat, 30_000, "0", 900), "30.00000000");
    }
}
