//! Connections to receivers, by TCP and by TLS.

use super::settings::Tls;
use crate::given::{certificates, in_file, private_key};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long what was sent may be without an acknowledgement of TCP, unless an output says otherwise.
const UNACKNOWLEDGED_MS: u32 = 30_000;

/// A connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connects to one receiver.
#[derive(Clone)]
pub(super) struct Connector {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    unacknowledged_ms: u32,
}

impl Connector {
    /// Reads the certificates, if there are any to read.
    ///
    /// # Errors
    /// When one cannot be, or the host's name is none.
    pub(super) fn new(host: &str, port: u16, tls: Option<&Tls>) -> io::Result<Self> {
        let tls = match tls {
            None => None,
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Some((TlsConnector::from(client_config(tls)?), name))
            }
        };
        Ok(Self { host: host.to_owned(), port, tls, unacknowledged_ms: UNACKNOWLEDGED_MS })
    }

    /// Has the system break connections whose other end has acknowledged nothing for so many milliseconds.
    #[must_use]
    pub(super) fn unacknowledged(mut self, within_ms: u32) -> Self {
        self.unacknowledged_ms = within_ms;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// Why not, with the receiver's address.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let connected = timeout(CONNECT_TIMEOUT, self.try_connect()).await;
        let connected = connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long")));
        connected.map_err(|error| io::Error::new(error.kind(), format!("connecting to {self}: {error}")))
    }

    async fn try_connect(&self) -> io::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        rustix::net::sockopt::set_tcp_user_timeout(&tcp, self.unacknowledged_ms)?;
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some((connector, name)) => Box::new(connector.connect(name.clone(), tcp).await?),
        })
    }
}

impl fmt::Display for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connector({self}, tls {})", self.tls.is_some())
    }
}

/// Makes the TLS of an output: with the system's authorities, or with those of a file in their place.
///
/// # Errors
/// When a file cannot be read, or there are no authorities.
pub(super) fn client_config(tls: &Tls) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| in_file(path, &error))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(native.certs);
            if roots.is_empty() {
                let why = native.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
                return Err(io::Error::other(format!("this system has no certificates of authorities{why}; set ca")));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    let config = match &tls.identity {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let secret = private_key(key)?;
            config.with_client_auth_cert(certificates(cert)?, secret).map_err(|error| in_file(cert, &error))?
        }
    };
    Ok(Arc::new(config))
}
