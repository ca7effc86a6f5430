//! The agent's shell: what carries out the agent's actions and tells it how that went.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use elklet_proto::data_type::{AGENT_HEARTBEAT, LOSS, TASK_RESULT};

use super::World;
use super::agenda::Happening;
use super::plugins::plugin_of;
use super::renewal::Renewing;
use crate::agent::{Action, Agent, UpdateAction};
use crate::command::{AgentConfig, AgentTask, Command};
use crate::delivery::Kind;
use crate::delivery::feed;
use crate::record::OwnRecord;
use crate::record::buffer::RecordBuffer;
use crate::record::intake::{Buffers, Intake, Lane, Wake};
use crate::record::manifest::{Row, Source};
use crate::testing::message::{Message, batch, cut, own_record};
use crate::testing::schedule::Rules;
use crate::time::Millis;

/// The agent's process.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) agent: Agent<Message>,
    pub(super) intake: Intake<Vec<u8>>,
    spare: Box<Buffers<Vec<u8>>>,
    /// When the agent is to be looked after although nothing has happened.
    pub(super) timeout: Option<Millis>,
    pub(super) version: String,
    /// What it becomes if it does not stand its trial.
    pub(super) previous: Option<String>,
    pub(super) is_on_trial: bool,
    /// It reaches no server.
    pub(super) is_deaf: bool,
    /// Servers that its settings name, and those that service discovery has.
    pub(super) listed: Vec<usize>,
    pub(super) connection: Option<usize>,
    pub(super) half_open: Vec<usize>,
    pub(super) is_held: bool,
    /// It has looked what lies on the disk.
    pub(super) knows_disk: bool,
    upload: u32,
    update: u32,
    /// Series of its own records: answers, losses.
    own: [u32; 2],
    /// Since when it ends, and until when it has to have ended.
    pub(super) ending: Option<(Millis, Millis)>,
    pub(super) is_at_once: bool,
    pub(super) renewing: Renewing,
    /// What the policy in force allows.
    pub(super) rules: Rules,
}

impl Host {
    pub(super) fn new(agent: Agent<Message>, version: String, arena: usize, listed: Vec<usize>, own: [u32; 2]) -> Self {
        let buffers = || Box::new(Buffers::new(vec![0; arena / 2], vec![0; arena]));
        Self {
            agent,
            intake: Intake::new(buffers()),
            spare: buffers(),
            timeout: Some(Millis(0)),
            version,
            previous: None,
            is_on_trial: false,
            is_deaf: false,
            listed,
            connection: None,
            half_open: Vec::new(),
            is_held: false,
            knows_disk: false,
            upload: 0,
            update: 0,
            own,
            ending: None,
            is_at_once: false,
            renewing: Renewing::default(),
            rules: Rules::ANYTHING,
        }
    }
}

impl World {
    /// Tells the agent something, if it runs.
    pub(super) fn tell(&mut self, tell: impl FnOnce(&mut Agent<Message>, Millis)) {
        if let Some(host) = &mut self.host {
            tell(&mut host.agent, self.agenda.now);
            self.rouse = true;
        }
    }

    pub(super) fn carry_out(&mut self, action: Action<Message>) {
        match action {
            Action::Link(action) => self.carry_out_link(action),
            Action::Plugin(action) => self.carry_out_plugin(action),
            Action::Delivery(action) => self.carry_out_delivery(action),
            Action::Beat => self.beat(),
            Action::Renew => self.renew(),
            Action::Task(task) => self.carry_out_task(task),
            Action::AbortUpload => {
                self.uploading = None;
                if let Some(host) = &mut self.host {
                    host.upload += 1;
                }
            }
            Action::Update(action) => self.carry_out_update(action),
            Action::Answer(failure) => {
                self.check_reason(&failure);
                self.answer(&failure.token);
                self.push_own(0, TASK_RESULT);
            }
            Action::Forbid(plugin, why) => self.note(|| format!("the agent forbids plugin {plugin}: {why}")),
            Action::Refuse(what) => self.note(|| format!("the agent refuses an entry: {what}")),
            Action::Complain(what) => self.note(|| format!("the agent complains: {what}")),
            Action::Exit(after) => self.handle_exit(after),
        }
    }

