//! What data types are called. The page and the commands go by this one table.
//!
//! The numbers are those of Elkeid's plugins and agents; `docs/protocol.md` names their sources.

use std::fmt::Write as _;
use std::sync::OnceLock;

/// Data types and their names, in the order of the numbers.
pub const KINDS: &[(i32, &str)] = &[
    (2, "open"),
    (10, "mprotect"),
    (35, "nanosleep"),
    (42, "connect"),
    (43, "accept"),
    (49, "bind"),
    (59, "exec"),
    (60, "exit"),
    (62, "kill"),
    (82, "rename"),
    (86, "link"),
    (101, "ptrace"),
    (112, "setsid"),
    (157, "prctl"),
    (165, "mount"),
    (200, "tkill"),
    (231, "exit group"),
    (356, "memfd"),
    (601, "dns"),
    (602, "file created"),
    (603, "module loaded"),
    (604, "credentials"),
    (605, "unlink"),
    (606, "rmdir"),
    (607, "user mode helper"),
    (608, "file written"),
    (609, "file read"),
    (610, "usb"),
    (611, "privilege escalation"),
    (700, "rootkit: proc hook"),
    (701, "rootkit: syscall table"),
    (702, "rootkit: hidden module"),
    (703, "rootkit: IDT"),
    (900, "driver"),
    (901, "driver missing"),
    (1000, "heartbeat"),
    (1001, "plugin heartbeat"),
    (1010, "warning"),
    (1011, "plugin log"),
    (1012, "loss"),
    (4000, "login"),
    (4001, "login"),
    (5050, "process"),
    (5051, "port"),
    (5052, "user"),
    (5053, "cron"),
    (5054, "service"),
    (5055, "software"),
    (5056, "container"),
    (5057, "integrity"),
    (5058, "volume"),
    (5059, "interface"),
    (5060, "application"),
    (5062, "kernel module"),
    (5100, "task report"),
    (6000, "scan finished"),
    (6001, "malware"),
    (6002, "malware process"),
    (6003, "scan result"),
    (8000, "baseline"),
    (8010, "baseline status"),
];

/// Returns the name of a data type, if it has one.
pub fn name(data_type: i32) -> Option<&'static str> {
    let place = KINDS.binary_search_by_key(&data_type, |(number, _)| *number).ok()?;
    Some(KINDS[place].1)
}

/// Returns the data types that somebody means: a number, or a name, in which a dash stands for a space. Some names are those of several.
///
/// # Errors
/// There is no such name. The text says what there is.
pub fn parse(word: &str) -> Result<Vec<i32>, String> {
    if let Ok(number) = word.parse() {
        return Ok(vec![number]);
    }
    let wanted = word.to_lowercase();
    let same = |name: &str| dashed(name) == wanted || name.to_lowercase() == wanted;
    let found: Vec<i32> = KINDS.iter().filter(|(_, name)| same(name)).map(|(number, _)| *number).collect();
    if found.is_empty() {
        let mut names: Vec<String> = KINDS.iter().map(|(_, name)| dashed(name)).collect();
        names.sort_unstable();
        names.dedup();
        return Err(format!("{word:?}, expected a number or one of {}", names.join(", ")));
    }
    Ok(found)
}

/// Returns a name as a word that needs no quotes in a shell.
fn dashed(name: &str) -> String {
    name.to_lowercase().replace(": ", "-").replace(' ', "-")
}

/// Returns the table as a module for the page.
pub(crate) fn script() -> &'static [u8] {
    static SCRIPT: OnceLock<String> = OnceLock::new();
    let script = SCRIPT.get_or_init(|| {
        let mut text = "// What data types are called.\n\nexport const NAMES = {\n".to_owned();
        for (number, name) in KINDS {
            writeln!(text, "  {number}: {name:?},").expect("strings grow");
        }
        text + "};\n"
    });
    script.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_a_number_or_a_name() {
        assert_eq!(parse("59"), Ok(vec![59]));
        assert_eq!(parse("exec"), Ok(vec![59]));
        assert_eq!(parse("Exit-Group"), Ok(vec![231]));
        assert_eq!(parse("rootkit-idt"), Ok(vec![703]));
        assert_eq!(parse("login"), Ok(vec![4000, 4001]));
        assert!(parse("exce").unwrap_err().contains("exec, exit"));
        assert_eq!((name(42), name(7)), (Some("connect"), None));
    }

    #[test]
    fn the_table_is_in_order_and_the_page_has_all_of_it() {
        assert!(KINDS.is_sorted_by_key(|(number, _)| *number));
        let script = std::str::from_utf8(script()).unwrap();
        assert!(script.contains("  59: \"exec\",\n") && script.lines().count() == KINDS.len() + 4, "{script}");
    }
}
