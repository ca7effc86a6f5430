//! Reads one process's directory under /proc into the caller's buffers.
//!
//! The directory is opened once. From then on its descriptor means that process and no other. When the process is gone,
//! reads fail, even if a new process has its number.

use crate::event::Pid;
use crate::stat::Stat;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, readlinkat_raw, statat};
use rustix::io::{Errno, read};
use std::ffi::CStr;
use std::fmt::Write;
use std::os::fd::OwnedFd;

/// `/proc/<pid>`, open.
pub(crate) struct ProcDir {
    dir: OwnedFd,
}

/// A file's identity and state. If this is the same, so are the contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileKey {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Seconds and nanoseconds of the last change of contents. The latter's type differs by architecture, and this holds all of them.
    pub(crate) modified: (i64, i128),
    /// Length in bytes.
    pub(crate) len: u64,
}

/// Room for a path, including the terminating NUL (`PATH_MAX`).
pub(crate) const PATH_BYTES: usize = 4096;

/// Most bytes of an environment that are read. Processes usually have a few KiB.
const ENVIRON_BYTES: usize = 128 * 1024;
const ENVIRON_USUAL_BYTES: usize = 8 * 1024;

impl ProcDir {
    pub(crate) fn open(pid: Pid) -> Result<Self, Errno> {
        let mut path = heapless::String::<16>::new();
        write!(path, "/proc/{pid}").map_err(|_| Errno::NAMETOOLONG)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: openat(CWD, path.as_str(), flags, Mode::empty())? })
    }

    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        let mut line = [0; 1024];
        Stat::parse(self.read(c"stat", &mut line)?).ok_or(Errno::INVAL)
    }

    /// The real user id.
    pub(crate) fn uid(&self) -> Result<u32, Errno> {
        // The line is the ninth or so, a few hundred bytes in.
        let mut status = [0; 2048];
        parse_uid(self.read(c"status", &mut status)?).ok_or(Errno::INVAL)
    }

    /// The audit session.
    pub(crate) fn session_id(&self) -> Result<u32, Errno> {
        let mut digits = [0; 16];
        number(self.read(c"sessionid", &mut digits)?).ok_or(Errno::INVAL)
    }

    /// The number of a namespace, by its name under `ns/`.
    pub(crate) fn namespace(&self, name: &CStr) -> Result<u32, Errno> {
        let mut link = [0; 64];
        parse_namespace(self.link(name, &mut link)?).ok_or(Errno::INVAL)
    }

    /// A symbolic link's target, as much as fits.
    pub(crate) fn link<'b>(&self, name: &CStr, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let len = readlinkat_raw(&self.dir, name, &mut *buffer)?;
        Ok(buffer.get(..len).unwrap_or_default())
    }

    /// The beginning of a file: the result of one `read`, which for files of /proc is all that fits.
    pub(crate) fn read<'b>(&self, name: &CStr, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let len = read_some(&self.open_file(name)?, &mut *buffer)?;
        Ok(buffer.get(..len).unwrap_or_default())
    }

    /// The executable's identity, without opening it.
    #[allow(clippy::useless_conversion, reason = "nanoseconds have 32 bits where words do")]
    pub(crate) fn exe_key(&self) -> Result<FileKey, Errno> {
        let stat = statat(&self.dir, c"exe", AtFlags::empty())?;
        Ok(FileKey {
            device: stat.st_dev,
            inode: stat.st_ino,
            modified: (stat.st_mtime, i128::from(stat.st_mtime_nsec)),
            len: stat.st_size.cast_unsigned(),
        })
    }

    /// Opens the executable itself, wherever its path leads by now.
    pub(crate) fn open_exe(&self) -> Result<OwnedFd, Errno> {
        self.open_file(c"exe")
    }

    /// Reads the environment into `buffer`, which is emptied first.
    pub(crate) fn environ<'b>(&self, buffer: &'b mut Vec<u8>) -> Result<Environ<'b>, Errno> {
        let file = self.open_file(c"environ")?;
        let mut have = 0;
        buffer.resize(ENVIRON_USUAL_BYTES, 0);
        loop {
            // The kernel returns less than it was asked for only at the end.
            let space = buffer.get_mut(have..).unwrap_or_default();
            let room = space.len();
            let count = read_some(&file, space)?;
            have += count;
            let is_whole = count < room;
            if is_whole || have >= ENVIRON_BYTES {
                return Ok(Environ { bytes: buffer.get(..have).unwrap_or_default(), is_whole });
            }
            buffer.resize(2 * have, 0);
        }
    }

    fn open_file(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }
}

