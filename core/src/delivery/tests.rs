//! The outbox in a world of its own, under random schedules of faults.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::spool::{Done, Failed, Op, Replay};
use super::world::{FORGOTTEN_MS, Step, World, rows};
use super::{Batch, Bounds, Kind, Outbox, Outgoing, Shed};
use crate::delivery::losses::Cause;
use crate::limits::{
    LEDGER_WAIT_MS, MAX_UNCONFIRMED_BATCHES, MIN_REFUSED_BYTES, REFUSAL_PATIENCE, SPOOL_AFTER_MS, SPOOL_RETRY_MS,
    SPOOL_SYNC_MS,
};
use crate::time::Millis;

/// A batch of one record.
pub(super) fn batch(kind: Kind, message: u32, bytes: usize) -> Batch<u32> {
    Batch::new(kind, message, bytes, 0, rows(1))
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![8 => Just(Kind::Bulk), 1 => Just(Kind::Urgent), 1 => Just(Kind::Heartbeat)];
    prop_oneof![
        6 => (1..400usize, 1..5u64, kind).prop_map(|(bytes, records, kind)| Step::New { bytes, records, kind }),
        4 => Just(Step::Hand),
        4 => Just(Step::Write),
        3 => (0..4usize).prop_map(Step::Take),
        3 => any::<u8>().prop_map(Step::Credit),
        3 => (0..1_500u64).prop_map(Step::Wait),
        6 => Just(Step::Disk),
        1 => Just(Step::Break),
        2 => Just(Step::Open),
    ]
}

fn fault() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Fault(Some(Failed::Full))),
        2 => Just(Step::Fault(Some(Failed::Broken))),
        1 => Just(Step::Fault(Some(Failed::Vanished))),
        5 => Just(Step::Fault(None)),
        2 => any::<usize>().prop_map(Step::Spoil),
        1 => any::<usize>().prop_map(Step::Jam),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    #[test]
    fn whatever_breaks_nothing_is_lost_and_the_order_stays(
        memory in prop_oneof![Just(500usize), Just(100_000)],
        has_spool: bool,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        // Without a spool there is memory enough, so that nothing has to go.
        let bounds = if has_spool { Bounds { memory, spool: 1 << 20 } } else { Bounds { memory: 1 << 20, spool: 0 } };
        let mut world = World::new(bounds, true);
        steps.iter().for_each(|step| world.act(step));
        world.calm();
        prop_assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
        let arrivals = world.first_arrivals();
        prop_assert!(arrivals.is_sorted(), "{:?}", arrivals);
    }

    #[test]
    fn whatever_is_lost_is_counted(
        spool in prop_oneof![Just(0u64), Just(2_000), Just(1 << 20)],
        may_drop: bool,
        steps in prop::collection::vec(prop_oneof![8 => step(), 1 => fault()], 0..200),
    ) {
        let mut world = World::new(Bounds { memory: 1_000, spool }, may_drop);
        steps.iter().for_each(|step| world.act(step));
        world.calm();
        // A crash takes the counts with it; what is lost after a break may have arrived before.
        let is_counted = !steps.iter().any(|step| matches!(step, Step::Crash));
        let is_exact = !steps.iter().any(|step| matches!(step, Step::Spoil(_) | Step::Break));
        if is_counted {
            let lost = world.outbox.losses().sum();
            prop_assert!(world.not_taken() <= lost, "{} did not arrive, {} were counted", world.not_taken(), lost);
            if is_exact && world.outbox.losses().total(Cause::Unconfirmed) == 0 && world.outbox.counters().spool_errors == 0 {
                prop_assert_eq!(world.not_taken(), lost);
            }
        }
    }

    /// A server that ends its streams without a reason has batches set aside and cut, and takes them all in the end.
    #[test]
    fn whatever_servers_die_of_nothing_is_lost(
        memory in prop_oneof![Just(2_000usize), Just(100_000)],
        has_spool: bool,
        replay_ms in prop_oneof![Just(0u64), Just(FORGOTTEN_MS)],
        steps in prop::collection::vec(prop_oneof![12 => step(), 1 => Just(Step::Die), 1 => Just(Step::Open), 1 => (0..7_000u64).prop_map(Step::Wait)], 0..400),
    ) {
        let bounds = if has_spool { Bounds { memory, spool: 1 << 20 } } else { Bounds { memory: 1 << 20, spool: 0 } };
        let mut world = World::new(bounds, true);
        world.outbox.set_replay_ms(replay_ms);
        steps.iter().for_each(|step| world.act(step));
        world.calm();
        prop_assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
    }

    /// What a killed server had read and nobody else has is sent again.
    #[test]
    fn what_a_killed_server_had_just_taken_arrives_again(
        memory in prop_oneof![Just(2_000usize), Just(1 << 20)],
        has_spool: bool,
        steps in prop::collection::vec(prop_oneof![20 => step(), 1 => Just(Step::Forget), 1 => Just(Step::Open)], 0..300),
    ) {
        let bounds = if has_spool { Bounds { memory, spool: 1 << 20 } } else { Bounds { memory: 1 << 20, spool: 0 } };
        let mut world = World::new(bounds, true);
        world.outbox.set_replay_ms(FORGOTTEN_MS);
        steps.iter().for_each(|step| world.act(step));
        world.calm();
        prop_assert_eq!(world.outbox.losses().sum(), 0);
        // Where memory is short, what was confirmed goes first.
        if bounds.memory == 1 << 20 {
            prop_assert_eq!(world.not_taken(), 0);
        }
    }

    #[test]
    fn a_killed_agent_loses_only_what_the_disk_had_not(steps in prop::collection::vec(prop_oneof![20 => step(), 1 => Just(Step::Crash)], 0..200)) {
        let mut world = World::new(Bounds { memory: 1_000, spool: 1 << 20 }, true);
        steps.iter().for_each(|step| world.act(step));
        world.calm();
        prop_assert_eq!((world.not_taken(), world.outbox.losses().sum()), (0, 0));
    }
}

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
    // After a second, nobody has lost them.
    world.act(&Step::Open);
    world.flow();
    [Step::Wait(10_000), Step::Wait(FORGOTTEN_MS + 1), Step::Break].iter().for_each(|step| world.act(step));
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

/// A batch of records with these sizes.
pub(super) fn sized(records: &[usize]) -> Batch<Vec<usize>> {
    let bytes = records.iter().sum();
    let content = u32::try_from(bytes).expect("small");
    let fingerprint = u32::try_from(records[0]).expect("small");
    Batch::new(Kind::Bulk, records.to_vec(), bytes, content, rows(records.len() as u64)).with_fingerprint(fingerprint)
}

/// Cuts as the shell does: as many records as fit, at least one.
pub(super) fn cut(records: &[usize], limit: usize) -> Vec<Batch<Vec<usize>>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for &record in records {
        match parts.last_mut() {
            Some(part) if part.iter().sum::<usize>() + record <= limit => part.push(record),
            _ => parts.push(vec![record]),
        }
    }
    parts.iter().map(|part| sized(part)).collect()
}

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
        Some(says_so) => outbox.handle_broken(says_so, Millis(0)),
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

/// A batch of so many records that takes 400 bytes.
fn of_records(records: u64) -> Batch<u32> {
    Batch::new(Kind::Bulk, 0, 400, 0, rows(records))
}

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
