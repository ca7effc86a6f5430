//! What must hold: after every pass of the agent, and in the end.

use alloc::format;

use super::World;
use super::operators::TRIAL_MS;
use crate::delivery::Unconfirmed;
use crate::dispatch::{STAND_IN_MS, STOP_TIMEOUT_MS};
use crate::limits::{MAX_SUSPECTS, MAX_UNCONFIRMED_BATCHES, PING_INTERVAL_MS, SPOOL_RETRY_MS, TRIAL_MS as SUSPECT_MS};
use crate::link::backoff::BACKOFF_CAP_MS;
use crate::link::session::{CONNECT_TIMEOUT_MS, OPEN_TIMEOUT_MS, PONG_TIMEOUT_MS, RESOLVE_TIMEOUT_MS};

/// A new version of a plugin runs within this, if nothing keeps it from being fetched and started.
const NEWS_MS: u64 = STOP_TIMEOUT_MS + 20_000;

/// A record that servers die of is found and given up within this.
const POISON_MS: u64 = 600_000;

/// A record waits for others to travel with at most this long while the stream has room.
const COMPANY_MS: u64 = 500;

/// The looks at everything that cost time are this many passes apart.
const PASSES: u64 = 16;

impl World {
    /// After the last fault the agent is connected within this, and servers have taken everything.
    fn recovery_ms(&self) -> u64 {
        // A path that died unnoticed, then an attempt at each server, then the longest wait, and an attempt again.
        let dead = self.setup.keepalive_ms.max(60_000) + PONG_TIMEOUT_MS;
        let servers = self.setup.servers.len() as u64;
        let round = RESOLVE_TIMEOUT_MS * self.setup.discovery as u64 + servers * (CONNECT_TIMEOUT_MS + OPEN_TIMEOUT_MS);
        let connected = dead + 2 * round + BACKOFF_CAP_MS;
        // Then the disk is tried again, everything is sent, and a PING confirms the last of it.
        let sent = 3 * SPOOL_RETRY_MS + 10 * PING_INTERVAL_MS;
        // Suspects go one by one, each later in the stream's life than the last stream lived.
        let suspects = self.longest_life_ms + 3 * MAX_SUSPECTS as u64 * SUSPECT_MS;
        let suspects = if self.unexplained_ends >= 2 { suspects } else { 0 };
        let trial = if self.on_trial.is_some() { TRIAL_MS } else { 0 };
        connected + sent + suspects + trial
    }

    /// Looks at what must hold at every moment.
    pub(super) fn check(&mut self) {
        self.check_ending();
        self.check_company();
        self.check_rate();
        if self.passes.is_multiple_of(PASSES) || self.is_calm {
            self.check_bounds();
            self.check_news();
        }
        if self.is_calm && self.failure.is_none() {
            self.check_recovery();
        }
    }

    /// Records wait for others to travel with, but not for long.
    fn check_company(&mut self) {
        let has_room = self.current().is_some_and(|id| self.connections[id].has_room());
        let Some(host) = self.host.as_ref().filter(|host| has_room && host.agent.is_streaming()) else { return };
        let now = self.agenda.now;
        let level = host.intake.level();
        let due = host.agent.poll_timeout(level, now);
        if level.is_empty() || due.is_some_and(|due| due <= now + COMPANY_MS) {
            return;
        }
        let unconfirmed = host.agent.unconfirmed(level);
        // Batches are bounded in number too. Then records wait until the server confirms one, and their plugins with them.
        let may_take =
            unconfirmed.memory_bytes < self.setup.memory / 2 && unconfirmed.batches < MAX_UNCONFIRMED_BATCHES;
        if may_take {
            let what = format!("{} records wait in the intake until {due:?}", level.records);
            self.fail("a record does not wait for company for long", &what);
        }
    }

    fn check_bounds(&mut self) {
        let Some(host) = &self.host else { return };
        let unconfirmed = host.agent.unconfirmed(host.intake.level());
        let replayed = host.agent.delivery_counters().replayed;
        // A few batches may be made at once while there is room for one.
        let largest = 3 * self.setup.arena * self.setup.scale;
        // So may suspects, which wait for their trials in memory.
        let suspects = if self.unexplained_ends >= 3 { 8 * largest } else { 0 };
        if unconfirmed.memory_bytes > self.setup.memory + 2 * largest + suspects {
            self.fail("memory is bounded", &format!("{unconfirmed:?}"));
        }
        // As many wait in memory at most while others are read from the disk, which go before them: they are suspects, or were.
        let read = if self.unexplained_ends >= 3 && unconfirmed.disk_records > 0 { MAX_UNCONFIRMED_BATCHES } else { 0 };
        // What was confirmed lately comes back when a stream ends, however many there are by then.
        if unconfirmed.batches < MAX_UNCONFIRMED_BATCHES {
            self.replayed = replayed;
        }
        let back = usize::try_from(replayed.saturating_sub(self.replayed)).unwrap_or(usize::MAX);
        if unconfirmed.batches > (MAX_UNCONFIRMED_BATCHES + read + MAX_SUSPECTS + 16).saturating_add(back) {
            self.fail("batches on their way are bounded", &format!("{unconfirmed:?}"));
        }
        let is_shrinking = self.agenda.now.since(self.shrunk_at) < 60_000 && self.shrunk_at.0 > 0;
        let may_be_more = is_shrinking || self.disk.is_damaged || self.agenda.now <= self.disk.bad_until + 60_000;
        if !may_be_more && unconfirmed.disk_bytes > self.spool_bytes {
            self.fail("the disk is bounded", &format!("{unconfirmed:?} of {}", self.spool_bytes));
        }
        let is_short = unconfirmed.memory_bytes > self.setup.memory / 4
            || unconfirmed.disk_bytes * 2 > self.spool_bytes.max(1)
            || self.disk.is_damaged
            || self.disk.bad_until.0 > 0;
        if is_short {
            // What may be a double gives way when room is short.
            self.may_forget = false;
            self.account.excuse_forgotten();
        }
    }