/// Calls `read`, and repeats it after a signal.
pub(crate) fn read_some(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match read(file, &mut *buffer) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// A process's environment as it was when its program started.
pub(crate) struct Environ<'b> {
    bytes: &'b [u8],
    is_whole: bool,
}

impl<'b> Environ<'b> {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Finds a variable's value. Returns `Ok(None)` if there is none, and `Err` if it may be in the part that was not read.
    pub(crate) fn find(&self, name: &str) -> Result<Option<&'b [u8]>, Errno> {
        let value = self.bytes.split(|byte| *byte == 0).find_map(|variable| {
            let value = variable.strip_prefix(name.as_bytes())?;
            value.strip_prefix(b"=")
        });
        match value {
            None if !self.is_whole => Err(Errno::TOOBIG),
            value => Ok(value),
        }
    }
}

/// The first number of the line `Uid:`. A name cannot fake it, because the kernel writes the line breaks in a name as `\n`.
fn parse_uid(status: &[u8]) -> Option<u32> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:\t"))?;
    number(line.split(|byte| *byte == b'\t').next()?)
}

/// `pid:[4026531836]`
fn parse_namespace(link: &[u8]) -> Option<u32> {
    let open = link.iter().position(|byte| *byte == b'[')?;
    number(link.get(open + 1..)?.strip_suffix(b"]")?)
}

fn number(digits: &[u8]) -> Option<u32> {
    str::from_utf8(digits).ok()?.trim_ascii_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process;

    #[test]
    fn the_real_uid_is_read() {
        let status = b"Name:\ta\\nUid:\t7\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n";
        assert_eq!(parse_uid(status), Some(1000));
        assert_eq!(parse_uid(b"Name:\tx\nUid:\t"), None);
    }

    #[test]
    fn a_namespace_is_its_number() {
        assert_eq!(parse_namespace(b"pid:[4026531836]"), Some(4026531836));
        assert_eq!(parse_namespace(b"pid:[]"), None);
        assert_eq!(parse_namespace(b"]["), None);
    }

    #[test]
    fn variables_are_found_whole() {
        let bytes = b"A=1\0XLD_PRELOAD=no\0LD_PRELOAD=/x.so\0EMPTY=\0";
        let environ = Environ { bytes, is_whole: true };
        assert_eq!(environ.find("LD_PRELOAD"), Ok(Some(&b"/x.so"[..])));
        assert_eq!(environ.find("EMPTY"), Ok(Some(&b""[..])));
        assert_eq!(environ.find("LD_PRELOA"), Ok(None));
        let cut = Environ { bytes, is_whole: false };
        assert_eq!(cut.find("A"), Ok(Some(&b"1"[..])));
        assert_eq!(cut.find("MISSING"), Err(Errno::TOOBIG));
    }

    #[test]
    fn this_process_is_readable() {
        let dir = ProcDir::open(process::id()).unwrap();
        let stat = dir.stat().unwrap();
        assert_eq!(stat.family.map(|family| family.parent), Some(std::os::unix::process::parent_id()));
        assert!(dir.uid().is_ok() && dir.namespace(c"ns/pid").is_ok());
        let mut path = [0; PATH_BYTES];
        let exe = std::env::current_exe().unwrap();
        assert_eq!(dir.link(c"exe", &mut path).unwrap(), exe.as_os_str().as_encoded_bytes());
        assert_eq!(dir.exe_key().unwrap().len, exe.metadata().unwrap().len());
        let mut buffer = Vec::new();
        assert!(dir.environ(&mut buffer).unwrap().find("PATH").is_ok());
        assert!(ProcDir::open(u32::MAX).is_err());
    }
}
