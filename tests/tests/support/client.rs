//! An agent's end of the wire, reduced to what the tests of the center need. It shares no code with the agent.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

pub(crate) const TRANSFER: &str = "/grpc.Transfer/Transfer";
pub(crate) const UPLOAD: &str = "/grpc.FileExt/Upload";

/// How long anything may take, on a busy machine.
pub(crate) const DEADLINE: Duration = elklet_tests::harness::DEADLINE;

/// Waits for something that is to happen soon.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("it happens before the deadline")
}

/// A connection.
pub(crate) struct Client {
    requests: SendRequest<Bytes>,
    pub(crate) pings: PingPong,
    /// Ends with the connection.
    pub(crate) driver: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    /// Connects with the certificate in `certs`.
    pub(crate) async fn connect(address: SocketAddr, certs: &Path) -> io::Result<Self> {
        Self::connect_by(address, known(certs), &Builder::new()).await
    }

    /// The same for one that has no room for anything that the center sends on a call.
    pub(crate) async fn connect_without_window(address: SocketAddr, certs: &Path) -> io::Result<Self> {
        Self::connect_by(address, known(certs), Builder::new().initial_window_size(0)).await
    }

    /// Connects without a certificate.
    pub(crate) async fn connect_anonymously(address: SocketAddr, certs: &Path) -> io::Result<Self> {
        Self::connect_by(address, trusting(certs).with_no_client_auth(), &Builder::new()).await
    }

    async fn connect_by(address: SocketAddr, mut tls: ClientConfig, http2: &Builder) -> io::Result<Self> {
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let connect = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("elkeid.com").expect("a name");
            let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
            let (mut requests, mut connection) = http2.handshake(tls).await.map_err(io::Error::other)?;
            let pings = connection.ping_pong().expect("nobody took it before");
            let driver = tokio::spawn(connection);
            // With TLS 1.3 a server that does not want this client says so only after the handshake.
            requests = requests.ready().await.map_err(io::Error::other)?;
            let mut client = Self { requests, pings, driver };
            client.ping().await.map_err(io::Error::other)?;
            Ok(client)
        };
        soon(connect).await
    }

    pub(crate) async fn ping(&mut self) -> Result<(), h2::Error> {
        soon(self.pings.ping(Ping::opaque())).await.map(drop)
    }

    /// Opens a call; `encoding` is for both directions, the flag is set on every message of this side.
    pub(crate) async fn call(&mut self, path: &str, encoding: Option<&'static str>) -> Call {
        let mut request = Request::post(format!("https://elkeid.com{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(encoding) = encoding {
            request = request.header("grpc-encoding", encoding);
        }
        let request = request.body(()).expect("a request");
        self.requests = soon(self.requests.clone().ready()).await.expect("room for a stream");
        let (response, send) = self.requests.send_request(request, false).expect("a request can be sent");
        Call {
            send,
            response: Some(response),
            headers: HeaderMap::new(),
            body: None,
            buffer: BytesMut::new(),
            snappy: encoding == Some("snappy"),
        }
    }

    /// Returns how the connection ended.
    pub(crate) async fn ended(self) -> Result<(), h2::Error> {
        drop(self.requests);
        soon(self.driver).await.expect("the driver does not panic")
    }
}

/// TLS with the certificate in `certs`.
fn known(certs: &Path) -> ClientConfig {
    let certificates = pem_file_iter(&certs.join("client.crt"));
    let key = PrivateKeyDer::from_pem_file(certs.join("client.key")).expect("a key");
    trusting(certs).with_client_auth_cert(certificates, key).expect("the key fits")
}

fn trusting(certs: &Path) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    for certificate in pem_file_iter(&certs.join("ca.crt")) {
        roots.add(certificate).expect("a root");
    }
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
}

fn pem_file_iter(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).expect("certificates")
}

/// A call that is open.
pub(crate) struct Call {
    pub(crate) send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    pub(crate) headers: HeaderMap,
    body: Option<RecvStream>,
    buffer: BytesMut,
    snappy: bool,
}

/// A message: its flag as it arrived, and its bytes after decompression.
#[derive(Debug, PartialEq)]
pub(crate) struct Received {
    pub(crate) flag: u8,
    pub(crate) body: Vec<u8>,
}

