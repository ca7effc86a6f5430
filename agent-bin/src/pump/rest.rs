//! Decides how long bulk records are left to gather in their pipes.

use elklet_core::limits::FLUSH_INTERVAL_MS;
use elklet_core::time::Millis;

/// Longest time for which pipes are left unread, in milliseconds. A plugin that suddenly writes more than its pipe
/// holds waits no longer than this.
const REST_MS: u64 = 50;

/// Time from the earliest possible write of a record that waits in its pipe to its leaving, in milliseconds. The rest
/// of the flush interval is for what happens until the record is on the wire.
const FLUSH_MS: u64 = FLUSH_INTERVAL_MS - 10;

/// Decides after each look at the pipes for how long not to look again.
///
/// A wake-up costs as much as moving a hundred records. The pump therefore coalesces: it looks at plugins that write
/// often and little only when a pipe may be half full, and at the latest after [`REST_MS`]. Plugins that write rarely,
/// or much, are read when they write.
#[derive(Debug, Default)]
pub(super) struct Rest {
    last: Option<Millis>,
    until: Option<Millis>,
    /// When the records that were read meanwhile, and those that may be in a pipe, have to leave.
    flush: Option<Millis>,
}

impl Rest {
    /// The pump has read all pipes until they were empty and got `bytes` bytes since the last look. The smallest pipe
    /// holds `capacity` bytes. Returns true when what was read has waited long enough.
    pub(super) fn handle_look(&mut self, bytes: usize, capacity: usize, now: Millis) -> bool {
        let length = self.length(bytes, capacity, now);
        let is_due = self.flush.is_some_and(|flush| length.is_none() || flush <= now);
        if is_due {
            self.flush = None;
        }
        self.until = length.map(|length| {
            let flush = *self.flush.get_or_insert(now + FLUSH_MS);
            flush.min(now + length)
        });
        is_due
    }

    /// Until when the pipes are left unread, if they are.
    pub(super) fn until(&self) -> Option<Millis> {
        self.until
    }

    /// The pipes cannot wake anybody, so look at them again in any case.
    pub(super) fn go_on(&mut self, now: Millis) {
        let flush = *self.flush.get_or_insert(now + FLUSH_MS);
        self.until = Some(flush.min(now + REST_MS));
    }

    fn length(&mut self, bytes: usize, capacity: usize, now: Millis) -> Option<u64> {
        let since = now.since(self.last.replace(now)?).max(1);
        let is_often = bytes > 0 && since <= 2 * REST_MS;
        let rest = (capacity as u64 / 2 * since).checked_div(bytes as u64)?.min(REST_MS);
        // A shorter rest is not worth it.
        (is_often && rest > 1).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 256 << 10;

    /// How long it rests after reading `bytes` bytes every `every` milliseconds.
    fn rest(bytes: usize, every: u64) -> Option<u64> {
        let mut rest = Rest::default();
        assert!(!rest.handle_look(bytes, CAPACITY, Millis(1_000)));
        assert_eq!(rest.until(), None, "it was not looked at before");
        assert!(!rest.handle_look(bytes, CAPACITY, Millis(1_000 + every)));
        rest.until().map(|until| until.0 - 1_000 - every)
    }

    #[test]
    fn it_rests_between_small_writes() {
        assert_eq!(rest(893, 1), Some(REST_MS));
        assert_eq!(rest(8_930, 10), Some(REST_MS));
        assert_eq!(rest(8_930, 1), Some(14));
    }

    #[test]
    fn it_does_not_rest_under_load_nor_when_little_comes() {
        assert_eq!((rest(89_300, 1), rest(893_000, 10)), (None, None));
        assert_eq!((rest(893, 1_000), rest(0, 10)), (None, None));
    }

    #[test]
    fn what_has_waited_leaves_within_the_flush_interval() {
        let mut rest = Rest::default();
        let mut now = Millis(1_000);
        let mut flushes = Vec::new();
        while now.0 < 2_000 {
            if rest.handle_look(44_650, CAPACITY, now) {
                flushes.push(now.0);
            }
            now = rest.until().unwrap_or(now + 1);
        }
        assert_eq!(flushes, [1_091, 1_181, 1_271, 1_361, 1_451, 1_541, 1_631, 1_721, 1_811, 1_901, 1_991]);
    }

    #[test]
    fn nothing_is_forgotten_when_the_rest_is_over() {
        let mut rest = Rest::default();
        assert!(!rest.handle_look(893, CAPACITY, Millis(1_000)));
        assert!(!rest.handle_look(893, CAPACITY, Millis(1_010)));
        assert_eq!(rest.until(), Some(Millis(1_060)));
        assert!(rest.handle_look(0, CAPACITY, Millis(1_060)), "it sleeps until something comes");
        assert_eq!(rest.until(), None);
    }
}
