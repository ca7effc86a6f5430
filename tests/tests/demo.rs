//! `cargo demo` as a newcomer runs it, except for the terminal and for release builds.

use elklet_tests::binaries::Binaries;
use std::process::Command;

#[test]
fn the_demo_shows_what_it_executes_and_loses_nothing() {
    let Binaries { elklet, procwatch } = Binaries::for_tests();
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--seconds", "10"])
        .env("ELKLET_BIN", elklet)
        .env("PROCWATCH_BIN", procwatch)
        .env_remove("COLUMNS")
        .output()
        .expect("it is an executable");
    let [shown, complaint] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert_eq!(output.status.code(), Some(0), "{shown}\n{complaint}");
    assert_eq!(complaint, "");
    assert!(!shown.contains('\x1b'), "escape sequences are for terminals:\n{shown}");

    // The first process that the demo makes runs long enough for a procwatch that has to scan.
    let made = |line: &&str| line.contains(" exec ") && line.contains("* /") && line.ends_with(" sleep 1.5");
    assert!(shown.lines().find(made).is_some(), "{shown}");
    let result = shown.lines().find(|line| line.starts_with("sent ")).unwrap_or_else(|| panic!("no result:\n{shown}"));
    assert!(result.contains(", lost 0 "), "{result}");

    let directory = shown.lines().find_map(|line| line.strip_prefix("  directory  ")?.split(',').next());
    let directory = directory.unwrap_or_else(|| panic!("no directory:\n{shown}"));
    assert!(!std::path::Path::new(directory).exists(), "{directory} is left behind");
}

#[test]
fn a_demo_without_an_agent_says_so_in_one_line() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .env("ELKLET_BIN", "/nonexistent/elklet")
        .env("PROCWATCH_BIN", "/bin/true")
        .output()
        .expect("it is an executable");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.starts_with("demo: ") && complaint.contains("/nonexistent/elklet"), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
}
