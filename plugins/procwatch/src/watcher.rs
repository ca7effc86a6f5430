//! Turns events into records: an exec into data type 59, an exit into 60, with the fields of the reference's driver.
//!
//! What user space cannot know keeps its field: `-1` for what only the driver could see (the socket of a remote shell), `-3`
//! for what could not be read or does not apply, `-4` for what was not looked up because too much was wanted.

use crate::event::{Event, Pid};
use crate::process::{Process, ROOT_PID_NAMESPACE, Reader};
use crate::row::{ABSENT, FAILED, Lossy, Row};
use crate::table::{Table, Unknown};
use crate::users::Users;
use elklet_plugin::{Client, SendError};
use rustix::system::uname;
use std::fmt::Write;
use std::path::Path;

/// What the records of execs and exits are made from.
pub(crate) struct Watcher {
    client: Client,
    table: Table,
    reader: Reader,
    users: Users,
    row: Row,
}

const EXEC: i32 = 59;
const EXIT: i32 = 60;

impl Watcher {
    /// Knows all processes that run now.
    pub(crate) fn new(client: Client) -> Self {
        let mut watcher = Self {
            client,
            table: Table::new(),
            reader: Reader::new(),
            users: Users::new(Path::new("/etc/passwd")),
            row: Row::default(),
        };
        watcher.reload();
        watcher
    }

    /// Forgets what is known and looks at all processes anew, after events were lost.
    pub(crate) fn reload(&mut self) {
        self.table.reload(&mut self.reader);
    }

    /// Takes an event that was noticed at `now`, seconds since 1970, and sends the record that it calls for.
    ///
    /// # Errors
    /// When the agent cannot be reached any more.
    pub(crate) fn handle(&mut self, event: Event, now: i64) -> Result<(), SendError> {
        match event {
            Event::Exec { pid } => return self.handle_exec(pid, now),
            Event::Exit { pid } => return self.handle_exit(pid, now),
            Event::Fork { parent, child } => self.table.handle_fork(parent, child),
            Event::Found { pid } => self.table.handle_found(pid, &mut self.reader),
            Event::Uid { pid, uid } => self.table.handle_uid(pid, uid),
            Event::Sid { pid } => self.table.handle_sid(pid),
            Event::Comm { pid, comm } => self.table.handle_comm(pid, comm),
            Event::Answer { .. } => {}
        }
        Ok(())
    }

    fn handle_exec(&mut self, pid: Pid, now: i64) -> Result<(), SendError> {
        self.row.clear();
        let before = self.table.remove(pid).unwrap_or_default();
        let process = self.reader.executed(pid, before, &mut self.row);
        for name in ["dip", "dport", "sip", "sport", "sa_family", "socket_pid"] {
            self.row.put(name, ABSENT);
        }
        self.row.put("socket_argv", FAILED);
        // The kernel tells of execs that succeeded.
        self.row.put("res", 0);
        self.describe(pid, &process, now);
        self.table.insert(pid, process);
        self.client.send_at(EXEC, now, &self.row.pairs())
    }

    fn handle_exit(&mut self, pid: Pid, now: i64) -> Result<(), SendError> {
        self.row.clear();
        let before = self.table.remove(pid);
        let process = self.reader.ended(pid, before);
        self.describe(pid, &process, now);
        self.table.orphan_children(pid);
        self.client.send_at(EXIT, now, &self.row.pairs())
    }

    /// The fields that every record has.
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
        row.put_known("argv", program.argv.as_deref());
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
