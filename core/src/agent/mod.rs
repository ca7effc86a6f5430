//! The whole agent's decisions: one state machine over the link, the plugins, the delivery, and the agent's own end.
//!
//! An [`Agent`] does nothing itself. It is told what happened and what time it is, and answers with [`Action`]s, each of which is work
//! for one room of the shell: the network, the plugins, the spool's files, an upload, an update. What a room has done, or could not
//! do, it reports back through a `handle_*` method.

mod action;
mod ending;
mod renewal;
#[cfg(test)]
mod tests;
mod uploads;
mod view;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use elklet_proto::data_type::UPLOAD;

pub use self::action::{Action, After, Termination, UpdateAction};
pub use self::ending::{END_OF_FLUSH_MS, END_OF_PLUGINS_MS, END_OF_SPOOL_MS};
use self::ending::{Ending, Standing};
use self::renewal::Renewal;
pub use self::renewal::{Lifetime, Renewed};
use self::uploads::Uploads;
use crate::command::{AGENT_NAME, AgentTask, Command, PluginConfig, PluginName, Policy, Upload};
use crate::delivery::feed::Feed;
use crate::delivery::losses::Cause;
use crate::delivery::spool::{Done, Op};
use crate::delivery::{Batch, Bounds};
use crate::dispatch::{self, Dispatch, PluginAction, Preparation};
use crate::limits::MAX_UPLOADS_WAITING;
use crate::link::session::{self, Abandoned, Attempt, Endpoints, Session, Timing};
use crate::link::{End, LinkCounters};
use crate::record::intake::Level;
use crate::record::manifest::Row;
use crate::time::Millis;
use crate::update::{Trial, Verdict};

/// Milliseconds between two heartbeats; the reference's interval.
pub const HEARTBEAT_INTERVAL_MS: u64 = 60_000;

/// What an agent begins with.
#[derive(Debug)]
pub struct Setup {
    /// The version that runs.
    pub version: String,
    /// How many addresses there are of each kind.
    pub endpoints: Endpoints,
    /// The session's times.
    pub timing: Timing,
    /// Memory and disk for what the server has not taken.
    pub bounds: Bounds,
    /// Batches are kept for this long after they were confirmed.
    pub replay_ms: u64,
    /// The trial of this version, if it has not stood one.
    pub trial: Option<Trial>,
    /// Decides which moments within a spread are this agent's.
    pub seed: u64,
}

/// What the agent counts itself, since its start; see [`LinkCounters`] and [`delivery::Counters`](crate::delivery::Counters) for the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands that were received.
    pub commands: u64,
    /// Messages that were no commands.
    pub bad_commands: u64,
    /// Bytes of both, gRPC prefixes included.
    pub received_bytes: u64,
    /// Tasks that were answered with a failure.
    pub refused_tasks: u64,
}

/// The agent's state machine.
///
/// The shell calls it in this order, again and again:
///
/// 1. one or more `handle_*` methods for what has happened, in the order in which it happened;
/// 2. [`Agent::handle_timeout`] with the time as it is now;
/// 3. [`Agent::poll_action`] until there is none, carrying each action out before it asks for the next. A room that is done at once
///    reports right there, through the `handle_*` method that the action names;
/// 4. [`Agent::poll_timeout`], to know until when it may wait for something to happen.
///
/// The intake is shared with the threads that fill it, so that the agent does not own it: `poll_*` methods are told what it holds as
/// a [`Level`]. `M` is a message as it travels, which the agent keeps and gives back and never looks into; cloning it should be cheap.
#[derive(Debug)]
pub struct Agent<M> {
    session: Session,
    dispatch: Dispatch,
    feed: Feed<M>,
    uploads: Uploads,
    /// When heartbeats are due; only while there is a stream.
    beat_at: Option<Millis>,
    /// Only while this version has not stood it.
    trial: Option<Trial>,
    renewal: Renewal,
    ending: Ending,
    after: After,
    /// Processes of plugins whose pipes are not read to their ends.
    open_pipes: usize,
    actions: VecDeque<Action<M>>,
    link_counters: LinkCounters,
    counters: Counters,
}

impl<M: Clone> Agent<M> {
    /// An agent that has not begun.
    #[must_use]
    pub fn new(setup: Setup, now: Millis) -> Self {
        let Setup { version, endpoints, timing, bounds, replay_ms, trial, seed } = setup;
        let mut feed = Feed::new(bounds, now);
        feed.set_replay_ms(replay_ms);
        Self {
            session: Session::new(endpoints, timing, seed),
            dispatch: Dispatch::new(version),
            feed,
            uploads: Uploads::default(),
            beat_at: None,
            trial,
            renewal: Renewal::new(seed, now),
            ending: Ending::No,
            after: After::Exit,
            open_pipes: 0,
            actions: VecDeque::new(),
            link_counters: LinkCounters::default(),
            counters: Counters::default(),
        }
    }

