//! Replaces the unwinder in what ships: static binaries that abort on a panic and are linked without unwind tables.
//!
//! Rust's library prints the stack of a panic on request, and so brings an unwinder and a reader of debug information
//! into every binary. They take 200 KB and find nothing here, because the tables are missing and the names are
//! stripped. These functions have the unwinder's names and find nothing either. The compiler can see that, and leaves
//! all the rest out. A panic's message and place are printed as before.
//!
//! The names and signatures are those of the Itanium C++ ABI, level II. The library calls no others. 32-bit ARM has an
//! unwinder of another kind.
#![allow(missing_docs, reason = "the ABI's own documentation is the only one that counts")]
#![allow(non_snake_case, reason = "names of the ABI")]
#![allow(clippy::missing_const_for_fn, reason = "they are called by name")]

use std::ffi::{c_int, c_void};
use std::ptr;

/// `_URC_END_OF_STACK`: there are no frames.
const END_OF_STACK: c_int = 5;

// SAFETY, for all of these: no other definition of the name is linked, since the linker takes the unwinder's library only for
// names that are still missing. None of them touches its arguments.

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_visit: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume(_exception: *mut c_void) -> ! {
    std::process::abort()
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetIP(_context: *mut c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetIPInfo(_context: *mut c_void, _before: *mut c_int) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetLanguageSpecificData(_context: *mut c_void) -> *mut c_void {
    ptr::null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetRegionStart(_context: *mut c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetTextRelBase(_context: *mut c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetDataRelBase(_context: *mut c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_SetGR(_context: *mut c_void, _register: c_int, _value: usize) {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_SetIP(_context: *mut c_void, _value: usize) {}
