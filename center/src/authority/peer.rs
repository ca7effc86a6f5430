//! What a client's certificate says about the client.

use crate::hex::hex;
use elklet_proto::agent_uri;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// Who is at the other end of a connection. TLS has verified the certificate, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It has no certificate.
    Anonymous,
    /// Its certificate is for no agent in particular, as in Elkeid's deployments.
    Anyone,
    /// Its certificate is for one agent.
    Agent(Bound),
}

/// An agent that a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) agent_id: String,
    /// The certificate's serial number, in lower-case hexadecimal digits.
    pub(crate) serial: String,
}

impl Peer {
    /// Reads the certificate that a client has shown.
    pub(crate) fn of(certificate: Option<&CertificateDer<'_>>) -> Self {
        let Some(certificate) = certificate else { return Self::Anonymous };
        bound(certificate).map_or(Self::Anyone, Self::Agent)
    }
}

fn bound(certificate: &[u8]) -> Option<Bound> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let agent_id = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => agent_uri::agent(uri),
        _ => None,
    })?;
    Some(Bound { agent_id, serial: hex(certificate.raw_serial()) })
}