    /// Begins: with the plugins that were to run when the agent ended last, because a server may be long in coming, and with the first
    /// attempt to reach one.
    pub fn handle_start(&mut self, kept: Vec<PluginConfig>, now: Millis) {
        self.dispatch.handle_kept(kept, now);
        self.session.handle_start(now);
        self.follow_session(now);
    }
}

/// # The link
///
/// What an attempt still reports after it was given up is ignored.
impl<M: Clone> Agent<M> {
    /// Service discovery has named this many addresses.
    pub fn handle_resolved(&mut self, attempt: Attempt, addresses: usize, now: Millis) {
        self.session.handle_resolved(attempt, addresses, now);
        self.follow_session(now);
    }

    /// Service discovery has failed.
    pub fn handle_not_resolved(&mut self, attempt: Attempt, now: Millis) {
        if self.session.is_alive(attempt) {
            self.link_counters.connect_failures += 1;
        }
        self.session.handle_failed(attempt, now);
        self.follow_session(now);
    }

    /// TCP and TLS are up.
    pub fn handle_connected(&mut self, attempt: Attempt, now: Millis) {
        self.session.handle_connected(attempt, now);
        self.follow_session(now);
    }

    /// The call is open: records may be sent. The first message is a heartbeat, because the server sends the configuration when it sees
    /// one.
    pub fn handle_opened(&mut self, attempt: Attempt, now: Millis) {
        let had_stream = self.is_streaming();
        self.session.handle_opened(attempt, now);
        if self.is_streaming() && !had_stream {
            self.link_counters.streams += 1;
            self.feed.handle_opened(now);
            self.trial.iter_mut().for_each(|trial| trial.handle_opened(now));
            self.beat_at = Some(now);
        }
        self.follow_session(now);
    }

    /// The stream has written the oldest message that it was handed, whole.
    pub fn handle_written(&mut self, attempt: Attempt, now: Millis) {
        if self.session.is_alive(attempt) {
            self.feed.handle_written(now);
        }
    }

    /// The server has returned this much credit since the stream began.
    pub fn handle_credit(&mut self, credit: u64, now: Millis) {
        self.feed.handle_credit(credit, now);
    }

    /// The PING was answered.
    pub fn handle_pong(&mut self, attempt: Attempt, now: Millis) {
        self.session.handle_pong(attempt, now);
        if self.session.is_alive(attempt) {
            self.feed.handle_pong(now);
        }
    }

    /// The server has sent a command, in a message of so many bytes.
    pub fn handle_command(&mut self, command: Command, bytes: usize, now: Millis) {
        self.counters.commands += 1;
        self.counters.received_bytes += bytes as u64;
        self.dispatch.handle_command(command, now);
    }

    /// The server has sent a message of so many bytes that is no command. If it holds a task's `token` all the same, the task is
    /// answered with `why`.
    pub fn handle_bad_command(&mut self, bytes: usize, token: Option<String>, why: &str) {
        self.counters.bad_commands += 1;
        self.counters.received_bytes += bytes as u64;
        if let Some(token) = token {
            self.handle_task_failed(token, why);
        }
    }

    /// The attempt has failed, or its stream has ended.
    pub fn handle_ended(&mut self, attempt: Attempt, end: End, now: Millis) {
        if !self.session.is_alive(attempt) {
            return;
        }
        self.link_counters.count(end);
        let is_half_closed = self.session.is_half_closed();
        match end {
            End::Ok if is_half_closed => self.feed.handle_completed(now),
            End::Ok | End::TooLarge | End::Unexplained if !is_half_closed => {
                let set_aside = self.feed.handle_broken(end == End::TooLarge, now);
                if set_aside > 0 {
                    self.actions.push_back(Action::Complain(format!(
                        "streams end again and again over {set_aside} records: newer ones go before them from now on"
                    )));
                }
            }
            End::TooManyPings => {
                self.feed.handle_too_many_pings();
                self.session.handle_too_many_pings();
            }
            _ => {}
        }
        self.session.handle_failed(attempt, now);
        self.follow_session(now);
    }

