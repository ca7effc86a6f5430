//! What those who look on at a stream of events have to be told: which hosts, tasks and rollouts changed, and which records came.
//!
//! Everything is coalesced where it happens, and bounded: what changed is a key with a number, and of records the newest are kept for
//! each who looks. Whoever reads slowly gets the newest state. While nobody looks, nothing is noted.

use crate::message::{AGENT_HEARTBEAT, Batch, PLUGIN_HEARTBEAT, Record, TASK_REPORT};
use crate::serve::lock;
use crate::sink::Numbered;
use crate::store::Found;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Streams at a time. A person has a few.
const STREAMS: usize = 64;

/// The longest key that is remembered, in bytes. No host, task or rollout has a longer one that is answered for.
const KEY_LEN: usize = 1024;

/// Keys that are remembered as changed. Whoever is further behind is told that there were more.
const CHANGED: usize = 20_000;

/// Records that are shown at a time. Eyes read no more of them.
pub(super) const SHOWN: usize = 50;

/// The longest payload that is kept to be shown, in bytes. The store has it whole.
const SHOWN_LEN: usize = 16 << 10;

/// What changed in a center, for those who look.
#[derive(Debug)]
pub(crate) struct Watched {
    room: Arc<Semaphore>,
    lookers: AtomicUsize,
    hosts: Mutex<Changed>,
    tasks: Mutex<Changed>,
    rollouts: Mutex<Changed>,
    taps: Mutex<Vec<Weak<Tap>>>,
    tapping: AtomicUsize,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(STREAMS)),
            lookers: AtomicUsize::new(0),
            hosts: Mutex::default(),
            tasks: Mutex::default(),
            rollouts: Mutex::default(),
            taps: Mutex::default(),
            tapping: AtomicUsize::new(0),
        }
    }
}

/// Something that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thing {
    /// A host, by its id.
    Host,
    /// A task, by its token.
    Task,
    /// A rollout, by its id.
    Rollout,
}

impl Watched {
    /// Notes that something came, went or changed.
    pub(crate) fn changed(&self, thing: Thing, key: &str) {
        if self.lookers.load(Relaxed) > 0 && key.len() <= KEY_LEN {
            lock(self.of(thing)).note(key);
        }
    }

    /// Notes a message that the sink has taken.
    pub(crate) fn took(&self, agent_id: &str, batch: &Batch, numbered: Option<Numbered>) {
        if self.lookers.load(Relaxed) > 0 {
            self.took_news(agent_id, &batch.data.records);
        }
        if self.tapping.load(Relaxed) > 0 {
            lock(&self.taps).retain(|tap| tap.upgrade().inspect(|tap| tap.take(agent_id, batch, numbered)).is_some());
        }
    }

    /// Notes what a message says of its host and of tasks.
    fn took_news(&self, agent_id: &str, records: &[Record]) {
        for record in records {
            match record.data_type {
                AGENT_HEARTBEAT | PLUGIN_HEARTBEAT => self.changed(Thing::Host, agent_id),
                TASK_REPORT => {
                    let token = record.fields().ok().and_then(|mut fields| fields.remove("token"));
                    token.iter().for_each(|token| self.changed(Thing::Task, token));
                }
                _ => {}
            }
        }
    }

    /// Returns room for one more who looks, if there is any.
    pub(super) fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Returns how many look on.
    pub(super) fn lookers(&self) -> usize {
        self.lookers.load(Relaxed)
    }

    /// Begins to note what changes.
    pub(super) fn look(self: &Arc<Self>) -> Look {
        self.lookers.fetch_add(1, Relaxed);
        Look {
            watched: Arc::clone(self),
            seen: [Thing::Host, Thing::Task, Thing::Rollout].map(|thing| lock(self.of(thing)).last),
        }
    }

    /// Begins to keep the newest records for somebody: those of a host, if it says one, and of these data types, if there are any.
    pub(super) fn tap(&self, host: Option<String>, types: Vec<i32>) -> Arc<Tap> {
        let tap = Arc::new(Tap { host, types, tapped: Mutex::default() });
        let mut taps = lock(&self.taps);
        taps.retain(|tap| tap.strong_count() > 0);
        taps.push(Arc::downgrade(&tap));
        self.tapping.store(taps.len(), Relaxed);
        tap
    }

    fn of(&self, thing: Thing) -> &Mutex<Changed> {
        match thing {
            Thing::Host => &self.hosts,
            Thing::Task => &self.tasks,
            Thing::Rollout => &self.rollouts,
        }
    }
}

