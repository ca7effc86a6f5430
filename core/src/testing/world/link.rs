//! Connections: what the agent's host does with them, and the path between it and the servers.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;

use super::World;
use super::agenda::{Happening, Manner, Packet};
use crate::command::Command;
use crate::command::oversized::TokenFinder;
use crate::limits::{CAREFUL_GAP_MS, MAX_UNCONFIRMED_BATCHES, STREAM_AHEAD};
use crate::link::End;
use crate::link::session::{Abandoned, Action, Attempt, Target};
use crate::testing::message::Message;
use crate::testing::random::Draw;
use crate::testing::schedule::{NoDial, Way};
use crate::time::Millis;

/// Bytes that the host's socket holds until they are acknowledged.
const SOCKET_BYTES: u64 = 256 << 10;

/// The first packet is sent so often, after one second, two and four.
const SYNS: u32 = 4;

/// TCP gives up after this.
const TCP_PATIENCE_MS: u64 = 18_000;

/// The path to a server.
#[derive(Debug, Default)]
pub(super) struct Path {
    pub(super) no_way_there: Millis,
    pub(super) no_way_back: Millis,
    pub(super) slow_until: Millis,
    pub(super) slow_ms: u64,
    pub(super) bytes_per_ms: u64,
    pub(super) no_dials: Option<(NoDial, Millis)>,
}

/// A connection, with both its ends.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) life: u32,
    pub(super) attempt: Attempt,
    pub(super) server: usize,
    pub(super) agent_open: bool,
    pub(super) server_open: bool,
    pub(super) is_streaming: bool,
    pub(super) opened: Millis,
    /// When the server's host has taken it.
    pub(super) accepted: Millis,
    /// The balancer has forgotten it, and says nothing.
    pub(super) is_cut: bool,
    pub(super) last_traffic: Millis,
    /// What the agent has handed over and has not been written whole.
    waiting: VecDeque<Message>,
    written_of_first: u64,
    /// Messages that were written whole, of which the agent has not heard.
    unreported: usize,
    sent: u64,
    unacknowledged: u64,
    half_close: bool,
    has_half_closed: bool,
    /// The server has ended the stream because the agent has.
    pub(super) is_answered: bool,
    pub(super) credit: u64,
    credit_told: u64,
    pinged: Option<Millis>,
    /// When the last packet arrives, and what is held up, on the way back and on the way there.
    arrives: [Millis; 2],
    held: [VecDeque<Packet>; 2],
    gives_up: bool,
    /// The server's end.
    pub(super) far: super::server::FarEnd,
    /// The newest record that came on it first, of each series.
    pub(super) newest: BTreeMap<u32, Option<u32>>,
}

impl World {
    pub(super) fn carry_out_link(&mut self, action: Action) {
        match action {
            Action::Resolve { attempt, .. } => {
                let is_bad = self.agenda.now < self.no_discovery_until;
                let ms = if is_bad && self.random.chance(50) { 60_000 } else { self.random.between(1, 100) };
                self.agenda.after(ms, Happening::Resolved { life: self.life, attempt, works: !is_bad });
            }
            Action::Connect { attempt, target } => self.connect(attempt, target),
            Action::Open { .. } => {
                if let Some(connection) = self.current() {
                    self.agenda.after(0, Happening::Opened { connection });
                }
            }
            Action::Abandon { reason, .. } => self.abandon(reason),
            Action::Ping => self.ping(),
            Action::HalfClose => {
                if let Some(id) = self.current() {
                    self.connections[id].half_close = true;
                    self.connections[id].has_half_closed = true;
                    self.write(id);
                }
            }
        }
    }

    /// The connection that the agent has, or is setting up.
    pub(super) fn current(&self) -> Option<usize> {
        self.host.as_ref().and_then(|host| host.connection).filter(|id| self.connections[*id].agent_open)
    }

