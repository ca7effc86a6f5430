//! What the demo shows while it runs: figures, the programs that start most, and the newest processes as a tree.
//!
//! A host may start hundreds of programs in a second, which nobody can read as they scroll by. The board therefore changes in place, or
//! is printed now and then where nothing can.

use std::collections::{BTreeMap, VecDeque};

use crate::screen::cut;

/// Programs that are counted one by one. A host has fewer, unless somebody wants to fill this process's memory.
const PROGRAMS: usize = 4_096;

/// Programs and newest processes that are shown.
const TOP: usize = 5;
const NEWEST: usize = 6;

/// Programs that have started, as far as they are counted and shown.
#[derive(Debug, Default)]
pub(crate) struct Board {
    starts: BTreeMap<String, u64>,
    newest: VecDeque<Start>,
    /// Shown are only programs with this text in their path or arguments.
    filter: Option<String>,
}

/// A process that has executed a program.
#[derive(Debug)]
pub(crate) struct Start {
    /// The process and those above it, the nearest first, as procwatch writes it: `12.ls<9.sh<1.init`.
    pub(crate) tree: String,
    pub(crate) pid: u32,
    pub(crate) exe: String,
    pub(crate) argv: String,
    /// True if the demo itself has made it.
    pub(crate) own: bool,
}

/// A process in the tree, with those below it.
#[derive(Debug)]
struct Node {
    pid: u32,
    text: String,
    /// True for one of the newest. The others are only above one.
    is_new: bool,
    below: Vec<Node>,
}

impl Board {
    pub(crate) fn new(filter: Option<String>) -> Self {
        Self { filter, ..Self::default() }
    }

    pub(crate) fn take(&mut self, start: Start) {
        let wanted = |filter: &String| start.exe.contains(filter.as_str()) || start.argv.contains(filter.as_str());
        if !self.filter.as_ref().is_none_or(wanted) {
            return;
        }
        if self.starts.len() < PROGRAMS || self.starts.contains_key(&start.exe) {
            *self.starts.entry(start.exe.clone()).or_default() += 1;
        }
        // A process that executes once more is shown once.
        self.newest.retain(|other| other.pid != start.pid);
        if self.newest.len() == NEWEST {
            self.newest.pop_front();
        }
        self.newest.push_back(start);
    }

    /// Returns the board as lines of at most `width` columns.
    pub(crate) fn lines(&self, width: usize) -> Vec<String> {
        let filter = self.filter.as_ref().map_or_else(String::new, |filter| format!(" with {filter:?}"));
        if self.newest.is_empty() {
            return vec![cut(&format!("no program{filter} has started yet"), width)];
        }
        let mut top: Vec<_> = self.starts.iter().collect();
        top.sort_by_key(|&(exe, count)| (std::cmp::Reverse(*count), exe));
        let mut lines = vec![format!("started most{filter}")];
        lines.extend(top.iter().take(TOP).map(|(exe, count)| format!("{count:>7}  {exe}")));
        lines.push("the newest, below what started them (* the demo's own)".to_owned());
        let mut roots = Vec::new();
        self.newest.iter().for_each(|start| start.put_into(&mut roots));
        roots.iter().for_each(|root| root.print(1, &mut lines));
        lines.iter().map(|line| cut(line, width)).collect()
    }
}

impl Start {
    /// Adds the process to a tree, below those that are above it.
    fn put_into(&self, roots: &mut Vec<Node>) {
        let above = self.tree.split('<').skip(1).filter_map(|step| {
            let (pid, comm) = step.split_once('.')?;
            Some((pid.parse().ok()?, comm))
        });
        let mut path: Vec<(u32, &str)> = above.collect();
        path.reverse();
        let mut level = roots;
        for (pid, comm) in path {
            level = &mut node(level, pid, || comm.to_owned()).below;
        }
        let text = if self.argv.is_empty() { &self.exe } else { &self.argv };
        let this = node(level, self.pid, String::new);
        this.text = format!("{text}{}", if self.own { " *" } else { "" });
        this.is_new = true;
    }
}

/// Finds or makes the node of a process.
fn node(level: &mut Vec<Node>, pid: u32, text: impl FnOnce() -> String) -> &mut Node {
    let at = level.iter().position(|node| node.pid == pid).unwrap_or_else(|| {
        level.push(Node { pid, text: text(), is_new: false, below: Vec::new() });
        level.len() - 1
    });
    &mut level[at]
}

impl Node {
    /// Adds a line for this process and the lines of those below it. Processes in a row share a line.
    fn print(&self, depth: usize, lines: &mut Vec<String>) {
        let (mut row, mut last) = (format!("{} {}", self.pid, self.text), self);
        while let ([next], false) = (&last.below[..], last.is_new) {
            if next.is_new {
                break;
            }
            row = format!("{row} > {} {}", next.pid, next.text);
            last = next;
        }
        lines.push(format!("{:width$}{row}", "", width = depth * 2));
        last.below.iter().for_each(|node| node.print(depth + 1, lines));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(pid: u32, tree: &str, exe: &str, argv: &str) -> Start {
        Start { tree: tree.to_owned(), pid, exe: exe.to_owned(), argv: argv.to_owned(), own: pid > 90 }
    }

    #[test]
    fn the_newest_are_a_tree_and_the_most_are_counted() {
        let mut board = Board::new(None);
        assert_eq!(board.lines(80), ["no program has started yet"]);
        board.take(start(12, "12.ls<9.bash<4.sshd<1.init", "/bin/ls", "ls /"));
        board.take(start(13, "13.cat<9.bash<4.sshd<1.init", "/bin/cat", "cat x"));
        board.take(start(14, "14.cat<13.cat<9.bash<4.sshd<1.init", "/bin/cat", ""));
        board.take(start(99, "99.sleep<1.init", "/bin/sleep", "sleep 1"));
        assert_eq!(
            board.lines(80),
            [
                "started most",
                "      2  /bin/cat",
                "      1  /bin/ls",
                "      1  /bin/sleep",
                "the newest, below what started them (* the demo's own)",
                "  1 init",
                "    4 sshd > 9 bash",
                "      12 ls /",
                "      13 cat x",
                "        14 /bin/cat",
                "    99 sleep 1 *",
            ]
        );
        assert!(board.lines(40).iter().all(|line| line.chars().count() <= 40));
    }

    #[test]
    fn a_filter_leaves_the_others_out_and_nothing_grows_without_end() {
        let mut board = Board::new(Some("curl".to_owned()));
        board.take(start(1, "1.ls", "/bin/ls", "ls"));
        assert_eq!(board.lines(80), ["no program with \"curl\" has started yet"]);
        for pid in 0..10_000 {
            board.take(start(pid, "broken<", &format!("/bin/curl{pid}"), "<>"));
        }
        assert_eq!((board.starts.len(), board.newest.len()), (PROGRAMS, NEWEST));
        assert_eq!(board.lines(80).len(), 2 + TOP + NEWEST);
    }
}
