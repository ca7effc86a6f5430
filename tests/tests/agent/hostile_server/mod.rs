//! A hostile server: it comes as far as the table in docs/security.md says, on a host with default settings and on one with the stricter
//! settings of that page.
//!
//! Each attempt is a function that returns true when the server has got what the table's row names. It waits for evidence either way: the
//! thing itself, or the agent's refusal. After each attempt the agent has to be alive, small, and of use.

mod files;
mod programs;
mod stage;
mod tasks;
mod update;
mod wire;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use elklet_tests::harness::{all_at_once, skipped};

use self::stage::{Column, Stage};
use crate::tables::{self, Outcomes};

/// What the server tries, and whether it has got that.
type Attempt = (&'static str, fn(&mut Stage) -> bool);

/// The attempts in groups, each of which has an agent of its own, so that one does not spoil the other.
const GROUPS: [(&str, &[Attempt]); 8] = [
    ("programs", programs::ATTEMPTS),
    ("archives", programs::ARCHIVES),
    ("files", files::ATTEMPTS),
    ("tasks", tasks::ATTEMPTS),
    ("messages", wire::MESSAGES),
    ("floods", wire::FLOODS),
    ("frames", wire::FRAMES),
    ("update", update::ATTEMPTS),
];

const COLUMNS: [&str; 2] = ["default", "strict"];

#[test]
fn a_hostile_server_comes_as_far_as_the_hosts_settings_let_it() {
    let name = "a_hostile_server_comes_as_far_as_the_hosts_settings_let_it";
    if !Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return skipped(name, "there is no openssl to sign plugins with");
    }
    let found = Mutex::new(BTreeMap::new());
    let mut cases = Vec::new();
    for (group, attempts) in GROUPS {
        for column in [Column::Default, Column::Strict] {
            cases.push((group, (column, attempts)));
        }
    }
    all_at_once(&cases, |_, (column, attempts)| {
        let mut stage = Stage::new(*column);
        for (attempt, try_it) in *attempts {
            let before = stage.audited_refusals().len();
            let has_got_it = try_it(&mut stage);
            // Whatever a row is about, an agent that this has ended or swollen is what a hostile server wants.
            let harm = stage.harm(attempt).inspect(|harm| eprintln!("{attempt}: {harm}"));
            let is_audited = stage.audited_refusals().len() > before;
            let outcome = (has_got_it || harm.is_some(), is_audited);
            found.lock().unwrap().insert((attempt.to_string(), *column as usize), outcome);
        }
    });
    let mut outcomes = Outcomes::new();
    for ((attempt, _), (has_got_it, is_audited)) in found.into_inner().unwrap() {
        let cells = outcomes.entry(attempt.clone()).or_default();
        cells.push(if has_got_it { "yes" } else { "no" }.to_owned());
        // What the host's settings have kept the server from, its owner finds in the audit.
        assert!(*cells != ["yes", "no"] || is_audited, "{attempt} is refused, and not in audit.log");
    }
    tables::compare("What a hostile server can do", &COLUMNS, &outcomes);
}