    fn carry_out_delivery(&mut self, action: feed::Action<Message>) {
        let scale = self.setup.scale;
        match action {
            feed::Action::Take { apart } => self.take_records(apart),
            feed::Action::Send(message) => self.hand_over(message),
            feed::Action::Cut { whole, limit } => {
                let parts = cut(&whole, limit, scale);
                self.tell(|agent, _| agent.handle_cut(parts, &[]));
            }
            feed::Action::Spool { op, at_once } => self.work_on_spool(op, at_once),
            feed::Action::Tell(losses) => {
                self.note(|| format!("the agent tells of losses: {losses:?}"));
                self.account.tell(&losses);
                losses.iter().for_each(|_| self.push_own(1, LOSS));
            }
            feed::Action::Hold(hold) => {
                if let Some(host) = &mut self.host {
                    host.is_held = hold;
                }
                if !hold {
                    self.agenda.after(0, Happening::Resume { life: self.life });
                }
            }
        }
    }

    /// Empties the intake into batches.
    fn take_records(&mut self, apart: bool) {
        let scale = self.setup.scale;
        let Some(host) = &mut self.host else { return };
        if host.intake.swap(&mut host.spare) {
            self.agenda.after(1, Happening::Resume { life: self.life });
        }
        let spare = &host.spare;
        let [urgent, bulk] = spare.parts();
        let [urgent_manifest, bulk_manifest] = spare.manifests();
        let mut push = |kind, parts: &[&[u8]], rows| host.agent.handle_batch(batch(kind, parts, rows, scale));
        if !urgent.is_empty() && apart {
            push(Kind::Urgent, &[urgent], urgent_manifest.to_rows());
            if !bulk.is_empty() {
                push(Kind::Bulk, &[bulk], bulk_manifest.to_rows());
            }
        } else if !(urgent.is_empty() && bulk.is_empty()) {
            let mut manifest = bulk_manifest.clone();
            urgent_manifest.rows().iter().for_each(|row| manifest.add(*row));
            push(Kind::Bulk, &[urgent, bulk], manifest.to_rows());
        }
        if let Some(outsized) = spare.outsized() {
            push(Kind::Bulk, &[outsized.bytes()], Box::new([outsized.row()]));
        }
        host.spare.clear();
    }

    fn beat(&mut self) {
        let mut heartbeat = RecordBuffer::<_, 1>::new([0; 64]);
        let fields = [("state", "running")].into_iter();
        let _ = heartbeat.push_own(&OwnRecord { data_type: AGENT_HEARTBEAT, timestamp: 1, fields });
        let beat = batch(Kind::Heartbeat, &[heartbeat.bytes()], Box::default(), 1);
        self.tell_certificate();
        self.tell(|agent, _| agent.handle_batch(beat));
    }

    /// Puts a record of the agent's own into the intake.
    fn push_own(&mut self, which: usize, data_type: i32) {
        let Some(host) = &mut self.host else { return };
        let id = self.account.next(host.own[which]);
        match own_record(id, data_type, "", |record| host.intake.push_own(record)) {
            Ok(wake) => {
                self.account.accept(id.series);
                self.rouse |= wake != Wake::Unneeded;
            }
            Err(_) => {
                let row = Row { source: Source::AGENT, data_type, records: 1, first: 1, last: 1 };
                self.tell(|agent, _| agent.handle_own_lost(row));
            }
        }
    }

    /// Series of the records of an agent that starts.
    pub(super) fn own_series(&mut self) -> [u32; 2] {
        [TASK_RESULT, LOSS].map(|data_type| self.account.open(Lane::Urgent, data_type))
    }

