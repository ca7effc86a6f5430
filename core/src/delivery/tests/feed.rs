//! What the feed adds to the outbox: the intake.

use alloc::vec;

use super::of_records;
use crate::delivery::Bounds;
use crate::delivery::feed::{Action, Feed};
use crate::delivery::spool::{Done, Op};
use crate::limits::SPOOL_THREAD_RETRY_MS;
use crate::record::intake::{Due, Level};
use crate::time::Millis;

const EMPTY: Level = Level { due: Due::Nothing, records: 0, is_half_full: false, may_drop: false };
const WAITING: Level = Level { due: Due::Now, records: 1, ..EMPTY };

#[test]
fn the_end_is_safe_once_nothing_waits_or_nothing_has_room_for_it() {
    let mut feed = Feed::new(Bounds { memory: 1_000, spool: 0 }, Millis(0));
    assert!(feed.is_safe(EMPTY, Millis(0)));
    assert!(!feed.is_safe(WAITING, Millis(0)), "it can still be taken");
    (0..3).for_each(|_| feed.push(of_records(1)));
    assert_eq!(feed.poll_action(WAITING, true, Millis(0)), Some(Action::Hold(true)));
    assert!(feed.is_safe(WAITING, Millis(0)), "no later moment would have room for it");
}

#[test]
fn the_end_is_not_safe_while_the_disk_is_at_work_or_without_a_thread() {
    let mut feed = Feed::<u32>::new(Bounds { memory: 1_000, spool: 1 << 20 }, Millis(0));
    let open = Some(Action::Spool { op: Op::Open, at_once: false });
    assert_eq!(feed.poll_action(EMPTY, true, Millis(0)), open);
    assert!(!feed.is_safe(EMPTY, Millis(0)));
    feed.handle_no_thread(Op::Open, Millis(0));
    let again = Millis(SPOOL_THREAD_RETRY_MS);
    assert!(!feed.is_safe(EMPTY, again), "it is to be tried again");
    assert_eq!(feed.poll_action(EMPTY, true, again), open);
    feed.handle_done(Done::Opened(vec![]), again);
    assert!(feed.is_safe(EMPTY, again));
}
