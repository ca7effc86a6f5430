//! The outbox in a world of its own, under random schedules of faults.

use proptest::prelude::*;

use crate::delivery::losses::Cause;
use crate::delivery::spool::Failed;
use crate::delivery::world::{FORGOTTEN_MS, Step, World};
use crate::delivery::{Bounds, Kind};

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