    fn carry_out_task(&mut self, task: AgentTask) {
        self.check_own_task(&task);
        match task {
            AgentTask::Upload(upload) => {
                let Some(host) = &mut self.host else { return };
                // The path says how long it takes and whether it works.
                let (ms, works) = upload.path.split_once(' ').unwrap_or_default();
                let what = Happening::Uploaded { life: self.life, upload: host.upload, works: works == "works" };
                self.uploading = Some(upload.token);
                self.agenda.after(ms.parse().unwrap_or(0), what);
            }
            AgentTask::SetMetadata(set) if set.idc.is_some() => self.answer(&set.token),
            AgentTask::SetMetadata(set) => {
                self.tell(|agent, _| agent.handle_task_failed(set.token, "it cannot be remembered"));
            }
            AgentTask::Shutdown { token } => {
                self.answer(&token);
                self.down_ms = 5_000;
                self.tell(|agent, now| agent.handle_shutdown(now));
            }
        }
    }

    pub(super) fn handle_uploaded(&mut self, upload: u32, works: bool) {
        let Some(host) = self.host.as_ref().filter(|host| host.upload == upload) else { return };
        let _ = host;
        if let Some(token) = self.uploading.take().filter(|_| works) {
            self.answer(&token);
        }
        let result = if works { Ok(()) } else { Err("the file cannot be read".to_string()) };
        self.tell(|agent, _| agent.handle_uploaded(result));
    }

    fn carry_out_update(&mut self, action: UpdateAction) {
        let Some(host) = &mut self.host else { return };
        host.update += 1;
        match action {
            UpdateAction::Install(AgentConfig { version, .. }) if self.failed_version.as_ref() == Some(&version) => {
                host.agent.handle_update_refused("it has failed here".to_string());
            }
            UpdateAction::Install(_) => {
                let works = self.center.update_works();
                let what = Happening::Updated { life: self.life, update: host.update, works };
                self.agenda.after(2_000, what);
            }
            UpdateAction::Keep => {}
            UpdateAction::Commit => {
                (host.is_on_trial, host.previous) = (false, None);
                let is_deaf = host.is_deaf;
                self.note(|| "the version on trial stays".into());
                if is_deaf {
                    self.fail("a version that reaches no server does not stay", "it stays");
                }
            }
            UpdateAction::Reject => {
                self.failed_version = Some(host.version.clone());
                self.note(|| "the version on trial is put back".into());
            }
        }
    }

    pub(super) fn handle_updated(&mut self, update: u32, works: bool) {
        if self.host.as_ref().is_some_and(|host| host.update == update) {
            let result = if works { Ok(()) } else { Err("it cannot be fetched".to_string()) };
            self.tell(|agent, now| agent.handle_updated(result, now));
        }
    }

    /// A task has reached the agent.
    pub(super) fn note_command(&mut self, command: &Command) {
        self.judge(command);
        let token = match command {
            Command::PluginTask(task) => &task.token,
            Command::AgentTask(task) => task.token(),
            Command::RefusedTask(task) => &task.token,
            Command::Configuration(configuration) => {
                let now = self.agenda.now;
                for plugin in 0..self.plugins.len() {
                    // The server may want another one by now.
                    let told = configuration.plugins.iter().find(|config| plugin_of(&config.name) == plugin);
                    let told = told.map(|config| config.version.clone());
                    let before = core::mem::replace(&mut self.told_versions[plugin], told.clone());
                    if told != before {
                        self.plugins[plugin].news = told.is_some().then_some(now);
                    }
                }
                return;
            }
            Command::Nothing => return,
        };
        self.expect_answer(token.to_string());
    }

    pub(super) fn expect_answer(&mut self, token: String) {
        self.note(|| format!("task {token} reaches the agent"));
        self.tasks.insert(token, (self.life, 0));
    }

    /// A task is done, or its failure is reported.
    pub(super) fn answer(&mut self, token: &str) {
        self.note(|| format!("task {token} is answered"));
        let answers = self.tasks.get_mut(token).map(|(_, answers)| {
            *answers += 1;
            *answers
        });
        if answers != Some(1) {
            self.fail("every task is answered once", &format!("{token} is answered again, or was not asked for"));
        }
    }

    /// Tasks that the agent has received and not answered.
    pub(super) fn unanswered(&self) -> Option<&String> {
        self.tasks.iter().find(|(_, (life, answers))| *life == self.life && *answers == 0).map(|(token, _)| token)
    }
}
