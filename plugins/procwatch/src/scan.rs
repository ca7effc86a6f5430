//! Events without the connector: scans /proc once a second and compares it with the last round.
//!
//! A process that lives for less than a second may not be seen at all. An exec shows only by the stack's address, which
//! only root and the process's own user may read. Scanning is therefore the fallback.

use crate::event::{Event, Pid};
use crate::procfs::ProcDir;
use crate::stat::Stat;
use crate::table::running_pids;
use std::collections::HashMap;
use std::time::Duration;

/// Time between two scans.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// The processes of the last round. They are as many as the host runs.
#[derive(Default)]
pub(crate) struct Scanner {
    seen: HashMap<Pid, Seen>,
    round: u64,
}

struct Seen {
    stat: Stat,
    round: u64,
}

impl Scanner {
    /// Starts with the processes that run now, which make no events.
    pub(crate) fn new() -> Self {
        let mut scanner = Self::default();
        let _ = scanner.compare(running());
        scanner
    }

    /// Returns what has happened since the last scan: first the ends, higher process ids first, and then the starts.
    pub(crate) fn scan(&mut self) -> Vec<Event> {
        self.compare(running())
    }

    fn compare(&mut self, running: impl Iterator<Item = (Pid, Stat)>) -> Vec<Event> {
        self.round += 1;
        let round = self.round;
        let mut ended = Vec::new();
        let mut started = Vec::new();
        for (pid, mut stat) in running.filter(|(_, stat)| !stat.has_ended()) {
            let parent = stat.family.and_then(|family| self.seen.get(&family.parent));
            let parent_stat = parent.map(|parent| parent.stat);
            let before = self.seen.get(&pid).map(|seen| seen.stat);
            if let Some(before) = before.filter(|_| stat.is_ending()) {
                // The kernel no longer shows the stack. That is no exec.
                stat.start_stack = before.start_stack;
            }
            self.seen.insert(pid, Seen { stat, round });
            match before {
                Some(before) if before.start_time == stat.start_time => {
                    if before.start_stack != stat.start_stack {
                        started.push(Event::Exec { pid });
                    }
                }
                before => {
                    if before.is_some() {
                        // Another process has the number now.
                        ended.push(pid);
                    }
                    let is_copy = parent_stat.is_some_and(|parent| is_copy(&stat, &parent));
                    let executes_nothing = is_copy || stat.is_kernel_thread();
                    started.push(if executes_nothing { Event::Found { pid } } else { Event::Exec { pid } });
                }
            }
        }
        self.seen.retain(|pid, seen| {
            let is_there = seen.round == round;
            if !is_there {
                ended.push(*pid);
            }
            is_there
        });
        ended.sort_unstable_by(|one, other| other.cmp(one));
        let ends = ended.into_iter().map(|pid| Event::Exit { pid });
        ends.chain(started).collect()
    }
}

/// Returns true for a child that has not executed anything yet: it has its parent's stack and name.
fn is_copy(child: &Stat, parent: &Stat) -> bool {
    child.start_stack != 0 && child.start_stack == parent.start_stack && child.comm == parent.comm
}

fn running() -> impl Iterator<Item = (Pid, Stat)> {
    running_pids().filter_map(|pid| Some((pid, ProcDir::open(pid).ok()?.stat().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Comm;
    use crate::stat::Family;

    fn process(parent: Pid, start_time: u64, start_stack: u64) -> Stat {
        let comm = Comm::new(b"x");
        let family = Some(Family { parent, group: 1, session: 1 });
        Stat { comm, state: b'S', threads: 1, family, tty: 0, flags: 0, start_time, start_stack }
    }

    fn rounds(rounds: &[&[(Pid, Stat)]]) -> Vec<Event> {
        let mut scanner = Scanner::default();
        rounds.iter().map(|round| scanner.compare(round.iter().copied())).last().unwrap_or_default()
    }

    #[test]
    fn a_new_program_is_an_exec_and_a_copy_is_not() {
        let shell = (10, process(1, 5, 100));
        let after = |child| rounds(&[&[shell], &[shell, (11, child)]]);
        assert_eq!(after(process(10, 6, 200)), [Event::Exec { pid: 11 }]);
        assert_eq!(after(process(10, 6, 100)), [Event::Found { pid: 11 }]);
        assert_eq!(after(process(10, 6, 0)), [Event::Exec { pid: 11 }]);
    }

    #[test]
    fn a_changed_stack_is_an_exec() {
        let rest = process(1, 5, 100);
        assert_eq!(rounds(&[&[(10, rest)], &[(10, rest)]]), []);
        assert_eq!(rounds(&[&[(10, rest)], &[(10, process(1, 5, 101))]]), [Event::Exec { pid: 10 }]);
    }

    #[test]
    fn who_is_gone_has_ended_children_first() {
        let (one, two) = ((10, process(1, 5, 100)), (11, process(10, 6, 200)));
        assert_eq!(rounds(&[&[one, two], &[]]), [Event::Exit { pid: 11 }, Event::Exit { pid: 10 }]);
        let zombie = Stat { state: b'Z', ..two.1 };
        assert_eq!(rounds(&[&[one, two], &[one, (11, zombie)]]), [Event::Exit { pid: 11 }]);
        assert_eq!(rounds(&[&[one, two], &[one, (11, zombie)], &[one, (11, zombie)]]), []);
        let without_first_thread = Stat { threads: 2, start_stack: 0, ..zombie };
        assert_eq!(rounds(&[&[one, two], &[one, (11, without_first_thread)]]), []);
    }

    #[test]
    fn a_number_that_is_used_again_is_an_end_and_a_start() {
        let expected = [Event::Exit { pid: 10 }, Event::Exec { pid: 10 }];
        assert_eq!(rounds(&[&[(10, process(1, 5, 100))], &[(10, process(1, 9, 100))]]), expected);
    }

    #[test]
    fn kernel_threads_execute_nothing() {
        let thread = Stat { flags: 0x0020_0000, ..process(2, 5, 0) };
        assert_eq!(rounds(&[&[], &[(10, thread)]]), [Event::Found { pid: 10 }]);
    }
}
