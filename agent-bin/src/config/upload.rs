//! `[upload]`: which files the server may ask for.

use std::path::PathBuf;

use serde::Deserialize;

use super::Settings;
use super::value::BadValue;

/// What the file says about the files that the server may ask for (task 1050).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Upload {
    allow: Option<Vec<AbsolutePath>>,
}

/// Which files the server may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UploadRules {
    /// Files that may be sent, and directories below which everything may.
    pub(crate) allow: Vec<PathBuf>,
    /// Files that stay on the host whatever is allowed.
    pub(crate) secret: Vec<PathBuf>,
}

impl Settings {
    /// The files that the server may have.
    ///
    /// Unless the file says more, that is any file, as with the reference: whoever can send plugins that run as root can read
    /// everything anyway. With `plugins.public_key` the server cannot, so that it is none.
    pub(crate) fn upload_rules(&self) -> UploadRules {
        let allow = match &self.upload.allow {
            Some(allow) => allow.iter().map(|path| path.0.clone()).collect(),
            None if self.plugins.signers().is_some() => Vec::new(),
            None => vec!["/".into()],
        };
        let mut secret = vec![self.layout.certs.join("client.key")];
        if self.has_proxy_password() {
            secret.push(self.layout.file.clone());
        }
        UploadRules { allow, secret }
    }
}

/// An absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "PathBuf")]
struct AbsolutePath(PathBuf);

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = BadValue;

    fn try_from(path: PathBuf) -> Result<Self, BadValue> {
        match path.is_absolute() {
            true => Ok(Self(path)),
            false => Err(BadValue::RelativePath(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    fn rules(text: &str) -> UploadRules {
        parse::<Settings>(text).expect("valid").upload_rules()
    }

    #[test]
    fn a_server_that_cannot_run_what_it_wants_may_not_read_what_it_wants_either() {
        assert_eq!(rules("").allow, ["/"].map(PathBuf::from));
        let key = format!("[plugins]\npublic_key = \"{}=\"\n", "A".repeat(43));
        assert_eq!(rules(&key).allow, [""; 0].map(PathBuf::from));
        assert_eq!(rules(&format!("{key}[upload]\nallow = [\"/var/log\"]")).allow, ["/var/log"].map(PathBuf::from));
    }

    #[test]
    fn a_file_with_a_password_is_a_secret() {
        let count = |text: &str| rules(text).secret.len();
        assert_eq!(count(""), 1, "the key");
        assert_eq!(count("[proxy]\nurl = \"http://user:word@proxy:3128\""), 2);
    }
}
