//! The store's small database beside the server: what is known of hosts and tasks is read at the start, and written while the server runs.
//!
//! A write waits for the disk. It therefore happens on a thread of its own, and many hosts go into one transaction. Tasks and their answers
//! are not here: whoever adds one waits until it is written.

use super::shared::Shared;
use crate::fleet::{Agent, Fleet, Progress, TASKS, Task, Unwritten};
use crate::store::Store;
use crate::store::site::{Site, SiteError};
use std::sync::Arc;
use std::time::Duration;

/// What changed is written so often.
const INTERVAL: Duration = Duration::from_secs(1);

/// Hosts that only sent a heartbeat are written once in so many intervals.
const BEATS_EVERY: u32 = 60;

/// Hosts of one transaction. A host has some 4 KiB.
const HOSTS: usize = 500;

/// Fills a fleet with the hosts and the latest tasks of the database.
///
/// # Errors
/// When it cannot be read.
pub(super) fn load(fleet: &mut Fleet, site: &Site, max_hosts: usize) -> Result<(), SiteError> {
    let mut after = String::new();
    let mut unwritten = Unwritten::default();
    loop {
        let rows = site.hosts().list(&after, HOSTS)?;
        let Some(last) = rows.last() else { break };
        after.clone_from(&last.agent_id);
        fleet.agents.extend(rows.iter().map(|row| (row.agent_id.clone(), Agent::from_row(row))));
    }
    let surplus = fleet.agents.len().saturating_sub(max_hosts);
    if surplus > 0 {
        let mut seen: Vec<(u64, String)> =
            fleet.agents.iter().map(|(id, agent)| (agent.last_seen, id.clone())).collect();
        seen.sort_unstable();
        unwritten.forgotten = seen.into_iter().take(surplus).map(|(_, id)| id).collect();
        fleet.agents.retain(|id, _| !unwritten.forgotten.contains(id));
    }
    for row in site.tasks().list(None, None, TASKS)?.into_iter().rev() {
        fleet.add_task(Task::from(row));
    }
    fleet.unwritten = Some(unwritten);
    Ok(())
}

/// Gives up the tasks that waited when the last server ended: nobody knows whether they were sent. An answer may come all the same.
///
/// # Errors
/// When the database cannot be read.
pub(super) fn give_up_waiting(fleet: &mut Fleet, site: &Site, at_ms: i64) -> Result<(), SiteError> {
    for token in site.tasks().waiting()? {
        let Some(task) = site.tasks().get(&token)? else { continue };
        let error = Some("the center ended before it knew that the task was sent".to_owned());
        fleet.progress(Progress { token, agent_id: task.agent_id, error, at_ms });
    }
    Ok(())
}

/// Writes what changes, for as long as the server runs.
pub(super) async fn keep_written(shared: Arc<Shared>, store: Arc<Store>) {
    for round in 1_u32.. {
        tokio::time::sleep(INTERVAL).await;
        write(&shared, &store, round % BEATS_EVERY == 0).await;
    }
}

/// Writes what has changed, with `beats` also hosts that only sent a heartbeat. What cannot be written is tried again the next time.
pub(super) async fn write(shared: &Shared, store: &Arc<Store>, beats: bool) {
    // Somebody who forgets a host must not have it written back.
    let _turn = shared.writing.lock().await;
    if beats {
        shared.quietly(|fleet| {
            if let Some(unwritten) = &mut fleet.unwritten {
                let beats = std::mem::take(&mut unwritten.beats);
                unwritten.hosts.extend(beats);
            }
        });
    }
    while let Some(part) = shared.quietly(Part::take) {
        let store = Arc::clone(store);
        let written = tokio::task::spawn_blocking(move || {
            let written = part.write(store.site());
            (part, written)
        });
        let Ok((part, written)) = written.await else { return };
        match written {
            Ok(()) => {
                if shared.quietly(|fleet| fleet.unwritable.take()).is_some() {
                    shared.note("hosts and tasks are written again".to_owned());
                }
            }
            Err(error) => {
                let new = shared.quietly(|fleet| {
                    part.put_back(fleet);
                    let new = fleet.unwritable.is_none();
                    fleet.unwritable = Some(error.to_string());
                    new
                });
                if new {
                    log::error!("what changes of hosts and tasks is not written: {error}");
                    shared.note(format!("what changes of hosts and tasks is not written: {error}"));
                }
                return;
            }
        }
    }
}

/// What is written in one go.
struct Part {
    hosts: Vec<(String, Agent)>,
    forgotten: Vec<String>,
    tasks: Vec<Progress>,
}

