//! Rules for files (landlock(7)): what a confined plugin may read, execute and write.
//!
//! The three system calls are made by hand: the crate `landlock` is 18 KB of the agent, and makes rules where memory may not be
//! allocated any more or not at all.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::super::process::raised;
use super::filter::NEW;

const CREATE_RULESET: libc::c_long = NEW + 444;
const ADD_RULE: libc::c_long = NEW + 445;
const RESTRICT_SELF: libc::c_long = NEW + 446;

/// Rights on files (linux/landlock.h): execute and read, and list directories.
pub(super) const READ: u64 = 1 << 0 | 1 << 2 | 1 << 3;
/// All of the newest version that is known.
pub(super) const ALL: u64 = (1 << 16) - 1;
/// Those that a file can have: execute, write, read, truncate, and control a device.
const OF_FILE: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;

/// To bind and to connect by TCP, since version 4.
const TCP: u64 = 0b11;
/// Not to reach abstract sockets or signal processes outside, since version 6.
const SCOPES: u64 = 0b11;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    files: u64,
    network: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

/// Rules that refuse everything that they do not allow.
#[derive(Debug)]
pub(super) struct Rules {
    rules: OwnedFd,
    handled: u64,
    /// What they cover in this version of the kernel's interface.
    pub(super) covers: &'static str,
}

impl Rules {
    /// Rules that allow nothing, but all of TCP if `network` is true.
    ///
    /// # Errors
    /// On kernels that do not have Landlock, or that have it switched off.
    pub(super) fn new(network: bool) -> io::Result<Self> {
        const VERSION: u32 = 1;
        // SAFETY: with this flag, the kernel takes no attributes.
        let version = unsafe { libc::syscall(CREATE_RULESET, 0_usize, 0_usize, VERSION) };
        #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
        let version = i64::from(version);
        let handled = match version {
            ..1 => return Err(io::Error::last_os_error()),
            1 => ALL >> 3,
            2 => ALL >> 2,
            3 | 4 => ALL >> 1,
            _ => ALL,
        };
        let attributes = Attributes {
            files: handled,
            network: if network || version < 4 { 0 } else { TCP },
            scopes: if version < 6 { 0 } else { SCOPES },
        };
        // An older kernel takes fewer fields.
        let size: usize = match version {
            ..4 => 8,
            4 | 5 => 16,
            _ => 24,
        };
        // SAFETY: the kernel reads so many bytes of the attributes.
        let rules = unsafe { libc::syscall(CREATE_RULESET, &raw const attributes, size, 0) };
        let rules = i32::try_from(rules).ok().filter(|rules| *rules >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has made this descriptor for this call.
        let rules = unsafe { OwnedFd::from_raw_fd(rules) };
        let covers = match version {
            ..4 => "own files",
            4 | 5 => "own files, no tcp",
            _ => "own files, no tcp, no signals",
        };
        Ok(Self { rules: raised(&rules)?, handled, covers })
    }

    /// Allows this on a file, or on everything below a directory.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn allow(&self, path: &Path, rights: u64) -> io::Result<()> {
        let file = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
        let of_kind = if file.metadata()?.is_dir() { ALL } else { OF_FILE };
        let beneath = Beneath { allowed: rights & of_kind & self.handled, parent: file.as_raw_fd() };
        const PATH_BENEATH: u32 = 1;
        // SAFETY: the kernel reads the structure.
        let done = unsafe { libc::syscall(ADD_RULE, self.rules.as_raw_fd(), PATH_BENEATH, &raw const beneath, 0) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Restricts the calling process. Allocates nothing.
    ///
    /// # Errors
    /// When the process may get new rights by exec.
    pub(super) fn restrict_self(&self) -> io::Result<()> {
        // SAFETY: a system call on plain numbers.
        let done = unsafe { libc::syscall(RESTRICT_SELF, self.rules.as_raw_fd(), 0) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
