//! Records as the net thread handles them: out of the intake into batches, and the agent's own into the intake.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use elklet_core::command::PluginName;
use elklet_core::delivery::cut::{Cuttings, cut};
use elklet_core::delivery::{Batch, Kind};
use elklet_core::limits::{MAX_BATCH_BYTES, MAX_PLUGINS};
use elklet_core::link::grpc::PREFIX;
use elklet_core::record::OwnRecord;
use elklet_core::record::buffer::RecordBuffer;
use elklet_core::record::envelope::{Envelope, Sender};
use elklet_core::record::intake::Level;
use elklet_core::record::manifest::{Row, Source, Sources};

use crate::net::{Compressor, decompress};
use crate::pump::intake::{OwnedBuffers, SharedIntake, empty_buffers};
use crate::status;

/// Bytes for the heartbeats of one round: the agent's own, whose `state_detail` may be long, and one for each plugin.
const HEARTBEAT_BYTES: usize = 128 << 10;

/// Records of one round of heartbeats.
const HEARTBEAT_SLOTS: usize = 1 + MAX_PLUGINS;

/// The intake from the net thread's side, and what makes batches of it.
#[derive(Debug)]
pub(super) struct Records {
    intake: SharedIntake,
    spare: Box<OwnedBuffers>,
    heartbeats: RecordBuffer<Box<[u8]>, HEARTBEAT_SLOTS>,
    envelope: Envelope,
    compressor: Compressor,
    sources: Arc<Mutex<Sources>>,
    /// The most records and bytes that were taken from the intake at once.
    high_water: (usize, usize),
}

impl Records {
    pub(super) fn new(intake: SharedIntake, arena_bytes: usize) -> Self {
        Self {
            intake,
            spare: empty_buffers(arena_bytes),
            heartbeats: RecordBuffer::new(vec![0; HEARTBEAT_BYTES].into_boxed_slice()),
            envelope: Envelope::default(),
            compressor: Compressor::new(),
            sources: Arc::default(),
            high_water: (0, 0),
        }
    }

    /// Who the plugins are that records are counted by.
    pub(super) fn sources(&self) -> &Arc<Mutex<Sources>> {
        &self.sources
    }

    /// The number that stands for a plugin where its records are counted.
    pub(super) fn source(&self, name: &PluginName) -> Source {
        self.lock_sources().source(name)
    }

    /// The name behind that number.
    pub(super) fn source_name(&self, source: Source) -> String {
        self.lock_sources().name(source).to_owned()
    }

    fn lock_sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_sender(&mut self, sender: Sender) {
        self.envelope.update(sender);
    }

    /// What the intake holds now.
    pub(super) fn level(&self) -> Level {
        self.intake.lock().level()
    }

    /// From now on the pump takes only records for which others may be dropped, or takes all again.
    pub(super) fn hold(&self, hold: bool) {
        self.intake.hold(hold);
    }

    /// Returns when the pump has woken the net thread since the last time.
    pub(super) async fn woken(&self) {
        self.intake.woken().await;
    }

