//! Servers that refuse a batch: it is cut until it fits, and a record that never fits is given up.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use super::{batch, cut, sized};
use crate::delivery::losses::Cause;
use crate::delivery::spool::{Done, Op, Replay};
use crate::delivery::world::rows;
use crate::delivery::{Batch, Bounds, Kind, Outbox, Outgoing};
use crate::limits::{MIN_REFUSED_BYTES, REFUSAL_PATIENCE, SPOOL_AFTER_MS};
use crate::time::Millis;

/// A server that takes messages of at most `limit` bytes and ends the stream over any other. What it has taken, in order of
/// size.
fn serve(outbox: &mut Outbox<Vec<usize>>, limit: usize) -> BTreeSet<usize> {
    let mut taken = BTreeSet::new();
    for _ in 0..100 {
        outbox.handle_opened(Millis(0));
        let mut end = 0;
        loop {
            let records = match outbox.poll_send(Millis(0)) {
                Some(Outgoing::Send(records)) => records,
                Some(Outgoing::Cut { whole, limit }) => {
                    outbox.handle_cut(cut(whole.message().expect("it waits"), limit), &[]);
                    continue;
                }
                None => return taken,
            };
            let bytes = records.iter().sum::<usize>();
            outbox.handle_written(Millis(0));
            if bytes > limit {
                outbox.handle_broken(true, Millis(0));
                outbox.handle_ended(Millis(0));
                break;
            }
            end += bytes as u64;
            outbox.handle_credit(end, Millis(0));
            taken.extend(records);
        }
    }
    panic!("it never ends: {taken:?}");
}

#[test]
fn what_is_too_large_for_the_server_is_cut_until_it_fits() {
    let mut outbox = Outbox::new(Bounds { memory: 1 << 20, spool: 0 }, Millis(0));
    outbox.push(sized(&[100]));
    outbox.push(sized(&(101..130).collect::<Vec<_>>()));
    outbox.push(sized(&[130, 131]));
    assert_eq!((serve(&mut outbox, 400), outbox.losses().sum()), ((100..132).collect(), 0));
}

#[test]
fn a_record_that_is_too_large_for_the_server_is_given_up_and_counted() {
    let mut outbox = Outbox::new(Bounds { memory: 1 << 20, spool: 0 }, Millis(0));
    outbox.push(sized(&[100, 101, 102, 900, 103, 104]));
    outbox.push(sized(&[105, 901]));
    assert_eq!(serve(&mut outbox, 500), (100..106).collect());
    assert_eq!((outbox.losses().total(Cause::Refused), outbox.losses().sum()), (2, 2));
}

#[test]
fn a_refused_record_that_is_being_written_to_the_disk_is_not_given_up_yet() {
    let mut outbox = Outbox::new(Bounds { memory: 1 << 20, spool: 1 << 20 }, Millis(0));
    assert!(matches!(outbox.poll_op(Millis(0)), Some(Op::Open)));
    outbox.handle_done(Done::Opened(Vec::new()), Millis(0));
    outbox.push(batch(Kind::Bulk, 1, 100));
    for _ in 0..2 {
        outbox.handle_opened(Millis(0));
        outbox.hand_over(Millis(0));
        outbox.handle_broken(true, Millis(0));
        outbox.handle_ended(Millis(0));
    }
    let Some(Op::Append { place, .. }) = outbox.poll_op(Millis(SPOOL_AFTER_MS)) else { panic!("it is written") };
    outbox.handle_opened(Millis(0));
    assert_eq!(outbox.poll_send(Millis(SPOOL_AFTER_MS)), None);
    assert_eq!(outbox.losses().sum(), 0);
    outbox.handle_done(Done::Appended(vec![place.offset + 200]), Millis(SPOOL_AFTER_MS));
    // Read back, it is known again.
    let Some(Op::Read(_)) = outbox.poll_op(Millis(SPOOL_AFTER_MS)) else { panic!("it is read") };
    let (begin, end) = (place.offset, place.offset + 200);
    let replay =
        Replay { message: 1, bytes: 100, fingerprint: 0, content_bytes: 0, begin, end, first_record: 0, rows: rows(1) };
    outbox.handle_done(Done::Read(Some(replay)), Millis(SPOOL_AFTER_MS));
    assert_eq!(outbox.poll_send(Millis(SPOOL_AFTER_MS)), None);
    assert_eq!((outbox.losses().total(Cause::Refused), outbox.unconfirmed().disk_records), (1, 0));
    assert!(matches!(outbox.poll_op(Millis(SPOOL_AFTER_MS)), Some(Op::Delete(_))));
}

/// Hands over what waits, or else a batch of this much content, and lets the server end the stream over it, or take it.
fn offer(outbox: &mut Outbox<u32>, content_bytes: u32, end: Option<bool>) {
    outbox.handle_opened(Millis(0));
    if outbox.unconfirmed().batches == 0 {
        outbox.push(Batch::new(Kind::Bulk, 1, 100, content_bytes, rows(2)));
    }
    outbox.hand_over(Millis(0));
    outbox.handle_written(Millis(0));
    match end {
        Some(says_so) => _ = outbox.handle_broken(says_so, Millis(0)),
        None => outbox.handle_completed(Millis(0)),
    }
    outbox.handle_ended(Millis(0));
}

#[test]
fn a_small_batch_is_refused_only_if_the_server_says_so() {
    for (content, says_so, limit) in [
        (MIN_REFUSED_BYTES - 1, false, u32::MAX),
        (MIN_REFUSED_BYTES, false, MIN_REFUSED_BYTES / 2),
        (1_000, true, 500),
    ] {
        let mut outbox = Outbox::new(Bounds { memory: 1 << 20, spool: 0 }, Millis(0));
        (0..3).for_each(|_| offer(&mut outbox, content, Some(says_so)));
        assert_eq!((outbox.content_limit(), outbox.losses().sum()), (limit, 0));
    }
}

#[test]
fn more_is_tried_when_the_server_has_taken_enough_and_after_twice_as_many_when_it_refuses_again() {
    let mut outbox = Outbox::new(Bounds { memory: 1 << 20, spool: 0 }, Millis(0));
    let mut patience = REFUSAL_PATIENCE;
    for _ in 0..3 {
        (0..2).for_each(|_| offer(&mut outbox, 1_000, Some(true)));
        assert_eq!(outbox.content_limit(), 500);
        offer(&mut outbox, 1_000, None);
        (0..2 * patience).for_each(|_| offer(&mut outbox, 250, None));
        (1..patience - 1).for_each(|_| offer(&mut outbox, 400, None));
        assert_eq!(outbox.content_limit(), 500);
        offer(&mut outbox, 400, None);
        assert_eq!(outbox.content_limit(), 1_000);
        patience *= 2;
    }
}
