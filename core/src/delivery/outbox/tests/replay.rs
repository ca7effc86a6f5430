//! What was confirmed a moment ago, and a stream that ends out of order.

use super::*;
use crate::limits::{CONFIRM_GRACE_MS, MAX_UNCONFIRMED_BATCHES, UNCREDITED_MS};

const KEEP_MS: u64 = 1_000;

/// When everything that has waited since the start is due to be written.
const DUE: Millis = Millis(SPOOL_AFTER_MS);

/// An outbox with a stream and without a spool that keeps what was confirmed for a while.
fn keeping(memory: usize) -> Outbox<u32> {
    let mut outbox = Outbox::new(Bounds { memory, spool: 0 }, Millis(0));
    outbox.set_replay_ms(KEEP_MS);
    outbox.handle_opened(Millis(0));
    outbox
}

/// Sends a batch and lets the server confirm it, which is the number of batches that the stream has taken.
fn confirm(outbox: &mut Outbox<u32>, number: u32) {
    outbox.push(bulk(number));
    assert_eq!(send(outbox, Millis(0)), Some(number));
    outbox.handle_credit(credit_for(u64::from(number) + 1), Millis(0));
}

#[test]
fn a_batch_is_replayed_up_to_the_end_of_the_time_that_it_is_kept() {
    for (ended, replayed) in [(KEEP_MS, 1), (KEEP_MS + 1, 0)] {
        let mut outbox = keeping(PLENTY);
        confirm(&mut outbox, 0);
        outbox.handle_ended(Millis(ended));
        assert_eq!((outbox.counters().confirmed, outbox.counters().replayed), (1, replayed));
    }
}

#[test]
fn as_many_confirmed_batches_are_kept_as_may_be_in_flight() {
    let most = u32::try_from(MAX_UNCONFIRMED_BATCHES).expect("few");
    for (batches, replayed) in [(most - 1, most - 1), (most, most), (most + 1, most)] {
        let mut outbox = keeping(PLENTY);
        (0..batches).for_each(|number| confirm(&mut outbox, number));
        outbox.handle_ended(Millis(0));
        assert_eq!(outbox.counters().replayed, u64::from(replayed));
    }
}

#[test]
fn confirmed_batches_may_take_all_the_memory_that_others_leave() {
    for (memory, replayed) in [(300, 2), (299, 1)] {
        let mut outbox = keeping(memory);
        (0..2).for_each(|number| confirm(&mut outbox, number));
        outbox.push(bulk(2));
        outbox.handle_ended(Millis(0));
        assert_eq!(outbox.counters().replayed, replayed, "{memory}");
    }
}

/// An outbox with a stream that has sent three batches off the disk, of which the first is confirmed.
fn one_of_three_confirmed() -> Outbox<u32> {
    let mut outbox = spooled(3);
    outbox.set_replay_ms(KEEP_MS);
    outbox.handle_opened(DUE);
    assert_eq!(send_from_disk(&mut outbox, 3, DUE), [0, 1, 2]);
    outbox.handle_credit(credit_for(1), DUE);
    outbox
}

#[test]
fn what_is_read_and_sent_again_counts_as_confirmed_once() {
    let mut outbox = one_of_three_confirmed();
    assert_eq!(outbox.counters().confirmed, 1);
    // The second stream's end must not make it forget what it has confirmed before the first one's.
    for _ in 0..2 {
        outbox.handle_ended(DUE);
        outbox.handle_opened(DUE);
    }
    assert_eq!(send_from_disk(&mut outbox, 3, DUE), [0, 1, 2], "in the old order");
    outbox.handle_credit(credit_for(1), DUE);
    assert_eq!((outbox.counters().replayed, outbox.counters().confirmed, outbox.losses().sum()), (1, 1, 0));
    outbox.handle_credit(credit_for(3), DUE);
    assert_eq!(outbox.counters().confirmed, 3);
}

