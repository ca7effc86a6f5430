//! Finds the batch that kills a server, and gives up no record for any other reason.
//!
//! Delivery at least once sends a batch again after every broken stream. A batch that crashes the server would
//! therefore end every stream for ever. But most streams break for reasons that have nothing to do with a batch:
//! servers restart, networks fail, somebody kills a process again and again. [`Suspects`] tells the two apart in steps.
//! Each step costs time and order, but no record:
//!
//! 1. Two streams in a row end over the same oldest batch. The next stream is *careful*: it takes what is sent again
//!    one batch at a time.
//! 2. The batches that a careful stream was handed just before its end become *suspects*. Others overtake them.
//! 3. A suspect gets a *trial* on a stream that has held for some seconds: it is sent alone, with silence before and after it.
//!    If the stream outlives it, it is acquitted. If the stream ends, the suspect is cut, and each part becomes a suspect.
//! 4. A single record is condemned after [`POISON_STRIKES`] trials in a row that end the stream. Each trial begins
//!    later in its stream's life than the last stream lived, and the server has to take other records in between. A
//!    stream that ends at any other moment clears all strikes. Neither chance nor a server that ends its streams by the
//!    clock therefore condemns a record.
//!
//! This module judges. The [`Outbox`](super::Outbox) moves, cuts and drops.

use alloc::vec::Vec;

use super::batch::Identity;
use crate::limits::{CAREFUL_GAP_MS, MAX_SUSPECTS, POISON_STRIKES, PROBE_AFTER_MS, REFUSALS, TRIAL_MS};
use crate::time::Millis;

/// What streams that ended without a reason have shown about batches.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    opened: Millis,
    /// When the stream last wrote records whole, or opened.
    quiet_since: Millis,
    /// The oldest batch over which the last streams ended, and how many did.
    streak: Option<(Identity, u32)>,
    /// How many batches are still to be handed over carefully.
    careful: usize,
    /// The batches that were handed over carefully, and when.
    handed: Vec<(Identity, Millis)>,
    /// The suspect that was handed over alone.
    trial: Option<Identity>,
    suspects: Vec<Suspect>,
    /// True when the server has taken other records since the last strike.
    is_witnessed: bool,
    condemned: Option<Identity>,
}

#[derive(Debug, Clone, Copy)]
struct Suspect {
    who: Identity,
    strikes: u32,
    /// How long the last stream lived that ended over this suspect.
    lifetime_ms: u64,
}

/// What the end of a stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing about any one batch.
    Nothing,
    /// This batch of several records was alone on the stream when it ended.
    Guilty(Identity),
}

impl Suspects {
    /// A stream was opened.
    pub(super) fn handle_opened(&mut self, now: Millis) {
        (self.opened, self.quiet_since) = (now, now);
        self.trial = None;
        self.handed.clear();
    }

    /// The stream was handed a batch of records.
    pub(super) fn handle_handed(&mut self, who: Identity, now: Millis) {
        if self.is_suspect(who) {
            self.trial = Some(who);
        } else if self.careful > 0 {
            self.careful -= 1;
            self.handed.retain(|(_, at)| now.since(*at) <= TRIAL_MS);
            self.handed.push((who, now));
        }
    }

    /// The stream has written records whole.
    pub(super) fn handle_written(&mut self, now: Millis) {
        self.quiet_since = now;
    }

    /// The server has taken a batch.
    pub(super) fn handle_confirmed(&mut self, who: Identity) {
        if self.suspects.is_empty() {
            return;
        }
        self.is_witnessed |= !self.is_suspect(who);
        self.acquit(who);
    }

    /// Time has passed. `is_writing` is true while the stream has not written everything that it was handed.
    pub(super) fn handle_time(&mut self, is_writing: bool, now: Millis) {
        if let Some(who) = self.trial.filter(|_| !is_writing && self.quiet_since + TRIAL_MS <= now) {
            self.is_witnessed = true;
            self.acquit(who);
        }
    }

    /// When the next batch may be handed over, or `None` if that depends on more than time.
    pub(super) fn gate(&self, next: Identity, is_writing: bool) -> Option<Millis> {
        let pause = if self.trial.is_some() || self.is_suspect(next) {
            TRIAL_MS
        } else if self.careful > 0 {
            CAREFUL_GAP_MS
        } else {
            return Some(Millis(0));
        };
        (!is_writing).then(|| self.ripe_at(next).max(self.quiet_since + pause))
    }

    /// Returns true while others should overtake a batch.
    pub(super) fn is_set_aside(&self, who: Identity, now: Millis) -> bool {
        self.is_suspect(who) && now < self.ripe_at(who)
    }

