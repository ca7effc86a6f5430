//! Bounds how much each source of lines may write, so that a flood from one does not wash out the others.
//!
//! Each key (a place in the source that logs, or a kind of audited event) has a token bucket of bytes. A line that the
//! bucket cannot pay for is left out and counted. Once it leaves lines out, the key stays silent until a quarter of its
//! bucket has refilled, so that a flood shows as a few readable stretches with counts between them.

use crate::time::Millis;

/// How much a key may write.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Bytes at once after a long silence: the bucket's size.
    pub burst_bytes: u32,
    /// Bytes a minute from then on: the bucket's refill.
    pub bytes_per_minute: u32,
}

const MINUTE_MS: u64 = 60_000;

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Write it.
    Write {
        /// Lines of the same key that were left out since the last one that was written.
        left_out: u64,
    },
    /// Leave it out. It is the first, which is worth a line of its own.
    Announce,
    /// Leave it out.
    LeaveOut,
}

/// The buckets of at most `N` keys.
#[derive(Debug)]
pub struct Flood<K, const N: usize> {
    rate: Rate,
    known: heapless::Vec<Known<K>, N>,
    left_out: u64,
}

#[derive(Debug)]
struct Known<K> {
    key: K,
    /// When `credit` was last updated.
    at: Millis,
    /// Bytes, multiplied by the milliseconds of a minute so that nothing is rounded.
    credit: u64,
    /// Lines left out since the last one that was written.
    left_out: u64,
}

