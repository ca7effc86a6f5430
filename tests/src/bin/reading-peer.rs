//! A server for benchmarks that only reads: mutual TLS, one Transfer stream, and just enough work to count records.
//!
//! ```text
//! reading-peer CERTS PORT COMMAND      (a directory, a port of 127.0.0.1 or 0, a file with a gRPC message's content)
//! ```
//!
//! It says `listening PORT` and answers each line on standard input with a line of JSON: see [`Report`]. It sends the
//! command when the first message has arrived.
#![allow(clippy::print_stdout, reason = "that is how it answers")]

use bytes::{Bytes, BytesMut};
use elklet_tests::load::{NUMBERS, now_ns, stamp};
use h2::server;
use http::{HeaderMap, HeaderValue, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use serde::Serialize;
use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, BufRead};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Bytes that the agent may send before this has read them. grpc-go's windows grow to this size on a fast path.
const WINDOW: u32 = 4 << 20;

/// The width of a histogram's buckets in microseconds, and their number. The last one counts all beyond.
const LATENCY_STEP_NS: u64 = 50_000;
const LATENCY_STEPS: usize = 200_000;

/// Bytes of a gRPC message's prefix, and of the header of a snappy chunk.
const PREFIX: usize = 5;
const CHUNK_HEAD: usize = 4;
const CHECKSUM: usize = 4;

/// What has arrived.
#[derive(Serialize)]
struct Report {
    /// When the stream was opened, in nanoseconds since 1970, or 0.
    opened_ns: u64,
    /// The TLS version and cipher suite of the latest connection.
    tls: String,
    /// Records of the load, and how many of them had arrived before.
    records: u64,
    repeated: u64,
    /// Messages, and their bytes on the wire and decompressed.
    messages: u64,
    wire_bytes: u64,
    decoded_bytes: u64,
    /// When the first and the latest record of the load arrived.
    first_ns: u64,
    last_ns: u64,
    /// The median and the 99th percentile of the microseconds from a record's stamp to its arrival.
    p50_us: u64,
    p99_us: u64,
}

struct Seen {
    report: Report,
    /// The number after the highest that has arrived, by plugin.
    next: BTreeMap<u64, u64>,
    latencies: Vec<u32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let [certs, port, command] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("expected CERTS PORT COMMAND".into());
    };
    let acceptor = TlsAcceptor::from(Arc::new(tls(certs.as_ref())?));
    let command = Bytes::from(message(&fs::read(command)?));
    let seen = Arc::new(Mutex::new(Seen::new()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
        println!("listening {}", listener.local_addr()?.port());
        let asked = Arc::clone(&seen);
        thread::spawn(move || answer(&asked));
        loop {
            let (tcp, _) = listener.accept().await?;
            if let Err(error) = serve(tcp, &acceptor, &seen, &command).await {
                eprintln!("reading-peer: {error}");
            }
        }
    })
}

/// Answers lines until standard input ends, and then ends the process.
fn answer(seen: &Mutex<Seen>) {
    for _ in io::stdin().lock().lines() {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.report.p50_us = seen.percentile(50);
        seen.report.p99_us = seen.percentile(99);
        println!("{}", serde_json::to_string(&seen.report).expect("numbers can be written"));
    }
    std::process::exit(0);
}

