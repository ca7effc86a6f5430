//! What is known of a process, and the reader that finds it out.

use crate::event::{Comm, Pid};
use crate::hash::{ExeHash, Hashes};
use crate::procfs::{Environ, PATH_BYTES, ProcDir};
use crate::row::{ABSENT, FAILED, Lossy, Row};
use crate::stat::{Family, Stat};
use crate::tty;
use rustix::io::Errno;
use std::fmt::Write;
use std::rc::Rc;

/// What is known of one process. `None` stands for what could not be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process {
    /// `None` also once the parent has ended, because another process has then taken its place.
    pub(crate) parent: Option<Pid>,
    pub(crate) comm: Option<Comm>,
    /// The real user id.
    pub(crate) uid: Option<u32>,
    pub(crate) group: Option<Pid>,
    pub(crate) session: Option<Pid>,
    pub(crate) audit_session: Option<u32>,
    pub(crate) pid_namespace: Option<u32>,
    /// True if this process has the host's name.
    pub(crate) shares_host_name: Option<bool>,
    pub(crate) program: Rc<Program>,
}

/// What an exec sets up. Forked processes share it until they exec themselves.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) exe: Option<Box<str>>,
    pub(crate) argv: Option<Box<str>>,
    /// Held by a program whose `argv` is longer than [`ARGV_BYTES`], so that such programs can be counted.
    long_argv: Option<Rc<()>>,
    pub(crate) hash: Option<ExeHash>,
    pub(crate) pod_name: Option<Box<str>>,
}

impl Process {
    /// A newly born child. It has what a fork copies, except the group and the audit session. These stay unknown, because
    /// what usually happens between a fork and the next event (a shell's job control, a login) changes them without an event.
    pub(crate) fn born(parent: Pid, known: Option<&Self>) -> Self {
        let inherited = known.map(|known| Self { group: None, audit_session: None, ..known.clone() });
        Self { parent: Some(parent), ..inherited.unwrap_or_default() }
    }

    /// What remains known after an exec, before its result has been read.
    pub(crate) fn after_exec(self) -> Self {
        Self { comm: None, program: Rc::default(), ..self }
    }

    pub(crate) fn update(&mut self, stat: &Stat) {
        self.comm = Some(stat.comm);
        if let Some(Family { parent, group, session }) = stat.family {
            (self.parent, self.group, self.session) = (Some(parent), Some(group), Some(session));
        }
    }

    /// Returns true in a pid namespace other than the host's.
    fn is_contained(&self) -> bool {
        self.pid_namespace.is_some_and(|namespace| namespace != ROOT_PID_NAMESPACE)
    }

    fn is_complete(&self) -> bool {
        let Self { parent, comm, uid, group, session, audit_session, pid_namespace, .. } = self;
        comm.is_some()
            && uid.is_some()
            && [parent, group, session, audit_session, pid_namespace].iter().all(|id| id.is_some())
    }
}

/// Reads processes from /proc into its own buffers.
pub(crate) struct Reader {
    hashes: Hashes,
    environ: Vec<u8>,
    path: Box<[u8]>,
    /// Every program whose long arguments are remembered holds a clone of this.
    long_argv: Rc<()>,
    host_name_namespace: Option<u32>,
}

/// The initial pid namespace's number, `PID_NS_INIT_INO` of linux/nsfs.h.
pub(crate) const ROOT_PID_NAMESPACE: u32 = 0xeffffffc;

/// Longest arguments of an exec in bytes. The reference's kernel module cuts them here too.
const EXECUTED_ARGV_BYTES: usize = 4096;

/// Longest arguments of a process that was already running, in bytes, as in the reference. It also bounds variables,
/// because whoever starts a program chooses how long they are.
const ARGV_BYTES: usize = 256;

/// Programs whose arguments are remembered beyond [`ARGV_BYTES`], for the records of their ends and of their children.
/// They take at most 1 MiB. The arguments of others are cut once the record of their exec has been made.
const LONG_ARGV_PROGRAMS: usize = 256;

/// The longest name of a pod in Kubernetes, in bytes.
const POD_NAME_BYTES: usize = 253;

