//! TCP connections, direct or to a proxy. The addresses of a name race, and the fastest wins.

use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use elklet_core::link::race::Race;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::half_open::HalfOpen;
use super::names::Lookup;
use super::proxy::{self, ProxyError};
use crate::clock::Clock;
use crate::config::{Address, Proxies, Scheme};
use crate::sys::waiting::block_on;

/// Time limit for looking a name up and connecting to one of its addresses. A third of an attempt's time is left for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection is dead when its peer acknowledges nothing for this long although there is something to acknowledge.
const TCP_USER_TIMEOUT_MS: u32 = 18_000;

/// Both ends of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl Ends {
    /// The ends of an established connection.
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        Ok(Self { local: stream.local_addr()?, peer: stream.peer_addr()? })
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum DialError {
    /// The name has no address.
    Resolve(io::Error),
    /// No address accepted a connection. This is the last failure.
    Tcp(io::Error),
    /// The proxy did not open the way.
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

impl std::error::Error for DialError {}

/// Connects to `target`, through its proxy if it has one. First tells the peer that it reaches, as far as possible, of
/// its `half_open` connections.
pub(super) async fn dial(target: &Address, proxies: &Proxies, half_open: &HalfOpen) -> Result<TcpStream, DialError> {
    let Some(proxy) = proxies.for_target(Scheme::Https, &target.host, target.port) else {
        return reach(target, half_open).await;
    };
    let mut stream = reach(&proxy.address, half_open)
        .await
        .map_err(|error| DialError::Proxy(ProxyError::unreachable(proxy, error)))?;
    proxy::open(&mut stream, proxy, &target.host, target.port).await.map_err(DialError::Proxy)?;
    Ok(stream)
}

async fn reach(to: &Address, half_open: &HalfOpen) -> Result<TcpStream, DialError> {
    let telling = half_open.tell();
    let stream = connect(to, CONNECT_TIMEOUT).await?;
    let peer = stream.peer_addr().and_then(|peer| {
        sockopt::set_tcp_user_timeout(&stream, TCP_USER_TIMEOUT_MS)?;
        Ok(peer)
    });
    telling.wait_for(peer.map_err(DialError::Tcp)?).await;
    Ok(stream)
}

/// Connects on a thread that may block.
///
/// # Errors
/// When there is no connection within `limit`, or within the limit of every connection if that is shorter.
pub(super) fn connect_blocking(to: &Address, limit: Duration) -> Result<std::net::TcpStream, DialError> {
    let connected = block_on(async {
        let stream = connect(to, limit.min(CONNECT_TIMEOUT)).await?;
        stream.into_std().map_err(DialError::Tcp)
    });
    let connected = connected.map_err(DialError::Tcp)??;
    connected.set_nonblocking(false).map_err(DialError::Tcp)?;
    Ok(connected)
}

/// Lets the addresses of `to` race.
async fn connect(to: &Address, limit: Duration) -> Result<TcpStream, DialError> {
    let clock = Clock::start();
    let mut lookup = Lookup::start(&to.host, to.port);
    let mut race = Race::new();
    let mut attempts = JoinSet::new();
    let mut failure = DialError::Resolve(io::Error::new(io::ErrorKind::NotFound, "the answer is empty"));
    let limited = sleep(limit);
    tokio::pin!(limited);
    loop {
        while let Some(address) = race.poll_connect(clock.now()) {
            attempts.spawn(TcpStream::connect(address));
        }
        if race.is_lost() {
            return Err(failure);
        }
        let due = race.poll_timeout().map(|due| Instant::from_std(clock.instant(due)));
        tokio::select! {
            Some((family, answer)) = lookup.next() => {
                let addresses = answer.unwrap_or_else(|error| {
                    // The failure of an address says more than the failure of a question.
                    if let DialError::Resolve(_) = failure {
                        failure = DialError::Resolve(error);
                    }
                    Vec::new()
                });
                race.handle_addresses(family, addresses, clock.now());
            }
            Some(attempt) = attempts.join_next() => match attempt.map_err(io::Error::from).flatten() {
                Ok(stream) => {
                    // A batch is written in one go, so waiting for its last segment to fill gains nothing.
                    stream.set_nodelay(true).map_err(DialError::Tcp)?;
                    return Ok(stream);
                }
                Err(error) => {
                    race.handle_failure(clock.now());
                    failure = DialError::Tcp(error);
                }
            },
            () = until(due) => {}
            () = &mut limited => return Err(late(&race, limit)),
        }
    }
}

/// Returns at this moment, or never.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

fn late(race: &Race, limit: Duration) -> DialError {
    if race.is_running() {
        return DialError::Tcp(io::ErrorKind::TimedOut.into());
    }
    DialError::Resolve(io::Error::other(format!("no answer within {} s", limit.as_secs())))
}
