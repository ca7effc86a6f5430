//! Servers that are killed with records that they had read and not passed on. The agent replays those.

use crate::PLUGIN;
use elklet_tests::center::Batch;
use elklet_tests::harness::{Setup, Site, types, wait_until};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The data type of numbered records.
const NUMBERED: i32 = 7000;

/// What the server has taken within this time dies with it.
const FORGOTTEN: Duration = Duration::from_secs(1);

const RECORDS: u64 = 12_000;

/// When the server took which numbers.
type Taken = Arc<Mutex<Vec<(Instant, u64)>>>;

/// Returns an observer that notes there what a server takes.
fn noting(taken: &Taken) -> impl FnMut(&Arc<Batch>) + Clone + Send + 'static {
    let taken = Arc::clone(taken);
    move |batch| {
        let now = Instant::now();
        let numbered = batch.data.records.iter().filter(|record| record.data_type == NUMBERED);
        let numbers = numbered.map(|record| (now, record.fields().unwrap()["seq"].parse().unwrap()));
        taken.lock().unwrap().extend(numbers);
    }
}

/// Runs an agent that sends numbered records while its server is killed. Returns the numbers that either server has
/// kept, and how many records the agent says it has replayed.
fn killed_under_load(site: &mut Site, setup: Setup) -> (BTreeSet<u64>, u64) {
    let (before, after) = (Taken::default(), Taken::default());
    site.center().observe(noting(&before));
    let detail = format!("hello run=all rate=2000 size=600 n={RECORDS}");
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, &detail)]));
    let agent = setup.start();
    wait_until("records under way", || before.lock().unwrap().len() > 5_000);
    let options = site.stop();
    let killed = Instant::now();
    // The agent comes back as soon as there is a server, and whoever looked later would miss what it sends first.
    site.start_observed(options, noting(&after));
    site.wait_records("the last record", &agent, |records| records.run("all").received >= RECORDS);
    let kept = |at: &Instant| killed.duration_since(*at) >= FORGOTTEN;
    let mut numbers: BTreeSet<u64> =
        before.lock().unwrap().iter().filter(|(at, _)| kept(at)).map(|(_, number)| *number).collect();
    numbers.extend(after.lock().unwrap().iter().map(|(_, number)| *number));
    assert_eq!(site.records(&agent, |records| records.of_type(types::HELLO).count()), 1, "the plugin has run once");
    let replayed = site.fresh_heartbeats(&agent).count("records_replayed");
    (numbers, replayed)
}

#[test]
fn what_a_killed_server_had_just_taken_arrives_again() {
    let mut site = Site::new();
    // Longer than the server forgets, since a busy machine notices late that it is gone.
    let setup = site.eager().setting("buffer", "replay_ms = 10000");
    let (kept, replayed) = killed_under_load(&mut site, setup);
    let missing = (0..RECORDS).filter(|number| !kept.contains(number)).count();
    assert_eq!(missing, 0, "{replayed} records were sent again");
    assert!(replayed > 0);
}

#[test]
fn without_replay_only_what_was_not_confirmed_is_sent_again() {
    let mut site = Site::new();
    let setup = site.eager().setting("buffer", "replay_ms = 0");
    let (_, replayed) = killed_under_load(&mut site, setup);
    assert_eq!(replayed, 0);
}
