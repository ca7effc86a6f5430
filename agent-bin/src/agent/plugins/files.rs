//! What lies on the disk: the list of plugins that is kept, and directories that are to be deleted.

use std::mem;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use elklet_core::command::{PluginConfig, PluginName};
use elklet_core::time::Millis;

use super::{PluginEvent, Plugins};
use crate::logging::{self, Event, Kind};
use crate::plugin;
use crate::sys::remove::remove_tree;

/// Paths that wait to be deleted at most; each is tried again at every heartbeat.
const MAX_LITTER: usize = 1_000;

impl Plugins {
    /// Keeps the list of what is to run on the disk; the newest list counts. The agent's end waits for it.
    pub(in crate::agent) fn keep(&mut self, plugins: Vec<PluginConfig>, now: Millis) {
        let slot = Arc::clone(&self.to_keep);
        // Whoever writes the list that waits there writes this one in its place.
        if swap(&slot, Some(plugins)).is_none() {
            let preparer = Arc::clone(&self.preparer);
            self.writes.push(move || {
                if let Some(plugins) = swap(&slot, None)
                    && let Err(error) = plugin::write_kept(&preparer.workdir, &plugins)
                {
                    log::error!("the list of plugins cannot be kept for a start without a server: {error}");
                }
            });
        }
        self.writes.handle_timeout(now);
    }

    /// Keeps which versions have run, if this is a new one.
    pub(super) fn note_started(&mut self, config: &PluginConfig, now: Millis) {
        if self.preparer.note_started(config) && !self.to_note.swap(true, Relaxed) {
            let (preparer, to_note) = (Arc::clone(&self.preparer), Arc::clone(&self.to_note));
            self.writes.push(move || {
                to_note.store(false, Relaxed);
                if let Err(error) = preparer.newest.write() {
                    log::error!(
                        "the newest versions cannot be kept; after its end the agent will not know them: {error}"
                    );
                }
            });
        }
        self.writes.handle_timeout(now);
    }

    /// Takes a plugin's directory from its place at once, so that the plugin may come again, and has it deleted.
    pub(in crate::agent) fn remove(&mut self, name: &PluginName) {
        self.measuring.let_go(name);
        let directory = self.directory(name);
        match plugin::take_away(&directory) {
            Ok(None) => {}
            Ok(Some(away)) => {
                log::info!("plugin {name} is removed");
                logging::audit(&Event::new(Kind::Plugin, name.as_str(), "removed"));
                self.delete(vec![away]);
            }
            Err(error) => log::error!("plugin {name} cannot be removed: {}: {error}", directory.display()),
        }
    }

    /// Deletes these, and what could not be deleted before, in its time.
    pub(in crate::agent) fn delete(&mut self, paths: Vec<PathBuf>) {
        self.litter.extend(paths);
        // What does not fit is found again by the next start.
        self.litter.truncate(MAX_LITTER);
        if self.deleting || self.litter.is_empty() {
            return;
        }
        self.deleting = true;
        let (mut paths, events) = (mem::take(&mut self.litter), self.events.clone());
        self.chores.push(move || {
            paths.retain(|path| match remove_tree(path, &|| true) {
                Ok(()) => false,
                Err(error) => {
                    log::warn!("{} cannot be deleted and is tried again: {error}", path.display());
                    true
                }
            });
            let _ = events.send(PluginEvent::Deleted(paths));
        });
    }
}

/// Puts `list` into the slot, and returns what was there.
fn swap(slot: &Mutex<Option<Vec<PluginConfig>>>, list: Option<Vec<PluginConfig>>) -> Option<Vec<PluginConfig>> {
    mem::replace(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner), list)
}
