//! Servers by AgentCenter's rules, each of them a transport that takes what comes and an application that works on it.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::ToString;

use elklet_proto::data_type::{AGENT_HEARTBEAT, TASK_RESULT};

use super::World;
use super::agenda::{Happening, Manner, Packet};
use crate::link::End;
use crate::testing::message::{Id, Message};
use crate::testing::random::Draw;
use crate::testing::schedule::{Authority, StreamEnd, TooLarge};
use crate::time::Millis;

/// A server ends a connection whose PINGs come closer than this.
pub(super) const MIN_PING_MS: u64 = 5_000;

/// It overlooks so many of them (grpc-go's `maxPingStrikes`).
const MAX_STRIKES: u32 = 2;

/// A server that is killed loses what it has taken within so many milliseconds, as AgentCenter does, which passes records on in the
/// background.
const FORGOTTEN_MS: u64 = 1_000;

/// A server, apart from its connections.
#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) is_up: bool,
    pub(super) back_at: Millis,
    /// Its host is gone, and says nothing.
    pub(super) host_dead_until: Millis,
    /// Its process is stopped.
    pub(super) stopped_until: Millis,
    pub(super) app_stopped_until: Millis,
    pub(super) app_slow_until: Millis,
    pub(super) app_slow_ms: u64,
}

/// The server's end of a connection.
#[derive(Debug, Default)]
pub(super) struct FarEnd {
    /// Messages that have come and that the application has not asked for.
    arrived: VecDeque<Arrived>,
    /// The one that it works on.
    work: Option<Arrived>,
    received: u64,
    /// Where the last message ends that it has read.
    read: u64,
    /// The length of the message that is coming in.
    begun: Option<u64>,
    granted: u64,
    /// The agent's id is taken by this connection.
    pub(super) is_registered: bool,
    is_configured: bool,
    pinged: Option<Millis>,
    strikes: u32,
    is_half_closed: bool,
    /// What it has taken lately.
    recent: VecDeque<(Millis, Arrived)>,
}

#[derive(Debug)]
struct Arrived {
    message: Message,
    end: u64,
    at: Millis,
    /// A PING that came behind it was answered.
    is_pinged: bool,
}

/// What all servers do alike, because they run the same program.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// Records that end it, and until when.
    pub(super) poison: alloc::vec::Vec<(Id, Millis)>,
    /// It dies of so many messages, whatever they are, until then.
    pub(super) dies: (u64, Millis),
    pub(super) limit: Option<(u64, TooLarge, Millis)>,
    /// What the authority does when it is asked for a certificate, until then.
    pub(super) authority: Option<(Authority, Millis)>,
}

impl World {
    /// TCP and TLS are up at the server.
    pub(super) fn accept(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        connection.server_open = true;
        (connection.accepted, connection.last_traffic) = (self.agenda.now, self.agenda.now);
        let setup = &self.setup.servers[connection.server];
        for ms in setup.idle_ms.into_iter().chain(setup.age_ms) {
            self.agenda.after(ms, Happening::Balance { connection: id });
        }
    }

    pub(super) fn handle_at_server(&mut self, id: usize, packet: Packet) {
        let now = self.agenda.now;
        let connection = &mut self.connections[id];
        if !connection.server_open {
            if !matches!(packet, Packet::Reset) {
                self.send(id, Packet::End { end: End::Unexplained, how: Manner::Once });
            }
            return;
        }
        let far = &mut connection.far;
        match packet {
            Packet::Data { bytes, begins, whole } => {
                far.received += bytes;
                far.begun = begins.or(far.begun);
                if let Some(message) = whole {
                    far.begun = None;
                    far.arrived.push_back(Arrived { message, end: far.received, at: now, is_pinged: false });
                }
                self.run_app(id);
                self.grant(id);
            }
            Packet::Ping => {
                let is_too_soon = far.pinged.replace(now).is_some_and(|last| now.since(last) < MIN_PING_MS);
                far.strikes += u32::from(is_too_soon);
                far.arrived.iter_mut().chain(&mut far.work).for_each(|arrived| arrived.is_pinged = true);
                if far.strikes > MAX_STRIKES {
                    return self.end_stream(id, End::TooManyPings);
                }
                self.send(id, Packet::Pong);
            }
            Packet::Certify(request) => self.certify(id, request),
            Packet::HalfClose => {
                far.is_half_closed = true;
                self.run_app(id);
            }
            Packet::Reset => self.close_far_end(id),
            _ => {}
        }
    }

