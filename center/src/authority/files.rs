//! Whether the files that an operator brings are what the center needs, looked at without starting it.

use super::{Authority, KEY_FILE};
use crate::given::{certificates, private_key};
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Looks whether `server.crt` and `server.key` of a directory fit together, whether `ca.crt` has authorities of agents, and, where there
/// is a `ca.key`, whether hosts can be enrolled with it.
///
/// # Errors
/// What is wrong, with the file.
pub(crate) fn check(dir: &Path, lifetime: Duration) -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    let at = |name: &str, error: &dyn fmt::Display| format!("{}: {error}", dir.join(name).display());
    let chain = certificates(&dir.join("server.crt")).map_err(told)?;
    let key = private_key(&dir.join("server.key")).map_err(told)?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| at("server.crt and server.key", &error))?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(&dir.join("ca.crt")).map_err(told)? {
        roots.add(authority).map_err(|error| at("ca.crt", &error))?;
    }
    if dir.join(KEY_FILE).exists() {
        Authority::load(dir, lifetime)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::own;
    use super::*;
    use std::fs;

    const LIFETIME: Duration = Duration::from_secs(86_400);
    const NOW_S: i64 = 1_700_000_000;

    #[test]
    fn what_does_not_fit_together_is_told_with_its_file() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (other, _) = own::ensure(other.path(), NOW_S).unwrap();
        let (dir, _) = own::ensure(one.path(), NOW_S).unwrap();
        assert_eq!(check(&dir, LIFETIME), Ok(()));
        for (name, text, told) in [
            ("server.crt", None, "server.crt: No such file"),
            ("server.crt", Some(String::new()), "server.crt: there is no certificate in it"),
            ("server.key", Some("secret".to_owned()), "server.key: "),
            ("server.key", Some(fs::read_to_string(other.join("server.key")).unwrap()), "server.crt and server.key: "),
            ("ca.crt", Some(String::new()), "ca.crt: there is no certificate in it"),
            ("ca.crt", Some("x".repeat(2 << 20)), "ca.crt: it is longer than 1 MiB"),
            ("ca.key", Some(fs::read_to_string(other.join("ca.key")).unwrap()), "ca.key: no certificate in "),
        ] {
            let path = dir.join(name);
            let before = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            if let Some(text) = text {
                fs::write(&path, text).unwrap();
            }
            let wrong = check(&dir, LIFETIME).unwrap_err();
            assert!(wrong.contains(told), "{name}: {wrong}");
            fs::write(&path, before).unwrap();
        }
        fs::remove_file(dir.join("ca.key")).unwrap();
        assert_eq!(check(&dir, LIFETIME), Ok(()), "whoever enrols no hosts has no such key");
    }
}
