//! The way to a server: attempts, the stream that one of them becomes, and what comes on it.

use elklet_core::command::Command;
use elklet_core::link::grpc::Status;
use elklet_core::link::session::{Abandoned, Action, Attempt, Target};
use elklet_core::time::Millis;
use elklet_core::update::Trial;

use super::Agent;
use crate::blocking;
use crate::config::Address;
use crate::logging;
use crate::net::{self, BadCommand, Connector, End, Event, Transfer};

impl Agent {
    pub(super) fn carry_out_session(&mut self, action: Action) {
        match action {
            Action::Resolve { attempt, host } => {
                let Connector { proxies, events, .. } = self.connector.clone();
                let host = self.settings.server.discovery[host].clone();
                self.begin(attempt, host.to_string());
                let started = blocking::start(host, move |host| {
                    let _ = events.blocking_send(Event::Resolved(attempt, net::discover(&host, &proxies)));
                });
                if let Err(refused) = started {
                    let why = format!("{}: {}", refused.input, refused.error);
                    self.handle_net(Event::Resolved(attempt, Err(why)));
                }
            }
            Action::Connect { attempt, target } => {
                let address = self.address_of(target).clone();
                self.begin(attempt, address.to_string());
                self.net_mode = target.net_mode();
                self.refresh_certificates();
                log::debug!("connecting to {} ({})", self.address, self.net_mode);
                self.transfer = Some(Transfer::start(&self.connector, attempt, address));
            }
            Action::Open { .. } => self.transfer.iter().for_each(Transfer::open),
            Action::Abandon { reason, .. } => {
                if let Abandoned::TimedOut(what) = reason {
                    self.net.connect_failures += 1;
                    let what = format!("{}: no answer in time: {what}", self.address);
                    log::warn!("{what}");
                    self.note_failure(what);
                    self.lose_connection();
                }
                self.close_transfer();
            }
            Action::Ping => {
                self.transfer.iter().for_each(Transfer::ping);
                self.delivery.handle_ping(self.clock.now());
            }
            Action::HalfClose => self.transfer.iter_mut().for_each(Transfer::half_close),
            Action::Finish => {
                self.close_transfer();
                self.begin_saving();
            }
        }
    }

    pub(super) fn handle_net(&mut self, event: Event) {
        let now = self.clock.now();
        match event {
            // An attempt that was given up may still report.
            Event::Resolved(attempt, _) if !self.is_current(attempt) => {}
            Event::Resolved(attempt, Ok(addresses)) => {
                let count = addresses.len();
                self.discovered = addresses;
                self.session.handle_resolved(attempt, count, now);
            }
            Event::Resolved(attempt, Err(error)) => {
                let what = format!("service discovery failed: {error}");
                log::warn!("{what}");
                self.note_failure(what);
                self.net.connect_failures += 1;
                self.session.handle_failed(attempt, now);
            }
            Event::Dialled => {}
            Event::Connected(attempt, ends) => {
                if self.is_current(attempt) {
                    self.ends = Some(ends);
                }
                self.session.handle_connected(attempt, now);
            }
            Event::Opened(attempt) => {
                self.session.handle_opened(attempt, now);
                if self.is_current(attempt) {
                    log::info!("connected to {} ({})", self.address, self.net_mode);
                    logging::set_server(&self.address);
                    self.net.streams += 1;
                    self.delivery.handle_opened(now);
                    self.trial.iter_mut().for_each(|trial| trial.handle_opened(now));
                    self.heard = false;
                    // The server sends the configuration when it sees a heartbeat, so that comes first.
                    self.beat_at = Some(now);
                }
            }
            Event::Written(attempt) if self.is_current(attempt) => self.delivery.handle_written(now),
            Event::Written(_) => {}
            Event::Message { bytes, command } => {
                self.heard = true;
                self.net.received_bytes += bytes as u64;
                match command {
                    Ok(command) => {
                        self.net.commands += 1;
                        log_command(&command);
                        let configures = matches!(command, Command::Configuration(_));
                        self.dispatch.handle_command(command, now);
                        if configures {
                            self.warn_of_sections();
                        }
                    }
                    Err(BadCommand { what, token }) => {
                        self.net.bad_commands += 1;
                        log::warn!("the server sent {what}; it is passed over");
                        if let Some(token) = token {
                            self.refuse(token, &what);
                        }
                    }
                }
            }
            // What it confirms is looked at before the next wait in any case.
            Event::Credit => {}
            Event::Pong(attempt) => {
                self.session.handle_pong(attempt, now);
                if self.is_current(attempt) {
                    self.delivery.handle_pong(now);
                }
            }
            Event::Ended(attempt, end) => {
                if self.is_current(attempt) {
                    self.handle_end(&end);
                    self.session.handle_failed(attempt, now);
                }
            }
        }
    }

