//! Batches that the server does not take.

use super::*;
use crate::limits::{CAREFUL_GAP_MS, CONFIRM_GRACE_MS, LEDGER_WAIT_MS, PROBE_AFTER_MS, REFUSALS, REPLAY_MS, TRIAL_MS};

/// When everything that has waited since the start is due to be written.
const DUE: Millis = Millis(SPOOL_AFTER_MS);

/// A batch with so much content, of several records.
fn large(kind: Kind, message: u32, content_bytes: u32) -> Batch<u32> {
    Batch::new(kind, message, 100, content_bytes, rows(4)).with_fingerprint(message)
}

/// Opens a stream, hands over all that waits, and lets the server end it because a message was too large.
fn refuse(outbox: &mut Outbox<u32>, batches: usize) {
    outbox.handle_opened(Millis(0));
    for _ in 0..batches {
        assert!(matches!(outbox.poll_send(Millis(0)), Some(Outgoing::Send(_))));
    }
    outbox.handle_broken(true, Millis(0));
    outbox.handle_ended(Millis(0));
}

#[test]
fn the_largest_batch_of_records_is_what_was_too_large() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.push(large(Kind::Bulk, 1, 1_000));
    outbox.push(large(Kind::Bulk, 2, 3_000));
    for _ in 0..REFUSALS {
        outbox.push(large(Kind::Heartbeat, 0, 9_000));
        refuse(&mut outbox, 3);
    }
    assert_eq!(outbox.content_limit(), 1_500);
}

#[test]
fn no_batch_is_too_large_that_was_the_largest_only_once_in_a_row() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.push(large(Kind::Bulk, 1, 1_000));
    refuse(&mut outbox, 1);
    outbox.push(large(Kind::Bulk, 2, 3_000));
    refuse(&mut outbox, 2);
    refuse(&mut outbox, 1);
    assert_eq!(outbox.content_limit(), u32::MAX);
    refuse(&mut outbox, 1);
    assert_eq!(outbox.content_limit(), 500, "that was twice in a row");
}

#[test]
fn a_batch_as_large_as_the_limit_is_sent_and_a_larger_one_is_cut() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.push(large(Kind::Bulk, 1, 1_000));
    (0..REFUSALS).for_each(|_| refuse(&mut outbox, 1));
    outbox.handle_opened(Millis(0));
    let Some(Outgoing::Cut { whole, limit }) = outbox.poll_send(Millis(0)) else { panic!("it is cut") };
    assert_eq!((whole.message(), limit), (Some(&1), 500));
    outbox.handle_cut(vec![large(Kind::Bulk, 2, 500), large(Kind::Bulk, 3, 501)], &[]);
    assert_eq!(outbox.poll_send(Millis(0)), Some(Outgoing::Send(2)));
    assert!(matches!(outbox.poll_send(Millis(0)), Some(Outgoing::Cut { limit: 500, .. })));
}

#[test]
fn what_is_left_of_a_batch_that_is_cut_tells_why_the_rest_is_lost() {
    let refused = rows(4)[0];
    for (rows, cause) in [(&[][..], Cause::SpoolDamaged), (&[refused][..], Cause::NoFields)] {
        let mut outbox = spooled(1);
        outbox.handle_opened(DUE);
        read(&mut outbox, DUE);
        outbox.handle_cut(vec![], rows);
        assert_eq!(outbox.losses().total(cause), outbox.losses().sum());
        assert_eq!(outbox.losses().sum(), rows.first().map_or(1, |row| row.records), "{cause:?}");
        assert_eq!((outbox.unconfirmed().batches, outbox.unconfirmed().disk_records), (0, 0));
        assert_eq!(outbox.poll_op(DUE), Some(Op::Delete(0)));
    }
}

#[test]
fn each_part_is_written_to_the_disk_on_its_own() {
    let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
    outbox.push(large(Kind::Bulk, 0, 1_000));
    outbox.handle_cut((1..=4).map(bulk).collect(), &[]);
    assert_eq!(append(&mut outbox, DUE).1, [1, 2, 3, 4]);
    let left = outbox.unconfirmed();
    assert_eq!((left.batches, left.memory_records, left.disk_records), (0, 0, 4));
}

