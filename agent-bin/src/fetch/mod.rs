//! Downloads over http and https. A download returns a whole file with the right hash, or an error.
//!
//! To download a file, make a [`Request`] and call [`Fetcher::fetch`] on a blocking thread, with the path of a file that
//! does not exist yet, the [`Room`] for it, and a [`Cancel`] of which another thread keeps a clone (in an `Arc`). On
//! success the file is open at its beginning. After an error there is no file.
//!
//! ```text
//! let request = Request { urls: &config.urls, sha256: config.sha256, max_bytes: MAX_DOWNLOAD_BYTES };
//! let mut room = Room::below(&directory)?;
//! let file = fetcher.fetch(&request, &directory.join("package"), &mut room, &cancel)?;
//! ```
//!
//! The fetcher tries the addresses in order. If one breaks off, the next resumes if it can (HTTP ranges). The hash covers
//! the whole. If a file made of parts does not have it, the fetcher downloads the file once more from the beginning.

mod error;
mod trust;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use elklet_core::command::Sha256;
use ring::digest;
use ureq::Agent;
use ureq::http::{Response, StatusCode, header};

pub(crate) use self::error::FetchError;
use self::error::{Attempt, Miss};
use crate::clock::Stopwatch;
use crate::config::Proxies;
use crate::files::FileError;
use crate::net::http_agent;
use crate::sys::room::Room;

/// Redirections to follow for one address.
const MAX_REDIRECTS: u32 = 5;

/// Most characters of an address or a reason in an error.
const QUOTED_CHARS: usize = 160;

/// Bytes that are read and written at once.
const PIECE_BYTES: usize = 64 << 10;

/// A file to download.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// Its addresses, tried in order.
    pub(crate) urls: &'a [String],
    /// The hash of the whole.
    pub(crate) sha256: Sha256,
    /// The most bytes that it may have.
    pub(crate) max_bytes: u64,
}

/// Time limits for one address.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For resolving a name, and for a TCP connection. It is the reference's limit.
    connect: Duration,
    /// Between two reads that return data.
    stall: Duration,
    /// For everything. It is the reference's limit.
    total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(15), stall: Duration::from_secs(30), total: Duration::from_secs(600) }
    }
}

/// Cancels a fetch from another thread. It ends at once, unless it is resolving a name or connecting.
#[derive(Debug, Default)]
pub(crate) struct Cancel {
    is_cancelled: AtomicBool,
    agent: Mutex<Option<Agent>>,
}

impl Cancel {
    pub(crate) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        let agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(agent) = agent {
            agent.shutdown();
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Shuts `agent` down when this is cancelled.
    fn watch(&self, agent: &Agent) {
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = Some(agent.clone());
        if self.is_cancelled() {
            // It was cancelled just before.
            self.cancel();
        }
    }
}

/// Fetches files.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    /// The deployment's own authority, which is trusted for https besides the system's.
    authority: PathBuf,
    proxies: Proxies,
    patience: Patience,
}

impl Fetcher {
    /// A fetcher that trusts the system's authorities and those in `authority`, a PEM file that may not exist.
    pub(crate) fn new(authority: PathBuf, proxies: Proxies) -> Self {
        Self { authority, proxies, patience: Patience::default() }
    }

    /// Downloads what is requested into the new file `to` and syncs it. Only its owner can read the file. Blocks.
    ///
    /// # Errors
    /// When no address has it, it is too long, its hash is wrong, `to` cannot be written, there is no room for it, or
    /// the fetch was cancelled. There is then no file.
    pub(crate) fn fetch(
        &self,
        request: &Request<'_>,
        to: &Path,
        room: &mut Room,
        cancel: &Cancel,
    ) -> Result<File, FetchError> {
        if request.urls.is_empty() {
            return Err(FetchError::NoAddress);
        }
        let mut partial = Partial::create(to, room).map_err(FileError::at(to))?;
        let fetched = self.try_addresses(&mut partial, request, to, cancel);
        fetched.inspect_err(|_| drop(fs::remove_file(to))).map(|()| partial.file)
    }

    fn try_addresses(
        &self,
        partial: &mut Partial<'_>,
        request: &Request<'_>,
        to: &Path,
        cancel: &Cancel,
    ) -> Result<(), FetchError> {
        let agent = self.agent();
        cancel.watch(&agent);
        let mut attempts = Vec::new();
        for url in request.urls {
            if cancel.is_cancelled() {
                break;
            }
            let begun = Stopwatch::start();
            match partial.complete(&agent, url, request, cancel) {
                Ok(()) => {
                    let settled = partial.file.sync_all().and_then(|()| partial.file.seek(SeekFrom::Start(0)));
                    settled.map_err(FileError::at(to))?;
                    log::info!(
                        "{} bytes downloaded in {:.1} s from {}",
                        partial.length,
                        begun.elapsed().as_secs_f64(),
                        quoted(url)
                    );
                    return Ok(());
                }
                Err(why) => attempts.push(Attempt { url: quoted(url), why }),
            }
        }
        Err(if cancel.is_cancelled() { FetchError::Cancelled } else { FetchError::EveryAddress(attempts) })
    }