#[test]
fn a_file_is_kept_for_as_long_as_what_lies_in_it_may_be_replayed() {
    let mut outbox = one_of_three_confirmed();
    outbox.handle_credit(credit_for(3), DUE);
    assert_eq!(outbox.unconfirmed().disk_records, 3);
    assert_eq!((outbox.poll_op(DUE), outbox.poll_timeout(DUE)), (None, Some(DUE + KEEP_MS + 1)));
    assert_eq!(outbox.poll_op(DUE + KEEP_MS), None);
    assert_eq!(outbox.poll_op(DUE + KEEP_MS + 1), Some(Op::Delete(0)));
}

#[test]
fn what_is_kept_in_memory_alone_wakes_nobody() {
    let mut outbox = keeping(PLENTY);
    confirm(&mut outbox, 0);
    assert_eq!(outbox.poll_timeout(Millis(0)), None);
}

#[test]
fn a_stream_that_ends_in_order_frees_the_disk_at_once() {
    let mut outbox = one_of_three_confirmed();
    outbox.handle_completed(DUE);
    outbox.handle_ended(DUE);
    assert_eq!((outbox.counters().replayed, outbox.unconfirmed().disk_records), (0, 0));
    assert_eq!(outbox.poll_op(DUE), Some(Op::Delete(0)));
}

#[test]
fn a_double_that_is_dropped_while_it_is_written_settles_nothing_that_lies_before_it() {
    let mut outbox = with_spool(Bounds { memory: 300, spool: ENOUGH });
    outbox.set_replay_ms(KEEP_MS);
    outbox.handle_opened(Millis(0));
    confirm(&mut outbox, 0);
    outbox.handle_ended(Millis(0));
    outbox.push(batch(Kind::Urgent, 1, 100));
    let Some(Op::Append { place, batches }) = outbox.poll_op(DUE) else { panic!("both are written") };
    assert_eq!(batches.iter().map(|write| write.message).collect::<Vec<_>>(), [1, 0], "urgent ones go first");
    outbox.push(bulk(2));
    assert_eq!(outbox.make_room(false, DUE).doubles, 1);
    let ends = [place.offset + STORED, place.offset + 2 * STORED];
    outbox.handle_done(Done::Appended(ends.to_vec()), DUE);
    assert_eq!(outbox.unconfirmed().disk_records, 1);
    append(&mut outbox, DUE);
    assert_eq!(outbox.poll_op(DUE), None, "no mark says that the server has the first");
}

/// Sends a batch that only the answer to a PING confirms.
fn confirm_by_ping(outbox: &mut Outbox<u32>, number: u32) {
    outbox.push(bulk(number));
    assert_eq!(send(outbox, Millis(0)), Some(number));
    outbox.handle_ping(Millis(CONFIRM_GRACE_MS));
    outbox.handle_pong(Millis(CONFIRM_GRACE_MS));
}

#[test]
fn what_only_a_ping_has_confirmed_is_kept_for_minutes() {
    // A server that hangs answers PINGs, and dies without having read.
    for (ended, replayed) in [(CONFIRM_GRACE_MS + UNCREDITED_MS, 1), (CONFIRM_GRACE_MS + UNCREDITED_MS + 1, 0)] {
        let mut outbox = keeping(PLENTY);
        confirm_by_ping(&mut outbox, 0);
        assert_eq!(outbox.unconfirmed().memory_records, 0, "for people it is delivered");
        outbox.handle_ended(Millis(ended));
        assert_eq!((outbox.counters().confirmed, outbox.counters().replayed), (1, replayed));
        outbox.handle_opened(Millis(ended));
        assert_eq!(send(&mut outbox, Millis(ended)), (replayed == 1).then_some(0));
    }
}

#[test]
fn credit_ends_the_wait_of_what_a_ping_has_confirmed() {
    const CREDITED: u64 = 10_000;
    for (ended, replayed) in [(CREDITED + KEEP_MS, 1), (CREDITED + KEEP_MS + 1, 0)] {
        let mut outbox = keeping(PLENTY);
        confirm_by_ping(&mut outbox, 0);
        outbox.handle_credit(credit_for(1), Millis(CREDITED));
        outbox.handle_ended(Millis(ended));
        assert_eq!(outbox.counters().replayed, replayed);
    }
}

