//! What the disk keeps for a server that is not there, across orderly ends of the agent and others.

use crate::load::{RATE, Run, SETTLE, assert_whole};
use crate::{CENTER, PLUGIN};
use elklet_tests::center::AGENT_HEARTBEAT;
use elklet_tests::faults::Server;
use elklet_tests::harness::{Agent, AgentRecords, Setup, skipped, types, wait_until};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// The data type of the record that reports losses.
const LOSS: i32 = 1012;

/// Returns how many numbered records the agent says are lost, including those that it cannot identify.
fn told_lost(records: &AgentRecords) -> u64 {
    let numbered = |fields: &std::collections::BTreeMap<String, String>| {
        let of = (&*fields["plugin"], &*fields["lost_data_type"]);
        of == ("load", &types::NUMBERED.to_string()) || of == ("", "0")
    };
    records.of_type(LOSS).filter(numbered).map(|fields| fields["records"].parse::<u64>().unwrap()).sum()
}

/// Starts an agent whose plugin runs the file `script` in its directory, which may change between lives.
fn start_life(server: &mut Server, setup: Setup, script: &str) -> Agent {
    if !setup.workdir().plugin_dir("load").exists() {
        server.configure(&[setup.workdir().install("load", PLUGIN, "")]);
        server.start();
    }
    fs::write(setup.workdir().plugin_dir("load").join("script"), script).unwrap();
    setup.start()
}

fn endless(run: &str) -> String {
    format!("run={run} execve rate={RATE} endless")
}

#[test]
fn an_agent_that_ends_without_a_server_and_starts_again() {
    let mut server = Server::new(CENTER);
    let setup = server.setup().server(&server.address().to_string());
    let agent = start_life(&mut server, setup, &endless("first"));
    server.wait_records("records", SETTLE, |records| records.run("first").received > RATE);
    server.kill();
    sleep(Duration::from_secs(3));
    let setup = agent.into_setup();
    server.start();
    let agent = start_life(&mut server, setup, &endless("second"));
    server.wait_records("goodbye", SETTLE, |records| records.of_type(types::GOODBYE).count() == 1);
    server.wait_records("the second life", SETTLE, |records| records.run("second").received > RATE);
    // What a busy machine cannot send in the time that an end may take waits on the disk for the next life.
    let setup = agent.into_setup();
    let _agent = start_life(&mut server, setup, "");
    server.wait_records("second goodbye", SETTLE, |records| records.of_type(types::GOODBYE).count() == 2);
    server.records(|records| {
        for goodbye in records.of_type(types::GOODBYE) {
            let run = &goodbye["run"];
            assert_whole(&format!("SIGTERM, {run} life"), records.run(run), goodbye["sent"].parse().unwrap(), 1);
        }
    });
}

#[test]
fn an_agent_that_is_killed_while_spooling() {
    let mut server = Server::new(CENTER);
    // A plugin that outlives the agent says how many records it has made.
    let setup = server.setup().server(&server.address().to_string()).setting("plugins", "end_with_agent = false");
    // The work directory is in memory if that is possible. The test measures how long the agent lets records wait, not
    // how slow the disk is.
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory } else { setup.workdir().path() };
    let spool = tempfile::tempdir_in(parent).unwrap();
    symlink(spool.path(), setup.workdir().path().join("spool")).unwrap();
    let agent = start_life(&mut server, setup, &endless("first"));
    server.wait_records("records", SETTLE, |records| records.run("first").received > RATE);
    server.kill();
    sleep(Duration::from_secs(5));
    let setup = agent.kill();
    let path = setup.workdir().plugin_dir("load").join("made");
    let mut made = 0;
    wait_until("end of the plugin", || {
        made = fs::read_to_string(&path).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        made > 0
    });
    server.start();
    let _agent = start_life(&mut server, setup, &endless("second"));
    server.wait_records("the second life", SETTLE, |records| records.run("second").received > RATE);
    let series = server.records(|records| records.run("first"));
    let lost = made - series.received;
    eprintln!(
        "killed while spooling: {made} records, {lost} at the end had not reached the spool, {} twice",
        series.repeated
    );
    assert!(series.is_whole(series.received), "{series:?}");
    assert!(lost < RATE, "{lost} of {made} records are lost, which is more than a second of them");
}

