//! How the program's commands talk to the center that runs on this host.

use super::text::printable;
use crate::http::{LocalKey, file_body, fingerprint};
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long an answer may take, or a part of a long one. The center hashes passwords one at a time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a file may take to the center, which is on this host.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(900);

/// The longest answer that is read whole: a page of a thousand hosts or tasks has less.
const MAX_ANSWER: usize = 16 << 20;

/// The body of a request.
type Body = UnsyncBoxBody<Bytes, io::Error>;

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
    /// It did not write where it is, or whoever asks must not read that. The text says what to do.
    pub(super) fn of(data: &Path) -> io::Result<Self> {
        let local = LocalKey::read(data).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "no center has run with this data; start one, or say --data or --config",
                io::ErrorKind::PermissionDenied => "run this as root, or as the user that the center runs as",
                _ => return error,
            };
            io::Error::new(error.kind(), format!("{error}: {hint}"))
        })?;
        let address = local.url.split_once("://").and_then(|(_, address)| address.parse().ok());
        let address = address.ok_or_else(|| io::Error::other(format!("{:?} is no address of a center", local.url)))?;
        Ok(Self { local, address })
    }

    /// Sends a request below `/api/v1`, and returns the answer. `Value::Null` is no body.
    ///
    /// # Errors
    /// The center does not run, or refuses; the text says which.
    pub(super) fn ask(&self, method: &str, path: &str, body: &Value) -> io::Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        self.run(async { within(TIMEOUT, async { answer(self.open(method, path, body).await?).await }).await })
    }

    /// Asks for something that changes nothing.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub(super) fn get(&self, path: &str) -> io::Result<Value> {
        self.ask("GET", path, &Value::Null)
    }

    /// Sends a file of `len` bytes as the body of a `POST`, and returns the answer.
    ///
    /// # Errors
    /// As [`Client::ask`], or the file cannot be read.
    pub(super) fn upload(&self, path: &str, file: File, len: u64) -> io::Result<Value> {
        // The body is read by a task of the runtime.
        let sent = async { answer(self.open("POST", path, file_body(file, len)).await?).await };
        self.run(within(UPLOAD_TIMEOUT, sent))
    }

    /// Asks for something long, and hands its pieces over as they come.
    ///
    /// # Errors
    /// As [`Client::ask`], the answer breaks off, or `take` fails.
    pub(super) fn read(&self, path: &str, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.run(async {
            let response =
                within(TIMEOUT, self.open("GET", path, Empty::new().map_err(|never| match never {}).boxed_unsync()));
            let response = response.await?;
            if !response.status().is_success() {
                return answer(response).await.map(drop);
            }
            let mut body = response.into_body();
            while let Some(frame) = within(TIMEOUT, async { Ok(body.frame().await) }).await? {
                if let Ok(piece) = frame.map_err(io::Error::other)?.into_data() {
                    take(&piece)?;
                }
            }
            Ok(())
        })
    }

    fn run<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => io::Error::new(
                error.kind(),
                format!("no center runs at {} any more: {error}; start it, and look into its log", self.local.url),
            ),
            _ => error,
        })
    }

    async fn open(&self, method: &str, path: &str, body: Body) -> io::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header(HOST, self.address.to_string())
            .header(AUTHORIZATION, format!("Bearer {}", self.local.key))
            .body(body)
            .map_err(io::Error::other)?;
        let tcp = TcpStream::connect(self.address).await?;
        if self.local.certificate.is_empty() {
            return send(tcp, request).await;
        }
        let name = ServerName::from(self.address.ip());
        let tls = TlsConnector::from(Arc::new(pinned(&self.local.certificate)?)).connect(name, tcp).await?;
        send(tls, request).await
    }
}

async fn within<T>(timeout: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("the center has not answered for {} s", timeout.as_secs())))
    })
}

async fn send<T>(io: T, request: Request<Body>) -> io::Result<Response<Incoming>>
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
    let error = value["error"].as_str().map_or_else(|| format!("the center answered {status}"), printable);
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
