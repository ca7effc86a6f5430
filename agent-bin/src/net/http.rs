//! HTTP clients that connect through the agent's proxies and to the fastest of a name's addresses.
//!
//! The client library's own proxy support has no exceptions by network, needs another dependency for SOCKS5, and names
//! no proxy in its errors. Its resolver asks for all addresses at once, and it tries them one after the other. The
//! connector here therefore looks names up and connects as the stream does, and talks to the proxy itself.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Weak};

use ureq::config::{Config, ConfigBuilder};
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration;
use ureq::unversioned::transport::{
    ConnectionDetails, Connector, NextTimeout, RustlsConnector, ShutdownHandle, TransportAdapter,
};
use ureq::{Agent, Error};

use super::dial::{DialError, connect_blocking};
use super::provider::provider;
use super::proxy::{self, ProxyError};
use super::transport::TcpTransport;
use crate::config::{Address, Proxies, Proxy, Scheme};

/// A client that connects through `proxies`, ignores those in the environment, and trusts `authorities` for https.
pub(crate) fn http_agent(
    config: ConfigBuilder<AgentScope>,
    authorities: Vec<Certificate<'static>>,
    proxies: &Proxies,
) -> Agent {
    // The client panics at the first https address unless it has a provider and authorities of its own.
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(provider()))
        .root_certs(RootCerts::Specific(Arc::new(authorities)))
        .build();
    let way = Way { proxies: proxies.clone() };
    let config = config.tls_config(tls).proxy(None).build();
    Agent::with_parts(config, way.clone().chain(RustlsConnector::default()), way)
}

/// The reason of a client's error, without the client's prefix when the system or a proxy caused it.
pub(crate) fn reason(error: &Error) -> String {
    match error {
        Error::Io(error) => error.to_string(),
        Error::Other(error) => error.to_string(),
        error => error.to_string(),
    }
}

#[derive(Debug, Clone)]
struct Way {
    proxies: Proxies,
}

/// The target of a request, without brackets around an IPv6 address, and the proxy that it goes through.
struct Target<'a> {
    host: &'a str,
    port: u16,
    proxy: Option<&'a Proxy>,
}

impl<'a> Target<'a> {
    fn new(proxies: &'a Proxies, uri: &'a Uri) -> Result<Self, Error> {
        let (scheme, usual_port) = match uri.scheme_str() {
            Some("https") => (Scheme::Https, 443),
            Some("http") => (Scheme::Http, 80),
            _ => return Err(Error::BadUri("expected http:// or https://".to_owned())),
        };
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| Error::BadUri("it names no host".to_owned()))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = match (uri.port_u16(), uri.authority().map(|authority| authority.as_str())) {
            (Some(0), _) => return Err(Error::BadUri("port 0 is none".to_owned())),
            (Some(port), _) => port,
            // The client treats a port above 65535 as missing.
            (None, Some(authority)) if !authority.ends_with(uri.host().unwrap_or_default()) => {
                return Err(Error::BadUri("its port is none, expected 1 to 65535".to_owned()));
            }
            (None, _) => usual_port,
        };
        Ok(Self { host, port, proxy: proxies.for_target(scheme, host, port) })
    }
}

impl Resolver for Way {
    /// Leaves the lookup to the connector, which can still use addresses that come late.
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut unused = self.empty();
        unused.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        Ok(unused)
    }
}

impl Connector for Way {
    type Out = TcpTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<TcpTransport>, Error> {
        let Target { host, port, proxy } = Target::new(&self.proxies, details.uri)?;
        let Some(proxy) = proxy else {
            return reach(&Address { host: host.to_owned(), port }, details).map(Some);
        };
        let transport = reach(&proxy.address, details).map_err(|error| unreachable(proxy, &error))?;
        let mut stream = TransportAdapter::new(transport, details.current_time.clone());
        let limit = Duration::Exact(proxy::TIMEOUT);
        stream.set_timeout(NextTimeout { after: details.timeout.after.min(limit), ..details.timeout });
        match proxy::open_blocking(&mut stream, proxy, host, port) {
            Ok(()) => Ok(Some(stream.into_inner())),
            Err(error) => Err(Error::Other(Box::new(error))),
        }
    }
}

/// Connects, and registers the connection to be closed when the client is shut down.
fn reach(to: &Address, details: &ConnectionDetails<'_>) -> Result<TcpTransport, Error> {
    let stream = connect_blocking(to, *details.timeout.after).map_err(|error| match error {
        DialError::Tcp(error) if error.kind() == io::ErrorKind::TimedOut => Error::Timeout(details.timeout.reason),
        DialError::Tcp(error) => Error::Io(error),
        error => Error::Other(Box::new(error)),
    })?;
    let stream = Arc::new(stream);
    (details.register_shutdown)(Arc::<TcpStream>::downgrade(&stream) as Weak<dyn ShutdownHandle>)?;
    Ok(TcpTransport::new(stream, details.config))
}

fn unreachable(proxy: &Proxy, error: &Error) -> Error {
    Error::Other(Box::new(ProxyError::unreachable(proxy, reason(error))))
}
