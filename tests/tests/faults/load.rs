//! The load of these tests, and what must hold for it afterwards.

use crate::{CENTER, PLUGIN};
use elklet_tests::binaries::Binaries;
use elklet_tests::faults::Server;
use elklet_tests::harness::{Agent, Series, Setup, Site, wait_until};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// Records a second.
pub(crate) const RATE: u64 = 5_000;

/// The most records that a broken stream may leave unconfirmed, so that they arrive twice: the server's window and two
/// messages, each of at most one arena.
const TWICE_A_BREAK: u64 = 3 * 8192;

/// How long all records of a load may take to arrive, beyond the time that it takes to make them.
pub(crate) const SETTLE: Duration = Duration::from_secs(90);

/// Returns the script of a plugin that sends records for this many seconds.
pub(crate) fn script(seconds: u64) -> String {
    format!("run=load execve rate={RATE} n={}", seconds * RATE)
}

/// Checks that none of the `made` records is lost, that all are in order, and that no more have arrived twice than this
/// many breaks allow.
pub(crate) fn assert_whole(what: &str, series: Series, made: u64, breaks: u64) {
    let twice = series.repeated;
    eprintln!("{what}: {made} records, {} missing, {} misplaced, {twice} twice", series.missing, series.misplaced);
    assert!(series.is_whole(made), "{what}: {series:?}");
    assert!(twice <= breaks * TWICE_A_BREAK, "{what}: {twice} records have come twice after {breaks} breaks");
}

/// Waits until everything that the agent has sent is confirmed.
pub(crate) fn wait_confirmed(agent: &Agent) {
    let mut status = Command::new(&Binaries::for_tests().elklet);
    status.args(["status", "--json", "--workdir"]).arg(agent.workdir().path());
    wait_until("confirmation", || {
        let said: Value = serde_json::from_slice(&status.output().unwrap().stdout).unwrap();
        said["ledger"]["unconfirmed_records"] == 0
    });
}

/// A server in a process of its own, and an agent with a loaded plugin.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) server: Server,
    pub(crate) agent: Agent,
    pub(crate) made: u64,
}

impl Run {
    /// Starts load for this many seconds. It has begun to arrive when this returns.
    pub(crate) fn start(seconds: u64) -> Self {
        Self::start_at(Server::new(CENTER), seconds)
    }

    /// Starts load at this server.
    pub(crate) fn start_at(server: Server, seconds: u64) -> Self {
        let address = server.address().to_string();
        Self::start_with(server, seconds, |setup| setup.server(&address))
    }

    /// Starts load with more settings for the agent, such as where to find a server.
    pub(crate) fn start_with(server: Server, seconds: u64, change: impl FnOnce(Setup) -> Setup) -> Self {
        let setup = change(server.setup());
        Self::start_script(server, setup, &script(seconds), seconds * RATE)
    }

    /// Starts load with a plugin that makes this many records in its own way, [`RATE`] of them at once.
    pub(crate) fn start_script(mut server: Server, setup: Setup, script: &str, made: u64) -> Self {
        server.configure(&[setup.workdir().install("load", PLUGIN, script)]);
        server.start();
        let run = Self { server, agent: setup.start(), made };
        run.wait_received(RATE);
        run
    }

    /// Returns how many records have arrived so far, without repetitions.
    pub(crate) fn received(&self) -> u64 {
        self.server.records(|records| records.run("load").received)
    }

    /// Waits until this many have arrived.
    pub(crate) fn wait_received(&self, count: u64) {
        let within = SETTLE + Duration::from_secs(count / RATE);
        self.server.wait_records("records", within, |records| records.run("load").received >= count);
    }

    /// Waits until all have arrived, in whatever order, and checks that the agent has told why some came late, if some did.
    ///
    /// The agent lets newer records go before a batch over which one stream after another has ended.
    pub(crate) fn assert_none_lost(&self, what: &str) {
        let within = SETTLE + Duration::from_secs(self.made / RATE);
        self.server.wait_records("all records", within, |records| records.distinct("load") >= self.made);
        let series = self.server.records(|records| records.run("load"));
        eprintln!("{what}: {} records, {} late, {} twice", self.made, series.missing, series.repeated);
        let told = self.agent.log_lines("newer ones go before them").len();
        assert!(series.missing == 0 || told > 0, "{what}: {series:?}, and nobody has said why");
    }

    /// Waits until all have arrived, and checks that they are whole.
    pub(crate) fn assert_whole(&self, what: &str, breaks: u64) {
        self.wait_received(self.made);
        assert_whole(what, self.server.records(|records| records.run("load")), self.made, breaks);
    }
}

/// Starts an agent with a loaded plugin at an embedded center. Load has begun to arrive when this returns.
pub(crate) fn start_at(site: &Site, setup: Setup, seconds: u64) -> Agent {
    site.center().set_configs(Some(vec![setup.workdir().install("load", PLUGIN, &script(seconds))]));
    let agent = setup.start();
    site.wait_records("first records", &agent, |records| records.run("load").received >= RATE);
    agent
}

/// Waits until all have arrived, and checks that they are whole.
pub(crate) fn assert_whole_at(site: &Site, agent: &Agent, what: &str, seconds: u64, breaks: u64) {
    let made = seconds * RATE;
    site.wait_records("all records", agent, |records| records.run("load").received >= made);
    assert_whole(what, site.records(agent, |records| records.run("load")), made, breaks);
}
