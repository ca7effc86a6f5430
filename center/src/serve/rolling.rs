//! The rollouts of a server: what agents say goes into them, and what they decide goes to agents and into the store.
//!
//! The locks of what is desired and of the fleet are taken within that of the rollouts, never the other way round.

use super::shared::{Shared, lock};
use crate::clock::now_ms;
use crate::desired::{Desired, Plugin, Target, TooMuch};
use crate::files::{Digest, Files};
use crate::fleet::Agent;
use crate::http::Thing;
use crate::message::{AGENT_HEARTBEAT, Batch, LOG, PLUGIN_HEARTBEAT};
use crate::rollout::{AGENT, Action, Before, Candidate, NotNow, Order, Rollout, State};
use crate::store::site::{self, AuditEntry, SiteError};
use elklet_proto::grpc::Config;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::block_in_place;

/// The progress of hosts is written so often at most. What is not written is learnt again after a restart.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// The rollouts that have not ended.
pub(crate) struct Rolling {
    pub(super) list: Mutex<Vec<Entry>>,
    /// True if there are any. What agents say is looked into only then.
    any: AtomicBool,
    wake: Notify,
}

/// A rollout, and what is in the database of it.
pub(super) struct Entry {
    pub(super) rollout: Rollout,
    /// What was written last: when it changed last, and in which state.
    written: (i64, State),
}

/// Why a rollout is not begun, promoted or aborted.
#[derive(Debug)]
pub(crate) enum RolloutError {
    /// There is none of this number.
    Unknown(i64),
    /// Something has to happen first.
    NotNow(NotNow),
    /// The configuration would have too much in it.
    TooMuch(TooMuch),
    /// It cannot be written.
    Site(SiteError),
}

impl fmt::Display for RolloutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(id) => write!(f, "there is no rollout {id}"),
            Self::NotNow(why) => why.fmt(f),
            Self::TooMuch(why) => why.fmt(f),
            Self::Site(error) => error.fmt(f),
        }
    }
}

impl From<NotNow> for RolloutError {
    fn from(why: NotNow) -> Self {
        Self::NotNow(why)
    }
}

impl From<SiteError> for RolloutError {
    fn from(error: SiteError) -> Self {
        Self::Site(error)
    }
}

impl Rolling {
    /// Goes on with the rollouts that are kept.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn load(site: &site::Site, now: i64) -> io::Result<Self> {
        let mut list = Vec::new();
        for kept in site.rollouts().active().map_err(io::Error::other)? {
            let mut rollout: Rollout = serde_json::from_str(&kept.body)
                .map_err(|error| io::Error::other(format!("center.db, rollout {}: {error}", kept.id)))?;
            rollout.id = kept.id;
            let written = (rollout.changed_ms, rollout.state);
            rollout.resume(now);
            list.push(Entry { rollout, written });
        }
        let any = AtomicBool::new(!list.is_empty());
        Ok(Self { list: Mutex::new(list), any, wake: Notify::new() })
    }
}

impl Shared {
    /// Begins a rollout, and returns its number.
    pub(crate) fn begin_rollout(&self, order: Order) -> Result<i64, RolloutError> {
        let mut list = lock(&self.rolling.list);
        let target = target_of(order.group.as_ref());
        refuse_if_under_way(&list, &target)?;
        if let Some(file) = order.plugin.file
            && self.db().files().get(&file.to_string())?.is_none()
        {
            return Err(NotNow(format!("file {file} is not here any more; upload it again")).into());
        }
        let name = &order.plugin.config.name;
        let (own, present) = self.desired(|desired| {
            let own = desired.at(&target).cloned();
            let present = own.clone().or_else(|| desired.everybody().cloned()).unwrap_or_default();
            (own, present)
        });
        if present
            .iter()
            .any(|plugin| plugin.config.name == *name && plugin.config.version == order.plugin.config.version)
        {
            return Err(NotNow(format!(
                "{} {name} is what these hosts should run already; a rollout takes another version, by which they show that they run it",
                order.plugin.config.version
            ))
            .into());
        }
        let from = match self.db().configs().get(&target.scope())? {
            Some(kept) => Some(Before {
                version: kept.version,
                plugins: own,
                changed_by: kept.changed_by,
                changed_ms: kept.changed_ms,
            }),
            // It is what the settings say.
            None => own.map(|own| Before {
                version: 0,
                plugins: Some(own),
                changed_by: "settings".to_owned(),
                changed_ms: 0,
            }),
        };
        let hosts = self.candidates(order.group.as_deref(), name);
        if hosts.is_empty() {
            return Err(NotNow("it would reach no host".to_owned()).into());
        }
        let mut rollout = Rollout::new(order, from, hosts, now_ms())?;
        rollout.id = self.db().rollouts().add(&body_of(&rollout))?;
        let id = rollout.id;
        let written = (rollout.changed_ms, rollout.state);
        list.push(Entry { rollout, written });
        self.rolling.any.store(true, Ordering::Relaxed);
        self.carry_out(&mut list);
        Ok(id)
    }