    /// The server at a target, if settings have not changed meanwhile.
    fn server_at(&self, target: Target) -> Option<usize> {
        let listed = &self.host.as_ref()?.listed;
        let is = |server: &usize, way: Way| self.setup.servers[*server].way == way;
        match target {
            Target::Discovered(index) => {
                (0..self.servers.len()).filter(|server| is(server, Way::Discovered)).nth(index)
            }
            Target::Private(index) => listed.iter().copied().filter(|server| is(server, Way::Private)).nth(index),
            Target::Public(index) => listed.iter().copied().filter(|server| is(server, Way::Public)).nth(index),
        }
    }

    fn connect(&mut self, attempt: Attempt, target: Target) {
        let now = self.agenda.now;
        let Some(server) = self.server_at(target) else {
            return self.fail("the agent connects to what is there", &format!("{target:?} is not"));
        };
        self.reread_certificate();
        let id = self.connections.len();
        self.connections.push(Connection {
            life: self.life,
            attempt,
            server,
            agent_open: true,
            server_open: false,
            is_streaming: false,
            opened: now,
            accepted: now,
            is_cut: false,
            last_traffic: now,
            waiting: VecDeque::new(),
            written_of_first: 0,
            unreported: 0,
            sent: 0,
            unacknowledged: 0,
            half_close: false,
            has_half_closed: false,
            is_answered: false,
            credit: 0,
            credit_told: 0,
            pinged: None,
            arrives: [now; 2],
            held: [VecDeque::new(), VecDeque::new()],
            gives_up: false,
            far: super::server::FarEnd::default(),
            newest: BTreeMap::new(),
        });
        if let Some(host) = &mut self.host {
            host.connection = Some(id);
        }
        let ms = self.delay(server);
        self.agenda.after(ms, Happening::Syn { connection: id, lost: 0 });
    }

    fn delay(&mut self, server: usize) -> u64 {
        let (path, usual) = (&self.paths[server], self.setup.servers[server].delay_ms);
        if self.agenda.now < path.slow_until { path.slow_ms.max(usual) } else { usual }
    }

    /// Whether packets in a direction are lost now.
    fn is_lost(&self, id: usize, to_server: bool) -> bool {
        let connection = &self.connections[id];
        let (path, server) = (&self.paths[connection.server], &self.servers[connection.server]);
        let until = if to_server { path.no_way_there } else { path.no_way_back };
        connection.is_cut || self.agenda.now < until.max(server.host_dead_until)
    }

    pub(super) fn handle_syn(&mut self, id: usize, lost: u32) {
        if !self.connections[id].agent_open {
            return;
        }
        let server = self.connections[id].server;
        let now = self.agenda.now;
        let is_deaf = self.host.as_ref().is_some_and(|host| host.is_deaf);
        let no_dials = self.paths[server].no_dials.filter(|(_, until)| now < *until).map(|(why, _)| why);
        let is_silent = self.is_lost(id, true) || self.is_lost(id, false) || now < self.servers[server].stopped_until;
        let end = match no_dials {
            _ if is_silent => {
                if lost < SYNS {
                    self.agenda.after(1_000 << lost, Happening::Syn { connection: id, lost: lost + 1 });
                }
                return;
            }
            Some(NoDial::Refused) => Some(End::Unreachable),
            Some(NoDial::Tls) => Some(End::Tls),
            None if !self.servers[server].is_up => Some(End::Unreachable),
            None if is_deaf || self.has_expired() => Some(End::Tls),
            None => None,
        };
        if let Some(end) = end {
            return self.send(id, Packet::End { end, how: Manner::Again });
        }
        self.tell_half_open(server);
        self.accept(id);
        self.send(id, Packet::Accepted);
    }

    /// Servers are told of connections that have died without their knowledge.
    fn tell_half_open(&mut self, server: usize) {
        let Some(host) = &mut self.host else { return };
        let is_told = |id: &usize| self.connections[*id].server == server && !self.connections[*id].is_cut;
        let (told, kept) = core::mem::take(&mut host.half_open).into_iter().partition(is_told);
        host.half_open = kept;
        let told: alloc::vec::Vec<usize> = told;
        told.into_iter().for_each(|id| self.close_far_end(id));
    }

