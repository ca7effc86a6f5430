//! Makes processes, so that a quiet host has something to show, and counts which of them were reported.
//!
//! The demo knows the starts and ends of these processes without any report. They therefore prove that what happens
//! does arrive.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The pause between two processes: three start in a second.
pub(crate) const INTERVAL: Duration = Duration::from_millis(333);

/// The programs, which take turns. The first runs long enough for a plugin that scans once a second to see it.
const KINDS: [&[&str]; 6] = [
    &["sleep", "1.5"],
    &["true"],
    &["ls", "-l", "/etc"],
    &["sh", "-c", "echo one two three | wc -w"],
    &["sleep", "0.1"],
    &["sh", "-c", "true & sleep 0.2 & ls / & wait"],
];

#[derive(Debug, Default)]
pub(crate) struct Maker {
    turn: usize,
    running: Vec<Child>,
    /// The processes whose reports are expected.
    made: HashMap<u32, Reported>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Reported {
    exec: bool,
    exit: bool,
    /// What is not expected any more: the demo was about to end before it happened.
    late_exec: bool,
    late_exit: bool,
}

/// How many processes were made, and how many of them were reported.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) made: usize,
    pub(crate) execs: usize,
    pub(crate) exits: usize,
    /// Starts and ends that were expected and not reported.
    pub(crate) no_execs: usize,
    pub(crate) no_exits: usize,
}

impl Maker {
    /// Starts the next process. With `watched` the plugin listens already, so its reports are expected.
    pub(crate) fn make(&mut self, watched: bool) {
        self.reap();
        let kind = KINDS[self.turn % KINDS.len()];
        self.turn += 1;
        let mut command = Command::new(kind[0]);
        command.args(&kind[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A terminal sends Ctrl-C to a whole process group. These processes end by themselves.
        command.process_group(0);
        // A host may lack one of the programs. The others suffice then.
        if let Ok(child) = command.spawn() {
            if watched {
                self.made.insert(child.id(), Reported::default());
            }
            self.running.push(child);
        }
    }

    /// Makes nothing more. What still runs ends after the demo was asked to, so that nobody has to report it.
    pub(crate) fn stop(&mut self) {
        self.reap();
        for child in &self.running {
            if let Some(reported) = self.made.get_mut(&child.id()) {
                reported.late_exit = true;
            }
        }
    }

    /// Nobody waits for reports any more.
    pub(crate) fn hurry(&mut self) {
        for reported in self.made.values_mut() {
            (reported.late_exec, reported.late_exit) = (true, true);
        }
    }

    /// Returns true once the start and the end of each process are reported.
    pub(crate) fn is_reported(&self) -> bool {
        self.made.values().all(|reported| reported.exec && reported.exit)
    }

    /// Returns true once all have ended.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.reap();
        self.running.is_empty()
    }

    fn reap(&mut self) {
        self.running.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    pub(crate) fn handle_exec(&mut self, pid: u32) {
        if let Some(reported) = self.made.get_mut(&pid) {
            reported.exec = true;
        }
    }

    pub(crate) fn handle_exit(&mut self, pid: u32) {
        if let Some(reported) = self.made.get_mut(&pid) {
            reported.exit = true;
        }
    }

    pub(crate) fn account(&self) -> Account {
        let count = |which: fn(&Reported) -> bool| self.made.values().filter(|reported| which(reported)).count();
        Account {
            made: self.made.len(),
            execs: count(|of| of.exec),
            exits: count(|of| of.exit),
            no_execs: count(|of| !of.exec && !of.late_exec),
            no_exits: count(|of| !of.exit && !of.late_exit),
        }
    }
}

impl Drop for Maker {
    /// Kills what still runs, so that nothing outlives the demo however it ends.
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn processes_are_made_accounted_for_and_reaped() {
        let mut maker = Maker::default();
        maker.make(false);
        for _ in 1..KINDS.len() {
            maker.make(true);
        }
        let none = Account { made: 5, no_execs: 5, no_exits: 5, ..Account::default() };
        assert_eq!(maker.account(), none);
        let pids: Vec<_> = maker.made.keys().copied().collect();
        for _ in 0..2 {
            pids.iter().for_each(|pid| maker.handle_exec(*pid));
        }
        maker.handle_exit(pids[0]);
        maker.handle_exit(1);
        assert_eq!(maker.account(), Account { made: 5, execs: 5, exits: 1, no_execs: 0, no_exits: 4 });
        assert!(!maker.is_reported());
        for _ in 0..500 {
            if maker.is_quiet() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        panic!("a process of the demo runs still");
    }

    #[test]
    fn what_happens_after_the_stop_need_not_be_reported() {
        let mut maker = Maker::default();
        maker.make(true);
        maker.stop();
        assert_eq!(maker.account(), Account { made: 1, no_execs: 1, ..Account::default() }, "it started before");
        maker.hurry();
        assert_eq!(maker.account(), Account { made: 1, ..Account::default() });
        let pid = maker.running[0].id();
        maker.handle_exec(pid);
        assert!(!maker.is_reported(), "it is waited for all the same");
        maker.handle_exit(pid);
        assert!(maker.is_reported());
    }
}