    /// Adds an urgent record of the agent's own.
    ///
    /// # Errors
    /// When there is no room; what is lost then.
    pub(super) fn push_own<'f>(
        &mut self,
        data_type: i32,
        timestamp: i64,
        fields: impl Iterator<Item = (&'f str, &'f str)> + Clone,
    ) -> Result<(), Row> {
        let pushed = self.intake.lock().push_own(&OwnRecord { data_type, timestamp, fields });
        // This is the thread that a wake-up would wake.
        pushed.map(|_wake| ()).map_err(|_| own_row(data_type, timestamp))
    }

    /// Adds a heartbeat to those of [`Records::take_heartbeats`].
    ///
    /// # Errors
    /// When there is no room; what is lost then.
    pub(super) fn push_heartbeat<'f>(
        &mut self,
        data_type: i32,
        timestamp: i64,
        fields: impl Iterator<Item = (&'f str, &'f str)> + Clone,
    ) -> Result<(), Row> {
        let pushed = self.heartbeats.push_own(&OwnRecord { data_type, timestamp, fields });
        pushed.map_err(|_| own_row(data_type, timestamp))
    }

    /// The heartbeats as one batch.
    pub(super) fn take_heartbeats(&mut self) -> Batch<Bytes> {
        let parts = [self.heartbeats.bytes(), self.envelope.bytes()];
        let batch = batch(&mut self.compressor, Kind::Heartbeat, &parts, Box::default());
        self.heartbeats.clear();
        batch
    }

    /// Empties the intake, for [`Records::batches`] to be called next. Returns true when the pump has a record that found no room: it is
    /// to be told before the batches are made, so that it reads while this thread compresses.
    #[must_use]
    pub(super) fn take(&mut self) -> bool {
        let somebody_waits = self.intake.lock().swap(&mut self.spare);
        let (records, bytes) = self.high_water;
        self.high_water = (records.max(self.spare.len()), bytes.max(self.spare.bytes()));
        somebody_waits
    }

    /// Makes batches of what was taken, in the order in which they are to be sent; urgent records are a batch of their own if they go
    /// `apart`.
    pub(super) fn batches(&mut self, apart: bool) -> Vec<Batch<Bytes>> {
        let [urgent, bulk] = self.spare.parts();
        let [urgent_manifest, bulk_manifest] = self.spare.manifests();
        let envelope = self.envelope.bytes();
        let compressor = &mut self.compressor;
        let mut batches = Vec::with_capacity(1);
        if !urgent.is_empty() && apart {
            batches.push(batch(compressor, Kind::Urgent, &[urgent, envelope], urgent_manifest.to_rows()));
            if !bulk.is_empty() {
                batches.push(batch(compressor, Kind::Bulk, &[bulk, envelope], bulk_manifest.to_rows()));
            }
        } else if !(urgent.is_empty() && bulk.is_empty()) {
            let mut manifest = bulk_manifest.clone();
            urgent_manifest.rows().iter().for_each(|row| manifest.add(*row));
            batches.push(batch(compressor, Kind::Bulk, &[urgent, bulk, envelope], manifest.to_rows()));
        }
        if let Some(outsized) = self.spare.outsized() {
            let rows = Box::new([outsized.row()]);
            batches.push(batch(compressor, Kind::Bulk, &[outsized.bytes(), envelope], rows));
        }
        self.spare.clear();
        batches
    }

    /// The same records in batches of about `limit` bytes of content at most, and what is left out because the server would die of it.
    /// Neither when the message cannot be read.
    pub(super) fn cut(&mut self, whole: &Batch<Bytes>, limit: usize) -> (Vec<Batch<Bytes>>, Box<[Row]>) {
        let message = whole.message().and_then(|message| message.get(PREFIX..)).unwrap_or_default();
        let content = decompress(message, MAX_BATCH_BYTES)
            .inspect_err(|error| log::error!("a batch of {} records cannot be read again: {error}", whole.records()))
            .unwrap_or_default();
        let Cuttings { parts, envelope, refused } = cut(&content, whole.rows(), limit).unwrap_or_default();
        let compress = |part: elklet_core::delivery::cut::Part<'_>| {
            let fields = part.fields.concat();
            batch(&mut self.compressor, Kind::Bulk, &[&fields, envelope], part.rows)
        };
        (parts.into_iter().map(compress).collect(), refused)
    }

    /// How full the buffer is, and how full it was.
    pub(super) fn fill(&self) -> status::Buffer {
        let intake = self.intake.lock();
        let buffers = intake.buffers();
        let (capacity_records, capacity_bytes) = buffers.capacity();
        let (high_water_records, high_water_bytes) = self.high_water;
        status::Buffer {
            records: buffers.len(),
            bytes: buffers.bytes(),
            capacity_records,
            capacity_bytes,
            high_water_records,
            high_water_bytes,
        }
    }
}

fn own_row(data_type: i32, at: i64) -> Row {
    Row { source: Source::AGENT, data_type, records: 1, first: at, last: at }
}

fn batch(compressor: &mut Compressor, kind: Kind, parts: &[&[u8]], rows: Box<[Row]>) -> Batch<Bytes> {
    let content: usize = parts.iter().map(|part| part.len()).sum();
    let message = Bytes::from(compressor.message(parts));
    let (bytes, fingerprint) = (message.len(), crc32c::crc32c(&message));
    let content = u32::try_from(content).unwrap_or(u32::MAX);
    Batch::new(kind, message, bytes, content, rows).with_fingerprint(fingerprint)
}

#[cfg(test)]
mod tests {
    use elklet_core::record::intake::Due;
    use elklet_proto::grpc::PackagedData;
    use prost::Message;

    use super::*;

    fn records(message: &Bytes) -> PackagedData {
        let content = decompress(&message[PREFIX..], 1 << 20).expect("a message is whole");
        PackagedData::decode(&*content).expect("a message is a PackagedData")
    }

    #[test]
    fn a_batch_that_is_taken_can_be_cut_and_read() {
        let mut room = Records::new(SharedIntake::new(64 << 10), 64 << 10);
        room.set_sender(Sender { agent_id: "me".to_owned(), ..Sender::default() });
        for n in ["1", "2", "3"] {
            room.push_own(59, 7, [("n", n)].into_iter()).expect("there is room");
        }
        assert_eq!((room.level().due, room.level().records), (Due::Now, 3));
        let somebody_waits = room.take();
        let batches = room.batches(false);
        assert_eq!((batches.len(), batches[0].records(), somebody_waits, room.level().records), (1, 3, false, 0));
        let (parts, refused) = room.cut(&batches[0], 1);
        assert!(refused.is_empty());
        let read: Vec<_> = parts.iter().map(|part| records(part.message().expect("it is in memory"))).collect();
        assert!(read.iter().all(|data| data.agent_id == "me" && data.records.len() == 1) && read.len() == 3);
    }

    #[test]
    fn urgent_records_go_apart_when_they_are_to_overtake() {
        let mut room = Records::new(SharedIntake::new(64 << 10), 64 << 10);
        room.push_own(59, 7, [("n", "1")].into_iter()).expect("there is room");
        assert!(!room.take());
        assert_eq!(room.batches(true).iter().map(Batch::kind).collect::<Vec<_>>(), [Kind::Urgent]);
    }
}
