//! The host's processes, and the environment that each was started with.

use std::fs;
use std::path::Path;

use super::root::HostRoot;

/// Most bytes of `/proc/<pid>/stat` that are read. It has a few hundred.
const STAT_LIMIT: u64 = 4096;

/// Most bytes of a process's environment that are read. A plugin's has up to 128 KiB in one variable alone.
const ENVIRONMENT_LIMIT: u64 = 512 << 10;

/// A process in `/proc/<pid>/stat`, proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Its parent, or 0 if that is outside of this PID namespace.
    pub(crate) parent: u32,
    /// Its process group.
    pub(crate) group: u32,
    /// When it began, in clock ticks since the system's start.
    pub(crate) start_ticks: u64,
    /// True if it has ended and nobody has taken its exit status.
    pub(crate) is_dead: bool,
}

impl Process {
    /// Finds the process `pid`, unless it is gone.
    pub(crate) fn find(host: &HostRoot, pid: u32) -> Option<Self> {
        Self::parse(pid, &host.text(&format!("/proc/{pid}/stat"), STAT_LIMIT))
    }

    fn parse(pid: u32, line: &str) -> Option<Self> {
        // The name in parentheses may contain anything, even parentheses and spaces. Column 3 follows it.
        let (_, columns) = line.rsplit_once(')')?;
        let mut columns = columns.split_ascii_whitespace();
        let is_dead = matches!(columns.next()?, "Z" | "X" | "x");
        let parent = columns.next()?.parse().ok()?; // column 4
        let group = columns.next()?.parse().ok()?; // 5
        let start_ticks = columns.nth(16)?.parse().ok()?; // 22
        Some(Self { pid, parent, group, start_ticks, is_dead })
    }
}

/// All processes of the host.
pub(crate) fn processes(host: &HostRoot) -> Vec<Process> {
    let entries = fs::read_dir(host.path("/proc")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Process::find(host, entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The number of a process that executes this file, if there is one that this user may look at. The file may have been replaced
/// since the process began.
pub(crate) fn executing(host: &HostRoot, program: &Path) -> Option<u32> {
    let program = fs::canonicalize(program.parent()?).ok()?.join(program.file_name()?);
    let replaced = format!("{} (deleted)", program.display());
    let executes = |process: &Process| {
        let executed = fs::read_link(host.path(&format!("/proc/{}/exe", process.pid)));
        executed.is_ok_and(|executed| executed == program || executed == Path::new(&replaced))
    };
    processes(host).iter().find(|process| executes(process)).map(|process| process.pid)
}

/// The environment that a process was started with, as `name=value` with a zero byte after each. It is empty if this
/// process may not read it, and the other process may have changed it.
pub(crate) fn environment(host: &HostRoot, pid: u32) -> Vec<u8> {
    host.bytes(&format!("/proc/{pid}/environ"), ENVIRONMENT_LIMIT).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::root::tests::Tree;
    use super::*;

    #[test]
    fn processes_are_listed_whatever_their_names_are() {
        let stat = "42 (a) Z (b) S 7 40 42 0 -1 4194560 100 0 0 0 5 6 7 7 20 0 3 0 1234 9999999 250 0\n";
        let zombie = stat.replace("(b) S", "(b) Z").replace(" 1234 ", " 5 ");
        let tree = Tree::new(&[("/proc/42/stat", stat), ("/proc/43/stat", &zombie), ("/proc/44/stat", "44 (cut")]);
        tree.write("/proc/42/environ", "A=1\0B=2\0");
        tree.write("/proc/self", "no number");
        let mut found = processes(tree.host());
        found.sort_unstable_by_key(|process| process.pid);
        let alive = Process { pid: 42, parent: 7, group: 40, start_ticks: 1234, is_dead: false };
        assert_eq!(found, [alive, Process { pid: 43, start_ticks: 5, is_dead: true, ..alive }]);
        assert_eq!(environment(tree.host(), 42), b"A=1\0B=2\0");
        assert_eq!(environment(tree.host(), 43), b"");
    }

    #[test]
    fn this_process_is_among_its_own() {
        let me = std::process::id();
        let found = Process::find(&HostRoot::live(), me).expect("it runs");
        assert!(processes(&HostRoot::live()).contains(&found));
        assert_eq!(found.parent, std::os::unix::process::parent_id());
    }

    #[test]
    fn a_process_is_found_by_what_it_executes_even_if_that_was_replaced() {
        let stat = "(p) S 7 40 42 0 -1 4194560 100 0 0 0 5 6 7 7 20 0 3 0 1234 9999999 250 0\n";
        let tree = Tree::new(&[("/proc/41/stat", &format!("41 {stat}")), ("/proc/42/stat", &format!("42 {stat}"))]);
        let directory = tempfile::tempdir().expect("a directory");
        let program = fs::canonicalize(directory.path()).expect("it exists").join("agent");
        let execute = |pid: u32, program: &str| {
            let link = tree.host().path(&format!("/proc/{pid}/exe"));
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(program, link).expect("writable");
        };
        let path = program.to_str().expect("text");
        execute(41, "/usr/bin/other");
        assert_eq!(executing(tree.host(), &program), None);
        execute(42, path);
        assert_eq!(executing(tree.host(), &program), Some(42));
        execute(42, &format!("{path} (deleted)"));
        assert_eq!(executing(tree.host(), &program), Some(42));
        let me = std::env::current_exe().expect("it is known");
        assert!(executing(&HostRoot::live(), &me).is_some());
    }
}