/// The buffer for environments keeps no more than this between reads.
const ENVIRON_KEPT_BYTES: usize = 8 * 1024;

impl Reader {
    pub(crate) fn new() -> Self {
        let own = ProcDir::open(std::process::id());
        Self {
            hashes: Hashes::new(),
            environ: Vec::new(),
            path: vec![0; PATH_BYTES].into(),
            long_argv: Rc::new(()),
            host_name_namespace: own.and_then(|dir| dir.namespace(c"ns/uts")).ok(),
        }
    }

    /// Reads a process that was running before it was noticed.
    pub(crate) fn running(&mut self, pid: Pid) -> Result<Process, Errno> {
        let dir = ProcDir::open(pid)?;
        let stat = dir.stat()?;
        let mut process = Process { uid: dir.uid().ok(), ..Process::default() };
        process.update(&stat);
        self.read_namespaces(&dir, &mut process);
        let mut program = self.read_program(&dir, ARGV_BYTES);
        if process.is_contained() && !stat.is_kernel_thread() {
            program.pod_name = pod_name(dir.environ(&mut self.environ).ok().as_ref());
            self.release_environ();
        }
        process.program = Rc::new(program);
        Ok(process)
    }

    /// Reads a process that has just executed a program. `before` is what was known of it. The fields that concern only
    /// the exec go to `row`.
    ///
    /// The process may be about to end. Its memory and its files would go first, so they are read first.
    pub(crate) fn executed(&mut self, pid: Pid, before: Process, row: &mut Row) -> Process {
        let mut process = before.after_exec();
        let Ok(dir) = ProcDir::open(pid) else {
            for name in ["argv", "ld_preload", "ssh", "stdin", "stdout", "run_path", "tty"] {
                row.put(name, FAILED);
            }
            return process;
        };
        let mut program = self.read_program(&dir, EXECUTED_ARGV_BYTES);
        row.put_known("argv", program.argv.as_deref());
        self.limit_long_argv(&mut program);
        self.put_files(&dir, row);
        let environ = dir.environ(&mut self.environ).ok();
        let stat = dir.stat().ok();
        // Older kernels show a process without memory as one without variables.
        let is_alive = stat.is_some_and(|stat| !stat.is_ending());
        let environ = environ.filter(|environ| is_alive || !environ.is_empty());
        put_variable(row, "ld_preload", environ.as_ref(), "LD_PRELOAD");
        put_variable(row, "ssh", environ.as_ref(), "SSH_CONNECTION");
        program.pod_name = pod_name(environ.as_ref());
        self.release_environ();

        match stat.map(|stat| stat.tty) {
            Some(0) => row.put("tty", ABSENT),
            device => row.put_known("tty", device.and_then(tty::name)),
        }
        if let Some(stat) = stat {
            process.update(&stat);
        }
        process.uid = process.uid.or_else(|| dir.uid().ok());
        self.read_namespaces(&dir, &mut process);
        if !process.is_contained() {
            program.pod_name = None;
        }
        process.program = Rc::new(program);
        process
    }

    /// Reads a process that has ended and may still be there for its parent to look at. `before` is what was known of
    /// it. If that is complete, nothing is read, because only a change of its own group could have escaped the events.
    pub(crate) fn ended(&self, pid: Pid, before: Option<Process>) -> Process {
        let mut process = before.unwrap_or_default();
        if process.is_complete() {
            return process;
        }
        let Ok(dir) = ProcDir::open(pid) else { return process };
        if let Ok(stat) = dir.stat() {
            process.update(&stat);
        }
        process.uid = process.uid.or_else(|| dir.uid().ok());
        process.pid_namespace = process.pid_namespace.or_else(|| dir.namespace(c"ns/pid").ok());
        process.audit_session = process.audit_session.or_else(|| dir.session_id().ok());
        process
    }

    /// Reads the parent that has taken the place of an ended one, and what may have changed with it.
    pub(crate) fn refresh(pid: Pid, process: &mut Process) {
        if let Ok(stat) = ProcDir::open(pid).and_then(|dir| dir.stat()) {
            process.update(&stat);
        }
    }

