//! The way of a host without a certificate to a center: TLS by the authority's pin alone, and the call that brings a certificate.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use elklet_proto::enrollment::{EnrollRequest, EnrollResponse};
use prost::Message;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::half_open::HalfOpen;
use super::misbehaviour::CenterMisbehaved;
use super::provider::provider;
use super::tls::Tls;
use super::transfer::{Connector, End};
use super::trust::{KeyHash, Unpinned, key_hash};
use super::unary::{self, Calls};
use crate::clock::WallClock;
use crate::config::{Address, Proxies};

/// The call's path.
pub(super) const PATH: &str = "/elklet.Enrollment/Enroll";

/// The longest answer in bytes. A certificate has less than a tenth.
pub(super) const MAX_ANSWER_BYTES: usize = 16 << 10;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a center has given a newcomer, in DER.
#[derive(Debug)]
pub(crate) struct Welcome {
    /// The host's certificate, of which nothing is checked yet.
    pub(crate) certificate: Vec<u8>,
    /// The authority's, whose key has the pin, and which has signed the server's.
    pub(crate) authority: Vec<u8>,
}

/// Asks the center at `address` for a certificate. The request leaves only once the center has shown an authority whose key has this hash,
/// and has proved to be a server of it with this name.
///
/// # Errors
/// How the attempt ended instead.
pub(crate) async fn enroll(
    address: &Address,
    proxies: &Proxies,
    (pin, name): (KeyHash, ServerName<'static>),
    request: &EnrollRequest,
) -> Result<Welcome, End> {
    let ask = async {
        let verifier = Arc::new(PinnedAuthority::new(pin));
        let tls = Tls { config: Arc::new(config(Arc::clone(&verifier))?), name };
        // Nobody listens to what happens on the way.
        let (events, _) = mpsc::channel(1);
        let connector = Connector { tls, proxies: proxies.clone(), half_open: HalfOpen::default(), events };
        let calls = Calls::open(&connector, address).await?;
        let answer = unary::call(calls.requests.clone(), PATH, &request.encode_to_vec(), MAX_ANSWER_BYTES).await;
        let authority = verifier.found().ok_or(End::Center(CenterMisbehaved::Nothing))?;
        Ok(Welcome { certificate: certificate(&answer?)?, authority })
    };
    timeout(PATIENCE, ask).await.unwrap_or(Err(End::NoAnswer(PATIENCE)))
}

/// Takes the certificate out of an answer.
///
/// # Errors
/// It is no answer.
pub(super) fn certificate(answer: &[u8]) -> Result<Vec<u8>, End> {
    let answer = EnrollResponse::decode(answer).map_err(|error| End::Center(CenterMisbehaved::Answer(error)))?;
    Ok(answer.certificate)
}

fn config(verifier: Arc<PinnedAuthority>) -> Result<ClientConfig, End> {
    let builder = ClientConfig::builder_with_details(Arc::clone(&verifier.provider), Arc::new(WallClock))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| End::Tls(std::io::Error::other(error)))?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Verifies servers by an authority of which only the key's hash is known. The server has to show the authority along.
#[derive(Debug)]
struct PinnedAuthority {
    pin: KeyHash,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<Vec<u8>>>,
}

impl PinnedAuthority {
    fn new(pin: KeyHash) -> Self {
        Self { pin, provider: Arc::new(provider()), found: Mutex::default() }
    }

    /// The authority's certificate, once a server was verified.
    fn found(&self) -> Option<Vec<u8>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_pinned = |certificate: &&CertificateDer<'_>| key_hash(certificate) == Some(self.pin);
        let Some(authority) = intermediates.iter().find(is_pinned) else {
            return Err(Unpinned(intermediates.last().and_then(key_hash)).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let provider = Arc::clone(&self.provider);
        let web = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let web = web.map_err(|error| Error::General(error.to_string()))?;
        let verified = web.verify_server_cert(end_entity, intermediates, name, ocsp, now)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority.to_vec());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
