//! Passing records on to other systems: each at least once, in the order of the store, from a position that survives restarts.
//!
//! Each output has a task of its own on a thread that all outputs share, so that none of them holds up storing, and what one waits for
//! holds up no other. `delivery` decides, `run` carries out, and `sender` knows the kinds of outputs. What an output has in memory
//! is bounded: a page that was read ahead (16 MiB of payloads) and its batches.

mod connect;
mod delivery;
mod file;
mod http;
mod kafka;
mod record;
mod run;
mod sender;
pub mod settings;
mod status;
mod syslog;

pub(crate) use kafka::Facts;
pub(crate) use status::{Snapshot, State, Status};

use crate::store::Store;
use run::Runner;
use sender::Sender;
use settings::{FileOutput, Kind, Output};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long what was sent may take to be confirmed when the center ends. What is not is sent again after the next start.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// The outputs of a running center. Dropping it ends them.
#[derive(Debug)]
pub struct Forwarding {
    stop: watch::Sender<bool>,
    runner: Option<JoinHandle<()>>,
}

impl Forwarding {
    /// Starts outputs, each where its position in the store is. `known` then tells of them, and `facts` of
    /// hosts.
    ///
    /// # Errors
    /// When a certificate cannot be read, or the system gives no thread.
    pub(crate) fn start(
        outputs: Vec<Output>,
        store: &Arc<Store>,
        known: &OnceLock<Vec<Arc<Status>>>,
        facts: &Facts,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        if outputs.is_empty() {
            return Ok(Self { stop, runner: None });
        }
        let mut runners = Vec::new();
        for output in outputs {
            let sender = Sender::new(&output.kind, facts)
                .map_err(|error| io::Error::new(error.kind(), format!("forward {}: {error}", output.name)))?;
            let status = Arc::new(Status::new(&output));
            runners.push(Runner { output, sender, store: Arc::clone(store), status, stopped: stopped.clone() });
        }
        // Nobody else sets it.
        _ = known.set(runners.iter().map(|runner| Arc::clone(&runner.status)).collect());
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            // One that reads and one that writes for each.
            .max_blocking_threads(2 * runners.len() + 1)
            .build()?;
        let runner = std::thread::Builder::new().name("forward".into()).spawn(move || {
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                for runner in runners {
                    tasks.spawn(runner.run());
                }
                tasks.join_all().await;
            });
            runtime.shutdown_timeout(END_TIMEOUT);
        })?;
        Ok(Self { stop, runner: Some(runner) })
    }
}

/// Looks whether outputs can be started, and without starting them, whether the directories of those that are files are there. `made` is a
/// directory that the center makes itself.
///
/// # Errors
/// What cannot, with the output's name.
pub(crate) fn check(outputs: &[Output], made: &Path) -> Result<(), String> {
    let nobody: Facts = Arc::new(|_| None);
    for Output { name, kind, .. } in outputs {
        Sender::new(kind, &nobody).map_err(|error| format!("forward {name}: {error}"))?;
        if let Kind::File(FileOutput { path, .. }) = kind {
            let wrong = |what: &str| Err(format!("forward {name}: {}: {what}", path.display()));
            let parent = path.parent().unwrap_or(Path::new("/"));
            if !parent.is_dir() && parent != made {
                return wrong("there is no such directory to write it in");
            }
            if path.exists() && !path.is_file() {
                return wrong("it is no regular file");
            }
        }
    }
    Ok(())
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(runner) = self.runner.take() {
            // A thread that panicked has already printed why.
            _ = runner.join();
        }
    }
}

#[cfg(test)]
mod tests;
