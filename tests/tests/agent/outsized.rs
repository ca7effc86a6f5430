//! Records of several MiB arrive whole, on both lanes and by way of the disk, and the agent gives their memory back.

use crate::PLUGIN;
use elklet_tests::harness::{Agent, Setup, Site, types, wait_until};

/// Padding in bytes that makes a record close to 4 MiB.
const LARGE: usize = (4 << 20) - 100;

/// The most bytes that an agent may keep of the 32 MiB that have gone through it.
const KEPT: u64 = 20 << 20;

/// Makes glibc, which development builds use, give large blocks back at once, as musl does in release builds.
const GIVES_BACK: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

fn started(site: &Site, setup: Setup, script: &str) -> Agent {
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, script)]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent
}

/// Lets the plugin write.
fn go(agent: &Agent) {
    std::fs::write(agent.workdir().plugin_dir("probe").join("go"), "").unwrap();
}

#[test]
fn records_of_4_mib_arrive_on_both_lanes_and_their_memory_is_given_back() {
    let site = Site::new();
    let script = format!(
        "hello deaf=go run=bulk n=50 size={LARGE} n=5 size=10 n=50 urgent run=urgent n=20 size={LARGE} n=3 size=10 n=20 bulk run=end n=10"
    );
    let setup = site.eager().variable(GIVES_BACK.0, GIVES_BACK.1);
    let agent = started(&site, setup, &script);
    let idle = agent.rss();
    go(&agent);
    // A record that is too long for the urgent lane travels with the bulk. Shorter urgent ones behind it may therefore
    // overtake it.
    let expected = [("bulk", 105), ("urgent", 43), ("end", 10)];
    site.wait_records("all records", &agent, |records| {
        expected.iter().all(|(run, count)| records.run(run).received + records.run(run).misplaced >= *count)
    });
    site.records(&agent, |records| {
        for (run, count) in [expected[0], expected[2]] {
            assert!(records.run(run).is_whole(count), "{run}: {:?}", records.run(run));
        }
        assert_eq!(records.run("urgent").repeated, 0);
    });
    // The agent frees what was confirmed a moment ago at its next event.
    wait_until("memory that is given back", || {
        site.tell(&agent, "probe", "run=later n=1");
        agent.rss() < idle + KEPT
    });
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!((heartbeats.count("frames_too_long"), heartbeats.count("records_lost")), (0, 0));
}

#[test]
fn records_of_4_mib_wait_on_the_disk() {
    let mut site = Site::new();
    let agent = started(&site, site.eager(), &format!("hello deaf=go run=large size={LARGE} n=4 size=10 n=100"));
    let options = site.stop();
    go(&agent);
    wait_until("spooled records", || {
        let spooled = std::fs::read_dir(agent.workdir().path().join("spool")).unwrap();
        spooled.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|name| name == "seg")).count() > 0
    });
    site.start(options);
    site.wait_records("all records", &agent, |records| records.run("large").received >= 104);
    site.records(&agent, |records| assert!(records.run("large").is_whole(104), "{:?}", records.run("large")));
    assert_eq!(site.fresh_heartbeats(&agent).count("records_lost"), 0);
}
