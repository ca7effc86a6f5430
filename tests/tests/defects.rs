//! `docs/reference-defects.md` and `docs/security.md` name tests. Each of them exists, and each defect and each promise has one.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const DEFECTS: &str = include_str!("../../docs/reference-defects.md");
const SECURITY: &str = include_str!("../../docs/security.md");

/// Returns the names of all tests below a directory: functions under an attribute that ends in `test]`, including
/// tokio's.
fn collect(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, names);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for behind in text.split("test]").skip(1) {
                let name = behind.split_once("fn ").and_then(|(_, name)| name.split_once('('));
                names.extend(name.map(|(name, _)| name.to_owned()));
            }
        }
    }
}

/// Returns the names of all tests of the workspace.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = BTreeSet::new();
    for package in ["core", "agent-bin", "tests", "plugins"] {
        collect(&root.join(package), &mut tests);
    }
    tests
}

/// Says which rows name no test in their last cell, or one that does not exist.
fn unshown(rows: &[&str], tests: &BTreeSet<String>) -> Vec<String> {
    let mut missing = Vec::new();
    for row in rows {
        let shown_by = row.trim_end_matches([' ', '|']).rsplit_once('|').unwrap().1;
        let named: Vec<_> = shown_by.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            missing.push(format!("no test: {row}"));
        }
        missing.extend(named.iter().filter(|name| !tests.contains(**name)).map(|name| format!("{name} is no test")));
    }
    missing
}

#[test]
fn every_test_that_the_table_names_exists() {
    let rows: Vec<_> = DEFECTS.lines().filter(|line| line.starts_with("| D-")).collect();
    assert_eq!(unshown(&rows, &tests()), [""; 0]);
    let numbers: Vec<u32> = rows.iter().map(|row| row[4..].split(' ').next().unwrap().parse().unwrap()).collect();
    let expected: Vec<u32> = (1..=8).chain(16..=28).collect();
    assert_eq!(numbers, expected, "every defect has its row");
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let section = SECURITY.split("\n## ").find(|section| section.starts_with("What is promised")).unwrap();
    // The first two rows are the table's head.
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 30, "{} promises", rows.len());
    let tests = tests();
    assert_eq!(unshown(&rows, &tests), [""; 0]);
    // A name that is none would be found.
    assert_eq!(unshown(&["| a | b | `no_such_test` |", "| a | b | none |"], &tests).len(), 2);
}
