//! The filter that the kernel runs over each event before it is queued: a classic BPF program (socket(7), SO_ATTACH_FILTER).
//!
//! It lets pass the kinds that [`crate::event::Event`] knows when the process's first thread is concerned. Thread starts and
//! ends, which are most of a busy host's events, so never wake this process. Should the kernel's messages have another shape
//! one day, a load past their end rejects them.

use crate::event::{CONNECTOR_HEADER, EVENT_DATA, NETLINK_HEADER, what};
use socket2::SockFilter;

/// The program in the form that a socket takes.
pub(crate) fn program() -> [SockFilter; PROGRAM.len()] {
    PROGRAM.map(|Instruction { code, then, otherwise, value }| SockFilter::new(code, then, otherwise, value))
}

/// A `struct sock_filter`: jumps skip `then` or `otherwise` instructions.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u16,
    then: u8,
    otherwise: u8,
    value: u32,
}

/// Offsets of words in the datagram.
const WHAT: u32 = 36;
const FIRST_THREAD: u32 = 52;
const FIRST_PROCESS: u32 = 56;
const CHILD_THREAD: u32 = 60;
const CHILD_PROCESS: u32 = 64;
const _: () = assert!(WHAT as usize == NETLINK_HEADER + CONNECTOR_HEADER);
const _: () = assert!(FIRST_THREAD as usize == NETLINK_HEADER + CONNECTOR_HEADER + EVENT_DATA);

const PROGRAM: [Instruction; 19] = [
    load(WHAT),
    if_kind(what::NONE, 1, ACCEPT),
    if_kind(what::FORK, 2, FORK),
    if_kind(what::EXEC, 3, PROCESS),
    if_kind(what::EXIT, 4, PROCESS),
    if_kind(what::UID, 5, PROCESS),
    if_kind(what::SID, 6, PROCESS),
    if_kind(what::COMM, 7, PROCESS),
    give(0),
    // FORK: the event names the parent first and then the child.
    load(CHILD_THREAD),
    KEEP,
    load(CHILD_PROCESS),
    if_kept(12),
    // PROCESS
    load(FIRST_THREAD),
    KEEP,
    load(FIRST_PROCESS),
    if_kept(16),
    // ACCEPT
    give(u32::MAX),
    // REJECT
    give(0),
];
const FORK: u8 = 9;
const PROCESS: u8 = 13;
const ACCEPT: u8 = 17;
const REJECT: u8 = 18;

// Codes of linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL_VALUE: u16 = 0x15;
const JUMP_EQUAL_KEPT: u16 = 0x1d;
const RETURN: u16 = 0x06;
const KEEP: Instruction = Instruction { code: 0x07, then: 0, otherwise: 0, value: 0 };

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD_WORD, then: 0, otherwise: 0, value: offset }
}

/// Goes from the instruction numbered `at` to `target` when the loaded word is `kind`. Loads take the word as big-endian.
const fn if_kind(kind: u32, at: u8, target: u8) -> Instruction {
    Instruction { code: JUMP_EQUAL_VALUE, then: target - at - 1, otherwise: 0, value: kind.to_be() }
}

/// Goes from the instruction numbered `at` to the verdict: the loaded word has to be the kept one.
const fn if_kept(at: u8) -> Instruction {
    Instruction { code: JUMP_EQUAL_KEPT, then: ACCEPT - at - 1, otherwise: REJECT - at - 1, value: 0 }
}

const fn give(bytes: u32) -> Instruction {
    Instruction { code: RETURN, then: 0, otherwise: 0, value: bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{events, message};

    /// Runs the program as the kernel does.
    fn passes(datagram: &[u8]) -> bool {
        let (mut loaded, mut kept, mut at) = (0, 0, 0);
        loop {
            let Instruction { code, then, otherwise, value } = PROGRAM[at];
            let jump = |condition| usize::from(if condition { then } else { otherwise });
            at += 1;
            match code {
                LOAD_WORD => match datagram.get(value as usize..).and_then(|bytes| bytes.first_chunk()) {
                    Some(bytes) => loaded = u32::from_be_bytes(*bytes),
                    None => return false,
                },
                JUMP_EQUAL_VALUE => at += jump(loaded == value),
                JUMP_EQUAL_KEPT => at += jump(loaded == kept),
                RETURN => return value > 0,
                _ => kept = loaded,
            }
        }
    }

    #[test]
    fn passes_just_what_is_an_event() {
        let kinds = [what::NONE, what::FORK, what::EXEC, what::EXIT, what::UID, what::SID, what::COMM, 0x40, 0x100, 3];
        for kind in kinds {
            for words in [[5, 5, 5, 5], [5, 5, 6, 5], [6, 5, 5, 5], [5, 5, 6, 6], [6, 5, 7, 5]] {
                let datagram = message(kind, &words);
                let event = events(&datagram).next();
                assert_eq!(passes(&datagram), event.is_some(), "kind {kind:#x} with {words:?}");
            }
        }
    }

    #[test]
    fn rejects_what_is_cut() {
        let datagram = message(what::EXEC, &[5, 5]);
        assert!((0..datagram.len()).all(|len| !passes(&datagram[..len])));
    }
}