    /// Reads the namespaces and the audit session. Does not change what cannot be read.
    fn read_namespaces(&self, dir: &ProcDir, process: &mut Process) {
        if let Ok(session) = dir.session_id() {
            process.audit_session = Some(session);
        }
        if let Ok(namespace) = dir.namespace(c"ns/pid") {
            process.pid_namespace = Some(namespace);
        }
        if let Ok(namespace) = dir.namespace(c"ns/uts") {
            process.shares_host_name = Some(Some(namespace) == self.host_name_namespace);
        }
    }

    fn release_environ(&mut self) {
        self.environ.clear();
        self.environ.shrink_to(ENVIRON_KEPT_BYTES);
    }

    /// Reads a program, except the name of its pod.
    fn read_program(&mut self, dir: &ProcDir, argv_bytes: usize) -> Program {
        let mut line = [0; EXECUTED_ARGV_BYTES];
        let line = line.get_mut(..argv_bytes).unwrap_or_default();
        let len = dir.read(c"cmdline", line).map_or(0, <[u8]>::len);
        let exe = dir.link(c"exe", &mut self.path).ok().map(text);
        let hash = self.hashes.of(dir).ok();
        let arguments = argv(line.get_mut(..len).unwrap_or_default());
        // A process that is ending has neither arguments nor an executable. One that was given no arguments still has
        // an executable.
        let argv = (!arguments.is_empty() || exe.is_some()).then(|| cut_text(arguments, argv_bytes));
        Program { exe, argv, long_argv: None, hash, pod_name: None }
    }

    /// Cuts long arguments if the limit of programs with remembered long arguments is reached.
    fn limit_long_argv(&self, program: &mut Program) {
        let Some(argv) = program.argv.as_mut().filter(|argv| argv.len() > ARGV_BYTES) else { return };
        // One of the clones is the reader's own.
        if Rc::strong_count(&self.long_argv) <= LONG_ARGV_PROGRAMS {
            program.long_argv = Some(Rc::clone(&self.long_argv));
        } else {
            *argv = argv.get(..argv.floor_char_boundary(ARGV_BYTES)).unwrap_or_default().into();
        }
    }

    fn put_files(&mut self, dir: &ProcDir, row: &mut Row) {
        let mut absent = heapless::Vec::<&'static str, 2>::new();
        for (name, link) in [("stdin", c"fd/0"), ("stdout", c"fd/1")] {
            match dir.link(link, &mut self.path) {
                Ok(path) => row.put_bytes(name, path),
                // The file is closed, or the process has ended since; then it has no directory either.
                Err(Errno::NOENT) => absent.push(name).expect("two names fit"),
                Err(_) => row.put(name, FAILED),
            }
        }
        let directory = dir.link(c"cwd", &mut self.path);
        for name in absent {
            row.put(name, if directory.is_ok() { ABSENT } else { FAILED });
        }
        row.put_known("run_path", directory.ok().map(Lossy));
    }
}

/// Finds the pod's name as the reference does.
fn pod_name(environ: Option<&Environ<'_>>) -> Option<Box<str>> {
    let variable = |name| environ.and_then(|environ| environ.find(name).ok().flatten());
    variable("MY_POD_NAME").or_else(|| variable("POD_NAME")).map(|name| text(beginning(name, POD_NAME_BYTES)))
}

fn put_variable(row: &mut Row, name: &'static str, environ: Option<&Environ<'_>>, variable: &str) {
    match environ.map(|environ| environ.find(variable)) {
        Some(Ok(Some(value))) => row.put_bytes(name, beginning(value, ARGV_BYTES)),
        Some(Ok(None)) => row.put(name, ABSENT),
        Some(Err(_)) | None => row.put(name, FAILED),
    }
}

fn beginning(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(..len).unwrap_or(bytes)
}

/// Replaces the NULs of a command line by spaces, with none at the end.
fn argv(line: &mut [u8]) -> &[u8] {
    line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    line.trim_ascii_end()
}

fn text(bytes: &[u8]) -> Box<str> {
    cut_text(bytes, usize::MAX)
}