#[test]
fn the_parts_of_an_urgent_batch_do_not_let_what_is_on_the_disk_overtake_what_was_read() {
    let mut outbox = spooled(2);
    outbox.handle_opened(DUE);
    assert_eq!(read(&mut outbox, DUE), 0);
    outbox.push(large(Kind::Urgent, 9, 1_000));
    outbox.handle_cut(vec![bulk(10), bulk(11)], &[]);
    assert_eq!(outbox.poll_op(DUE), None, "urgent parts wait, and what was read waits behind them");
    for message in [10, 11, 0] {
        assert_eq!(send(&mut outbox, DUE), Some(message));
    }
    assert_eq!(send_from_disk(&mut outbox, 1, DUE), [1]);
}

#[test]
fn the_parts_of_what_the_server_had_taken_once_are_no_loss() {
    let mut outbox = Outbox::new(Bounds { memory: 300, spool: 0 }, Millis(0));
    let mut whole = large(Kind::Bulk, 0, 1_000);
    whole.is_double = true;
    outbox.push(whole);
    outbox.handle_cut((1..=4).map(bulk).collect(), &[]);
    let shed = outbox.make_room(true, DUE);
    assert_eq!((shed.doubles, shed.lost, outbox.losses().sum()), (2, 0, 0));
}

#[test]
fn a_batch_on_the_disk_is_confirmed_there_with_its_last_part() {
    let mut outbox = spooled(2);
    outbox.handle_opened(DUE);
    let Some(Op::Read(place)) = outbox.poll_op(DUE) else { panic!("it is read") };
    outbox.handle_done(replay_of(&large(Kind::Bulk, 0, 1_000), place, 0), DUE);
    outbox.handle_cut((2..6).map(bulk).collect(), &[]);
    for part in 2..6 {
        assert_eq!(send(&mut outbox, DUE), Some(part));
    }
    assert_eq!(send_from_disk(&mut outbox, 1, DUE), [1], "one more is on its way");
    outbox.handle_credit(credit_for(3), DUE);
    assert_eq!((outbox.poll_op(DUE), outbox.unconfirmed().batches), (None, 2), "its last part is not confirmed");
    outbox.handle_credit(credit_for(4), DUE);
    assert_eq!(outbox.poll_op(DUE), Some(Op::Mark(Place { offset: place.offset + STORED, ..place })));
}

/// Lets two streams end over the oldest batch, and the third, a careful one, over what it was handed.
fn suspect(outbox: &mut Outbox<u32>, now: Millis) {
    for stream in 0..=REFUSALS {
        outbox.handle_opened(now);
        let later = now + if stream == REFUSALS { CAREFUL_GAP_MS } else { 0 };
        assert!(matches!(outbox.poll_send(later), Some(Outgoing::Send(_))));
        outbox.handle_broken(false, later);
        outbox.handle_ended(later);
    }
}

#[test]
fn a_server_that_is_behind_may_have_died_of_what_only_a_ping_has_confirmed() {
    for is_behind in [true, false] {
        let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
        outbox.set_replay_ms(REPLAY_MS);
        outbox.push(bulk(0));
        outbox.push(bulk(1));
        let mut now = Millis(0);
        for _ in 0..REFUSALS {
            outbox.handle_opened(now);
            assert_eq!(send(&mut outbox, now), Some(0));
            now = now + CONFIRM_GRACE_MS;
            assert_eq!(outbox.poll_send(now), Some(Outgoing::Send(1)));
            if !is_behind {
                outbox.handle_written(now);
            }
            outbox.handle_ping(now);
            outbox.handle_pong(now);
            assert_eq!(outbox.counters().confirmed, 1);
            outbox.handle_broken(false, now);
            outbox.handle_ended(now);
        }
        outbox.handle_opened(now);
        assert_eq!(send(&mut outbox, now), (!is_behind).then_some(0), "the stream is careful with it");
        assert_eq!(send(&mut outbox, now + CAREFUL_GAP_MS), Some(u32::from(!is_behind)));
    }
}