    /// Carries what the session has decided on to the delivery, at once.
    fn follow_session(&mut self, now: Millis) {
        while let Some(action) = self.session.poll_action() {
            match action {
                session::Action::Ping => self.feed.handle_ping(now),
                session::Action::HalfClose => self.feed.handle_half_closed(),
                session::Action::Abandon { reason, .. } => {
                    if matches!(reason, Abandoned::TimedOut(phase) if phase.is_before_stream()) {
                        self.link_counters.connect_failures += 1;
                    }
                    self.feed.handle_ended(now);
                    self.trial.iter_mut().for_each(Trial::handle_ended);
                    self.renewal.handle_ended();
                    self.beat_at = None;
                }
                session::Action::Resolve { .. } | session::Action::Connect { .. } | session::Action::Open { .. } => {}
            }
            self.actions.push_back(Action::Link(action));
        }
    }
}

/// # The certificate
impl<M: Clone> Agent<M> {
    /// The certificate in use is valid for this time if it is one that its server renews, and `None` if not. Now is `unix_seconds` after
    /// 1970. The shell tells it when there is another certificate, and once in a while, because the time of day may jump.
    pub fn handle_certificate(&mut self, lifetime: Option<Lifetime>, unix_seconds: i64, now: Millis) {
        self.renewal.handle_certificate(lifetime, unix_seconds, now);
    }

    /// The server has given the next certificate, which is being kept: [`Agent::handle_renewed`] follows, also when the stream ends before.
    pub fn handle_certificate_given(&mut self) {
        self.renewal.handle_given();
    }

    /// The request for the next certificate is over, and this has come of it.
    pub fn handle_renewed(&mut self, renewed: Renewed, now: Millis) {
        self.renewal.handle_renewed(renewed, now);
    }

    fn renews(&self) -> bool {
        self.is_streaming() && !self.session.is_half_closed() && self.ending == Ending::No
    }
}

/// # Plugins
impl<M: Clone> Agent<M> {
    /// A preparation has succeeded: the plugin is verified and can be started.
    pub fn handle_prepared(&mut self, name: &PluginName, preparation: Preparation, now: Millis) {
        self.dispatch.handle_prepared(name, preparation, now);
    }

    /// A preparation has failed.
    pub fn handle_preparation_failed(&mut self, name: &PluginName, id: Preparation, reason: &str, now: Millis) {
        self.dispatch.handle_preparation_failed(name, id, reason, now);
    }

    /// A preparation has found that the plugin must not start for now.
    pub fn handle_held_back(&mut self, name: &PluginName, id: Preparation, reason: &str, now: Millis) {
        self.dispatch.handle_held_back(name, id, reason, now);
    }

    /// A plugin could not be started, so there are no pipes to wait for.
    pub fn handle_spawn_failed(&mut self, name: &PluginName, reason: &str, now: Millis) {
        self.handle_pipes_closed();
        self.dispatch.handle_spawn_failed(name, reason, now);
    }

    /// A plugin's process has ended; see [`Dispatch::handle_exited`].
    pub fn handle_exited(&mut self, name: &PluginName, how: &str, last_words: &str, now: Millis) {
        self.dispatch.handle_exited(name, how, last_words, now);
    }

    /// The pipes of a process that has ended are read to their ends.
    pub fn handle_pipes_closed(&mut self) {
        self.open_pipes = self.open_pipes.saturating_sub(1);
    }

    /// Frames of a plugin were no records, or records that it may not send.
    pub fn handle_lost_frames(&mut self, cause: Cause, row: Row) {
        self.feed.handle_lost(cause, row);
    }
}

/// # Tasks, updates, and the agent's own records
impl<M: Clone> Agent<M> {
    /// A task could not be carried out.
    pub fn handle_task_failed(&mut self, token: String, reason: &str) {
        self.dispatch.handle_task_failed(token, reason);
    }

    /// The upload under way has ended. Of one that succeeded the server knows.
    pub fn handle_uploaded(&mut self, result: Result<(), String>) {
        if let (Some(token), Err(why)) = (self.uploads.end(), result) {
            self.handle_task_failed(token, &why);
        }
    }

    /// The update has brought another version in place, or has failed. Whoever starts the agent next starts the new version, so that
    /// one in place is no reason to end in another way once the agent ends.
    pub fn handle_updated(&mut self, result: Result<(), String>, now: Millis) {
        match result {
            Ok(()) if self.ending == Ending::No => {
                self.begin_ending(now);
                self.after = After::BecomeUpdate;
            }
            Ok(()) => {}
            Err(why) => self.dispatch.handle_agent_failed(why),
        }
    }