    /// The application asks for the next message, if it works on none.
    fn run_app(&mut self, id: usize) {
        let now = self.agenda.now;
        let connection = &mut self.connections[id];
        let (server, setup) = (&self.servers[connection.server], &self.setup.servers[connection.server]);
        if !connection.server_open || connection.far.work.is_some() {
            return;
        }
        if now < server.app_stopped_until.max(server.stopped_until) {
            return;
        }
        let far = &mut connection.far;
        let Some(next) = far.arrived.pop_front() else {
            if far.is_half_closed && far.begun.is_none() {
                // It has passed everything on.
                far.recent.clear();
                connection.is_answered = true;
                self.end_stream(id, End::Ok);
            }
            return;
        };
        let most = if now < server.app_slow_until { server.app_slow_ms } else { setup.work_ms };
        let limit =
            self.program.limit.filter(|(bytes, _, until)| now < *until && next.message.length() as u64 > *bytes);
        far.read = next.end;
        far.work = Some(next);
        if let Some((_, how, _)) = limit {
            self.note(|| "the message is too large for the server".into());
            return self.end_stream(
                id,
                match how {
                    TooLarge::Says => End::TooLarge,
                    TooLarge::EndsInOrder => End::Ok,
                    TooLarge::Breaks => End::Unexplained,
                },
            );
        }
        let ms = self.random.between(0, most);
        self.agenda.after(ms, Happening::AppDone { connection: id });
    }

    pub(super) fn handle_app_done(&mut self, id: usize) {
        let now = self.agenda.now;
        let server = &self.servers[self.connections[id].server];
        let stopped_until = server.app_stopped_until.max(server.stopped_until);
        if !self.connections[id].server_open {
            return;
        }
        if now < stopped_until {
            return self.agenda.at(stopped_until, Happening::AppDone { connection: id });
        }
        let Some(done) = self.connections[id].far.work.take() else { return };
        if self.is_fatal(&done.message) {
            let server = self.connections[id].server;
            self.note(|| format!("server {server} dies of {:?}", done.message));
            self.died_at = now;
            self.connections[id].far.work = Some(done);
            let away = self.random.between(500, 3_000);
            return self.kill_server(server, away);
        }
        if !self.register(id, &done.message) {
            return;
        }
        self.note(|| format!("the server has taken {:?}", done.message));
        self.take(id, &done.message);
        self.connections[id].far.recent.push_back((now, done));
        let far = &mut self.connections[id].far;
        while far.recent.front().is_some_and(|(at, _)| now.since(*at) > FORGOTTEN_MS) {
            far.recent.pop_front();
        }
        self.run_app(id);
        self.grant(id);
    }

    fn is_fatal(&mut self, message: &Message) -> bool {
        let now = self.agenda.now;
        let Program { poison, dies, .. } = &mut self.program;
        if dies.0 > 0 && now < dies.1 && message.records().any(|record| record.data_type != AGENT_HEARTBEAT) {
            dies.0 -= 1;
            return true;
        }
        let is_poison = |id: &Id| poison.iter().any(|(poison, until)| poison == id && now < *until);
        !poison.is_empty() && message.records().filter_map(|record| record.id).any(|id| is_poison(&id))
    }

    /// The first message of a stream says whose it is. An agent that has another one is refused.
    fn register(&mut self, id: usize, first: &Message) -> bool {
        if self.connections[id].far.is_registered {
            return true;
        }
        let server = self.connections[id].server;
        if first.records().next().is_none_or(|record| record.data_type != AGENT_HEARTBEAT) {
            self.fail("a heartbeat is the first message of each stream", &format!("{first:?}"));
        }
        let others = self.connections.iter().filter(|other| other.server == server && other.server_open);
        if others.into_iter().any(|other| other.far.is_registered) {
            self.note(|| "the server believes in an earlier connection: agentID conflict".into());
            self.end_stream(id, End::Refused);
            return false;
        }
        self.connections[id].far.is_registered = true;
        true
    }

