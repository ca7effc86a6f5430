//! The outbox step by step: with files that answer as a test says, and no world around them.

mod disk;
mod judge;
mod replay;
mod room;

use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::delivery::spool::format::SEGMENT_HEAD_BYTES;
use crate::delivery::spool::{Done, Op, Replay};
use crate::delivery::world::rows;

/// Bytes that a batch takes on the disk here.
const STORED: u64 = 200;

/// Bytes of memory that no test needs.
const PLENTY: usize = 1 << 20;

/// Bytes of files that no test needs.
const ENOUGH: u64 = 64 << 20;

/// A batch of one record, which is told from others by its message.
fn bulk(message: u32) -> Batch<u32> {
    batch(Kind::Bulk, message, 100)
}

fn batch(kind: Kind, message: u32, bytes: usize) -> Batch<u32> {
    Batch::new(kind, message, bytes, 100, rows(1)).with_fingerprint(message)
}

/// An outbox without a stream that has looked at the spool and found nothing.
fn with_spool(bounds: Bounds) -> Outbox<u32> {
    let mut outbox = Outbox::new(bounds, Millis(0));
    assert_eq!(outbox.poll_op(Millis(0)), Some(Op::Open));
    outbox.handle_done(Done::Opened(vec![]), Millis(0));
    outbox
}

/// An outbox without a stream whose batches 0, 1, ... lie on the disk and not in memory.
fn spooled(batches: u32) -> Outbox<u32> {
    let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
    (0..batches).for_each(|message| outbox.push(bulk(message)));
    append(&mut outbox, Millis(SPOOL_AFTER_MS));
    outbox
}

/// Lets what the outbox writes now be written, and returns the messages and where the first of them lies.
fn append(outbox: &mut Outbox<u32>, now: Millis) -> (Place, Vec<u32>) {
    let Some(Op::Append { place, batches }) = outbox.poll_op(now) else { panic!("something is written") };
    let ends = (1..=batches.len() as u64).map(|number| place.offset + number * STORED);
    outbox.handle_done(Done::Appended(ends.collect()), now);
    (place, batches.iter().map(|write| write.message).collect())
}

/// What the disk answers when it is asked for a batch: this one, as it lies at that place.
fn replay_of(batch: &Batch<u32>, place: Place, first_record: u64) -> Done<u32> {
    let message = *batch.message().expect("it is in memory");
    Done::Read(Some(Replay {
        message,
        bytes: batch.bytes(),
        fingerprint: message,
        content_bytes: batch.content_bytes(),
        begin: place.offset,
        end: place.offset + STORED,
        first_record,
        rows: batch.rows().into(),
    }))
}

/// Lets the outbox read the next batch of [`spooled`], and returns its message.
fn read(outbox: &mut Outbox<u32>, now: Millis) -> u32 {
    let Some(Op::Read(place)) = outbox.poll_op(now) else { panic!("something is read") };
    let number = (place.offset - SEGMENT_HEAD_BYTES as u64) / STORED;
    let message = u32::try_from(number).expect("few");
    outbox.handle_done(replay_of(&bulk(message), place, number), now);
    message
}

/// Hands the next batch over and lets the stream write it. Returns its message.
fn send(outbox: &mut Outbox<u32>, now: Millis) -> Option<u32> {
    match outbox.poll_send(now)? {
        Outgoing::Send(message) => {
            outbox.handle_written(now);
            Some(message)
        }
        Outgoing::Cut { whole, limit } => panic!("it is not to be cut into {limit} bytes: {whole:?}"),
    }
}

/// Reads and sends as many batches of [`spooled`].
fn send_from_disk(outbox: &mut Outbox<u32>, batches: u32, now: Millis) -> Vec<u32> {
    let mut one = |_| {
        let read = read(outbox, now);
        assert_eq!(send(outbox, now), Some(read));
        read
    };
    (0..batches).map(&mut one).collect()
}

/// The credit that confirms the oldest batches of a stream of batches of 100 bytes.
fn credit_for(batches: u64) -> u64 {
    100 * (batches + 1) + 1
}
