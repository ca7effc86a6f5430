//! The remembered processes of the host.

use crate::bounded::Bounded;
use crate::event::{Comm, Pid};
use crate::process::{Process, Reader};
use crate::row::{FAILED, LIMITED};
use std::fmt;
use std::fs;

/// The processes that are known to run. If there are too many, those not heard of for longest are forgotten.
pub(crate) struct Table {
    processes: Bounded<Pid, Process>,
    limiter: Limiter,
}

/// Most remembered processes. A few hundred are usual. An entry takes some 100 bytes and, unless it shares one, a
/// program of usually some 200 bytes. A program's path has at most 4 KiB, its arguments 256 bytes and its pod's name
/// 253, and a byte that is not UTF-8 takes three.
const CAPACITY: usize = 4096;

/// Most reads a second of processes that are not remembered, as in the reference. The event's own process is always read.
const READS_PER_SECOND: u32 = 25;

/// Most processes in a `pid_tree`, as in the reference's driver for an exec.
const TREE_DEPTH: usize = 8;

/// Why a process is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// It does not exist.
    Gone,
    /// Too many were looked up in this second.
    Limited,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => FAILED,
            Self::Limited => LIMITED,
        })
    }
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { processes: Bounded::new(CAPACITY), limiter: Limiter::default() }
    }

    /// Forgets everything and reads all running processes.
    pub(crate) fn reload(&mut self, reader: &mut Reader) {
        self.processes.clear();
        for pid in running_pids() {
            self.handle_found(pid, reader);
        }
    }

    /// Reads a process that was not known to run.
    pub(crate) fn handle_found(&mut self, pid: Pid, reader: &mut Reader) {
        if let Ok(process) = reader.running(pid) {
            self.processes.insert(pid, process);
        }
    }

    /// Returns the process. Reads it from /proc if it is not remembered.
    pub(crate) fn look_up(&mut self, pid: Pid, now: i64, reader: &mut Reader) -> Result<&mut Process, Unknown> {
        if self.processes.get(pid).is_none() {
            if !self.limiter.allow(now) {
                return Err(Unknown::Limited);
            }
            let process = reader.running(pid).map_err(|_| Unknown::Gone)?;
            self.processes.insert(pid, process);
        }
        self.processes.get(pid).ok_or(Unknown::Gone)
    }

    pub(crate) fn insert(&mut self, pid: Pid, process: Process) {
        self.processes.insert(pid, process);
    }

    pub(crate) fn remove(&mut self, pid: Pid) -> Option<Process> {
        self.processes.remove(pid)
    }

    pub(crate) fn handle_fork(&mut self, parent: Pid, child: Pid) {
        let known = self.processes.get(parent);
        let process = Process::born(parent, known.as_deref());
        self.processes.insert(child, process);
    }

    pub(crate) fn handle_uid(&mut self, pid: Pid, uid: u32) {
        if let Some(process) = self.processes.get(pid) {
            process.uid = Some(uid);
        }
    }

    pub(crate) fn handle_sid(&mut self, pid: Pid) {
        if let Some(process) = self.processes.get(pid) {
            process.session = Some(pid);
            process.group = Some(pid);
        }
    }

    pub(crate) fn handle_comm(&mut self, pid: Pid, comm: Comm) {
        if let Some(process) = self.processes.get(pid) {
            process.comm = Some(comm);
        }
    }

    /// Notes that the process's children have another parent from now on. It is looked up when it is needed.
    pub(crate) fn orphan_children(&mut self, pid: Pid) {
        for process in self.processes.values_mut().filter(|process| process.parent == Some(pid)) {
            process.parent = None;
        }
    }

    /// Visits the ancestors of a process, from its parent up to init, at most `TREE_DEPTH` - 1 of them. An unknown
    /// ancestor ends the list.
    pub(crate) fn ancestors(
        &mut self,
        parent: Option<Pid>,
        now: i64,
        reader: &mut Reader,
        mut each: impl FnMut(Pid, Result<&Process, Unknown>),
    ) {
        let mut next = parent;
        for _ in 1..TREE_DEPTH {
            let Some(pid) = next.filter(|pid| *pid != 0) else { break };
            match self.look_up(pid, now, reader) {
                Ok(process) => {
                    if process.parent.is_none() {
                        Reader::refresh(pid, process);
                    }
                    next = process.parent;
                    each(pid, Ok(process));
                }
                Err(unknown) => {
                    each(pid, Err(unknown));
                    break;
                }
            }
        }
    }
}

