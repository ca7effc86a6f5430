//! What is shed when the outbox is full, and the outbox's answers about what it holds.

use alloc::vec;

use super::{batch, of_records};
use crate::delivery::losses::Cause;
use crate::delivery::spool::{Done, Op};
use crate::delivery::{Bounds, Kind, Outbox, Shed};
use crate::limits::{LEDGER_WAIT_MS, SPOOL_AFTER_MS};
use crate::time::Millis;

#[test]
fn without_a_stream_or_a_disk_the_oldest_go_where_that_is_allowed() {
    let mut outbox = Outbox::new(Bounds { memory: 1_000, spool: 0 }, Millis(0));
    [2, 3, 4, 5].into_iter().for_each(|records| outbox.push(of_records(records)));
    assert!(!outbox.has_room());
    assert_eq!(outbox.make_room(false, Millis(0)), Shed::default());
    assert_eq!(outbox.make_room(true, Millis(0)), Shed { lost: 5, ..Shed::default() });
    assert!(outbox.has_room());
    assert_eq!((outbox.losses().total(Cause::MemoryFull), outbox.unconfirmed().memory_records), (5, 9));
    assert_eq!(outbox.make_room(true, Millis(0)), Shed::default(), "there is room");

    outbox.push(of_records(6));
    outbox.handle_ending();
    assert_eq!(outbox.make_room(false, Millis(0)), Shed { lost: 4, ..Shed::default() }, "at the end there is no later");
}

#[test]
fn on_a_live_stream_without_a_disk_what_was_written_is_let_go_when_it_has_been_full_for_long() {
    let mut outbox = Outbox::new(Bounds { memory: 1_000, spool: 0 }, Millis(0));
    outbox.handle_opened(Millis(0));
    for records in [2, 3, 4, 5] {
        outbox.push(of_records(records));
        assert!(outbox.poll_send(Millis(0)).is_some());
        outbox.handle_written(Millis(0));
    }
    let counters = outbox.counters();
    assert_eq!((counters.sent, counters.sent_bytes), (14, 1_600));
    assert_eq!(outbox.make_room(true, Millis(10)), Shed::default(), "the server may take it any moment");
    assert_eq!(outbox.make_room(true, Millis(9 + LEDGER_WAIT_MS)), Shed::default());
    // 400 bytes are kept free for a batch like the largest, but no more than an eighth of the memory.
    assert_eq!(outbox.make_room(true, Millis(10 + LEDGER_WAIT_MS)), Shed { let_go: 5, ..Shed::default() });
    assert_eq!((outbox.counters().let_go, outbox.losses().sum(), outbox.has_room()), (5, 0, true));
}

#[test]
fn doubles_go_before_anything_is_lost() {
    let mut outbox = Outbox::new(Bounds { memory: 1_000, spool: 0 }, Millis(0));
    for is_double in [false, true, true, false, false] {
        let mut batch = of_records(7);
        batch.is_double = is_double;
        outbox.push(batch);
    }
    assert_eq!(outbox.make_room(true, Millis(0)), Shed { doubles: 2, lost: 7, let_go: 0 });
    assert_eq!(outbox.unconfirmed().memory_records, 14);
}

#[test]
fn a_disk_that_takes_more_has_nothing_let_go() {
    let mut outbox = Outbox::new(Bounds { memory: 1_000, spool: 64 << 20 }, Millis(0));
    assert_eq!(outbox.poll_op(Millis(0)), Some(Op::Open));
    outbox.handle_done(Done::Opened(vec![]), Millis(0));
    (0..4).for_each(|_| outbox.push(of_records(1)));
    assert_eq!(outbox.make_room(true, Millis(0)), Shed::default());
    outbox.handle_opened(Millis(0));
    assert_eq!(outbox.make_room(true, Millis(0)), Shed::default());
    assert_eq!(outbox.make_room(true, Millis(60_000)), Shed::default());
}

#[test]
fn new_records_queue_behind_what_waits_in_memory_or_may_lie_on_the_disk() {
    let mut without_spool = Outbox::new(Bounds { memory: 1_000, spool: 0 }, Millis(0));
    assert!(!without_spool.has_backlog());
    without_spool.push(of_records(1));
    assert!(without_spool.has_backlog());

    let mut unopened = Outbox::<u32>::new(Bounds { memory: 1_000, spool: 1 << 20 }, Millis(0));
    assert!(unopened.has_backlog(), "nobody has looked at the files");
    assert_eq!(unopened.poll_op(Millis(0)), Some(Op::Open));
    unopened.handle_done(Done::Opened(vec![]), Millis(0));
    assert!(!unopened.has_backlog());
}

#[test]
fn the_credit_that_would_make_room_is_known_while_there_is_none() {
    let mut outbox = Outbox::new(Bounds { memory: 1_000, spool: 0 }, Millis(0));
    outbox.handle_opened(Millis(0));
    for _ in 0..3 {
        outbox.push(of_records(1));
        assert!(outbox.poll_send(Millis(0)).is_some());
        outbox.handle_written(Millis(0));
    }
    assert_eq!(outbox.wanted_credit(), None, "nobody has asked for room");
    assert_eq!(outbox.make_room(false, Millis(0)), Shed::default());
    let wanted = outbox.wanted_credit().expect("it is full");
    assert_eq!(wanted, 400 + 400 + 1);
    outbox.handle_credit(wanted - 1, Millis(1));
    assert!(!outbox.has_room());
    outbox.handle_credit(wanted, Millis(1));
    assert_eq!((outbox.has_room(), outbox.wanted_credit()), (true, None));
}

#[test]
fn everything_is_written_out_when_nothing_waits_and_nothing_is_being_written() {
    let mut outbox = Outbox::new(Bounds { memory: 10_000, spool: 0 }, Millis(0));
    assert!(outbox.is_written_out());
    outbox.push(of_records(1));
    assert!(!outbox.is_written_out(), "it waits");
    outbox.handle_ending();
    assert!(!outbox.is_written_out(), "it waits at the end too");
    outbox.handle_opened(Millis(0));
    assert!(outbox.poll_send(Millis(0)).is_some());
    assert!(!outbox.is_written_out(), "it is being written");
    outbox.handle_written(Millis(0));
    assert!(outbox.is_written_out());
    let unopened = Outbox::<u32>::new(Bounds { memory: 10_000, spool: 1 << 20 }, Millis(0));
    assert!(!unopened.is_written_out(), "nobody has looked at the files");
}

#[test]
fn what_a_broken_stream_leaves_is_counted_without_heartbeats() {
    let mut outbox = Outbox::new(Bounds { memory: 10_000, spool: 0 }, Millis(0));
    outbox.handle_opened(Millis(0));
    outbox.push(of_records(3));
    outbox.push(batch(Kind::Heartbeat, 0, 100));
    outbox.push(of_records(5));
    assert!(outbox.poll_send(Millis(0)).is_some() && outbox.poll_send(Millis(0)).is_some());
    outbox.handle_ended(Millis(1));
    assert_eq!((outbox.counters().again, outbox.unconfirmed().memory_records), (3, 8));
}

#[test]
fn without_a_stream_only_what_lies_in_memory_wakes_the_agent() {
    let mut outbox = Outbox::new(Bounds { memory: 10_000, spool: 0 }, Millis(7));
    assert_eq!(outbox.poll_timeout(Millis(7)), None);
    outbox.push(of_records(1));
    assert_eq!(outbox.poll_timeout(Millis(7)), Some(Millis(7 + SPOOL_AFTER_MS)));
    assert_eq!(outbox.poll_timeout(Millis(7 + SPOOL_AFTER_MS)), None, "it is past");
}