    /// The application has taken a message.
    fn take(&mut self, id: usize, message: &Message) {
        // Suspects are overtaken, and so is what was read from a file that then had to go.
        let may_overtake = self.unexplained_ends >= 3 || self.shrunk_at.0 > 0;
        for record in message.records() {
            if let Some(record_id) = record.id {
                let newest = self.connections[id].newest.entry(record_id.series).or_default();
                if let Err(what) = self.account.keep(record_id, newest, may_overtake) {
                    self.fail("the records of a plugin arrive in their order", &what);
                }
            }
            if record.data_type == TASK_RESULT {
                self.results += 1;
            }
            if record.data_type == AGENT_HEARTBEAT && !self.connections[id].far.is_configured {
                self.connections[id].far.is_configured = true;
                let command = self.configuration();
                self.send(id, Packet::Command(command));
            }
        }
    }

    /// Returns credit, as far as the application has read.
    fn grant(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        let (far, setup) = (&mut connection.far, &self.setup.servers[connection.server]);
        let server = &self.servers[connection.server];
        if !connection.server_open || self.agenda.now < server.app_stopped_until.max(server.stopped_until) {
            return;
        }
        let mut granted = far.read;
        if far.work.is_none() && far.arrived.is_empty() {
            // It reads what comes in, and may have been granted all of that message.
            granted = far.received;
            let ahead = far.begun.filter(|length| setup.grants_ahead || *length > setup.window);
            granted = granted.max(ahead.map_or(0, |length| far.read + length));
        }
        let is_worth_it = !setup.is_lazy || granted >= far.granted + setup.window / 4;
        if granted > far.granted && is_worth_it {
            far.granted = granted;
            self.send(id, Packet::Credit(granted));
        }
    }

    /// The server ends a stream, and with it the connection.
    pub(super) fn end_stream(&mut self, id: usize, end: End) {
        self.send(id, Packet::End { end, how: Manner::Again });
        self.close_far_end(id);
    }

    /// The server does not believe in the connection any more. What its application has not taken is lost.
    pub(super) fn close_far_end(&mut self, id: usize) {
        let delay = self.news_delay(id);
        let now = self.agenda.now;
        let connection = &mut self.connections[id];
        connection.server_open = false;
        let is_orphan = self.host.is_none() || connection.life != self.life;
        let far = core::mem::take(&mut connection.far);
        for arrived in far.arrived.into_iter().chain(far.work).filter(|arrived| arrived.is_pinged) {
            // The agent was told that the server has it. It would send it again if it still ran, and the end came soon enough.
            let is_excused = is_orphan || delay.is_none_or(|delay| now.since(arrived.at) + delay >= FORGOTTEN_MS);
            self.note(|| format!("the server loses {:?}, which the agent thinks it has", arrived.message));
            for id in arrived.message.records().filter_map(|record| record.id) {
                if is_excused { self.account.excuse(id) } else { self.account.expect_again(id) }
            }
        }
        self.connections[id].far.recent = far.recent;
    }

    /// Milliseconds until the agent hears of what happens now, unless it does not.
    fn news_delay(&self, id: usize) -> Option<u64> {
        let connection = &self.connections[id];
        let (path, server) = (&self.paths[connection.server], &self.servers[connection.server]);
        let now = self.agenda.now;
        let is_heard = !connection.is_cut
            && now >= path.no_way_back.max(server.host_dead_until).max(self.frozen_until)
            && !self.is_calm;
        let slow = if now < path.slow_until { path.slow_ms } else { 0 };
        let usual = slow.max(self.setup.servers[connection.server].delay_ms);
        is_heard.then(|| usual.max(connection.arrives_at_agent().since(now)) + 1)
    }

    /// A server's process is killed, and with it what it took last.
    pub(super) fn kill_server(&mut self, server: usize, away_ms: u64) {
        let now = self.agenda.now;
        self.servers[server].is_up = false;
        self.servers[server].back_at = now + away_ms;
        self.agenda.after(away_ms, Happening::Lapse);
        for id in 0..self.connections.len() {
            if self.connections[id].server != server {
                continue;
            }
            let delay = self.news_delay(id);
            let recent = core::mem::take(&mut self.connections[id].far.recent);
            let window = delay.map_or(0, |delay| self.setup.replay_ms.min(FORGOTTEN_MS).saturating_sub(delay));
            let forgets = self.may_forget && self.connections[id].agent_open && window > 0;
            for (_, arrived) in recent.iter().filter(|(at, _)| forgets && now.since(*at) < window) {
                if arrived.is_pinged && now.since(arrived.at) + 2 >= window {
                    // The agent was told long ago that the server has it.
                    continue;
                }
                let message = &arrived.message;
                self.note(|| format!("the server loses {message:?}, which it has just taken"));
                message.records().filter_map(|record| record.id).for_each(|id| self.account.forget(id));
            }
            if self.connections[id].server_open {
                let how = if forgets { Manner::Surely } else { Manner::Once };
                self.forgot_at = if forgets { Some(now) } else { self.forgot_at };
                self.send(id, Packet::End { end: End::Unexplained, how });
                self.close_far_end(id);
                self.connections[id].far.recent.clear();
            }
        }
    }

