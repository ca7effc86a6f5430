//! What the agent keeps on the disk while there is no server, and what it says when it cannot.

use crate::PLUGIN;
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Agent, Setup, Signal, Site, types, wait_until};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// The data type of the record that reports losses.
const LOSS: i32 = 1012;

fn elklet(agent: &Agent, words: &[&str]) -> Output {
    let workdir = agent.workdir().path();
    Command::new(&Binaries::for_tests().elklet).args(words).arg("--workdir").arg(workdir).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Starts an agent with a plugin and waits until both are connected.
fn started(site: &Site, setup: Setup, detail: &str) -> Agent {
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, detail)]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent
}

/// Ends an agent that has no server, so that what it holds is on the disk. Returns the setup to start it again.
fn ended_offline(site: &mut Site, mut agent: Agent) -> (Setup, elklet_tests::center::Options) {
    let options = site.stop();
    agent.wait_for_log("no TCP connection: ");
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    agent.wait_for_log("records wait on the disk for the next start");
    (without_plugins(agent.into_setup()), options)
}

/// Otherwise the agent would start the plugin as before, and the plugin would write the same once more.
fn without_plugins(setup: Setup) -> Setup {
    fs::remove_file(setup.workdir().path().join("plugins.kept")).unwrap();
    setup
}

fn segments(workdir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(workdir.join("spool")) else { return Vec::new() };
    let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    all.sort();
    all
}

#[test]
fn what_is_left_at_the_end_waits_on_the_disk_and_goes_first_after_the_start() {
    let mut site = Site::new();
    let setup = site.setup().server(&site.address());
    let agent = started(&site, setup, "hello run=kept last=3000");
    let (setup, options) = ended_offline(&mut site, agent);
    let listed = Command::new(&Binaries::for_tests().elklet)
        .args(["spool", "ls", "--workdir"])
        .arg(setup.workdir().path())
        .output()
        .unwrap();
    let text = stdout(&listed);
    assert!(text.contains("probe  data type 7000: 3000 records from 2"), "{text}");

    site.start(options);
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello run=new n=100")]));
    let agent = setup.start();
    site.wait_records("new records", &agent, |records| records.run("new").received == 100);
    site.records(&agent, |records| assert!(records.run("kept").is_whole(3000), "{:?}", records.run("kept")));
    wait_until("empty spool", || segments(agent.workdir().path()).is_empty());
    let verified = elklet(&agent, &["spool", "verify"]);
    assert!(verified.status.success(), "{verified:?}");
    assert_eq!(site.fresh_heartbeats(&agent).count("records_lost"), 0);
}

#[test]
fn without_a_server_records_go_to_the_disk_and_memory_stays_small() {
    let mut site = Site::new();
    let setup = site.setup().server(&site.address());
    let agent = started(&site, setup, "hello run=all rate=5000 size=600 n=30000");
    let options = site.stop();
    wait_until("spooled records", || !segments(agent.workdir().path()).is_empty());
    let told =
        || stdout(&elklet(&agent, &["status"])).lines().find(|line| line.starts_with("spool ")).map(str::to_owned);
    wait_until("status tells of it", || told().is_some_and(|line| !line.contains(" 0 records, ")));
    let spooled = |page: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix("elklet_spool_records "));
        line.is_some_and(|number| number.parse::<u64>().unwrap() > 10_000)
    };
    wait_until("many spooled records", || spooled(&stdout(&elklet(&agent, &["status", "--metrics"]))));
    assert!(agent.rss() < 24 << 20, "{} KiB are resident", agent.rss() >> 10);
    site.start(options);
    site.wait_records("all records", &agent, |records| records.run("all").received == 30_000);
    site.records(&agent, |records| assert!(records.run("all").is_whole(30_000), "{:?}", records.run("all")));
    wait_until("empty spool", || segments(agent.workdir().path()).is_empty());
    let heartbeats = site.fresh_heartbeats(&agent);
    assert!(heartbeats.count("records_spooled") > 5_000, "{heartbeats:?}");
    assert_eq!(heartbeats.count("records_lost"), 0);
}

