//! A Bloom filter over what a block's records say, so that a search passes over blocks that cannot match without opening them.

use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Ten bits for each key and seven probes answer "perhaps" to about one key in a hundred that is not there.
const BITS_PER_KEY: usize = 10;
const PROBES: u64 = 7;
/// A filter is never larger than this, however many keys a block has; it only answers "perhaps" more often.
const MAX_BYTES: usize = 1 << 20;

/// The key of a field that has a value, in records of one data type.
pub(super) fn key(data_type: i32, name: &[u8], value: &[u8]) -> u64 {
    let of_name = xxh3_64_with_seed(name, u64::from(data_type.cast_unsigned()));
    xxh3_64_with_seed(value, of_name)
}

/// Builds the filter of these keys.
pub(super) fn build(keys: &HashSet<u64, impl std::hash::BuildHasher>) -> Vec<u8> {
    let len = (keys.len() * BITS_PER_KEY).div_ceil(8).clamp(8, MAX_BYTES);
    let mut bits = vec![0u8; len];
    for &key in keys {
        for (byte, mask) in probes(key, len) {
            bits[byte] |= mask;
        }
    }
    bits
}

/// Returns false only if the filter was built without the key. An empty filter knows nothing, so it answers true.
pub(super) fn may_hold(bits: &[u8], key: u64) -> bool {
    bits.is_empty() || probes(key, bits.len()).all(|(byte, mask)| bits[byte] & mask != 0)
}

/// Where a key's bits are: the byte, which is below `len`, and the mask within it.
fn probes(key: u64, len: usize) -> impl Iterator<Item = (usize, u8)> {
    let count = len as u64 * 8;
    // The second hash is odd, so that it never leaves a probe where the one before it was.
    let step = key.rotate_left(32) | 1;
    (0..PROBES).map(move |probe| {
        let bit = key.wrapping_add(step.wrapping_mul(probe)) % count;
        (usize::try_from(bit / 8).expect("it is below a length in memory"), 1 << (bit % 8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_went_in_is_always_found_and_few_others_are() {
        let keys: HashSet<u64> = (0..5000).map(|n| key(59, b"pid", format!("{n}").as_bytes())).collect();
        let bits = build(&keys);
        assert!(keys.iter().all(|&key| may_hold(&bits, key)));
        let wrong = (5000..15_000).filter(|n| may_hold(&bits, key(59, b"pid", format!("{n}").as_bytes()))).count();
        assert!(wrong < 300, "{wrong} of 10000 keys that never went in are found");
        let other_type = (0..5000).filter(|n| may_hold(&bits, key(42, b"pid", format!("{n}").as_bytes()))).count();
        assert!(other_type < 150, "{other_type} of 5000 keys of another type are found");
    }

    #[test]
    fn a_filter_of_nothing_and_a_missing_filter_do_no_harm() {
        assert!(!may_hold(&build(&HashSet::<u64>::new()), 7));
        assert!(may_hold(&[], 7));
    }
}