/// Somebody who looks. Dropped when they no longer do.
#[derive(Debug)]
pub(super) struct Look {
    watched: Arc<Watched>,
    /// The number of the latest change that they have been told of, for each kind of thing.
    seen: [u64; 3],
}

impl Look {
    /// Returns the keys of what changed since it was asked last, at most `limit`, and whether there were more. The next call goes on
    /// after these keys.
    pub(super) fn changes(&mut self, thing: Thing, limit: usize) -> (Vec<String>, bool) {
        let seen = &mut self.seen[thing as usize];
        let changed = lock(self.watched.of(thing));
        let missed = *seen < changed.forgotten;
        let mut later = changed.by_number.range(*seen + 1..);
        let mut keys = Vec::new();
        for (number, key) in later.by_ref().take(limit) {
            *seen = *number;
            keys.push(key.clone());
        }
        let more = missed || later.next().is_some();
        *seen = (*seen).max(changed.forgotten);
        (keys, more)
    }

    /// Passes over what has not been told.
    pub(super) fn skip(&mut self, thing: Thing) {
        self.seen[thing as usize] = lock(self.watched.of(thing)).last;
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if self.watched.lookers.fetch_sub(1, Relaxed) == 1 {
            for thing in [Thing::Host, Thing::Task, Thing::Rollout] {
                lock(self.watched.of(thing)).forget();
            }
        }
    }
}

/// Keys, in the order in which they changed last.
#[derive(Debug, Default)]
struct Changed {
    /// The number of the latest change. It only grows.
    last: u64,
    /// The number of the latest change that is no longer remembered.
    forgotten: u64,
    by_key: HashMap<String, u64>,
    by_number: BTreeMap<u64, String>,
}

impl Changed {
    fn note(&mut self, key: &str) {
        self.last += 1;
        if let Some(before) = self.by_key.insert(key.to_owned(), self.last) {
            self.by_number.remove(&before);
        }
        self.by_number.insert(self.last, key.to_owned());
        if self.by_number.len() > CHANGED
            && let Some((number, key)) = self.by_number.pop_first()
        {
            self.by_key.remove(&key);
            self.forgotten = number;
        }
    }

    fn forget(&mut self) {
        self.by_key = HashMap::new();
        self.by_number = BTreeMap::new();
        self.forgotten = self.last;
    }
}

/// Keeps the newest records for somebody.
#[derive(Debug)]
pub(super) struct Tap {
    host: Option<String>,
    types: Vec<i32>,
    tapped: Mutex<Tapped>,
}

/// The newest records, oldest first, and how many came.
#[derive(Debug, Default)]
pub(super) struct Tapped {
    pub(super) seen: u64,
    pub(super) newest: VecDeque<Shown>,
}

/// A record to be shown.
#[derive(Debug)]
pub(super) struct Shown {
    /// The record as the store would find it; without its payload if that is too long to be shown.
    pub(super) found: Found,
    /// False if the sink numbers no records, so that the sequence number says nothing.
    pub(super) numbered: bool,
    /// Bytes of the payload.
    pub(super) len: usize,
}

impl Shown {
    /// Returns true if the payload is too long to be shown.
    pub(super) fn too_long(&self) -> bool {
        self.len > SHOWN_LEN
    }
}

impl Tap {
    fn take(&self, agent_id: &str, batch: &Batch, numbered: Option<Numbered>) {
        let data = &batch.data;
        if self.host.as_deref().is_some_and(|host| host != agent_id && host != data.hostname) {
            return;
        }
        let wanted = |record: &Record| self.types.is_empty() || self.types.contains(&record.data_type);
        let (agent_id, hostname) = (Arc::from(agent_id), Arc::from(data.hostname.as_str()));
        let received_ms = numbered
            .map_or(i64::try_from(batch.svr_time).unwrap_or(i64::MAX).saturating_mul(1000), |it| it.received_ms);
        let mut seen = 0;
        let mut newest = Vec::new();
        for (index, record) in data.records.iter().enumerate().rev().filter(|(_, record)| wanted(record)) {
            seen += 1;
            if newest.len() == SHOWN {
                continue;
            }
            // A message may have megabytes, and must not stay in memory for a record of it that somebody may look at.
            let payload =
                if record.data.len() > SHOWN_LEN { Bytes::new() } else { Bytes::copy_from_slice(&record.data) };
            let found = Found {
                seq: numbered.map_or(0, |numbered| numbered.first_seq.saturating_add(index as u64)),
                agent_id: Arc::clone(&agent_id),
                hostname: Arc::clone(&hostname),
                received_ms,
                data_type: record.data_type,
                timestamp: record.timestamp,
                payload,
            };
            newest.push(Shown { found, numbered: numbered.is_some(), len: record.data.len() });
        }
        let mut tapped = lock(&self.tapped);
        tapped.seen += seen;
        tapped.newest.extend(newest.into_iter().rev());
        let spare = tapped.newest.len().saturating_sub(SHOWN);
        tapped.newest.drain(..spare);
    }