#[test]
fn a_suspect_whose_trial_is_due_goes_before_urgent_ones() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.push(bulk(0));
    suspect(&mut outbox, Millis(0));
    outbox.handle_opened(Millis(0));
    outbox.push(batch(Kind::Urgent, 1, 100));
    assert_eq!(send(&mut outbox, Millis(0)), Some(1), "others go before it until then");
    let due = Millis(PROBE_AFTER_MS.max(TRIAL_MS));
    outbox.push(batch(Kind::Urgent, 2, 100));
    assert_eq!(send(&mut outbox, due), Some(0));
    assert_eq!(send(&mut outbox, due), None, "a trial takes silence");
    assert_eq!(send(&mut outbox, due + TRIAL_MS), Some(2));
}

#[test]
fn a_heartbeat_waits_for_no_suspicion_and_at_the_end_without_a_spool_nothing_does() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.push(bulk(1));
    for _ in 0..REFUSALS {
        outbox.handle_opened(Millis(0));
        assert_eq!(outbox.poll_send(Millis(0)), Some(Outgoing::Send(1)));
        outbox.handle_broken(false, Millis(0));
        outbox.handle_ended(Millis(0));
    }
    outbox.handle_opened(Millis(0));
    assert_eq!(outbox.poll_send(Millis(0)), None, "the stream is careful");
    outbox.push(batch(Kind::Heartbeat, 0, 100));
    assert_eq!(outbox.poll_send(Millis(0)), Some(Outgoing::Send(0)));
    assert_eq!(outbox.poll_send(Millis(0)), None);
    outbox.handle_ending();
    assert_eq!(outbox.poll_send(Millis(0)), Some(Outgoing::Send(1)));
}

#[test]
fn a_suspect_does_not_hold_up_the_orderly_end() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.push(bulk(0));
    suspect(&mut outbox, Millis(0));
    assert!(!outbox.is_written_out());
    outbox.handle_ending();
    assert!(outbox.is_written_out(), "it is left where it is");
    outbox.push(bulk(1));
    assert!(!outbox.is_written_out());
}

#[test]
fn a_suspect_that_is_set_aside_keeps_no_file_and_is_passed_over_where_it_lies() {
    let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
    outbox.push(bulk(1));
    suspect(&mut outbox, Millis(0));
    outbox.push(bulk(0));
    outbox.handle_opened(Millis(0));
    assert_eq!(send(&mut outbox, Millis(0)), Some(0), "it goes before the suspect");
    outbox.handle_ended(Millis(0));
    outbox.push(bulk(2));
    assert_eq!(append(&mut outbox, DUE).1, [0, 1, 2]);
    for stream in 0..3 {
        outbox.handle_opened(DUE);
        assert_eq!(send_from_disk(&mut outbox, 1, DUE), [0]);
        assert_eq!((read(&mut outbox, DUE), read(&mut outbox, DUE), send(&mut outbox, DUE)), (1, 2, Some(2)));
        let left = outbox.unconfirmed();
        assert_eq!((left.batches, left.memory_records, left.disk_records), (3, 1, 2), "{stream}");
        outbox.handle_ended(DUE);
    }
}

#[test]
fn the_parts_of_a_suspect_keep_no_file() {
    let mut outbox = with_spool(Bounds { memory: 100, spool: ENOUGH });
    let whole = large(Kind::Bulk, 1, 1_000);
    outbox.push(whole.clone());
    suspect(&mut outbox, Millis(0));
    let (place, _) = append(&mut outbox, DUE);
    outbox.push(bulk(0));
    outbox.handle_opened(DUE);
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Read(_))));
    // Memory is full, so that the disk goes on keeping it until its turn comes.
    outbox.handle_done(replay_of(&whole, place, 0), DUE);
    assert_eq!((outbox.unconfirmed().memory_records, outbox.unconfirmed().disk_records), (1, 4));
    assert!(matches!(outbox.poll_send(DUE + PROBE_AFTER_MS), Some(Outgoing::Cut { limit: 250, .. })));
    outbox.handle_cut((2..6).map(bulk).collect(), &[]);
    assert_eq!((outbox.unconfirmed().memory_records, outbox.unconfirmed().disk_records), (5, 0));
}

