//! What lies on the disk, what is in memory, and in which order batches leave.

use alloc::vec::Vec;

use crate::delivery::losses::Cause;
use crate::delivery::spool::{Failed, Op};
use crate::delivery::world::{FORGOTTEN_MS, Step, World};
use crate::delivery::{Batch, Bounds, Kind};
use crate::limits::{MAX_UNCONFIRMED_BATCHES, SPOOL_AFTER_MS, SPOOL_RETRY_MS, SPOOL_SYNC_MS, UNCREDITED_MS};
use crate::time::Millis;

fn new(records: u64) -> Step {
    Step::New { bytes: 300, records, kind: Kind::Bulk }
}

#[test]
fn memory_is_enough_for_a_server_that_is_back_at_once() {
    let mut world = World::new(Bounds { memory: 10_000, spool: 1 << 20 }, true);
    [Step::Disk, Step::Disk, Step::Open, new(1), Step::Hand, Step::Break].iter().for_each(|step| world.act(step));
    [Step::Wait(SPOOL_AFTER_MS - 1), Step::Disk, Step::Disk].iter().for_each(|step| world.act(step));
    assert_eq!(world.outbox.counters().spooled, 0);
    assert_eq!(world.outbox.poll_timeout(world.now), Some(Millis(SPOOL_AFTER_MS)));
    [Step::Wait(1), Step::Disk, Step::Disk].iter().for_each(|step| world.act(step));
    let left = world.outbox.unconfirmed();
    assert_eq!((world.outbox.counters().spooled, left.memory_bytes, left.disk_records), (1, 0, 1));
}

#[test]
fn files_that_vanish_before_they_are_marked_are_not_written_on() {
    let mut world = World::new(Bounds { memory: 10_000, spool: 1 << 20 }, true);
    let spooled = [Step::Disk, Step::Disk, new(1), new(1), new(1), Step::Wait(SPOOL_AFTER_MS), Step::Disk, Step::Disk];
    spooled.iter().for_each(|step| world.act(step));
    world.act(&Step::Open);
    for _ in 0..3 {
        [Step::Disk, Step::Disk, Step::Hand, Step::Write].iter().for_each(|step| world.act(step));
    }
    [Step::Take(2), Step::Credit(255)].iter().for_each(|step| world.act(step));
    assert_eq!(world.outbox.counters().confirmed, 1);
    [Step::Fault(Some(Failed::Vanished)), Step::Disk].iter().for_each(|step| world.act(step));
    assert!(matches!(world.op, Some(Op::Mark(_))), "{:?}", world.op);
    [Step::Disk, Step::Fault(None), Step::Break, new(1), Step::Wait(SPOOL_AFTER_MS)]
        .iter()
        .for_each(|step| world.act(step));
    // Looked for again, they are not there, and a new file is begun.
    (0..4).for_each(|_| world.act(&Step::Disk));
    world.calm();
    let told = world.outbox.losses().total(Cause::Unconfirmed);
    assert_eq!((world.not_taken(), told), (1, 2), "one of the two had not been taken, which the agent cannot know");
}

#[test]
fn what_was_written_last_is_synchronised_within_five_seconds_and_then_nothing_wakes_the_agent() {
    let mut world = World::new(Bounds { memory: 10_000, spool: 1 << 20 }, true);
    let steps = [Step::Disk, Step::Disk, new(1), Step::Wait(SPOOL_AFTER_MS), Step::Disk, Step::Disk];
    steps.iter().for_each(|step| world.act(step));
    let written = world.now;
    assert_eq!(world.outbox.poll_timeout(world.now), Some(written + SPOOL_SYNC_MS));
    // More does not put it off.
    [Step::Wait(SPOOL_SYNC_MS - 1), new(1), Step::Disk, Step::Disk].iter().for_each(|step| world.act(step));
    assert_eq!(world.outbox.poll_timeout(world.now), Some(written + SPOOL_SYNC_MS));
    [Step::Wait(1), Step::Disk].iter().for_each(|step| world.act(step));
    assert_eq!(world.op, Some(Op::Sync));
    world.act(&Step::Disk);
    assert_eq!(world.outbox.poll_timeout(world.now), None);
}

