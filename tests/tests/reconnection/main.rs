//! 100,000 agents whose servers restart: the load that they make by coming back, in virtual time, with the agent's own core.
//!
//! What comes out is the tables and the plot of `docs/reconnection.md`. After a change that is meant to move them,
//! `ELKLET_BLESS=1 cargo test -p elklet-tests --test reconnection` writes them again.
#![allow(clippy::cast_possible_truncation, reason = "shares and counts of a fleet")]
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

mod fleet;
mod report;

use fleet::{AGENTS, Course, Elklet, Jitter, Outage, Reference};
use report::Case;
use std::fs;
use std::path::Path;

/// What no second may see more of, as a share of the fleet.
const MOST: f64 = 0.02;

/// How long a fleet is watched.
const SECONDS: usize = 240;

const ALL: usize = AGENTS;

#[test]
fn a_fleet_comes_back_without_a_storm() {
    let outages = [
        ("0 s", Outage { seconds: 0, silent: false, room: ALL }),
        ("10 s", Outage { seconds: 10, silent: false, room: ALL }),
        ("60 s", Outage { seconds: 60, silent: false, room: ALL }),
        ("60 s, nobody answers", Outage { seconds: 60, silent: true, room: ALL }),
        ("10 s, then room for 90 %", Outage { seconds: 10, silent: false, room: ALL / 10 * 9 }),
    ];
    let cases: Vec<_> = outages
        .iter()
        .map(|&(name, outage)| Case {
            name,
            reference: fleet::run::<Reference>(outage, SECONDS),
            jitter: fleet::run::<Jitter>(outage, SECONDS),
            elklet: fleet::run::<Elklet>(outage, SECONDS),
        })
        .collect();
    for case in &cases {
        let Case { name, elklet, reference, .. } = case;
        assert!(elklet.peak() < MOST, "{name}: {:.2} % in one second", 100.0 * elklet.peak());
        assert!(reference.peak() > 0.2, "{name}: the model of the reference sees the storm");
    }
    let back = |course: &Course, share| course.back_after(share).unwrap();
    for (case, (_, outage)) in cases.iter().zip(&outages).take(4) {
        let after_return = back(&case.elklet, 1.0) - outage.seconds as f64;
        assert!(after_return < 61.5, "{}: all are back {after_return} s after the servers", case.name);
    }
    let (half, all) = (back(&cases[0].elklet, 0.5), back(&cases[0].elklet, 1.0));
    assert!((29.0..32.0).contains(&half) && (59.0..61.0).contains(&all), "{half} s, {all} s");

    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let page = fs::read_to_string(docs.join("reconnection.md")).unwrap();
    let expected = report::with_tables(&page, &cases);
    let plot = report::plot(&cases[1..3]);
    if std::env::var_os("ELKLET_BLESS").is_some() {
        fs::write(docs.join("reconnection.md"), &expected).unwrap();
        fs::write(docs.join("reconnection.svg"), &plot).unwrap();
    }
    let is_current = |name: &str, content: &str| fs::read_to_string(docs.join(name)).is_ok_and(|text| text == content);
    assert!(is_current("reconnection.md", &expected) && is_current("reconnection.svg", &plot), "set ELKLET_BLESS=1");
}
