//! Settings again on SIGHUP, and certificates again when they change: at SIGHUP, before each connection, and once a day.
//!
//! Settings that cannot be read change nothing, and so do certificates. A stream that the new settings do not lead to, or
//! that was opened with other certificates, ends in order before the next one is opened: the plugins' records wait for that.

use elklet_core::link::session::{Endpoints, Target};
use elklet_core::time::Millis;

use super::shell::Shell;
use crate::config::{Address, Scheme, Server, Settings};
use crate::logging;

impl Shell {
    /// SIGHUP: reads file, environment and certificates again.
    pub(super) fn reload(&mut self) {
        if self.agent.is_ending() {
            return;
        }
        match self.settings.load_again(&self.flags, &self.environment) {
            Ok(new) => self.apply(new),
            Err(error) => log::warn!("SIGHUP: the settings stay as they were: {error}"),
        }
    }

    /// Puts new settings into force, as far as they can be without a new start.
    fn apply(&mut self, mut new: Settings) {
        let old = &self.settings;
        let mut layout = old.layout.clone();
        layout.certs.clone_from(&new.layout.certs);
        if new.layout != layout || new.buffer != old.buffer {
            log::warn!("SIGHUP: [buffer], and where all but the certificates lies, take effect at the next start only");
            new.layout = layout;
            new.buffer.clone_from(&old.buffer);
        }
        if (new.spool.bytes() == 0) != (old.spool.bytes() == 0) {
            log::warn!("SIGHUP: whether there is a spool takes effect at the next start only");
            new.spool.clone_from(&old.spool);
        }
        let keeps_stream =
            self.agent.streaming_to().is_some_and(|target| leads_to(&new, old, target, self.link.address()));
        let old = std::mem::replace(&mut self.settings, new);

        logging::configure(&self.settings.log);
        let news = self.settings.warnings.iter().filter(|warning| !old.warnings.contains(warning));
        news.for_each(|warning| log::warn!("{warning}"));
        self.plugins.configure(&self.settings);
        self.agent.set_spool_bytes(self.settings.spool.bytes());
        if self.settings.policy != old.policy {
            self.agent.handle_policy(self.settings.policy.clone(), self.clock.now());
        }
        let has_new_certificates = self.link.refresh_certificates(&self.settings);
        let new = &self.settings;
        self.link.connector.proxies.clone_from(&new.proxies);
        let changes = [
            ("servers", old.server != new.server),
            ("proxies", old.proxies != new.proxies),
            ("certificates", has_new_certificates),
            ("plugins", (&old.plugins, &old.plugin) != (&new.plugins, &new.plugin)),
            ("upload", old.upload_rules() != new.upload_rules()),
            ("policy", old.policy != new.policy),
            ("update", old.update != new.update),
            ("spool", old.spool != new.spool),
            ("log", old.log != new.log),
            ("idc and region", (&old.idc, &old.region) != (&new.idc, &new.region)),
        ];
        let names: Vec<_> = changes.iter().filter(|(_, changed)| *changed).map(|(name, _)| *name).collect();
        if self.agent.plugins().next().is_some() {
            self.facts.warn_of_sections(&self.agent, &self.settings);
        }
        log::info!("SIGHUP: changed: {}", if names.is_empty() { "nothing".to_owned() } else { names.join(", ") });
        if old.server != new.server || old.proxies != new.proxies || has_new_certificates {
            let (endpoints, timing) = (endpoints(&new.server), new.server.timing());
            let keeps_stream = keeps_stream && !has_new_certificates;
            self.agent.handle_reconfigured(endpoints, timing, keeps_stream, self.clock.now());
        }
    }

    /// The host is in another region: the next stream goes to that one's servers. The one that is open stays, as it does in
    /// the reference.
    pub(super) fn follow_region(&mut self, now: Millis) {
        if let Ok(Settings { server, .. }) = self.settings.load_again(&self.flags, &self.environment)
            && server != self.settings.server
        {
            self.settings.server = server;
            let server = &self.settings.server;
            let (endpoints, timing) = (endpoints(server), server.timing());
            self.agent.handle_reconfigured(endpoints, timing, true, now);
        }
    }
}

/// How many servers there are of each kind.
pub(super) fn endpoints(server: &Server) -> Endpoints {
    Endpoints { discovery: server.discovery.len(), private: server.private.len(), public: server.public.len() }
}

/// Returns true when the new settings still list the stream's server, and reach it through the same proxy as the old ones.
fn leads_to(new: &Settings, old: &Settings, target: Target, address: &str) -> bool {
    let listed = match target {
        // What discovery hosts would name now is not known; the same ones are as good as before.
        Target::Discovered(_) => return new.server.discovery == old.server.discovery && new.proxies == old.proxies,
        Target::Private(_) => &new.server.private,
        Target::Public(_) => &new.server.public,
    };
    let Ok(address) = address.parse::<Address>() else { return false };
    let way = |settings: &Settings| settings.proxies.for_target(Scheme::Https, &address.host, address.port).cloned();
    listed.contains(&address) && way(new) == way(old)
}