    /// Lets all hosts have what the canaries have.
    pub(crate) fn promote_rollout(&self, id: i64) -> Result<(), RolloutError> {
        let mut list = lock(&self.rolling.list);
        let Some(entry) = list.iter_mut().find(|entry| entry.rollout.id == id) else {
            return Err(match self.rollout_kept(id)? {
                Some(mut ended) => ended.promote(now_ms()).err().map_or(RolloutError::Unknown(id), Into::into),
                None => RolloutError::Unknown(id),
            });
        };
        entry.rollout.promote(now_ms())?;
        self.carry_out(&mut list);
        Ok(())
    }

    /// Puts back what ran before a rollout.
    pub(crate) fn abort_rollout(&self, id: i64, by: &str) -> Result<(), RolloutError> {
        let mut list = lock(&self.rolling.list);
        let at = match list.iter().position(|entry| entry.rollout.id == id) {
            Some(at) => at,
            None => {
                // One that failed can still be taken back.
                let rollout = self.rollout_kept(id)?.ok_or(RolloutError::Unknown(id))?;
                refuse_if_under_way(&list, &target_of(rollout.group.as_ref()))?;
                list.push(Entry { written: (rollout.changed_ms, rollout.state), rollout });
                list.len() - 1
            }
        };
        let aborted = self.abort(&mut list[at].rollout, by);
        let promoted = list[at].rollout.promoted.is_some();
        let others = if aborted.is_ok() && promoted { self.others(&list[at].rollout) } else { Vec::new() };
        self.carry_out(&mut list);
        others.iter().for_each(|host| self.push(&mut list, host, true));
        aborted
    }

    fn abort(&self, rollout: &mut Rollout, by: &str) -> Result<(), RolloutError> {
        // The state may not take it, which has to be known before anything is written.
        rollout.clone().abort(String::new(), now_ms())?;
        if let Some(promoted) = rollout.promoted {
            let target = target_of(rollout.group.as_ref());
            let present = self.db().configs().get(&target.scope())?.map_or(0, |kept| kept.version);
            if present != promoted {
                return Err(NotNow(format!(
                    "version {promoted} of the configuration came by this rollout, and the present one is {present}: put back the one \
                     that you want"
                ))
                .into());
            }
            let before = rollout.from.as_ref().and_then(|from| from.plugins.clone());
            let by = format!("{by}, rollout {}", rollout.id);
            self.change_desired(&by, |desired| desired.set(target, before))?.map_err(RolloutError::TooMuch)?;
        }
        Ok(rollout.abort(format!("aborted by {by}"), now_ms())?)
    }

    /// Returns the number of the rollout that is under way for a target.
    pub(crate) fn rollout_under_way(&self, target: &Target) -> Option<i64> {
        under_way(&lock(&self.rolling.list), target)
    }

    /// Returns the rollouts that are under way.
    pub(crate) fn rollouts_under_way(&self) -> Vec<Rollout> {
        let list = lock(&self.rolling.list);
        list.iter().filter(|entry| entry.rollout.is_active()).map(|entry| entry.rollout.clone()).collect()
    }

    /// Returns a rollout as it is now.
    pub(crate) fn rollout(&self, id: i64) -> Result<Option<Rollout>, SiteError> {
        let list = lock(&self.rolling.list);
        match list.iter().find(|entry| entry.rollout.id == id) {
            Some(entry) => Ok(Some(entry.rollout.clone())),
            None => self.rollout_kept(id),
        }
    }

