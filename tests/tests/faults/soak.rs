//! Ten minutes of everything that can break, in random order, under load.

use crate::load::RATE;
use crate::{CENTER, PLUGIN};
use elklet_tests::faults::{Proxy, Server};
use elklet_tests::harness::{Agent, Setup, types};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long it lasts unless `ELKLET_SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 600;

/// How long everything may take to arrive once nothing breaks any more.
const SETTLE: Duration = Duration::from_secs(180);

/// What the plugin sends until it is told to end.
const ENDLESS: &str = "endless";

/// Records of the last life.
const LAST_LOAD: u64 = 10_000;

/// Pseudorandom numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }
}

struct Soak {
    server: Server,
    proxy: Proxy,
    /// `None` only between two lives.
    agent: Option<Agent>,
    /// How often the agent was started. Each time its plugin begins a run of its own.
    lives: u64,
    peak_rss: u64,
    dice: Dice,
    /// What was done, and how often.
    done: BTreeMap<&'static str, u64>,
}

#[test]
#[ignore = "long: takes ten minutes"]
fn soak() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seconds = number("ELKLET_SOAK_SECONDS").unwrap_or(SECONDS);
    let seed = number("ELKLET_SOAK_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    eprintln!("ELKLET_SOAK_SEED={seed} for {seconds} s");
    let mut soak = Soak::start(seed);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        soak.break_something();
        let pause = soak.dice.millis(500, 6_000);
        sleep(pause);
    }
    soak.finish(begun.elapsed());
}

impl Soak {
    fn start(seed: u64) -> Self {
        let mut server = Server::new(CENTER);
        let proxy = Proxy::start(server.address());
        // Some orders leave the agent hardly a connection for minutes. What it then drops for want of room is told, but here nothing may be.
        let setup = server.setup().server(&proxy.address()).setting("spool", "mib = 1024");
        // Without a detail the plugin does what the script in its directory says, which changes from life to life.
        server.configure(&[setup.workdir().install("load", PLUGIN, "")]);
        server.start();
        let (done, dice) = (BTreeMap::new(), Dice(seed));
        let mut soak = Self { server, proxy, agent: None, lives: 0, peak_rss: 0, dice, done };
        soak.start_agent(setup, ENDLESS);
        soak
    }

    /// Starts a life whose plugin sends so much.
    fn start_agent(&mut self, setup: Setup, load: &str) {
        let run = format!("life-{}", self.lives);
        let script = format!("run={run} execve rate={RATE} {load}");
        fs::write(setup.workdir().plugin_dir("load").join("script"), script).unwrap();
        self.lives += 1;
        self.agent = Some(setup.start());
        self.server.wait_records("records of this life", SETTLE, |records| records.run(&run).received > 0);
    }

    /// Ends the agent in order. Returns the setup to start it again.
    fn end_agent(&mut self) -> Setup {
        let agent = self.agent.take().expect("it runs");
        self.peak_rss = self.peak_rss.max(agent.peak_rss());
        agent.into_setup()
    }

    fn break_something(&mut self) {
        let name = match self.dice.below(10) {
            0 => {
                self.server.kill();
                self.server.start();
                "server killed, back at once"
            }
            1 => {
                self.server.kill();
                sleep(self.dice.millis(1_000, 15_000));
                self.server.start();
                "server killed, back after 1 to 15 s"
            }
            2 => {
                self.server.stop();
                sleep(self.dice.millis(1_000, 20_000));
                self.server.go_on();
                "server stopped for 1 to 20 s"
            }
            3 => {
                self.proxy.reset();
                "connection reset"
            }
            4 => {
                self.proxy.cut();
                "connection closed"
            }
            5 => {
                self.proxy.corrupt();
                "a byte changed on its way"
            }
            6 => {
                self.proxy.delay(self.dice.millis(50, 500));
                sleep(self.dice.millis(1_000, 5_000));
                self.proxy.delay(Duration::ZERO);
                "delay of 50 to 500 ms for 1 to 5 s"
            }
            7 => {
                self.proxy.throttle(Some(256 << 10));
                sleep(self.dice.millis(1_000, 5_000));
                self.proxy.throttle(None);
                "256 KiB/s for 1 to 5 s"
            }
            8 => {
                self.proxy.stop();
                sleep(self.dice.millis(1_000, 15_000));
                self.proxy.go_on();
                "path stopped for 1 to 15 s"
            }
            _ => {
                let setup = self.end_agent();
                self.start_agent(setup, ENDLESS);
                "agent ended by SIGTERM, started again"
            }
        };
        *self.done.entry(name).or_default() += 1;
    }

    fn wait_for_goodbyes(&self, count: u64) {
        self.server.wait_records("goodbyes", SETTLE, |records| records.of_type(types::GOODBYE).count() as u64 >= count);
    }

    fn finish(mut self, lasted: Duration) {
        // The last life first sends what earlier ends have left in the spool, and then little of its own. The end of an agent that has
        // nothing left is clean. On a busy machine, one that sent as much as before would always have something left.
        let setup = self.end_agent();
        self.start_agent(setup, &format!("n={LAST_LOAD}"));
        self.wait_for_goodbyes(self.lives - 1);
        let last = format!("life-{}", self.lives - 1);
        self.server.wait_records("the last life", SETTLE, |records| records.run(&last).received == LAST_LOAD);
        let setup = self.end_agent();
        self.wait_for_goodbyes(self.lives);
        let (mut made, mut twice, mut wrong) = (0, 0, Vec::new());
        self.server.records(|records| {
            for goodbye in records.of_type(types::GOODBYE) {
                let (series, sent) = (records.run(&goodbye["run"]), goodbye["sent"].parse().unwrap());
                made += sent;
                twice += series.repeated;
                if !series.is_whole(sent) {
                    wrong.push(format!("{sent} of {} were made: {series:?}", goodbye["run"]));
                }
            }
        });
        eprintln!("| {} s at {RATE} records/s | |\n|---|---:|", lasted.as_secs());
        for (name, times) in &self.done {
            eprintln!("| {name} | {times} |");
        }
        eprintln!("| records made | {made} |\n| lost or out of order | {} |", wrong.len());
        eprintln!("| twice | {twice} ({:.2} %) |", 100.0 * twice as f64 / made as f64);
        eprintln!("| most memory of the agent | {:.1} MB |", self.peak_rss as f64 / 1e6);
        if !wrong.is_empty() {
            // What the agent said of it goes with its directory.
            for entry in fs::read_dir(setup.workdir().path().join("log")).unwrap().flatten() {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                eprintln!("--- {}\n{text}", entry.path().display());
            }
        }
        assert_eq!(wrong, [""; 0]);
    }
}
