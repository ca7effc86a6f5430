//! TCP connections to servers: every address that a name has is tried, directly or through a proxy.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

use super::proxy::{self, ProxyError};
use crate::config::{Address, Proxies, Scheme};

/// One address of several answers within this or the next is tried: half of the reference's dial timeout is left for TLS.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried at most.
const MAX_ADDRESSES: usize = 16;

/// A connection whose peer acknowledges nothing for this long, with something to acknowledge, is dead.
const TCP_USER_TIMEOUT_MS: u32 = 18_000;

/// Both ends of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl Ends {
    /// Those of an established connection.
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        Ok(Self { local: stream.local_addr()?, peer: stream.peer_addr()? })
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum DialError {
    /// The name has no address.
    Resolve(io::Error),
    /// No address could be connected to; this is what became of the last.
    Tcp(io::Error),
    /// The proxy is no way there.
    Proxy(ProxyError),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(error) => write!(f, "no address for this name: {error}"),
            Self::Tcp(error) if error.kind() == io::ErrorKind::TimedOut => {
                write!(f, "no TCP connection: no answer within {} s", ADDRESS_TIMEOUT.as_secs())
            }
            Self::Tcp(error) => write!(f, "no TCP connection: {error}"),
            Self::Proxy(error) => error.fmt(f),
        }
    }
}

/// Connects to `target`, through its proxy if it has one.
///
/// `lost` is a connection that has died without the peer's knowledge. The same peer is connected to from the same port if
/// that is free: to its TCP the new SYN belongs to the connection that it believes in, it asks, and a reset tells it that there
/// is none any more (RFC 9293, section 3.5.1, half-open connections). Otherwise AgentCenter would refuse the agent as one
/// that is connected already, until its own keepalive ends the old connection after ten minutes.
pub(super) async fn dial(target: &Address, proxies: &Proxies, lost: Option<Ends>) -> Result<TcpStream, DialError> {
    let Some(proxy) = proxies.for_target(Scheme::Https, &target.host, target.port) else {
        return connect(target, lost).await;
    };
    let mut stream =
        connect(&proxy.address, lost).await.map_err(|error| DialError::Proxy(ProxyError::unreachable(proxy, error)))?;
    proxy::open(&mut stream, proxy, &target.host, target.port).await.map_err(DialError::Proxy)?;
    Ok(stream)
}

async fn connect(to: &Address, lost: Option<Ends>) -> Result<TcpStream, DialError> {
    let addresses = lookup_host((&*to.host, to.port)).await.map_err(DialError::Resolve)?;
    let mut failure = DialError::Resolve(io::Error::new(io::ErrorKind::NotFound, "the answer is empty"));
    for address in addresses.take(MAX_ADDRESSES) {
        match timeout(ADDRESS_TIMEOUT, connect_to(address, lost)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = DialError::Tcp(error),
            Err(_) => failure = DialError::Tcp(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(failure)
}

async fn connect_to(address: SocketAddr, lost: Option<Ends>) -> io::Result<TcpStream> {
    let stream = match lost.filter(|lost| lost.peer == address) {
        Some(lost) => match connect_from(lost.local, address).await {
            // The system has not forgotten the old connection yet, or the address is no longer this host's.
            Err(error) if is_refused_here(&error) => TcpStream::connect(address).await?,
            connected => connected?,
        },
        None => TcpStream::connect(address).await?,
    };
    // A batch is written at once; nothing is gained by waiting for its last segment to fill.
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(&stream, TCP_USER_TIMEOUT_MS)?;
    Ok(stream)
}

async fn connect_from(local: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(local)?;
    socket.connect(to).await
}

/// Whether it was this host that did not want to connect from that port.
fn is_refused_here(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}