    /// An HTTP client for one fetch. It remembers nothing, and reads the authorities anew.
    fn agent(&self) -> Agent {
        let Patience { connect, stall, total } = self.patience;
        http_agent(
            Agent::config_builder()
                .user_agent(concat!("elklet/", env!("CARGO_PKG_VERSION")))
                .max_redirects(MAX_REDIRECTS)
                .max_idle_connections(0)
                .timeout_resolve(Some(connect))
                .timeout_connect(Some(connect))
                .timeout_per_read(Some(stall))
                .timeout_per_write(Some(stall))
                .timeout_global(Some(total)),
            trust::authorities(&self.authority),
            &self.proxies,
        )
    }
}

/// The part of a file that has arrived.
struct Partial<'a> {
    file: File,
    room: &'a mut Room,
    length: u64,
    hash: digest::Context,
    /// Bytes of `length` that came from earlier addresses.
    inherited: u64,
}

impl<'a> Partial<'a> {
    fn create(path: &Path, room: &'a mut Room) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file, room, length: 0, hash: digest::Context::new(&digest::SHA256), inherited: 0 })
    }

    /// Downloads what is missing from this address, and checks the hash of the whole.
    fn complete(&mut self, agent: &Agent, url: &str, request: &Request<'_>, cancel: &Cancel) -> Result<(), Miss> {
        self.read_from(agent, url, request, cancel)?;
        let mut sha256 = self.sha256();
        if sha256 != request.sha256 && self.inherited > 0 {
            // The part that came from elsewhere may be at fault.
            self.start_over()?;
            self.read_from(agent, url, request, cancel)?;
            sha256 = self.sha256();
        }
        if sha256 == request.sha256 {
            return Ok(());
        }
        let bytes = self.length;
        self.start_over()?;
        Err(Miss::Digest { bytes, sha256, expected: request.sha256 })
    }

    fn read_from(&mut self, agent: &Agent, url: &str, request: &Request<'_>, cancel: &Cancel) -> Result<(), Miss> {
        let is_http = |scheme: &str| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        if !url.split_once("://").is_some_and(|(scheme, _)| is_http(scheme)) {
            return Err(Miss::NotHttp);
        }
        let mut response = self.request(agent, url)?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            self.start_over()?;
            response = self.request(agent, url)?;
        }
        match response.status() {
            StatusCode::PARTIAL_CONTENT if self.length > 0 && range_start(&response) == Some(self.length) => {
                log::info!("the download goes on at byte {} from {}", self.length, quoted(url));
            }
            StatusCode::OK => self.start_over()?,
            status => return Err(Miss::Status(status.as_u16())),
        }
        self.inherited = self.length;
        let too_long = || Miss::TooLong(request.max_bytes);
        if response.body().content_length().is_some_and(|length| length > request.max_bytes.saturating_sub(self.length))
        {
            return Err(too_long());
        }
        let mut body = response.body_mut().as_reader();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let n = body.read(&mut piece).map_err(|error| Miss::client(&error))?;
            if cancel.is_cancelled() {
                return Err(Miss::Cancelled);
            }
            if n == 0 {
                return Ok(());
            }
            self.length += n as u64;
            if self.length > request.max_bytes {
                self.start_over()?;
                return Err(too_long());
            }
            self.hash.update(&piece[..n]);
            if let Err(error) = self.room.take(n as u64).and_then(|()| self.file.write_all(&piece[..n])) {
                self.start_over()?;
                return Err(Miss::NotWritten(error));
            }
        }
    }

    fn request(&self, agent: &Agent, url: &str) -> Result<Response<ureq::Body>, Miss> {
        let mut request = agent.get(url).config().http_status_as_error(false).build();
        if self.length > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", self.length));
        }
        request.call().map_err(|error| Miss::client(&error))
    }

    fn start_over(&mut self) -> Result<(), Miss> {
        self.hash = digest::Context::new(&digest::SHA256);
        (self.length, self.inherited) = (0, 0);
        self.room.give_back();
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map(drop).map_err(Miss::NotEmptied)
    }

    fn sha256(&self) -> Sha256 {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.hash.clone().finish().as_ref());
        Sha256(sha256)
    }
}

/// Where a server's part begins (RFC 9110, section 14.4): `Content-Range: bytes 100-199/200`.
fn range_start(response: &Response<ureq::Body>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Enough of a peer's address to recognise it, without a password in it.
fn quoted(url: &str) -> String {
    let hidden = url.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (_, host) = rest[..end].rsplit_once('@')?;
        Some(format!("{scheme}://...@{host}{}", &rest[end..]))
    });
    hidden.as_deref().unwrap_or(url).chars().take(QUOTED_CHARS).collect()
}

#[cfg(test)]
mod tests;