    /// Says in the log when the next attempt is, once for each wait, whatever it was that has led to it.
    pub(super) fn tell_wait(&mut self, now: Millis) {
        let until = self.session.waits_until();
        if let Some(moment) = until.filter(|_| until != self.told_wait) {
            log::info!("the next attempt is in {:.1} s", moment.since(now) as f64 / 1000.0);
        }
        self.told_wait = until;
    }

    fn handle_end(&mut self, end: &End) {
        match end {
            End::Dial(_) => self.net.connect_failures += 1,
            End::Tls(_) | End::NoHttp2 => self.net.tls_failures += 1,
            End::Center(_) => self.net.protocol_errors += 1,
            End::Http2(_) | End::Http(_) | End::Status(_) | End::NoAnswer(_) => {}
        }
        if !self.session.is_half_closed() && end.may_be_over_a_batch() {
            let says_too_large = matches!(end, End::Status(status) if status.is_too_large());
            self.delivery.handle_broken(says_too_large, self.clock.now());
        }
        if end.is_silence() {
            self.lose_connection();
        }
        if end.is_too_many_pings() {
            self.delivery.handle_too_many_pings();
            self.session.handle_too_many_pings();
        }
        match end {
            End::Status(Status { code: 0, .. }) if self.session.is_half_closed() => {
                self.delivery.handle_completed(self.clock.now())
            }
            _ => {}
        }
        match end {
            End::Status(_) if self.session.is_half_closed() => log::debug!("{}: {end}", self.address),
            _ => {
                let what = format!("{}: {end}", self.address);
                log::warn!("{what}");
                self.note_failure(what);
            }
        }
    }

    fn begin(&mut self, attempt: Attempt, address: String) {
        self.current = Some(attempt);
        self.address = address;
    }

    /// The connection, if there is one, has died without the server's knowledge.
    fn lose_connection(&mut self) {
        if let Some(ends) = self.ends.take() {
            self.connector.half_open.add(ends);
        }
    }

    fn close_transfer(&mut self) {
        self.current = None;
        self.ends = None;
        self.transfer = None;
        self.trial.iter_mut().for_each(Trial::handle_ended);
        self.beat_at = None;
        self.delivery.handle_ended(self.clock.now());
    }

    fn is_current(&self, attempt: Attempt) -> bool {
        self.current == Some(attempt)
    }

    fn address_of(&self, target: Target) -> &Address {
        match target {
            Target::Discovered(i) => &self.discovered[i],
            Target::Private(i) => &self.settings.server.private[i],
            Target::Public(i) => &self.settings.server.public[i],
        }
    }
}

fn log_command(command: &Command) {
    match command {
        Command::Nothing => log::info!("the server sent a command with nothing in it: nothing changes"),
        Command::PluginTask(task) => log::debug!("task {} for {:.80}", task.data_type, task.object_name),
        Command::AgentTask { task: Ok(task), token } => log::info!("task for the agent: {task} (token {token:?})"),
        Command::AgentTask { task: Err(_), .. } => {}
        Command::Configuration(configuration) => {
            let versions: Vec<_> =
                configuration.plugins.iter().map(|plugin| format!("{} {:.40}", plugin.name, plugin.version)).collect();
            log::info!("configuration of {} plugins: {}", versions.len(), versions.join(", "));
        }
    }
}