    /// The agent hands a message to its stream.
    pub(super) fn hand_over(&mut self, message: Message) {
        let Some(id) = self.current().filter(|id| self.connections[*id].is_streaming) else {
            return self.fail("messages are handed to a stream", "there is none");
        };
        self.note(|| format!("the agent sends {message:?}: {}", message.summary()));
        let connection = &mut self.connections[id];
        connection.waiting.push_back(message);
        if connection.half_close || connection.waiting.len() > STREAM_AHEAD {
            let what = format!("{} messages wait on it", connection.waiting.len());
            return self.fail("a stream is handed two messages ahead at most, and none behind its end", &what);
        }
        self.write(id);
    }

    /// Writes as much as the server's window and the socket take.
    fn write(&mut self, id: usize) {
        loop {
            let connection = &mut self.connections[id];
            if !connection.agent_open || !connection.is_streaming {
                return;
            }
            let Some(first) = connection.waiting.front() else {
                if core::mem::take(&mut connection.half_close) {
                    self.send(id, Packet::HalfClose);
                }
                return;
            };
            let length = first.length() as u64;
            let window = self.setup.servers[connection.server].window + connection.credit - connection.sent;
            let room = SOCKET_BYTES.saturating_sub(connection.unacknowledged);
            let bytes = (length - connection.written_of_first).min(window).min(room);
            if bytes == 0 {
                return;
            }
            let begins = (connection.written_of_first == 0).then_some(length);
            connection.written_of_first += bytes;
            connection.sent += bytes;
            connection.unacknowledged += bytes;
            let is_whole = connection.written_of_first == length;
            let whole = if is_whole { connection.waiting.pop_front() } else { None };
            if is_whole {
                connection.written_of_first = 0;
                connection.unreported += 1;
                self.agenda.after(0, Happening::Written { connection: id });
            }
            self.send(id, Packet::Data { bytes, begins, whole });
        }
    }

    fn ping(&mut self) {
        let Some(id) = self.current() else { return };
        let now = self.agenda.now;
        let last = self.connections[id].pinged.replace(now);
        if last.is_some_and(|last| now.since(last) < super::server::MIN_PING_MS) {
            self.fail("PINGs are five seconds apart at least", &format!("the last one left at {:?}", last));
        }
        self.send(id, Packet::Ping);
    }

    fn abandon(&mut self, reason: Abandoned) {
        let Some(id) = self.host.as_mut().and_then(|host| host.connection.take()) else { return };
        if let Abandoned::TimedOut(what) = reason {
            self.note(|| format!("the agent gives up: no answer in time: {what}"));
        }
        self.forget_request();
        let was_open = core::mem::replace(&mut self.connections[id].agent_open, false);
        if was_open && let (Abandoned::TimedOut(_), Some(host)) = (reason, &mut self.host) {
            host.half_open.push(id);
        }
        if was_open {
            self.send(id, Packet::Reset);
        }
        self.account.settle_forgotten();
    }

    /// The agent's process is gone; its host closes the connection.
    pub(super) fn close_near_end(&mut self) {
        if let Some(id) = self.current() {
            self.connections[id].agent_open = false;
            self.send(id, Packet::Reset);
        }
    }

    pub(super) fn send(&mut self, id: usize, packet: Packet) {
        let now = self.agenda.now;
        let delay = self.delay(self.connections[id].server);
        let connection = &mut self.connections[id];
        let path = &self.paths[connection.server];
        let bytes = if let Packet::Data { bytes, .. } = packet { bytes } else { 0 };
        let takes = if now < path.slow_until { bytes / path.bytes_per_ms.max(1) } else { bytes >> 17 };
        let arrives = &mut connection.arrives[usize::from(packet.is_to_server())];
        *arrives = (*arrives).max(now + delay) + takes;
        let at = *arrives;
        self.agenda.at(at, Happening::Arrive { connection: id, packet });
    }

