//! The next certificate, from the center that gave the one in use. The agent decides when.

use elklet_core::agent::Renewed;
use elklet_core::link::session::Attempt;
use elklet_core::time::Millis;

use super::reload::endpoints;
use super::shell::Shell;
use crate::clock;
use crate::files::FileError;
use crate::net::End;

/// gRPC's UNIMPLEMENTED.
const UNIMPLEMENTED: u32 = 12;

impl Shell {
    /// Tells the agent which certificate is in use, and what time it is.
    pub(super) fn tell_certificate(&mut self, now: Millis) {
        let lifetime = self.link.certificates().given_to(self.facts.agent_id());
        self.agent.handle_certificate(lifetime, clock::unix_seconds(), now);
    }

    pub(super) fn renew(&mut self, now: Millis) {
        log::info!("the certificate is in its last third: asking for the next one");
        if let Err(why) = self.link.renew(self.facts.agent_id()) {
            self.not_renewed(&why, Renewed::Failed, now);
        }
    }

    pub(super) fn handle_renewed(&mut self, attempt: Attempt, answer: Result<Vec<u8>, End>) {
        let now = self.clock.now();
        // One on a stream of before was given up.
        if !self.agent.session().is_alive(attempt) {
            return;
        }
        match answer {
            Ok(certificate) => {
                // It is written on a thread, which may outlast the stream.
                self.agent.handle_certificate_given();
                if let Err(why) = self.link.install(certificate, self.facts.agent_id()) {
                    self.not_renewed(&why, Renewed::Failed, now);
                }
            }
            Err(End::Status(status)) if status.code == UNIMPLEMENTED => {
                self.not_renewed(&"the server gives none", Renewed::Unknown, now);
            }
            Err(end) => self.not_renewed(&end, Renewed::Failed, now),
        }
    }

    /// The next certificate is on the disk. The stream ends in order, and the next one begins with it.
    pub(super) fn handle_installed(&mut self, written: Result<(), FileError>) {
        let now = self.clock.now();
        if let Err(error) = &written {
            // It may be whole all the same, and not in its place yet.
            log::warn!("{error}");
        }
        if !self.link.refresh_certificates(&self.settings) {
            return self.not_renewed(&"what was written is of no use", Renewed::Failed, now);
        }
        self.tell_certificate(now);
        self.agent.handle_renewed(Renewed::Done, now);
        let server = &self.settings.server;
        self.agent.handle_reconfigured(endpoints(server), server.timing(), false, now);
    }

    fn not_renewed(&mut self, why: &dyn std::fmt::Display, renewed: Renewed, now: Millis) {
        log::warn!("no new certificate: {why}");
        self.agent.handle_renewed(renewed, now);
    }
}
