//! Fleets whose servers restart: the load that the agents make by coming back, in virtual time, with the agent's own
//! core.
//!
//! The results are the tables and the plot of `docs/reconnection.md`. After a change that is meant to move them,
//! `ELKLET_BLESS=1 cargo test -p elklet-tests --test reconnection` writes them again.
#![allow(clippy::cast_possible_truncation, reason = "shares and counts of a fleet")]
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

mod fleet;
mod report;

use fleet::{Elklet, FULL_NODE, Fleet, Jitter, LARGE, Outage, Reference};
use report::Case;
use std::fs;
use std::path::Path;
use std::thread;

/// The most handshakes that any node may have to begin within any second.
const MOST: u32 = 400;

/// How long a fleet is watched after its servers are back.
const SECONDS: usize = 150;

/// Servers that refuse while they are away, and manage [`MOST`] handshakes in a second afterwards.
const AWAY: Outage = Outage { seconds: 0, silent: false, handshakes: MOST as u64, room: 100 };

fn cases(fleet: Fleet) -> Vec<Case> {
    let outages = [
        ("0 s", AWAY),
        ("0 s, 100 handshakes/s", Outage { handshakes: 100, ..AWAY }),
        ("10 s", Outage { seconds: 10, ..AWAY }),
        ("60 s", Outage { seconds: 60, ..AWAY }),
        ("60 s, nobody answers", Outage { seconds: 60, silent: true, ..AWAY }),
        ("600 s", Outage { seconds: 600, ..AWAY }),
        ("10 s, then room for 90 %", Outage { seconds: 10, room: 90, ..AWAY }),
    ];
    let case = |(name, outage): (&'static str, Outage)| {
        let watched = outage.seconds as usize + SECONDS;
        Case {
            name,
            reference: fleet::run::<Reference>(fleet, outage, watched),
            jitter: fleet::run::<Jitter>(fleet, outage, watched),
            elklet: fleet::run::<Elklet>(fleet, outage, watched),
        }
    };
    // Nothing in a case depends on another, so that as many run at once as there are processors.
    thread::scope(|scope| {
        let cases = outages.map(|outage| scope.spawn(move || case(outage)));
        cases.into_iter().map(|case| case.join().unwrap()).collect()
    })
}

fn assert_no_storm(cases: &[Case]) {
    for Case { name, elklet, reference, .. } in cases {
        assert!(elklet.peak <= MOST, "{name}: {} attempts within a second at one node", elklet.peak);
        assert!(reference.peak > 3 * MOST, "{name}: the model of the reference sees the storm");
    }
    let back = |case: &Case, share| case.elklet.back_after(share).unwrap();
    let (half, most) = (back(&cases[0], 0.5), back(&cases[0], 0.99));
    assert!(half <= 3.0 && most <= 6.0, "half are back after {half} s, 99 % after {most} s");
    // An agent's longest wait grows with the outage: half a window more than the outage has lasted, and never above a
    // minute.
    for (number, limit) in [(0, 6.0), (1, 16.0), (2, 11.0), (3, 36.0), (4, 36.0), (5, 61.0)] {
        let all = back(&cases[number], 1.0);
        assert!(all <= limit, "{}: all are back {all} s after the servers", cases[number].name);
    }
}

#[test]
fn a_full_node_comes_back_without_a_storm() {
    let cases = cases(FULL_NODE);
    assert_no_storm(&cases);
    let tables = [("node", report::summary(&cases))];
    compare_page(&tables, None);
}

#[test]
fn a_fleet_comes_back_without_a_storm() {
    let cases = cases(LARGE);
    assert_no_storm(&cases);
    let tables = [("fleet", report::summary(&cases)), ("seconds", report::second_by_second(&cases[2]))];
    compare_page(&tables, Some(report::plot(&cases[2..4])));
}

/// Compares the page's tables, found by their marks, and the plot with the results, or writes them.
fn compare_page(tables: &[(&str, String)], plot: Option<String>) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let (path, plot_path) = (docs.join("reconnection.md"), docs.join("reconnection.svg"));
    let page = fs::read_to_string(&path).unwrap();
    let expected = tables.iter().fold(page.clone(), |page, (mark, table)| report::with_table(&page, mark, table));
    if std::env::var_os("ELKLET_BLESS").is_some() {
        fs::write(&path, &expected).unwrap();
        if let Some(plot) = plot {
            fs::write(&plot_path, plot).unwrap();
        }
        return;
    }
    assert!(page == expected, "set ELKLET_BLESS=1 and RUST_TEST_THREADS=1");
    assert!(
        plot.is_none_or(|plot| fs::read_to_string(&plot_path).is_ok_and(|text| text == plot)),
        "set ELKLET_BLESS=1"
    );
}
