//! When bulk records are left to gather in their pipes.

use elklet_core::time::Millis;

/// Records wait in their pipes for at most this long before they are read, in milliseconds.
pub(crate) const REST_MS: u64 = 20;

/// Bytes that may gather: half of what a pipe holds that could not be made larger.
const GATHERED_BYTES: u64 = 32 << 10;

/// Says after each look at the pipes how long they need not be looked at.
///
/// To be woken costs as much as to move a hundred records. So the plugins that write often and little are looked at when a
/// pipe may be half full, and no later than after [`REST_MS`]; those that write rarely, or much, are read when they write.
#[derive(Debug, Default)]
pub(super) struct Rest {
    last: Option<Millis>,
}

impl Rest {
    /// All pipes are read empty and gave this many bytes since the last time: until when they can be left alone.
    pub(super) fn after(&mut self, bytes: usize, now: Millis) -> Option<Millis> {
        let since = now.since(self.last.replace(now)?).max(1);
        let is_often = bytes > 0 && since <= 2 * REST_MS;
        let rest = (GATHERED_BYTES * since).checked_div(bytes as u64)?.min(REST_MS);
        // Less is not worth it.
        (is_often && rest > 1).then(|| now + rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it rests after reading so much every so often.
    fn rest(bytes: usize, every: u64) -> Option<u64> {
        let mut rest = Rest::default();
        assert_eq!(rest.after(bytes, Millis(1_000)), None, "it was not looked at before");
        rest.after(bytes, Millis(1_000 + every)).map(|until| until.0 - 1_000 - every)
    }

    #[test]
    fn it_rests_between_small_writes() {
        assert_eq!(rest(893, 1), Some(REST_MS));
        assert_eq!(rest(8_930, 10), Some(REST_MS));
        assert_eq!(rest(8_930, 1), Some(3));
    }

    #[test]
    fn it_does_not_rest_under_load_nor_when_little_comes() {
        assert_eq!((rest(44_650, 1), rest(446_500, 10)), (None, None));
        assert_eq!((rest(893, 1_000), rest(0, 10)), (None, None));
    }
}