    /// A new version of a plugin is tried at once, whatever has become of the one before.
    fn check_news(&mut self) {
        let now = self.agenda.now;
        let is_ending = self.host.as_ref().is_some_and(|host| host.agent.is_ending());
        let faults = [
            self.no_spawns_until,
            self.no_preparations_until,
            self.slow_downloads_until,
            self.stubborn_until,
            self.frozen_until,
        ];
        let last_fault = faults.into_iter().max().unwrap_or_default();
        for at in 0..self.plugins.len() {
            let Some(news) = self.plugins[at].news else { continue };
            if is_ending || last_fault >= news || self.allowed(at) != self.told_versions[at] {
                self.plugins[at].news = None;
            } else if now.since(news) > NEWS_MS {
                let wanted = self.center.wanted(at);
                self.fail("a new version of a plugin is tried at once", &format!("p{at}: {wanted:?} is not"));
            }
        }
    }

    /// Looks whether everything is as it should be in the end.
    fn check_recovery(&mut self) {
        let waited = self.agenda.now.since(self.waiting_since);
        let patience = self.recovery_ms();
        if !self.program.poison.is_empty() {
            return self.check_poison(waited);
        }
        let is_mistaken = self.is_mistaken();
        let Some(host) = &self.host else { return };
        let level = host.intake.level();
        let Unconfirmed { memory_records, disk_records, batches, .. } = host.agent.unconfirmed(level);
        // What lay in a file that could not be read may be counted for ever.
        // Losses that servers had taken after all may hide for a while that others are still on the disk.
        let losses = Some(host.agent.losses());
        let is_all_there = self.account.unexplained(losses) == 0
            && (!self.disk.is_damaged || self.account.check_kinds(losses).is_ok());
        let disk_records = if self.disk.is_damaged && is_all_there { 0 } else { disk_records };
        let left = (memory_records, disk_records, batches as u64);
        let losses = host.agent.losses();
        let is_recovered = host.agent.is_streaming() && left == (0, 0, 0);
        if !is_recovered {
            if waited > patience && !self.has_recovered && !is_mistaken && !host.agent.is_ending() {
                let phase = host.agent.session().phase();
                let missing = self.account.missing();
                let what = format!(
                    "it is {phase} after {waited} ms, with (memory, disk, batches) {left:?}; missing are {missing}"
                );
                self.fail("after the last fault the agent is connected and everything is taken", &what);
            }
            return;
        }
        let unexplained = self.account.unexplained(Some(losses));
        if unexplained > 0 {
            // An agent that has just started does not know yet what lies on its disk.
            if waited > patience && !self.has_recovered {
                let missing = self.account.missing();
                let what = format!("{unexplained} records have not come, of these:{missing}");
                self.fail("no record is lost that was not told", &what);
            }
            return;
        }
        // Losses of what servers had taken after all may hide that a server has not come to others yet.
        if let Err(what) = self.account.check_kinds(Some(losses)) {
            if waited > patience {
                self.fail("losses are told by data type", &what);
            }
            return;
        }
        self.has_recovered = true;
        if self.check_end(waited) {
            self.is_done = true;
        }
    }

    /// Records that servers die of are given up one after the other. Only then is there an end of it.
    fn check_poison(&mut self, waited: u64) {
        let patience = (1 + self.program.poison.len() as u64) * POISON_MS + self.longest_life_ms;
        if self.is_poisoned() && waited > patience && self.agenda.now.since(self.died_at) < POISON_MS / 4 {
            let what = format!("after {waited} ms servers still die");
            self.fail("a record that servers die of is given up in the end", &what);
        }
        if !self.is_poisoned() || waited > patience {
            self.program.poison.clear();
            self.begin_waiting();
        }
    }

    /// Looks at what takes its time, and at the books. False when something is still waited for.
    fn check_end(&mut self, waited: u64) -> bool {
        if let Err(what) = self.check_plugins() {
            if waited > STAND_IN_MS + self.recovery_ms() {
                self.fail("in the end the wanted version of every plugin runs", &what);
            }
            return false;
        }
        if let Some(what) = self.check_renewal(waited.saturating_sub(self.recovery_ms())) {
            if let Err(what) = what {
                self.fail("a certificate is renewed in the end", &what);
            }
            return false;
        }
        let uploads = self.uploading.is_some();
        if let Some(token) = self.unanswered() {
            let what = format!("{token} is not");
            if waited > 15 * 60_000 {
                self.fail("every task is answered", &what);
            }
            return false;
        }
        let losses = self.host.as_ref().map(|host| host.agent.losses());
        // A killed agent may give a record up once more in its next life, when it lies on the disk.
        let (poison, known) = (self.account.poison(losses), self.poisoned * u64::from(self.life));
        if poison > known && !self.may_give_up {
            self.fail("only records that end servers are given up for that", &format!("{poison} are, of {known}"));
        }
        !uploads
    }
}
