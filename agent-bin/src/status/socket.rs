//! The socket file. It replaces nobody else's file, only its owner may use it, and its path may be too long for an address.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::files::FileError;

/// The socket's name in the work directory.
const FILE: &str = "elklet.sock";

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 8;

/// The socket's file. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Makes the socket in the work directory. Replaces one that a dead agent has left, and nothing else of that name.
///
/// # Errors
/// When there can be no socket.
pub(super) fn listen_in(workdir: &Path) -> Result<(UnixListener, SocketFile), FileError> {
    let path = workdir.join(FILE);
    let failed = FileError::at(&path);
    let directory = File::open(workdir).map_err(failed)?;
    match fs::symlink_metadata(&path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(&path).map_err(failed)?,
        Ok(_) => return Err(failed(io::Error::other("it is there and no socket; it is left as it is"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|e| failed(e.into()))?;
    bind(&socket, &address(&directory).map_err(failed)?).map_err(|e| failed(e.into()))?;
    // Nobody can have connected before it listens.
    let inode = fs::set_permissions(&path, Permissions::from_mode(0o600))
        .and_then(|()| fs::symlink_metadata(&path))
        .map_err(failed)?
        .ino();
    listen(&socket, BACKLOG).map_err(|e| failed(e.into()))?;
    Ok((socket.into(), SocketFile { path, inode }))
}

/// Connects to the agent that runs in the work directory. Connecting and each later step take at most `timeout`.
pub(super) fn connect_in(workdir: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let directory = File::open(workdir)?;
    let socket = UnixStream::from(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?);
    socket.set_write_timeout(Some(timeout))?;
    socket.set_read_timeout(Some(timeout))?;
    rustix::net::connect(&socket, &address(&directory)?)?;
    Ok(socket)
}

/// Makes the socket's address by its open directory. An address has room for a path of 107 bytes, and work directories
/// may be longer.
fn address(directory: &File) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{FILE}", directory.as_raw_fd()))?)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
