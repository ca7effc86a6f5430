//! HTTP clients whose connections go through the proxies that the agent knows.
//!
//! The client's own proxies know no exceptions by network, speak no SOCKS5 without another dependency, and name nobody when
//! they fail. So its resolver is told to look for the proxy, and its connector talks to that.

use ureq::config::{Config, ConfigBuilder};
use ureq::http::Uri;
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration;
use ureq::unversioned::transport::{
    ConnectionDetails, Connector, NextTimeout, RustlsConnector, TcpConnector, TransportAdapter,
};
use ureq::{Agent, Error};

use super::proxy::{self, ProxyError};
use crate::config::{Proxies, Proxy, Scheme};

/// A client that connects through `proxies`, and through no other that it may find in the environment.
pub(crate) fn http_agent(config: ConfigBuilder<AgentScope>, proxies: &Proxies) -> Agent {
    let way = Way { proxies: proxies.clone() };
    Agent::with_parts(config.proxy(None).build(), way.clone().chain(RustlsConnector::default()), way)
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

/// A target's bare host, its port, and the proxy that it is reached through.
fn target<'a>(proxies: &'a Proxies, uri: &'a Uri) -> Option<(&'a str, u16, &'a Proxy)> {
    let (scheme, usual_port) = match uri.scheme_str() {
        Some("https") => (Scheme::Https, 443),
        _ => (Scheme::Http, 80),
    };
    let host = uri.host()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = uri.port_u16().unwrap_or(usual_port);
    proxies.for_target(scheme, host, port).map(|proxy| (host, port, proxy))
}

impl Resolver for Way {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let resolver = DefaultResolver::default();
        let Some((_, _, proxy)) = target(&self.proxies, uri) else { return resolver.resolve(uri, config, timeout) };
        let to_proxy =
            Uri::builder().scheme("http").authority(proxy.address.to_string()).path_and_query("/").build()?;
        resolver.resolve(&to_proxy, config, timeout).map_err(|error| unreachable(proxy, &error))
    }
}

impl Connector for Way {
    type Out = <TcpConnector as Connector>::Out;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<()>) -> Result<Option<Self::Out>, Error> {
        let connector = TcpConnector::default();
        let Some((host, port, proxy)) = target(&self.proxies, details.uri) else {
            return connector.connect(details, chained);
        };
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