#[test]
fn an_end_in_order_leaves_nothing_that_waits_for_credit() {
    let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
    outbox.set_replay_ms(KEEP_MS);
    outbox.handle_opened(Millis(0));
    confirm_by_ping(&mut outbox, 0);
    outbox.handle_ended(Millis(CONFIRM_GRACE_MS));
    outbox.handle_opened(Millis(CONFIRM_GRACE_MS));
    assert_eq!(send(&mut outbox, Millis(CONFIRM_GRACE_MS)), Some(0));
    outbox.handle_completed(Millis(CONFIRM_GRACE_MS));
    outbox.handle_ended(Millis(CONFIRM_GRACE_MS));
    assert_eq!(outbox.counters().replayed, 1, "an end in order leaves nothing to replay");
}

#[test]
fn memory_goes_to_new_batches_before_those_that_wait_for_credit() {
    for (memory, replayed) in [(300, 1), (199, 0)] {
        let mut outbox = keeping(memory);
        confirm_by_ping(&mut outbox, 0);
        outbox.push(bulk(1));
        outbox.handle_ended(Millis(CONFIRM_GRACE_MS));
        assert_eq!(outbox.counters().replayed, replayed, "{memory}");
    }
}

#[test]
fn credit_for_the_beginning_of_a_batch_is_none_for_the_batch() {
    let end = credit_for(1);
    for (credit, replayed) in [(end - 1, 1), (end, 0)] {
        let mut outbox = keeping(PLENTY);
        confirm_by_ping(&mut outbox, 0);
        outbox.handle_credit(credit, Millis(CONFIRM_GRACE_MS));
        outbox.handle_ended(Millis(CONFIRM_GRACE_MS + KEEP_MS + 1));
        assert_eq!(outbox.counters().replayed, replayed);
    }
}

#[test]
fn what_waits_for_credit_does_not_come_behind_what_the_disk_holds() {
    let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
    outbox.set_replay_ms(KEEP_MS);
    outbox.handle_opened(Millis(0));
    confirm_by_ping(&mut outbox, 0);
    outbox.push(bulk(1));
    outbox.handle_ended(Millis(CONFIRM_GRACE_MS));
    // What was kept is replayed, and both go to the disk in their order.
    assert_eq!(outbox.counters().replayed, 1);
    let now = Millis(CONFIRM_GRACE_MS + SPOOL_AFTER_MS);
    let Some(Op::Append { batches, .. }) = outbox.poll_op(now) else { panic!("both are written") };
    assert_eq!(batches.iter().map(|write| write.message).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn what_waits_for_credit_is_not_sent_behind_newer_ones_on_the_disk() {
    let confirmed = DUE + CONFIRM_GRACE_MS;
    for (ended, replayed) in [(confirmed + KEEP_MS, 1), (confirmed + KEEP_MS + 1, 0)] {
        let mut outbox = spooled(3);
        outbox.set_replay_ms(KEEP_MS);
        outbox.handle_opened(DUE);
        outbox.push(batch(Kind::Urgent, 3, 100));
        assert_eq!(send(&mut outbox, DUE), Some(3), "it overtakes what lies on the disk");
        outbox.handle_ping(confirmed);
        outbox.handle_pong(confirmed);
        outbox.handle_ended(ended);
        assert_eq!((outbox.counters().confirmed, outbox.counters().replayed), (1, replayed));
    }
}

#[test]
fn a_disk_with_nothing_on_it_ends_no_wait_for_credit() {
    let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
    outbox.set_replay_ms(KEEP_MS);
    outbox.handle_opened(Millis(0));
    confirm_by_ping(&mut outbox, 0);
    outbox.handle_ended(Millis(CONFIRM_GRACE_MS + KEEP_MS + 1));
    assert_eq!(outbox.counters().replayed, 1);
}
