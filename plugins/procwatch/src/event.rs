//! Parses the kernel's process events from the bytes of a netlink datagram.
//!
//! A datagram holds netlink messages (`struct nlmsghdr`, netlink(7)), each with one connector message (`struct cn_msg`) that
//! holds one `struct proc_event` (linux/cn_proc.h). All numbers are in the host's byte order. The parser skips what is too
//! short, foreign or about a thread that is not its process's first, except for the end of a thread. Nothing here can panic.

use std::fmt;

/// A process id in the initial pid namespace.
pub(crate) type Pid = u32;

/// One thing that happened to a process, or the kernel's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The answer to a subscription: 0 or an error number.
    Answer { error: u32 },
    /// A process was born as a copy of its parent.
    Fork { parent: Pid, child: Pid },
    /// A process was found that has executed nothing of its own yet. The kernel reports its birth instead.
    Found { pid: Pid },
    /// A process became another program.
    Exec { pid: Pid },
    /// A process has another real user id.
    Uid { pid: Pid, uid: u32 },
    /// A process has begun a session of its own.
    Sid { pid: Pid },
    /// A process has given itself another name.
    Comm { pid: Pid, comm: Comm },
    /// A process has ended.
    Exit { pid: Pid },
    /// A thread of a process has ended, at a time in nanoseconds of the monotonic clock. The process ends with its last
    /// thread, which need not be its first one.
    ThreadExit { thread: Pid, pid: Pid, at_ns: u64 },
}

/// The events of one datagram, in order.
pub(crate) fn events(datagram: &[u8]) -> impl Iterator<Item = Event> {
    messages(datagram).filter_map(proc_event).filter_map(Event::parse)
}

impl Event {
    fn parse(event: &[u8]) -> Option<Self> {
        let at = |index: usize| word(event, EVENT_DATA + 4 * index);
        // Each event names a thread and its process. Only what the first thread does counts as done by the process.
        let pid = || at(0).filter(|thread| at(1) == Some(*thread));
        match word(event, 0)? {
            what::NONE => at(0).map(|error| Self::Answer { error }),
            what::FORK => {
                let child = at(2).filter(|thread| at(3) == Some(*thread))?;
                // The parent's process, whichever of its threads forked.
                Some(Self::Fork { parent: at(1)?, child })
            }
            what::EXEC => Some(Self::Exec { pid: pid()? }),
            what::UID => Some(Self::Uid { pid: pid()?, uid: at(2)? }),
            what::SID => Some(Self::Sid { pid: pid()? }),
            what::COMM => {
                let name = event.get(EVENT_DATA + 8..)?;
                Some(Self::Comm { pid: pid()?, comm: Comm::new(name) })
            }
            what::EXIT => Some(Self::ThreadExit { thread: at(0)?, pid: at(1)?, at_ns: long(event, EVENT_TIME)? }),
            _ => None,
        }
    }
}

/// The kinds of `enum proc_cn_event`.
pub(crate) mod what {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const FORK: u32 = 0x1;
    pub(crate) const EXEC: u32 = 0x2;
    pub(crate) const UID: u32 = 0x4;
    pub(crate) const SID: u32 = 0x80;
    pub(crate) const COMM: u32 = 0x200;
    pub(crate) const EXIT: u32 = 0x8000_0000;
}

/// The lengths of `struct nlmsghdr` and `struct cn_msg`.
pub(crate) const NETLINK_HEADER: usize = 16;
pub(crate) const CONNECTOR_HEADER: usize = 20;
/// Offset of the time in a `struct proc_event`, after `what` and `cpu`.
const EVENT_TIME: usize = 8;
/// Offset of the union in a `struct proc_event`, after `what`, `cpu` and `timestamp_ns`.
pub(crate) const EVENT_DATA: usize = 16;
/// `CN_IDX_PROC` and `CN_VAL_PROC`: the process events among a connector's messages.
pub(crate) const PROC_INDEX: u32 = 1;
pub(crate) const PROC_VALUE: u32 = 1;
/// `NLMSG_DONE`, the type of connector messages.
pub(crate) const DONE: u16 = 3;

/// The bodies of the netlink messages that are of the connector's type.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let len = word(rest, 0)? as usize;
            let message = rest.get(..len)?;
            let body = message.get(NETLINK_HEADER..)?;
            // Messages begin at multiples of four.
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            if half(message, 4) == Some(DONE) {
                return Some(body);
            }
        }
    })
}

fn proc_event(message: &[u8]) -> Option<&[u8]> {
    if word(message, 0)? != PROC_INDEX || word(message, 4)? != PROC_VALUE {
        return None;
    }
    let len = half(message, 16)?;
    message.get(CONNECTOR_HEADER..)?.get(..len.into())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A process's short name: at most 15 bytes, of any kind but NUL.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Comm {
    bytes: [u8; 15],
    len: u8,
}

