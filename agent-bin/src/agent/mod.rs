//! The net thread: one loop that tells the core's [`Agent`] what happens, and has its rooms carry out what the agent decides.
//!
//! Each room does one kind of IO and reports back: [`link`] (the connection), [`plugins`] (processes and their files), [`records`]
//! (the intake and the compressor), [`spool`] (files of records), and beside them uploads and updates. [`facts`] gathers what is known of
//! all of them, for heartbeats and for whoever asks on the host.

mod beat;
mod counts;
mod facts;
mod link;
mod plugins;
mod records;
mod reload;
mod renewal;
mod shell;
mod spool;
mod tasks;

use std::io;
use std::time::Duration;

use rustix::process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior};

use self::shell::Shell;
use crate::config::{Environment, Flags, Settings};
use crate::failure::Failure;
use crate::plugin::Applied;
use crate::sys::waiting::block_on;
use crate::sys::{blocking, children, starter};
use crate::update::After;
use crate::workdir::{self, WorkdirLock};
use crate::{logging, plugin};

/// At the end, threads that write or fetch something are waited for this long.
const END_OF_THREADS: Duration = Duration::from_secs(2);

/// How often a thread that the agent cannot do without is tried, a second apart. After a minute, somebody has to look.
const THREAD_TRIES: u32 = 60;

/// The least limit of open files. With twenty the agent just starts, and with fewer the runtime ends the process.
const LEAST_OPEN_FILES: u64 = 24;

/// Runs the agent until it is told to end, or to become another version; one that is on trial has to hold a stream.
///
/// # Errors
/// When it cannot begin. Once it runs, it goes on.
pub(crate) fn run(flags: Flags, environment: Environment, is_on_trial: bool) -> Result<After, Failure> {
    // No core file gets a key or a password, and no other process of this user traces the agent. What it executes is free of this.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let settings = Settings::load(&flags, &environment).map_err(|error| Failure::Settings(error.to_string()))?;
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < LEAST_OPEN_FILES) {
        let what = format!("the limit of open files (ulimit -n) is {limit}, expected {LEAST_OPEN_FILES} at least");
        return Err(Failure::System(what));
    }
    settings.layout.make().map_err(|error| Failure::System(error.to_string()))?;
    let layout = settings.layout.clone();
    let workdir = &layout.workdir;
    let system = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Failure::System(format!("{what}: {error}"))
    };
    // Before anything is written there.
    let _lock = WorkdirLock::take(workdir).map_err(|error| Failure::System(error.to_string()))?;
    plugin::reserve_descriptors().map_err(system("/dev/null"))?;
    let adopting = children::adopt_orphans();
    logging::start(&layout.log, &settings.log).map_err(|error| Failure::Settings(error.to_string()))?;
    if let Err(error) = adopting {
        log::warn!("what plugins leave behind cannot be told from other processes: {error}");
    }
    settings.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    // The last end may have come too suddenly for it.
    plugin::end_earlier_lives(workdir);
    workdir::tighten(&layout);
    let mut work = Some(|| {
        // What this thread starts are threads, which have the filter as well. Processes come from the first thread, which has none.
        let own = Applied::by_kernel("system calls", "seccomp", plugin::restrict_thread());
        log::info!("limits of the agent's own threads: {own}");
        block_on(async {
            let shell = Shell::new(flags, environment, settings, is_on_trial, own)?;
            shell.run().await.map_err(system("signals cannot be caught"))
        })
    });
    let result = insist("the net thread", || starter::beside(&mut work)).map_err(system("there is no net thread"));
    let result = result.and_then(|result| result.map_err(system("the runtime cannot be started"))).flatten();
    // What is still being resolved, fetched or deleted then is not waited for.
    blocking::wait_for_quiet(END_OF_THREADS);
    plugin::end_all(workdir);
    children::leave_orphans();
    workdir::clear(workdir);
    if let Err(failure) = &result {
        log::error!("{failure}");
    }
    result
}

/// Starts a thread, and tries again where there is none for it just now.
fn insist<T>(what: &str, mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        match start() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < THREAD_TRIES => {
                if tries == 1 {
                    log::warn!("{what} cannot be started: {error}; it is tried again every second");
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            started => return started,
        }
    }
}