impl Call {
    pub(crate) async fn send(&mut self, message: &impl Message) {
        let bytes = self.encode(&message.encode_to_vec());
        self.send_bytes(bytes).await.expect("the message can be sent");
    }

    /// Returns `body` as a message of this call.
    pub(crate) fn encode(&self, body: &[u8]) -> Bytes {
        if !self.snappy {
            return prefixed(0, body);
        }
        let mut encoder = snap::write::FrameEncoder::new(Vec::new());
        encoder.write_all(body).expect("memory");
        prefixed(1, &encoder.into_inner().expect("memory"))
    }

    /// Sends any bytes.
    pub(crate) async fn send_bytes(&mut self, mut bytes: Bytes) -> Result<(), h2::Error> {
        while bytes.has_remaining() {
            let part = bytes.split_to(soon(self.capacity(bytes.len())).await?);
            self.send.send_data(part, false)?;
        }
        Ok(())
    }

    /// Waits until some of `want` bytes may be sent, and returns how many.
    pub(crate) async fn capacity(&mut self, want: usize) -> Result<usize, h2::Error> {
        self.send.reserve_capacity(want);
        while self.send.capacity() == 0 {
            match poll_fn(|cx| self.send.poll_capacity(cx)).await {
                Some(granted) => _ = granted?,
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            }
        }
        Ok(self.send.capacity().min(want))
    }

    /// Half-closes the call.
    pub(crate) fn finish(&mut self) {
        self.send.send_data(Bytes::new(), true).expect("the stream is open");
    }

    /// Returns the next message, or `None` if only trailers are left.
    pub(crate) async fn message(&mut self) -> Result<Option<Received>, h2::Error> {
        soon(self.next()).await
    }

    /// Returns the next message as a command.
    pub(crate) async fn command(&mut self) -> elklet_proto::grpc::Command {
        let received = self.message().await.expect("the stream is whole").expect("a command comes");
        elklet_proto::grpc::Command::decode(&received.body[..]).expect("it is a command")
    }

    async fn next(&mut self) -> Result<Option<Received>, h2::Error> {
        self.answered().await?;
        let body = self.body.as_mut().expect("the response is there");
        loop {
            if let Some(&[flag, a, b, c, d]) = self.buffer.first_chunk::<5>() {
                let len = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.buffer.len() >= 5 + len {
                    self.buffer.advance(5);
                    let message = self.buffer.split_to(len);
                    return Ok(Some(Received {
                        flag,
                        body: if flag == 1 { unsnappy(&message) } else { message.to_vec() },
                    }));
                }
            }
            match body.data().await {
                Some(part) => {
                    let part = part?;
                    body.flow_control().release_capacity(part.len())?;
                    self.buffer.extend_from_slice(&part);
                }
                None => return Ok(None),
            }
        }
    }

    /// Waits for the response's headers.
    pub(crate) async fn answered(&mut self) -> Result<http::StatusCode, h2::Error> {
        if let Some(response) = self.response.take() {
            let (head, body) = response.await?.into_parts();
            self.headers = head.headers;
            self.body = Some(body);
            return Ok(head.status);
        }
        Ok(http::StatusCode::OK)
    }

    /// Returns the call's status: from trailers, or from the headers if there is nothing else. It skips messages before
    /// it.
    pub(crate) async fn status(&mut self) -> (u32, String) {
        self.try_status().await.expect("the stream ends in order")
    }

    pub(crate) async fn try_status(&mut self) -> Result<(u32, String), h2::Error> {
        while self.message().await?.is_some() {}
        let body = self.body.as_mut().expect("the response is there");
        let trailers = soon(body.trailers()).await?;
        let headers = trailers.as_ref().unwrap_or(&self.headers);
        let text = |name: &str| headers.get(name).map(|value| value.to_str().expect("text").to_owned());
        let code = text("grpc-status").expect("a status").parse().expect("a number");
        Ok((code, text("grpc-message").unwrap_or_default()))
    }
}

pub(crate) fn prefixed(flag: u8, body: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(flag);
    message.put_u32(u32::try_from(body.len()).expect("short"));
    message.put_slice(body);
    message.freeze()
}

fn unsnappy(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    snap::read::FrameDecoder::new(bytes).read_to_end(&mut decoded).expect("snappy");
    decoded
}
