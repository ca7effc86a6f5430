//! A number of 64 bits that threads share. MIPS and ARM before version 6 have no instruction that changes one at once, and Rust has
//! no `AtomicU64` there. A lock takes its place: the agent changes such a number a few times for each batch, not for each record.
//! Elsewhere this is the standard library's own type. The crate `portable-atomic` would bring the same lock, and nothing else needs it.

#[cfg(target_has_atomic = "64")]
pub(crate) use std::sync::atomic::AtomicU64;

#[cfg(not(target_has_atomic = "64"))]
pub(crate) use locked::AtomicU64;

#[cfg(any(test, not(target_has_atomic = "64")))]
mod locked {
    use std::sync::atomic::Ordering;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// What the agent uses of the standard library's type of this name. Each change is seen by all threads in one order,
    /// whichever they ask for.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicU64(Mutex<u64>);

    impl AtomicU64 {
        pub(crate) const fn new(value: u64) -> Self {
            Self(Mutex::new(value))
        }

        pub(crate) fn load(&self, _: Ordering) -> u64 {
            *self.lock()
        }

        pub(crate) fn store(&self, value: u64, _: Ordering) {
            *self.lock() = value;
        }

        pub(crate) fn fetch_add(&self, more: u64, _: Ordering) -> u64 {
            self.change(|value| value.wrapping_add(more))
        }

        pub(crate) fn fetch_sub(&self, less: u64, _: Ordering) -> u64 {
            self.change(|value| value.wrapping_sub(less))
        }

        pub(crate) fn fetch_update(
            &self,
            _: Ordering,
            _: Ordering,
            change: impl FnOnce(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            let mut value = self.lock();
            let before = *value;
            *value = change(before).ok_or(before)?;
            Ok(before)
        }

        fn change(&self, change: impl FnOnce(u64) -> u64) -> u64 {
            let mut value = self.lock();
            let after = change(*value);
            std::mem::replace(&mut value, after)
        }

        fn lock(&self) -> MutexGuard<'_, u64> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64 as Standard, Ordering::Relaxed};
    use std::thread;

    use proptest::prelude::*;

    use super::locked::AtomicU64 as Locked;

    proptest! {
        #[test]
        fn the_one_with_a_lock_does_what_the_standard_one_does(
            first: u64,
            steps in proptest::collection::vec((0..5, any::<u64>()), 0..20),
        ) {
            let (standard, locked) = (Standard::new(first), Locked::new(first));
            for (step, number) in steps {
                let below = |value: u64| value.checked_add(number).filter(|sum| sum % 2 == 0);
                match step {
                    0 => {
                        standard.store(number, Relaxed);
                        locked.store(number, Relaxed);
                    }
                    1 => prop_assert_eq!(standard.fetch_add(number, Relaxed), locked.fetch_add(number, Relaxed)),
                    2 => prop_assert_eq!(standard.fetch_sub(number, Relaxed), locked.fetch_sub(number, Relaxed)),
                    _ => prop_assert_eq!(
                        standard.fetch_update(Relaxed, Relaxed, below),
                        locked.fetch_update(Relaxed, Relaxed, below)
                    ),
                }
                prop_assert_eq!(standard.load(Relaxed), locked.load(Relaxed));
            }
        }
    }

    #[test]
    fn no_change_of_the_one_with_a_lock_is_lost_between_threads() {
        let number = Locked::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| _ = number.fetch_add(1, Relaxed)));
            }
        });
        assert_eq!(number.load(Relaxed), 40_000);
    }
}