    /// An update that the server asks for is not tried.
    pub fn handle_update_refused(&mut self, why: String) {
        self.dispatch.handle_agent_failed(why);
    }

    /// A record of the agent's own found no room in the intake.
    pub fn handle_own_lost(&mut self, row: Row) {
        self.feed.handle_lost(Cause::OwnNoRoom, row);
    }
}

/// # Delivery
impl<M: Clone> Agent<M> {
    /// A batch of [`Action::Beat`] or [`Take`](crate::delivery::feed::Action::Take).
    pub fn handle_batch(&mut self, batch: Batch<M>) {
        self.feed.push(batch);
    }

    /// The parts of the batch that was to be cut; see [`Feed::handle_cut`].
    pub fn handle_cut(&mut self, parts: Vec<Batch<M>>, refused: &[Row]) {
        self.feed.handle_cut(parts, refused);
    }

    /// The operation on the spool is over.
    pub fn handle_spool(&mut self, done: Done<M>, now: Millis) {
        self.feed.handle_done(done, now);
    }

    /// There was no thread for the operation on the spool.
    pub fn handle_no_thread(&mut self, op: Op<M>, now: Millis) {
        self.feed.handle_no_thread(op, now);
    }
}

/// # Settings and signals
impl<M: Clone> Agent<M> {
    /// The servers, or the ways to them, are others now; see [`Session::handle_reconfigured`].
    pub fn handle_reconfigured(&mut self, endpoints: Endpoints, timing: Timing, keeps_stream: bool, now: Millis) {
        self.session.handle_reconfigured(endpoints, timing, keeps_stream, now);
        self.follow_session(now);
    }

    /// The host's owner allows this from now on; see [`Dispatch::handle_policy`]. Uploads that it forbids are given up.
    pub fn handle_policy(&mut self, policy: Policy, now: Millis) {
        if let Err(forbidden) = policy.judge_task(AGENT_NAME, UPLOAD) {
            self.give_up_uploads(&forbidden.to_string());
        }
        self.dispatch.handle_policy(policy, now);
    }

    /// The spool may take another number of bytes from now on. Whether there is one stays as it is.
    pub fn set_spool_bytes(&mut self, bytes: u64) {
        self.feed.set_spool_bytes(bytes);
    }

    /// Somebody on the host asks the agent to end. One who asks again does not want to wait.
    pub fn handle_terminate(&mut self, now: Millis) -> Termination {
        // It was to become another version, and is not any more.
        let was_to_go_on = core::mem::replace(&mut self.after, After::Exit) != After::Exit;
        if self.ending == Ending::No || was_to_go_on {
            self.begin_ending(now);
            return Termination::InOrder;
        }
        if self.ending != Ending::Done {
            self.ending = Ending::Done;
            self.actions.clear();
            self.actions.push_back(Action::Exit(After::Exit));
        }
        Termination::AtOnce
    }

    /// The server asks the agent to end.
    pub fn handle_shutdown(&mut self, now: Millis) {
        self.after = After::Exit;
        self.begin_ending(now);
    }

    fn begin_ending(&mut self, now: Millis) {
        if self.ending != Ending::No {
            return;
        }
        self.ending = Ending::Plugins { deadline: now + END_OF_PLUGINS_MS };
        self.dispatch.handle_shutdown(now);
        self.feed.handle_ending();
        self.give_up_uploads("the agent ends before the file is uploaded");
    }

    fn give_up_uploads(&mut self, why: &str) {
        if self.uploads.is_running() {
            self.actions.push_back(Action::AbortUpload);
        }
        for token in self.uploads.give_up() {
            self.dispatch.handle_task_failed(token, why);
        }
    }
}

/// # Time and actions
impl<M: Clone> Agent<M> {
    /// Time has passed, or something has happened that was told before.
    pub fn handle_timeout(&mut self, now: Millis) {
        if self.ending == Ending::Done {
            return;
        }
        self.session.handle_timeout(now);
        self.dispatch.handle_timeout(now);
        if self.feed.wants_ping(now) {
            self.session.handle_ping_wanted(now);
        }
        if self.is_beat_due(now) {
            self.session.handle_sending(now);
        }
        self.follow_session(now);
        self.advance_trial(now);
    }

