//! The filter that the kernel runs over each event before it queues it: a classic BPF program (socket(7), SO_ATTACH_FILTER).
//!
//! It accepts the kinds that [`crate::event::Event`] knows when they concern a process's first thread. Starts and ends
//! of other threads are most of a busy host's events and never wake this process, with one exception: a process whose
//! first thread has ended before the others ends with one of those, so the filter accepts their ends. If the kernel's
//! messages have another shape one day, a load past their end rejects them.

use crate::event::{CONNECTOR_HEADER, EVENT_DATA, NETLINK_HEADER, Pid, what};
use socket2::SockFilter;

/// The program in a socket's form. It accepts the ends of all threads of the given processes. If these are more than
/// [`MAX_LISTED`], it accepts the ends of every process's threads.
pub(crate) fn program(all_threads_of: &[Pid]) -> heapless::Vec<SockFilter, MAX_INSTRUCTIONS> {
    let form = |Instruction { code, then, otherwise, value }| SockFilter::new(code, then, otherwise, value);
    instructions(all_threads_of).into_iter().map(form).collect()
}

/// Most processes that the filter names. A host rarely has one whose first thread has ended. Each costs one comparison
/// for each end of a thread.
pub(crate) const MAX_LISTED: usize = 32;

/// [`BASE`], a comparison and a verdict for each process listed, and the last verdict.
const MAX_INSTRUCTIONS: usize = BASE.len() + 2 * MAX_LISTED + 1;

fn instructions(all_threads_of: &[Pid]) -> heapless::Vec<Instruction, MAX_INSTRUCTIONS> {
    let are_listed = all_threads_of.len() <= MAX_LISTED;
    let listed = if are_listed { all_threads_of } else { &[] };
    let others = give(if are_listed { 0 } else { u32::MAX });
    let comparisons = listed.iter().flat_map(|pid| [unless_skip(*pid), give(u32::MAX)]);
    BASE.into_iter().chain(comparisons).chain([others]).collect()
}

/// A `struct sock_filter`. Jumps skip `then` or `otherwise` instructions.
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

/// The program up to the comparison with listed processes, with the process's number loaded.
const BASE: [Instruction; 24] = [
    load(WHAT),
    if_kind(what::NONE, 1, ACCEPT),
    if_kind(what::FORK, 2, FORK),
    if_kind(what::EXEC, 3, PROCESS),
    if_kind(what::EXIT, 4, EXIT),
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
    // EXIT: of the first thread, or of any thread of a process listed below.
    load(FIRST_THREAD),
    KEEP,
    load(FIRST_PROCESS),
    Instruction { code: JUMP_EQUAL_KEPT, then: 0, otherwise: 1, value: 0 },
    give(u32::MAX),
];
const FORK: u8 = 9;
const PROCESS: u8 = 13;
const ACCEPT: u8 = 17;
const REJECT: u8 = 18;
const EXIT: u8 = 19;

// Codes of linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL_VALUE: u16 = 0x15;
const JUMP_EQUAL_KEPT: u16 = 0x1d;
const RETURN: u16 = 0x06;
const KEEP: Instruction = Instruction { code: 0x07, then: 0, otherwise: 0, value: 0 };

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD_WORD, then: 0, otherwise: 0, value: offset }
}

/// Jumps from instruction `at` to `target` when the loaded word is `kind`. Loads read the word as big-endian.
const fn if_kind(kind: u32, at: u8, target: u8) -> Instruction {
    Instruction { code: JUMP_EQUAL_VALUE, then: target - at - 1, otherwise: 0, value: kind.to_be() }
}

/// Jumps from instruction `at` to the verdict: the loaded word has to be the kept one.
const fn if_kept(at: u8) -> Instruction {
    Instruction { code: JUMP_EQUAL_KEPT, then: ACCEPT - at - 1, otherwise: REJECT - at - 1, value: 0 }
}

/// Goes on when the loaded word is `number`, and otherwise skips one instruction.
const fn unless_skip(number: u32) -> Instruction {
    Instruction { code: JUMP_EQUAL_VALUE, then: 0, otherwise: 1, value: number.to_be() }
}

const fn give(bytes: u32) -> Instruction {
    Instruction { code: RETURN, then: 0, otherwise: 0, value: bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, events, message};

    /// Runs the program as the kernel does.
    fn passes(all_threads_of: &[Pid], datagram: &[u8]) -> bool {
        let program = instructions(all_threads_of);
        let (mut loaded, mut kept, mut at) = (0, 0, 0);
        loop {
            let Instruction { code, then, otherwise, value } = program[at];
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
                let is_wanted = match events(&datagram).next() {
                    Some(Event::ThreadExit { thread, pid, .. }) => thread == pid,
                    event => event.is_some(),
                };
                assert_eq!(passes(&[], &datagram), is_wanted, "kind {kind:#x} with {words:?}");
            }
        }
    }

    #[test]
    fn ends_of_threads_pass_for_the_processes_named() {
        let exit = |thread, pid| message(what::EXIT, &[thread, pid, 0, 17]);
        let named: Vec<Pid> = (1..=32).map(|number| 0x0001_0002 * number).collect();
        for pid in &named {
            assert!(passes(&named, &exit(7, *pid)) && passes(&named, &exit(*pid, *pid)));
            assert!(!passes(&named, &message(what::COMM, &[7, *pid, 0, 0, 0, 0])));
        }
        assert!(!passes(&named, &exit(7, 8)) && passes(&named, &exit(8, 8)));
        assert!(!passes(&named[1..], &exit(7, named[0])));
        let too_many: Vec<Pid> = (1..=33).collect();
        assert!(passes(&too_many, &exit(7, 1)) && passes(&too_many, &exit(7, 1000)));
    }

    #[test]
    fn rejects_what_is_cut() {
        let datagram = message(what::EXEC, &[5, 5]);
        assert!((0..datagram.len()).all(|len| !passes(&[], &datagram[..len])));
    }
}