#[test]
fn what_was_confirmed_gives_way_to_what_was_not_and_sets_no_timer() {
    let mut world = World::new(Bounds { memory: 1_000, spool: 0 }, true);
    world.outbox.set_replay_ms(FORGOTTEN_MS);
    world.act(&Step::Open);
    for _ in 0..3 {
        [new(1), Step::Hand, Step::Write, Step::Take(1)].iter().for_each(|step| world.act(step));
    }
    [Step::Wait(2_000), Step::Wait(0)].iter().for_each(|step| world.act(step));
    assert_eq!((world.outbox.counters().confirmed, world.outbox.poll_timeout(world.now)), (3, None));
    // The ledger holds three of them, and so two that were confirmed go for two that were not.
    [new(1), new(1), Step::Break].iter().for_each(|step| world.act(step));
    assert_eq!(world.outbox.counters().replayed, 1);
    assert!(world.outbox.unconfirmed().memory_bytes <= 1_000);
    // Nobody has lost them once they were taken, at the latest when no credit has come for minutes.
    world.act(&Step::Open);
    world.flow();
    [Step::Wait(10_000), Step::Wait(UNCREDITED_MS + 1), Step::Break].iter().for_each(|step| world.act(step));
    assert_eq!((world.outbox.counters().replayed, world.outbox.losses().sum()), (1, 0));
}

/// A spool with three records in one file, and a stream.
fn spooled() -> World {
    let mut world = World::new(Bounds { memory: 10_000, spool: 1 << 20 }, true);
    let steps = [Step::Disk, Step::Disk, new(1), new(1), new(1), Step::Wait(SPOOL_AFTER_MS), Step::Disk, Step::Disk];
    steps.iter().chain(&[Step::Open]).for_each(|step| world.act(step));
    assert_eq!(world.outbox.unconfirmed().disk_records, 3);
    world
}