#[test]
fn a_suspect_that_nobody_waits_behind_stays_on_the_disk() {
    let mut outbox = with_spool(Bounds { memory: 100, spool: ENOUGH });
    outbox.push(bulk(0));
    suspect(&mut outbox, Millis(0));
    append(&mut outbox, DUE);
    outbox.handle_opened(DUE);
    outbox.push(batch(Kind::Urgent, 1, 100));
    assert_eq!(send(&mut outbox, DUE), Some(1), "it fills the memory");
    assert_eq!(read(&mut outbox, DUE), 0);
    assert_eq!((outbox.poll_send(DUE), outbox.unconfirmed().disk_records), (None, 1), "it waits for its trial");
    outbox.push(batch(Kind::Bulk, 2, 100));
    assert_eq!((send(&mut outbox, DUE), outbox.unconfirmed().disk_records), (Some(2), 0), "it is set aside");
}

#[test]
fn streams_that_end_over_the_same_batch_do_so_whatever_heartbeat_leaves_before_it() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.push(bulk(1));
    for stream in 0..REFUSALS {
        outbox.push(batch(Kind::Heartbeat, 10 + stream, 100));
        outbox.handle_opened(Millis(0));
        assert_eq!(outbox.poll_send(Millis(0)), Some(Outgoing::Send(10 + stream)));
        assert_eq!(outbox.poll_send(Millis(0)), Some(Outgoing::Send(1)));
        outbox.handle_broken(false, Millis(0));
        outbox.handle_ended(Millis(0));
    }
    outbox.handle_opened(Millis(0));
    assert_eq!(outbox.poll_send(Millis(0)), None, "the stream is careful");
}

#[test]
fn a_suspect_in_memory_is_written_only_without_a_stream() {
    let mut outbox = with_spool(Bounds { memory: 100, spool: ENOUGH });
    outbox.push(bulk(0));
    suspect(&mut outbox, Millis(0));
    outbox.handle_opened(Millis(0));
    outbox.push(batch(Kind::Bulk, 1, 100));
    assert_eq!(send(&mut outbox, Millis(0)), Some(1), "the suspect is set aside");
    assert_eq!(outbox.poll_op(Millis(0)), None, "memory is full since now");
    let Some(Op::Append { batches, .. }) = outbox.poll_op(Millis(LEDGER_WAIT_MS)) else { panic!("it is written") };
    assert_eq!(
        batches.iter().map(|write| write.message).collect::<Vec<_>>(),
        [1],
        "the suspect would be read again at once"
    );
    outbox.handle_done(Done::Appended(vec![SEGMENT_HEAD_BYTES as u64 + STORED]), DUE);
    outbox.handle_ended(DUE);
    assert_eq!(append(&mut outbox, Millis(2 * DUE.0)).1, [0]);
}

#[test]
fn a_suspect_that_outlives_its_trial_is_not_written_behind_what_was_not_sent() {
    let mut outbox = with_spool(Bounds { memory: 100, spool: ENOUGH });
    outbox.push(bulk(2));
    suspect(&mut outbox, Millis(0));
    outbox.handle_opened(Millis(0));
    let trial = Millis(PROBE_AFTER_MS.max(TRIAL_MS));
    assert_eq!(send(&mut outbox, trial), Some(2));
    outbox.push(bulk(0));
    outbox.push(bulk(1));
    assert_eq!(outbox.poll_op(trial), None, "memory is full since now");
    let later = trial + LEDGER_WAIT_MS.max(TRIAL_MS);
    assert_eq!(append(&mut outbox, later).1, [0, 1]);
    assert_eq!((outbox.poll_send(later), outbox.suspects.is_empty()), (None, true), "it is acquitted");
    assert_eq!(read(&mut outbox, later), 0);
    assert_eq!(outbox.poll_op(later), None, "what is confirmed there settles all that lies before it");
    outbox.handle_credit(credit_for(1), later);
    assert_eq!(send(&mut outbox, later), Some(0));
    assert_eq!((read(&mut outbox, later), send(&mut outbox, later)), (1, Some(1)));
}
