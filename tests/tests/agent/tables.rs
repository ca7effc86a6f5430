//! Tables of docs/security.md that tests find again: who tries what, and how far that comes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What came of each attempt, by its name: one outcome for each column.
pub(crate) type Outcomes = BTreeMap<String, Vec<String>>;

/// Returns the page.
pub(crate) fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md")).unwrap()
}

/// Returns the table of a section. Its rows begin with the attempt's name in backticks and what that is.
pub(crate) fn expected(title: &str) -> Outcomes {
    let page = page();
    let section = page.split("\n## ").find(|section| section.starts_with(&format!("{title}\n"))).unwrap();
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let rows = section.lines().filter(|line| line.starts_with("| `")).map(cells);
    rows.map(|cells| (cells[0].clone(), cells[2..].to_vec())).collect()
}

/// Says what is not as the page says.
///
/// # Panics
/// When there is any.
pub(crate) fn compare(title: &str, columns: &[&str], found: &Outcomes) {
    let expected = expected(title);
    let named = |outcomes: &Outcomes| outcomes.keys().cloned().collect::<Vec<_>>();
    assert_eq!(named(found), named(&expected), "the attempts of {title:?} in docs/security.md");
    let mut wrong = Vec::new();
    for (attempt, outcomes) in found {
        for (column, (outcome, expected)) in columns.iter().zip(outcomes.iter().zip(&expected[attempt])) {
            if outcome != expected {
                wrong.push(format!("{column}: {attempt}: {outcome}, expected {expected}"));
            }
        }
        assert_eq!((outcomes.len(), expected[attempt].len()), (columns.len(), columns.len()), "{attempt}");
    }
    assert!(wrong.is_empty(), "other outcomes than in docs/security.md:\n{}", wrong.join("\n"));
}