    /// Takes what came since it was asked last.
    pub(super) fn drain(&self) -> Tapped {
        std::mem::take(&mut *lock(&self.tapped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::PackagedData;

    fn batch(hostname: &str, types: &[i32], len: usize) -> Batch {
        let record = |&data_type| Record { data_type, timestamp: 5, data: vec![0; len].into() };
        let data = PackagedData {
            records: types.iter().map(record).collect(),
            hostname: hostname.into(),
            ..Default::default()
        };
        Batch { stream: 1, index: 0, svr_time: 7, wire_len: 10, decoded_len: 20, data }
    }

    #[test]
    fn a_host_that_changes_often_is_told_once_and_nobody_is_told_twice() {
        let watched = Arc::new(Watched::default());
        watched.changed(Thing::Host, "before anybody looked");
        let mut look = watched.look();
        for _ in 0..3 {
            for id in ["a", "b", "c"] {
                watched.changed(Thing::Host, id);
            }
        }
        watched.changed(Thing::Task, "t");
        assert_eq!(look.changes(Thing::Host, 2), (vec!["a".into(), "b".into()], true));
        assert_eq!(look.changes(Thing::Host, 2), (vec!["c".into()], false));
        assert_eq!(look.changes(Thing::Host, 2), (vec![], false));
        assert_eq!(look.changes(Thing::Task, 2), (vec!["t".into()], false));
        watched.took("b", &batch("", &[59], 1), None);
        watched.took("a", &batch("", &[59, 1000], 1), None);
        assert_eq!(look.changes(Thing::Host, 2), (vec!["a".into()], false));
        watched.changed(Thing::Host, "d");
        look.skip(Thing::Host);
        assert_eq!(look.changes(Thing::Host, 2), (vec![], false));
    }

    #[test]
    fn what_changed_is_bounded_and_who_is_behind_hears_of_it() {
        let watched = Arc::new(Watched::default());
        let (mut slow, mut quick) = (watched.look(), watched.look());
        for id in 0..CHANGED + 7 {
            watched.changed(Thing::Host, &id.to_string());
            if id == CHANGED {
                quick.skip(Thing::Host);
            }
        }
        assert_eq!(lock(&watched.hosts).by_key.len(), CHANGED);
        assert_eq!(
            quick.changes(Thing::Host, CHANGED),
            ((CHANGED + 1..CHANGED + 7).map(|id| id.to_string()).collect(), false)
        );
        let (keys, more) = slow.changes(Thing::Host, CHANGED);
        assert_eq!((keys.len(), keys[0].as_str(), more), (CHANGED, "7", true));
        assert_eq!(slow.changes(Thing::Host, 1), (vec![], false));
        drop((slow, quick));
        assert!(lock(&watched.hosts).by_key.is_empty());
    }

    #[test]
    fn the_newest_records_are_kept_and_all_are_counted() {
        let watched = Watched::default();
        let all = watched.tap(None, vec![]);
        let some = watched.tap(Some("gw1".into()), vec![59]);
        let numbered = Numbered { first_seq: 1000, received_ms: 8 };
        watched.took("a", &batch("gw1", &[59; 70], 3), Some(numbered));
        watched.took("b", &batch("gw2", &[59, 60], 3), None);
        let tapped = some.drain();
        assert_eq!((tapped.seen, tapped.newest.len()), (70, SHOWN));
        let (oldest, newest) = (&tapped.newest[0].found, &tapped.newest[SHOWN - 1].found);
        assert_eq!((oldest.seq, newest.seq, newest.received_ms), (1020, 1069, 8));
        let tapped = all.drain();
        assert_eq!((tapped.seen, tapped.newest.len(), all.drain().seen), (72, SHOWN, 0));
        let last = &tapped.newest[SHOWN - 1];
        assert_eq!(
            (last.found.data_type, &*last.found.agent_id, last.numbered, last.found.received_ms),
            (60, "b", false, 7000)
        );
        watched.took("a", &batch("gw1", &[59], SHOWN_LEN + 1), None);
        let long = some.drain().newest.pop_front().unwrap();
        assert!(long.too_long() && long.found.payload.is_empty());
        drop(some);
        watched.took("a", &batch("gw1", &[59], 1), None);
        assert_eq!(lock(&watched.taps).len(), 1);
    }
}
