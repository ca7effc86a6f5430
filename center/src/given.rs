//! Files that the center was given: settings, certificates, keys, secrets.
//!
//! Only a regular file is read, and only up to a bound: a FIFO has no end until somebody closes it, and `/dev/zero` has none.

use rustix::fs::{Mode, OFlags, open};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// The longest file, in bytes. The certificates of all authorities that a Linux system knows are 220 KiB.
const MAX_FILE: u64 = 1 << 20;

/// Reads a file.
///
/// # Errors
/// It cannot be read, is no regular file, or is longer than 1 MiB. The error does not name the file.
fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    // Without `NONBLOCK`, opening a FIFO waits for a writer.
    let file = File::from(open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    if file.take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64 > MAX_FILE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is longer than {} MiB", MAX_FILE >> 20)));
    }
    Ok(bytes)
}

/// Reads a file of text.
///
/// # Errors
/// It cannot be read, is no regular file, is longer than 1 MiB, or is no UTF-8. The error does not name the file.
pub(crate) fn text_of(path: &Path) -> io::Result<String> {
    String::from_utf8(bytes_of(path)?).map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is no UTF-8"))
}

/// Reads the certificates in a file, of which there is at least one.
///
/// # Errors
/// As [`bytes_of`], there is none, or one of them is damaged. The error names the file.
pub(crate) fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let bytes = bytes_of(path).map_err(|error| in_file(path, &error))?;
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|error| in_file(path, &error))?;
    match all.is_empty() {
        true => Err(in_file(path, &"there is no certificate in it")),
        false => Ok(all),
    }
}

/// Reads the private key in a file.
///
/// # Errors
/// As [`bytes_of`], or there is none. The error names the file.
pub(crate) fn private_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let bytes = bytes_of(path).map_err(|error| in_file(path, &error))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| in_file(path, &error))
}

/// Returns an error that names a file.
pub(crate) fn in_file(path: &Path, error: &dyn fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_a_regular_file_of_a_sensible_length_is_read_for_certificates_and_keys() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let padded = |text: &str, len: usize| text.to_owned() + &"#".repeat(len - text.len());
        fs::write(at("ca.crt"), [b"\xff is no UTF-8\n", padded(&certificate, 1 << 19).as_bytes()].concat()).unwrap();
        fs::write(at("key"), &key).unwrap();
        fs::write(at("long"), padded(&(certificate + &key), (1 << 20) + 1)).unwrap();
        assert_eq!(certificates(&at("ca.crt")).unwrap(), [made.cert.der().clone()]);
        assert!(private_key(&at("key")).is_ok());
        for (path, told) in [
            (at("fifo"), "fifo: it is no regular file"),
            ("/dev/zero".into(), "/dev/zero: it is no regular file"),
            (at("long"), "long: it is longer than 1 MiB"),
            (at("nothing"), "nothing: No such file"),
        ] {
            for wrong in [certificates(&path).unwrap_err(), private_key(&path).unwrap_err()] {
                assert!(wrong.to_string().contains(told), "{wrong}");
            }
        }
        assert!(certificates(&at("key")).unwrap_err().to_string().contains("key: there is no certificate in it"));
    }
}
