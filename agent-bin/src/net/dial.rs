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

/// A name has addresses within this, or what is looking for them is to be suspected and not the server.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The addresses of one name answer within this, each in its share: a third of the time for an attempt is left for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses of one name that are tried at most, so that each has a second.
const MAX_ADDRESSES: usize = 10;

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
                write!(f, "no TCP connection: no answer within {} s", CONNECT_TIMEOUT.as_secs())
            }
            Self::Tcp(error) => write!(f, "no TCP connection: {error}"),
            Self::Proxy(error) => error.fmt(f),
        }
    }
}

/// Connects to `target`, through its proxy if it has one.
///
/// `lost` is a connection that has died without the peer's knowledge. The same peer is first connected to from the same port:
/// to its TCP the new SYN belongs to the connection that it believes in, it asks, and a reset tells it that there is none any
/// more (RFC 9293, section 3.5.1, half-open connections). Otherwise AgentCenter would refuse the agent as one that is
/// connected already, until its own keepalive ends the old connection after ten minutes.
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
    let late = |_| io::Error::other(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs()));
    let found = timeout(LOOKUP_TIMEOUT, lookup_host((&*to.host, to.port))).await.map_err(late).flatten();
    let found = found.map_err(DialError::Resolve)?;
    let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
    let share = CONNECT_TIMEOUT / u32::try_from(addresses.len().max(1)).expect("there are ten at most");
    let mut failure = DialError::Resolve(io::Error::new(io::ErrorKind::NotFound, "the answer is empty"));
    for address in addresses {
        match timeout(share, connect_to(address, lost, share)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = DialError::Tcp(error),
            Err(_) => failure = DialError::Tcp(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(failure)
}

async fn connect_to(address: SocketAddr, lost: Option<Ends>, share: Duration) -> io::Result<TcpStream> {
    let again = async {
        let lost = lost.filter(|lost| lost.peer == address)?;
        // The system may not have forgotten the old connection yet, and the way may lead through another interface now.
        timeout(share / 2, connect_from(lost.local, address)).await.ok()?.ok()
    };
    let stream = match again.await {
        Some(stream) => stream,
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
