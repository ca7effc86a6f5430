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

/// A process in the tree.
#[derive(Debug, Default)]
struct Node {
    text: String,
    above: Option<u32>,
    /// True for one of the newest. The others are only above one.
    is_new: bool,
}

/// The newest processes and those above them, by process id.
type Tree = BTreeMap<u32, Node>;

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
        let mut tree = Tree::new();
        self.newest.iter().for_each(|start| start.put_into(&mut tree));
        // procwatch names eight above each, so that one that was the highest for one may have something above it for another.
        below(&tree, None).for_each(|root| print(&tree, root, 1, &mut lines));
        lines.iter().map(|line| cut(line, width)).collect()
    }
}

impl Start {
    /// Adds the process and those above it to a tree.
    fn put_into(&self, tree: &mut Tree) {
        let steps = self.tree.split('<').skip(1).filter_map(|step| {
            let (pid, comm) = step.split_once('.')?;
            Some((pid.parse().ok()?, comm))
        });
        let this = tree.entry(self.pid).or_default();
        let text = if self.argv.is_empty() { &self.exe } else { &self.argv };
        this.text = format!("{text}{}", if self.own { " *" } else { "" });
        this.is_new = true;
        let mut child = self.pid;
        for (pid, comm) in steps {
            tree.entry(child).or_default().above = Some(pid);
            let node = tree.entry(pid).or_default();
            if !node.is_new {
                comm.clone_into(&mut node.text);
            }
            child = pid;
        }
    }
}

/// Returns the processes right below one, or those below none.
fn below(tree: &Tree, above: Option<u32>) -> impl Iterator<Item = u32> {
    tree.iter().filter(move |(_, node)| node.above == above).map(|(pid, _)| *pid)
}

/// Adds a line for a process and the lines of those below it. Processes in a row share a line. What is above itself, as only a wrong
/// record says, is below none and is not reached.
fn print(tree: &Tree, pid: u32, depth: usize, lines: &mut Vec<String>) {
    let (mut row, mut last) = (format!("{pid} {}", tree[&pid].text), pid);
    while !tree[&last].is_new {
        let mut next = below(tree, Some(last));
        let (Some(only), None) = (next.next(), next.next()) else { break };
        if tree[&only].is_new {
            break;
        }
        row = format!("{row} > {only} {}", tree[&only].text);
        last = only;
    }
    lines.push(format!("{:width$}{row}", "", width = depth * 2));
    below(tree, Some(last)).for_each(|pid| print(tree, pid, depth + 1, lines));
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
        board.take(start(98, "98.true<4.sshd", "/bin/true", "true"));
        assert_eq!(
            board.lines(80),
            [
                "started most",
                "      2  /bin/cat",
                "      1  /bin/ls",
                "      1  /bin/sleep",
                "      1  /bin/true",
                "the newest, below what started them (* the demo's own)",
                "  1 init",
                "    4 sshd",
                "      9 bash",
                "        12 ls /",
                "        13 cat x",
                "          14 /bin/cat",
                "      98 true *",
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
        board.take(start(7, "7.curl<8.sh<7.curl", "/bin/curl", "curl"));
        assert_eq!(board.lines(80).len(), 3, "nothing is shown below itself");
        for pid in 100..10_000 {
            board.take(start(pid, "broken<", &format!("/bin/curl{pid}"), "<>"));
        }
        assert_eq!((board.starts.len(), board.newest.len()), (PROGRAMS, NEWEST));
        assert_eq!(board.lines(80).len(), 2 + TOP + NEWEST);
    }
}
