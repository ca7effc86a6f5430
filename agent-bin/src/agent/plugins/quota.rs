//! Quotas: the directories of the plugins that run are measured from time to time, and a plugin ends that holds too much.
//!
//! While no plugin with a quota runs, nothing is measured and nothing is due. Before a start, the preparation looks.

use elklet_core::command::PluginName;
use elklet_core::time::Millis;

use super::{PluginEvent, Plugins, kill};
use crate::logging::{self, Event, Kind};
use crate::plugin::{OverQuota, PrepareError};
use crate::sys::blocking;

/// Time between two measurements. Meanwhile a plugin may write what the disk takes, some GiB. To measure a usual directory
/// takes less than a millisecond, and 20,000 entries some ten.
const MEASURE_MS: u64 = 15_000;

/// Measures when it is due.
#[derive(Debug, Default)]
pub(super) struct Measuring {
    due: Option<Millis>,
    /// True while a thread measures.
    is_at_work: bool,
    /// Plugins that are not started for what their directories hold, which the audit has.
    held_back: Vec<PluginName>,
}

impl Measuring {
    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        self.due
    }

    /// A plugin with a quota has started, or the last measurement is over.
    pub(super) fn schedule(&mut self, now: Millis) {
        if !self.is_at_work {
            self.due.get_or_insert(now + MEASURE_MS);
        }
    }

    /// A plugin can be started, or is gone.
    pub(super) fn let_go(&mut self, name: &PluginName) {
        self.held_back.retain(|held_back| held_back != name);
    }

    /// Puts a refusal into the audit. A plugin that is held back is looked at again and again, and audited once.
    pub(super) fn audit_refused(&mut self, name: &PluginName, why: &PrepareError) {
        if matches!(why, PrepareError::OverQuota(_)) {
            if self.held_back.contains(name) {
                return;
            }
            self.held_back.push(name.clone());
        }
        logging::audit(&Event::new(Kind::Refused, &format!("plugin {name}"), &why.to_string()));
    }
}

impl Plugins {
    /// Measures the directories of the plugins that run and have a quota, if that is due.
    pub(super) fn measure(&mut self, now: Millis) {
        if self.measuring.due.take_if(|due| *due <= now).is_none() {
            return;
        }
        let running = self.running.iter();
        let measured: Vec<_> = running
            .filter_map(|(name, running)| Some((name.clone(), running.pid, running.quota?, self.directory(name))))
            .collect();
        if measured.is_empty() {
            return;
        }
        let events = self.events.clone();
        let started = blocking::start(measured, move |measured| {
            let over = measured
                .into_iter()
                .filter_map(|(name, pid, quota, directory)| Some((name, pid, quota.check(&directory).err()?)));
            let _ = events.send(PluginEvent::Measured(over.collect()));
        });
        match started {
            Ok(()) => self.measuring.is_at_work = true,
            Err(_) => self.measuring.due = Some(now + blocking::RETRY_MS),
        }
    }

    /// Kills the plugins that are over their quotas. To ask them to end would give them time to write more.
    pub(super) fn handle_measured(&mut self, over: Vec<(PluginName, u32, OverQuota)>, now: Millis) {
        self.measuring.is_at_work = false;
        for (name, pid, over) in over {
            // Another process may run by now.
            if let Some(running) = self.running.get_mut(&name).filter(|running| running.pid == pid) {
                log::info!("plugin {name} (process {pid}) is killed: {over}");
                logging::audit(&Event::new(Kind::Plugin, name.as_str(), &format!("killed: {over}")));
                running.over = Some(over);
                self.quota_kills += 1;
                kill(pid);
            }
        }
        if self.running.values().any(|running| running.quota.is_some()) {
            self.measuring.schedule(now);
        }
    }

    /// Processes that were killed for what their directories held, since the agent started.
    pub(in crate::agent) fn quota_kills(&self) -> u64 {
        self.quota_kills
    }
}
