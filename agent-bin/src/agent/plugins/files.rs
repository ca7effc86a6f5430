//! What lies on the disk: the list of plugins that is kept, and directories that are to be deleted.

use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use elklet_core::command::{PluginConfig, PluginName};
use elklet_core::time::Millis;

use super::{PluginEvent, Plugins};
use crate::logging::{self, Event, Kind};
use crate::plugin;
use crate::sys::blocking;
use crate::sys::remove::remove_tree;

/// Paths that wait to be deleted at most; each is tried again at every heartbeat.
const MAX_LITTER: usize = 1_000;

impl Plugins {
    /// Keeps the list of what is to run on the disk; the newest list counts.
    pub(in crate::agent) fn keep(&mut self, plugins: Vec<PluginConfig>, now: Millis) {
        self.to_keep = Some(plugins);
        self.write_kept(now);
    }

    pub(super) fn write_kept(&mut self, now: Millis) {
        if self.keeping || self.keep_at.is_some_and(|due| due > now) {
            return;
        }
        self.keep_at = None;
        let lists = (self.to_keep.take(), mem::take(&mut self.to_note));
        if matches!(lists, (None, false)) {
            return;
        }
        let (preparer, events) = (Arc::clone(&self.preparer), self.events.clone());
        let started = blocking::start(lists, move |(to_keep, to_note)| {
            if let Some(Err(error)) = to_keep.map(|plugins| plugin::write_kept(&preparer.workdir, &plugins)) {
                log::error!("the list of plugins cannot be kept for a start without a server: {error}");
            }
            if to_note && let Err(error) = preparer.newest.write() {
                log::error!("the newest versions cannot be kept; after its end the agent will not know them: {error}");
            }
            let _ = events.send(PluginEvent::Kept);
        });
        match started {
            Ok(()) => self.keeping = true,
            Err(refused) => {
                (self.to_keep, self.to_note) = refused.input;
                self.keep_at = Some(now + blocking::RETRY_MS);
            }
        }
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
