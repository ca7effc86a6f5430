//! When there is room, and when the agent may end.

use super::*;
use crate::delivery::spool::Failed;
use crate::limits::{CONFIRM_GRACE_MS, LEDGER_WAIT_MS, MAX_UNCONFIRMED_BATCHES, PING_INTERVAL_MS, SPOOL_RETRY_MS};

/// When everything that has waited since the start is due to be written.
const DUE: Millis = Millis(SPOOL_AFTER_MS);

/// When a disk that was full then is written to again.
const RETRY: Millis = Millis(SPOOL_AFTER_MS + SPOOL_RETRY_MS);

/// Lets the disk be full at [`DUE`].
fn fill_disk(outbox: &mut Outbox<u32>) {
    assert!(matches!(outbox.poll_op(DUE), Some(Op::Append { .. })));
    assert!(!outbox.is_safe(DUE), "it is being written");
    outbox.handle_done(Done::Failed(Failed::Full), DUE);
}

#[test]
fn the_agent_may_end_when_all_is_on_the_disk_or_nothing_can_be_written() {
    let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
    assert!(outbox.is_safe(DUE));
    outbox.push(bulk(0));
    assert!(!outbox.is_safe(DUE), "it is to be written first");
    fill_disk(&mut outbox);
    assert!(outbox.is_safe(DUE) && outbox.is_safe(Millis(RETRY.0 - 1)), "nothing can be done about it");
    assert!(!outbox.is_safe(RETRY), "it can be tried again");
    append(&mut outbox, RETRY);
    assert!(outbox.is_safe(RETRY));
    outbox.push(bulk(1));
    assert!(matches!(outbox.poll_op(RETRY), Some(Op::Append { .. })));
    outbox.handle_done(Done::Failed(Failed::Full), RETRY);
    assert!(!outbox.is_safe(RETRY), "what lies there can be dropped for it");
}

#[test]
fn the_agent_may_end_without_a_spool() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.push(bulk(0));
    assert!(outbox.is_safe(Millis(0)));
    let unopened = Outbox::<u32>::new(Bounds { memory: PLENTY, spool: ENOUGH }, Millis(0));
    assert!(unopened.is_safe(Millis(0)), "there is nothing to write");
}

#[test]
fn plugins_wait_only_without_a_stream_while_neither_memory_nor_disk_has_room() {
    let mut outbox = Outbox::new(Bounds { memory: 100, spool: 0 }, Millis(0));
    assert!(!outbox.is_full(Millis(0)), "memory has room");
    outbox.push(bulk(0));
    assert!(outbox.is_full(Millis(0)));
    outbox.handle_opened(Millis(0));
    assert!(!outbox.is_full(Millis(0)), "the stream makes room");

    let mut outbox = Outbox::new(Bounds { memory: 100, spool: ENOUGH }, Millis(0));
    outbox.push(bulk(0));
    assert!(!outbox.is_full(DUE), "nobody has looked at the files");
    assert_eq!(outbox.poll_op(DUE), Some(Op::Open));
    outbox.handle_done(Done::Opened(vec![]), DUE);
    assert!(!outbox.is_full(DUE), "it can be written");
    fill_disk(&mut outbox);
    assert!(outbox.is_full(DUE) && outbox.is_full(Millis(RETRY.0 - 1)));
    assert!(!outbox.is_full(RETRY), "it can be written again");
    assert!(matches!(outbox.poll_op(RETRY), Some(Op::Append { .. })));
    outbox.handle_done(Done::Failed(Failed::Broken), RETRY);
    assert!(outbox.is_full(RETRY), "the disk rests");
}

#[test]
fn nothing_is_lost_for_new_records_while_the_disk_takes_them_and_the_oldest_once_it_does_not() {
    let mut outbox = with_spool(Bounds { memory: 250, spool: ENOUGH });
    (0..3).for_each(|message| outbox.push(bulk(message)));
    assert_eq!(outbox.make_room(true, DUE), Shed::default());
    fill_disk(&mut outbox);
    assert_eq!(outbox.make_room(true, DUE), Shed { lost: 1, ..Shed::default() });
    outbox.push(bulk(3));
    assert_eq!(outbox.make_room(true, RETRY), Shed::default(), "the disk may take them again");
}

