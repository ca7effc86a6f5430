//! The orderly end: plugins first, so that what they write last is sent as well; then the buffers; then the stream; then the disk.
//!
//! ```text
//!   No -> Plugins -> Flush -> Stream -> Spool -> Done
//! ```
//! Each step has a deadline, because neither a plugin nor a server nor a disk may keep the agent from its end. The stream's is the
//! session's own.

use crate::time::Millis;

/// At the end, plugins are waited for this long: their own ten seconds, and some for the pipes.
pub const END_OF_PLUGINS_MS: u64 = 12_000;

/// At the end, what is left in the buffers is sent for this long.
pub const END_OF_FLUSH_MS: u64 = 10_000;

/// At the end, what is left is written to the disk for this long.
pub const END_OF_SPOOL_MS: u64 = 10_000;

/// How far the orderly end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nobody has asked for it.
    No,
    /// The plugins end and their pipes are read.
    Plugins { deadline: Millis },
    /// What is left is sent.
    Flush { deadline: Millis },
    /// The stream is being closed.
    Stream,
    /// What the server has not taken is written to the disk.
    Spool { deadline: Millis },
    /// It is over.
    Done,
}

/// How the agent stands, as far as its end depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// No plugin has a process, and all pipes are read to their ends.
    pub(super) are_plugins_quiet: bool,
    pub(super) is_streaming: bool,
    /// The stream has written everything.
    pub(super) is_written_out: bool,
    /// The last connection is closed.
    pub(super) is_link_ended: bool,
    /// Nothing would be lost.
    pub(super) is_safe: bool,
}

impl Ending {
    /// The step that follows, if this one is over or has taken too long.
    pub(super) fn next(self, standing: Standing, now: Millis) -> Option<Self> {
        match self {
            Self::Plugins { deadline } if standing.are_plugins_quiet || now >= deadline => {
                Some(Self::Flush { deadline: now + END_OF_FLUSH_MS })
            }
            Self::Flush { deadline } if !standing.is_streaming || standing.is_written_out || now >= deadline => {
                Some(Self::Stream)
            }
            Self::Stream if standing.is_link_ended => Some(Self::Spool { deadline: now + END_OF_SPOOL_MS }),
            Self::Spool { deadline } if standing.is_safe || now >= deadline => Some(Self::Done),
            Self::No | Self::Plugins { .. } | Self::Flush { .. } | Self::Stream | Self::Spool { .. } | Self::Done => {
                None
            }
        }
    }

    /// Returns true once plugins write nothing more, so that nothing waits for company.
    pub(super) fn is_flushing(self) -> bool {
        !matches!(self, Self::No | Self::Plugins { .. })
    }

    /// When the agent goes on to the next step whether or not this one is done.
    pub(super) fn deadline(self) -> Option<Millis> {
        match self {
            Self::Plugins { deadline } | Self::Flush { deadline } | Self::Spool { deadline } => Some(deadline),
            Self::No | Self::Stream | Self::Done => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plugin runs, a stream has something to write, and not all is on the disk.
    const BUSY: Standing = Standing {
        are_plugins_quiet: false,
        is_streaming: true,
        is_written_out: false,
        is_link_ended: false,
        is_safe: false,
    };

    #[test]
    fn each_step_waits_for_what_it_is_for_and_no_longer_than_to_its_deadline() {
        let deadline = Millis(100);
        let flush = |now| Ending::Flush { deadline: Millis(now + END_OF_FLUSH_MS) };
        let steps = [
            (Ending::Plugins { deadline }, Standing { are_plugins_quiet: true, ..BUSY }, flush(99), flush(100)),
            (Ending::Flush { deadline }, Standing { is_written_out: true, ..BUSY }, Ending::Stream, Ending::Stream),
            (Ending::Flush { deadline }, Standing { is_streaming: false, ..BUSY }, Ending::Stream, Ending::Stream),
            (Ending::Spool { deadline }, Standing { is_safe: true, ..BUSY }, Ending::Done, Ending::Done),
        ];
        for (step, done, next, late) in steps {
            assert_eq!((step.deadline(), step.next(BUSY, Millis(99))), (Some(deadline), None), "{step:?}");
            assert_eq!(step.next(done, Millis(99)), Some(next));
            assert_eq!(step.next(BUSY, deadline), Some(late));
        }
    }

    #[test]
    fn the_stream_has_no_deadline_but_its_own_and_what_is_over_or_not_begun_stays() {
        let ended = Standing { is_link_ended: true, ..BUSY };
        let spool = Ending::Spool { deadline: Millis(7 + END_OF_SPOOL_MS) };
        assert_eq!((Ending::Stream.next(BUSY, Millis(7)), Ending::Stream.next(ended, Millis(7))), (None, Some(spool)));
        for step in [Ending::No, Ending::Stream, Ending::Done] {
            assert_eq!(step.deadline(), None);
        }
        for step in [Ending::No, Ending::Done] {
            assert_eq!(step.next(Standing { is_safe: true, are_plugins_quiet: true, ..ended }, Millis(7)), None);
        }
    }
}