impl Comm {
    /// Takes the name up to a NUL, its fifteenth byte, or its end.
    pub(crate) fn new(name: &[u8]) -> Self {
        let mut comm = Self::default();
        for (to, from) in comm.bytes.iter_mut().zip(name.iter().take_while(|byte| **byte != 0)) {
            *to = *from;
            comm.len += 1;
        }
        comm
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// A netlink message with a process event of the kind and the words given.
#[cfg(test)]
pub(crate) fn message(what: u32, words: &[u32]) -> Vec<u8> {
    let event_len = EVENT_DATA + 4 * words.len();
    let len = NETLINK_HEADER + CONNECTOR_HEADER + event_len;
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(len).unwrap().to_ne_bytes());
    bytes.extend(DONE.to_ne_bytes());
    bytes.extend([0; 10]);
    bytes.extend([PROC_INDEX, PROC_VALUE, 7, 0].iter().flat_map(|word| word.to_ne_bytes()));
    bytes.extend(u16::try_from(event_len).unwrap().to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(what.to_ne_bytes());
    bytes.extend([0; 12]);
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn parse(bytes: &[u8]) -> Vec<Event> {
        events(bytes).collect()
    }

    #[test]
    fn every_kind_is_read() {
        let name = u32::from_ne_bytes(*b"cat\0");
        let cases = [
            (message(what::NONE, &[1]), Event::Answer { error: 1 }),
            (message(what::FORK, &[11, 10, 20, 20]), Event::Fork { parent: 10, child: 20 }),
            (message(what::EXEC, &[5, 5]), Event::Exec { pid: 5 }),
            (message(what::UID, &[5, 5, 1000, 0]), Event::Uid { pid: 5, uid: 1000 }),
            (message(what::SID, &[5, 5]), Event::Sid { pid: 5 }),
            (message(what::COMM, &[5, 5, name, 0, 0, 0]), Event::Comm { pid: 5, comm: Comm::new(b"cat") }),
            (message(what::EXIT, &[5, 5, 0, 17]), Event::ThreadExit { thread: 5, pid: 5, at_ns: 0 }),
            (message(what::EXIT, &[6, 5, 0, 17]), Event::ThreadExit { thread: 6, pid: 5, at_ns: 0 }),
        ];
        for (bytes, event) in &cases {
            assert_eq!(parse(bytes), [*event]);
        }
        let all: Vec<u8> = cases.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        assert_eq!(parse(&all), cases.map(|(_, event)| event));
    }

    #[test]
    fn an_end_has_its_time() {
        let mut bytes = message(what::EXIT, &[5, 5, 0, 17]);
        let time_at = NETLINK_HEADER + CONNECTOR_HEADER + EVENT_TIME;
        bytes[time_at..time_at + 8].copy_from_slice(&0x0102_0304_0506_u64.to_ne_bytes());
        assert_eq!(parse(&bytes), [Event::ThreadExit { thread: 5, pid: 5, at_ns: 0x0102_0304_0506 }]);
    }

    #[test]
    fn threads_are_passed_over() {
        assert_eq!(parse(&message(what::EXEC, &[6, 5])), []);
        assert_eq!(parse(&message(what::FORK, &[5, 5, 6, 5])), []);
        assert_eq!(parse(&message(what::COMM, &[6, 5, 0, 0, 0, 0])), []);
    }

    #[test]
    fn foreign_messages_are_passed_over() {
        let mut other_type = message(what::EXEC, &[5, 5]);
        other_type[4] = 2;
        let mut other_index = message(what::EXEC, &[5, 5]);
        other_index[NETLINK_HEADER] = 9;
        let both: Vec<u8> = [other_type, other_index, message(what::EXEC, &[8, 8])].concat();
        assert_eq!(parse(&both), [Event::Exec { pid: 8 }]);
        assert_eq!(parse(&message(0x40, &[5, 5])), []);
    }

    #[test]
    fn a_cut_message_is_no_event() {
        let whole = message(what::FORK, &[11, 10, 20, 20]);
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), [], "{len} bytes");
        }
    }

    #[test]
    fn names_end_at_a_nul_or_after_fifteen_bytes() {
        assert_eq!(Comm::new(b"a) b (c\0rest").as_bytes(), b"a) b (c");
        assert_eq!(Comm::new(b"0123456789abcdefgh").as_bytes(), b"0123456789abcde");
        assert_eq!(Comm::new(b"").as_bytes(), b"");
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(bytes in vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn one_wrong_byte_does_no_harm(at in 0usize..136, byte: u8) {
            let mut bytes = [message(what::FORK, &[11, 10, 20, 20]), message(what::EXEC, &[5, 5])].concat();
            let at = at % bytes.len();
            bytes[at] = byte;
            prop_assert!(parse(&bytes).len() <= 2);
        }
    }
}
