//! What the program `old-kernel` and those who start it know of Linux 3.10's system calls.

/// The number of the first system call that came after Linux 3.10, which is `sched_setattr` of 3.14. Whatever came later has a higher
/// number on these architectures, where no gap was ever filled. `None` on others.
pub const FIRST_LATER_CALL: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(314)
} else if cfg!(target_arch = "aarch64") {
    Some(274)
} else {
    None
};

/// What a filter of system calls sees of this architecture (`AUDIT_ARCH_*` in linux/audit.h).
pub const THIS_ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else {
    None
};
