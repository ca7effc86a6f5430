//! The line of `/proc/<pid>/stat` (proc_pid_stat(5)).

use crate::event::{Comm, Pid};

/// The fields of the line that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) comm: Comm,
    /// The state of the first thread, a letter. `Z` and `X` are threads that have ended.
    pub(crate) state: u8,
    /// Number of the process's threads. The first one counts until the process is gone, even if it has ended before others.
    pub(crate) threads: u32,
    /// `None` once the process has been reaped. The kernel then shows a parent 0 and a group and session of -1.
    pub(crate) family: Option<Family>,
    /// The controlling terminal's device number, or 0 for none.
    pub(crate) tty: u32,
    pub(crate) flags: u32,
    /// Start of the process in clock ticks after the system's start.
    pub(crate) start_time: u64,
    /// The stack's address, which an exec changes, or 0 if the reader may not know it.
    pub(crate) start_stack: u64,
}

/// A process's parent, group and session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) parent: Pid,
    pub(crate) group: Pid,
    pub(crate) session: Pid,
}

impl Stat {
    /// Parses the line. The name is in parentheses and may contain any of them, so it ends at the last one.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let name = line.get(open + 1..close)?;
        let rest = str::from_utf8(line.get(close + 1..)?).ok()?;
        // Number the fields as the manual does: the state is field 3.
        let mut fields = (3..).zip(rest.split_ascii_whitespace());
        let mut field = |number| fields.find(|(at, _)| *at == number).map(|(_, text)| text);
        Some(Self {
            comm: Comm::new(name),
            state: *field(3)?.as_bytes().first()?,
            family: family(field(4)?, field(5)?, field(6)?)?,
            tty: field(7)?.parse::<i32>().ok()?.cast_unsigned(),
            flags: field(9)?.parse().ok()?,
            threads: field(20)?.parse().ok()?,
            start_time: field(22)?.parse().ok()?,
            start_stack: field(28)?.parse().ok()?,
        })
    }

    /// Returns true when the process has ended and waits for its parent.
    pub(crate) fn has_ended(&self) -> bool {
        self.first_thread_has_ended() && self.threads <= 1
    }

    /// Returns true when the first thread has ended or is about to. /proc may then no longer show the process's memory.
    pub(crate) fn is_ending(&self) -> bool {
        const PF_EXITING: u32 = 0x4;
        self.first_thread_has_ended() || self.flags & PF_EXITING != 0
    }

    pub(crate) fn first_thread_has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Returns true for a thread of the kernel, which executes nothing.
    pub(crate) fn is_kernel_thread(&self) -> bool {
        const PF_KTHREAD: u32 = 0x0020_0000;
        self.flags & PF_KTHREAD != 0
    }
}

/// The outer `None` is a malformed field.
fn family(parent: &str, group: &str, session: &str) -> Option<Option<Family>> {
    let pid = |text: &str| text.parse::<i32>().ok();
    let (parent, group, session) = (pid(parent)?, pid(group)?, pid(session)?);
    Some(match (parent.try_into(), group.try_into(), session.try_into()) {
        (Ok(parent), Ok(group), Ok(session)) => Some(Family { parent, group, session }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    const TAIL: &str = "S 161 162 97 34816 -1 4194304 101 0 0 0 0 0 0 0 20 0 1 0 67944 3133440 412 18446744073709551615 \
                        94662348562432 94662348582313 140734142512928 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0";

    fn with_name(name: &[u8]) -> Vec<u8> {
        [b"5254 (", name, b") ", TAIL.as_bytes(), b"\n"].concat()
    }

    #[test]
    fn every_field_is_found_behind_any_name() {
        for name in [&b"cat"[..], b"a) b (c", b")", b"", b"((", b"x) S 1 1 1", b"line\nbreak", b"\xff\xfe"] {
            let stat = Stat::parse(&with_name(name)).unwrap();
            let expected = Stat {
                comm: Comm::new(name),
                state: b'S',
                threads: 1,
                family: Some(Family { parent: 161, group: 162, session: 97 }),
                tty: 34816,
                flags: 4194304,
                start_time: 67944,
                start_stack: 140734142512928,
            };
            assert_eq!(stat, expected);
            assert!(!stat.has_ended() && !stat.is_kernel_thread());
        }
    }

    #[test]
    fn a_process_on_its_last_breath_has_no_family() {
        let line = with_name(b"x").escape_ascii().to_string().replace("S 161 162 97", "X 0 -1 -1");
        let stat = Stat::parse(line.as_bytes()).unwrap();
        assert_eq!((stat.family, stat.has_ended()), (None, true));
    }

    #[test]
    fn a_process_has_ended_with_its_last_thread() {
        let living = Stat::parse(&with_name(b"x")).unwrap();
        let ended = |state, threads| Stat { state, threads, ..living }.has_ended();
        assert!(ended(b'Z', 1) && ended(b'X', 0));
        assert!(!ended(b'Z', 2) && !ended(b'S', 1));
        assert!(Stat { state: b'Z', threads: 2, ..living }.is_ending());
    }

    proptest! {
        #[test]
        fn any_name_is_kept(name in vec(1u8..=255, 0..16)) {
            let stat = Stat::parse(&with_name(&name)).unwrap();
            prop_assert_eq!(stat.comm, Comm::new(&name));
            prop_assert_eq!(stat.start_stack, 140734142512928);
        }

        #[test]
        fn garbage_does_no_harm(line in vec(any::<u8>(), 0..200)) {
            let _ = Stat::parse(&line);
        }

        #[test]
        fn a_cut_line_does_no_harm(len in 0usize..200) {
            let line = with_name(b"cut)");
            let _ = Stat::parse(&line[..len.min(line.len())]);
        }
    }
}
