//! Which operation on the files comes next, and what its outcome means.

use super::*;
use crate::delivery::spool::{Failed, Found};
use crate::limits::{LEDGER_WAIT_MS, SPOOL_RETRY_MS, SPOOL_WRITE_BYTES};

/// When everything that has waited since the start is due to be written.
const DUE: Millis = Millis(SPOOL_AFTER_MS);

fn fail(outbox: &mut Outbox<u32>, failed: Failed, now: Millis) {
    outbox.handle_done(Done::Failed(failed), now);
}

fn sync(outbox: &mut Outbox<u32>, now: Millis) {
    assert_eq!(outbox.poll_op(now), Some(Op::Sync));
    outbox.handle_done(Done::Synced, now);
}

#[test]
fn the_oldest_segment_goes_when_a_new_limit_leaves_it_no_room() {
    let mut outbox = spooled(1);
    let kept = outbox.unconfirmed().disk_bytes;
    for enough in [kept + 1, kept, 0] {
        outbox.set_spool_bytes(enough);
        assert_eq!(outbox.poll_op(DUE), None, "{enough} bytes are enough, and 0 says nothing");
    }
    outbox.set_spool_bytes(kept - 1);
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Drop(_))));
}

#[test]
fn a_limit_that_is_set_before_the_files_are_looked_at_counts_for_them() {
    let found = Found { number: 0, mark: 24, end: 2_000, first_record: 0, end_record: 5 };
    for (limit, is_dropped) in [(1_999, true), (2_000, false), (0, false)] {
        let mut outbox = Outbox::<u32>::new(Bounds { memory: PLENTY, spool: ENOUGH }, Millis(0));
        outbox.set_spool_bytes(limit);
        assert_eq!(outbox.poll_op(Millis(0)), Some(Op::Open));
        outbox.handle_done(Done::Opened(vec![found]), Millis(0));
        assert_eq!(matches!(outbox.poll_op(Millis(0)), Some(Op::Drop(_))), is_dropped, "{limit}");
    }
}

#[test]
fn a_limit_that_is_set_while_the_spool_rests_counts_once_it_is_tried_again() {
    let mut outbox = spooled(1);
    outbox.handle_opened(DUE);
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Read(_))));
    fail(&mut outbox, Failed::Broken, DUE);
    outbox.handle_ended(DUE);
    outbox.set_spool_bytes(0);
    outbox.set_spool_bytes(10_000);
    outbox.push(batch(Kind::Bulk, 1, 10_000));
    let later = DUE + SPOOL_RETRY_MS;
    sync(&mut outbox, later);
    assert_eq!(outbox.poll_op(later), None, "there is no room for ten thousand bytes more");
    outbox.set_spool_bytes(ENOUGH);
    assert_eq!(append(&mut outbox, later).1, [1]);
}

#[test]
fn files_that_failed_are_left_alone_for_a_while_and_then_tried_again() {
    let mut outbox = Outbox::<u32>::new(Bounds { memory: PLENTY, spool: ENOUGH }, Millis(0));
    assert_eq!(outbox.poll_op(Millis(0)), Some(Op::Open));
    fail(&mut outbox, Failed::Broken, Millis(0));
    assert_eq!(outbox.poll_timeout(Millis(0)), Some(Millis(SPOOL_RETRY_MS)));
    assert_eq!(outbox.poll_op(Millis(SPOOL_RETRY_MS - 1)), None);
    assert_eq!(outbox.poll_op(Millis(SPOOL_RETRY_MS)), Some(Op::Open));

    let mut outbox = spooled(1);
    outbox.handle_opened(DUE);
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Read(_))));
    fail(&mut outbox, Failed::Broken, DUE);
    assert_eq!(outbox.poll_timeout(DUE), Some(DUE + SPOOL_RETRY_MS));
    assert_eq!(outbox.poll_op(Millis(SPOOL_AFTER_MS + SPOOL_RETRY_MS - 1)), None);
    sync(&mut outbox, DUE + SPOOL_RETRY_MS);
    assert!(matches!(outbox.poll_op(DUE + SPOOL_RETRY_MS), Some(Op::Read(_))));
}

#[test]
fn a_full_disk_is_written_to_again_after_a_while_and_not_before() {
    let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
    outbox.push(bulk(0));
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Append { .. })));
    fail(&mut outbox, Failed::Full, DUE);
    let early = Millis(SPOOL_AFTER_MS + SPOOL_RETRY_MS - 1);
    assert_eq!((outbox.poll_op(DUE), outbox.poll_op(early), outbox.poll_op(early)), (None, None, None));
    assert_eq!(outbox.poll_timeout(early), Some(DUE + SPOOL_RETRY_MS));
    assert_eq!(append(&mut outbox, DUE + SPOOL_RETRY_MS).1, [0]);
}

