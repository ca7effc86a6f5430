//! The handshake with a proxy over an open connection: in async code for the stream, in blocking code for HTTP.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::Duration;

use elklet_core::link::proxy::{Handshake, Refusal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::config::{Address, Proxy};

/// Time limit for a proxy to open the way. It is less than the session allows for TCP and TLS together, so that the
/// error names the proxy.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that one read takes. Answers are short.
const PIECE_BYTES: usize = 1024;

/// A proxy that did not open the way to the target.
#[derive(Debug)]
pub(crate) struct ProxyError {
    proxy: Address,
    why: Why,
}

#[derive(Debug)]
enum Why {
    Unreachable(String),
    Refusal(Refusal),
    Broken(io::Error),
    Late,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy {} ", self.proxy)?;
        match &self.why {
            Why::Unreachable(error) => write!(f, "cannot be reached: {error}"),
            Why::Refusal(refusal) => write!(f, "{refusal}"),
            Why::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("closed the connection instead of answering")
            }
            Why::Broken(error) => write!(f, "broke the connection: {error}"),
            Why::Late => write!(f, "did not answer within {} s", TIMEOUT.as_secs()),
        }
    }
}

impl std::error::Error for ProxyError {}

impl ProxyError {
    /// The proxy itself could not be reached.
    pub(super) fn unreachable(proxy: &Proxy, error: impl fmt::Display) -> Self {
        Self { proxy: proxy.address.clone(), why: Why::Unreachable(error.to_string()) }
    }

    fn new(proxy: &Proxy, why: Why) -> Self {
        Self { proxy: proxy.address.clone(), why }
    }
}

/// Asks the proxy at the other end of `stream` to open the way to a target.
///
/// # Errors
/// When it does not, or not in time.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), ProxyError> {
    let conversation = async {
        let mut handshake = begin(proxy, host, port)?;
        let mut piece = [0; PIECE_BYTES];
        loop {
            if let Some(bytes) = handshake.poll_transmit() {
                stream.write_all(&bytes).await.map_err(Why::Broken)?;
            }
            let n = stream.read(&mut piece).await.map_err(Why::Broken)?;
            if hear(&mut handshake, &piece[..n])? {
                return Ok(());
            }
        }
    };
    let result = tokio::time::timeout(TIMEOUT, conversation).await.unwrap_or(Err(Why::Late));
    result.map_err(|why| ProxyError::new(proxy, why))
}

/// The same in blocking code. Reads and writes of `stream` have to time out by themselves.
///
/// # Errors
/// When it does not, or not in time.
pub(super) fn open_blocking(
    stream: &mut (impl Read + Write),
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), ProxyError> {
    let mut converse = || {
        let mut handshake = begin(proxy, host, port)?;
        let mut piece = [0; PIECE_BYTES];
        loop {
            if let Some(bytes) = handshake.poll_transmit() {
                stream.write_all(&bytes).map_err(late_or_broken)?;
            }
            let n = stream.read(&mut piece).map_err(late_or_broken)?;
            if hear(&mut handshake, &piece[..n])? {
                return Ok(());
            }
        }
    };
    converse().map_err(|why| ProxyError::new(proxy, why))
}

fn begin(proxy: &Proxy, host: &str, port: u16) -> Result<Handshake, Why> {
    Handshake::new(proxy.kind, host, port, proxy.credentials.as_ref()).map_err(Why::Refusal)
}

fn hear(handshake: &mut Handshake, bytes: &[u8]) -> Result<bool, Why> {
    if bytes.is_empty() {
        return Err(Why::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    handshake.handle_input(bytes).map_err(Why::Refusal)
}

fn late_or_broken(error: io::Error) -> Why {
    let is_late = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref())
        .is_some_and(|inner: &ureq::Error| matches!(inner, ureq::Error::Timeout(_)));
    if is_late { Why::Late } else { Why::Broken(error) }
}