    /// A server's host is gone without a word.
    pub(super) fn kill_host(&mut self, server: usize, away_ms: u64) {
        let back_at = self.agenda.now + away_ms;
        let it = &mut self.servers[server];
        it.host_dead_until = it.host_dead_until.max(back_at);
        self.agenda.after(away_ms, Happening::Lapse);
        for id in 0..self.connections.len() {
            if self.connections[id].server == server && self.connections[id].server_open {
                self.close_far_end(id);
                self.connections[id].far.recent.clear();
            }
        }
    }

    /// Whether there is a record that servers die of, and that has neither been given up nor lost.
    pub(super) fn is_poisoned(&self) -> bool {
        let missing = self.program.poison.iter().filter(|(id, _)| self.account.is_missing(*id)).count() as u64;
        let losses = self.host.as_ref().map(|host| host.agent.losses());
        missing > self.account.poison(losses)
    }

    /// Records that servers have not taken, while the agent was told that they have them.
    pub(super) fn promised(&self) -> impl Iterator<Item = Id> {
        let far = self.connections.iter().map(|connection| &connection.far);
        let arrived = far.flat_map(|far| far.arrived.iter().chain(&far.work)).filter(|arrived| arrived.is_pinged);
        arrived.flat_map(|arrived| arrived.message.records().filter_map(|record| record.id))
    }

    /// Ends the stream of the agent that is open to a server.
    pub(super) fn end_streams(&mut self, server: usize, how: StreamEnd) {
        let open = self.connections.iter().enumerate().filter(|(_, it)| it.server == server && it.server_open);
        let open: alloc::vec::Vec<usize> = open.map(|(id, _)| id).collect();
        for id in open {
            self.end_stream(
                id,
                match how {
                    StreamEnd::InOrder => End::Ok,
                    StreamEnd::Broken => End::Unexplained,
                    StreamEnd::TooManyPings => End::TooManyPings,
                },
            );
        }
    }

    pub(super) fn handle_notices(&mut self, id: usize) {
        let connection = &self.connections[id];
        if connection.server_open && (!connection.agent_open || connection.is_cut) {
            self.note(|| "a server notices that a connection of the agent is dead".to_string());
            self.close_far_end(id);
        }
    }

    /// The balancer in front of a server ends connections that are idle or old.
    pub(super) fn handle_balance(&mut self, id: usize) {
        let now = self.agenda.now;
        let connection = &self.connections[id];
        let setup = &self.setup.servers[connection.server];
        if !connection.server_open || connection.is_cut || self.is_calm {
            return;
        }
        let is_old = setup.age_ms.is_some_and(|ms| now.since(connection.accepted) >= ms);
        let idle_at = setup.idle_ms.map(|ms| connection.last_traffic + ms);
        if let Some(idle_at) = idle_at.filter(|at| !is_old && *at > now) {
            return self.agenda.at(idle_at, Happening::Balance { connection: id });
        }
        let (is_silent, notices_ms) = (setup.is_silent, setup.notices_ms);
        self.note(|| format!("the balancer ends a connection that is {}", if is_old { "old" } else { "idle" }));
        if is_silent {
            self.connections[id].is_cut = true;
            self.agenda.after(notices_ms, Happening::ServerNotices { connection: id });
        } else {
            self.end_stream(id, End::Unexplained);
        }
    }

    /// Servers that were stopped, or whose application was, go on; those that were killed start again.
    pub(super) fn wake_servers(&mut self) {
        let now = self.agenda.now;
        for server in &mut self.servers {
            server.is_up |= server.back_at <= now;
        }
        for id in 0..self.connections.len() {
            if self.connections[id].server_open {
                self.run_app(id);
                self.grant(id);
            }
        }
    }

    /// Bytes of a command that asks for what should be running.
    pub(super) fn configuration(&mut self) -> Rc<[u8]> {
        self.center.command().into()
    }
}
