//! The benchmark's table, also when one of the compared agents fails.
#![allow(dead_code, reason = "the benchmark's own main uses the rest")]
#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

#[path = "../benches/agent/compare.rs"]
mod compare;
#[path = "../benches/agent/limit.rs"]
mod limit;
#[path = "../benches/agent/run.rs"]
mod run;
#[path = "../benches/agent/table.rs"]
mod table;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use elklet_tests::binaries::Binaries;
use elklet_tests::load::Size;

use self::compare::{Effort, Load, Program, compare, load};
use self::run::Failure;

const STEADY: Load = load("893 B, 1,000/s", Size::Full, 1_000);
const URGENT: Load = Load { urgent: true, ..load("893 B, 100/s, high priority", Size::Full, 100) };

/// An agent that is a shell script; `$ELKLET` in it is the real one.
fn script(dir: &Path, name: &'static str, body: &str) -> Program {
    let binary = dir.join(name);
    let elklet = &Binaries::for_tests().elklet;
    fs::write(&binary, format!("#!/bin/sh\nELKLET='{}'\n{body}\n", elklet.display())).unwrap();
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    Program { name, binary, reference_certs: None }
}

fn elklet() -> Program {
    Program { name: "Elklet", binary: Binaries::for_tests().elklet.clone(), reference_certs: None }
}

fn line<'t>(text: &'t str, program: &str) -> &'t str {
    text.lines().find(|line| line.contains(&format!("| {program} |"))).unwrap_or_else(|| panic!("{program}: {text}"))
}

#[test]
fn a_row_that_fails_says_why_and_the_others_stand() {
    let dir = tempfile::tempdir().unwrap();
    let programs = [
        script(dir.path(), "refuses", "exit 3"),
        elklet(),
        script(dir.path(), "dies", "\"$ELKLET\" \"$@\" & sleep 1; kill -9 $!; exit 4"),
        Program { binary: PathBuf::from("/nowhere/agent"), name: "absent", ..elklet() },
    ];
    let text = table::markdown(&compare(&programs, &[STEADY], Effort { runs: 1, seconds: 1, limit_bytes: 1 << 20 }));
    assert!(line(&text, "refuses").contains("failed: the agent ended with exit status: 3"), "{text}");
    assert!(line(&text, "dies").contains("failed: the agent ended with exit status: 4"), "{text}");
    assert!(line(&text, "absent").contains("failed: /nowhere/agent does not start"), "{text}");
    assert!(!line(&text, "Elklet").contains("failed"), "{text}");
    assert!(text.contains("\nTLS of Elklet: TLSv1_3 TLS13_"), "{text}");
    assert!(text.contains("\nTLS of limit: TLSv1_3 TLS13_"), "{text}");
    let columns = |row: &str| row.matches('|').count();
    let head = text.lines().next().unwrap();
    for row in text.lines().take_while(|line| line.starts_with('|')) {
        assert_eq!(columns(row), columns(head), "{row}");
    }
}

/// The test starts the load plugin like an agent that offers only descriptors 3 and 4.
#[test]
fn what_an_agent_has_no_pipe_for_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" 3</dev/null 4>records 5>&-", env!("CARGO_BIN_EXE_load-plugin")])
        .env("DETAIL", "urgent rate=100 secs=1")
        .env_remove("ELKEID_PLUGIN_HIGH_PRIORITY_PIPE")
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(plugin.success());
    assert_eq!(run::outcome(&dir.path().join("sent")), Some(Err(Failure::NoUrgentPipe)));
    assert_eq!(fs::read(dir.path().join("records")).unwrap(), b"");

    let rows = ["Elklet", "other"].map(|name| {
        let failure = (name == "other").then_some(Failure::NoUrgentPipe);
        table::Row { failure, ..table::Row::new(name, &URGENT) }
    });
    let text = table::markdown(&rows);
    assert!(!text.contains("| other |"), "{text}");
    assert!(text.contains("high priority was left out for other"), "{text}");
}