    pub(super) fn handle_arrive(&mut self, id: usize, packet: Packet) {
        let to_server = packet.is_to_server();
        let is_lost = self.is_lost(id, to_server);
        let now = self.agenda.now;
        if matches!(packet, Packet::End { how: Manner::Surely, .. }) {
            return self.deliver(id, packet);
        }
        let connection = &mut self.connections[id];
        let server = &self.servers[connection.server];
        let is_stopped = to_server && now < server.stopped_until;
        let is_of_tcp = matches!(packet, Packet::Reset | Packet::End { how: Manner::Once, .. });
        if is_lost && is_of_tcp {
            // It is sent once. The server will notice by itself.
            if to_server && connection.server_open {
                let ms = self.setup.servers[connection.server].notices_ms;
                self.agenda.after(ms, Happening::ServerNotices { connection: id });
            }
            return;
        }
        let held = &mut connection.held[usize::from(to_server)];
        if is_lost || is_stopped || !held.is_empty() {
            held.push_back(packet);
            // A balancer acknowledges what it does not pass on.
            let is_unacknowledged = is_lost && to_server && connection.agent_open && !connection.is_cut;
            if is_unacknowledged && !core::mem::replace(&mut connection.gives_up, true) {
                self.agenda.after(TCP_PATIENCE_MS, Happening::GiveUp { connection: id });
            }
            return;
        }
        self.deliver(id, packet);
    }

    fn deliver(&mut self, id: usize, packet: Packet) {
        self.connections[id].last_traffic = self.agenda.now;
        if packet.is_to_server() {
            if let Packet::Data { bytes, .. } = packet {
                self.connections[id].unacknowledged -= bytes;
            }
            self.handle_at_server(id, packet);
            return self.write(id);
        }
        let Connection { agent_open, server_open, attempt, .. } = self.connections[id];
        let is_mine = self.host.is_some() && self.connections[id].life == self.life;
        if !agent_open || !is_mine {
            if server_open && !matches!(packet, Packet::End { .. }) {
                self.send(id, Packet::Reset);
            }
            return;
        }
        match packet {
            Packet::Accepted => self.tell(|agent, now| agent.handle_connected(attempt, now)),
            Packet::Credit(credit) => {
                let connection = &mut self.connections[id];
                connection.credit = connection.credit.max(credit);
                self.write(id);
                let wanted = self.host.as_ref().and_then(|host| host.agent.wanted_credit());
                self.rouse |= wanted.is_some_and(|wanted| wanted <= credit);
            }
            Packet::Pong => self.tell(|agent, now| agent.handle_pong(attempt, now)),
            Packet::Command(bytes) => self.handle_command(&bytes),
            Packet::Certified(request, answer) => self.handle_answer(request, answer),
            Packet::End { end, .. } => self.handle_end(id, end),
            Packet::Data { .. } | Packet::Ping | Packet::Certify(_) | Packet::HalfClose | Packet::Reset => {}
        }
    }

    fn handle_end(&mut self, id: usize, end: End) {
        self.note(|| format!("the agent's connection ends: {end:?}"));
        let now = self.agenda.now;
        let Connection { attempt, is_streaming, opened, .. } = self.connections[id];
        let is_asked = core::mem::take(&mut self.connections[id].is_answered);
        // A server that ends a call before its client has sends a RST_STREAM behind the trailers, as grpc-go does.
        let end = if end == End::Ok && !is_asked { End::Unexplained } else { end };
        self.connections[id].agent_open = false;
        if matches!(end, End::Silent)
            && let Some(host) = &mut self.host
        {
            host.half_open.push(id);
        }
        if is_streaming && matches!(end, End::Ok | End::Unexplained | End::TooLarge) {
            // What a long stream has carried was taken long before its end, so that nothing is suspected of two such ends. The third
            // stream is careful, and takes long over what was in flight.
            let careful = if self.unexplained_ends == 2 { CAREFUL_GAP_MS * MAX_UNCONFIRMED_BATCHES as u64 } else { 0 };
            let is_streak = now.since(opened) < 60_000 + careful || self.unexplained_ends >= 3;
            self.unexplained_ends = if is_streak { self.unexplained_ends + 1 } else { 1 };
            self.longest_life_ms = self.longest_life_ms.max(now.since(opened));
        }
        self.tell(|agent, now| agent.handle_ended(attempt, end, now));
        self.tell_certificate();
    }

