//! Starts processes on the process's first thread, which does nothing else.
//!
//! The kernel keeps the other threads from calls that only plugins need (`plugin::restrict_thread`). A process may call what the thread may
//! that has started it, so that plugins and package managers have to come from a thread without this. [`beside`] runs the agent on a
//! second thread, and [`spawn`] hands commands over from there, one at a time.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::inherited;

/// What the two threads hand each other.
enum Desk {
    /// Nobody serves: [`spawn`] starts processes itself.
    Closed,
    Empty,
    Ordered(Command, Handle),
    Started(io::Result<Child>),
}

static DESK: Mutex<Desk> = Mutex::new(Desk::Closed);
static CHANGED: Condvar = Condvar::new();
/// Held from an order to its answer, so that nobody takes what somebody else has ordered.
static TURN: Mutex<()> = Mutex::new(());

/// Closes the desk, also when the work panics: nobody may wait for an order that never comes, or for an answer.
struct Closes;

impl Drop for Closes {
    fn drop(&mut self) {
        put(Desk::Closed);
    }
}

/// Takes `work` and runs it on a thread called `net`. Starts processes for it until it ends.
///
/// # Errors
/// When there is no thread for it. `work` is still there then.
pub(crate) fn beside<T: Send>(work: &mut Option<impl FnOnce() -> T + Send>) -> io::Result<T> {
    let mut done = None;
    let served = thread::scope(|scope| {
        let work = || {
            let _closes = Closes;
            done = work.take().map(|work| work());
            // An order of another thread is carried out first.
            let _turn = TURN.lock();
            put(Desk::Closed);
        };
        put(Desk::Empty);
        let started = thread::Builder::new().name("net".to_owned()).spawn_scoped(scope, work);
        if started.is_ok() {
            serve();
        } else {
            put(Desk::Closed);
        }
        started.map(drop)
    });
    served.map(|()| done.expect("it was there and has come to its end"))
}

fn serve() {
    let _closes = Closes;
    loop {
        let desk = wait(|desk| matches!(desk, Desk::Empty | Desk::Started(_)));
        match take(desk) {
            Desk::Ordered(mut command, runtime) => {
                // Processes inherit what is blocked here. Whoever starts some handles signals by now.
                inherited::take_signals();
                let _inside = runtime.enter();
                let started = command.spawn();
                // What it holds is free before anybody knows of the process.
                drop(command);
                put(Desk::Started(started));
            }
            _ => return,
        }
    }
}

/// Starts a process.
///
/// # Errors
/// Those of the command, and outside of a runtime.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    let runtime = Handle::try_current().map_err(|_| io::ErrorKind::Unsupported)?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    {
        let mut desk = lock();
        if matches!(*desk, Desk::Closed) {
            drop(desk);
            return command.spawn();
        }
        *desk = Desk::Ordered(command, runtime);
    }
    CHANGED.notify_all();
    let mut desk = wait(|desk| matches!(desk, Desk::Empty | Desk::Ordered(..)));
    // Unless there is an answer, it is closed, and stays so for those who come later.
    match std::mem::replace(&mut *desk, Desk::Closed) {
        Desk::Started(started) => {
            *desk = Desk::Empty;
            started
        }
        _ => Err(io::Error::other("nobody starts processes any more")),
    }
}

fn lock() -> MutexGuard<'static, Desk> {
    DESK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait(goes_on: impl FnMut(&mut Desk) -> bool) -> MutexGuard<'static, Desk> {
    CHANGED.wait_while(lock(), goes_on).unwrap_or_else(PoisonError::into_inner)
}

/// Leaves an empty desk.
fn take(mut desk: MutexGuard<'static, Desk>) -> Desk {
    std::mem::replace(&mut desk, Desk::Empty)
}

fn put(what: Desk) {
    *lock() = what;
    CHANGED.notify_all();
}

#[cfg(test)]
mod tests {
    use std::process::{ExitStatus, Stdio};

    use nix::sys::signal::{SigSet, Signal};

    use super::*;

    fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn status(script: &str) -> io::Result<ExitStatus> {
        on_a_runtime(async { spawn(shell(script))?.wait().await })
    }

    /// The desk is the process's, so that all of this is one test.
    #[test]
    fn processes_come_from_the_first_thread_and_nobody_waits_for_ever() {
        let serving = thread::current().id();
        SigSet::from_iter([Signal::SIGTERM]).thread_set_mask().expect("a signal");
        let mut work = Some(|| {
            assert_ne!(thread::current().id(), serving);
            // Threads that start processes at the same time get each its own.
            let one = |code: i32| move || status(&format!("exit {code}")).map(|status| status.code());
            let all: Vec<_> = (1..=8).map(|code| (code, thread::spawn(one(code)))).collect();
            for (code, started) in all {
                assert_eq!(started.join().expect("no panic").expect("a shell"), Some(code));
            }
            let missing = on_a_runtime(async { spawn(Command::new("/no/such/program")).map(drop) });
            assert_eq!(missing.expect_err("there is none").kind(), io::ErrorKind::NotFound);
            spawn(shell("exit 0")).expect_err("nobody would reap it");
            // What is started has nothing blocked, although whoever starts it had.
            let output = on_a_runtime(async {
                let mut command = shell("grep SigBlk: /proc/self/status");
                command.stdout(Stdio::piped());
                spawn(command)?.wait_with_output().await
            });
            let blocked = String::from_utf8(output.expect("a shell").stdout).expect("text");
            assert_eq!(blocked.split_whitespace().nth(1), Some("0000000000000000"));
        });
        beside(&mut work).expect("a thread");

        // Afterwards, and after a panic, whoever starts a process does it alone.
        assert!(status("exit 0").expect("a shell").success());
        let mut work = Some(|| panic!("on purpose"));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| beside::<()>(&mut work)));
        ended.expect_err("the panic goes on");
        assert!(status("exit 0").expect("a shell").success());
    }
}