impl<K: Copy + PartialEq, const N: usize> Flood<K, N> {
    /// Knows no key yet. Each may write a full burst at once.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { rate, known: heapless::Vec::new(), left_out: 0 }
    }

    /// Decides about a line of `bytes` bytes.
    pub fn handle_line(&mut self, key: K, bytes: usize, now: Millis) -> Verdict {
        let full = u64::from(self.rate.burst_bytes) * MINUTE_MS;
        let refill = u64::from(self.rate.bytes_per_minute);
        let Some(known) = self.known(key, now, full) else {
            self.left_out += 1;
            return Verdict::LeaveOut;
        };
        known.credit = full.min(known.credit.saturating_add(now.since(known.at).saturating_mul(refill)));
        known.at = now;
        let price = (bytes as u64).saturating_mul(MINUTE_MS);
        let needed = if known.left_out > 0 { price.max(full / 4) } else { price };
        if known.credit >= needed {
            known.credit -= price;
            return Verdict::Write { left_out: core::mem::take(&mut known.left_out) };
        }
        known.left_out += 1;
        let is_first = known.left_out == 1;
        self.left_out += 1;
        if is_first { Verdict::Announce } else { Verdict::LeaveOut }
    }

    /// Number of lines left out, of all keys.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Finds the key's bucket. If there is no room for a new key, it replaces the one that has been silent for longest.
    fn known(&mut self, key: K, now: Millis, full: u64) -> Option<&mut Known<K>> {
        let index = match self.known.iter().position(|known| known.key == key) {
            Some(index) => index,
            None => {
                let new = Known { key, at: now, credit: full, left_out: 0 };
                match self.known.push(new) {
                    Ok(()) => self.known.len() - 1,
                    Err(new) => {
                        let (index, oldest) = self.known.iter_mut().enumerate().min_by_key(|(_, known)| known.at)?;
                        *oldest = new;
                        index
                    }
                }
            }
        };
        self.known.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { burst_bytes: 1_000, bytes_per_minute: 600 };

    #[test]
    fn a_flood_is_left_out_and_counted_and_others_are_written() {
        let mut flood = Flood::<_, 4>::new(RATE);
        let mut verdicts = (0..100).map(|i| flood.handle_line('a', 100, Millis(i)));
        assert!(verdicts.by_ref().take(10).all(|verdict| verdict == Verdict::Write { left_out: 0 }));
        assert_eq!(verdicts.next(), Some(Verdict::Announce));
        assert!(verdicts.all(|verdict| verdict == Verdict::LeaveOut));
        assert_eq!(flood.handle_line('b', 100, Millis(100)), Verdict::Write { left_out: 0 });
        // At 10 bytes a second, the bucket has a line's worth after 10 s and a quarter of itself after 25.
        assert_eq!(flood.handle_line('a', 100, Millis(15_000)), Verdict::LeaveOut);
        assert_eq!(flood.handle_line('a', 100, Millis(25_100)), Verdict::Write { left_out: 91 });
        assert_eq!(flood.handle_line('a', 100, Millis(25_100)), Verdict::Write { left_out: 0 });
        assert_eq!(flood.left_out(), 91);
    }

    proptest! {
        #[test]
        fn no_key_writes_more_than_its_rate_and_every_line_is_written_or_counted(
            lines in prop::collection::vec((0..4u8, 0..400usize, 0..5_000u64), 1..300)
        ) {
            let mut flood = Flood::<_, 4>::new(RATE);
            let mut now = Millis(0);
            let (mut bytes, mut told) = ([0u64; 4], 0u64);
            let mut written = 0u64;
            for (key, length, later) in &lines {
                now = now + *later;
                match flood.handle_line(*key, *length, now) {
                    Verdict::Write { left_out } => {
                        bytes[usize::from(*key)] += *length as u64;
                        written += 1;
                        told += left_out;
                    }
                    Verdict::Announce | Verdict::LeaveOut => {}
                }
            }
            let most = u64::from(RATE.burst_bytes) + now.0 * u64::from(RATE.bytes_per_minute) / MINUTE_MS;
            prop_assert!(bytes.iter().all(|bytes| *bytes <= most), "{bytes:?}, expected {most} at most");
            prop_assert_eq!(written + flood.left_out(), lines.len() as u64);
            prop_assert!(told <= flood.left_out());
        }

        #[test]
        fn more_keys_than_there_is_room_for_do_no_harm(keys in prop::collection::vec(0..50u8, 1..200)) {
            let mut flood = Flood::<_, 4>::new(RATE);
            for (at, key) in keys.into_iter().enumerate() {
                let _ = flood.handle_line(key, 10, Millis(at as u64));
                prop_assert!(flood.known.len() <= 4);
            }
        }
    }

    #[test]
    fn a_bucket_fills_again_and_never_beyond_its_size() {
        let mut flood = Flood::<_, 4>::new(RATE);
        let write = Verdict::Write { left_out: 0 };
        assert_eq!(flood.handle_line('a', 1_000, Millis(0)), write, "all of it at once");
        // 10 bytes a second.
        assert_eq!(flood.handle_line('a', 10, Millis(1_000)), write);
        assert_eq!(flood.handle_line('a', 1, Millis(1_000)), Verdict::Announce);
        assert_eq!(flood.handle_line('a', 1_000, Millis(1_000_000)), Verdict::Write { left_out: 1 });
        assert_eq!(flood.handle_line('a', 1_001, Millis(9_000_000)), Verdict::Announce, "it is longer than the bucket");
    }

    #[test]
    fn a_key_that_was_silenced_speaks_again_at_a_quarter_of_its_bucket() {
        for (at, expected) in [(24_999, Verdict::LeaveOut), (25_000, Verdict::Write { left_out: 1 })] {
            let mut flood = Flood::<_, 4>::new(RATE);
            assert_eq!(flood.handle_line('a', 1_000, Millis(0)), Verdict::Write { left_out: 0 });
            assert_eq!(flood.handle_line('a', 1, Millis(0)), Verdict::Announce);
            assert_eq!(flood.handle_line('a', 1, Millis(at)), expected, "after {at} ms");
        }
    }

    #[test]
    fn the_key_that_was_silent_for_longest_makes_room() {
        let mut flood = Flood::<_, 2>::new(RATE);
        for (key, at) in [('a', 0), ('b', 1), ('a', 2)] {
            assert_eq!(flood.handle_line(key, 500, Millis(at)), Verdict::Write { left_out: 0 });
        }
        assert_eq!(flood.handle_line('c', 1, Millis(3)), Verdict::Write { left_out: 0 });
        assert_eq!(flood.handle_line('a', 1, Millis(3)), Verdict::Announce, "its bucket is still empty");
        assert_eq!(flood.handle_line('b', 1_000, Millis(4)), Verdict::Write { left_out: 0 }, "it begins anew");
    }

    #[test]
    fn without_room_for_any_key_everything_is_left_out_and_counted() {
        let mut flood = Flood::<_, 0>::new(RATE);
        for lines in 1..4 {
            assert_eq!(flood.handle_line('a', 1, Millis(0)), Verdict::LeaveOut);
            assert_eq!(flood.left_out(), lines);
        }
    }
}
