//! The authority of a center that was given no certificates: the center makes one in its data, with a certificate for its server.
//!
//! The directory appears whole, under its name, once everything in it is on the disk. Later only `server.crt` is replaced, which keeps its
//! key: a center that is killed at any moment finds a pair that belongs together.

use super::{Authority, KEY_FILE, key_info};
use crate::given;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::parse_x509_certificate;

/// The directory in the center's data.
const DIRECTORY: &str = "authority";

const DAY: Duration = Duration::from_secs(86_400);

/// The authority is for ten years. Hosts trust it by name, and have to be enrolled anew after that.
const AUTHORITY_DAYS: u32 = 3653;

/// A server's certificate is for a year, and is made anew in its last third.
const SERVER_LIFETIME: Duration = Duration::from_secs(365 * 86_400);

/// The name that agents demand, whatever address they dial.
const PROTOCOL_NAME: &str = "elkeid.com";

/// Returns the directory of the center's own authority, and makes it if it is not there. The second is true if it was made.
///
/// # Errors
/// It cannot be made, or is damaged.
pub(crate) fn ensure(data: &Path, now_s: i64) -> io::Result<(PathBuf, bool)> {
    let dir = data.join(DIRECTORY);
    if dir.exists() {
        return Ok((dir, false));
    }
    let new = data.join(format!("{DIRECTORY}.new"));
    // A center that was killed may have left it.
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&new, error)),
        _ => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(|error| at(data, error))?;
    DirBuilder::new().mode(0o700).create(&new).map_err(|error| at(&new, error))?;
    let (certificate, key) = authority(now_s).map_err(io::Error::other)?;
    write(&new.join("ca.crt"), &certificate, 0o644)?;
    write(&new.join(KEY_FILE), &key, 0o600)?;
    write(&new.join("server.key"), &KeyPair::generate().map_err(io::Error::other)?.serialize_pem(), 0o600)?;
    sign_server(&new, now_s)?;
    sync(&new)?;
    fs::rename(&new, &dir).map_err(|error| at(&dir, error))?;
    sync(data)?;
    Ok((dir, true))
}

/// Signs the server's key again if its certificate is in its last third, or is for other names. Returns true if it did.
///
/// # Errors
/// What is there cannot be read, or the new certificate cannot be written. The old one stays then.
pub(crate) fn renew_server(dir: &Path, now_s: i64) -> io::Result<bool> {
    if is_good(dir, now_s) {
        return Ok(false);
    }
    sign_server(dir, now_s)?;
    Ok(true)
}

fn is_good(dir: &Path, now_s: i64) -> bool {
    let Ok(certificates) = given::certificates(&dir.join("server.crt")) else { return false };
    let certificate = &certificates[0];
    let Ok((_, parsed)) = parse_x509_certificate(certificate) else { return false };
    let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let is_young = now_s >= from && now_s < until - (until - from) / 3;
    let names = parsed.subject_alternative_name().ok().flatten();
    let has = |name: &String| {
        names.as_ref().is_some_and(|names| {
            names.value.general_names.iter().any(|found| *found == x509_parser::extensions::GeneralName::DNSName(name))
        })
    };
    is_young && key_info(certificate).is_some() && names_of_server().iter().all(has)
}

fn sign_server(dir: &Path, now_s: i64) -> io::Result<()> {
    let authority = Authority::load(dir, DAY).map_err(io::Error::other)?;
    let path = dir.join("server.key");
    let key = given::text_of(&path).map_err(|error| at(&path, error))?;
    let key = KeyPair::from_pem(&key).map_err(|error| at(&path, io::Error::other(error)))?;
    let signed = authority.issue_server(&key, &names_of_server(), now_s, SERVER_LIFETIME).map_err(io::Error::other)?;
    let (path, new) = (dir.join("server.crt"), dir.join("server.crt.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&new, error)),
        _ => {}
    }
    write(&new, &signed, 0o644)?;
    fs::rename(&new, &path).map_err(|error| at(&path, error))?;
    sync(dir)
}

/// The names of the server: the protocol's, this host's, and that of whoever connects from this host.
fn names_of_server() -> Vec<String> {
    let mut names = vec![PROTOCOL_NAME.to_owned(), "localhost".to_owned()];
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let is_name = rustls::pki_types::DnsName::try_from(host.as_str()).is_ok();
    if is_name && !names.contains(&host) {
        names.push(host);
    }
    names
}

/// Makes an authority: its certificate and its key, in PEM.
fn authority(now_s: i64) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "elklet-center authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let begin = date_time_ymd(1970, 1, 1) + super::after_1970(now_s);
    params.not_before = begin - DAY;
    params.not_after = begin + AUTHORITY_DAYS * DAY;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let put = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    put().map_err(|error| at(path, error))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| at(dir, error))
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
