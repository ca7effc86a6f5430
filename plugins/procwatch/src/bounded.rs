//! A bounded map. When it is full, it drops the least recently used entries.

use std::collections::HashMap;
use std::hash::Hash;

/// Holds at most `capacity` entries. A full map drops an eighth at once. Many insertions then share the cost of finding
/// the oldest, and no list has to be kept in order.
pub(crate) struct Bounded<K, V> {
    entries: HashMap<K, Entry<V>>,
    capacity: usize,
    /// Counts uses. 2^64 of them do not happen.
    clock: u64,
}

struct Entry<V> {
    value: V,
    used: u64,
}

impl<K: Copy + Eq + Hash, V> Bounded<K, V> {
    /// # Panics
    /// When `capacity` is 0.
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a cache needs room for one entry");
        Self { entries: HashMap::new(), capacity, clock: 0 }
    }

    /// Looks up an entry, which counts as a use.
    pub(crate) fn get(&mut self, key: K) -> Option<&mut V> {
        self.clock += 1;
        let entry = self.entries.get_mut(&key)?;
        entry.used = self.clock;
        Some(&mut entry.value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            self.forget_the_oldest();
        }
        self.clock += 1;
        self.entries.insert(key, Entry { value, used: self.clock });
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        self.entries.remove(&key).map(|entry| entry.value)
    }

    /// All values in no order. This does not count as a use.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().map(|entry| &mut entry.value)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    fn forget_the_oldest(&mut self) {
        let mut uses: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
        let last_to_go = (self.capacity / 8).min(uses.len() - 1);
        let (_, threshold, _) = uses.select_nth_unstable(last_to_go);
        let threshold = *threshold;
        self.entries.retain(|_, entry| entry.used > threshold);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    #[test]
    fn the_least_recently_used_go_first() {
        let mut map = Bounded::new(16);
        for key in 0..16 {
            map.insert(key, key);
        }
        assert_eq!(map.get(0), Some(&mut 0));
        map.insert(16, 16);
        assert!(map.entries.len() <= 16);
        assert_eq!(map.get(1), None);
        assert_eq!(map.get(0), Some(&mut 0));
        assert_eq!(map.get(15), Some(&mut 15));
        assert_eq!(map.get(16), Some(&mut 16));
    }

    #[test]
    fn replacing_forgets_nothing() {
        let mut map = Bounded::new(2);
        map.insert(1, 'a');
        map.insert(2, 'b');
        map.insert(2, 'c');
        assert_eq!((map.remove(1), map.remove(2), map.remove(2)), (Some('a'), Some('c'), None));
    }

    proptest! {
        #[test]
        fn never_more_than_the_capacity_and_never_without_the_newest(
            capacity in 1usize..40,
            keys in vec(0u8..60, 1..300),
        ) {
            let mut map = Bounded::new(capacity);
            for key in keys {
                map.insert(key, u16::from(key));
                prop_assert!(map.entries.len() <= capacity);
                prop_assert_eq!(map.get(key), Some(&mut u16::from(key)));
            }
        }
    }
}