#[test]
fn one_write_takes_as_many_batches_as_its_bound_allows_and_at_least_one() {
    for (more, written) in [(0, vec![0, 1]), (1, vec![0])] {
        let mut outbox = with_spool(Bounds { memory: 4 * SPOOL_WRITE_BYTES, spool: ENOUGH });
        let head = bulk(0).stored_bytes() - 100;
        let [half, rest] = [SPOOL_WRITE_BYTES / 2 - head, SPOOL_WRITE_BYTES.div_ceil(2) - head + more];
        outbox.push(batch(Kind::Bulk, 0, half));
        outbox.push(batch(Kind::Bulk, 1, rest));
        assert_eq!(append(&mut outbox, DUE).1, written);
    }
    let mut outbox = with_spool(Bounds { memory: 4 * SPOOL_WRITE_BYTES, spool: ENOUGH });
    outbox.push(batch(Kind::Bulk, 0, SPOOL_WRITE_BYTES));
    assert_eq!(append(&mut outbox, DUE).1, [0]);
}

#[test]
fn a_live_stream_that_confirms_nothing_has_all_written_out_but_what_is_urgent_and_sent() {
    let mut outbox = with_spool(Bounds { memory: 450, spool: ENOUGH });
    outbox.handle_opened(Millis(0));
    outbox.push(batch(Kind::Urgent, 0, 100));
    outbox.push(batch(Kind::Bulk, 1, 100));
    assert_eq!((send(&mut outbox, Millis(0)), send(&mut outbox, Millis(0))), (Some(0), Some(1)));
    outbox.push(batch(Kind::Bulk, 2, 100));
    outbox.push(batch(Kind::Urgent, 3, 100));
    assert_eq!(outbox.poll_op(Millis(10)), None, "memory has been full for no time");
    assert_eq!(outbox.poll_op(Millis(9 + LEDGER_WAIT_MS)), None);
    assert_eq!(append(&mut outbox, Millis(10 + LEDGER_WAIT_MS)).1, [1, 3, 2]);
}

/// An outbox that writes two batches of a live stream to the disk.
fn writing_what_was_sent() -> (Outbox<u32>, Millis) {
    let mut outbox = with_spool(Bounds { memory: 200, spool: ENOUGH });
    outbox.handle_opened(Millis(0));
    outbox.push(bulk(0));
    outbox.push(bulk(1));
    assert_eq!((send(&mut outbox, Millis(0)), send(&mut outbox, Millis(0))), (Some(0), Some(1)));
    assert_eq!(outbox.poll_op(Millis(0)), None);
    (outbox, Millis(LEDGER_WAIT_MS))
}

#[test]
fn what_was_sent_before_it_was_written_is_not_read_and_sent_twice() {
    let (mut outbox, now) = writing_what_was_sent();
    append(&mut outbox, now);
    assert_eq!(outbox.unconfirmed(), Unconfirmed { batches: 2, ..spooled(2).unconfirmed() });
    assert_eq!(outbox.poll_op(now), None, "it is on its way");
    outbox.handle_ended(now);
    outbox.handle_opened(now);
    assert!(matches!(outbox.poll_op(now), Some(Op::Read(_))), "now it is not");
}

#[test]
fn what_is_confirmed_while_it_is_written_is_deleted_at_once() {
    let (mut outbox, now) = writing_what_was_sent();
    let Some(Op::Append { place, .. }) = outbox.poll_op(now) else { panic!("it is written") };
    outbox.handle_credit(credit_for(2), now);
    outbox.handle_done(Done::Appended(vec![place.offset + STORED, place.offset + 2 * STORED]), now);
    assert_eq!(outbox.unconfirmed().disk_records, 0);
    assert_eq!(outbox.poll_op(now), Some(Op::Delete(place.segment)));
}

#[test]
fn what_is_confirmed_while_it_is_written_is_marked_so_that_a_crash_does_not_send_it_again() {
    let (mut outbox, now) = writing_what_was_sent();
    let Some(Op::Append { place, .. }) = outbox.poll_op(now) else { panic!("both are written") };
    outbox.handle_credit(credit_for(1), now);
    let [first, second] = [1, 2].map(|number| place.offset + number * STORED);
    outbox.handle_done(Done::Appended(vec![first, second]), now);
    assert_eq!(outbox.unconfirmed().disk_records, 1);
    assert_eq!(outbox.poll_op(now), Some(Op::Mark(Place { offset: first, ..place })));
}

