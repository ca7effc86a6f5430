//! Elklet's core on a Cortex-M3 with an allocator and nothing else.
//!
//! The scenario goes to the semihosting host's standard output, where `.ci/firmware` compares it with `expected.txt`. What this
//! machine needed for it goes to standard error, because it is different on every machine.
#![no_std]
#![no_main]

extern crate alloc;

mod heap;

use alloc::boxed::Box;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use cortex_m::singleton;
use cortex_m_rt::entry;
use cortex_m_semihosting::debug::{self, EXIT_FAILURE, EXIT_SUCCESS};
use cortex_m_semihosting::hio::{self, HostStream};
use elklet_core::limits::{ARENA_BYTES, SLOTS};
use elklet_core::record::buffer::RecordBuffer;
use elklet_firmware_scenario::send_records;

/// Slots and bytes of the buffer that a small device would have.
const SMALL: (usize, usize) = (256, 16 << 10);

#[entry]
fn main() -> ! {
    let done = hio::hstdout().and_then(|out| Ok((out, hio::hstderr()?)));
    let passed = done.is_ok_and(|(mut out, mut measured)| run(&mut out, &mut measured).is_ok());
    debug::exit(if passed { EXIT_SUCCESS } else { EXIT_FAILURE });
    // Without a semihosting host nobody ends the program.
    loop {
        cortex_m::asm::wfi();
    }
}

fn run(out: &mut HostStream, measured: &mut HostStream) -> fmt::Result {
    heap::init();
    // The arena of the agent's own buffer does not fit the heap; it is a static, and lent to the buffer for good.
    let arena: &'static mut [u8] = singleton!(: [u8; ARENA_BYTES] = [0; ARENA_BYTES]).ok_or(fmt::Error)?;
    {
        let mut buffer = Box::new(RecordBuffer::<_, SLOTS>::new(&mut *arena));
        note(measured, "a buffer of 8,192 slots takes beside its arena", size_of_val(&*buffer))?;
        send_records(out, &mut *buffer, &mut |_| {})?;
    }
    note(measured, "heap used at most by records, large buffer", heap::take_peak())?;
    {
        let mut buffer = Box::new(RecordBuffer::<_, { SMALL.0 }>::new(&mut arena[..SMALL.1]));
        note(measured, "a buffer of 256 slots takes beside its arena", size_of_val(&*buffer))?;
        send_records(out, &mut *buffer, &mut |_| {})?;
    }
    note(measured, "heap used at most by records, small buffer", heap::take_peak())?;
    #[cfg(feature = "commands")]
    {
        elklet_firmware_scenario::obey(out)?;
        note(measured, "heap used at most by commands", heap::take_peak())?;
    }
    note(measured, "heap still used at the end", heap::used())?;
    note(measured, "stack used at most", stack_used())
}

fn note(measured: &mut HostStream, what: &str, bytes: usize) -> fmt::Result {
    writeln!(measured, "{what}: {bytes} bytes")
}

/// Bytes of the stack that were ever written to: cortex-m-rt has painted all of it before `main`.
fn stack_used() -> usize {
    unsafe extern "C" {
        static _stack_start: u32;
        static _stack_end: u32;
    }
    let (top, bottom) = (&raw const _stack_start, &raw const _stack_end);
    let mut lowest = bottom;
    // SAFETY: the linker script puts nothing but the stack between the two symbols, both are aligned to words, and every word there
    // was painted. A volatile read keeps the compiler from reasoning about memory that Rust knows nothing of.
    while lowest < top && unsafe { lowest.read_volatile() } == cortex_m_rt::STACK_PAINT_VALUE {
        lowest = lowest.wrapping_add(1);
    }
    top as usize - lowest as usize
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if let Ok(mut host) = hio::hstderr() {
        // Nobody is left to tell if this fails.
        let _ = writeln!(host, "{info}");
    }
    debug::exit(EXIT_FAILURE);
    loop {
        cortex_m::asm::wfi();
    }
}