#[test]
fn a_file_that_cannot_be_deleted_holds_nothing_up() {
    let mut world = spooled();
    for _ in 0..3 {
        [Step::Disk, Step::Disk, Step::Hand, Step::Write, Step::Take(1)].iter().for_each(|step| world.act(step));
    }
    world.act(&Step::Jam(0));
    // What is new goes without a pause, although the confirmed file cannot be deleted.
    [Step::Wait(10_000), Step::Wait(1), Step::Disk, Step::Disk, Step::Disk, Step::Disk, new(1)]
        .iter()
        .for_each(|step| world.act(step));
    assert_eq!((world.outbox.counters().confirmed, world.outbox.counters().spool_errors), (3, 1));
    assert!(world.outbox.waiting(world.now).is_some());
    world.calm();
    assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
    let left = world.outbox.unconfirmed();
    assert!(left.disk_bytes > 0 && left.disk_files == 0, "it is still there: {left:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_passed_over_the_second_time() {
    let mut world = spooled();
    [Step::Jam(0), Step::Disk, Step::Disk, new(1)].iter().for_each(|step| world.act(step));
    assert_eq!((world.outbox.counters().spool_errors, world.outbox.losses().sum()), (1, 0));
    [Step::Wait(SPOOL_RETRY_MS), Step::Disk, Step::Disk, Step::Disk, Step::Disk]
        .iter()
        .for_each(|step| world.act(step));
    assert_eq!(world.outbox.losses().total(Cause::SpoolDamaged), 3);
    assert!(world.outbox.waiting(world.now).is_some());
    world.calm();
    assert_eq!((world.not_taken(), world.outbox.losses().sum()), (3, 3));
}

#[test]
fn files_that_cannot_be_deleted_count_until_there_is_no_room_for_more() {
    let mut world = World::new(Bounds { memory: 500, spool: 300_000 }, true);
    for _ in 0..1_500 {
        [new(1), Step::Disk, Step::Disk, Step::Wait(100)].iter().for_each(|step| world.act(step));
    }
    (0..9).for_each(|which| world.act(&Step::Jam(which)));
    for _ in 0..20 {
        world.flow();
    }
    world.act(&Step::Break);
    let before = world.made.len();
    for _ in 0..50 {
        let steps = [new(1), Step::Disk, Step::Disk, Step::Disk, Step::Disk, Step::Wait(1_000)];
        steps.iter().for_each(|step| world.act(step));
    }
    assert_eq!(world.made.len(), before + 50, "the oldest go for what is new");
    world.calm();
    assert!(world.not_taken() <= world.outbox.losses().sum());
}

#[test]
fn many_small_batches_in_memory_do_not_stop_what_is_on_the_disk_before_them() {
    let mut world = World::new(Bounds { memory: 10_000, spool: 2_000 }, false);
    let spooled = [Step::Disk, Step::Disk, new(1), new(1), new(1), Step::Wait(SPOOL_AFTER_MS), Step::Disk, Step::Disk];
    spooled.iter().for_each(|step| world.act(step));
    assert_eq!(world.outbox.unconfirmed().disk_records, 3);
    let tiny = Step::New { bytes: 1, records: 1, kind: Kind::Bulk };
    // The disk has no room for them.
    (0..=MAX_UNCONFIRMED_BATCHES).for_each(|_| world.act(&tiny));
    assert_eq!(world.made.len(), 3 + MAX_UNCONFIRMED_BATCHES);
    world.act(&Step::Open);
    for _ in 0..10 {
        for step in [Step::Disk, Step::Disk, Step::Hand, Step::Write, Step::Take(9), Step::Credit(255)] {
            world.act(&step);
        }
    }
    assert!(world.outbox.counters().sent > 3, "it goes on: {:?}", world.outbox.counters());
}

#[test]
fn without_a_server_the_oldest_go_file_by_file_and_are_counted_to_the_record() {
    let mut world = World::new(Bounds { memory: 500, spool: 300_000 }, true);
    for _ in 0..5_000 {
        [new(3), Step::Disk, Step::Disk, Step::Wait(100)].iter().for_each(|step| world.act(step));
    }
    let dropped = world.outbox.losses().total(Cause::SpoolFull);
    assert!(dropped > 0 && world.outbox.losses().sum() == dropped);
    world.bounds.memory = 500;
    for _ in 0..20 {
        world.flow();
    }
    world.calm();
    assert_eq!((world.not_taken(), dropped % 3), (dropped, 0));
}

#[test]
fn nothing_goes_from_a_full_disk_while_there_is_memory() {
    let mut world = World::new(Bounds { memory: 10_000, spool: 2_000 }, true);
    for _ in 0..30 {
        [new(3), Step::Disk, Step::Disk, Step::Wait(1_000)].iter().for_each(|step| world.act(step));
    }
    assert_eq!((world.made.len(), world.outbox.losses().sum()), (30, 0));
    world.calm();
    assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
}

/// The bytes in front of each message count: the world looks at them after every step.
#[test]
fn many_small_batches_leave_the_spool_within_its_limit() {
    let mut world = World::new(Bounds { memory: 100_000, spool: 20_000 }, true);
    [Step::Disk, Step::Disk].iter().for_each(|step| world.act(step));
    for _ in 0..1_000 {
        world.act(&Step::New { bytes: 10, records: 1, kind: Kind::Bulk });
    }
    world.act(&Step::Wait(SPOOL_AFTER_MS));
    (0..50).for_each(|_| world.act(&Step::Disk));
    (0..5).for_each(|_| world.flow());
    world.calm();
    assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
}

#[test]
fn a_plugin_that_is_to_wait_waits() {
    let mut world = World::new(Bounds { memory: 500, spool: 300_000 }, false);
    for _ in 0..3_000 {
        [new(1), Step::Disk, Step::Disk, Step::Wait(100)].iter().for_each(|step| world.act(step));
    }
    assert!(world.made.len() < 1_500 && world.outbox.is_full(world.now));
    assert_eq!(world.outbox.losses().sum(), 0);
}

#[test]
fn what_is_urgent_overtakes_bulk_and_keeps_its_order() {
    let mut world = spooled();
    world.act(&Step::Disk);
    let kinds = [Kind::Urgent, Kind::Bulk, Kind::Urgent, Kind::Heartbeat, Kind::Urgent];
    let step = |kind| Step::New { bytes: 10, records: 1, kind };
    kinds.into_iter().for_each(|kind| world.act(&step(kind)));
    // What was read from the disk meanwhile is bulk like any other.
    world.act(&Step::Disk);
    world.act(&step(Kind::Urgent));
    let mut order = Vec::new();
    for _ in 0..9 {
        order.extend(world.outbox.waiting(world.now).and_then(Batch::message).copied());
        [Step::Hand, Step::Write, Step::Disk, Step::Disk].iter().for_each(|step| world.act(step));
    }
    assert_eq!(order, [6, 3, 5, 7, 8, 0, 1, 2, 4]);
}
