//! What no agent can go below: the CPU of compressing the load's own records, of copying them out of a pipe, and of TLS and
//! TCP for what is left, each by itself and at its best.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use elklet_tests::load::{Size, Templates, now_ns};
use elklet_tests::pki;
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// Bytes of records that are usually worked on: enough for a tenth of a second and more.
pub(crate) const USUAL_BYTES: usize = 128 << 20;

/// Bytes of a block of snappy's, and of what is read or written at once.
const BLOCK: usize = 64 << 10;

/// Seconds of CPU per million records.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    pub(crate) compress: f64,
    pub(crate) copy: f64,
    pub(crate) send: f64,
    /// TLS version and cipher suite.
    pub(crate) tls: String,
}

impl Limit {
    pub(crate) fn total(&self) -> f64 {
        self.compress + self.copy + self.send
    }
}

pub(crate) fn median(mut limits: Vec<Limit>) -> Option<Limit> {
    limits.sort_by(|a, b| a.total().total_cmp(&b.total()));
    limits.get(limits.len() / 2).cloned()
}

/// Works on as many records of that size as take `bytes`.
pub(crate) fn measure(size: Size, bytes: usize) -> Limit {
    let templates = Templates::new(size);
    let (mut frames, mut records) = (Vec::with_capacity(bytes + templates.longest()), 0);
    while frames.len() < bytes {
        templates.append(records, now_ns(), &mut frames);
        records += 1;
    }
    let millions = records as f64 / 1e6;
    let mut compressed = Vec::with_capacity(frames.len());
    let compress = cpu(|| compress(&frames, &mut compressed));
    let copy = copy(&frames).expect("a pipe works");
    let (send, tls) = send(&compressed).expect("loopback works");
    Limit { compress: compress / millions, copy: copy / millions, send: send / millions, tls }
}

/// Seconds of CPU that this thread spends in there.
fn cpu(work: impl FnOnce()) -> f64 {
    let clock = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let before = clock();
    work();
    clock() - before
}

fn compress(frames: &[u8], compressed: &mut Vec<u8>) {
    let mut encoder = snap::raw::Encoder::new();
    for block in frames.chunks(BLOCK) {
        let checksum = crc32c::crc32c(block);
        compressed.extend_from_slice(&checksum.to_le_bytes());
        let start = compressed.len();
        compressed.resize(start + snap::raw::max_compress_len(BLOCK), 0);
        let length = encoder.compress(block, &mut compressed[start..]).expect("there is room");
        compressed.truncate(start + length);
    }
}

fn copy(frames: &[u8]) -> io::Result<f64> {
    let (mut reader, mut writer) = io::pipe()?;
    thread::scope(|scope| {
        // It ends when the reader has all, or is gone.
        scope.spawn(move || frames.chunks(BLOCK).try_for_each(|chunk| writer.write_all(chunk)));
        let mut buffer = vec![0; BLOCK];
        let mut result = Ok(());
        let seconds = cpu(|| {
            result = loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            };
        });
        result.map(|()| seconds)
    })
}

fn send(compressed: &[u8]) -> io::Result<(f64, String)> {
    let dir = tempfile::tempdir()?;
    pki::Set::new().write(dir.path())?;
    let chain = |name: &str| -> Result<Vec<_>, _> {
        CertificateDer::pem_file_iter(dir.path().join(name)).and_then(Iterator::collect).map_err(io::Error::other)
    };
    let key = PrivateKeyDer::from_pem_file(dir.path().join("server.key")).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain("server.crt")?, key)
        .map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(chain("ca.crt")?);
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();

    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let reading = thread::spawn(move || -> io::Result<()> {
        let (tcp, _) = listener.accept()?;
        let connection = ServerConnection::new(Arc::new(server)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, tcp);
        let mut buffer = vec![0; BLOCK];
        while stream.read(&mut buffer)? > 0 {}
        Ok(())
    });
    let name = "elkeid.com".try_into().expect("it is a name");
    let connection = ClientConnection::new(Arc::new(client), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    // The handshake is no part of it.
    stream.write_all(b"hello")?;
    let mut result = Ok(());
    let seconds = cpu(|| result = compressed.chunks(BLOCK).try_for_each(|chunk| stream.write_all(chunk)));
    stream.conn.send_close_notify();
    result.and_then(|()| stream.flush())?;
    stream.sock.shutdown(Shutdown::Write)?;
    // What the server has sent, session tickets, is read, lest the connection be reset over it.
    stream.sock.read_to_end(&mut Vec::new())?;
    reading.join().expect("the reader does not panic")?;
    let version = stream.conn.protocol_version().and_then(|version| version.as_str()).unwrap_or_default();
    let suite = stream.conn.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or_default();
    Ok((seconds, format!("{version} {suite}")))
}