    /// Returns true when no batch is suspected.
    pub(super) fn is_empty(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Returns true when a batch is suspected.
    pub(super) fn is_suspect(&self, who: Identity) -> bool {
        self.suspects.iter().any(|suspect| suspect.who == who)
    }

    /// Returns true when a batch has ended a stream while it was alone on it.
    pub(super) fn is_guilty(&self, who: Identity) -> bool {
        self.suspects.iter().any(|suspect| suspect.who == who && suspect.strikes > 0)
    }

    /// Returns true when a batch is the single record that kills the server.
    pub(super) fn is_condemned(&self, who: Identity) -> bool {
        self.condemned == Some(who)
    }

    /// A batch was cut into parts.
    pub(super) fn handle_cut(&mut self, whole: Identity, parts: impl Iterator<Item = Identity>) {
        if self.is_suspect(whole) {
            self.acquit(whole);
            parts.for_each(|part| self.suspect(part, 0));
        }
    }

    /// A batch was dropped.
    pub(super) fn handle_dropped(&mut self, who: Identity) {
        self.condemned.take_if(|condemned| *condemned == who);
        self.acquit(who);
    }

    /// The stream has ended without a reason. `in_flight` are the batches of records that it was handed, oldest first,
    /// each with true if it is a single record.
    pub(super) fn handle_broken(
        &mut self,
        in_flight: impl Iterator<Item = (Identity, bool)>,
        is_writing: bool,
        now: Millis,
    ) -> Verdict {
        let in_flight: Vec<_> = in_flight.collect();
        let find = |who: Identity| in_flight.iter().find(|(other, _)| *other == who).copied();
        let was_careful = core::mem::take(&mut self.handed);
        if let Some(who) = self.trial.take() {
            let is_prompt = is_writing || now.since(self.quiet_since) <= TRIAL_MS;
            if let Some((_, is_single)) = find(who).filter(|_| is_prompt) {
                return self.strike(who, is_single, now);
            }
        }
        let recent = was_careful.into_iter().filter(|(_, at)| now.since(*at) <= TRIAL_MS);
        let blamed: Vec<_> = recent.filter_map(|(who, _)| find(who)).collect();
        if !blamed.is_empty() {
            (self.streak, self.careful) = (None, 0);
            // Cutting the only blamed batch costs no record and spares it a trial.
            let guilty = match blamed[..] {
                [(who, false)] => Some(who),
                _ => None,
            };
            blamed.into_iter().for_each(|(who, _)| self.suspect(who, u32::from(guilty.is_some())));
            return guilty.map_or(Verdict::Nothing, Verdict::Guilty);
        }
        self.handle_unrelated();
        let oldest = in_flight.first().map(|(who, _)| *who);
        let before = self.streak.map_or(0, |(who, times)| if Some(who) == oldest { times } else { 0 });
        self.streak = oldest.map(|who| (who, before + 1));
        self.careful = if before + 1 >= REFUSALS { in_flight.len() } else { 0 };
        Verdict::Nothing
    }

    /// A stream has ended for a reason that has nothing to do with batches.
    pub(super) fn handle_unrelated(&mut self) {
        self.trial = None;
        self.handed.clear();
        self.suspects.iter_mut().for_each(|suspect| suspect.strikes = 0);
        self.condemned = None;
    }

    fn strike(&mut self, who: Identity, is_single: bool, now: Millis) -> Verdict {
        let is_witnessed = core::mem::take(&mut self.is_witnessed);
        let lifetime_ms = now.since(self.opened);
        let Some(suspect) = self.suspects.iter_mut().find(|suspect| suspect.who == who) else {
            return Verdict::Nothing;
        };
        suspect.lifetime_ms = lifetime_ms;
        if !is_single {
            suspect.strikes += 1;
            return Verdict::Guilty(who);
        }
        suspect.strikes += u32::from(is_witnessed);
        if suspect.strikes >= POISON_STRIKES {
            self.condemned = Some(who);
        }
        Verdict::Nothing
    }

    fn suspect(&mut self, who: Identity, strikes: u32) {
        if self.suspects.len() < MAX_SUSPECTS && !self.is_suspect(who) {
            self.suspects.push(Suspect { who, strikes, lifetime_ms: 0 });
        }
    }

    fn acquit(&mut self, who: Identity) {
        self.trial.take_if(|trial| *trial == who);
        self.suspects.retain(|suspect| suspect.who != who);
        if self.suspects.is_empty() {
            self.is_witnessed = false;
        }
    }

    /// When a suspect's trial may begin on this stream.
    fn ripe_at(&self, who: Identity) -> Millis {
        let suspect = self.suspects.iter().find(|suspect| suspect.who == who);
        suspect.map_or(Millis(0), |suspect| self.opened + PROBE_AFTER_MS.max(suspect.lifetime_ms + TRIAL_MS))
    }
}
