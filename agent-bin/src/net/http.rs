//! HTTP clients whose connections go through the proxies that the agent knows.
//!
//! The client's own proxies know no exceptions by network, speak no SOCKS5 without another dependency, and name nobody when
//! they fail. So its resolver is told to look for the proxy, and its connector talks to that.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};

use ureq::config::{Config, ConfigBuilder};
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration;
use ureq::unversioned::transport::{
    ConnectionDetails, Connector, NextTimeout, RustlsConnector, TcpConnector, TransportAdapter,
};
use ureq::{Agent, Error};

use super::proxy::{self, ProxyError};
use crate::blocking;
use crate::config::{Proxies, Proxy, Scheme};

/// Addresses of one name that are tried at most.
const MAX_ADDRESSES: usize = 10;

/// A client that connects through `proxies`, and through no other that it may find in the environment, and that trusts
/// `authorities` for https.
pub(crate) fn http_agent(
    config: ConfigBuilder<AgentScope>,
    authorities: Vec<Certificate<'static>>,
    proxies: &Proxies,
) -> Agent {
    // Without a provider and authorities of its own, the client panics at the first https address.
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(authorities)))
        .build();
    let way = Way { proxies: proxies.clone() };
    let config = config.tls_config(tls).proxy(None).build();
    Agent::with_parts(config, way.clone().chain(RustlsConnector::default()), way)
}

/// An error of the client as a reason, without the client's own prefix where the system or a proxy speaks.
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

/// Where a request goes, without brackets around an IPv6 address, and the proxy that it goes through.
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
            // The client itself takes a port beyond 65535 for none.
            (None, Some(authority)) if !authority.ends_with(uri.host().unwrap_or_default()) => {
                return Err(Error::BadUri("its port is none, expected 1 to 65535".to_owned()));
            }
            (None, _) => usual_port,
        };
        Ok(Self { host, port, proxy: proxies.for_target(scheme, host, port) })
    }
}

impl Resolver for Way {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let target = Target::new(&self.proxies, uri)?;
        let found = match target.proxy {
            None => look_up(target.host, target.port, timeout)?,
            Some(proxy) => {
                look_up(&proxy.address.host, proxy.address.port, timeout).map_err(|error| unreachable(proxy, &error))?
            }
        };
        let mut addresses = self.empty();
        found.into_iter().take(MAX_ADDRESSES).for_each(|address| addresses.push(address));
        match addresses.is_empty() {
            true => Err(Error::HostNotFound),
            false => Ok(addresses),
        }
    }
}

/// The addresses of a name. The client's own resolver panics when there is no thread to be had.
fn look_up(host: &str, port: u16, timeout: NextTimeout) -> Result<Vec<SocketAddr>, Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let name = (host.to_owned(), port);
    blocking::start(name, move |(host, port)| {
        let found = (&*host, port).to_socket_addrs().map(Iterator::collect);
        let _ = sender.send(found);
    })
    .map_err(|refused| Error::Io(refused.error))?;
    match receiver.recv_timeout(*timeout.after) {
        Ok(found) => found.map_err(Error::Io),
        Err(_) => Err(Error::Timeout(timeout.reason)),
    }
}

impl Connector for Way {
    type Out = <TcpConnector as Connector>::Out;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<()>) -> Result<Option<Self::Out>, Error> {
        let connector = TcpConnector::default();
        let Target { host, port, proxy } = Target::new(&self.proxies, details.uri)?;
        let Some(proxy) = proxy else { return connector.connect(details, chained) };
        let connected = connector.connect(details, chained).map_err(|error| unreachable(proxy, &error))?;
        let Some(transport) = connected else { return Ok(None) };
        let mut stream = TransportAdapter::new(transport, details.current_time.clone());
        let limit = Duration::Exact(proxy::TIMEOUT);
        stream.set_timeout(NextTimeout { after: details.timeout.after.min(limit), ..details.timeout });
        match proxy::open_blocking(&mut stream, proxy, host, port) {
            Ok(()) => Ok(Some(stream.into_inner())),
            Err(error) => Err(Error::Other(Box::new(error))),
        }
    }
}

fn unreachable(proxy: &Proxy, error: &Error) -> Error {
    Error::Other(Box::new(ProxyError::unreachable(proxy, reason(error))))
}
