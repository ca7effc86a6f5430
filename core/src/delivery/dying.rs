//! Tests with servers that die again and again, over one record or for other reasons. The outbox has to tell the two apart.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::tests::{cut, sized};
use super::{Bounds, Outbox, Outgoing};
use crate::delivery::losses::Cause;
use crate::time::Millis;

/// Milliseconds of one step of the clock.
const TICK_MS: u64 = 50;

/// Milliseconds between a stream's end and the next stream.
const AWAY_MS: u64 = 1_500;

/// Base of the numbers of records that plugins write besides those that a test is about.
const ORDINARY: usize = 10_000;

/// An outbox, a server and a clock.
struct Scene {
    outbox: Outbox<Vec<usize>>,
    now: Millis,
    opened: Option<Millis>,
    back_at: Millis,
    handed_bytes: u64,
    made: usize,
    taken: BTreeSet<usize>,
    /// Number of streams that the server has ended.
    ends: usize,
}

impl Scene {
    fn new() -> Self {
        Self {
            outbox: Outbox::new(Bounds { memory: 4 << 20, spool: 0 }, Millis(0)),
            now: Millis(0),
            opened: None,
            back_at: Millis(0),
            handed_bytes: 0,
            made: 0,
            taken: BTreeSet::new(),
            ends: 0,
        }
    }

    /// Lets time pass. The server takes each message at once, except that it dies if it `dies_of` the message or
    /// `dies_at` this age of the stream.
    fn run(&mut self, ms: u64, mut dies_of: impl FnMut(&[usize]) -> bool, mut dies_at: impl FnMut(u64) -> bool) {
        let end = self.now + ms;
        while self.now < end {
            self.now = self.now + TICK_MS;
            if self.now.0.is_multiple_of(500) {
                self.outbox.push(sized(&[ORDINARY + self.made]));
                self.made += 1;
            }
            match self.opened {
                None if self.back_at <= self.now => {
                    self.outbox.handle_opened(self.now);
                    (self.opened, self.handed_bytes) = (Some(self.now), 0);
                }
                Some(opened) if dies_at(self.now.since(opened)) => self.end(),
                _ => {}
            }
            if self.opened.is_some() && !self.send(&mut dies_of) {
                self.end();
            }
        }
    }

    /// Hands over what may be sent. Returns false when the server has died of it.
    fn send(&mut self, dies_of: &mut impl FnMut(&[usize]) -> bool) -> bool {
        loop {
            let records = match self.outbox.poll_send(self.now) {
                Some(Outgoing::Send(records)) => records,
                Some(Outgoing::Cut { whole, limit }) => {
                    self.outbox.handle_cut(cut(whole.message().expect("it waits"), limit), &[]);
                    continue;
                }
                None => break,
            };
            self.outbox.handle_written(self.now);
            if dies_of(&records) {
                return false;
            }
            self.handed_bytes += records.iter().sum::<usize>() as u64;
            self.taken.extend(records);
            self.outbox.handle_credit(self.handed_bytes, self.now);
        }
        if self.outbox.wants_ping(self.now) {
            self.outbox.handle_ping(self.now);
            self.outbox.handle_pong(self.now);
        }
        true
    }

    fn end(&mut self) {
        self.outbox.handle_broken(false, self.now);
        self.outbox.handle_ended(self.now);
        (self.opened, self.back_at) = (None, self.now + AWAY_MS);
        self.ends += 1;
    }

    /// Runs a healthy server, and returns the records that have never arrived.
    fn missing(&mut self, special: &[usize]) -> Vec<usize> {
        self.run(120_000, |_| false, |_| false);
        let ordinary = (0..self.made.saturating_sub(30)).map(|number| ORDINARY + number);
        let all = ordinary.chain(special.iter().copied());
        all.filter(|record| !self.taken.contains(record)).collect()
    }
}

/// `others` records around the poisonous one, as they lie in one batch.
fn around(poison: usize, others: usize) -> Vec<usize> {
    (poison - others / 2..=poison + others / 2).collect()
}

#[test]
fn the_record_that_a_server_dies_of_is_the_only_one_that_is_given_up() {
    for others in [0, 2, 20, 600] {
        let mut scene = Scene::new();
        let records = around(1_000, others);
        scene.run(10_000, |_| false, |_| false);
        scene.outbox.push(sized(&records));
        scene.run(300_000, |message| message.contains(&1_000), |_| false);
        let losses = scene.outbox.losses();
        assert_eq!((losses.total(Cause::Poison), losses.sum()), (1, 1), "{others}");
        assert!(scene.ends <= 14, "the server died {} times of one of {}", scene.ends, others + 1);
        assert_eq!(scene.missing(&records), [1_000], "{others}");
    }
}

#[test]
fn two_records_that_a_server_dies_of_are_given_up_and_no_other() {
    let mut scene = Scene::new();
    let records = [around(1_000, 100), around(2_000, 100)].concat();
    scene.outbox.push(sized(&records[..101]));
    scene.outbox.push(sized(&records[101..]));
    scene.run(900_000, |message| message.contains(&1_000) || message.contains(&2_000), |_| false);
    assert_eq!((scene.outbox.losses().total(Cause::Poison), scene.outbox.losses().sum()), (2, 2));
    assert_eq!(scene.missing(&records), [1_000, 2_000]);
}

/// For example because its queue is full for a while: whatever comes first ends the stream.
#[test]
fn a_server_that_dies_of_whatever_comes_costs_nothing() {
    for times in 1..40 {
        let mut scene = Scene::new();
        let records = around(1_000, 40);
        scene.run(3_000, |_| false, |_| false);
        scene.outbox.push(sized(&records));
        let mut left = times;
        let dies = |_: &[usize]| {
            left -= i32::from(left > 0);
            left > 0
        };
        scene.run(200_000, dies, |_| false);
        assert_eq!((scene.missing(&records), scene.outbox.losses().sum()), (vec![], 0), "{times} times");
    }
}

#[test]
fn a_server_that_dies_of_a_record_some_times_takes_it_in_the_end() {
    for times in 1..6 {
        let mut scene = Scene::new();
        let records = around(1_000, 40);
        scene.outbox.push(sized(&records));
        let mut left = times;
        let dies = |message: &[usize]| {
            let dies = left > 0 && message.contains(&1_000);
            left -= i32::from(dies);
            dies
        };
        scene.run(60_000, dies, |_| false);
        assert_eq!((scene.missing(&records), scene.outbox.losses().sum()), (vec![], 0), "{times} times");
    }
}

#[test]
fn streams_that_end_by_the_clock_cost_nothing() {
    for life in (100..20_000).step_by(150) {
        let mut scene = Scene::new();
        let records = around(1_000, 40);
        scene.outbox.push(sized(&records));
        scene.run(600_000, |_| false, |lived| lived >= life);
        assert_eq!((scene.missing(&records), scene.outbox.losses().sum()), (vec![], 0), "each lives {life} ms");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    /// The server is killed and restarted in a loop.
    #[test]
    fn kills_at_any_moment_cost_nothing(seed: u64, mean in 200..20_000u64) {
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut scene = Scene::new();
        let records = around(1_000, 40);
        scene.outbox.push(sized(&records));
        scene.outbox.push(sized(&[3_000]));
        scene.run(900_000, |_| false, |_| random() % mean < TICK_MS);
        let all = [records, vec![3_000]].concat();
        prop_assert_eq!((scene.missing(&all), scene.outbox.losses().sum()), (vec![], 0));
    }
}