/// The numbers of all processes under /proc. There are none if it cannot be read.
pub(crate) fn running_pids() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Counts what is done within one second of the clock.
#[derive(Debug, Default)]
struct Limiter {
    second: i64,
    done: u32,
}

impl Limiter {
    fn allow(&mut self, now: i64) -> bool {
        if self.second != now {
            *self = Self { second: now, done: 0 };
        }
        self.done = self.done.saturating_add(1);
        self.done <= READS_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel assigns no such number (`PID_MAX_LIMIT`), so nothing can be read there.
    const NOWHERE: Pid = 1 << 23;

    fn named(parent: Option<Pid>, name: &[u8]) -> Process {
        Process { parent, comm: Some(Comm::new(name)), ..Process::default() }
    }

    fn tree(table: &mut Table, parent: Option<Pid>) -> Vec<(Pid, Result<Vec<u8>, Unknown>)> {
        let mut seen = Vec::new();
        table.ancestors(parent, 0, &mut Reader::new(), |pid, process| {
            seen.push((pid, process.map(|process| process.comm.unwrap_or_default().as_bytes().to_vec())));
        });
        seen
    }

    #[test]
    fn ancestors_are_listed_up_to_init() {
        let mut table = Table::new();
        table.insert(NOWHERE + 1, named(Some(0), b"init"));
        table.insert(NOWHERE + 2, named(Some(NOWHERE + 1), b"sh"));
        let expected = [(NOWHERE + 2, Ok(b"sh".to_vec())), (NOWHERE + 1, Ok(b"init".to_vec()))];
        assert_eq!(tree(&mut table, Some(NOWHERE + 2)), expected);
        assert_eq!(tree(&mut table, None), []);
    }

    #[test]
    fn an_unknown_ancestor_ends_the_list() {
        let mut table = Table::new();
        table.insert(NOWHERE + 2, named(Some(NOWHERE + 1), b"sh"));
        let expected = [(NOWHERE + 2, Ok(b"sh".to_vec())), (NOWHERE + 1, Err(Unknown::Gone))];
        assert_eq!(tree(&mut table, Some(NOWHERE + 2)), expected);
    }

    #[test]
    fn a_tree_that_bites_its_tail_is_cut() {
        let mut table = Table::new();
        table.insert(NOWHERE, named(Some(NOWHERE), b"loop"));
        assert_eq!(tree(&mut table, Some(NOWHERE)).len(), TREE_DEPTH - 1);
    }

    #[test]
    fn an_orphan_looks_for_its_new_parent() {
        let own = std::process::id();
        let mut table = Table::new();
        table.insert(own, named(Some(NOWHERE), b"me"));
        table.orphan_children(NOWHERE);
        let parents = tree(&mut table, Some(own));
        assert_eq!(parents[1].0, std::os::unix::process::parent_id());
    }

    #[test]
    fn events_change_what_is_known() {
        let mut table = Table::new();
        table.insert(NOWHERE, Process { uid: Some(0), ..named(Some(1), b"sh") });
        table.handle_fork(NOWHERE, NOWHERE + 1);
        table.handle_uid(NOWHERE + 1, 1000);
        table.handle_sid(NOWHERE + 1);
        table.handle_comm(NOWHERE + 1, Comm::new(b"child"));
        let child = table.remove(NOWHERE + 1).unwrap();
        assert_eq!((child.uid, child.session, child.group), (Some(1000), Some(NOWHERE + 1), Some(NOWHERE + 1)));
        assert_eq!((child.parent, child.comm), (Some(NOWHERE), Some(Comm::new(b"child"))));
        assert_eq!(table.remove(NOWHERE).unwrap().uid, Some(0));
    }

    #[test]
    fn lookups_are_limited_by_the_second() {
        let mut table = Table::new();
        let mut reader = Reader::new();
        let mut look_up = |now| table.look_up(NOWHERE, now, &mut reader).unwrap_err();
        for _ in 0..READS_PER_SECOND {
            assert_eq!(look_up(1), Unknown::Gone);
        }
        assert_eq!(look_up(1), Unknown::Limited);
        assert_eq!(look_up(2), Unknown::Gone);
    }
}