/// Converts bytes to text, cut to a length in bytes after that, because what is not UTF-8 becomes longer.
fn cut_text(bytes: &[u8], most: usize) -> Box<str> {
    let mut text = String::with_capacity(bytes.len());
    write!(text, "{}", Lossy(bytes)).expect("writing to a String does not fail");
    text.truncate(text.floor_char_boundary(most));
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_long_environment_makes_no_long_values_and_does_not_stay() {
        let long = "x".repeat(20_000);
        let mut cat = Command::new("/bin/cat");
        cat.env("LD_PRELOAD", &long).env("SSH_CONNECTION", &long).env("MY_POD_NAME", &long);
        let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // A program that answers has its environment. One that has only been executed may not have it yet.
        cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let mut reader = Reader::new();
        let mut row = Row::default();
        reader.executed(cat.id(), Process::default(), &mut row);
        let kept = reader.environ.capacity();
        let name = pod_name(ProcDir::open(cat.id()).unwrap().environ(&mut reader.environ).ok().as_ref());
        drop(cat.stdin.take());
        cat.wait().unwrap();
        for wanted in ["ld_preload", "ssh"] {
            let lengths: Vec<_> =
                row.pairs().iter().filter(|(name, _)| *name == wanted).map(|(_, value)| value.len()).collect();
            assert_eq!(lengths, [ARGV_BYTES], "{wanted}");
        }
        assert_eq!(name.map(|name| name.len()), Some(POD_NAME_BYTES));
        assert!(kept <= ENVIRON_KEPT_BYTES, "{kept} bytes");
    }

    #[test]
    fn long_arguments_of_a_bounded_number_of_programs_are_remembered() {
        let reader = Reader::new();
        let program = |len: usize| {
            let mut program = Program { argv: Some("ä".repeat(len / 2).into()), ..Program::default() };
            reader.limit_long_argv(&mut program);
            program
        };
        let argv_len = |program: &Program| program.argv.as_ref().map(|argv| argv.len());
        assert!(
            (0..1000).all(|_| argv_len(&program(4096)) == Some(4096)),
            "a program that is forgotten gives up its place"
        );
        let mut remembered: Vec<Program> = (0..LONG_ARGV_PROGRAMS).map(|_| program(4096)).collect();
        assert!(remembered.iter().all(|program| argv_len(program) == Some(4096)));
        assert_eq!(argv_len(&program(4096)), Some(ARGV_BYTES));
        assert_eq!(argv_len(&program(200)), Some(200));
        remembered.pop();
        assert_eq!(argv_len(&program(4096)), Some(4096));
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(&*cut_text("größe".as_bytes(), 3), "gr");
        assert_eq!(&*cut_text(b"\xff\xff\xff", 7), "\u{fffd}\u{fffd}");
        assert_eq!(&*cut_text(b"abc", 3), "abc");
    }

    #[test]
    fn arguments_are_joined_by_spaces() {
        assert_eq!(argv(&mut b"/bin/sh\0-c\0echo  a\0".to_vec()), b"/bin/sh -c echo  a");
        assert_eq!(argv(&mut b"a\0\0b\0\0".to_vec()), b"a  b");
        assert_eq!(argv(&mut b"no nul".to_vec()), b"no nul");
        assert_eq!(argv(&mut []), b"");
    }

    #[test]
    fn a_child_inherits_what_a_fork_copies() {
        let parent = Process {
            parent: Some(1),
            comm: Some(Comm::new(b"sh")),
            uid: Some(7),
            group: Some(2),
            session: Some(3),
            audit_session: Some(4),
            pid_namespace: Some(5),
            shares_host_name: Some(true),
            program: Rc::new(Program { argv: Some("sh -c".into()), ..Program::default() }),
        };
        let child = Process::born(9, Some(&parent));
        assert_eq!((child.parent, child.uid, child.session, child.comm), (Some(9), Some(7), Some(3), parent.comm));
        assert_eq!((child.group, child.audit_session), (None, None));
        assert!(Rc::ptr_eq(&child.program, &parent.program));
        let after = child.after_exec();
        assert_eq!((after.parent, after.uid, after.comm, &after.program.argv), (Some(9), Some(7), None, &None));
    }

    #[test]
    fn an_unknown_parents_child_is_still_its_child() {
        let child = Process::born(9, None);
        assert_eq!((child.parent, child.uid), (Some(9), None));
    }
}