    /// The next thing to do, given what the intake holds; ask again until there is none.
    #[must_use]
    pub fn poll_action(&mut self, level: Level, now: Millis) -> Option<Action<M>> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            if self.ending == Ending::Done {
                return None;
            }
            if let Some(action) = self.dispatch.poll_action() {
                if let Some(action) = self.translate(action) {
                    return Some(action);
                }
                continue;
            }
            if let Some(upload) = self.next_upload() {
                return Some(Action::Task(AgentTask::Upload(upload)));
            }
            if self.is_beat_due(now) && self.feed.has_stream_room() {
                self.beat_at = Some(now + HEARTBEAT_INTERVAL_MS);
                return Some(Action::Beat);
            }
            if self.renews() && self.renewal.begin(now) {
                return Some(Action::Renew);
            }
            if let Some(action) = self.feed.poll_action(level, self.ending.is_flushing(), now) {
                return Some(Action::Delivery(action));
            }
            let next = self.ending.next(self.standing(level, now), now)?;
            self.ending = next;
            match next {
                // The counters as they are in the end.
                Ending::Flush { .. } => self.beat_at = Some(now),
                Ending::Stream => {
                    self.session.handle_shutdown(now);
                    self.follow_session(now);
                }
                Ending::Done => self.actions.push_back(Action::Exit(self.after)),
                Ending::No | Ending::Plugins { .. } | Ending::Spool { .. } => {}
            }
        }
    }

    /// When [`Agent::handle_timeout`] is due although nothing has happened.
    #[must_use]
    pub fn poll_timeout(&self, level: Level, now: Millis) -> Option<Millis> {
        [
            self.session.poll_timeout(),
            self.dispatch.poll_timeout(),
            // A stream without room tells when it has some.
            self.beat_at.filter(|_| self.feed.has_stream_room()),
            self.feed.poll_timeout(level, now),
            self.ending.deadline(),
            self.renewal.poll_timeout().filter(|_| self.renews()),
            self.trial.as_ref().filter(|_| self.ending == Ending::No).map(Trial::poll_timeout),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Translates an action of the dispatch for the shell. Returns `None` for one that the agent carries out itself.
    fn translate(&mut self, action: dispatch::Action) -> Option<Action<M>> {
        match action {
            dispatch::Action::Plugin(action) => {
                self.open_pipes += usize::from(matches!(action, PluginAction::Spawn(..)));
                Some(Action::Plugin(action))
            }
            dispatch::Action::Task(AgentTask::Upload(upload)) if self.ending != Ending::No => {
                self.handle_task_failed(upload.token, "the agent ends before the file is uploaded");
                None
            }
            dispatch::Action::Task(AgentTask::Upload(upload)) => {
                if let Err(Upload { token, path, .. }) = self.uploads.push(upload) {
                    let why = format!("{MAX_UPLOADS_WAITING} uploads wait already: {path}");
                    self.handle_task_failed(token, &why);
                }
                None
            }
            dispatch::Action::Task(task) => Some(Action::Task(task)),
            dispatch::Action::UpdateAgent(config) => Some(Action::Update(UpdateAction::Install(config))),
            dispatch::Action::KeepAgent => Some(Action::Update(UpdateAction::Keep)),
            dispatch::Action::Answer(report) => {
                self.counters.refused_tasks += 1;
                Some(Action::Answer(report))
            }
            dispatch::Action::Forbid(plugin, why) => Some(Action::Forbid(plugin, why)),
            dispatch::Action::Refuse(what) => Some(Action::Refuse(what)),
            dispatch::Action::Complain(what) => Some(Action::Complain(what)),
        }
    }

    fn next_upload(&mut self) -> Option<Upload> {
        if self.is_streaming() && self.ending == Ending::No { self.uploads.begin() } else { None }
    }

    fn is_beat_due(&self, now: Millis) -> bool {
        self.is_streaming() && self.beat_at.is_some_and(|moment| moment <= now)
    }

    fn advance_trial(&mut self, now: Millis) {
        if self.ending != Ending::No {
            return;
        }
        let Some(verdict) = self.trial.as_ref().and_then(|trial| trial.verdict(now)) else { return };
        self.trial = None;
        match verdict {
            Verdict::Stays => self.actions.push_back(Action::Update(UpdateAction::Commit)),
            Verdict::Fails => {
                self.actions.push_back(Action::Update(UpdateAction::Reject));
                self.begin_ending(now);
                self.after = After::PutBack;
            }
        }
    }

    fn standing(&self, level: Level, now: Millis) -> Standing {
        Standing {
            are_plugins_quiet: self.dispatch.is_quiet() && self.open_pipes == 0,
            is_streaming: self.is_streaming(),
            is_written_out: !self.is_beat_due(now) && self.feed.is_written_out(level),
            is_link_ended: self.session.is_ended(),
            is_safe: self.feed.is_safe(level, now),
        }
    }
}
