//! From the intake to the stream or the spool: what becomes a batch, and when it leaves.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use elklet_core::command::PluginName;
use elklet_core::delivery::losses::{Cause, Losses};
use elklet_core::delivery::spool::{Done, Op};
use elklet_core::delivery::{Batch, Bounds, Counters, Kind, Outbox, Unconfirmed};
use elklet_core::limits::{FLUSH_INTERVAL_MS, LEDGER_BYTES, LEDGER_WAIT_MS, MAX_PLUGINS, OFFLINE_FLUSH_INTERVAL_MS};
use elklet_core::record::buffer::RecordBuffer;
use elklet_core::record::envelope::{Envelope, Sender};
use elklet_core::record::manifest::{Row, Source, Sources};
use elklet_core::record::{LOSS, OwnRecord};
use elklet_core::time::Millis;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::cut::{Cut, cut};
use crate::blocking;
use crate::clock;
use crate::config::Settings;
use crate::net::{Compressor, Transfer};
use crate::pump::PumpHandle;
use crate::shared::{OwnedBuffers, SharedIntake, empty_buffers};
use crate::spool::{self, Store};
use crate::status;

/// Bytes for the heartbeats of one round: the agent's own, whose `state_detail` may be long, and one for each plugin.
const HEARTBEAT_BYTES: usize = 128 << 10;

/// Records of one round of heartbeats.
const HEARTBEAT_SLOTS: usize = 1 + MAX_PLUGINS;

/// A stream that takes nothing for this long does not hold up what could be kept elsewhere.
const STALL_MS: u64 = LEDGER_WAIT_MS;

/// An operation on the spool has ended.
#[derive(Debug)]
pub(super) struct SpoolEvent {
    store: Store,
    done: Done<Bytes>,
}

/// Turns records into batches, and hands them to the stream and to the spool.
#[derive(Debug)]
pub(super) struct Delivery {
    intake: SharedIntake,
    spare: Box<OwnedBuffers>,
    heartbeats: RecordBuffer<Box<[u8]>, HEARTBEAT_SLOTS>,
    envelope: Envelope,
    compressor: Compressor,
    outbox: Outbox<Bytes>,
    sources: Arc<Mutex<Sources>>,
    /// The spool's files, unless they are being worked on.
    store: Option<Store>,
    /// What is to be done on them, and when, after there was no thread for it.
    put_off: Option<(Op<Bytes>, Millis)>,
    spool_events: UnboundedSender<SpoolEvent>,
    /// What its files may take.
    spool_bytes: u64,
    /// Since when the intake is known to hold records.
    waiting_since: Option<Millis>,
    /// Since when the stream has had no room.
    stalled_since: Option<Millis>,
    /// Something is due, and there is no room for it yet.
    blocked: bool,
    /// The most records and bytes that were taken from the intake at once.
    high_water: (usize, usize),
    /// Plugins that are to wait were told so.
    holding: bool,
    ending: bool,
}

impl Delivery {
    pub(super) fn new(intake: SharedIntake, settings: &Settings, now: Millis) -> (Self, UnboundedReceiver<SpoolEvent>) {
        let arena_bytes = settings.buffer.arena_bytes();
        let sources = Arc::<Mutex<Sources>>::default();
        let bounds = Bounds { memory: LEDGER_BYTES, spool: settings.spool.bytes() };
        let directory: &Path = &settings.workdir.join(spool::DIRECTORY);
        let (spool_events, receiver) = mpsc::unbounded_channel();
        let mut delivery = Self {
            intake,
            spare: empty_buffers(arena_bytes),
            heartbeats: RecordBuffer::new(vec![0; HEARTBEAT_BYTES].into_boxed_slice()),
            envelope: Envelope::default(),
            compressor: Compressor::new(),
            outbox: Outbox::new(bounds, now),
            store: Some(Store::new(directory.to_owned(), Arc::clone(&sources))),
            put_off: None,
            sources,
            spool_events,
            spool_bytes: bounds.spool,
            waiting_since: None,
            stalled_since: None,
            blocked: false,
            high_water: (0, 0),
            holding: false,
            ending: false,
        };
        delivery.set_replay_ms(settings.buffer.replay_ms());
        (delivery, receiver)
    }