    /// Returns rollouts as they are now, newest first, from the one before `before` on.
    pub(crate) fn rollouts(&self, before: Option<i64>, limit: usize) -> Result<Vec<Rollout>, SiteError> {
        let list = lock(&self.rolling.list);
        let kept = self.db().rollouts().list(before, limit)?;
        let now = |kept: site::Rollout| match list.iter().find(|entry| entry.rollout.id == kept.id) {
            Some(entry) => Some(entry.rollout.clone()),
            None => read(kept),
        };
        Ok(kept.into_iter().filter_map(now).collect())
    }

    /// Removes a file that agents may fetch. Returns whether it was there, or `None` if a configuration has it, or a rollout that is under
    /// way has it or would put it back.
    pub(crate) fn remove_file(&self, files: &Files, file: &Digest) -> Result<Option<bool>, SiteError> {
        // Nobody comes to want it while this has the locks.
        let list = lock(&self.rolling.list);
        let wanted = list.iter().any(|Entry { rollout, .. }| {
            let before = rollout.from.iter().filter_map(|from| from.plugins.as_ref()).flatten();
            before.chain([&rollout.plugin]).any(|plugin| plugin.file.as_ref() == Some(file))
        });
        self.desired(|desired| match wanted || desired.wants(file) {
            true => Ok(None),
            false => files.remove(file, self.db()).map(Some),
        })
    }

    /// Looks for what rollouts wait for in a message that was stored.
    pub(super) fn observe(&self, agent_id: &str, batch: &Batch) {
        if !self.rolling.any.load(Ordering::Relaxed) {
            return;
        }
        let of_type = |wanted: i32| batch.data.records.iter().filter(move |record| record.data_type == wanted);
        let fields = |wanted: i32| of_type(wanted).filter_map(|record| record.fields().ok());
        let mut versions = Vec::new();
        let mut troubles = Vec::new();
        for mut fields in fields(PLUGIN_HEARTBEAT) {
            versions.extend(fields.remove("name").zip(fields.remove("pversion")));
        }
        for mut fields in fields(AGENT_HEARTBEAT) {
            versions.push((AGENT.to_owned(), batch.data.version.clone()));
            let details =
                fields.remove("state_detail").and_then(|list| serde_json::from_str::<Vec<String>>(&list).ok());
            troubles.extend(details.into_iter().flatten().map(|detail| (detail, None)));
        }
        for record in of_type(LOG) {
            let msg = record.fields().ok().and_then(|mut fields| fields.remove("msg"));
            let ahead_s = self.read(|fleet| fleet.agents.get(agent_id).map_or(0, |agent| agent.ahead_s));
            let at_ms = record.timestamp.saturating_sub(ahead_s).saturating_mul(1000);
            troubles.extend(msg.map(|msg| (msg, Some(at_ms))));
        }
        if versions.is_empty() && troubles.is_empty() {
            return;
        }
        let (mut list, now) = (lock(&self.rolling.list), now_ms());
        for Entry { rollout, .. } in list.iter_mut() {
            let name = rollout.plugin.config.name.clone();
            for (_, version) in versions.iter().filter(|(plugin, _)| *plugin == name) {
                rollout.handle_version(agent_id, version, now);
            }
            // These come last: a plugin that crashes again and again is also told to run.
            for (trouble, at_ms) in troubles.iter().filter(|(trouble, _)| is_about(trouble, &name)) {
                rollout.handle_trouble(agent_id, trouble, *at_ms, now);
            }
        }
        self.carry_out(&mut list);
    }

    /// An agent has disconnected.
    pub(super) fn handle_gone(&self, agent_id: &str) {
        if self.rolling.any.load(Ordering::Relaxed) {
            let mut list = lock(&self.rolling.list);
            list.iter_mut().for_each(|entry| entry.rollout.handle_gone(agent_id, now_ms()));
            // The server may be ending, in which nothing can be waited for.
            self.rolling.wake.notify_one();
        }
    }

    /// Returns the hosts that a rollout for this group reaches.
    fn candidates(&self, group: Option<&str>, plugin: &str) -> Vec<Candidate> {
        let version = |agent: &Agent| match plugin {
            AGENT => agent.heartbeat.as_ref().map(|beat| beat.host.version.clone()),
            plugin => agent.plugins.get(plugin).and_then(|beat| beat.field("pversion").map(str::to_owned)),
        };
        let trouble = |agent: &Agent| {
            let list = agent.heartbeat.as_ref()?.field("state_detail")?;
            let list: Vec<String> = serde_json::from_str(list).ok()?;
            list.into_iter().find(|text| is_about(text, plugin))
        };
        let mut hosts: Vec<_> = self.read(|fleet| {
            let candidate = |(id, agent): (&String, &Agent)| Candidate {
                id: id.clone(),
                connected: fleet.live.contains_key(id),
                version: version(agent),
                trouble: trouble(agent),
            };
            fleet.agents.iter().map(candidate).collect()
        });
        self.desired(|desired| hosts.retain(|host| desired.reaches(group, &host.id)));
        hosts
    }

