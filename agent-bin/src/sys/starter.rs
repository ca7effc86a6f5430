//! Starts processes on the process's first thread, which does nothing else.
//!
//! The kernel keeps the other threads from calls that only plugins need (`plugin::restrict_thread`). A process may call what the thread may
//! that has started it, so that plugins and package managers have to come from a thread without this. [`beside`] runs the agent on a
//! second thread, and [`spawn`] hands commands over from there. Only the net thread does, so that one is under way at a time.

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

/// Takes `work` and runs it on a thread called `net`. Starts processes for it until it ends.
///
/// # Errors
/// When there is no thread for it. `work` is still there then.
pub(crate) fn beside<T: Send>(work: &mut Option<impl FnOnce() -> T + Send>) -> io::Result<T> {
    let mut done = None;
    let served = thread::scope(|scope| {
        let work = || {
            done = work.take().map(|work| work());
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
            _ => return put(Desk::Closed),
        }
    }
}

/// Starts a process.
///
/// # Errors
/// Those of the command.
///
/// # Panics
/// Outside of a runtime.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    {
        let mut desk = lock();
        if matches!(*desk, Desk::Closed) {
            drop(desk);
            return command.spawn();
        }
        *desk = Desk::Ordered(command, Handle::current());
    }
    CHANGED.notify_all();
    match take(wait(|desk| matches!(desk, Desk::Empty | Desk::Ordered(..)))) {
        Desk::Started(started) => started,
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
