//! `docs/reference-defects.md` names tests. Each of them exists, and each defect has one.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const TABLE: &str = include_str!("../../docs/reference-defects.md");

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

#[test]
fn every_test_that_the_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = BTreeSet::new();
    for package in ["core", "agent-bin", "tests", "plugins"] {
        collect(&root.join(package), &mut tests);
    }
    let rows: Vec<_> = TABLE.lines().filter(|line| line.starts_with("| D-")).collect();
    for row in &rows {
        let shown_by = row.trim_end_matches([' ', '|']).rsplit_once('|').unwrap().1;
        let named: Vec<_> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{row}");
        for name in named {
            assert!(tests.contains(name), "{name} is no test");
        }
    }
    let numbers: Vec<u32> = rows.iter().map(|row| row[4..].split(' ').next().unwrap().parse().unwrap()).collect();
    let expected: Vec<u32> = (1..=8).chain(16..=28).collect();
    assert_eq!(numbers, expected, "every defect has its row");
}
