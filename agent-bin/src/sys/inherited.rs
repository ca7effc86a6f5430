//! Handles what the agent inherits from the process that starts it: ignored and blocked signals, open descriptors, and huge pages.
//! They must neither reach plugins nor disturb the agent.

use std::fs;
use std::mem;
use std::ptr;

use nix::sys::signal::{SigSet, Signal};

/// The highest number of a signal on Linux.
const LAST_SIGNAL: libc::c_int = 64;

/// Resets ignored signals to their default action, closes foreign descriptors on exec, and blocks the signals that the
/// agent handles, because one that comes before the agent can handle it must not end it. [`take_signals`] unblocks them.
///
/// The agent calls this first, while it has one thread and no descriptor of its own.
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
    // A file that reaches the process's limit is then an error of the write, as on a full disk. Plugins get the default.
    // SAFETY: a system call on plain numbers.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // Where the kernel gives huge pages unasked, as Debian's does, a buffer that holds a few records takes 2 MiB of memory: the idle
    // agent had 4.9 MB there and 2.9 elsewhere. Plugins get them again. Kernels before 3.15 have no such setting.
    // SAFETY: a system call on plain numbers.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
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

/// Lets signals reach the calling thread from now on. Those that came meanwhile arrive at once.
pub(crate) fn take_signals() {
    let _ = SigSet::empty().thread_set_mask();
}