    pub(super) fn set_sender(&mut self, sender: Sender) {
        self.envelope.update(sender);
    }

    /// The spool's files may take another number of bytes from now on.
    pub(super) fn set_spool_bytes(&mut self, bytes: u64) {
        self.spool_bytes = bytes;
        self.outbox.set_spool_bytes(bytes);
    }

    /// Batches are kept for another time after they were confirmed.
    pub(super) fn set_replay_ms(&mut self, keep_ms: u64) {
        self.outbox.set_replay_ms(keep_ms);
    }

    /// The number that stands for a plugin where its records are counted.
    pub(super) fn source(&self, name: &PluginName) -> Source {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).source(name)
    }

    /// Adds a heartbeat to those that go out next, ahead of everything else.
    pub(super) fn push_heartbeat<'f>(
        &mut self,
        data_type: i32,
        fields: impl Iterator<Item = (&'f str, &'f str)> + Clone,
    ) {
        let timestamp = clock::unix_seconds();
        if self.heartbeats.push_own(&OwnRecord { data_type, timestamp, fields }).is_err() {
            self.lose_own(data_type, timestamp);
        }
    }

    /// Adds an urgent record of the agent's own.
    pub(super) fn push_own<'f>(
        &mut self,
        data_type: i32,
        timestamp: i64,
        fields: impl Iterator<Item = (&'f str, &'f str)> + Clone,
    ) {
        let pushed = self.intake.lock().push_own(&OwnRecord { data_type, timestamp, fields });
        if pushed.is_err() {
            self.lose_own(data_type, timestamp);
        }
    }

    fn lose_own(&mut self, data_type: i32, at: i64) {
        let row = Row { source: Source::AGENT, data_type, records: 1, first: at, last: at };
        self.outbox.losses_mut().add(Cause::OwnNoRoom, row);
    }

    /// Counts frames of a plugin that were no records.
    pub(super) fn lose_frames(&mut self, plugin: &PluginName, cause: Cause, frames: u64, since: i64) {
        let source = self.source(plugin);
        let row = Row { source, data_type: 0, records: frames, first: since, last: clock::unix_seconds() };
        self.outbox.losses_mut().add(cause, row);
    }

    /// Hands over what is due, to the stream as far as it has room, and to the spool; `all` leaves nothing to wait for company.
    pub(super) fn advance(&mut self, transfer: Option<&Transfer>, pump: &PumpHandle, now: Millis, all: bool) {
        if transfer.is_some() || all {
            self.tell_losses(now, all);
        }
        self.blocked = false;
        if let Some(transfer) = transfer {
            self.send(transfer, pump, now, all);
        }
        // Without a spool, what a live stream cannot take yet stays with the plugins.
        let elsewhere = transfer.is_none() || self.spool_bytes > 0;
        if elsewhere && !transfer.is_some_and(Transfer::has_room) {
            while self.is_due_elsewhere(now, all) && self.add_records(pump, now) {}
        }
        self.work_on_spool(now);
        let hold = !self.ending && self.outbox.is_full(now);
        self.hold(hold, pump);
    }

    fn send(&mut self, transfer: &Transfer, pump: &PumpHandle, now: Millis, all: bool) {
        self.outbox.handle_credit(transfer.credit(), now);
        while transfer.has_room() {
            self.stalled_since = None;
            self.outbox.prepare(now);
            if let Some((whole, limit)) = self.outbox.to_cut() {
                let Cut { parts, refused } = cut(&mut self.compressor, whole, limit);
                self.outbox.handle_cut(parts, &refused);
                continue;
            }
            if !self.heartbeats.is_empty() {
                self.add_heartbeats();
            } else if self.outbox.waiting(now).is_none() && !(self.is_due(now, all) && self.add_records(pump, now)) {
                break;
            }
            let Some(message) = self.outbox.waiting(now).and_then(Batch::message) else { break };
            if !transfer.send(message.clone()) {
                break;
            }
            self.outbox.handle_handed(now);
        }
        if !transfer.has_room() {
            self.stalled_since.get_or_insert(now);
        }
        transfer.want_credit(self.outbox.wanted_credit());
    }

    /// There is a stream.
    pub(super) fn handle_opened(&mut self, now: Millis) {
        self.outbox.handle_opened(now);
    }

    /// The stream has written its oldest batch whole.
    pub(super) fn handle_written(&mut self, now: Millis) {
        self.outbox.handle_written(now);
    }

    /// A PING was sent.
    pub(super) fn handle_ping(&mut self, now: Millis) {
        self.outbox.handle_ping(now);
    }

    /// The PING was answered.
    pub(super) fn handle_pong(&mut self, now: Millis) {
        self.outbox.handle_pong(now);
    }

    /// The server has ended the connection over its PINGs.
    pub(super) fn handle_too_many_pings(&mut self) {
        self.outbox.handle_too_many_pings();
    }

    /// The server has ended the stream in order after the agent had.
    pub(super) fn handle_completed(&mut self, now: Millis) {
        self.outbox.handle_completed(now);
    }

    /// The server has ended the stream, and gives no other reason than that a message was too large if it `says_too_large`.
    pub(super) fn handle_broken(&mut self, says_too_large: bool, now: Millis) {
        self.outbox.handle_broken(says_too_large, now);
    }

    /// The stream is over: what is not confirmed goes first on the next. Heartbeats do not; that one brings fresh ones.
    pub(super) fn handle_ended(&mut self, now: Millis) {
        self.outbox.handle_ended(now);
        self.heartbeats.clear();
        self.stalled_since = None;
    }

    /// The agent ends: what the server has not taken is to be safe on the disk.
    pub(super) fn handle_ending(&mut self) {
        self.ending = true;
        self.outbox.handle_ending();
    }

    /// An operation on the spool has ended.
    pub(super) fn handle_spool(&mut self, SpoolEvent { store, done }: SpoolEvent, now: Millis) {
        self.store = Some(store);
        self.outbox.handle_done(done, now);
    }

    /// Whether a PING would confirm something that credit does not.
    pub(super) fn wants_ping(&self, now: Millis) -> bool {
        self.outbox.wants_ping(now)
    }

    /// When to look again although nothing has happened.
    pub(super) fn poll_timeout(&self, transfer: Option<&Transfer>, now: Millis) -> Option<Millis> {
        let flush = self.waiting_since.filter(|_| !self.blocked).and_then(|since| match transfer {
            Some(transfer) if transfer.has_room() => Some(since + FLUSH_INTERVAL_MS),
            // It has room before anything can be done.
            Some(_) if self.spool_bytes == 0 => None,
            _ => {
                let ripe = if self.intake.lock().is_half_full() { since } else { since + OFFLINE_FLUSH_INTERVAL_MS };
                Some(self.stalled_since.map_or(ripe, |stalled| ripe.max(stalled + STALL_MS)))
            }
        });
        let told = transfer.and_then(|_| self.outbox.losses().poll_timeout());
        let put_off = self.put_off.as_ref().map(|(_, due)| *due);
        [flush, told, put_off, self.outbox.poll_timeout(now)].into_iter().flatten().min()
    }

    /// Whether the stream has written everything that it can be given.
    pub(super) fn is_written_out(&self) -> bool {
        self.heartbeats.is_empty() && self.outbox.is_written_out() && self.intake.lock().is_empty()
    }

    /// Whether nothing would be lost if the agent ended now, or nothing can be done about it.
    pub(super) fn is_safe(&self, now: Millis) -> bool {
        self.store.is_some()
            && self.put_off.is_none()
            && self.outbox.is_safe(now)
            && (self.blocked || self.intake.lock().is_empty())
    }

    /// What the server is not known to have taken.
    pub(super) fn unconfirmed(&self) -> Unconfirmed {
        let mut unconfirmed = self.outbox.unconfirmed();
        unconfirmed.memory_records += self.intake.lock().len() as u64;
        unconfirmed
    }

    pub(super) fn counters(&self) -> Counters {
        self.outbox.counters()
    }

    /// How full the buffer is, and what is on its way.
    pub(super) fn fill(&self) -> (status::Buffer, status::Ledger) {
        let (records, bytes, (capacity_records, capacity_bytes)) = {
            let intake = self.intake.lock();
            let buffers = intake.buffers();
            (buffers.len(), buffers.bytes(), buffers.capacity())
        };
        let (high_water_records, high_water_bytes) = self.high_water;
        let buffer =
            status::Buffer { records, bytes, capacity_records, capacity_bytes, high_water_records, high_water_bytes };
        let unconfirmed = self.unconfirmed();
        let ledger = status::Ledger {
            batches: unconfirmed.batches,
            bytes: unconfirmed.memory_bytes,
            capacity_bytes: LEDGER_BYTES,
            unconfirmed_records: unconfirmed.memory_records,
        };
        (buffer, ledger)
    }

    /// How full the spool is; `None` without one.
    pub(super) fn spool(&self) -> Option<status::Spool> {
        let Unconfirmed { disk_records: records, disk_bytes: bytes, disk_files: files, .. } = self.outbox.unconfirmed();
        let capacity_bytes = self.spool_bytes;
        (capacity_bytes > 0).then_some(status::Spool { files, records, bytes, capacity_bytes })
    }

    pub(super) fn losses(&self) -> &Losses {
        self.outbox.losses()
    }

    /// Reports in the stream what was lost.
    fn tell_losses(&mut self, now: Millis, all: bool) {
        let is_due = self.outbox.losses().poll_timeout().is_some_and(|due| all || due <= now);
        if !is_due {
            return;
        }
        for loss in self.outbox.losses_mut().take(now) {
            let Row { source, data_type, records, first, last } = loss.row;
            let plugin = self.sources.lock().unwrap_or_else(PoisonError::into_inner).name(source).to_owned();
            log::warn!(target: crate::reports::TOLD_OTHERWISE, "lost: {records} records of {plugin:?}, data type {data_type}: {}", loss.cause.name());
            let numbers = [data_type.to_string(), records.to_string(), first.to_string(), last.to_string()];
            let [data_type, records, first, last] = numbers.each_ref().map(String::as_str);
            let fields = [
                ("cause", loss.cause.name()),
                ("plugin", &plugin),
                ("lost_data_type", data_type),
                ("records", records),
                ("first", first),
                ("last", last),
            ];
            self.push_own(LOSS, clock::unix_seconds(), fields.into_iter());
        }
    }

    fn add_heartbeats(&mut self) {
        let parts = [self.heartbeats.bytes(), self.envelope.bytes()];
        let batch = batch(&mut self.compressor, Kind::Heartbeat, &parts, Box::default());
        self.heartbeats.clear();
        self.outbox.push(batch);
    }

    /// Makes batches of what the intake holds; false when there is no room for them.
    fn add_records(&mut self, pump: &PumpHandle, now: Millis) -> bool {
        let may_drop = self.intake.lock().may_drop();
        if !self.outbox.has_room(may_drop, now) {
            self.blocked = true;
            return false;
        }
        let somebody_waits = self.intake.lock().swap(&mut self.spare);
        if somebody_waits {
            pump.resume();
        }
        self.waiting_since = None;
        let (records, bytes) = self.high_water;
        self.high_water = (records.max(self.spare.len()), bytes.max(self.spare.bytes()));
        let [urgent, bulk] = self.spare.parts();
        let [urgent_manifest, bulk_manifest] = self.spare.manifests();
        let envelope = self.envelope.bytes();
        let compressor = &mut self.compressor;
        if !urgent.is_empty() && self.outbox.has_backlog() {
            // What is urgent does not wait behind what has waited for long.
            self.outbox.push(batch(compressor, Kind::Urgent, &[urgent, envelope], urgent_manifest.to_rows()));
            if !bulk.is_empty() {
                self.outbox.push(batch(compressor, Kind::Bulk, &[bulk, envelope], bulk_manifest.to_rows()));
            }
        } else if !(urgent.is_empty() && bulk.is_empty()) {
            let mut manifest = bulk_manifest.clone();
            urgent_manifest.rows().iter().for_each(|row| manifest.add(*row));
            self.outbox.push(batch(compressor, Kind::Bulk, &[urgent, bulk, envelope], manifest.to_rows()));
        }
        if let Some(outsized) = self.spare.outsized() {
            let rows = Box::new([outsized.row()]);
            self.outbox.push(batch(compressor, Kind::Bulk, &[outsized.bytes(), envelope], rows));
        }
        self.spare.clear();
        true
    }

    /// Whether the intake is to be emptied onto a stream that has room.
    fn is_due(&mut self, now: Millis, all: bool) -> bool {
        use elklet_core::record::intake::Due;
        let due = self.intake.lock().due();
        if due == Due::Nothing {
            self.waiting_since = None;
            return false;
        }
        let since = *self.waiting_since.get_or_insert(now);
        all || due == Due::Now || since + FLUSH_INTERVAL_MS <= now
    }

    /// Whether the intake is to be emptied although no stream has room for it.
    fn is_due_elsewhere(&mut self, now: Millis, all: bool) -> bool {
        let (is_empty, is_half_full) = {
            let intake = self.intake.lock();
            (intake.is_empty(), intake.is_half_full())
        };
        if is_empty {
            self.waiting_since = None;
            return false;
        }
        let since = *self.waiting_since.get_or_insert(now);
        let is_stalled = self.stalled_since.is_none_or(|since| since + STALL_MS <= now);
        is_stalled && (all || is_half_full || since + OFFLINE_FLUSH_INTERVAL_MS <= now)
    }

    fn work_on_spool(&mut self, now: Millis) {
        if self.store.is_none() {
            return;
        }
        let op = match self.put_off.take_if(|(_, due)| *due <= now || self.ending) {
            Some((op, _)) => op,
            None if self.put_off.is_some() => return,
            None => match self.outbox.poll_op(now) {
                Some(op) => op,
                None => return,
            },
        };
        let Some(store) = self.store.take() else { return };
        let events = self.spool_events.clone();
        let work = move |(mut store, op): (Store, Op<Bytes>)| {
            let done = store.carry_out(op);
            let _ = events.send(SpoolEvent { store, done });
        };
        let Err(refused) = blocking::start((store, op), work) else { return };
        let (mut store, op) = refused.input;
        if self.ending {
            // There may be no later: the net thread does it, although a slow disk holds up everything else.
            let done = store.carry_out(op);
            let _ = self.spool_events.send(SpoolEvent { store, done });
        } else {
            self.store = Some(store);
            self.put_off = Some((op, now + blocking::RETRY_MS));
        }
    }

    /// Lets the plugins that are to wait when everything is full do so.
    fn hold(&mut self, hold: bool, pump: &PumpHandle) {
        if self.holding != hold {
            self.holding = hold;
            self.intake.hold(hold);
            if !hold {
                pump.resume();
            }
        }
    }
}

pub(super) fn batch(compressor: &mut Compressor, kind: Kind, parts: &[&[u8]], rows: Box<[Row]>) -> Batch<Bytes> {
    let content: usize = parts.iter().map(|part| part.len()).sum();
    let message = Bytes::from(compressor.message(parts));
    let (bytes, fingerprint) = (message.len(), crc32c::crc32c(&message));
    let content = u32::try_from(content).unwrap_or(u32::MAX);
    Batch::new(kind, message, bytes, content, rows).with_fingerprint(fingerprint)
}