    /// Does what the rollouts have decided, and writes what has become of them.
    pub(super) fn carry_out(&self, list: &mut MutexGuard<'_, Vec<Entry>>) {
        let now = now_ms();
        for at in 0..list.len() {
            if list[at].rollout.poll_timeout().is_some_and(|due| due <= now) {
                list[at].rollout.handle_tick(now);
            }
            while let Some(action) = list[at].rollout.poll_action() {
                match action {
                    Action::Push(ids) => {
                        let emptied = list[at].rollout.state == State::Aborted;
                        ids.iter().for_each(|id| self.push(list, id, emptied));
                        list[at].rollout.handle_pushed(now);
                    }
                    Action::Promote => self.put_into_configuration(list, at),
                }
            }
        }
        let mut changed = false;
        for entry in list.iter_mut() {
            let rollout = &entry.rollout;
            if entry.written != (rollout.changed_ms, rollout.state) {
                changed = true;
                self.watched.changed(Thing::Rollout, &rollout.id.to_string());
            }
            if entry.written.1 != rollout.state {
                self.write(entry);
            }
        }
        list.retain(|entry| entry.rollout.is_active() || entry.written.1 != entry.rollout.state);
        self.rolling.any.store(!list.is_empty(), Ordering::Relaxed);
        if changed {
            self.rolling.wake.notify_one();
        }
    }

    fn put_into_configuration(&self, list: &mut [Entry], at: usize) {
        let rollout = &list[at].rollout;
        let (id, group, plugin) = (rollout.id, rollout.group.clone(), rollout.plugin.clone());
        let target = target_of(group.as_ref());
        let by = format!("{}, rollout {id}", rollout.created_by);
        let change = |desired: &mut Desired| {
            let mut plugins = desired.at(&target).or(desired.everybody()).cloned().unwrap_or_default();
            put(&mut plugins, &plugin);
            desired.set(target.clone(), Some(plugins))
        };
        let version = match block_in_place(|| self.change_desired(&by, change)) {
            Ok(Ok(())) => self.db().configs().get(&target.scope()).map(|kept| kept.map_or(0, |kept| kept.version)),
            Ok(Err(too_much)) => {
                // Nothing but another configuration would change that.
                _ = list[at].rollout.abort(format!("it cannot be promoted: {too_much}"), now_ms());
                return;
            }
            Err(error) => Err(error),
        };
        match version {
            Ok(version) => {
                list[at].rollout.handle_promoted(version, now_ms());
                self.others(&list[at].rollout).iter().for_each(|host| self.push(list, host, false));
            }
            Err(error) => {
                self.rolling.wake.notify_one();
                self.note(format!("rollout {id} cannot be promoted: {error}"));
            }
        }
    }

    /// Returns the connected hosts that are no part of a rollout, and have what it does as well: they came into the group after it began.
    fn others(&self, rollout: &Rollout) -> Vec<String> {
        let mut others = self.connected_ids();
        self.desired(|desired| others.retain(|host| desired.reaches(rollout.group.as_deref(), host)));
        others.retain(|host| !rollout.has(host));
        others
    }

    /// Writes a rollout, and tells of a state that it has come to.
    fn write(&self, entry: &mut Entry) {
        let rollout = &entry.rollout;
        let kept = site::Rollout { id: rollout.id, active: rollout.is_active(), body: body_of(rollout) };
        if let Err(error) = block_in_place(|| self.db().rollouts().update(&kept)) {
            log::error!("rollout {} cannot be kept: {error}", rollout.id);
            return;
        }
        if entry.written.1 != rollout.state {
            let Config { name, version, .. } = &rollout.plugin.config;
            self.note(format!("rollout {} of {name} {version} is {}: {}", rollout.id, rollout.state, rollout.reason));
            let entry = AuditEntry {
                id: 0,
                at_ms: now_ms(),
                who: "center".to_owned(),
                origin: String::new(),
                action: "rollout.state".to_owned(),
                object: rollout.id.to_string(),
                detail: format!("{name} {version}: {}", rollout.reason),
                outcome: rollout.state.to_string(),
            };
            if let Err(error) = block_in_place(|| self.db().audit().append(&entry)) {
                log::error!("the audit trail misses the state of rollout {}: {error}", rollout.id);
            }
        }
        entry.written = (rollout.changed_ms, rollout.state);
    }

