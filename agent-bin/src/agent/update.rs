//! The agent's own update as far as the loop is concerned: when it begins, when it is in place, and whether the version that
//! runs stands its trial.

use elklet_core::command::AgentConfig;
use elklet_core::time::Millis;
use elklet_core::update::Verdict;

use super::Agent;
use super::ending::Ending;
use crate::logging::{self, Event, Kind};
use crate::update::{After, Updated};
use crate::version;

impl Agent {
    /// The server names another version.
    pub(super) fn update_to(&mut self, config: AgentConfig) {
        let (what, sha256) = (format!("version {}", config.version), config.sha256.to_string());
        logging::audit(&Event { sha256: &sha256, ..Event::new(Kind::Update, &what, "asked for") });
        if let Err(why) = self.updates.want(config, &self.settings) {
            self.dispatch.handle_agent_failed(why);
        }
    }

    /// An update has ended.
    pub(super) fn handle_updated(&mut self, updated: Updated) {
        match updated {
            Updated::InPlace(program) if self.ending == Ending::No => {
                let what = program.display().to_string();
                logging::audit(&Event::new(Kind::Update, &what, "in place, and executed next"));
                log::info!("{} is another version now: the agent ends in order and becomes it", program.display());
                self.begin_ending(self.clock.now());
                self.after = After::Execute(program);
            }
            // Whoever starts the agent next starts the new version.
            Updated::InPlace(_) | Updated::Cancelled => {}
            Updated::Failed(why) => {
                logging::audit(&Event::new(Kind::Refused, "update of the agent", &why));
                self.dispatch.handle_agent_failed(why);
            }
        }
    }

    /// The version that runs may have stood its trial, or not.
    pub(super) fn advance_trial(&mut self, now: Millis) {
        let verdict = self.trial.as_ref().filter(|_| self.ending == Ending::No).and_then(|trial| trial.verdict(now));
        match verdict {
            None => return,
            Some(Verdict::Stays) => {
                log::info!("version {} has held a stream: it stays", version());
                self.updates.handle_stays();
            }
            Some(Verdict::Fails) => {
                logging::audit(&Event::new(
                    Kind::Update,
                    &format!("version {}", version()),
                    "put back: it held no stream",
                ));
                log::error!("version {} has not held a stream: the previous one comes again", version());
                self.begin_ending(now);
                let seconds = self.settings.update.trial_ms() / 1000;
                self.after = After::PutBack(format!("it held no stream within {seconds} s"));
            }
        }
        self.trial = None;
    }
}
