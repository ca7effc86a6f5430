//! Subscribes to the kernel's process events through a netlink socket of the connector (linux/cn_proc.h).
//!
//! It needs a kernel with CONFIG_PROC_EVENTS, the initial namespaces (network, pid, user) and root. Since 6.6, the kernel
//! sends these events to any user. A filter in the kernel keeps threads and unwanted kinds from waking this process at all.

use crate::event::{CONNECTOR_HEADER, DONE, Event, NETLINK_HEADER, PROC_INDEX, PROC_VALUE, Pid, events};
use crate::filter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, send, socket_with, sockopt,
};
use socket2::SockRef;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{error, fmt};

pub(crate) struct Connector {
    socket: OwnedFd,
}

/// The result of one call of [`Connector::receive`].
pub(crate) enum Received<'b> {
    /// Events, for [`events`] to read.
    Datagram(&'b [u8]),
    /// Nothing waits.
    Nothing,
    /// The kernel had no room for some events and dropped them.
    Overrun,
}

impl Connector {
    pub(crate) fn subscribe() -> Result<Self, SubscribeError> {
        let failed = |step| move |errno: Errno| SubscribeError::Refused { step, source: errno.into() };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::CONNECTOR))
            .map_err(failed("opening a connector socket"))?;
        // Exceed the system's usual limit if that is allowed, and otherwise use as much as the limit permits.
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES))
            .map_err(failed("enlarging the receive buffer"))?;
        SockRef::from(&socket)
            .attach_filter(&filter::program(&[]))
            .map_err(|source| SubscribeError::Refused { step: "attaching the event filter", source })?;
        bind(&socket, &SocketAddrNetlink::new(0, PROC_INDEX)).map_err(failed("joining the process events"))?;
        send(&socket, &subscription(), SendFlags::empty()).map_err(failed("asking for the process events"))?;
        let connector = Self { socket };
        connector.await_answer()?;
        Ok(connector)
    }

    /// Makes the kernel deliver the ends of all threads of these processes. Of other processes, it delivers only those
    /// of first threads.
    ///
    /// # Errors
    /// When the kernel has no memory for the filter. The former one is then still in place.
    pub(crate) fn deliver_all_thread_exits_of(&self, pids: impl Iterator<Item = Pid>) -> io::Result<()> {
        // One more than the filter can name makes it accept every process's.
        let listed: heapless::Vec<Pid, { filter::MAX_LISTED + 1 }> = pids.take(filter::MAX_LISTED + 1).collect();
        SockRef::from(&self.socket).attach_filter(&filter::program(&listed))
    }

    /// The number of events that the kernel has dropped since this socket was opened, or `None` if it does not say.
    pub(crate) fn dropped(&self) -> Option<u64> {
        let inode = rustix::fs::fstat(&self.socket).ok()?.st_ino;
        dropped_by(inode, &std::fs::read_to_string("/proc/net/netlink").ok()?)
    }

    /// Takes the next datagram without waiting. `buffer` should hold [`DATAGRAM_BYTES`].
    ///
    /// # Errors
    /// When the socket is broken. It returns nothing more after that.
    pub(crate) fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Received<'b>> {
        loop {
            match recvfrom(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((len, _, sender)) => {
                    // Port 0 is the kernel. Root may send here too, but is not believed.
                    let from_kernel = sender
                        .and_then(|address| SocketAddrNetlink::try_from(address).ok())
                        .is_some_and(|address| address.pid() == 0);
                    if from_kernel {
                        return Ok(Received::Datagram(buffer.get(..len).unwrap_or_default()));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::NOBUFS) => return Ok(Received::Overrun),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for the kernel's answer. A kernel that does not want to answer, for instance in another namespace, just
    /// keeps silent.
    fn await_answer(&self) -> Result<(), SubscribeError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut buffer = [0; DATAGRAM_BYTES];
        loop {
            let broken = |source| SubscribeError::Refused { step: "waiting for the kernel's answer", source };
            if let Received::Datagram(datagram) = self.receive(&mut buffer).map_err(broken)? {
                match events(datagram)
                    .find_map(|event| if let Event::Answer { error } = event { Some(error) } else { None })
                {
                    Some(0) => return Ok(()),
                    Some(error) => {
                        let source = io::Error::from_raw_os_error(error.cast_signed().saturating_abs());
                        return Err(SubscribeError::Refused { step: "asking for the process events", source });
                    }
                    None => continue,
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|_| SubscribeError::NoAnswer)?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(SubscribeError::NoAnswer),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(broken(errno.into())),
            }
        }
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Finds the column `Drops` of the socket in the kernel's list of netlink sockets. The last two columns are that and the inode.
fn dropped_by(inode: u64, sockets: &str) -> Option<u64> {
    sockets.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace().rev();
        let is_this = columns.next()?.parse() == Ok(inode);
        columns.next().filter(|_| is_this)?.parse().ok()
    })
}

/// Room for a datagram. The kernel sends one event of about 76 bytes in each.
pub(crate) const DATAGRAM_BYTES: usize = 1024;

/// Room for about ten thousand events, each of which the kernel counts as some 800 bytes: a few seconds of the fastest
/// forking. The kernel takes the memory only while events wait.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Time limit for the kernel's answer. It is generous, because the kernel answers within the call that asks.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// `PROC_CN_MCAST_LISTEN`
const LISTEN: u32 = 1;

/// Builds a netlink header, a connector header and the operation, as words. The halves of two words go to their places
/// in memory, which are the same on every host.
fn subscription() -> [u8; SUBSCRIPTION_BYTES] {
    let halves = |first: u16, second: u16| {
        let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
        u32::from_ne_bytes([a, b, c, d])
    };
    let words = [
        // Length; type and flags; sequence; port.
        40,
        halves(DONE, 0),
        0,
        0,
        // Index; value; sequence; acknowledgement; length and flags.
        PROC_INDEX,
        PROC_VALUE,
        0,
        0,
        halves(4, 0),
        LISTEN,
    ];
    let mut bytes = [0; SUBSCRIPTION_BYTES];
    for (to, from) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    bytes
}

const SUBSCRIPTION_BYTES: usize = NETLINK_HEADER + CONNECTOR_HEADER + 4;

/// Why there is no subscription.
#[derive(Debug)]
pub(crate) enum SubscribeError {
    /// The system refused a step.
    Refused { step: &'static str, source: io::Error },
    /// The kernel accepted the request and did not answer.
    NoAnswer,
}

impl fmt::Display for SubscribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { step, source } => {
                let hint = match source.kind() {
                    io::ErrorKind::PermissionDenied => " (it needs root)",
                    _ => "",
                };
                write!(f, "{step} failed: {source}{hint}")
            }
            Self::NoAnswer => f.write_str("the kernel does not answer; it does so in its initial namespaces only"),
        }
    }
}

impl error::Error for SubscribeError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Refused { source, .. } => Some(source),
            Self::NoAnswer => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sockets_drops_are_found_by_its_inode() {
        let sockets = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                       0000000000000000 11  0          00000000 0        0        0     2        7        900\n\
                       0000000000000000 11  4711       00000001 0        0        0     2        12       901\n";
        assert_eq!(dropped_by(901, sockets), Some(12));
        assert_eq!(dropped_by(12, sockets), None);
        assert_eq!(dropped_by(901, ""), None);
    }
}
