//! The key of this host's own commands, which lies where only who may read the center's data can read it.

use super::secret;
use crate::given::text_of;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The files in the directory of the center's data.
const KEY_FILE: &str = "local-token";
const ADDRESS_FILE: &str = "local-address";

/// What a command on this host needs to talk to the center: each start of the center makes another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalKey {
    /// Goes into the header `Authorization: Bearer KEY`.
    pub key: String,
    /// Where the center is: `http://ADDRESS:PORT` or `https://ADDRESS:PORT`.
    pub url: String,
    /// The SHA-256 of the certificate that the center has there, in hexadecimal digits; empty without TLS.
    pub certificate: String,
}

impl LocalKey {
    /// Makes a key for a center that is there.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(crate) fn new(http: SocketAddr, certificate: Option<&[u8]>) -> io::Result<Self> {
        let certificate = certificate.map_or_else(String::new, secret::fingerprint);
        Ok(Self { key: secret::new_key()?, url: url(http, !certificate.is_empty()), certificate })
    }

    /// Writes it into the directory of the center's data.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        // Whoever finds the key finds the address that it is for.
        replace(&dir.join(ADDRESS_FILE), &format!("{} {}", self.url, self.certificate), 0o644)?;
        replace(&dir.join(KEY_FILE), &self.key, 0o600)
    }

    /// Returns the same for another certificate.
    pub(crate) fn with_certificate(&self, certificate: &[u8]) -> Self {
        Self { certificate: secret::fingerprint(certificate), ..self.clone() }
    }

    /// Reads what the center wrote when it started.
    ///
    /// # Errors
    /// A file cannot be read; the message names it.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let read = |name| {
            let path = dir.join(name);
            let text =
                text_of(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
            Ok::<_, io::Error>(text.trim().to_owned())
        };
        let (key, address) = (read(KEY_FILE)?, read(ADDRESS_FILE)?);
        let (url, certificate) = address.split_once(' ').unwrap_or((&address, ""));
        Ok(Self { key, url: url.to_owned(), certificate: certificate.to_owned() })
    }
}

/// Returns the address at which this host reaches a port, as a browser takes it.
pub(super) fn url(http: SocketAddr, tls: bool) -> String {
    let ip = match http.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("{}://{}", if tls { "https" } else { "http" }, SocketAddr::new(ip, http.port()))
}

/// Replaces a file whole, so that nobody reads half of it, and nobody else's file gets it.
fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(at)?;
    file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).map_err(at)?;
    fs::rename(&new, path).map_err(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_command_reads_what_the_center_wrote_and_nobody_else_may() {
        let dir = tempfile::tempdir().unwrap();
        assert!(LocalKey::read(dir.path()).unwrap_err().to_string().contains("local-token"));
        fs::write(dir.path().join(KEY_FILE), "of the start before").unwrap();
        let plain = LocalKey::new(SocketAddr::from(([0, 0, 0, 0], 6752)), None).unwrap();
        plain.write(dir.path()).unwrap();
        assert_eq!(LocalKey::read(dir.path()).unwrap(), plain);
        assert_eq!(plain.url, "http://127.0.0.1:6752");
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let tls = LocalKey::new("[::]:1".parse().unwrap(), Some(b"certificate")).unwrap();
        tls.write(dir.path()).unwrap();
        assert_eq!(LocalKey::read(dir.path()).unwrap(), tls);
        assert_eq!((tls.url.as_str(), tls.certificate.len()), ("https://[::1]:1", 64));
        assert_ne!(tls.key, plain.key);
    }
}
