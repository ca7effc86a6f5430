//! The socket file. It replaces nobody else's file, only its owner may use it, and its path may be too long for an address.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::files::FileError;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 8;

/// The socket's file. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Makes the socket at the path. Replaces one that a dead agent has left, and nothing else of that name.
///
/// # Errors
/// When there can be no socket.
pub(super) fn listen_at(path: &Path) -> Result<(UnixListener, SocketFile), FileError> {
    let failed = FileError::at(path);
    let place = Place::of(path).map_err(failed)?;
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
        Ok(_) => return Err(failed(io::Error::other("it is there and no socket; it is left as it is"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|e| failed(e.into()))?;
    bind(&socket, &place.address().map_err(failed)?).map_err(|e| failed(e.into()))?;
    // Nobody can have connected before it listens.
    let inode = fs::set_permissions(path, Permissions::from_mode(0o600))
        .and_then(|()| fs::symlink_metadata(path))
        .map_err(failed)?
        .ino();
    listen(&socket, BACKLOG).map_err(|e| failed(e.into()))?;
    Ok((socket.into(), SocketFile { path: path.to_owned(), inode }))
}

/// Connects to the agent that listens at the path. Connecting and each later step take at most `timeout`.
pub(super) fn connect_to(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let place = Place::of(path)?;
    let socket = UnixStream::from(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?);
    socket.set_write_timeout(Some(timeout))?;
    socket.set_read_timeout(Some(timeout))?;
    rustix::net::connect(&socket, &place.address()?)?;
    Ok(socket)
}

/// A socket's place: its open directory, and its name there. An address has room for a path of 107 bytes, and paths may be longer.
struct Place<'a> {
    directory: File,
    name: &'a OsStr,
}

impl<'a> Place<'a> {
    fn of(path: &'a Path) -> io::Result<Self> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::other("no name of a file"));
        };
        Ok(Self { directory: File::open(directory)?, name })
    }

    fn address(&self) -> io::Result<SocketAddrUnix> {
        let directory = PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()));
        Ok(SocketAddrUnix::new(directory.join(self.name))?)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