    /// Writes the progress of hosts, tries again what could not be written, and returns when something is due next.
    fn turn(&self) -> Option<Duration> {
        let mut list = lock(&self.rolling.list);
        self.carry_out(&mut list);
        for entry in list.iter_mut().filter(|entry| entry.written.0 != entry.rollout.changed_ms) {
            self.write(entry);
        }
        let now = now_ms();
        let due = list.iter().filter_map(|entry| entry.rollout.poll_timeout()).min();
        let unwritten = list.iter().any(|entry| entry.written != (entry.rollout.changed_ms, entry.rollout.state));
        let due = due.map(|due| Duration::from_millis(u64::try_from(due - now).unwrap_or(0)));
        if unwritten { Some(due.map_or(WRITE_EVERY, |due| due.min(WRITE_EVERY))) } else { due }
    }

    fn rollout_kept(&self, id: i64) -> Result<Option<Rollout>, SiteError> {
        Ok(self.db().rollouts().get(id)?.and_then(read))
    }
}

/// Looks after the rollouts until the server ends.
pub(super) async fn drive(shared: Arc<Shared>) {
    loop {
        let due = shared.turn();
        let woken = shared.rolling.wake.notified();
        match due {
            Some(due) => _ = tokio::time::timeout(due, woken).await,
            None => woken.await,
        }
        tokio::time::sleep(WRITE_EVERY).await;
    }
}

fn target_of(group: Option<&String>) -> Target {
    group.map_or(Target::Everybody, |group| Target::Group(group.clone()))
}

fn under_way(list: &[Entry], target: &Target) -> Option<i64> {
    let same = |entry: &&Entry| target_of(entry.rollout.group.as_ref()) == *target;
    list.iter().filter(|entry| entry.rollout.is_active()).find(same).map(|entry| entry.rollout.id)
}

fn refuse_if_under_way(list: &[Entry], target: &Target) -> Result<(), NotNow> {
    match under_way(list, target) {
        Some(id) => Err(NotNow(format!("rollout {id} is under way there; wait for its end, or abort it"))),
        None => Ok(()),
    }
}

/// Puts a plugin into a list, in the place of the one that has its name.
pub(super) fn put(plugins: &mut Vec<Plugin>, plugin: &Plugin) {
    match plugins.iter_mut().find(|other| other.config.name == plugin.config.name) {
        Some(other) => other.clone_from(plugin),
        None => plugins.push(plugin.clone()),
    }
}

/// Returns true if an agent says this of the plugin: `plugin NAME cannot be started: ..`, or `plugin "NAME": ..` of an entry that it
/// refuses.
fn is_about(text: &str, name: &str) -> bool {
    if name == AGENT {
        return text.starts_with("agent update");
    }
    let Some(rest) = text.strip_prefix("plugin ") else { return false };
    let bare = rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '));
    bare || rest.strip_prefix('"').and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with("\":"))
}

fn body_of(rollout: &Rollout) -> String {
    serde_json::to_string(rollout).expect("names are text and nothing else can fail")
}

fn read(kept: site::Rollout) -> Option<Rollout> {
    let id = kept.id;
    let read = serde_json::from_str::<Rollout>(&kept.body);
    let mut rollout = read.inspect_err(|error| log::error!("rollout {id} is not readable: {error}")).ok()?;
    rollout.id = id;
    Some(rollout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_complaint_is_about_one_plugin() {
        for (text, about) in [
            ("plugin driver cannot be started: no such file", true),
            ("plugin driver exited with code 1 unexpectedly", true),
            ("plugin \"driver\": sha256 is no hash", true),
            ("plugin driver2 cannot be started", false),
            ("plugin \"driver2\": sha256", false),
            ("the driver is slow", false),
        ] {
            assert_eq!(is_about(text, "driver"), about, "{text}");
        }
        assert!(is_about("agent update to 2.0: sha256", AGENT) && !is_about("plugin x", AGENT));
    }
}