fn tls(dir: &Path) -> Result<ServerConfig, Box<dyn Error>> {
    let chain = |name| CertificateDer::pem_file_iter(dir.join(name))?.collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(chain("ca.crt")?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain("server.crt")?, PrivateKeyDer::from_pem_file(dir.join("server.key"))?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn message(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("commands are short").to_be_bytes();
    [&[0][..], &length, content].concat()
}

async fn serve(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    seen: &Mutex<Seen>,
    command: &Bytes,
) -> Result<(), Box<dyn Error>> {
    tcp.set_nodelay(true)?;
    let tls = acceptor.accept(tcp).await?;
    let negotiated = negotiated(tls.get_ref().1);
    let mut connection = server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(tls)
        .await?;
    let Some(call) = connection.accept().await else { return Ok(()) };
    let (request, mut respond) = call?;
    {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.report.opened_ns, seen.report.tls) = (now_ns(), negotiated);
    }
    let talking = async {
        let mut body = request.into_body();
        let mut response = Response::new(());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let mut stream = respond.send_response(response, false)?;
        let (mut buffer, mut decoded, mut is_first) = (BytesMut::new(), Vec::new(), true);
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            buffer.extend_from_slice(&data);
            while let Some(&[flag, a, b, c, d]) = buffer.first_chunk::<PREFIX>() {
                let length = PREFIX + u32::from_be_bytes([a, b, c, d]) as usize;
                if buffer.len() < length {
                    break;
                }
                let whole = buffer.split_to(length);
                decoded.clear();
                match flag {
                    0 => decoded.extend_from_slice(&whole[PREFIX..]),
                    _ => decompress(&whole[PREFIX..], &mut decoded)?,
                }
                seen.lock().unwrap_or_else(PoisonError::into_inner).take(length, &decoded);
                if std::mem::take(&mut is_first) {
                    stream.reserve_capacity(command.len());
                    stream.send_data(command.clone(), false)?;
                }
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        stream.send_trailers(trailers)?;
        Ok::<_, Box<dyn Error>>(())
    };
    tokio::pin!(talking);
    loop {
        tokio::select! {
            result = &mut talking => {
                result?;
                connection.graceful_shutdown();
                while connection.accept().await.is_some() {}
                return Ok(());
            }
            next = connection.accept() => if next.transpose()?.is_none() { return Ok(()) },
        }
    }
}

fn negotiated(connection: &ServerConnection) -> String {
    let version = connection.protocol_version().and_then(|version| version.as_str()).unwrap_or("unknown version");
    let suite =
        connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown suite");
    format!("{version} {suite}")
}

/// Snappy's framing format without its checksums: TLS has already verified that nothing was changed.
fn decompress(mut bytes: &[u8], decoded: &mut Vec<u8>) -> Result<(), Box<dyn Error>> {
    let mut decoder = snap::raw::Decoder::new();
    while let Some((&[kind, a, b, c], rest)) = bytes.split_first_chunk::<CHUNK_HEAD>() {
        let length = u32::from_le_bytes([a, b, c, 0]) as usize;
        let (chunk, behind) = rest.split_at_checked(length).ok_or("a chunk that ends early")?;
        match kind {
            0 => {
                let data = chunk.get(CHECKSUM..).ok_or("a chunk without checksum")?;
                let start = decoded.len();
                decoded.resize(start + snap::raw::decompress_len(data)?, 0);
                decoder.decompress(data, &mut decoded[start..])?;
            }
            1 => decoded.extend_from_slice(chunk.get(CHECKSUM..).ok_or("a chunk without checksum")?),
            _ => {}
        }
        bytes = behind;
    }
    Ok(())
}

impl Seen {
    fn new() -> Self {
        let report = Report {
            opened_ns: 0,
            tls: String::new(),
            records: 0,
            repeated: 0,
            messages: 0,
            wire_bytes: 0,
            decoded_bytes: 0,
            first_ns: 0,
            last_ns: 0,
            p50_us: 0,
            p99_us: 0,
        };
        Self { report, next: BTreeMap::new(), latencies: vec![0; LATENCY_STEPS] }
    }

    fn take(&mut self, wire_len: usize, mut message: &[u8]) {
        let now = now_ns();
        self.report.messages += 1;
        self.report.wire_bytes += wire_len as u64;
        self.report.decoded_bytes += message.len() as u64;
        // The records of a PackagedData are its field 1.
        while let Some((field, value, rest)) = field(message) {
            message = rest;
            if field == 1 {
                self.take_record(value, now);
            }
        }
    }

    fn take_record(&mut self, mut record: &[u8], now: u64) {
        let mut stamped = None;
        while let Some((number, value, rest)) = field(record) {
            record = rest;
            if number == 3 {
                stamped = stamp(value);
            }
        }
        let Some((seq, written)) = stamped else { return };
        let next = self.next.entry(seq / NUMBERS).or_default();
        if seq % NUMBERS < *next {
            self.report.repeated += 1;
            return;
        }
        *next = seq % NUMBERS + 1;
        let step = usize::try_from(now.saturating_sub(written) / LATENCY_STEP_NS).unwrap_or(LATENCY_STEPS);
        self.latencies[step.min(LATENCY_STEPS - 1)] += 1;
        self.report.records += 1;
        self.report.last_ns = now;
        if self.report.first_ns == 0 {
            self.report.first_ns = now;
        }
    }

    /// Returns the microseconds within which this share of the records arrived.
    fn percentile(&self, percent: u64) -> u64 {
        let mut left = self.report.records * percent / 100;
        let step = self.latencies.iter().position(|&count| {
            let reached = u64::from(count) > left;
            left = left.saturating_sub(count.into());
            reached
        });
        (step.unwrap_or(0) as u64 + 1) * LATENCY_STEP_NS / 1000
    }
}

/// Splits off a message's first field. Returns its number, its value if that has a length, and the rest.
fn field(mut bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let key = prost::encoding::decode_varint(&mut bytes).ok()?;
    let value = prost::encoding::decode_varint(&mut bytes).ok()?;
    match key & 7 {
        0 => Some((key >> 3, &[], bytes)),
        2 => bytes.split_at_checked(usize::try_from(value).ok()?).map(|(value, rest)| (key >> 3, value, rest)),
        _ => None,
    }
}
