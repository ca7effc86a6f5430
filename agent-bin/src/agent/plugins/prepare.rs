//! Preparations: a plugin is verified where it lies, or fetched, on threads of their own.

use std::collections::VecDeque;
use std::sync::Arc;

use elklet_core::command::PluginConfig;
use elklet_core::dispatch::Preparation;
use elklet_core::limits::{MAX_DOWNLOADS, MAX_VERIFICATIONS};

use super::{Outcome, PluginEvent, Plugins};
use crate::config::Settings;
use crate::fetch::{Cancel, Fetcher};
use crate::plugin::{Newest, PrepareError, Prepared, Preparer};
use crate::sys::blocking;

/// A step of a preparation. The steps have threads apart, so that what is in its place does not wait for slow downloads of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Step {
    /// Looking whether the plugin is in its place already.
    Verify,
    /// Fetching it.
    Download,
}

impl Step {
    /// How often it is taken at the same time.
    fn at_once(self) -> usize {
        match self {
            Self::Verify => MAX_VERIFICATIONS,
            Self::Download => MAX_DOWNLOADS,
        }
    }
}

/// The preparations at one step.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Those that have not begun it.
    waiting: VecDeque<(Preparation, PluginConfig)>,
    /// Threads that work on it, whether what they prepare is still wanted or not.
    at_work: usize,
}

pub(super) fn preparer(settings: &Settings, newest: Arc<Newest>) -> Preparer {
    Preparer {
        workdir: settings.layout.workdir.clone(),
        fetcher: Fetcher::new(settings.layout.certs.join("ca.crt"), settings.proxies.clone()),
        signers: settings.plugins.signers(),
        allow_downgrade: settings.plugins.allow_downgrade(),
        newest,
    }
}

impl Plugins {
    pub(in crate::agent) fn prepare(&mut self, id: Preparation, config: PluginConfig) {
        self.verifications.waiting.push_back((id, config));
        self.set_to_work(Step::Verify);
    }

    fn lane(&mut self, step: Step) -> &mut Lane {
        match step {
            Step::Verify => &mut self.verifications,
            Step::Download => &mut self.downloads,
        }
    }

    /// Begins as many preparations as may be at this step at once.
    fn set_to_work(&mut self, step: Step) {
        while self.lane(step).at_work < step.at_once()
            && let Some((id, config)) = self.lane(step).waiting.pop_front()
        {
            self.lane(step).at_work += 1;
            let cancel = Arc::new(Cancel::default());
            self.preparing.insert(id, Arc::clone(&cancel));
            let (preparer, events) = (Arc::clone(&self.preparer), self.events.clone());
            let quota = self.confiner.quota(&config.name);
            let tell = events.clone();
            let started = blocking::start(config, move |config| {
                let result = match step {
                    // It is fetched, then.
                    Step::Verify => match preparer.verify(&config, quota, &cancel) {
                        Err(PrepareError::OverQuota(over)) => Err(over.into()),
                        Err(_) if !config.urls.is_empty() => Ok(None),
                        verified => verified.map(Some),
                    },
                    Step::Download => preparer.download(&config, quota, &cancel).map(Some),
                };
                let config = Box::new(config);
                let _ = events.send(PluginEvent::Prepared { id, config, step, result });
            });
            if let Err(refused) = started {
                let (config, result) = (Box::new(refused.input), Err(PrepareError::NoThread(refused.error)));
                let _ = tell.send(PluginEvent::Prepared { id, config, step, result });
            }
        }
    }

    pub(in crate::agent) fn forget(&mut self, id: Preparation) {
        for step in [Step::Verify, Step::Download] {
            self.lane(step).waiting.retain(|(waiting, _)| *waiting != id);
        }
        if let Some(cancel) = self.preparing.remove(&id) {
            cancel.cancel();
        }
        if let Some(prepared) = self.ready.remove(&id) {
            self.drop_aside(prepared);
        }
    }

    /// Drops what was prepared where nobody waits for it: files of a version that is not needed any more may be deleted with
    /// it.
    pub(super) fn drop_aside(&mut self, prepared: Prepared) {
        if prepared.is_staged() {
            self.chores.push(move || drop(prepared));
        }
    }

    /// A step of a preparation is over.
    pub(super) fn handle_step(
        &mut self,
        id: Preparation,
        config: PluginConfig,
        step: Step,
        result: Result<Option<Prepared>, PrepareError>,
    ) -> Option<Outcome> {
        self.lane(step).at_work -= 1;
        self.set_to_work(step);
        if self.preparing.remove(&id).is_none() {
            // Nobody wants it any more.
            result.into_iter().flatten().for_each(|prepared| self.drop_aside(prepared));
            return None;
        }
        match result {
            Ok(Some(prepared)) => {
                self.measuring.let_go(&config.name);
                self.ready.insert(id, prepared);
                Some(Outcome::Prepared(config.name, id))
            }
            Ok(None) => {
                self.downloads.waiting.push_back((id, config));
                self.set_to_work(Step::Download);
                None
            }
            Err(why) => {
                self.measuring.audit_refused(&config.name, &why);
                Some(Outcome::NotPrepared(config.name, id, why))
            }
        }
    }
}
