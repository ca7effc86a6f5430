//! The way to a server: carrying out what the session asks for, and telling the agent what came of it.

use bytes::Bytes;
use elklet_core::agent::Agent;
use elklet_core::command::Command;
use elklet_core::link::session::{Abandoned, Action, Attempt, Target};
use elklet_core::time::Millis;
use elklet_proto::enrollment::EnrollRequest;
use prost::Message;
use tokio::sync::mpsc;

use crate::config::{Address, Server, Settings};
use crate::identity::{Identity, NewKey, NoKey};
use crate::net::{self, BadCommand, Certificates, Connector, DiscoveryError, End, Ends, Event, HalfOpen, Transfer};
use crate::sys::blocking;
use crate::{clock, logging};

/// Events of one attempt that may wait for the loop; commands beyond that stay with the server.
const EVENTS_AHEAD: usize = 32;

/// How often certificates are looked at while nothing else asks for it.
const CERTIFICATES_INTERVAL_MS: u64 = 24 * 60 * 60 * 1000;

/// The connection of the attempt that is alive, and what all attempts need.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connector: Connector,
    certificates: Certificates,
    /// The key for which a certificate was asked.
    new_key: Option<NewKey>,
    /// When the certificates are looked at again if nothing else asks for it.
    certificates_due: Millis,
    /// What service discovery named last.
    discovered: Vec<Address>,
    /// The attempt that is alive, from its TCP connection to its stream.
    transfer: Option<Transfer>,
    /// The attempt that is alive, and the ends of its connection.
    current: Option<Attempt>,
    ends: Option<Ends>,
    /// What is being asked or connected to, or was last.
    address: String,
    net_mode: &'static str,
    /// The moment of the next attempt, once the log has told it.
    told_wait: Option<Millis>,
    /// The last thing that went wrong on the way to the server.
    last_error: Option<Failed>,
}

/// Something that went wrong on the way to the server.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) at: Millis,
    pub(super) what: String,
    /// True if the server is there, and refuses this agent.
    pub(super) is_refusal: bool,
}