/// Starts load with an agent whose spool is a file system of its own, mounted with these options. Returns `None` if it
/// cannot be mounted.
fn with_a_disk(test: &str, options: &str, when_full: &str, seconds: u64) -> Option<Run> {
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        skipped(test, "mounting takes root");
        return None;
    }
    let mount = format!("mkdir -p \"$0\" && mount -t tmpfs -o {options} none \"$0\" && exec \"$@\"");
    let server = Server::new(CENTER);
    let address = server.address().to_string();
    Some(Run::start_with(server, seconds, |setup| {
        let spool = setup.workdir().path().join("spool").display().to_string();
        let words = ["unshare", "--mount", "--", "sh", "-c", &mount, &spool];
        let setup = setup.started_by(&words).server(&address).setting("spool", "mib = 16");
        setup.setting("plugin.load", &format!("when_full = \"{when_full}\""))
    }))
}

fn assert_spool_errors(run: &Run) {
    let errors = run.server.records(|records| records.values(AGENT_HEARTBEAT, "spool_errors"));
    assert!(errors.last().is_some_and(|count| count != "0"), "{errors:?}");
}

#[test]
fn a_disk_that_is_full() {
    // Less than a third of what the outage below makes, and less than the spool believes it may take.
    let Some(mut run) = with_a_disk("a_disk_that_is_full", "size=6m", "drop_oldest", 24) else { return };
    run.server.kill();
    sleep(Duration::from_secs(16));
    run.server.start();
    assert_accounted(&run, "disk full");
    assert!(!run.agent.log_lines("No space left").is_empty(), "the disk was not full");
    assert_spool_errors(&run);
}

#[test]
fn a_disk_that_cannot_be_written() {
    let Some(mut run) = with_a_disk("a_disk_that_cannot_be_written", "ro", "wait", 12) else { return };
    run.server.kill();
    sleep(Duration::from_secs(6));
    run.server.start();
    run.assert_whole("disk read-only", 1);
    assert!(!run.agent.log_lines("Read-only file system").is_empty(), "the disk could be written");
    assert_spool_errors(&run);
}

#[test]
fn a_directory_that_vanishes() {
    let mut run = Run::start(20);
    run.server.kill();
    let spool = run.agent.workdir().path().join("spool");
    let has_segment = || fs::read_dir(&spool).is_ok_and(|files| files.flatten().any(|file| is_segment(&file.path())));
    wait_until("spooled records", has_segment);
    sleep(Duration::from_secs(2));
    fs::remove_dir_all(&spool).unwrap();
    wait_until("new spool", has_segment);
    run.server.start();
    assert_accounted(&run, "directory deleted");
    assert_spool_errors(&run);
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

/// Expects all records to have arrived, except those that the agent says are lost.
fn assert_accounted(run: &Run, what: &str) {
    let is_over = |records: &AgentRecords| {
        let series = records.run("load");
        series.received + series.missing == run.made && told_lost(records) >= series.missing
    };
    run.server.wait_records("all records, or word of them", SETTLE + Duration::from_secs(run.made / RATE), is_over);
    let (series, told) = run.server.records(|records| (records.run("load"), told_lost(records)));
    let rss = run.agent.peak_rss() as f64 / 1e6;
    eprintln!(
        "{what}: {} records, {} missing, {told} told to be lost, {} misplaced, {} twice, {rss:.1} MB at most",
        run.made, series.missing, series.misplaced, series.repeated
    );
    assert_eq!(series.misplaced, 0, "{series:?}");
    // The report may have arrived on the stream that broke.
    assert!(told <= series.missing + 3 * 8192, "{told} told, {} missing", series.missing);
}

/// The most memory that the agent may take, in bytes.
const MOST_RSS: u64 = 16_000_000;

fn away_for_120_s(mib: u32) -> Run {
    let server = Server::new(CENTER);
    let address = server.address().to_string();
    let change = |setup: Setup| setup.server(&address).setting("spool", &format!("mib = {mib}"));
    let mut run = Run::start_with(server, 130, change);
    run.server.kill();
    sleep(Duration::from_secs(120));
    run.server.start();
    run
}

#[test]
#[ignore = "long: takes three minutes"]
fn a_server_that_is_away_for_two_minutes() {
    let run = away_for_120_s(256);
    run.assert_whole("away for 120 s, 256 MiB", 1);
    let rss = run.agent.peak_rss();
    eprintln!("{:.1} MB of memory at most", rss as f64 / 1e6);
    assert!(rss < MOST_RSS, "{rss} bytes of memory");
    assert_eq!(run.server.records(told_lost), 0);
}

#[test]
#[ignore = "long: takes three minutes"]
fn a_server_that_is_away_for_longer_than_the_spool_can_hold() {
    let run = away_for_120_s(64);
    assert_accounted(&run, "away for 120 s, 64 MiB");
    assert!(run.server.records(|records| records.run("load").missing) > 0, "the spool has held everything");
    assert!(run.agent.peak_rss() < MOST_RSS, "{} bytes of memory", run.agent.peak_rss());
}
