//! The hops between this host and an AgentCenter. Decides at which hop an attempt ended, and what helps.

use std::io;
use std::net::IpAddr;

use elklet_core::link::grpc::Status;
use elklet_core::link::session::{CONNECT_TIMEOUT_MS, DRAIN_TIMEOUT_MS};
use rustls::{AlertDescription, CertificateError};

use super::visit::{Outcome, Reached};
use crate::clock;
use crate::config::Address;
use crate::net::{DialError, End, tls_reason};

/// One hop. The order is that of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hop {
    Dns,
    Tcp,
    Proxy,
    Tls,
    Alpn,
    Grpc,
    AgentCenter,
}

pub(super) const HOPS: [Hop; 7] = [Hop::Dns, Hop::Tcp, Hop::Proxy, Hop::Tls, Hop::Alpn, Hop::Grpc, Hop::AgentCenter];

impl Hop {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dns => "DNS",
            Self::Tcp => "TCP",
            Self::Proxy => "proxy",
            Self::Tls => "TLS",
            Self::Alpn => "ALPN",
            Self::Grpc => "gRPC",
            Self::AgentCenter => "AgentCenter",
        }
    }

    /// Says why this hop is skipped on the way to `address`, if it is.
    pub(super) fn passed_over(self, address: &Address, proxy: Option<&str>, asks: bool) -> Option<String> {
        match (self, proxy) {
            (Self::Dns | Self::Tcp, Some(_)) => Some("the proxy does this".to_owned()),
            (Self::Dns, None) if address.host.parse::<IpAddr>().is_ok() => Some("it is an address".to_owned()),
            (Self::Proxy, None) => Some("none is configured for this server".to_owned()),
            (Self::AgentCenter, _) if !asks => Some("the agent runs, and its id is its own".to_owned()),
            _ => None,
        }
    }

    /// Details of a hop at which nothing is wrong.
    pub(super) fn detail(self, proxy: Option<&str>) -> String {
        match (self, proxy) {
            (Self::Proxy, Some(proxy)) => format!("through {proxy}"),
            (Self::AgentCenter, _) => "it takes this agent's id".to_owned(),
            _ => String::new(),
        }
    }
}

/// The hop at which an attempt failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) hop: Hop,
    pub(super) what: String,
    pub(super) advice: String,
}

/// Decides where an attempt failed, if it did. `asked` is true if AgentCenter was told the agent's id.
pub(super) fn judge(reached: Reached, outcome: &Outcome, asked: bool) -> Option<Failure> {
    let failure = |hop, what: String, advice: &str| Some(Failure { hop, what, advice: advice.to_owned() });
    let end = match outcome {
        Outcome::Ended(end) => end,
        Outcome::Late => {
            let (connect, drain) = (CONNECT_TIMEOUT_MS / 1000, DRAIN_TIMEOUT_MS / 1000);
            return match reached {
                Reached::Nothing => failure(Hop::Tcp, format!("no answer within {connect} s"), FIREWALL),
                Reached::Port => failure(Hop::Tls, format!("no answer within {connect} s"), NOT_TLS),
                Reached::Tls | Reached::Call => failure(Hop::Grpc, format!("no answer within {drain} s"), NOT_GRPC),
            };
        }
    };
    match end {
        End::Dial(error @ DialError::Resolve(_)) => {
            failure(Hop::Dns, error.to_string(), "is the name right? /etc/resolv.conf names the servers that are asked")
        }
        End::Dial(DialError::Tcp(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            failure(Hop::Tcp, error.to_string(), "nothing listens there: is the port right (6751), and AgentCenter up?")
        }
        End::Dial(error @ DialError::Tcp(_)) => failure(Hop::Tcp, error.to_string(), FIREWALL),
        End::Dial(error @ DialError::Proxy(_)) => failure(
            Hop::Proxy,
            error.to_string(),
            "[proxy] in the file or HTTPS_PROXY names it, with user and password; no_proxy or NO_PROXY passes it by",
        ),
        End::Tls(error) => Some(judge_tls(error)),
        End::NoHttp2 => failure(Hop::Alpn, end.to_string(), NO_HTTP2),
        End::Http2(_) | End::Http(_) | End::Center(_) | End::NoAnswer(_) => {
            failure(Hop::Grpc, end.to_string(), NOT_GRPC)
        }
        End::Status(status) => judge_status(status, asked),
        End::Completed => None,
    }
}

const FIREWALL: &str = "a firewall or a missing route: try from another host of the same network";
const NOT_TLS: &str = "is it AgentCenter's gRPC port (6751)? a load balancer has to pass TCP through, not HTTP";
const NO_HTTP2: &str = "whatever ends TLS there does not offer h2: a load balancer has to pass TCP through";
const NOT_GRPC: &str =
    "TLS is answered, but not by AgentCenter: is a proxy or load balancer without a backend in between?";

fn judge_tls(error: &io::Error) -> Failure {
    let text = tls_reason(error);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (hop, advice) = match inner {
        Some(rustls::Error::InvalidCertificate(certificate)) => (Hop::Tls, of_certificate(certificate)),
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => (Hop::Alpn, NO_HTTP2.to_owned()),
        Some(rustls::Error::Other(_)) => (Hop::Tls, IMPOSTOR.to_owned()),
        // In TLS 1.3, the server's verdict on the client's certificate comes through HTTP/2, as text.
        Some(rustls::Error::AlertReceived(_)) => (Hop::Tls, REFUSED.to_owned()),
        None if text.contains("received fatal alert") => (Hop::Tls, REFUSED.to_owned()),
        _ => (Hop::Tls, NOT_TLS.to_owned()),
    };
    Failure { hop, what: text, advice }
}

const IMPOSTOR: &str =
    "another host may answer in the server's place; if the server's key is a new one, add it to server.pin_sha256";

const REFUSED: &str = "the server refuses this agent's certificate: client.crt has to be in force and of the authority that \
    the server trusts";

const REFUSED_BY_CENTER: &str =
    "the server answers, and refuses this agent: enrol the host again with a new token (elklet enroll --force)";

fn of_certificate(error: &CertificateError) -> String {
    let clock = || clock::date(clock::unix_seconds());
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "ca.crt is not the authority of the server's certificate: copy the deployment's".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "AgentCenter's certificate is for elkeid.com, unless [server] name says otherwise: is it AgentCenter that listens there?".to_owned()
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            format!("this host's clock says {}: set it if that is wrong, else renew the server's certificate", clock())
        }
        _ => "the server's certificate is of no use: make another".to_owned(),
    }
}

fn judge_status(status: &Status, asked: bool) -> Option<Failure> {
    let failure = |hop, advice: &str| Some(Failure { hop, what: status.to_string(), advice: advice.to_owned() });
    match (status.code, &*status.message) {
        (0, _) => None,
        // AgentCenter answers this to a stream that ends before its first message.
        (2, "EOF") if !asked => None,
        (2, "agentID conflict") => failure(
            Hop::AgentCenter,
            "an agent with this id is connected: another host has the same id, or a broken connection is still open there \
             (AgentCenter notices within 10 minutes)",
        ),
        (2, "out of max connection limit") => failure(
            Hop::AgentCenter,
            "it has as many agents as it takes (server.grpc.connlimit): raise that, or add an AgentCenter",
        ),
        // The certificate is revoked, or is another agent's.
        _ if status.is_about_the_agent() => failure(Hop::AgentCenter, REFUSED_BY_CENTER),
        _ => failure(Hop::Grpc, NOT_GRPC),
    }
}