#[test]
fn what_plugins_may_not_send_is_taken_out_of_a_batch_that_is_read() {
    let with = |source, data_type| {
        let row = Row { source, data_type, records: 1, first: 1, last: 2 };
        Batch::new(Kind::Bulk, 0, 100, 100, [row].into())
    };
    for (read, is_cut) in
        [(with(Source::OTHER, 2001), true), (with(Source::AGENT, 2001), false), (with(Source::OTHER, 59), false)]
    {
        let mut outbox = spooled(1);
        outbox.handle_opened(DUE);
        let Some(Op::Read(place)) = outbox.poll_op(DUE) else { panic!("it is read") };
        outbox.handle_done(replay_of(&read, place, 0), DUE);
        let is_asked = matches!(outbox.poll_send(DUE), Some(Outgoing::Cut { limit, .. }) if limit == u32::MAX as usize);
        assert_eq!(is_asked, is_cut, "{read:?}");
    }
}

#[test]
fn of_files_that_vanish_only_what_was_not_sent_is_missing() {
    let mut outbox = spooled(3);
    outbox.set_replay_ms(1_000);
    outbox.handle_opened(DUE);
    assert_eq!(send_from_disk(&mut outbox, 2, DUE), [0, 1]);
    outbox.handle_credit(credit_for(1), DUE);
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Read(_))));
    fail(&mut outbox, Failed::Vanished, DUE);
    // One is confirmed, one is on its way.
    assert_eq!(outbox.losses().total(Cause::SpoolDamaged), 2);
    assert_eq!(outbox.poll_op(DUE), Some(Op::Open), "there may be others");
    outbox.handle_done(Done::Opened(vec![]), DUE);
    outbox.handle_ended(DUE);
    assert_eq!((outbox.counters().replayed, outbox.losses().total(Cause::Unconfirmed)), (0, 1));
}

#[test]
fn a_file_that_must_go_and_cannot_be_deleted_is_done_without() {
    let mut outbox = spooled(2);
    outbox.set_spool_bytes(outbox.unconfirmed().disk_bytes - 1);
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Drop(_))));
    fail(&mut outbox, Failed::Broken, DUE);
    assert_eq!((outbox.losses().total(Cause::SpoolDamaged), outbox.unconfirmed().disk_files), (2, 0));
    assert_eq!((outbox.poll_op(DUE), outbox.poll_timeout(DUE)), (None, None), "nothing rests");
}

#[test]
fn a_file_that_should_go_for_new_records_and_cannot_be_deleted_is_kept() {
    let mut outbox = spooled(2);
    outbox.set_spool_bytes(outbox.unconfirmed().disk_bytes);
    outbox.handle_ending();
    outbox.push(bulk(2));
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Drop(_))));
    fail(&mut outbox, Failed::Broken, DUE);
    assert_eq!((outbox.losses().sum(), outbox.unconfirmed().disk_files), (0, 1));
    assert_eq!((outbox.poll_op(DUE), outbox.poll_timeout(DUE)), (None, Some(DUE + SPOOL_RETRY_MS)));
}

#[test]
fn what_is_read_after_its_stream_has_ended_is_read_again_for_the_next_one() {
    let mut outbox = spooled(1);
    outbox.handle_opened(DUE);
    let Some(Op::Read(place)) = outbox.poll_op(DUE) else { panic!("it is read") };
    outbox.handle_ended(DUE);
    outbox.handle_done(replay_of(&bulk(0), place, 0), DUE);
    assert_eq!((outbox.unconfirmed().batches, outbox.poll_op(DUE)), (0, None));
    outbox.handle_opened(DUE);
    assert_eq!(send_from_disk(&mut outbox, 1, DUE), [0]);
}

#[test]
fn what_is_on_its_way_when_its_file_goes_is_lost_only_if_the_stream_breaks() {
    for (is_taken, unconfirmed) in [(true, 0), (false, 1)] {
        let mut outbox = spooled(2);
        outbox.handle_opened(DUE);
        assert_eq!(send_from_disk(&mut outbox, 1, DUE), [0]);
        outbox.set_spool_bytes(1);
        assert!(matches!(outbox.poll_op(DUE), Some(Op::Drop(_))));
        outbox.handle_done(Done::Dropped(bulk(1).rows().into()), DUE);
        assert_eq!((outbox.unconfirmed().disk_records, outbox.unconfirmed().memory_records), (0, 1));
        if is_taken {
            outbox.handle_credit(credit_for(1), DUE);
        }
        outbox.handle_ended(DUE);
        let losses = outbox.losses();
        assert_eq!((losses.total(Cause::SpoolFull), losses.total(Cause::Unconfirmed)), (1, unconfirmed));
    }
}