#[test]
fn a_damaged_file_costs_its_damaged_batches_and_the_stream_says_so() {
    let mut site = Site::new();
    let setup = site.setup().server(&site.address());
    let mut agent = started(&site, setup, "hello run=kept rate=5000 size=600 n=10000");
    let options = site.stop();
    // These make several batches, one behind the other.
    let spooled = |agent: &Agent| {
        let files = segments(agent.workdir().path());
        files.first().and_then(|file| fs::metadata(file).ok()).map_or(0, |file| file.len())
    };
    wait_until("spooled records", || spooled(&agent) > 100_000);
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    let file = segments(agent.workdir().path()).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, bytes).unwrap();
    let verified = elklet(&agent, &["spool", "verify"]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    assert_eq!(stdout(&verified).matches("DAMAGED: ").count(), 1, "{verified:?}");

    let setup = without_plugins(agent.into_setup());
    site.start(options);
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello run=new n=100")]));
    let agent = setup.start();
    agent.wait_for_log("passed over");
    site.wait_records("loss record", &agent, |records| records.of_type(LOSS).count() == 1);
    site.wait_records("new records", &agent, |records| records.run("new").received == 100);
    site.records(&agent, |records| {
        let loss = records.of_type(LOSS).next().unwrap();
        let (lost, kept): (u64, _) = (loss["records"].parse().unwrap(), records.run("kept"));
        assert_eq!(loss["cause"], "spool_damaged");
        assert!(kept.missing > 0 && kept.missing <= lost && kept.misplaced == 0, "{kept:?} {loss:?}");
    });
}

#[test]
fn a_plugin_that_is_to_wait_loses_nothing_where_there_is_no_spool() {
    let mut site = Site::new();
    let setup = site
        .setup()
        .server(&site.address())
        .setting("spool", "mib = 0")
        .setting("plugin.probe", "when_full = \"wait\"");
    let agent = started(&site, setup, "hello");
    site.tell(&agent, "probe", "run=held deaf=go size=4000 n=60000");
    site.wait_records("task", &agent, |records| records.of_type(types::TASK).count() == 1);
    let options = site.stop();
    agent.wait_for_log("the next attempt is in ");
    fs::write(agent.workdir().plugin_dir("probe").join("go"), "").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    site.start(options);
    site.wait_records("held records", &agent, |records| records.run("held").received == 60_000);
    site.records(&agent, |records| assert!(records.run("held").is_whole(60_000), "{:?}", records.run("held")));
    assert_eq!(site.fresh_heartbeats(&agent).count("records_lost"), 0);
}

#[test]
fn without_a_spool_the_oldest_go_are_counted_and_told() {
    let mut site = Site::new();
    let setup = site.setup().server(&site.address()).setting("spool", "mib = 0");
    let agent = started(&site, setup, "hello");
    // These are some 250 MiB, of which memory keeps a part.
    site.tell(&agent, "probe", "run=gone deaf=go size=4000 n=60000");
    site.wait_records("task", &agent, |records| records.of_type(types::TASK).count() == 1);
    let options = site.stop();
    agent.wait_for_log("the next attempt is in ");
    fs::write(agent.workdir().plugin_dir("probe").join("go"), "").unwrap();
    let dropped = |page: &str| {
        page.lines().any(|line| line.starts_with("elklet_lost_memory_full_total ") && !line.ends_with(" 0"))
    };
    wait_until("records that were dropped", || dropped(&stdout(&elklet(&agent, &["status", "--metrics"]))));
    std::thread::sleep(Duration::from_secs(3));
    site.start(options);
    site.wait_records("loss record", &agent, |records| records.of_type(LOSS).count() > 0);
    site.wait_records("the last record", &agent, |records| {
        let run = records.run("gone");
        run.received + run.missing == 60_000
    });
    site.records(&agent, |records| {
        let of_run = |loss: &BTreeMap<String, String>| loss["plugin"] == "probe" && loss["lost_data_type"] == "7000";
        let losses: Vec<_> = records.of_type(LOSS).filter(of_run).collect();
        let lost: u64 = losses.iter().map(|loss| loss["records"].parse::<u64>().unwrap()).sum();
        assert!(
            losses.iter().all(|loss| loss["cause"] == "memory_full" && loss["first"] <= loss["last"]),
            "{losses:?}"
        );
        assert_eq!(records.run("gone").missing, lost, "to the record");
    });
}
