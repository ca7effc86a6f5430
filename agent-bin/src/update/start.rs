//! Runs the agent, counts the starts of a version on trial, and executes the program that replaces this one.

use std::env;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use elklet_core::update::may_start;

use super::state::{Store, Trial};
use crate::config::Layout;
use crate::failure::Failure;
use crate::version;

/// What the process does when the agent has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    /// Exit.
    Exit,
    /// Execute this program, which is a new version.
    Execute(PathBuf),
    /// Roll back to the previous version, for this reason.
    PutBack(String),
}

/// Runs `agent`, which is told whether it is on trial, and then executes the program that replaces it, if any.
///
/// # Errors
/// The agent's errors.
pub(crate) fn run(layout: &Layout, agent: impl FnOnce(bool) -> Result<After, Failure>) -> Result<(), Failure> {
    let store = Store::new(layout);
    let mut trial = store.trial();
    if let Some(pending) = store.pending() {
        // This is the previous version, and the program in its place is still the one that has failed.
        match store.put_back_again(&pending) {
            Ok(()) => tell(&format!("version {} is taken back at last", pending.version)),
            Err(error) => tell(&format!("{}: {error}; it is tried again", pending.program.display())),
        }
        trial = None;
    }
    if trial.as_ref().is_some_and(|trial| trial.version != version()) {
        // Something else than the update has put this version here, or the power failed before the new one was in place.
        store.end_trial();
        trial = None;
    }
    if let Some(trial) = &mut trial {
        trial.starts = trial.starts.saturating_add(1);
        let counted = store.set_trial(trial);
        if !may_start(trial.starts) {
            put_back(&store, trial, &format!("it started {} times without holding a stream", trial.starts - 1));
        } else if let Err(error) = counted {
            // Without a count it could start for ever.
            put_back(&store, trial, &format!("its starts cannot be counted: {error}"));
        }
    }
    let result = agent(trial.is_some());
    match (result, trial) {
        (Ok(After::Exit), _) => Ok(()),
        (Ok(After::Execute(program)), _) => {
            let error = execute(&program);
            // The version on trial is the new one.
            match store.trial() {
                Some(trial) => put_back(&store, &trial, &format!("it cannot be executed: {error}")),
                None => tell(&format!("{}: {error}", program.display())),
            }
            Err(Failure::System(format!("{} cannot be executed: {error}", program.display())))
        }
        (Ok(After::PutBack(why)), Some(trial)) => {
            put_back(&store, &trial, &why);
            Err(Failure::System("the previous version cannot be put back".to_owned()))
        }
        (Ok(After::PutBack(_)), None) => Ok(()),
        (Err(failure), Some(trial)) => {
            put_back(&store, &trial, &format!("it cannot run: {failure}"));
            Err(failure)
        }
        (Err(failure), None) => Err(failure),
    }
}

/// Puts the previous version back and executes it. Returns only if neither can be done.
fn put_back(store: &Store, trial: &Trial, why: &str) {
    let Trial { version, previous, .. } = trial;
    tell(&format!("version {version} is taken back, {previous} comes again: {why}"));
    let program = match store.put_back(trial, why) {
        Ok(()) => trial.program.clone(),
        Err(error) => {
            tell(&format!("{}: {error}", trial.program.display()));
            store.previous()
        }
    };
    let error = execute(&program);
    tell(&format!("{} cannot be executed: {error}", program.display()));
}

/// Executes a program with the same arguments and environment. Returns only on failure.
fn execute(program: &Path) -> io::Error {
    let mut words = env::args_os();
    let name = words.next().unwrap_or_else(|| program.into());
    Command::new(program).arg0(name).args(words).exec()
}

/// Logs and prints a message, because there may be no log yet.
fn tell(text: &str) {
    log::error!("{text}");
    let _ = writeln!(io::stderr(), "elklet: {text}");
}
