//! Keeps a clock that is past January 2038 from ending a program on a processor of 32 bits.
//!
//! Rust's library asks musl for the time by the function of before 2020, whose seconds have 32 bits, and panics when it
//! fails. It fails after 2038-01-19T03:14:07Z, which a board reaches early when its battery is empty. This function has its name, and
//! answers with that last moment instead. What needs the right time asks the kernel by another way (`rustix`).
#![allow(missing_docs, reason = "the C library's own documentation is the only one that counts")]

use std::ffi::{c_int, c_long};

/// musl's `struct timespec` of before 2020.
#[repr(C)]
struct Timespec32 {
    seconds: i32,
    nanoseconds: i32,
}

/// musl's `struct timespec` of today, on processors with the lowest byte first.
#[repr(C)]
struct Timespec64 {
    seconds: i64,
    nanoseconds: c_long,
    padding: c_int,
}

#[cfg(target_endian = "big")]
compile_error!("`struct timespec` has its padding elsewhere there");

unsafe extern "C" {
    fn __clock_gettime64(clock: c_int, time: *mut Timespec64) -> c_int;
}

// SAFETY: no other definition of the name is linked. musl calls its own by another name. `time` is valid for writing, as
// the C library's documentation asks of the caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec32) -> c_int {
    let mut now = Timespec64 { seconds: 0, nanoseconds: 0, padding: 0 };
    // SAFETY: musl has had this function since 1.2, with this signature, and `now` is valid for writing.
    let code = unsafe { __clock_gettime64(clock, &raw mut now) };
    if code == 0 {
        let seconds = now.seconds.clamp(i32::MIN.into(), i32::MAX.into());
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
        // SAFETY: the caller's, see above.
        unsafe { time.write(Timespec32 { seconds, nanoseconds: now.nanoseconds }) };
    }
    code
}
