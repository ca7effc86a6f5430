//! What the static binaries of this workspace have in the place of some functions of other libraries.
//!
//! A linker takes a function from a library only while nothing else has its name, so that whoever links this crate gets
//! these. It is empty where they are not needed.

#[cfg(all(target_env = "musl", target_pointer_width = "32"))]
mod clock;
#[cfg(all(target_env = "musl", panic = "abort", not(target_arch = "arm")))]
mod unwinding;