#[test]
fn a_live_stream_lets_nothing_go_that_the_disk_can_keep() {
    for (spool, let_go) in [(ENOUGH, 0), (0, 1)] {
        let mut outbox = if spool > 0 {
            with_spool(Bounds { memory: 200, spool })
        } else {
            Outbox::new(Bounds { memory: 200, spool }, Millis(0))
        };
        outbox.handle_opened(Millis(0));
        (0..2).for_each(|message| outbox.push(bulk(message)));
        assert_eq!((send(&mut outbox, Millis(0)), send(&mut outbox, Millis(0))), (Some(0), Some(1)));
        assert_eq!(outbox.make_room(true, Millis(0)), Shed::default());
        assert_eq!(outbox.make_room(true, Millis(LEDGER_WAIT_MS)), Shed { let_go, ..Shed::default() });
    }
}

#[test]
fn a_live_stream_lets_nothing_go_when_batches_are_too_many_and_memory_is_not_short() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.handle_opened(Millis(0));
    for message in 0..u32::try_from(MAX_UNCONFIRMED_BATCHES).expect("few") {
        outbox.push(bulk(message));
        assert_eq!(send(&mut outbox, Millis(0)), Some(message));
    }
    assert_eq!(outbox.make_room(true, Millis(0)), Shed::default());
    assert_eq!(outbox.make_room(true, Millis(LEDGER_WAIT_MS)), Shed::default(), "it would make no room");
    outbox.handle_credit(credit_for(1), Millis(LEDGER_WAIT_MS));
    assert!(outbox.has_room(), "a confirmation does");
    outbox.handle_ended(Millis(LEDGER_WAIT_MS));
    assert_eq!(outbox.losses().sum(), 0, "all are sent again");
}

#[test]
fn a_server_that_finds_pings_too_frequent_gets_them_half_as_often() {
    let mut outbox = Outbox::new(Bounds { memory: PLENTY, spool: 0 }, Millis(0));
    outbox.handle_opened(Millis(0));
    outbox.handle_too_many_pings();
    outbox.push(bulk(0));
    assert_eq!(send(&mut outbox, Millis(0)), Some(0));
    assert!(!outbox.wants_ping(Millis(CONFIRM_GRACE_MS - 1)) && outbox.wants_ping(Millis(CONFIRM_GRACE_MS)));
    outbox.handle_ping(Millis(0));
    outbox.handle_pong(Millis(1));
    assert!(!outbox.wants_ping(Millis(2 * PING_INTERVAL_MS - 1)) && outbox.wants_ping(Millis(2 * PING_INTERVAL_MS)));
}

#[test]
fn a_heartbeat_and_what_the_disk_keeps_are_no_records_in_memory() {
    let mut outbox = spooled(1);
    outbox.push(bulk(1));
    outbox.handle_opened(DUE);
    assert_eq!(read(&mut outbox, DUE), 0);
    outbox.push(batch(Kind::Heartbeat, 7, 100));
    let left = outbox.unconfirmed();
    assert_eq!((left.batches, left.memory_records, left.disk_records), (3, 1, 1));
}

#[test]
fn an_agent_that_ends_tries_a_disk_that_has_failed_once_more() {
    for failed in [Failed::Full, Failed::Broken] {
        let mut outbox = with_spool(Bounds { memory: PLENTY, spool: ENOUGH });
        outbox.push(bulk(0));
        assert!(matches!(outbox.poll_op(DUE), Some(Op::Append { .. })));
        outbox.handle_done(Done::Failed(failed), DUE);
        assert!(outbox.is_safe(DUE), "nothing can be done about it");
        outbox.handle_ending();
        assert!(!outbox.is_safe(DUE), "it is to be tried");
        assert!(matches!(outbox.poll_op(DUE), Some(Op::Append { .. })));
        outbox.handle_done(Done::Failed(failed), DUE);
        outbox.handle_ending();
        assert!(outbox.is_safe(DUE), "but once");
    }
    let mut outbox = Outbox::<u32>::new(Bounds { memory: PLENTY, spool: ENOUGH }, Millis(0));
    assert_eq!(outbox.poll_op(Millis(0)), Some(Op::Open));
    outbox.handle_done(Done::Failed(Failed::Broken), Millis(0));
    assert_eq!(outbox.poll_op(Millis(0)), None);
    outbox.handle_ending();
    assert_eq!(outbox.poll_op(Millis(0)), Some(Op::Open), "and a directory that could not be opened");
}
