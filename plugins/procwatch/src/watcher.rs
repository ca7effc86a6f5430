//! Turns events into records: an exec into data type 59, an exit into 60, with the fields of the reference's driver.
//!
//! A field that user space cannot know stays: it is `-1` for what only the driver could see (the socket of a remote shell),
//! `-3` for what could not be read or does not apply, and `-4` for what was not looked up because too much was wanted.

use crate::event::{Event, Pid};
use crate::leaderless::Leaderless;
use crate::process::{Process, ROOT_PID_NAMESPACE, Reader};
use crate::row::{ABSENT, FAILED, Lossy, Row};
use crate::table::{Table, Unknown, running_pids};
use crate::users::Users;
use elklet_plugin::{Client, SendError};
use rustix::system::uname;
use std::fmt::Write;
use std::path::Path;

/// Makes the records of execs and exits.
pub(crate) struct Watcher {
    client: Client,
    reports_exits: bool,
    leaderless: Leaderless,
    table: Table,
    reader: Reader,
    users: Users,
    row: Row,
}

const EXEC: i32 = 59;
const EXIT: i32 = 60;

impl Watcher {
    /// Starts with all processes that run now. Follows ends of processes in any case, and reports them if
    /// `reports_exits` is true.
    pub(crate) fn new(client: Client, reports_exits: bool) -> Self {
        let mut watcher = Self {
            client,
            reports_exits,
            leaderless: Leaderless::default(),
            table: Table::new(),
            reader: Reader::new(),
            users: Users::new(Path::new("/etc/passwd")),
            row: Row::default(),
        };
        watcher.reload();
        watcher
    }

    /// Forgets everything and reads all processes anew, after events were lost.
    pub(crate) fn reload(&mut self) {
        self.table.reload(&mut self.reader);
        self.leaderless.look_through(running_pids());
    }

    /// Handles an event that was noticed at `now`, seconds since 1970, and sends its record, if it makes one.
    ///
    /// # Errors
    /// When the agent is gone.
    pub(crate) fn handle(&mut self, event: Event, now: i64) -> Result<(), SendError> {
        match event {
            Event::Exec { pid } => return self.handle_exec(pid, now),
            Event::Exit { pid } => return self.handle_exit(pid, now),
            Event::ThreadExit { thread, pid, at_ns } => {
                if self.leaderless.handle_thread_exit(thread, pid, at_ns) {
                    return self.handle_exit(pid, now);
                }
            }
            Event::Fork { parent, child } => self.table.handle_fork(parent, child),
            Event::Found { pid } => self.table.handle_found(pid, &mut self.reader),
            Event::Uid { pid, uid } => self.table.handle_uid(pid, uid),
            Event::Sid { pid } => self.table.handle_sid(pid),
            Event::Comm { pid, comm } => self.table.handle_comm(pid, comm),
            Event::Answer { .. } => {}
        }
        Ok(())
    }

    /// Returns the processes that wait for the end of a thread other than their first, if they have changed since the
    /// last call. Once the kernel delivers these ends, call [`Watcher::handle_ended_meanwhile`].
    pub(crate) fn take_changed_leaderless(&mut self) -> Option<impl Iterator<Item = Pid> + '_> {
        self.leaderless.take_change()
    }

    /// Reports processes whose last thread ended before the kernel delivered the ends of their threads.
    ///
    /// # Errors
    /// When the agent is gone.
    pub(crate) fn handle_ended_meanwhile(&mut self, now: i64) -> Result<(), SendError> {
        while let Some(pid) = self.leaderless.take_ended() {
            self.handle_exit(pid, now)?;
        }
        Ok(())
    }

    fn handle_exec(&mut self, pid: Pid, now: i64) -> Result<(), SendError> {
        self.leaderless.handle_exec(pid);
        self.row.clear();
        let before = self.table.remove(pid).unwrap_or_default();
        // The row has the whole arguments. The remembered ones may be cut.
        let process = self.reader.executed(pid, before, &mut self.row);
        for name in ["dip", "dport", "sip", "sport", "sa_family", "socket_pid"] {
            self.row.put(name, ABSENT);
        }
        self.row.put("socket_argv", FAILED);
        // The kernel reports only execs that succeeded.
        self.row.put("res", 0);
        self.describe(pid, &process, now);
        self.table.insert(pid, process);
        self.client.send_at(EXEC, now, &self.row.pairs())
    }

    fn handle_exit(&mut self, pid: Pid, now: i64) -> Result<(), SendError> {
        let before = self.table.remove(pid);
        self.table.orphan_children(pid);
        if !self.reports_exits {
            return Ok(());
        }
        self.row.clear();
        let process = self.reader.ended(pid, before);
        self.row.put_known("argv", process.program.argv.as_deref());
        self.describe(pid, &process, now);
        self.client.send_at(EXIT, now, &self.row.pairs())
    }

    /// Adds the fields that every record has.
    fn describe(&mut self, pid: Pid, process: &Process, now: i64) {
        let program = &*process.program;
        let row = &mut self.row;
        row.put_known("uid", process.uid);
        row.put_known("exe", program.exe.as_deref());
        row.put("pid", pid);
        row.put_known("ppid", process.parent);
        row.put_known("pgid", process.group);
        row.put("tgid", pid);
        row.put_known("sid", process.session);
        row.put_known("comm", process.comm.as_ref().map(|comm| Lossy(comm.as_bytes())));
        match process.shares_host_name {
            Some(true) => row.put_bytes("nodename", uname().nodename().to_bytes()),
            _ => row.put("nodename", FAILED),
        }
        row.put_known("sessionid", process.audit_session);
        row.put_known("pns", process.pid_namespace);
        row.put("root_pns", ROOT_PID_NAMESPACE);
        row.put_known("exe_hash", program.hash);
        row.put_known("pod_name", program.pod_name.as_deref());
        row.put_known("username", process.uid.and_then(|uid| self.users.name(uid, now)));
        self.put_argv_of("ppid_argv", process.parent, pid, process, now);
        self.put_argv_of("pgid_argv", process.group, pid, process, now);
        self.put_tree(pid, process, now);
    }

    fn put_argv_of(&mut self, name: &'static str, of: Option<Pid>, pid: Pid, process: &Process, now: i64) {
        let found = match of {
            Some(of) if of == pid => Ok(process),
            // Init's parent and group.
            None | Some(0) => Err(Unknown::Gone),
            Some(of) => self.table.look_up(of, now, &mut self.reader).map(|process| &*process),
        };
        match found {
            Ok(process) => self.row.put_known(name, process.program.argv.as_deref()),
            Err(unknown) => self.row.put(name, unknown),
        }
    }

    /// `pid.comm<ppid.comm<...`
    fn put_tree(&mut self, pid: Pid, process: &Process, now: i64) {
        let Self { table, reader, row, .. } = self;
        let comm_of = |process: &Process| process.comm.unwrap_or_default();
        row.put_with("pid_tree", |tree| {
            let mut written = match &process.comm {
                Some(comm) => write!(tree, "{pid}.{}", Lossy(comm.as_bytes())),
                None => write!(tree, "{pid}.{FAILED}"),
            };
            table.ancestors(process.parent, now, reader, |pid, ancestor| {
                written = written.and_then(|()| match ancestor {
                    Ok(ancestor) => write!(tree, "<{pid}.{}", Lossy(comm_of(ancestor).as_bytes())),
                    Err(unknown) => write!(tree, "<{pid}.{unknown}"),
                });
            });
            written
        });
    }
}
