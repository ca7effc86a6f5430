//! What the process that starts the agent leaves to it, and what is neither to reach plugins nor to be in the agent's own way:
//! ignored and blocked signals, and open descriptors.

use std::fs;
use std::mem;
use std::ptr;

use nix::sys::signal::{SigSet, Signal};

/// The highest number of a signal on Linux.
const LAST_SIGNAL: libc::c_int = 64;

/// Gives every signal its default action, closes foreign descriptors for the programs that the agent executes, and keeps the
/// signals back that the agent takes: one that comes before the agent can take it must not end it. [`take_signals`] lets them
/// through.
///
/// The first thing that the agent does, while it has one thread and no descriptor of its own.
pub(crate) fn shed() {
    for number in 1..=LAST_SIGNAL {
        // SAFETY: all bytes zero are a valid `sigaction`, and the calls read and write this one. Signals that may not be changed
        // are refused with an error.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            // Rust ignores SIGPIPE before `main` and resets it in what it executes.
            if number != libc::SIGPIPE
                && libc::sigaction(number, ptr::null(), &mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
            {
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(number, &action, ptr::null_mut());
            }
        }
    }
    // A file that has reached the process's limit is an error of the write, as with any full disk. Plugins get the default.
    // SAFETY: a system call on plain numbers.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let awaited = SigSet::from_iter([Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT]);
    let _ = awaited.thread_set_mask();

    for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|number| number.parse::<libc::c_int>().ok());
        if let Some(number) = number.filter(|number| *number > libc::STDERR_FILENO) {
            // SAFETY: a system call on plain numbers, which changes nothing but what exec does with the descriptor.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// From now on signals reach the thread that calls this; those that came meanwhile do so at once.
pub(crate) fn take_signals() {
    let _ = SigSet::empty().thread_set_mask();
}