    pub(super) fn handle_opened(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        if connection.agent_open && connection.life == self.life {
            (connection.is_streaming, connection.opened) = (true, self.agenda.now);
            let attempt = connection.attempt;
            self.tell(|agent, now| agent.handle_opened(attempt, now));
            self.tell_certificate();
            self.note(|| "the agent has a stream".into());
        }
    }

    pub(super) fn handle_written(&mut self, id: usize) {
        let Connection { attempt, life, agent_open, .. } = self.connections[id];
        self.connections[id].unreported -= 1;
        if agent_open && life == self.life {
            self.tell(|agent, now| agent.handle_written(attempt, now));
        }
    }

    /// What was held up on a way goes on, unless it still is.
    pub(super) fn handle_release(&mut self, id: usize, to_server: bool) {
        let is_stopped = to_server && self.agenda.now < self.servers[self.connections[id].server].stopped_until;
        if self.is_lost(id, to_server) || is_stopped {
            return;
        }
        let held = core::mem::take(&mut self.connections[id].held[usize::from(to_server)]);
        if to_server {
            self.connections[id].gives_up = false;
        }
        held.into_iter().for_each(|packet| self.deliver(id, packet));
    }

    /// Faults of the path, or of servers, may be over: TCP sends again in its time.
    pub(super) fn release_all(&mut self) {
        for id in 0..self.connections.len() {
            for to_server in [true, false] {
                let is_held = !self.connections[id].held[usize::from(to_server)].is_empty();
                if is_held && !self.is_lost(id, to_server) {
                    let ms = self.random.between(0, 1_500);
                    self.agenda.after(ms, Happening::Release { connection: id, to_server });
                }
            }
        }
    }

    pub(super) fn handle_give_up(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        let is_stuck = core::mem::take(&mut connection.gives_up) && !connection.held[1].is_empty();
        if is_stuck && connection.agent_open && connection.life == self.life {
            self.handle_end(id, End::Silent);
        }
    }

    /// What the server has returned is looked at before everything else.
    pub(super) fn look_at_credit(&mut self) {
        let Some(id) = self.current() else { return };
        let connection = &mut self.connections[id];
        if connection.credit > connection.credit_told {
            connection.credit_told = connection.credit;
            let credit = connection.credit;
            if let Some(host) = &mut self.host {
                host.agent.handle_credit(credit, self.agenda.now);
            }
        }
    }

    fn handle_command(&mut self, bytes: &[u8]) {
        match Command::decode(bytes) {
            Ok(command) => {
                self.note_command(&command);
                self.tell(|agent, now| agent.handle_command(command, bytes.len(), now));
            }
            Err(why) => {
                let mut finder = TokenFinder::default();
                finder.take(bytes);
                let token = finder.token();
                self.tell(|agent, _| agent.handle_bad_command(bytes.len(), token, &format!("{why}")));
            }
        }
    }
}

impl Connection {
    /// Whether the stream takes another message.
    pub(super) fn has_room(&self) -> bool {
        self.is_streaming && !self.half_close && self.waiting.len() + self.unreported < STREAM_AHEAD
    }

    /// When what is sent to the agent now arrives behind everything else, at the earliest.
    pub(super) fn arrives_at_agent(&self) -> Millis {
        self.arrives[0]
    }
}