impl Link {
    pub(super) fn new(certificates: Certificates, settings: &Settings, now: Millis) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
        let tls = certificates.tls().clone();
        let connector = Connector { tls, proxies: settings.proxies.clone(), half_open: HalfOpen::default(), events };
        let link = Self {
            connector,
            certificates,
            new_key: None,
            certificates_due: now + CERTIFICATES_INTERVAL_MS,
            discovered: Vec::new(),
            transfer: None,
            current: None,
            ends: None,
            address: String::new(),
            net_mode: "unknown",
            told_wait: None,
            last_error: None,
        };
        link.warn_of_certificates();
        (link, receiver)
    }

    pub(super) fn carry_out(&mut self, action: Action, settings: &Settings, agent: &mut Agent<Bytes>, now: Millis) {
        match action {
            Action::Resolve { attempt, host } => self.resolve(attempt, &settings.server.discovery[host], agent, now),
            Action::Connect { attempt, target } => {
                let address = self.address_of(target, &settings.server).clone();
                self.begin(attempt, address.to_string());
                self.net_mode = target.net_mode();
                self.refresh_certificates(settings);
                log::debug!("connecting to {} ({})", self.address, self.net_mode);
                self.transfer = Some(Transfer::start(&self.connector, attempt, address));
            }
            Action::Open { .. } => self.transfer.iter().for_each(Transfer::open),
            Action::Abandon { attempt, reason } => {
                // Another attempt may be under way already.
                if !self.is_current(attempt) {
                    return;
                }
                if let Abandoned::TimedOut(what) = reason {
                    self.fail(format!("{}: no answer in time: {what}", self.address), false, now);
                    self.lose_connection();
                }
                (self.current, self.ends, self.transfer) = (None, None, None);
            }
            Action::Ping => self.transfer.iter().for_each(Transfer::ping),
            Action::HalfClose => self.transfer.iter_mut().for_each(Transfer::half_close),
        }
    }

    fn resolve(&mut self, attempt: Attempt, host: &Address, agent: &mut Agent<Bytes>, now: Millis) {
        let Connector { proxies, events, .. } = self.connector.clone();
        self.begin(attempt, host.to_string());
        let started = blocking::start(host.clone(), move |host| {
            let _ = events.blocking_send(Event::Resolved(attempt, net::discover(&host, &proxies)));
        });
        if let Err(refused) = started {
            let why = DiscoveryError::no_thread(&refused.input, refused.error);
            self.handle_event(Event::Resolved(attempt, Err(why)), agent, now);
        }
    }

    /// Tells the agent what has come of an attempt.
    pub(super) fn handle_event(&mut self, event: Event, agent: &mut Agent<Bytes>, now: Millis) {
        match event {
            Event::Resolved(attempt, Ok(addresses)) => {
                let count = addresses.len();
                if self.is_current(attempt) {
                    self.discovered = addresses;
                }
                agent.handle_resolved(attempt, count, now);
            }
            Event::Resolved(attempt, Err(error)) => {
                if self.is_current(attempt) {
                    self.fail(format!("service discovery failed: {error}"), false, now);
                }
                agent.handle_not_resolved(attempt, now);
            }
            Event::Dialled | Event::Credit => {}
            Event::Connected(attempt, ends) => {
                if self.is_current(attempt) {
                    self.ends = Some(ends);
                }
                agent.handle_connected(attempt, now);
            }
            Event::Opened(attempt) => {
                if self.is_current(attempt) {
                    log::info!("connected to {} ({})", self.address, self.net_mode);
                    logging::set_server(&self.address);
                }
                agent.handle_opened(attempt, now);
            }
            Event::Written(attempt) => agent.handle_written(attempt, now),
            Event::Message { bytes, command: Ok(command) } => {
                log_command(&command);
                agent.handle_command(command, bytes, now);
            }
            Event::Message { bytes, command: Err(BadCommand { what, token }) } => {
                log::warn!("the server sent {what}; it is passed over");
                agent.handle_bad_command(bytes, token, &what.to_string());
            }
            // The shell sees to these.
            Event::Renewed(..) | Event::Installed(_) => {}
            Event::Pong(attempt) => agent.handle_pong(attempt, now),
            Event::Ended(attempt, end) => {
                if self.is_current(attempt) {
                    self.tell_end(&end, agent.session().is_half_closed(), now);
                }
                agent.handle_ended(attempt, end.class(), now);
            }
        }
    }

    fn tell_end(&mut self, end: &End, is_half_closed: bool, now: Millis) {
        if end.is_silence() {
            self.lose_connection();
        }
        if matches!(end, End::Status(_) | End::Completed) && is_half_closed {
            log::debug!("{}: {end}", self.address);
        } else {
            self.fail(format!("{}: {end}", self.address), end.is_refusal(), now);
        }
    }

    /// Something went wrong on the way to the server.
    fn fail(&mut self, what: String, is_refusal: bool, now: Millis) {
        log::warn!("{what}");
        self.last_error = Some(Failed { at: now, what, is_refusal });
    }

    fn begin(&mut self, attempt: Attempt, address: String) {
        self.current = Some(attempt);
        self.address = address;
    }

    fn is_current(&self, attempt: Attempt) -> bool {
        self.current == Some(attempt)
    }

    fn address_of<'a>(&'a self, target: Target, server: &'a Server) -> &'a Address {
        match target {
            Target::Discovered(i) => &self.discovered[i],
            Target::Private(i) => &server.private[i],
            Target::Public(i) => &server.public[i],
        }
    }

    /// The connection, if there is one, has died without the server's knowledge.
    fn lose_connection(&mut self) {
        if let Some(ends) = self.ends.take() {
            self.connector.half_open.add(ends);
        }
    }

    /// Hands over a message, for which the agent knows that there is room.
    pub(super) fn send(&self, message: Bytes) {
        if let Some(transfer) = &self.transfer
            && !transfer.send(message)
        {
            // Its end is on the way to the loop, and says why. The batch stays unconfirmed, and is sent again.
            log::debug!("{}: the stream takes nothing any more", self.address);
        }
    }

    /// Tells the agent how much credit the server has returned.
    pub(super) fn tell_credit(&self, agent: &mut Agent<Bytes>, now: Millis) {
        if let Some(transfer) = &self.transfer {
            agent.handle_credit(transfer.credit(), now);
        }
    }

    /// Has the loop woken when the server has returned this much.
    pub(super) fn want_credit(&self, credit: Option<u64>) {
        self.transfer.iter().for_each(|transfer| transfer.want_credit(credit));
    }

    /// Says in the log when the next attempt is, once for each wait, whatever it was that has led to it.
    pub(super) fn tell_wait(&mut self, until: Option<Millis>, now: Millis) {
        if let Some(moment) = until.filter(|_| until != self.told_wait) {
            log::info!("the next attempt is in {:.1} s", moment.since(now) as f64 / 1000.0);
        }
        self.told_wait = until;
    }

    /// Reads the certificates again if they have changed, and tells whether they are new.
    pub(super) fn refresh_certificates(&mut self, settings: &Settings) -> bool {
        match self.certificates.reread(&settings.layout.certs, &settings.server, clock::unix_seconds()) {
            None => false,
            Some(Ok(())) => {
                log::info!("new certificates in {}", self.certificates.directory().display());
                self.connector.tls = self.certificates.tls().clone();
                self.warn_of_certificates();
                true
            }
            Some(Err(error)) => {
                log::warn!("the certificates stay as they were: {error}");
                false
            }
        }
    }

    /// Asks the server for the next certificate, with a new key.
    ///
    /// # Errors
    /// There is no key.
    pub(super) fn renew(&mut self, agent_id: &str) -> Result<(), NoKey> {
        let key = NewKey::make()?;
        let request =
            EnrollRequest { token: String::new(), agent_id: agent_id.to_owned(), request: key.request().to_vec() };
        self.new_key = Some(key);
        self.transfer.iter().for_each(|transfer| transfer.renew(request.encode_to_vec()));
        Ok(())
    }

    /// The server has given a certificate, which is written on a thread of its own if it is good. An [`Event::Installed`] says what came
    /// of it.
    ///
    /// # Errors
    /// What is wrong with it, or why it cannot be written.
    pub(super) fn install(&mut self, certificate: Vec<u8>, agent_id: &str) -> Result<(), String> {
        let Some(key) = self.new_key.take() else { return Err("nobody has asked for it".to_owned()) };
        let identity =
            key.certified(certificate, agent_id, clock::unix_seconds()).map_err(|error| error.to_string())?;
        let (events, directory) = (self.connector.events.clone(), self.certificates.directory().to_owned());
        let write = move |identity: Identity| {
            // The loop is gone only when the process ends.
            let _ = events.blocking_send(Event::Installed(identity.install(&directory)));
        };
        blocking::start(identity, write).map_err(|refused| refused.error.to_string())
    }

    /// Says in the log which certificates are near their end.
    fn warn_of_certificates(&self) {
        for warning in self.certificates.warnings(clock::unix_seconds()) {
            log::warn!("{warning}");
        }
    }

    /// What is done once a minute: servers that may still believe in a dead connection are told, and once a day the certificates are
    /// looked at.
    pub(super) fn look_after(&mut self, settings: &Settings, now: Millis) {
        self.connector.half_open.tell();
        if now >= self.certificates_due {
            self.certificates_due = now + CERTIFICATES_INTERVAL_MS;
            if !self.refresh_certificates(settings) {
                self.warn_of_certificates();
            }
        }
    }

    /// Says in a line whether there is a stream, and where to, or why there is none.
    pub(super) fn describe(&self, is_streaming: bool) -> String {
        match &self.last_error {
            _ if is_streaming => format!("connected to {} ({})", self.address, self.net_mode),
            Some(Failed { what, .. }) => format!("not connected: {what}"),
            None => "not connected".to_owned(),
        }
    }

    /// What is being asked or connected to, or was last.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn net_mode(&self) -> &'static str {
        self.net_mode
    }

    pub(super) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    pub(super) fn last_error(&self) -> Option<&Failed> {
        self.last_error.as_ref()
    }
}

fn log_command(command: &Command) {
    match command {
        Command::Nothing => log::info!("the server sent a command with nothing in it: nothing changes"),
        Command::PluginTask(task) => log::debug!("task {} for {:.80}", task.data_type, task.object_name),
        Command::AgentTask(task) => log::info!("task for the agent: {task}"),
        Command::RefusedTask(_) => {}
        Command::Configuration(configuration) => {
            let versions: Vec<_> =
                configuration.plugins.iter().map(|plugin| format!("{} {:.40}", plugin.name, plugin.version)).collect();
            log::info!("configuration of {} plugins: {}", versions.len(), versions.join(", "));
        }
    }
}
