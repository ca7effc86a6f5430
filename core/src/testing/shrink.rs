//! Smaller schedules that fail in the same way.

use alloc::vec::Vec;

use super::schedule::{Schedule, Timed};
use crate::time::Millis;

/// Makes a schedule smaller as long as `fails` says that it fails: it loses events, then time between them. `fails` is asked so many
/// times at most.
#[must_use]
pub fn shrink(schedule: &Schedule, mut tries: usize, mut fails: impl FnMut(&Schedule) -> bool) -> Schedule {
    let mut best = schedule.clone();
    let mut attempt = |best: &mut Schedule, events: Vec<Timed>| {
        if tries == 0 {
            return false;
        }
        tries -= 1;
        let mut smaller = Schedule { events, ..best.clone() };
        smaller.settle();
        let is_good = fails(&smaller);
        if is_good {
            *best = smaller;
        }
        is_good
    };
    let mut size = best.events.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        let mut is_smaller = false;
        while at < best.events.len() {
            let mut events = best.events.clone();
            events.drain(at..(at + size).min(events.len()));
            if attempt(&mut best, events) {
                is_smaller = true;
            } else {
                at += size;
            }
        }
        if !is_smaller || size > 1 {
            size /= 2;
        }
    }
    // All that follows moves together, so that distances stay.
    for at in 0..best.events.len() {
        let before = at.checked_sub(1).and_then(|before| best.events.get(before)).map_or(Millis(0), |timed| timed.at);
        let mut gap = best.events.get(at).map_or(0, |timed| timed.at.since(before));
        while gap > 100 {
            let less = gap / 2;
            let mut events = best.events.clone();
            events.iter_mut().skip(at).for_each(|timed| timed.at = Millis(timed.at.0 - less));
            if !attempt(&mut best, events) {
                break;
            }
            gap -= less;
        }
    }
    best
}
