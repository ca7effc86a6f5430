//! A file server over http or https that does what it is told, right or wrong.
//!
//! Each connection gets a thread and carries one request.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::pki::Leaf;

/// How the server sends a file.
#[derive(Debug, Clone)]
pub enum How {
    /// Correctly, and a part of it if the client asks for a range.
    Right,
    /// At this many bytes a second.
    Slow(usize),
    /// The server closes the connection after this many bytes.
    Cut(usize),
    /// The server sends nothing more after this many bytes, and leaves the connection open.
    Stall(usize),
    /// The server says that its length is this one.
    Claiming(usize),
    /// The server sends zeros for ever, whatever the file is.
    Endless,
    /// The server redirects to this address.
    Redirect(String),
    /// The server answers with this status.
    Status(u16),
}

/// The server. It ends with the process.
#[derive(Debug)]
pub struct Files {
    address: SocketAddr,
    scheme: &'static str,
    host: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<BTreeMap<String, Served>>,
}

#[derive(Debug)]
struct Served {
    body: Arc<Vec<u8>>,
    how: How,
    /// The requests so far, and those that are being answered.
    requests: usize,
    open: usize,
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Files {
    fn default() -> Self {
        Self::start()
    }
}

impl Files {
    /// Starts a server over http.
    ///
    /// # Panics
    /// When no port is free.
    #[must_use]
    pub fn start() -> Self {
        Self::listen("http", "127.0.0.1".to_owned(), Ok)
    }

    /// Starts a server over https with this certificate. Its URLs name it `host`.
    ///
    /// # Panics
    /// When the certificate is not valid, or no port is free.
    #[must_use]
    pub fn start_tls(leaf: &Leaf, host: &str) -> Self {
        let chain = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(chain.expect("a certificate"), key)
            .expect("they belong together");
        let config = Arc::new(config);
        Self::listen("https", host.to_owned(), move |tcp| {
            Ok(StreamOwned::new(ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?, tcp))
        })
    }

    fn listen<S: Read + Write>(
        scheme: &'static str,
        host: String,
        wrap: impl Fn(TcpStream) -> io::Result<S> + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::<Shared>::default();
        let files = Self { address, scheme, host, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let (wrap, shared) = (wrap.clone(), Arc::clone(&shared));
                thread::spawn(move || {
                    // The client may leave before the end.
                    _ = wrap(tcp).and_then(|stream| answer(stream, &shared));
                });
            }
        });
        files
    }

    /// Offers a file, and returns its URL.
    #[must_use]
    pub fn serve(&self, path: &str, body: impl Into<Vec<u8>>, how: How) -> String {
        let served = Served { body: Arc::new(body.into()), how, requests: 0, open: 0 };
        self.shared.files().insert(path.to_owned(), served);
        self.url(path)
    }

    /// Returns the URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}:{}/{path}", self.scheme, self.host, self.address.port())
    }

    /// Returns how often a file was requested.
    #[must_use]
    pub fn requests(&self, path: &str) -> usize {
        self.shared.files().get(path).map_or(0, |served| served.requests)
    }

    /// Returns how many requests for a file are being answered.
    #[must_use]
    pub fn open(&self, path: &str) -> usize {
        self.shared.files().get(path).map_or(0, |served| served.open)
    }
}

fn answer(stream: impl Read + Write, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut head)? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
    let found = shared.files().get_mut(&path).map(|served| {
        served.requests += 1;
        served.open += 1;
        (Arc::clone(&served.body), served.how.clone())
    });
    let stream = stream.get_mut();
    let Some((body, how)) = found else { return status(stream, 404) };
    let result = send(stream, &body, &how, range);
    if let Some(served) = shared.files().get_mut(&path) {
        served.open = served.open.saturating_sub(1);
    }
    result
}

fn status(stream: &mut impl Write, status: u16) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status} So\r\ncontent-length: 3\r\n\r\nno!")?;
    stream.flush()
}

fn send(stream: &mut impl Write, body: &[u8], how: &How, range: Option<usize>) -> io::Result<()> {
    match how {
        How::Redirect(to) => {
            write!(stream, "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")?;
            return stream.flush();
        }
        How::Status(code) => return status(stream, *code),
        How::Endless => {
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
            let zeros = vec![0; 1 << 20];
            loop {
                stream.write_all(&zeros)?;
            }
        }
        _ => {}
    }
    let start = range.filter(|start| *start < body.len());
    let (part, length) = (&body[start.unwrap_or(0)..], body.len());
    let claimed = if let How::Claiming(length) = how { *length } else { part.len() };
    match start {
        Some(start) => {
            let last = length - 1;
            write!(stream, "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {start}-{last}/{length}\r\n")?;
        }
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    write!(stream, "content-length: {claimed}\r\n\r\n")?;
    match how {
        How::Slow(rate) => {
            for piece in part.chunks(rate.div_ceil(10).max(1)) {
                stream.write_all(piece)?;
                stream.flush()?;
                thread::sleep(Duration::from_millis(100));
            }
        }
        How::Cut(at) => stream.write_all(&part[..(*at).min(part.len())])?,
        How::Stall(at) => {
            stream.write_all(&part[..(*at).min(part.len())])?;
            stream.flush()?;
            // This is longer than any client waits.
            thread::sleep(Duration::from_secs(300));
        }
        _ => stream.write_all(part)?,
    }
    stream.flush()
}
