//! How the program's commands talk to the center that runs on this host.

use crate::http::{LocalKey, fingerprint};
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long an answer may take. The center hashes passwords one at a time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The longest answer that is read: a thousand users have less.
const MAX_ANSWER: usize = 16 << 20;

/// A center, with the key to it.
#[derive(Debug)]
pub(super) struct Client {
    local: LocalKey,
    address: SocketAddr,
}

impl Client {
    /// Finds the center whose data lies here.
    ///
    /// # Errors
    /// It did not write where it is, or whoever asks must not read that.
    pub(super) fn of(data: &Path) -> io::Result<Self> {
        let local = LocalKey::read(data)?;
        let address = local.url.split_once("://").and_then(|(_, address)| address.parse().ok());
        let address = address.ok_or_else(|| io::Error::other(format!("{:?} is no address of a center", local.url)))?;
        Ok(Self { local, address })
    }

    /// Sends a request below `/api/v1`, and returns the answer. `Value::Null` is no body.
    ///
    /// # Errors
    /// The center does not run, or refuses; the text says which.
    pub(super) fn ask(&self, method: &str, path: &str, body: &Value) -> io::Result<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = async {
            tokio::time::timeout(TIMEOUT, self.exchange(method, path, body))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        runtime.block_on(answer).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                io::Error::new(error.kind(), format!("no center runs at {}: {error}", self.local.url))
            }
            _ => error,
        })
    }

    async fn exchange(&self, method: &str, path: &str, body: &Value) -> io::Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header(HOST, self.address.to_string())
            .header(AUTHORIZATION, format!("Bearer {}", self.local.key))
            .body(Full::new(Bytes::from(body)))
            .map_err(io::Error::other)?;
        let tcp = TcpStream::connect(self.address).await?;
        if self.local.certificate.is_empty() {
            return answer(send(tcp, request).await?).await;
        }
        let name = ServerName::from(self.address.ip());
        let tls = TlsConnector::from(Arc::new(pinned(&self.local.certificate)?)).connect(name, tcp).await?;
        answer(send(tls, request).await?).await
    }
}

async fn send<T>(io: T, request: Request<Full<Bytes>>) -> io::Result<Response<Incoming>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    // It ends with the runtime. What goes wrong with it, the request says.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

async fn answer(response: Response<Incoming>) -> io::Result<Value> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?.to_bytes();
    let value: Value = serde_json::from_slice(&body)
        .map_err(|error| io::Error::other(format!("the center answered {status} with no JSON: {error}")))?;
    if status.is_success() {
        return Ok(value);
    }
    let error = value["error"].as_str().map_or_else(|| format!("the center answered {status}"), str::to_owned);
    Err(io::Error::other(error))
}

/// TLS that takes the one certificate whose fingerprint the center wrote. The certificate's name is that of the deployment, and its
/// authority need not be known here.
fn pinned(fingerprint: &str) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Pinned { fingerprint: fingerprint.to_owned(), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    Ok(config)
}

#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if fingerprint(certificate) == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("this is not the certificate that the center said it has".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
