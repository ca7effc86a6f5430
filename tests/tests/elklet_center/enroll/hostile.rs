//! A center that is one by its certificate, and answers newcomers with what it should not.

use super::Host;
use bytes::Bytes;
use elklet_core::link::x509;
use elklet_proto::enrollment::EnrollResponse;
use elklet_tests::pki::Set;
use prost::Message;
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

struct Hostile {
    at: SocketAddr,
    pin: String,
    _runtime: Runtime,
}

impl Hostile {
    /// Answers every call with these bytes, and then with status OK.
    fn start(set: &Set, answer: Vec<u8>) -> Self {
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let authority = der(set.ca.certificate());
        let key = digest(&SHA256, x509::public_key_info(&authority).unwrap());
        let pin = key.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let chain = vec![der(&set.server.certificate), authority];
        let key = PrivateKeyDer::from_pem_slice(set.server.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut config = config.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let at = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), Bytes::from(answer)));
        Self { at, pin, _runtime: runtime }
    }

    fn line(&self) -> Vec<String> {
        let words = ["enroll", &self.at.to_string(), "--token", "t", "--ca-pin", &self.pin, "--force"];
        words.map(str::to_owned).into()
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, answer: Bytes) {
    while let Ok((tcp, _)) = listener.accept().await {
        let Ok(tls) = tls.accept(tcp).await else { continue };
        let Ok(mut connection) = h2::server::handshake(tls).await else { continue };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            // A client that has seen enough resets the stream.
            _ = stream.send_data(answer.clone(), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            _ = stream.send_trailers(trailers);
        }
    }
}

fn message(certificate: Vec<u8>) -> Vec<u8> {
    crate::support::client::prefixed(0, &EnrollResponse { certificate }.encode_to_vec()).to_vec()
}

#[test]
fn an_answer_that_is_no_certificate_for_this_host_changes_nothing() {
    let set = Set::new();
    let others = CertificateDer::from_pem_slice(set.client.certificate.as_bytes()).unwrap().to_vec();
    let host = Host::new("a");
    fs::create_dir(host.certs()).unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        fs::write(host.certs().join(name), name).unwrap();
    }
    fs::write(host.dir.path().join("elklet.toml"), "[server]\nprivate = [\"a:1\"]\n").unwrap();
    for (answer, told) in [
        (message(b"garbage".to_vec()), "is no X.509 certificate"),
        (message(others), "for another key"),
        (message(Vec::new()), "is no X.509 certificate"),
        (message(vec![7; 1 << 20]), "1048"),
        (b"\0\0\0\0\x05abcde".to_vec(), "does not enrol this host"),
        (Vec::new(), "no answer to the call"),
    ] {
        let hostile = Hostile::start(&set, answer);
        let (code, why) = host.refused(&hostile.line());
        assert!(code == Some(1) && why.contains(told), "{told}: {why}");
    }
}