impl Part {
    /// Takes what is to be written, if there is anything.
    fn take(fleet: &mut Fleet) -> Option<Self> {
        let unwritten = fleet.unwritten.as_mut()?;
        let mut hosts = Vec::new();
        while hosts.len() < HOSTS
            && let Some(id) = unwritten.hosts.pop_first()
        {
            if let Some(agent) = fleet.agents.get(&id) {
                hosts.push((id, agent.clone()));
            }
        }
        let forgotten = std::mem::take(&mut unwritten.forgotten).into_iter().collect();
        let part = Self { hosts, forgotten, tasks: std::mem::take(&mut unwritten.tasks) };
        let empty = part.hosts.is_empty() && part.forgotten.is_empty() && part.tasks.is_empty();
        (!empty).then_some(part)
    }

    fn write(&self, site: &Site) -> Result<(), SiteError> {
        if !self.tasks.is_empty() {
            let tokens: Vec<&str> = self.tasks.iter().map(|progress| progress.token.as_str()).collect();
            let mut tasks = self.tasks.iter();
            site.tasks().revise(&tokens, |row| {
                // Tokens without a task are passed over.
                let Some(progress) = tasks.by_ref().find(|progress| progress.token == row.token) else { return false };
                let mut task = Task::from(row.clone());
                let news = task.progress(progress);
                *row = task.row();
                news
            })?;
        }
        if !self.forgotten.is_empty() {
            site.hosts().remove(&self.forgotten.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let rows: Vec<_> = self.hosts.iter().map(|(id, agent)| agent.row(id)).collect();
        if rows.is_empty() { Ok(()) } else { site.hosts().upsert(&rows) }
    }

    /// Has it written another time, unless it has become outdated.
    fn put_back(self, fleet: &mut Fleet) {
        let Some(unwritten) = &mut fleet.unwritten else { return };
        for (id, _) in self.hosts {
            if fleet.agents.contains_key(&id) {
                unwritten.hosts.insert(id);
            }
        }
        unwritten.forgotten.extend(self.forgotten.into_iter().filter(|id| !fleet.agents.contains_key(id)));
        unwritten.tasks.splice(0..0, self.tasks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::TaskState;
    use crate::store::Settings;
    use elklet_proto::grpc;
    use std::net::SocketAddr;

    fn loaded(store: &Store, max_hosts: usize) -> Fleet {
        let mut fleet = Fleet::new(max_hosts);
        load(&mut fleet, store.site(), max_hosts).unwrap();
        give_up_waiting(&mut fleet, store.site(), 9).unwrap();
        fleet
    }

    fn written(fleet: &mut Fleet, store: &Store) {
        while let Some(part) = Part::take(fleet) {
            part.write(store.site()).unwrap();
        }
    }

    #[test]
    fn hosts_and_tasks_are_known_to_the_next_server() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Settings::default()).unwrap();
        let mut fleet = loaded(&store, 10);
        for (id, now) in [("a", 5), ("b", 5), ("c", 5)] {
            fleet.connect(id, SocketAddr::from(([10, 0, 0, 1], 1)), now);
        }
        let tasks = ["t1", "t2", "t3"].map(|token| {
            let task = grpc::Task { token: token.into(), ..Default::default() };
            Task::new(&task, "a", "ann", 1)
        });
        store.site().tasks().add(&tasks.each_ref().map(Task::row)).unwrap();
        for token in ["nobody's", "t3", "t1"] {
            fleet.progress(Progress { token: token.into(), agent_id: "a".into(), error: None, at_ms: 3 });
        }
        fleet.disconnect("b", 8);
        written(&mut fleet, &store);

        let mut fleet = loaded(&store, 2);
        assert_eq!(
            fleet.agents.keys().collect::<Vec<_>>(),
            ["b", "c"],
            "those that were seen last, and no fewer than may be"
        );
        assert_eq!(
            (fleet.agents["b"].last_seen, fleet.agents["b"].first_seen, fleet.agents["b"].connected),
            (8, 5, false)
        );
        let states: Vec<_> = fleet.tasks.iter().map(|task| task.state).collect();
        assert_eq!(states, [TaskState::Sent, TaskState::Failed, TaskState::Sent]);
        written(&mut fleet, &store);
        assert_eq!(store.site().hosts().get("a"), Ok(None));
        assert_eq!(store.site().tasks().get("t2").unwrap().unwrap().state, TaskState::Failed);
    }

    #[test]
    fn what_could_not_be_written_is_still_to_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Settings::default()).unwrap();
        let mut fleet = loaded(&store, 10);
        for id in ["a", "b"] {
            fleet.connect(id, SocketAddr::from(([10, 0, 0, 1], 1)), 5);
        }
        fleet.progress(Progress { token: "t".into(), agent_id: "a".into(), error: None, at_ms: 3 });
        let part = Part::take(&mut fleet).unwrap();
        assert!(Part::take(&mut fleet).is_none());
        fleet.disconnect("b", 6);
        assert!(fleet.forget("b"));
        part.put_back(&mut fleet);
        let part = Part::take(&mut fleet).unwrap();
        assert_eq!(part.hosts.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!((part.forgotten, part.tasks.len()), (vec!["b".to_owned()], 1));
    }
}
